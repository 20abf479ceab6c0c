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
SHIFT, SLOT, EVERY_BIT = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFFFFFFFFFF)
# Keys are sorted by their 22 leading bits, 11 at a time.
DIGIT_BITS, NUM_DIGITS, DIGIT = np.uint64(11), 2048, np.uint64(2047)


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


# numba checks every index of a whole array for being negative; slices taken once and unsigned indices spare that, and
# with it the loops become vector instructions.


@njit(nogil=True, cache=True)
def _count_expressed(indptr, indices, data, id_of_column):
    num_cells = len(indptr) - 1
    lengths = np.zeros(num_cells, np.int64)
    is_known = id_of_column >= 0  # a byte a column stays in the nearest cache
    for cell in range(num_cells):
        columns, raw = indices[indptr[cell] : indptr[cell + 1]], data[indptr[cell] : indptr[cell + 1]]
        length = np.int32(0)
        for entry in range(len(columns)):
            length += np.int32(is_known[np.uint32(columns[entry])] & (raw[entry] != 0))
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
    all_tokens, all_raw = np.empty(longest, np.int32), np.empty(longest, np.float32)
    all_keys, all_shown = np.empty(longest, np.float32), np.empty(longest, np.float32)
    all_items, spare = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    count = np.empty((2, NUM_DIGITS), np.int32)
    for cell in range(num_cells):
        entries = slice(indptr[cell], indptr[cell + 1])
        length = _gather(indices[entries], data[entries], id_of_column, all_tokens, all_raw, all_items, spare, count)
        token, raw, key = all_tokens[:length], all_raw[:length], all_keys[:length]
        shown, items = all_shown[:length], all_items[:length]
        total, most = _total(raw)
        totals[cell] = total
        if len(quantiles) or not len(medians):
            if 0 < most < NUM_DIGITS:
                _sort_counts(raw, most, items, count)
            else:
                _sort_descending(raw, raw, token, medians[:0], items, spare, count)
        if len(quantiles):
            _write_bins(items, quantiles, shown)
        else:
            scale = np.float32(target / total) if target and total else np.float32(1)
            for gene in range(length):
                shown[gene] = raw[gene] * scale
        if len(medians):
            for gene in range(length):
                key[gene] = raw[gene] / medians[np.uint32(token[gene])]
            _sort_descending(key, raw, token, medians, items, spare, count)
        wanted = slice(starts[cell], starts[cell] + lengths[cell])
        cell_genes, cell_values = genes[wanted], values[wanted]
        for place in range(len(cell_genes)):
            gene = np.uint32(items[place] & SLOT)
            cell_genes[place] = token[gene]
            cell_values[place] = shown[gene]
    return totals


@njit(nogil=True, cache=True)
def _gather(columns, data, id_of_column, token, raw, items, spare, count):
    """Write the expressed vocabulary genes of one cell by vocabulary id; return how many there are."""
    length, last_token, in_order = np.uint32(0), np.int32(-1), True
    for entry in range(len(columns)):
        gene, value = id_of_column[np.uint32(columns[entry])], data[entry]
        token[length], raw[length] = gene, value  # overwritten by the next gene unless this one counts
        if (gene >= 0) & (value != 0):
            in_order &= gene > last_token
            last_token = gene
            length += np.uint32(1)
    if not in_order:
        for gene in range(length):
            items[gene] = (np.uint64(token[gene]) << SHIFT) | np.uint64(gene)
        _sort_items(items[:length], spare, count, SHIFT)
        bits = raw.view(np.uint32)
        for gene in range(length):
            spare[gene] = np.uint64(bits[gene])
        for gene in range(length):
            token[gene] = np.int32(items[gene] >> SHIFT)
            bits[gene] = np.uint32(spare[np.uint32(items[gene] & SLOT)])
    return length


@njit(nogil=True, cache=True)
def _total(raw):
    """Sum of a cell, and its largest value if all are whole numbers that int32 holds, else 0."""
    whole_total, most, are_whole = np.int64(0), np.float32(0), True
    for gene in range(len(raw)):
        whole = np.int32(raw[gene])
        whole_total += whole
        are_whole &= np.float32(whole) == raw[gene]
        most = max(most, raw[gene])
    if are_whole:
        return np.float64(whole_total), np.int64(most)
    total = 0.0
    for gene in range(len(raw)):
        total += raw[gene]
    return total, np.int64(0)


