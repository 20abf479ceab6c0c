"""Where cells lie: coordinates, who is next to whom, and evidence averaged over neighbours in space."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .cells import CellsInFile, CellsInMemory, column_of, open_cells
from .errors import UserError
from .processing.calling_scmmgpt import CellEvidence
from .spatialdata_tables import table_of
from .storage import open_store

if TYPE_CHECKING:
    from anndata import AnnData

    from .verb import Verb

COORDINATES = "spatial"
GRAPH = "spatial_connectivities"  # squidpy's name, in obsp
LIBRARY = "library_id"  # squidpy's name, in obs
NUM_NEIGHBOURS = 15
# Columns that often tell sections apart; where nobody names one, their presence is said.
_SECTION_COLUMNS = ("section", "slice", "slide", "fov", "sample", "batch", "donor_id")
# On a grid the nearest neighbours are all equally far: the standard deviation is a small part of the mean.
_SPREAD_ON_A_GRID = 0.1
# A neighbour whose embedding is as different as this counts 1/e of one that is equal; chosen on STARmap and MERFISH
# cells, where neighbours of every kind add up to 3 points less, see docs/howto/space.md.
_SIMILARITY_SCALE = 0.1
_BESIDE = "beside|next to|adjacent to|surrounded by|near|in contact with"
# Neighbours must be this much more alike than any two cells, else space says nothing about them.
LEAST_LIKENESS = 0.02


@dataclass
class Space:
    """Where N cells lie.

    Attributes
    ----------
    coordinates
        (N, 2 or 3); NaN where a cell has no place.
    graph
        (N, N) weights of each cell's neighbours, which sum to one; empty rows where a cell has no place.
    libraries
        The section of each cell, by number.
    is_spots
        Whether they lie on a regular grid, as spots do, which are mixtures of cells.
    notes
        What a person should know, in words.
    """

    coordinates: np.ndarray
    graph: sparse.csr_array
    libraries: np.ndarray
    is_spots: bool
    notes: list[str] = field(default_factory=list)

    @property
    def is_placed(self) -> np.ndarray:
        """Which cells have coordinates."""
        return np.isfinite(self.coordinates).all(axis=1)

    def neighbours(self, cell: int, number: int) -> np.ndarray:
        """The nearest neighbours of one cell in its section, the nearest first."""
        same = np.flatnonzero((self.libraries == self.libraries[cell]) & self.is_placed)
        away = np.linalg.norm(self.coordinates[same] - self.coordinates[cell], axis=1)
        order = same[np.argsort(away, kind="stable")]
        return order[order != cell][:number]


def read_space(
    cells: CellsInMemory | CellsInFile, library_key: str | None = None, num_neighbours: int = NUM_NEIGHBOURS
) -> Space:
    """The space of some cells; their own graph of neighbours where squidpy wrote one, else nearest neighbours."""
    coordinates = _coordinates(cells)
    notes: list[str] = []
    libraries = _libraries(cells, library_key, coordinates, notes)
    missing = int((~np.isfinite(coordinates).all(axis=1)).sum())
    if missing == len(coordinates):
        raise UserError(f"obsm[{COORDINATES!r}] holds no coordinates: all are missing.")
    if missing:
        notes.append(
            f"{missing} of {len(coordinates)} cells have no coordinates: they have no neighbours and no niche."
        )
    graph = _own_graph(cells)
    if graph is None or library_key is not None:
        graph = nearest_in_space(coordinates, libraries, num_neighbours)
    is_spots = on_a_grid(coordinates, libraries)
    if is_spots:
        notes.append(
            "The places lie on a regular grid, as spots or bins do (Visium): each is a mixture of cells, and what is "
            "said about it is about the mixture."
        )
    return Space(coordinates, _normalised(graph), libraries, is_spots, notes)


def _coordinates(cells: CellsInMemory | CellsInFile) -> np.ndarray:
    if COORDINATES not in cells.present["obsm"]:
        raise UserError(
            f"There are no coordinates: obsm[{COORDINATES!r}] is missing. It takes one row (x, y) for each cell; there "
            f"are {', '.join(sorted(cells.present['obsm'])) or 'no matrices in obsm'}."
        )
    return np.asarray(cells.embedding(COORDINATES), dtype=np.float64)


def _libraries(
    cells: CellsInMemory | CellsInFile, key: str | None, coordinates: np.ndarray, notes: list[str]
) -> np.ndarray:
    if key is None and LIBRARY in cells.obs:
        key = LIBRARY
    if key is not None:
        return np.unique(column_of(cells.obs, key).to_numpy(), return_inverse=True)[1]
    for column in _SECTION_COLUMNS:
        if column in cells.obs and _overlap(coordinates, cells.obs[column].astype(str).to_numpy()):
            notes.append(
                f"obs[{column!r}] holds several values whose places overlap: if they are sections, name it in "
                "library_key=, or cells of different sections are taken for neighbours."
            )
            break
    return np.zeros(cells.num_cells, dtype=np.int64)


def _overlap(coordinates: np.ndarray, names: np.ndarray) -> bool:
    """Whether the boxes around two groups of places overlap by more than a tenth of the smaller."""
    boxes = []
    for name in np.unique(names):
        own = coordinates[names == name]
        own = own[np.isfinite(own).all(axis=1)]
        if len(own) > 1:
            boxes.append((own.min(axis=0), own.max(axis=0)))
    for place, (low, high) in enumerate(boxes[:20]):
        for other_low, other_high in boxes[place + 1 : 20]:
            shared = np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None)
            smaller = min(np.prod(high - low), np.prod(other_high - other_low))
            if np.prod(shared) > 0.1 * smaller > 0:
                return True
    return False


def _own_graph(cells: CellsInMemory | CellsInFile) -> sparse.csr_array | None:
    if isinstance(cells, CellsInMemory):
        return sparse.csr_array(cells.adata.obsp[GRAPH]) if GRAPH in cells.adata.obsp else None
    from anndata.io import read_elem

    with open_store(cells.path) as store:
        if isinstance(store, dict) or "obsp" not in store or GRAPH not in store["obsp"]:
            return None
        return sparse.csr_array(read_elem(store["obsp"][GRAPH]))


def places_of(cells: CellsInMemory | CellsInFile) -> dict[str, dict[str, Any]]:
    """Coordinates and the graph that came with them, as `obsm` and `obsp` of AnnData; empty without coordinates."""
    if COORDINATES not in cells.present["obsm"]:
        return {}
    graph = _own_graph(cells)
    places: dict[str, dict[str, Any]] = {"obsm": {COORDINATES: _coordinates(cells)}}
    return places if graph is None else places | {"obsp": {GRAPH: sparse.csr_matrix(graph)}}


def nearest_in_space(coordinates: np.ndarray, libraries: np.ndarray, number: int) -> sparse.csr_array:
    """The graph that joins each cell to its nearest neighbours within its section."""
    from scipy.spatial import cKDTree

    rows, columns = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    is_placed = np.isfinite(coordinates).all(axis=1)
    for library in np.unique(libraries):
        own = np.flatnonzero((libraries == library) & is_placed)
        few = min(number, len(own) - 1)
        if few < 1:
            continue
        found = cKDTree(coordinates[own]).query(coordinates[own], few + 1)[1]
        is_other = found != np.arange(len(own))[:, None]  # cells at one place may come before the cell itself
        is_other[is_other.all(axis=1), -1] = False
        rows.append(np.repeat(own, few))
        columns.append(own[found[is_other]])
    row, column = np.concatenate(rows), np.concatenate(columns)
    shape = (len(coordinates), len(coordinates))
    return sparse.csr_array((np.ones(len(row)), (row, column)), shape=shape)


def on_a_grid(coordinates: np.ndarray, libraries: np.ndarray) -> bool:
    """Whether nearest neighbours are all equally far."""
    from scipy.spatial import cKDTree

    first = coordinates[libraries == libraries[0]]
    first = first[np.isfinite(first).all(axis=1)]
    if len(first) < 20:
        return False
    nearest = cKDTree(first).query(first, 2)[0][:, 1]
    middle = nearest[nearest <= np.quantile(nearest, 0.95)]  # spots at a hole in the tissue have none beside them
    return bool(middle.mean() > 0 and middle.std() < _SPREAD_ON_A_GRID * middle.mean())


def _normalised(graph: sparse.csr_array) -> sparse.csr_array:
    graph = sparse.csr_array(graph, dtype=np.float64)
    graph.setdiag(0)
    graph.eliminate_zeros()
    total = np.asarray(graph.sum(axis=1)).ravel()
    return sparse.csr_array(sparse.diags_array(1 / np.where(total > 0, total, 1)) @ graph)


# ---- evidence


def likeness(embeds: np.ndarray, graph: sparse.csr_array) -> float:
    """How much more alike neighbours are than any two cells: the difference of the mean cosines."""
    edges = graph.tocoo()
    if not edges.nnz:
        return 0.0
    beside = np.einsum("ij,ij->i", embeds[edges.row], embeds[edges.col])
    mean = np.asarray(embeds, dtype=np.float64).mean(axis=0)
    return float(np.average(beside, weights=edges.data) - mean @ mean)


def over_space(cells: CellEvidence, space: Space) -> tuple[CellEvidence, float]:
    """The evidence of each cell averaged with that of its neighbours in space, those alike first; and their likeness.

    It is left as it was where neighbours are hardly more alike than any two cells.
    """
    embeds = np.asarray(cells.embeds)
    found = likeness(embeds, space.graph)
    if found < LEAST_LIKENESS:
        return cells, found
    edges = space.graph.tocoo()
    alike = np.exp((np.einsum("ij,ij->i", embeds[edges.row], embeds[edges.col]) - 1) / _SIMILARITY_SCALE)
    weights = sparse.csr_array((alike, (edges.row, edges.col)), shape=edges.shape) + sparse.eye_array(len(embeds))
    weights = sparse.csr_array(sparse.diags_array(1 / np.asarray(weights.sum(axis=1)).ravel()) @ weights)
    names = [name for name in ("embeds", "agreement") if getattr(cells, name) is not None]
    smoothed = {name: (weights @ np.asarray(getattr(cells, name))).astype(np.float32) for name in names}
    return replace(cells, **smoothed), found


def spatial_reader(verb: Verb, library_key: str | None) -> Space:
    """The space of a verb's cells; what a person should know about it is said."""
    space = read_space(verb.cells, library_key)
    for note in space.notes:
        verb.warn(note)
    return space


