"""The cells of a study as one: each is averaged with its neighbours, and all are divided into communities.

Nothing here depends on the order of the cells or on how many are read at a time, and no more than a block of cells is
in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import eigh

from .cells import CellsInFile, CellsInMemory
from .processing.calling_scmmgpt import CellEvidence
from .processing.cell_matrix_scmmgpt import parts
from .smoothing import graph_weights, nearest_neighbours

# Fewer say too little about one another.
MIN_CELLS = 100
# Chosen on development studies, see training/LOG.md.
NUM_NEIGHBOURS = 8
_CELLS_PER_COMMUNITY, _MIN_CELLS_OF_COMMUNITY = 10, 6
_MIN_COMMUNITIES, _MAX_COMMUNITIES = 4, 60
# Neighbours are looked for among so many cells that are alike, which keeps the search linear in the cells.
CELLS_PER_BLOCK = 4096
_ROUNDS = 8

# Makes an array to fill, in memory or on disk, from a name, a shape and a dtype.
MakeArray = Callable[[str, tuple[int, ...], type], np.ndarray]


def over_neighbours(
    cells: CellEvidence,
    source: CellsInMemory | CellsInFile,
    make_array: MakeArray = lambda name, shape, dtype: np.empty(shape, dtype),
    num_neighbours: int = NUM_NEIGHBOURS,
) -> tuple[CellEvidence, np.ndarray]:
    """The evidence of each cell averaged with that of its neighbours, and the number of each cell's community.

    Neighbours are those of `obsp["connectivities"]` where the data bring it, else the most similar embeddings.
    """
    found = {name: getattr(cells, name) for name in ("embeds", "agreement") if getattr(cells, name) is not None}
    smoothed = {name: make_array(name, values.shape, np.float32) for name, values in found.items()}
    for rows, weights, columns in _neighbourhoods(found["embeds"], source, num_neighbours):
        for name, values in found.items():
            smoothed[name][rows] = weights @ np.asarray(values[columns], dtype=np.float32)
    number = int(np.clip(len(cells) // _CELLS_PER_COMMUNITY, _MIN_COMMUNITIES, _MAX_COMMUNITIES))
    communities = np.empty(len(cells), dtype=np.int64)
    for community, rows in enumerate(divided(smoothed["embeds"], number)):
        communities[rows] = community
    return replace(cells, **smoothed), communities


def _neighbourhoods(embeds: np.ndarray, source: CellsInMemory | CellsInFile, num_neighbours: int) -> Iterator[tuple]:
    """(rows, their weights, the cells that these weigh), until every cell was among the rows."""
    if source.has_graph:
        for part in parts(len(embeds), size=CELLS_PER_BLOCK):
            rows = np.arange(part.start, part.stop)
            weights = graph_weights(source.graph(part), rows, own=1 / (num_neighbours + 1))
            columns = np.unique(weights.indices)
            yield rows, weights[:, columns], columns
        return
    for block in divided(embeds, 1, CELLS_PER_BLOCK):
        for part in parts(len(block), size=CELLS_PER_BLOCK):  # more than one where cells cannot be told apart
            rows = block[part]
            yield rows, nearest_neighbours(np.asarray(embeds[rows], dtype=np.float32), num_neighbours), rows


@dataclass
class _Group:
    """Cells that lie together: rows of the embeddings."""

    embeds: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def _parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        for part in parts(len(self.rows)):
            yield part, np.asarray(self.embeds[self.rows[part]], dtype=np.float64)

    @cached_property
    def mean(self) -> np.ndarray:
        return sum(values.sum(axis=0) for _, values in self._parts()) / len(self)

    @cached_property
    def scatter(self) -> np.ndarray:
        """(D, D): products of the coordinates' differences from the mean, summed over the cells."""
        centred = ((values - self.mean) for _, values in self._parts())
        return sum(values.T @ values for values in centred)

    @cached_property
    def spread(self) -> float:
        return float(np.trace(self.scatter))

    def halves(self) -> tuple[_Group, _Group] | None:
        """Two groups by two-means, begun along the main axis; None where that would split off too few cells."""
        last = len(self.scatter) - 1
        axis = eigh(self.scatter, subset_by_index=[last, last])[1][:, 0]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        threshold = axis @ self.mean
        side = np.empty(len(self), dtype=bool)
        for _ in range(_ROUNDS):
            before, sums = side.copy(), np.zeros_like(self.mean)
            for part, values in self._parts():
                side[part] = values @ axis > threshold
                sums += values[side[part]].sum(axis=0)
            number = int(side.sum())
            if min(number, len(self) - number) < _MIN_CELLS_OF_COMMUNITY:
                return None
            if (side == before).all():
                break
            first, second = sums / number, (self.mean * len(self) - sums) / (len(self) - number)
            axis, threshold = first - second, (first @ first - second @ second) / 2
        return _Group(self.embeds, self.rows[side]), _Group(self.embeds, self.rows[~side])


def divided(embeds: np.ndarray, number: int, most_cells: int | None = None) -> list[np.ndarray]:
    """Rows of like cells, in `number` groups (fewer where cells cannot be told apart), none larger than `most_cells`.

    The group that is spread most is halved first.
    """
    groups, whole = [_Group(embeds, np.arange(len(embeds)))], list[_Group]()
    while groups:
        too_large = [group for group in groups if most_cells is not None and len(group) > most_cells]
        if not too_large and len(groups) + len(whole) >= number:
            break
        chosen = max(too_large or groups, key=lambda group: group.spread)
        groups = [group for group in groups if group is not chosen]
        halves = chosen.halves() if chosen.spread > 1e-9 * len(chosen) else None
        if halves is None:
            whole.append(chosen)
        else:
            groups.extend(halves)
    return [group.rows for group in whole + groups]
