"""Weights that lie elsewhere, are recomputed, resized or stored in few bits: the numbers stay what they were."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model
from tiny_models import write_tiny_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    BitsAndBytesConfig,
    TorchAoConfig,
    pipeline,
)
from transformers.quantizers.quantizers_utils import should_convert_module

import scmmgpt.auto_pipelines  # noqa: F401 - registers the pipelines
from scmmgpt.errors import UserError
from scmmgpt.loading import load
from scmmgpt.modeling_scmmgpt import (
    ScMMGPTCellEncoder,
    ScMMGPTCellEncoderForMaskedValues,
    ScMMGPTForConditionalGeneration,
    ScMMGPTForPreTraining,
    ScMMGPTModel,
    ScMMGPTQFormer,
)
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.training.conversion.parts import join_language_model

CELL = [5, 5, 5, 5]
ENCODERS = {
    "scgpt": {},
    "shortcut": {"num_pooled_tokens": 2, "num_attended_genes": 5, "pooled_shortcut": True},
    "geneformer": {"model_type": "bert", "num_hidden_layers": 1, "max_position_embeddings": 64},
}


@pytest.fixture
def batch(make_cells, make_texts):
    prompts = torch.tensor([[0, 6, *CELL, 7], [6, *CELL, 8, 9], [0, 0, *CELL, 7]])
    cells, texts = make_cells(), make_texts()
    prompts_and_cells = {"input_ids": prompts, "attention_mask": (prompts != 0).long(), **cells}
    pairs = {
        "cell_prompt_ids": texts["input_ids"],
        "cell_prompt_mask": texts["attention_mask"],
        "target_gene_ids": torch.arange(2, 60),
        "target_counts": torch.randint(0, 9, (3, 58)),
    }
    return {"cells": cells, "texts": texts, "prompts": prompts_and_cells, "pairs": pairs}


def outcomes(model, batch):
    """All that a model can be asked for."""
    cells, texts, prompts = batch["cells"], batch["texts"], batch["prompts"]
    found = {
        "cells": model.get_cell_features(**cells).pooler_output,
        "texts": model.get_text_features(**texts).pooler_output,
    }
    torch.manual_seed(0)
    if isinstance(model, ScMMGPTForPreTraining):
        found["loss"] = model(**cells, **texts).loss
        return found
    found["match"] = model.get_match_scores(**cells, **texts)
    if isinstance(model, ScMMGPTModel):
        found |= {"scale": model.similarity_scale(), "similarity": model(**cells, **texts).logits_per_cell}
        return found
    found["loss"] = model(**prompts, labels=prompts["input_ids"], **batch["pairs"]).loss
    found["words"] = model.generate(**prompts, max_new_tokens=3, do_sample=False)
    found["counts"] = model.generate_cells(**texts, num_cells=2, guidance_scale=1.5).counts
    return found


# ---- offloaded


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("kind", [ScMMGPTModel, ScMMGPTForPreTraining, ScMMGPTForConditionalGeneration])
def test_offloaded_weights_give_the_same_numbers(tiny_config, batch, tmp_path, kind, encoder, place):
    model = kind(tiny_config(cell=encoder)).eval()
    with torch.no_grad():
        expected = outcomes(model, batch)

        offloaded = cpu_offload(model) if place == "cpu" else disk_offload(model, tmp_path)

        assert {weight.device.type for weight in offloaded.parameters()} == {"meta"}
        for name, value in outcomes(offloaded, batch).items():
            torch.testing.assert_close(value, expected[name], msg=lambda reason, name=name: f"{name}: {reason}")


def test_a_device_map_may_leave_every_tower_on_disk(tiny_config, batch, tmp_path):
    model = ScMMGPTForConditionalGeneration(tiny_config()).eval()
    model.save_pretrained(tmp_path / "model")
    on_disk = ("cell_encoder", "qformer", "language_model")
    places = {f"model.{name}": "disk" if name in on_disk else "cpu" for name, _ in model.model.named_children()}
    places |= {"model.logit_scale": "cpu", "lm_head": "cpu", "cell_decoder": "disk"}

    with pytest.warns(UserWarning, match="do not match any submodules"):
        placed = ScMMGPTForConditionalGeneration.from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
        )

    with torch.no_grad():
        expected = outcomes(model, batch)
        for name, value in outcomes(placed, batch).items():
            torch.testing.assert_close(value, expected[name], msg=lambda reason, name=name: f"{name}: {reason}")


# ---- recomputed

LORA_ON_ALL_TOWERS = r".*(cell_encoder|qformer|language_model).*\.(q_proj|v_proj)"


def gradients(model, inputs, checkpointing=None):
    """{name: gradient} of a training step."""
    model.train()
    if checkpointing is not None:
        model.activation_checkpointing_enable(checkpointing)
        model.enable_input_require_grads()
    torch.manual_seed(1)
    model(**inputs).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("trained", ["all", "lora"])
@pytest.mark.parametrize("kind", [ScMMGPTForPreTraining, ScMMGPTForConditionalGeneration])
@pytest.mark.parametrize("encoder", [ENCODERS["scgpt"], ENCODERS["shortcut"]], ids=["scgpt", "shortcut"])
def test_reentrant_checkpointing_keeps_every_gradient(tiny_config, batch, encoder, kind, trained):
    def build():
        torch.manual_seed(0)
        no_dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
        model = kind(tiny_config(cell={**no_dropout, **encoder}, qformer=no_dropout))
        if trained == "all":
            return model
        return get_peft_model(model, LoraConfig(r=2, target_modules=LORA_ON_ALL_TOWERS, init_lora_weights=False))

    prompts = batch["prompts"]
    stage_1 = {**batch["cells"], **batch["texts"]}
    inputs = stage_1 if kind is ScMMGPTForPreTraining else {**prompts, "labels": prompts["input_ids"]}
    expected = gradients(build(), inputs)

    found = gradients(build(), inputs, {"use_reentrant": True})

    assert trained == "all" or len(expected) == (28 if kind is ScMMGPTForConditionalGeneration else 20)
    assert [name for name in expected if name not in found] == []
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


# ---- stored in few bits


class Int8Linear(torch.nn.Module):
    """A linear layer as quantisers leave it: its weight's type is that of the storage, not of the numbers."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(1) / 127
        weight = (linear.weight.detach() / self.scale[:, None]).round().to(torch.int8)
        self.weight, self.bias = torch.nn.Parameter(weight, requires_grad=False), linear.bias
        self.in_features = linear.in_features

    def forward(self, states):
        return torch.nn.functional.linear(states, self.weight.to(states.dtype) * self.scale[:, None], self.bias)


