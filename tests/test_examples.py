"""Every example runs, on the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import load_models_once

from scmmgpt import EMBEDDED_MODEL
from scmmgpt.processing.labels_scmmgpt import read_labels
from scmmgpt.processing.ontology_scmmgpt import read_ontology

pytest.importorskip("scanpy", reason="the examples' cells come with scanpy: pip install 'scmmgpt[eval]'")

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"grpo": "trl", "dpo": "trl"}
ARGUMENTS = {"transformers_only.py": [str(EMBEDDED_MODEL)]}
SLOW = {path.name for path in EXAMPLES.glob("*.py") if path.name.startswith(tuple(NEEDS))}


def parameter(path: Path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.name in SLOW else [])


@pytest.mark.parametrize("example", [parameter(path) for path in sorted(EXAMPLES.glob("*.py"))])
def test_example_runs(example, tmp_path):
    for prefix, package in NEEDS.items():
        if example.name.startswith(prefix):
            pytest.importorskip(package)

    arguments = ARGUMENTS.get(example.name, [])
    result = subprocess.run(
        [sys.executable, str(example), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )

    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout


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
