"""Weights that lie elsewhere, or are recomputed or stored in few bits: the numbers stay what they were."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining, ScMMGPTModel

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