def quantized(module):
    for name, child in module.named_children():
        setattr(module, name, Int8Linear(child) if type(child) is torch.nn.Linear else quantized(child))
    return module


@pytest.mark.parametrize("encoder", [ENCODERS["scgpt"], ENCODERS["shortcut"]], ids=["scgpt", "shortcut"])
@pytest.mark.parametrize("kind", [ScMMGPTModel, ScMMGPTForPreTraining, ScMMGPTForConditionalGeneration])
def test_values_keep_their_numbers_whatever_type_weights_are_stored_in(tiny_config, batch, kind, encoder):
    model = kind(tiny_config(cell=encoder)).eval()
    value = torch.tensor([[4.86, 1.0]])
    embeddings = getattr(model, "model", model).cell_encoder.embeddings
    expected, embeds = embeddings.embed_values(value), model.get_cell_features(**batch["cells"]).pooler_output

    quantized(model)

    assert any(weight.dtype == torch.int8 for weight in model.parameters())
    torch.testing.assert_close(embeddings.embed_values(value), expected, atol=0.05, rtol=0)
    with torch.no_grad():
        assert (outcomes(model, batch)["cells"] * embeds).sum(-1).min() > 0.98


def bitsandbytes_config(**options):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return BitsAndBytesConfig(**options)


def torchao_config():
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    return TorchAoConfig(torchao.Int8WeightOnlyConfig())


# torchao's own import announces what torch will drop.
IN_TORCHAO = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
QUANTIZERS = {
    "nf4": lambda: bitsandbytes_config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    "int8 of bitsandbytes": lambda: bitsandbytes_config(load_in_8bit=True),
    "int8 of torchao": torchao_config,
}


@IN_TORCHAO
@pytest.mark.parametrize("quantization", QUANTIZERS.values(), ids=QUANTIZERS)
def test_a_quantised_model_reads_the_same_values(tiny_config, batch, tmp_path, quantization):
    options = {"quantization_config": quantization(), "dtype": torch.float32}
    model = ScMMGPTForConditionalGeneration(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    values = torch.tensor([[4.86, 1.0, 300.0]])
    expected = model.model.cell_encoder.embeddings.value_in(values)

    loaded = ScMMGPTForConditionalGeneration.from_pretrained(tmp_path, **options)

    torch.testing.assert_close(loaded.model.cell_encoder.embeddings.value_in(values), expected)
    with torch.no_grad():
        assert all(torch.isfinite(value).all() for value in outcomes(loaded, batch).values())


@IN_TORCHAO
@pytest.mark.parametrize("quantization", QUANTIZERS.values(), ids=QUANTIZERS)
def test_where_the_llm_alone_is_quantised_the_towers_stay_as_they_are(tiny_config, batch, tmp_path, quantization):
    options = {"quantization_config": quantization(), "dtype": torch.float32}
    config, inputs = tiny_config(), batch["prompts"]
    AutoModelForCausalLM.from_config(config.text_config).save_pretrained(tmp_path / "llm")
    model = join_language_model(config, tmp_path / "llm", **options)
    cells, logits = model.get_cell_features(**batch["cells"]).pooler_output, model(**inputs).logits
    model.save_pretrained(tmp_path / "joint")

    towers = AutoModel.from_pretrained(tmp_path / "joint")
    whole = AutoModelForMultimodalLM.from_pretrained(tmp_path / "joint")

    torch.testing.assert_close(towers.get_cell_features(**batch["cells"]).pooler_output, cells)
    torch.testing.assert_close(whole.get_cell_features(**batch["cells"]).pooler_output, cells)
    torch.testing.assert_close(whole(**inputs).logits, logits)


def test_an_llm_that_is_quantised_leaves_a_config_that_quantises_nothing_else(tiny_config):
    config, llm = tiny_config(), tiny_config().text_config
    llm.quantization_config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])

    config.take_llm(llm)

    assert not hasattr(config.text_config, "quantization_config")
    skipped = config.quantization_config.llm_int8_skip_modules
    model = ScMMGPTForConditionalGeneration(tiny_config())
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    converted = [name for name in linears if should_convert_module(name, skipped)]
    assert converted == [name for name in linears if name.startswith("model.language_model.")]
    towers = [name for name, _ in ScMMGPTModel(tiny_config()).named_modules() if name]
    assert not any(should_convert_module(name, skipped) for name in towers)


