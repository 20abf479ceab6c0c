"""Killed at any moment, nothing is lost: a result is whole or absent, the input untouched, and a rerun ends the same."""

import json
import shutil
import signal
import time
from multiprocessing import get_context

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_corpus import files_of, gene_tokenizer, write_cells
from tiny_models import tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt import embedding
from scmmgpt.index import Index, build_index
from scmmgpt.loading import load

pytestmark = pytest.mark.slow
LABELS = ["T cell", "B cell", "monocyte"]
KILLS = {"annotate": 18, "index": 14, "corpus": 12, "stage 1": 6, "chat model": 10}  # sixty in all


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CELLS_PER_CHUNK", 16)
    tiny_cells(200).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def kill_at_random(work, times, check, seed=0):
    """Kill `work` in a process of its own at so many random moments of its life, and `check` after each."""
    start = time.monotonic()
    _run(work).join()
    whole = time.monotonic() - start
    check()
    generator, num_kills = np.random.default_rng(seed), 0
    while num_kills < times:
        process = _run(work)
        process.join(generator.uniform(0, whole))
        process.kill()
        process.join()
        num_kills += process.exitcode == -signal.SIGKILL
        check()


def _run(work):
    process = get_context("fork").Process(target=work)
    process.start()
    return process


def test_annotate(file, model, tmp_path):
    def annotate(output):
        scmmgpt.annotate(file, LABELS, model=model, output=output, progress=False)

    before, killed = file.read_bytes(), tmp_path / "killed.h5ad"
    annotate(tmp_path / "whole.h5ad")
    expected = anndata.read_h5ad(tmp_path / "whole.h5ad")

    def whole_or_absent():
        assert file.read_bytes() == before
        if killed.exists():
            pd.testing.assert_frame_equal(anndata.read_h5ad(killed).obs, expected.obs)
            killed.unlink()

    kill_at_random(lambda: annotate(killed), KILLS["annotate"], whole_or_absent)
    annotate(killed)

    whole_or_absent()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "whole.h5ad"]


def test_index(file, model, tmp_path):
    before, killed = file.read_bytes(), tmp_path / "killed"
    expected = np.array(build_index(file, tmp_path / "whole", model=model, progress=False).vectors)

    def whole_or_absent():
        assert file.read_bytes() == before
        if killed.exists():
            np.testing.assert_array_equal(Index.open(killed).vectors, expected)
            killed.rename(tmp_path / f"finished{time.monotonic_ns()}")

    kill_at_random(lambda: build_index(file, killed, model=model, progress=False), KILLS["index"], whole_or_absent)
    build_index(file, killed, model=model, progress=False)

    np.testing.assert_array_equal(Index.open(killed).vectors, expected)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_chat_model(tmp_path, monkeypatch):
    from tiny_chat import write_llm, write_repository

    from scmmgpt import chat_model

    llm = write_llm(tmp_path / "llm")
    repository, cache = write_repository(tmp_path / "chat", llm), tmp_path / "cache"
    before = files_of(repository) | files_of(llm)
    monkeypatch.setattr(chat_model, "cache_folder", lambda: cache)

    def assemble():
        torch.set_num_threads(1)
        chat_model.assembled(repository, base=llm)

    def whole_or_absent():
        assert files_of(repository) | files_of(llm) == before
        for place in (cache / "models").glob("[!.]*"):
            load(place, device="cpu", generative=True)
            shutil.rmtree(place)

    kill_at_random(assemble, KILLS["chat model"], whole_or_absent)
    assemble()

    assert [chat_model.is_whole(place) for place in (cache / "models").iterdir()] == [True]


def test_corpus(tmp_path):
    from scmmgpt.training.corpus.build import build_corpus
    from scmmgpt.training.corpus.reading import MANIFEST, Corpus
    from scmmgpt.training.corpus.recipe import CorpusRecipe

    cells, killed = write_cells(tmp_path / "cells", one=1, two=2), tmp_path / "killed"
    before = files_of(cells)

    def build(output):
        recipe = CorpusRecipe(shard_rows=8, chunk_rows=4)
        build_corpus([str(cells)], output, recipe=recipe, processor=gene_tokenizer(), say=lambda line: None)

    build(tmp_path / "whole")

    def whole_or_begun():
        assert files_of(cells) == before
        if (killed / MANIFEST).exists():
            assert len(Corpus.open(killed)) == 180
            killed.rename(tmp_path / f"finished{time.monotonic_ns()}")

    kill_at_random(lambda: build(killed), KILLS["corpus"], whole_or_begun)
    build(killed)

    assert files_of(killed) == files_of(tmp_path / "whole")


def test_stage_1(tmp_path):
    pytest.importorskip("datasets", reason="pip install 'scmmgpt[train]'")
    from tiny_run import build_tiny_corpus, write_recipe

    from scmmgpt.training.checkpoints import last_checkpoint

    corpus = build_tiny_corpus(tmp_path)
    before = files_of(corpus.path)
    training = {"save_steps": 2, "eval_strategy": "no"}
    recipes = {name: write_recipe(tmp_path, corpus, name, training=training) for name in ("whole", "killed")}

    def train(name):
        from scmmgpt.training.stage1 import main

        main(["--config", str(recipes[name])])

    def a_whole_checkpoint_or_none():
        assert files_of(corpus.path) == before
        if checkpoint := last_checkpoint(tmp_path / "killed"):
            scmmgpt.load(checkpoint, device="cpu")
            if checkpoint.name == "checkpoint-6":  # it had come to its end
                (tmp_path / "killed").rename(tmp_path / f"finished{time.monotonic_ns()}")

    _run(lambda: train("whole")).join()
    kill_at_random(lambda: train("killed"), KILLS["stage 1"], a_whole_checkpoint_or_none)
    _run(lambda: train("killed")).join()

    whole, killed = (losses(last_checkpoint(tmp_path / name)) for name in recipes)
    assert killed == pytest.approx(whole, rel=1e-4)


def losses(checkpoint):
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
