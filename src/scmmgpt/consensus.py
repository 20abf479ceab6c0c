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
from .mapped_arrays import scattered_rows, set_scattered_rows
from .processing.calling_scmmgpt import CellEvidence
from .processing.cell_matrix_scmmgpt import parts
from .smoothing import graph_weights, nearest_neighbours

# Fewer say too little about one another.
MIN_CELLS = 100
# Chosen on development studies, see training/LOG.md.
NUM_NEIGHBOURS = 8
_NUM_DIRECTIONS, _WEIGHT_OF_PROFILES = 30, 2.0
_CELLS_PER_COMMUNITY, _MIN_CELLS_OF_COMMUNITY = 10, 6
_MIN_COMMUNITIES, _MAX_COMMUNITIES = 4, 60
# Neighbours are looked for among so many cells that are alike, which keeps the search linear in the cells.
CELLS_PER_BLOCK = 4096
# So many are read from their file once and divided in memory: 75 MB.
_CELLS_HELD = 16 * CELLS_PER_BLOCK
_ROUNDS = 8

# Makes an array to fill, in memory or on disk, from a name, a shape and a dtype.
MakeArray = Callable[[str, tuple[int, ...], type], np.ndarray]


def over_neighbours(
    cells: CellEvidence,
    source: CellsInMemory | CellsInFile,
    make_array: MakeArray = lambda name, shape, dtype: np.empty(shape, dtype),
    num_neighbours: int = NUM_NEIGHBOURS,
    profile_norms: np.ndarray | None = None,
) -> tuple[CellEvidence, np.ndarray]:
    """The evidence of each cell averaged with that of its neighbours, and the number of each cell's community.

    Neighbours are those of `obsp["connectivities"]` where the data bring it, else the cells of most similar evidence.
    """
    found = {name: getattr(cells, name) for name in ("embeds", "agreement") if getattr(cells, name) is not None}
    found["places"] = places_of(cells, make_array, profile_norms)
    smoothed = {name: make_array(name, values.shape, np.float32) for name, values in found.items()}
    for rows, weights, columns in _neighbourhoods(found["places"], source, num_neighbours):
        for name, values in found.items():
            of_neighbours = np.asarray(scattered_rows(values, columns), dtype=np.float32)
            set_scattered_rows(smoothed[name], rows, weights @ of_neighbours)
    number = int(np.clip(len(cells) // _CELLS_PER_COMMUNITY, _MIN_COMMUNITIES, _MAX_COMMUNITIES))
    communities = np.empty(len(cells), dtype=np.int64)
    for community, rows in enumerate(divided(smoothed.pop("places"), number)):
        communities[rows] = community
    return replace(cells, **smoothed), communities


def places_of(cells: CellEvidence, make_array: MakeArray, profile_norms: np.ndarray | None) -> np.ndarray:
    """Unit vectors (N, D) that lie near one another for cells of one type: what embeddings and type profiles say.

    The main directions of the agreement with the profiles tell types apart that the embeddings hold for one.
    """
    embeds, agreement = cells.embeds, cells.agreement
    if agreement is None or profile_norms is None:
        return embeds
    mean, scatter = _mean_and_scatter(agreement, 1 / profile_norms)
    number = len(scatter)
    axes = eigh(scatter, subset_by_index=[max(number - _NUM_DIRECTIONS, 0), number - 1])[1]
    spread = np.sqrt(np.trace(axes.T @ scatter @ axes) / len(cells))
    axes /= profile_norms[:, None]
    centre, embeds_scatter = _mean_and_scatter(embeds)
    embeds_spread = np.sqrt(np.trace(embeds_scatter) / len(cells))
    places = make_array("own_places", (len(cells), embeds.shape[1] + axes.shape[1]), np.float32)
    for part in parts(len(cells)):
        of_embeds = (np.asarray(embeds[part], np.float64) - centre) / max(embeds_spread, 1e-9)
        of_types = (np.asarray(agreement[part], np.float64) - mean) @ axes / max(spread, 1e-9)
        both = np.hstack([of_embeds, _WEIGHT_OF_PROFILES * of_types])
        places[part] = both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-9)
    return places


def _mean_and_scatter(values: np.ndarray, scale: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(D,) the mean of rows (N, D), and (D, D) the products of their scaled differences from it, summed."""
    blocks = list(parts(len(values)))
    mean = sum(np.asarray(values[part], np.float64).sum(axis=0) for part in blocks) / len(values)
    centred = ((np.asarray(values[part], np.float64) - mean) * scale for part in blocks)
    return mean, sum(block.T @ block for block in centred)


def _neighbourhoods(embeds: np.ndarray, source: CellsInMemory | CellsInFile, num_neighbours: int) -> Iterator[tuple]:
    """(rows, their weights, the cells that these weigh), until every cell was among the rows."""
    if source.has_graph:
        for part in parts(len(embeds), size=CELLS_PER_BLOCK):
            rows = np.arange(part.start, part.stop)
            weights = graph_weights(source.graph(part), rows, own=1 / (num_neighbours + 1))
            columns = np.unique(weights.indices)
            yield rows, weights[:, columns], columns
        return
    for rows in _in_parts(divided(embeds, 1, _CELLS_HELD), _CELLS_HELD):
        places = np.asarray(scattered_rows(embeds, rows), dtype=np.float32)
        for block in _in_parts(divided(places, 1, CELLS_PER_BLOCK), CELLS_PER_BLOCK):
            yield rows[block], nearest_neighbours(places[block], num_neighbours), rows[block]
        del places  # before the next ones are read


def _in_parts(groups: list[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Each group of rows; several parts of one whose cells cannot be told apart."""
    for rows in groups:
        for part in parts(len(rows), size=size):
            yield rows[part]


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
        """(D, D): products of the coordinates' differences from the mean, summed over the cells.

        It only says which group to halve and where to begin; for that float32 is enough, in a seventh of the time.
        """
        centred = ((values - self.mean).astype(np.float32) for _, values in self._parts())
        return sum((values.T @ values).astype(np.float64) for values in centred)

    @cached_property
    def spread(self) -> float:
        return float(np.trace(self.scatter))

    def main_axis(self) -> np.ndarray:
        """The unit vector along which the cells differ most."""
        if len(self) < len(self.scatter):  # fewer cells than coordinates: what lies between cells is smaller
            (_, values), *_ = self._parts()
            between = (values - self.mean) @ (values - self.mean).T
            axis = _last_vector(between) @ (values - self.mean)
            axis /= np.linalg.norm(axis)
        else:
            axis = _last_vector(self.scatter)
        return axis * np.sign(axis[np.abs(axis).argmax()])

    def halves(self) -> tuple[_Group, _Group] | None:
        """Two groups by two-means, begun along the main axis; None where that would split off too few cells."""
        axis = self.main_axis()
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


def _last_vector(matrix: np.ndarray) -> np.ndarray:
    """The eigenvector of the largest eigenvalue."""
    last = len(matrix) - 1
    return eigh(matrix, subset_by_index=[last, last])[1][:, 0]


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
