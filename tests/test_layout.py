"""The map that the report draws: neighbours stay near, types stay apart, the same cells lie the same way."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from scmmgpt.layout import lay_out

NUM_TYPES, CELLS_OF_TYPE = 6, 80


@pytest.fixture(scope="module")
def embeds() -> np.ndarray:
    """Six types, which differ along more axes than a map has."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(NUM_TYPES, 16))
    cells = centres.repeat(CELLS_OF_TYPE, axis=0) + random.normal(scale=0.3, size=(NUM_TYPES * CELLS_OF_TYPE, 16))
    return cells.astype(np.float32)


def test_neighbours_stay_near(embeds):
    axes = np.linalg.svd(embeds - embeds.mean(0), full_matrices=False)[2][:2]
    of_map, of_axes = (
        trustworthiness(embeds, places, n_neighbors=15, metric="cosine")
        for places in (lay_out(embeds), embeds @ axes.T)
    )

    assert of_map > 0.95
    assert of_map > of_axes + 0.02


def test_every_cell_lies_among_its_type(embeds):
    places = lay_out(embeds)
    types = np.arange(NUM_TYPES).repeat(CELLS_OF_TYPE)
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(gaps, np.inf)

    assert (types[gaps.argmin(1)] == types).mean() > 0.99


def test_the_same_cells_lie_the_same_way(embeds):
    assert np.array_equal(lay_out(embeds), lay_out(embeds.copy()))


@pytest.mark.parametrize("num_cells", [1, 2, 3, 40])
@pytest.mark.parametrize("width", [1, 8])
def test_any_number_of_cells_can_be_laid_out(num_cells, width):
    places = lay_out(np.random.default_rng(0).normal(size=(num_cells, width)).astype(np.float32))

    assert places.shape == (num_cells, 2)
    assert np.isfinite(places).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_copies_of_one_cell_lie_somewhere(value):
    assert np.isfinite(lay_out(np.full((100, 8), value, dtype=np.float32))).all()
