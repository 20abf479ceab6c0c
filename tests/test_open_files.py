"""A file of cells is open once while it is read, and closed when the verb ends or fails."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_models import tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt import embedding, index
from scmmgpt.doctor import examine
from scmmgpt.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This model is untrained")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = write_tiny_model(tmp_path_factory.mktemp("model"))
    return scmmgpt.load(directory), scmmgpt.load(directory, generative=True)


@pytest.fixture
def file(tmp_path):
    tiny_cells().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def num_open(file: Path) -> int:
    """How many handles h5py holds on a file."""
    handles = h5py.h5f.get_obj_ids(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)
    return [Path(h5py.h5f.get_name(handle).decode()) for handle in handles].count(file)


VERBS = {
    "embed": lambda file, model, _: scmmgpt.embed(file, model=model),
    "embed to a file": lambda file, model, _: scmmgpt.embed(file, model=model, output=file.with_name("out.h5ad")),
    "annotate": lambda file, model, _: scmmgpt.annotate(
        file, ["T cell", "B cell"], model=model, report=file.with_name("report.html")
    ),
    "search": lambda file, model, _: scmmgpt.search(file, "a T cell", model=model),
    "describe": lambda file, _, writer: scmmgpt.describe(
        file, cluster_key="leiden", max_new_tokens=2, model=writer, key_added="new"
    ),
    "chat": lambda file, _, writer: scmmgpt.chat(file, cluster_key="leiden", model=writer),
    "index": lambda file, model, _: index.build_index(file, file.with_name("index"), model=model),
    "doctor": lambda file, model, _: examine(file, model=model.directory),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_a_verb_leaves_no_file_open(verb, file, models):
    kept = verb(file, *models)

    assert kept is not None
    assert num_open(file) == 0


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_a_refusal_leaves_no_file_open(verb, file, models):
    cells = tiny_cells()
    cells.X = cells.X.astype(np.float32)
    cells.X.data[:] = np.nan
    cells.write_h5ad(file)

    with pytest.raises(UserError) as refused:
        verb(file, *models)

    assert "NaN" in str(refused.value)
    assert num_open(file) == 0


def test_a_run_that_breaks_off_leaves_no_file_open(file, models, monkeypatch):
    def broken(*_):
        raise RuntimeError("the model fails")

    monkeypatch.setattr(embedding, "run_chunk", broken)

    with pytest.raises(RuntimeError, match="the model fails"):
        scmmgpt.embed(file, model=models[0])

    assert num_open(file) == 0


def test_a_file_is_open_once_while_it_is_read(file, models, monkeypatch):
    run_chunk, seen = embedding.run_chunk, []
    monkeypatch.setattr(embedding, "run_chunk", lambda *given: seen.append(num_open(file)) or run_chunk(*given))
    monkeypatch.setattr(embedding, "CELLS_PER_CHUNK", 16)

    scmmgpt.embed(file, model=models[0])

    assert max(seen) == 1