# ---- resized


@pytest.mark.parametrize("size", [45, 30], ids=["larger", "smaller"])
@pytest.mark.parametrize("kind", [ScMMGPTModel, ScMMGPTForPreTraining, ScMMGPTForConditionalGeneration])
def test_a_model_with_another_number_of_words_and_genes_is_saved_and_loaded(
    tiny_config, make_cells, make_texts, tmp_path, kind, size
):
    model = kind(tiny_config(decoder={"num_gene_loadings": 2})).eval()
    cells, texts = make_cells(), {name: value.clamp(max=29) for name, value in make_texts().items()}
    embeds = model.get_cell_features(**cells).pooler_output, model.get_text_features(**texts).pooler_output
    words_of = "text_config" if kind is ScMMGPTForConditionalGeneration else "qformer_config"

    words = model.resize_token_embeddings(size, mean_resizing=False)
    genes = model.resize_gene_embeddings(75, mean_resizing=False)
    model.save_pretrained(tmp_path)
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(info.values())
    assert (words.num_embeddings, genes.num_embeddings) == (size, 75)
    assert (getattr(loaded.config, words_of).vocab_size, loaded.config.cell_config.vocab_size) == (size, 75)
    torch.testing.assert_close(loaded.get_cell_features(**cells).pooler_output, embeds[0])
    torch.testing.assert_close(loaded.get_text_features(**texts).pooler_output, embeds[1])
    if kind is ScMMGPTForConditionalGeneration:
        counts = loaded.generate_cells(**texts, num_cells=1).counts
        assert counts.shape == (3, 73)  # all but <pad> and <cls>
        torch.testing.assert_close(counts, model.generate_cells(**texts, num_cells=1).counts)
    if kind is ScMMGPTForPreTraining:
        assert torch.isfinite(loaded(**cells, **texts).loss)


@pytest.mark.parametrize("llm", ["llama", "qwen3", "opt"])  # the second ties its head to its words
def test_an_llm_with_more_words_is_saved_and_loaded(tiny_config, batch, tmp_path, llm):
    model = ScMMGPTForConditionalGeneration(tiny_config(llm)).eval()
    model.resize_token_embeddings(45)
    model.save_pretrained(tmp_path)

    loaded = ScMMGPTForConditionalGeneration.from_pretrained(tmp_path)

    assert loaded.lm_head.out_features == 45
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == loaded.config.tie_word_embeddings
    torch.testing.assert_close(loaded(**batch["prompts"]).logits, model(**batch["prompts"]).logits)


@pytest.mark.parametrize("kind", [ScMMGPTCellEncoder, ScMMGPTCellEncoderForMaskedValues, ScMMGPTQFormer])
def test_a_tower_with_a_larger_vocabulary_is_saved_and_loaded(tiny_config, tmp_path, kind):
    config = tiny_config().qformer_config if kind is ScMMGPTQFormer else tiny_config().cell_config
    model = kind(config)
    model.resize_token_embeddings(75)
    model.save_pretrained(tmp_path)

    loaded = kind.from_pretrained(tmp_path)

    assert loaded.config.vocab_size == 75
    torch.testing.assert_close(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_words_that_the_qformer_does_not_know_are_refused_with_the_remedy(tiny_config):
    with pytest.raises(ValueError, match=r"go up to 41.*40 words.*resize_token_embeddings"):
        ScMMGPTModel(tiny_config()).get_text_features(torch.tensor([[1, 41]]))


@pytest.mark.parametrize("generative", [False, True], ids=["towers", "with an LLM"])
def test_a_tokenizer_that_has_outgrown_its_model_is_refused_when_both_are_loaded(tmp_path, generative):
    write_tiny_model(tmp_path)
    processor = ScMMGPTProcessor.from_pretrained(tmp_path)
    processor.tokenizer.add_tokens(["one more", "and one"])
    processor.save_pretrained(tmp_path)

    with pytest.raises(
        UserError, match=r"knows \d+ words, but the model has vectors for \d+.*resize_token_embeddings"
    ):
        load(tmp_path, device="cpu", generative=generative)
    task = "cell-to-text" if generative else "cell-annotation"
    with pytest.raises(ValueError, match="the model has vectors for"):
        pipeline(task, model=str(tmp_path), trust_remote_code=True)
