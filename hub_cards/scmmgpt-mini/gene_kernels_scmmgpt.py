"""The hot loop of tokenising: order each cell's genes, bin them, lay them out. numba where present, else numpy.

Both ways give the same arrays bit for bit. Sorting is always descending by a key, and exact ties go to the gene with
the smaller vocabulary id, so that neither the order of the columns nor the container can change a token.
"""

import numpy as np

try:
    from numba import njit

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False

    def njit(*arguments, **options):
        """Leave the function as plain Python; the numpy way is taken instead."""
        return arguments[0] if arguments else lambda function: function


# A sorting item carries a key in its upper half and the index of the gene it belongs to in its lower half.
SHIFT, SLOT = np.uint64(32), np.uint64(0xFFFFFFFF)
BYTE, DIGIT = np.uint64(8), np.uint64(0xFF)


def count_expressed(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, row_of_column: np.ndarray
) -> np.ndarray:
    """Number of expressed vocabulary genes in each cell."""
    if HAS_NUMBA:
        return _count_expressed(indptr, indices, data, row_of_column)
    entries = slice(indptr[0], indptr[-1])
    kept = (row_of_column[indices[entries]] >= 0) & (data[entries] != 0)
    running = np.concatenate([[0], np.cumsum(kept)])
    return running[indptr[1:] - indptr[0]] - running[indptr[:-1] - indptr[0]]


def order_genes(  # noqa: PLR0913 - a kernel takes plain arrays
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    row_of_column: np.ndarray,
    medians: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    quantiles: np.ndarray,
    genes: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """Write each cell's first genes into `genes` and `values`, and return each cell's total.

    Parameters
    ----------
    indptr, indices, data
        The cells as csr; values float32, none repeated within a cell.
    row_of_column
        Vocabulary row of every column, -1 for columns outside the vocabulary.
    medians
        For each vocabulary row the number by which its value is divided to give the sorting key; of length 0 to sort
        by the values themselves.
    starts, lengths
        Where in `genes` and `values` each cell begins, and how many genes of it are wanted.
    quantiles
        The quantiles between which values are binned; of length 0 to write raw values.
    genes, values
        Flat arrays of int64 and float32 that are written to.
    """
    arguments = indptr, indices, data, row_of_column, medians, starts, lengths, quantiles, genes, values
    return (_order_genes if HAS_NUMBA else order_genes_with_numpy)(*arguments)


def order_genes_with_numpy(  # noqa: PLR0913
    indptr, indices, data, row_of_column, medians, starts, lengths, quantiles, genes, values
):
    """The same without numba: one big sort over all cells."""
    num_cells = len(indptr) - 1
    entries = slice(indptr[0], indptr[-1])
    cell = np.repeat(np.arange(num_cells), np.diff(indptr))
    row, raw = row_of_column[indices[entries]], data[entries]
    kept = (row >= 0) & (raw != 0)
    cell, row, raw = cell[kept], row[kept], raw[kept]
    by_gene = np.lexsort((row, cell))
    cell, row, raw = cell[by_gene], row[by_gene], raw[by_gene]
    totals = np.bincount(cell, weights=raw.astype(np.float64), minlength=num_cells)
    shown = bins_with_numpy(cell, raw, quantiles) if len(quantiles) else raw
    key = raw / medians[row] if len(medians) else raw.astype(np.float64)
    order = np.lexsort((row, -key, cell))
    first = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=num_cells))])[:-1]
    place = np.arange(len(cell)) - first[cell]  # `order` keeps cells together, so places are those of sorted genes
    wanted = place < lengths[cell]
    target = starts[cell[wanted]] + place[wanted]
    genes[target], values[target] = row[order][wanted], shown[order][wanted]
    return totals


