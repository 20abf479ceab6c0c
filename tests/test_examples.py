"""Every example runs, on the embedded model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
from docs_blocks import load_models_once
from tiny_models import tiny_cells, write_tiny_model
from transformers import AutoModelForMultimodalLM

from scmmgpt import EMBEDDED_MODEL
from scmmgpt.processing.labels_scmmgpt import read_labels
from scmmgpt.processing.ontology_scmmgpt import read_ontology
from scmmgpt.training.towers import LORA_TARGETS

pytest.importorskip("scanpy", reason="the examples' cells come with scanpy: pip install 'scmmgpt[eval]'")

EXAMPLES = Path(__file__).parents[1] / "examples"
CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
NEEDS = {"agent": "mcp", "grpo": "trl", "dpo": "trl"}
ARGUMENTS = {"transformers_only.py": [str(EMBEDDED_MODEL)], "agent_session.py": ["."]}
SLOW = {path.name for path in EXAMPLES.glob("*.py") if path.name.startswith(tuple(NEEDS))}


def parameter(path: Path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.name in SLOW else [])


@pytest.mark.parametrize("example", [parameter(path) for path in sorted(EXAMPLES.glob("*.py"))])
def test_example_runs(example, tmp_path):
    for prefix, package in NEEDS.items():
        if example.name.startswith(prefix):
            pytest.importorskip(package)

    shutil.copy(CELLS, tmp_path / "cells.h5ad")
    arguments = ARGUMENTS.get(example.name, [])
    result = subprocess.run(
        [sys.executable, str(example), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )

    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # TRL's own
def test_grpo_samples_and_scores_answers_in_sight_of_their_cells(tmp_path):
    peft, trl = (pytest.importorskip(name) for name in ("peft", "trl"))
    grpo = run_path(str(EXAMPLES / "grpo_ontology_reward.py"))
    processor = grpo["PlainCellProcessor"].from_pretrained(write_tiny_model(tmp_path / "model"))
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model")
    adata = tiny_cells(4)
    adata.obs["cell_type"] = "T cell"
    rows = grpo["rows_of"](adata, "cell_type")
    seen = {True: [], False: []}
    model.model.cell_encoder.register_forward_pre_hook(
        lambda encoder, cells: seen[torch.is_grad_enabled()].append(cells[1])
    )
    trainer = grpo["CellGRPOTrainer"](
        model=model,
        processing_class=processor,
        reward_funcs=lambda completions, **row: [float(len(grpo["said"](text))) for text in completions],
        train_dataset=rows,
        peft_config=peft.LoraConfig(r=2, target_modules=LORA_TARGETS["language_model"]),
        args=trl.GRPOConfig(
            tmp_path / "run",
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=4,
            max_steps=2,
            logging_steps=1,
            activation_checkpointing=False,
            use_cpu=True,
            bf16=False,
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
        ),
    )

    trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    sampled, scored = seen[False], seen[True]
    assert len(scored) == 2
    for cells in scored:  # the cell that was asked about, in each of its answers
        assert any(torch.equal(cells, others) for others in sampled)
        assert torch.equal(cells[0], cells[1])
    assert not torch.equal(scored[0], scored[1])


NOTEBOOKS = [pytest.param(path, id=path.stem) for path in sorted(EXAMPLES.glob("*.ipynb"))]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_cells_of_a_notebook_run_in_order(notebook, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    load_models_once(monkeypatch)
    names = {}

    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]

    assert [cell["outputs"] for cell in cells if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("labels/*.txt")), ids=lambda path: path.stem)
def test_each_name_of_a_label_set_is_in_the_cell_ontology(path):
    labels = read_labels(path, read_ontology(EMBEDDED_MODEL, EMBEDDED_MODEL))

    assert labels.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs_in_a_kernel(notebook):
    """As a reader runs it: with output, magics and the last line of each cell shown."""
    nbclient = pytest.importorskip("nbclient", reason="pip install nbmake")
    import nbformat

    content = nbformat.read(notebook, as_version=4)

    nbclient.NotebookClient(content, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
