"""Adapters for another base are refused when they are loaded, not at the first batch."""

import pytest
import tiny_models
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import LANGUAGE_MODEL, make_model, make_processor, write_tiny_model
from transformers import AutoModelForMultimodalLM

from scmmgpt.errors import UserError
from scmmgpt.loading import load
from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTModel


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    get_peft_model(ScMMGPTForConditionalGeneration.from_pretrained(base), config).save_pretrained(directory)
    return directory


@pytest.fixture
def wider(monkeypatch):
    """A model whose LLM is wider than the one that the adapters were trained on."""
    monkeypatch.setattr(tiny_models, "LANGUAGE_MODEL", {**LANGUAGE_MODEL, "hidden_size": 48})
    return make_model(make_processor())


def test_adapters_load_onto_their_base_by_their_own_path(adapters):
    model = AutoModelForMultimodalLM.from_pretrained(adapters)

    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_adapters_for_an_llm_of_another_width_are_refused_by_peft(wider, adapters):
    with pytest.raises(RuntimeError, match="size mismatch for .*language_model"):
        PeftModel.from_pretrained(wider, adapters)


def test_adapters_for_an_llm_of_another_width_are_refused_by_transformers(wider, adapters):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        wider.load_adapter(str(adapters))


@pytest.mark.parametrize("onto", ["peft", "transformers"])
def test_adapters_of_the_llm_are_refused_by_a_model_without_one(base, adapters, onto):
    towers = ScMMGPTModel.from_pretrained(base)

    with pytest.raises(ValueError, match="Target modules .*language_model.* not found in the base model"):
        PeftModel.from_pretrained(towers, adapters) if onto == "peft" else towers.load_adapter(str(adapters))


def test_adapters_given_to_a_verb_as_its_model_are_named_with_the_way_out(adapters):
    with pytest.raises(UserError, match="holds adapters, not a whole model.*merge: true"):
        load(adapters)
