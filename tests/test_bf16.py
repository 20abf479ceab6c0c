"""bf16 is for processors with units for it, and there only where a probe on the first cells speaks for it."""

from itertools import chain, count
from pathlib import Path

import anndata
import numpy as np
import pytest

import scmmgpt
from scmmgpt import bf16


@pytest.fixture(scope="module")
def loaded():
    return scmmgpt.load(device="cpu")


@pytest.fixture(scope="module")
def cells():
    return anndata.read_h5ad(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad")[:60].copy()


@pytest.fixture
def with_units(monkeypatch):
    """A processor that says it has units; here they are emulated: right numbers, slowly. No run has too few cells."""
    monkeypatch.setattr(bf16, "has_units", lambda: True)
    monkeypatch.setattr(bf16, "FEWEST_CELLS", 0)


@pytest.fixture
def in_half_the_time(monkeypatch):
    """A clock by which float32 takes two seconds and bf16 one."""
    monkeypatch.setattr(bf16, "_SECONDS_TO_COMPARE", 200)
    ticks = chain([0, 2, 2, 3], count(4))
    monkeypatch.setattr(bf16.time, "perf_counter", lambda: next(ticks))


def embed(cells, loaded):
    embedded = scmmgpt.embed(cells, model=loaded, progress=False)
    return embedded.obsm["X_scmmgpt"], embedded.uns["scmmgpt"]["embed"].get("bf16")


def test_without_units_nothing_is_tried_or_said(cells, loaded, monkeypatch):
    monkeypatch.setattr(bf16, "has_units", lambda: False)
    monkeypatch.setattr(bf16, "_Probed", lambda *_: pytest.fail("a probe was made"))

    assert embed(cells, loaded)[1] is None


def test_a_probe_that_finds_it_slower_keeps_float32_to_the_bit(cells, loaded, with_units, monkeypatch):
    ticks = chain([0, 1, 1, 3], count(4))
    with monkeypatch.context() as slow:
        slow.setattr(bf16.time, "perf_counter", lambda: next(ticks))
        found, said = embed(cells, loaded)

    monkeypatch.setattr(bf16, "has_units", lambda: False)
    np.testing.assert_array_equal(found, embed(cells, loaded)[0])
    assert said == {"used": False, "speedup": 0.5}


def test_where_it_is_faster_and_as_good_it_is_used_and_said(cells, loaded, with_units, in_half_the_time, monkeypatch):
    found, said = embed(cells, loaded)

    monkeypatch.setattr(bf16, "has_units", lambda: False)
    expected, _ = embed(cells, loaded)
    cosine = (found * expected).sum(axis=1)
    assert said["used"]
    assert said["speedup"] == 2
    assert 0.999 < said["lowest_cosine"] < 1
    assert (found != expected).any()
    assert cosine.min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_names_are_decided_in_float32_on_every_processor(cells, loaded, with_units, monkeypatch):
    monkeypatch.setattr(bf16, "_Probed", lambda *_: pytest.fail("a probe was made"))

    annotated = scmmgpt.annotate(cells, ["B cell", "T cell", "monocyte"], model=loaded, progress=False)

    assert "bf16" not in annotated.uns["scmmgpt"]["annotate"]


def test_what_is_not_as_good_is_not_used(cells, loaded, with_units, in_half_the_time, monkeypatch):
    monkeypatch.setattr(bf16, "LEAST_COSINE", 1.0)

    _, said = embed(cells, loaded)

    assert not said["used"]


def test_a_run_that_is_taken_up_again_goes_on_as_it_began():
    calls = []
    probed = bf16._Probed(lambda inputs, tokens: calls.append(bf16_is_on()) or {}, {"bf16": {"used": True}})

    probed({}, {})

    assert calls == [True]


def bf16_is_on() -> bool:
    import torch

    return torch.is_autocast_enabled("cpu")


def test_a_slow_model_is_compared_on_few_cells(monkeypatch):
    ticks, seen = iter([0, 0.9, 0.9, 1.5]), []
    monkeypatch.setattr(bf16.time, "perf_counter", lambda: next(ticks))

    def compute(inputs, tokens):
        seen.append(len(tokens["rows"]))
        return {"embeds": np.ones((len(tokens["rows"]), 1), np.float32)}

    bf16._Probed(compute, {})._probe({}, {"rows": np.arange(10_000)})

    assert seen == [bf16._CELLS_TO_TIME] * 6


def test_few_cells_have_the_same_vectors_on_every_processor(cells, loaded, with_units, monkeypatch):
    monkeypatch.setattr(bf16, "FEWEST_CELLS", 61)
    monkeypatch.setattr(bf16, "_Probed", lambda *_: pytest.fail("a probe was made"))

    assert embed(cells, loaded)[1] is None