@njit(nogil=True, cache=True)
def _sort_counts(raw, most, items, count):
    """Put into `items` the genes in the order of descending counts, none above `most`; equal counts keep theirs."""
    places = count[0, : most + 1]
    places[:] = 0
    for gene in range(len(raw)):
        places[np.uint32(raw[gene])] += 1
    running = np.int32(0)
    for value in range(most, -1, -1):
        running, places[value] = running + places[value], running
    for gene in range(len(raw)):
        value = np.uint32(raw[gene])
        items[np.uint32(places[value])] = (np.uint64(most - value) << SHIFT) | np.uint64(gene)
        places[value] += 1


@njit(nogil=True, cache=True)
def _sort_descending(key, raw, token, medians, items, spare, count):
    """Put into `items` the genes in the order of descending keys; equal keys keep their order.

    `key` is rounded to float32; where two round to the same, the quotients themselves decide.
    """
    # The bits of positive floats order as the floats do; measured down from the highest they descend.
    bits = key.view(np.uint32)
    highest, lowest = np.uint32(0), np.uint32(0xFFFFFFFF)
    for gene in range(len(bits)):
        highest, lowest = max(highest, bits[gene]), min(lowest, bits[gene])
    for gene in range(len(bits)):
        items[gene] = (np.uint64(highest - bits[gene]) << SHIFT) | np.uint64(gene)
    low = SHIFT
    while len(bits) and np.uint64(highest - lowest) >> (low - SHIFT + DIGIT_BITS) > DIGIT:
        low += np.uint64(1)
    _sort_items(items, spare, count, low)
    # The leading bits bring nearly every pair in order; this settles the rest. A key without its index is above the
    # whole item before it only if the keys differ.
    mask = ~SLOT if len(medians) else EVERY_BIT
    for place in range(1, len(items)):
        item = items[place]
        if item & mask > items[np.uint64(place - 1)]:
            continue
        before = place - 1
        while before >= 0 and _is_behind(items[np.uint64(before)], item, raw, token, medians):
            items[np.uint64(before + 1)] = items[np.uint64(before)]
            before -= 1
        items[np.uint64(before + 1)] = item


@njit(nogil=True, cache=True, inline="always")
def _is_behind(item, other, raw, token, medians):
    """Whether a gene must stand behind another that now follows it."""
    key, other_key = item >> SHIFT, other >> SHIFT
    if key != other_key or not len(medians):
        return key > other_key
    gene, rival = np.uint32(item & SLOT), np.uint32(other & SLOT)
    return raw[gene] / medians[np.uint32(token[gene])] < raw[rival] / medians[np.uint32(token[rival])]


@njit(nogil=True, cache=True)
def _sort_items(items, spare, count, low):
    """Radix sort by two digits of 11 bits from bit `low` on, stable."""
    high = low + DIGIT_BITS
    count[:] = 0
    for place in range(len(items)):
        count[0, (items[place] >> low) & DIGIT] += 1
        count[1, (items[place] >> high) & DIGIT] += 1
    before_low = before_high = np.int32(0)
    for value in range(NUM_DIGITS):
        before_low, count[0, value] = before_low + count[0, value], before_low
        before_high, count[1, value] = before_high + count[1, value], before_high
    for place in range(len(items)):
        value = (items[place] >> low) & DIGIT
        spare[np.uint32(count[0, value])] = items[place]
        count[0, value] += 1
    for place in range(len(items)):
        value = (spare[place] >> high) & DIGIT
        items[np.uint32(count[1, value])] = spare[place]
        count[1, value] += 1


@njit(nogil=True, cache=True)
def _write_bins(items, quantiles, shown):
    """Bins of one cell whose `items` are in descending order of value."""
    left = right = len(quantiles)
    top, last = 0, len(items) - 1
    while top <= last:
        key, bottom = items[top] >> SHIFT, top
        while bottom < last and items[bottom + 1] >> SHIFT == key:
            bottom += 1
        while left > 0 and np.ceil(last * quantiles[left - 1]) > last - top:
            left -= 1
        while right > 0 and np.floor(last * quantiles[right - 1]) >= last - bottom:
            right -= 1
        value = np.float32((left + right + 1) // 2)
        for place in range(top, bottom + 1):
            shown[np.uint32(items[place] & SLOT)] = value
        top = bottom + 1
