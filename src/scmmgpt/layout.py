"""A map of cells in two dimensions on which neighbours stay near: UMAP by McInnes et al. 2018, a round at a time.

umap-learn draws the same kind of map, but compiles itself for six seconds in every process. Here a round moves all cells
at once, in numpy, and the page in the browser draws as we do (`hub_cards/space_static/src/layout.ts`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .smoothing import nearest_neighbours

NUM_NEIGHBOURS, ROUNDS, REPELLED, SEED = 15, 200, 5, 0
FIRST_WIDTH, MOST_FORCE, STEP = 10.0, 4.0, 2.0
# The curve of UMAP for a least distance of 0.3: 1 / (1 + A d^2B).
A, B = 0.992, 1.112


def lay_out(embeds: np.ndarray) -> np.ndarray:
    """Two coordinates for each cell, (N, 2), from its embedding; the same cells always lie the same way."""
    embeds = np.asarray(embeds, np.float32)
    embeds = embeds / np.maximum(np.linalg.norm(embeds, axis=1, keepdims=True), 1e-12)
    random = np.random.default_rng(SEED)
    places = _on_main_axes(embeds) + random.normal(scale=0.01, size=(len(embeds), 2))
    ties = _Ties.of(embeds)
    for number in range(ROUNDS if len(ties.weight) else 0):
        places = places + (1 - number / ROUNDS) * ties.forces(places, random)
    return places.astype(np.float32)


@dataclass
class _Ties:
    """Which cells attract which, and how often: every tie stands here from both of its ends."""

    cell: np.ndarray
    other: np.ndarray
    weight: np.ndarray
    num_cells: int

    def __post_init__(self):
        # All cells move at once, so those with many ties would overshoot: each takes the mean of its forces.
        self.total = np.maximum(np.bincount(self.cell, self.weight, self.num_cells), 1)[:, None]

    @classmethod
    def of(cls, embeds: np.ndarray) -> _Ties:
        """UMAP's fuzzy union of what each cell says of its neighbours."""
        num_cells, number = len(embeds), min(NUM_NEIGHBOURS, len(embeds) - 1)
        graph = nearest_neighbours(embeds, number).tocoo()
        apart = graph.row != graph.col
        cell, other = graph.row[apart], graph.col[apart]
        # Copies of a cell may take its own place among the neighbours, so rows differ in length.
        distance = np.maximum(1 - np.einsum("nd,nd->n", embeds[cell], embeds[other]), 0)
        said = sparse.csr_array((_nearness(cell, distance, num_cells, number), (cell, other)), shape=graph.shape)
        both = (said + said.T - said * said.T).tocoo()
        kept = both.data * ROUNDS >= 1
        return cls(both.row[kept], both.col[kept], both.data[kept].astype(np.float32), num_cells)

    def forces(self, places: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A tie is felt in a share of the rounds that is its weight; each time, five cells at random push away."""
        felt = random.random(len(self.weight), dtype=np.float32) < self.weight
        cell, other = self.cell[felt], self.other[felt]
        gap, square = _gaps(places, cell, other)
        pull = -2 * A * B * np.maximum(square, 1e-6) ** (B - 1) / (1 + A * square**B)
        pulled = 2 * self._sums(
            cell, np.clip(pull * gap, -MOST_FORCE, MOST_FORCE)
        )  # by what ties it, and by what it ties
        cell = np.repeat(cell, REPELLED)
        gap, square = _gaps(places, cell, random.integers(self.num_cells, size=len(cell)))
        push = 2 * B / ((0.001 + square) * (1 + A * square**B))
        pushed = self._sums(cell, np.clip(push * gap, -MOST_FORCE, MOST_FORCE))
        return STEP * (pulled + pushed) / self.total

    def _sums(self, cell: np.ndarray, forces: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(cell, axis, self.num_cells) for axis in forces.T], axis=1)


def _gaps(places: np.ndarray, cell: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gap = places[cell] - places[other]
    return gap, np.einsum("nd,nd->n", gap, gap)[:, None]


def _nearness(cell: np.ndarray, distance: np.ndarray, num_cells: int, number: int) -> np.ndarray:
    """1 for a cell's nearest neighbour, less for the others, so that those of each cell add up to log2(number)."""
    nearest = np.full(num_cells, np.inf, np.float32)
    np.minimum.at(nearest, cell, distance)
    beyond = distance - nearest[cell]
    low, high = np.zeros(num_cells), np.full(num_cells, max(float(beyond.max(initial=0)), 1e-6) * 100)
    for _ in range(40):
        width = (low + high) / 2
        too_wide = np.bincount(cell, np.exp(-beyond / width[cell]), num_cells) > np.log2(max(number, 2))
        low, high = np.where(too_wide, low, width), np.where(too_wide, width, high)
    return np.exp(-beyond / ((low + high) / 2)[cell])


def _on_main_axes(embeds: np.ndarray) -> np.ndarray:
    """Where cells begin: on the two axes along which they differ most."""
    centred = embeds - embeds.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    places = centred @ axes[:, ::-1][:, :2]
    return FIRST_WIDTH * np.pad(places, ((0, 0), (0, 2 - places.shape[1]))) / max(float(np.abs(places).max()), 1e-6)
