"""The Ray engine: the same result as one process, whatever dies on the way. Those that start a cluster are slow."""

import importlib.util
import json
import os
import signal
import time
from importlib import import_module
from pathlib import Path

import anndata
import numpy as np
import pytest
from tiny_models import tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt import api, embedding, errors, ray_engine
from scmmgpt.errors import UserError

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='wants ray: pip install "scmmgpt[ray]"')
LABELS = ["T cell", "B cell", "monocyte", "natural killer cell"]
LOCAL = {"engine": "ray", "workers": 1, "progress": False}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def file(tmp_path):
    tiny_cells().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def ranges_of_sixteen(monkeypatch):
    monkeypatch.setattr(ray_engine, "CELLS_PER_RANGE", 16)


def vectors(path: Path) -> np.ndarray:
    return anndata.read_h5ad(path).obsm["X_scmmgpt"]


# ---- without a cluster


@pytest.mark.parametrize(
    ("given", "options", "reason"),
    [
        pytest.param("path", {"engine": "spark"}, "'local' or 'ray'", id="unknown-engine"),
        pytest.param("path", {"workers": 2}, "engine='ray'", id="workers-without-ray"),
        pytest.param("path", {"address": "auto"}, "engine='ray'", id="address-without-ray"),
        pytest.param("path", {"engine": "ray", "workers": 0}, "at least 1", id="no-workers"),
        pytest.param("cells", {"engine": "ray"}, "needs the path of a file", id="cells-in-memory"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_before_the_model_is_loaded(file, given, options, reason):
    with pytest.raises(UserError, match=reason):
        scmmgpt.embed(file if given == "path" else tiny_cells(), model="no/such-model", **options)


def test_without_ray_the_extra_is_named(file, monkeypatch):
    def absent(name):
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return import_module(name)

    monkeypatch.setattr(errors, "import_module", absent)
    monkeypatch.setitem(os.environ, "RAY_AUTH_MODE", "disabled")

    with pytest.raises(UserError, match=r'pip install "scmmgpt\[ray\]"'):
        scmmgpt.embed(file, model="no/such-model", engine="ray")


def test_a_worker_gives_the_rows_of_its_range(file, directory):
    job = ray_engine.CellJob(file, directory, "cpu", 8, embedding.embed_batch)
    worker = ray_engine.CellWorker(job)

    start, stop, arrays, account = worker._outcome(20, 50)

    expected = scmmgpt.embed(file, model=directory).obsm["X_scmmgpt"][20:50]
    assert (start, stop, account["num_cells"]) == (20, 50, 30)
    assert np.allclose(arrays["embeds"], expected, atol=1e-5)


def test_cells_that_are_refused_come_back_as_a_reason(tmp_path, directory):
    cells = tiny_cells()
    cells.X = cells.X.astype(np.float32)
    cells.X.data[-1] = np.nan
    cells.write_h5ad(tmp_path / "bad.h5ad")
    job = ray_engine.CellJob(tmp_path / "bad.h5ad", directory, "cpu", 8, embedding.embed_batch)

    assert "NaN" in ray_engine.CellWorker(job)._outcome(32, cells.n_obs)


# ---- with one


@needs_ray
@pytest.mark.slow
def test_ray_gives_the_same_as_one_process(file, directory, tmp_path, ranges_of_sixteen):
    settings = {"model": directory, "min_confidence": 0, "rerank": 2}

    found = scmmgpt.annotate(file, LABELS, output=tmp_path / "ray.h5ad", **settings, **LOCAL)

    expected = scmmgpt.annotate(file, LABELS, output=tmp_path / "one.h5ad", **settings)
    assert (found.obs["scmmgpt_cell_type"].astype(str) == expected.obs["scmmgpt_cell_type"].astype(str)).all()
    assert np.allclose(found.obs["scmmgpt_confidence"], expected.obs["scmmgpt_confidence"], atol=1e-5)
    assert str(found.uns["scmmgpt"]["genes"]) == str(expected.uns["scmmgpt"]["genes"])
    assert not (Path.home() / ".ray" / "auth_token").exists() or "RAY_AUTH_TOKEN" in os.environ


@needs_ray
@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_and_duplicates_nothing(
    file, directory, tmp_path, ranges_of_sixteen, monkeypatch
):
    marker, make = str(tmp_path / "was-killed"), embedding.embed_batch

    def killed_once(loaded):
        compute, batches = make(loaded), []

        def at_work(inputs):
            batches.append(1)
            if len(batches) == 2 and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return compute(inputs)

        return at_work

    monkeypatch.setattr(api, "embed_batch", killed_once)
    found = scmmgpt.embed(file, model=directory, output=tmp_path / "ray.h5ad", **LOCAL)
    monkeypatch.undo()

    expected = scmmgpt.embed(file, model=directory, output=tmp_path / "one.h5ad")
    assert os.path.exists(marker)
    assert found.uns["scmmgpt"]["genes"]["num_cells"] == expected.n_obs
    assert np.allclose(vectors(tmp_path / "ray.h5ad"), vectors(tmp_path / "one.h5ad"), atol=1e-5)


@needs_ray
@pytest.mark.slow
def test_a_range_that_kills_every_worker_ends_with_a_reason_and_can_be_taken_up_again(
    file, directory, tmp_path, ranges_of_sixteen, monkeypatch
):
    make, state = embedding.embed_batch, str(tmp_path / ".ray.h5ad.unfinished" / "state.json")

    def always_killed(loaded):
        compute, batches = make(loaded), []

        def at_work(inputs):
            batches.append(1)
            if len(batches) == 2:
                for _ in range(600):  # until the range before is written down
                    time.sleep(0 if os.path.exists(state) else 0.1)
                os.kill(os.getpid(), signal.SIGKILL)
            return compute(inputs)

        return at_work

    monkeypatch.setattr(api, "embed_batch", always_killed)
    monkeypatch.setattr(ray_engine, "MAX_RETRIES", 0)
    with pytest.raises(UserError, match="A worker died"):
        scmmgpt.embed(file, model=directory, output=tmp_path / "ray.h5ad", **LOCAL)
    monkeypatch.undo()
    done = json.loads(Path(state).read_text())["done"]

    scmmgpt.embed(file, model=directory, output=tmp_path / "ray.h5ad")

    scmmgpt.embed(file, model=directory, output=tmp_path / "one.h5ad")
    assert done == {"embed": 16}
    assert np.allclose(vectors(tmp_path / "ray.h5ad"), vectors(tmp_path / "one.h5ad"), atol=1e-5)