def said_over_space(verb: Verb, cells: CellEvidence, space: Space | None, together: bool) -> CellEvidence:
    """`over_space` where that was measured to help; else the cells as they are, with a warning."""
    if space is None:
        return cells
    why = "the study decides together, where neighbours in space were not measured to help; consensus=False judges cells alone"
    if not together:
        cells, found = over_space(cells, space)
        if found >= LEAST_LIKENESS:
            return cells
        why = (
            f"neighbours in space are hardly more alike than any two cells ({found:.3f}, of at least {LEAST_LIKENESS})"
        )
    verb.warn(f"spatial=True changes nothing: {why}.")
    return cells


def split_query(text: str) -> tuple[str, str | None]:
    """What to look for, and beside what, where a text names both.

    Examples
    --------
    >>> split_query("T cells beside tumour cells")
    ('T cells', 'tumour cells')
    >>> split_query("naive B cells")
    ('naive B cells', None)
    """
    found = re.fullmatch(rf"\s*(.+?)\s+(?:{_BESIDE})\s+(.+?)\s*", text, flags=re.IGNORECASE | re.DOTALL)
    return (found[1], found[2]) if found else (text, None)


def scores_with_neighbours(embeds: np.ndarray, query: np.ndarray, beside: np.ndarray, space: Space) -> np.ndarray:
    """How well cells fit one text and their neighbours another: the smaller of the two, in standard deviations.

    Of the neighbours the best third counts, since the cells one asks for need not be all around. Cells without a place
    come last.
    """
    own, wanted = embeds @ query, embeds @ beside
    around = np.full(len(embeds), -np.inf)
    for cell in np.flatnonzero(space.is_placed):
        neighbours = space.graph.indices[space.graph.indptr[cell] : space.graph.indptr[cell + 1]]
        if len(neighbours):
            around[cell] = np.sort(wanted[neighbours])[::-1][: max(1, len(neighbours) // 3)].mean()
    is_known = np.isfinite(around)
    scores = np.full(len(embeds), -np.inf)
    scores[is_known] = np.minimum(_standardised(own[is_known]), _standardised(around[is_known]))
    return scores


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(float(values.std()), 1e-9)


def surroundings(
    adata: AnnData | str | os.PathLike, cell: str, number: int = 7, *, library_key: str | None = None
) -> list[str]:
    """The name of a cell and those of its nearest neighbours in space: what `chat(select=...)` takes.

    Parameters
    ----------
    adata
        AnnData, or the path of a file of cells, with coordinates.
    cell
        The name of a cell.
    number
        How many neighbours.
    library_key
        The column of `.obs` with sections.
    """
    cells = open_cells(table_of(adata))
    names: Sequence[str] = cells.obs.index.astype(str)
    found = np.flatnonzero(np.asarray(names) == cell)
    if not len(found):
        raise UserError(f"There is no cell {cell!r}; there are for example {', '.join(names[:3])}.")
    space = read_space(cells, library_key)
    if not space.is_placed[found[0]]:
        raise UserError(f"The cell {cell!r} has no coordinates: nothing can be said about its neighbours.")
    return [cell, *(str(names[place]) for place in space.neighbours(int(found[0]), number))]
