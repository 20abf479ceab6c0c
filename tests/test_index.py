"""An index answers like a search through every cell, from vectors that stay on disk."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from tiny_models import tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt import index as index_module
from scmmgpt import storage
from scmmgpt.errors import UserError
from scmmgpt.index import Index, best_rows, build_index, rows_where, write_index

MODEL = {"name": "a model", "weights_sha256": "0" * 64}


def clustered_vectors(num: int, dimension: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, dimension))
    vectors = centres[rng.integers(0, 40, num)] + rng.normal(scale=0.4, size=(num, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    return scmmgpt.load(write_tiny_model(tmp_path / "model"), device="cpu")


@pytest.fixture
def atlas(tmp_path):
    tiny_cells().write_h5ad(tmp_path / "atlas.h5ad")
    return tmp_path / "atlas.h5ad"


def test_an_index_finds_what_a_search_through_all_cells_finds(atlas, model, tmp_path):
    index = build_index(atlas, tmp_path / "index", model=model)

    found = scmmgpt.search(tmp_path / "index", "a T cell", top=5, model=model)

    expected = scmmgpt.search(atlas, "a T cell", top=5, model=model)
    pd.testing.assert_frame_equal(found, expected, check_categorical=False, atol=1e-5)
    assert index.describe()["num_cells"] == 60
    assert isinstance(index.vectors, np.memmap)


def test_a_filter_on_obs_holds(atlas, model, tmp_path):
    build_index(atlas, tmp_path / "index", model=model)

    found = scmmgpt.search(tmp_path / "index", "a T cell", top=100, where=["leiden=0"], model=model)

    assert len(found) == 30
    assert set(found["leiden"].astype(str)) == {"0"}


def test_nothing_is_left_beside_a_finished_index(atlas, model, tmp_path):
    build_index(atlas, tmp_path / "index", model=model)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlas.h5ad", "index", "model"]
    assert "Index of 60 cells" in (tmp_path / "index" / "README.md").read_text()


def test_an_index_is_not_written_over_something_else(atlas, model, tmp_path):
    (tmp_path / "index").mkdir()

    with pytest.raises(UserError, match="already there"):
        build_index(atlas, tmp_path / "index", model=model)


def test_vectors_of_another_model_are_refused(atlas, model, tmp_path):
    build_index(atlas, tmp_path / "index", model=model)
    content = json.loads((tmp_path / "index" / "index.json").read_text())
    content["model"]["weights_sha256"] = "other"
    (tmp_path / "index" / "index.json").write_text(json.dumps(content))

    with pytest.raises(UserError, match="another model"):
        scmmgpt.search(tmp_path / "index", "a T cell", model=model)


def test_a_folder_that_is_no_index_is_refused(tmp_path):
    with pytest.raises(UserError, match="index build"):
        Index.open(tmp_path)


def test_the_approximate_index_finds_nearly_all_of_the_best(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="pip install 'scmmgpt[search]'")
    monkeypatch.setattr(index_module, "MIN_CELLS_FOR_FAISS", 1000)
    monkeypatch.setattr(index_module, "_TRAINING_VECTORS", 8000)  # so that three parts are merged on disk
    vectors = clustered_vectors(20_000)
    write_index(tmp_path / "index", vectors, pd.DataFrame(index=np.arange(20_000).astype(str)), MODEL)
    index = Index.open((tmp_path / "index").rename(tmp_path / "moved"))

    recall, errors = [], []
    for query in vectors[::997]:
        found, score = index.nearest(query, 10)
        best, best_score = index.nearest(query, 10, exact=True)
        recall.append(len(set(found) & set(best)) / 10)
        errors.append(abs(score[0] - best_score[0]))

    assert index.describe()["approximate"]
    assert np.mean(recall) > 0.95
    assert max(errors) < 1e-5
    assert [path.name for path in index.folder.glob("shard*")] == []


def test_without_the_extra_the_exact_search_serves(tmp_path, monkeypatch):
    def absent(name):
        raise UserError(name)

    monkeypatch.setattr(index_module, "MIN_CELLS_FOR_FAISS", 10)
    monkeypatch.setattr(index_module, "require", absent)
    vectors = clustered_vectors(200)

    index = write_index(tmp_path / "index", vectors, pd.DataFrame(index=np.arange(200).astype(str)), MODEL)

    assert not index.describe()["approximate"]
    assert index.nearest(vectors[7], 1)[0] == [7]


def test_the_exact_search_is_a_sort_of_all_scores():
    vectors, query = clustered_vectors(500), clustered_vectors(1)[0]

    number, score = best_rows(vectors, query, 25)

    all_scores = vectors @ query
    assert np.allclose(score, np.sort(all_scores)[::-1][:25], atol=1e-6)
    assert np.allclose(all_scores[number], score, atol=1e-6)


def test_equal_scores_come_in_the_order_of_the_cells():
    vectors = np.ones((5, 2), dtype=np.float32)

    assert list(best_rows(vectors, vectors[0], 3)[0]) == [0, 1, 2]


def test_conditions_must_all_hold():
    obs = pd.DataFrame({"tissue": ["lung", "lung", "liver"], "sex": ["f", "m", "f"]})

    assert list(rows_where(obs, ["tissue=lung", "sex=f"])) == [0]


@pytest.mark.parametrize("condition", ["tissue", "organ=lung", "tissue=brain"])
def test_a_condition_that_cannot_hold_is_refused(condition):
    with pytest.raises(UserError):
        rows_where(pd.DataFrame({"tissue": ["lung"]}), [condition])


def test_two_builds_of_one_folder_do_not_meet_in_a_temporary_one(tmp_path, monkeypatch):
    obs, vectors = pd.DataFrame(index=np.arange(200).astype(str)), clustered_vectors(200)
    copy_vectors = index_module._copy_vectors

    def beside_another_build(vectors, path):
        copy_vectors(vectors, path)
        monkeypatch.setattr(index_module, "_copy_vectors", copy_vectors)
        own_number = os.getpid()
        with monkeypatch.context() as another_process:
            another_process.setattr(os, "getpid", lambda: own_number + 1)
            another_process.setattr(storage, "_is_running", lambda process: True)
            write_index(tmp_path / "index", vectors, obs, MODEL)

    monkeypatch.setattr(index_module, "_copy_vectors", beside_another_build)

    with pytest.warns(UserWarning, match="replaced"):
        write_index(tmp_path / "index", vectors, obs, MODEL)

    np.testing.assert_array_equal(Index.open(tmp_path / "index").vectors, vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