def bins_with_numpy(cell: np.ndarray, raw: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """scGPT's quantile bins of each cell's values; equal values share the bin in the middle of those they span."""
    bins = np.empty(len(raw), dtype=np.float32)
    bounds = np.flatnonzero(np.diff(cell, prepend=-1, append=cell[-1] + 1 if len(cell) else 0))
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        values, inverse, counts = np.unique(raw[start:stop], return_inverse=True, return_counts=True)
        last = np.cumsum(counts) - 1
        position = (stop - start - 1) * quantiles
        left = np.searchsorted(np.ceil(position), last, side="right")
        right = np.searchsorted(np.floor(position), last - counts + 1, side="left")
        bins[start:stop] = ((left + right + 1) // 2)[inverse]
    return bins


@njit(nogil=True, cache=True)
def _count_expressed(indptr, indices, data, row_of_column):
    num_cells = len(indptr) - 1
    lengths = np.zeros(num_cells, np.int64)
    for cell in range(num_cells):
        length = 0
        for entry in range(indptr[cell], indptr[cell + 1]):
            length += (row_of_column[indices[entry]] >= 0) & (data[entry] != 0)
        lengths[cell] = length
    return lengths


@njit(nogil=True, cache=True)
def _order_genes(  # noqa: PLR0913
    indptr, indices, data, row_of_column, medians, starts, lengths, quantiles, genes, values
):
    num_cells = len(indptr) - 1
    totals = np.zeros(num_cells)
    longest = 1
    for cell in range(num_cells):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    row, raw, key, shown = (
        np.empty(longest, np.int64),
        np.empty(longest, np.float32),
        np.empty(longest, np.float64),
        np.empty(longest, np.float32),
    )
    items, spare = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    for cell in range(num_cells):
        length = _gather(indptr[cell], indptr[cell + 1], indices, data, row_of_column, row, raw, key, items, spare)
        for gene in range(length):
            totals[cell] += raw[gene]
            key[gene] = raw[gene]
        if len(quantiles):
            _sort_descending(key, length, items, spare)
            _write_bins(items, raw, length, quantiles, shown)
        if len(medians):
            for gene in range(length):
                key[gene] = raw[gene] / medians[row[gene]]
        if len(medians) or not len(quantiles):
            _sort_descending(key, length, items, spare)
        shown_values = shown if len(quantiles) else raw
        for place in range(lengths[cell]):
            gene = np.int64(items[place] & SLOT)
            genes[starts[cell] + place] = row[gene]
            values[starts[cell] + place] = shown_values[gene]
    return totals


@njit(nogil=True, cache=True)
def _gather(  # noqa: PLR0913
    first, last, indices, data, row_of_column, row, raw, key, items, spare
):
    """Expressed vocabulary genes of one cell, by vocabulary row."""
    length, last_row, in_order = 0, np.int64(-1), True
    for entry in range(first, last):
        gene = row_of_column[indices[entry]]
        if gene >= 0 and data[entry] != 0:
            row[length], raw[length] = gene, data[entry]
            in_order &= gene > last_row
            last_row = gene
            length += 1
    if not in_order:
        largest = np.uint64(0)
        for gene in range(length):
            items[gene] = (np.uint64(row[gene]) << SHIFT) | np.uint64(gene)
            largest |= np.uint64(row[gene])
            key[gene] = raw[gene]
        digit = SHIFT
        while largest:
            if _sort_by_digit(items, spare, length, digit):
                items[:length] = spare[:length]
            largest >>= BYTE
            digit += BYTE
        for gene in range(length):
            row[gene] = np.int64(items[gene] >> SHIFT)
            raw[gene] = key[np.int64(items[gene] & SLOT)]
    return length


@njit(nogil=True, cache=True)
def _sort_descending(key, length, items, spare):
    """Order `items`, whose low half is the index of a key, by descending key; equal keys keep their order."""
    rounded = key[:length].astype(np.float32)
    bits = rounded.view(np.uint32)
    for gene in range(length):
        # The bits of positive floats order as the floats do; turned over, ascending bits mean descending keys.
        items[gene] = (np.uint64(~bits[gene]) << SHIFT) | np.uint64(gene)
    # Three bytes of the key bring nearly every pair in order, the insertion below settles the rest.
    for digit in (np.uint64(40), np.uint64(48), np.uint64(56)):
        if _sort_by_digit(items, spare, length, digit):
            items[:length] = spare[:length]
    for place in range(1, length):
        item = items[place]
        own = key[np.int64(item & SLOT)]
        before = place - 1
        while before >= 0 and key[np.int64(items[before] & SLOT)] < own:
            items[before + 1] = items[before]
            before -= 1
        items[before + 1] = item


@njit(nogil=True, cache=True)
def _sort_by_digit(items, spare, length, digit):
    """One stable pass of a radix sort from `items` into `spare`; False where all share the digit."""
    count = np.zeros(257, np.int64)
    for place in range(length):
        count[np.int64((items[place] >> digit) & DIGIT) + 1] += 1
    if length and count[np.int64((items[0] >> digit) & DIGIT) + 1] == length:
        return False
    for value in range(256):
        count[value + 1] += count[value]
    for place in range(length):
        value = np.int64((items[place] >> digit) & DIGIT)
        spare[count[value]] = items[place]
        count[value] += 1
    return True


@njit(nogil=True, cache=True)
def _write_bins(items, raw, length, quantiles, shown):
    """Bins of one cell whose `items` are in descending order of value."""
    left = right = len(quantiles)
    top = 0
    while top < length:
        value = raw[np.int64(items[top] & SLOT)]
        bottom = top
        while bottom + 1 < length and raw[np.int64(items[bottom + 1] & SLOT)] == value:
            bottom += 1
        highest, lowest = length - 1 - top, length - 1 - bottom
        while left > 0 and np.ceil((length - 1) * quantiles[left - 1]) > highest:
            left -= 1
        while right > 0 and np.floor((length - 1) * quantiles[right - 1]) >= lowest:
            right -= 1
        for place in range(top, bottom + 1):
            shown[np.int64(items[place] & SLOT)] = (left + right + 1) // 2
        top = bottom + 1
