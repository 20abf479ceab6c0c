"""The hot loop of tokenising: order each cell's genes, bin or scale them, lay them out. numba where present, else numpy.

Both ways give the same arrays bit for bit. Sorting is always descending by a key, and exact ties go to the gene with
the smaller vocabulary id, so that neither the order of the columns nor the container can change a token.
"""

import numpy as np

try:
    from numba import njit

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False

    def njit(*arguments, **options):  # type: ignore[no-redef]
        """Leave the function as plain Python; the numpy way is taken instead."""
        return arguments[0] if arguments else lambda function: function


# A sorting item carries a key in its upper half and the index of the gene it belongs to in its lower half.
SHIFT, SLOT = np.uint64(32), np.uint64(0xFFFFFFFF)
# Keys are sorted by their 22 leading bits, 11 at a time: the sign of a key is plus, so 31 bits differ.
NUM_DIGITS, DIGIT = 2048, np.uint64(2047)
LOW_DIGIT, HIGH_DIGIT = np.uint64(32 + 9), np.uint64(32 + 20)


def count_expressed(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, id_of_column: np.ndarray) -> np.ndarray:
    """Number of expressed vocabulary genes in each cell."""
    if HAS_NUMBA:
        return _count_expressed(indptr, indices, data, id_of_column)
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

    Parameters
    ----------
    indptr, indices, data
        The cells as csr; values float32, none negative, none repeated within a cell.
    id_of_column
        Vocabulary id of every column, int32, -1 for columns outside the vocabulary.
    medians
        For each vocabulary id the number by which its value is divided to give the sorting key; of length 0 to sort
        by the values themselves.
    quantiles
        The quantiles between which values are binned; of length 0 to leave them unbinned.
    target
        Sum that each cell's unbinned values are scaled to; 0 leaves them as they are.
    starts, lengths
        Where in `genes` and `values` each cell begins, and how many genes of it are wanted.
    genes, values
        Flat arrays of int64 and float32 that are written to.
    """
    arguments = indptr, indices, data, id_of_column, medians, quantiles, target, starts, lengths, genes, values
    return (_order_genes if HAS_NUMBA else order_genes_with_numpy)(*arguments)


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
    key = raw / medians[token] if len(medians) else raw.astype(np.float64)
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


@njit(nogil=True, cache=True)
def _count_expressed(indptr, indices, data, id_of_column):
    num_cells = len(indptr) - 1
    lengths = np.zeros(num_cells, np.int64)
    for cell in range(num_cells):
        length = 0
        for entry in range(indptr[cell], indptr[cell + 1]):
            length += (id_of_column[indices[entry]] >= 0) & (data[entry] != 0)
        lengths[cell] = length
    return lengths


@njit(nogil=True, cache=True)
def _order_genes(  # noqa: PLR0913
    indptr, indices, data, id_of_column, medians, quantiles, target, starts, lengths, genes, values
):
    num_cells = len(indptr) - 1
    totals = np.zeros(num_cells)
    longest = 1
    for cell in range(num_cells):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    token, raw, key, shown = (
        np.empty(longest, np.int32),
        np.empty(longest, np.float32),
        np.empty(longest, np.float32),
        np.empty(longest, np.float32),
    )
    items, spare = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    count = np.empty((2, NUM_DIGITS), np.int32)
    for cell in range(num_cells):
        length = _gather(indptr[cell], indptr[cell + 1], indices, data, id_of_column, token, raw, items, spare, count)
        total = 0.0
        for gene in range(length):
            total += raw[gene]
        totals[cell] = total
        if len(quantiles):
            _sort_descending(raw, raw, token, medians[:0], length, items, spare, count)
            _write_bins(items, raw, length, quantiles, shown)
        else:
            scale = np.float32(target / total) if target and total else np.float32(1)
            for gene in range(length):
                shown[gene] = raw[gene] * scale
        if len(medians):
            for gene in range(length):
                key[gene] = raw[gene] / medians[token[gene]]
            _sort_descending(key, raw, token, medians, length, items, spare, count)
        elif not len(quantiles):
            _sort_descending(raw, raw, token, medians, length, items, spare, count)
        start = starts[cell]
        for place in range(lengths[cell]):
            gene = np.int64(items[place] & SLOT)
            genes[start + place] = token[gene]
            values[start + place] = shown[gene]
    return totals


@njit(nogil=True, cache=True)
def _gather(first, last, indices, data, id_of_column, token, raw, items, spare, count):  # noqa: PLR0913
    """Expressed vocabulary genes of one cell, by vocabulary id."""
    length, last_token, in_order = 0, np.int32(-1), True
    for entry in range(first, last):
        gene, value = id_of_column[indices[entry]], data[entry]
        token[length], raw[length] = gene, value  # overwritten by the next gene unless this one counts
        if (gene >= 0) & (value != 0):
            in_order &= gene > last_token
            last_token = gene
            length += 1
    if not in_order:
        for gene in range(length):
            items[gene] = (np.uint64(token[gene]) << SHIFT) | np.uint64(gene)
        _sort_items(items, spare, length, count, SHIFT, SHIFT + np.uint64(11))
        bits = raw.view(np.uint32)
        for gene in range(length):
            spare[gene] = np.uint64(bits[gene])
        for gene in range(length):
            token[gene] = np.int32(items[gene] >> SHIFT)
            bits[gene] = np.uint32(spare[np.int64(items[gene] & SLOT)])
    return length


@njit(nogil=True, cache=True)
def _sort_descending(key, raw, token, medians, length, items, spare, count):
    """Put into `items` the genes in the order of descending keys; equal keys keep their order.

    `key` is rounded to float32; where two round to the same, the quotients themselves decide.
    """
    bits = key.view(np.uint32)
    for gene in range(length):
        # The bits of positive floats order as the floats do; turned over, ascending bits mean descending keys.
        items[gene] = (np.uint64(~bits[gene] & np.uint32(0x7FFFFFFF)) << SHIFT) | np.uint64(gene)
    _sort_items(items, spare, length, count, LOW_DIGIT, HIGH_DIGIT)
    # The leading bits bring nearly every pair in order; this settles the rest.
    for place in range(1, length):
        item = items[place]
        before = place - 1
        while before >= 0 and _is_behind(items[before], item, raw, token, medians):
            items[before + 1] = items[before]
            before -= 1
        items[before + 1] = item


@njit(nogil=True, cache=True, inline="always")
def _is_behind(item, other, raw, token, medians):
    """Whether a gene must stand behind another that now follows it."""
    key, other_key = item >> SHIFT, other >> SHIFT
    if key != other_key or not len(medians):
        return key > other_key
    gene, rival = np.int64(item & SLOT), np.int64(other & SLOT)
    return raw[gene] / medians[token[gene]] < raw[rival] / medians[token[rival]]


@njit(nogil=True, cache=True)
def _sort_items(items, spare, length, count, low, high):
    """Radix sort by two digits of 11 bits, stable."""
    count[:] = 0
    for place in range(length):
        count[0, np.int64((items[place] >> low) & DIGIT)] += 1
        count[1, np.int64((items[place] >> high) & DIGIT)] += 1
    for digit in range(2):
        running = np.int32(0)
        for value in range(NUM_DIGITS):
            running, count[digit, value] = running + count[digit, value], running
    for place in range(length):
        value = np.int64((items[place] >> low) & DIGIT)
        spare[count[0, value]] = items[place]
        count[0, value] += 1
    for place in range(length):
        value = np.int64((spare[place] >> high) & DIGIT)
        items[count[1, value]] = spare[place]
        count[1, value] += 1


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
