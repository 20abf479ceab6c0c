"""What is saved loads where the package is not installed, with the same numbers."""

import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import Trainer, TrainingArguments

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining, ScMMGPTModel

LOAD_WITHOUT_PACKAGE = """
    import sys
    sys.modules["scmmgpt"] = None  # a machine where the package is not installed
    import torch, transformers
    inputs = torch.load("inputs.pt")
    for repository, auto_class, call, wanted in torch.load("calls.pt"):
        auto = getattr(transformers, auto_class)
        model = auto.from_pretrained(repository, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            found = getattr(model, call)(**inputs[call])
        found = found if isinstance(found, torch.Tensor) else found.get("counts", found.get("pooler_output"))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0 if found.dtype.is_floating_point is False else 1e-6)
        model.save_pretrained("resaved")
        again = auto.from_pretrained("resaved", trust_remote_code=True).eval()
        with torch.no_grad():
            twice = getattr(again, call)(**inputs[call])
        twice = twice if isinstance(twice, torch.Tensor) else twice.get("counts", twice.get("pooler_output"))
        torch.testing.assert_close(twice, wanted)
    print("all calls agree")
"""


@pytest.fixture
def inputs(make_cells, make_texts):
    cells, texts = make_cells(), make_texts()
    prompts = torch.tensor([[6, 5, 5, 5, 5, 7]] * 3)
    chat = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts), **cells}
    return {
        "get_cell_features": cells,
        "get_text_features": texts,
        "get_match_scores": {**cells, **texts},
        "generate": {**chat, "max_new_tokens": 5, "do_sample": False},
        "generate_cells": {**texts, "num_cells": 3, "seed": 1},
    }


def outcome(model, call, inputs):
    with torch.no_grad():
        found = getattr(model, call)(**inputs[call])
    return found if isinstance(found, torch.Tensor) else found.get("counts", found.get("pooler_output"))


def test_every_checkpoint_loads_by_every_auto_class_without_the_package(tmp_path, tiny_config, inputs):
    stages = {"stage1": ScMMGPTForPreTraining(tiny_config()), "stage2": ScMMGPTForConditionalGeneration(tiny_config())}
    calls = []
    for name, model in stages.items():
        model.eval().save_pretrained(tmp_path / name)
        towers = ["get_cell_features", "get_text_features", "get_match_scores"]
        calls += [(name, "AutoModel", call, outcome(model.model, call, inputs)) for call in towers]
    calls.append(("stage1", "AutoModelForPreTraining", *with_outcome(stages["stage1"], "get_cell_features", inputs)))
    for auto_class in ("AutoModelForMultimodalLM", "AutoModelForImageTextToText"):
        calls += [
            ("stage2", auto_class, *with_outcome(stages["stage2"], call, inputs))
            for call in ("generate", "generate_cells")
        ]
    torch.save(inputs, tmp_path / "inputs.pt")
    torch.save(calls, tmp_path / "calls.pt")

    script = textwrap.dedent(LOAD_WITHOUT_PACKAGE)
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )

    assert result.returncode == 0, result.stderr
    assert "all calls agree" in result.stdout


def with_outcome(model, call, inputs):
    return call, outcome(model, call, inputs)


def test_every_checkpoint_of_a_trainer_is_complete(tmp_path, tiny_config, make_cells, make_texts):
    cells, texts = make_cells(), make_texts()
    rows = [{name: value[i] for name, value in {**cells, **texts}.items()} for i in range(3)]
    model = ScMMGPTForPreTraining(tiny_config())
    arguments = TrainingArguments(
        tmp_path, max_steps=2, save_steps=2, report_to="none", use_cpu=True, per_device_train_batch_size=3
    )

    Trainer(model, arguments, train_dataset=rows).train()

    reloaded = ScMMGPTModel.from_pretrained(tmp_path / "checkpoint-2")
    expected = model.eval().get_cell_features(**cells).pooler_output
    torch.testing.assert_close(reloaded.get_cell_features(**cells).pooler_output, expected)
    assert (tmp_path / "checkpoint-2" / "modeling_scmmgpt.py").exists()
