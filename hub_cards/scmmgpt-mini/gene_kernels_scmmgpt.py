"""The hot loop of tokenising: order each cell's genes, bin or scale them, lay them out.

numpy for small studies, numba where present for what comes after. Both ways give the same arrays bit for bit. Sorting
is always descending by a key, and exact ties go to the gene with the smaller vocabulary id, so that neither the order of
the columns nor the container can change a token.
"""

from collections.abc import Callable

import numpy as np

# numba takes longer to come than so many entries take to be sorted without it.
ENTRIES_WITHOUT_NUMBA = 1 << 20
# A gene's place in its cell must fit into half an item of the compiled sorting.
MOST_GENES = 1 << 16

_entries_seen = 0


def count_expressed(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, id_of_column: np.ndarray) -> np.ndarray:
    """Number of expressed vocabulary genes in each cell."""
    if compiled := _compiled(int(indptr[-1] - indptr[0])):
        return compiled[0](indptr, indices, data, id_of_column)
    entries = slice(indptr[0], indptr[-1])
    kept = (id_of_column[indices[entries]] >= 0) & (data[entries] != 0)
    running = np.concatenate([[0], np.cumsum(kept)])
    return running[indptr[1:] - indptr[0]] - running[indptr[:-1] - indptr[0]]


def order_genes(  # noqa: PLR0913 - a kernel takes plain arrays
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    id_of_column: np.ndarray,
    medians: np.ndarray,
    quantiles: np.ndarray,
    target: float,
    starts: np.ndarray,
    lengths: np.ndarray,
    genes: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """Write each cell's first genes into `genes` and `values`, and return each cell's total.

    The cells come as csr: values float32, none negative, none repeated within a cell. `id_of_column` is the vocabulary
    id of every column, int32, -1 outside the vocabulary. The sorting key is the value times the inverse of its id's
    number in `medians`, or the value itself where that has length 0. Values are binned between `quantiles`, or where
    these have length 0 scaled to the sum `target`, unless that is 0. Each cell begins at `starts` and has `lengths`
    genes in the flat `genes` and `values`, arrays of int64 and float32.
    """
    arguments = indptr, indices, data, id_of_column, medians, quantiles, target, starts, lengths, genes, values
    compiled = _compiled() if id_of_column.max(initial=0) < MOST_GENES else None
    return (compiled[1] if compiled else order_genes_with_numpy)(*arguments)


def write_rows(
    ids: np.ndarray,
    values: np.ndarray,
    begins: np.ndarray,
    lengths: np.ndarray,
    row_ids: np.ndarray,
    row_values: np.ndarray,
    row_mask: np.ndarray,
) -> None:
    """Copy cells that lie in flat arrays to rows of their own, and mark in `row_mask` where their tokens are."""
    ends = begins + lengths
    if min(begins.min(initial=0), lengths.min(initial=0)) < 0 or ends.max(initial=0) > min(len(ids), len(values)):
        raise IndexError(f"The cells end at token {ends.max(initial=0)}, of {len(ids)} ids and {len(values)} values.")
    compiled = _compiled()
    arguments = ids, values, begins, lengths, row_ids, row_values, row_mask
    (compiled[2] if compiled else write_rows_with_numpy)(*arguments)


def _compiled(more_entries: int = 0) -> tuple[Callable, Callable, Callable] | None:
    """The three functions above in numba, once so many entries were seen that it pays; None without numba."""
    global _entries_seen
    _entries_seen += more_entries
    if _entries_seen <= ENTRIES_WITHOUT_NUMBA:
        return None
    from .compiled_kernels_scmmgpt import COMPILED

    return COMPILED


def order_genes_with_numpy(  # noqa: PLR0913
    indptr, indices, data, id_of_column, medians, quantiles, target, starts, lengths, genes, values
):
    """The same without numba: one big sort over all cells."""
    num_cells = len(indptr) - 1
    entries = slice(indptr[0], indptr[-1])
    cell = np.repeat(np.arange(num_cells), np.diff(indptr))
    token, raw = id_of_column[indices[entries]], data[entries]
    kept = (token >= 0) & (raw != 0)
    cell, token, raw = cell[kept], token[kept], raw[kept]
    by_gene = np.lexsort((token, cell))
    cell, token, raw = cell[by_gene], token[by_gene], raw[by_gene]
    totals = np.bincount(cell, weights=raw.astype(np.float64), minlength=num_cells)
    if len(quantiles):
        shown = bins_with_numpy(cell, raw, quantiles)
    elif target:
        scale = np.divide(target, totals, out=np.zeros(num_cells), where=totals > 0).astype(np.float32)
        shown = raw * scale[cell]
    else:
        shown = raw
    key = raw * (1 / medians)[token] if len(medians) else raw.astype(np.float64)
    order = np.lexsort((token, -key, cell))
    first = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=num_cells))])[:-1]
    place = np.arange(len(cell)) - first[cell]  # `order` keeps cells together, so places are those of sorted genes
    wanted = place < lengths[cell]
    target_place = starts[cell[wanted]] + place[wanted]
    genes[target_place], values[target_place] = token[order][wanted], shown[order][wanted]
    return totals


def bins_with_numpy(cell: np.ndarray, raw: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """scGPT's quantile bins of each cell's values; equal values share the bin in the middle of those they span."""
    bins = np.empty(len(raw), dtype=np.float32)
    bounds = np.flatnonzero(np.diff(cell, prepend=-1, append=cell[-1] + 1 if len(cell) else 0))
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        _, inverse, counts = np.unique(raw[start:stop], return_inverse=True, return_counts=True)
        last = np.cumsum(counts) - 1
        position = (stop - start - 1) * quantiles
        left = np.searchsorted(np.ceil(position), last, side="right")
        right = np.searchsorted(np.floor(position), last - counts + 1, side="left")
        bins[start:stop] = ((left + right + 1) // 2)[inverse]
    return bins


def write_rows_with_numpy(ids, values, begins, lengths, row_ids, row_values, row_mask):
    """The same without numba."""
    for row, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True)):
        row_ids[row, :length] = ids[begin : begin + length]
        row_values[row, :length] = values[begin : begin + length]
        row_mask[row, :length] = 1
