"""The hot loop of tokenising in numba: what `gene_kernels_scmmgpt` calls once there is enough to sort."""

import numpy as np

try:
    from numba import njit

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False

    def njit(*arguments, **options):  # type: ignore[no-redef]
        """Leave the function as plain Python; the numpy way is taken instead."""
        return arguments[0] if arguments else lambda function: function


# A sorting item carries the leading bits of a key in its upper half and the gene that it belongs to in its lower half:
# as small as that, the items of a cell stay in the nearest cache.
KEY_BITS, SLOT = np.uint32(16), np.uint32(0xFFFF)
# Keys are sorted by 8 bits at a time.
DIGIT_BITS, NUM_DIGITS, DIGIT = np.uint32(8), 256, np.uint32(255)
# Whole numbers below this are sorted by counting.
MOST_COUNTS = 2048
MOST_INT32 = (1 << 31) - 1
MOST_WHOLE = np.float32(1 << 24)  # the last whole number before float32 leaves some out

# numba checks every index of a whole array for being negative; slices taken once and unsigned indices spare that, and
# with it the loops become vector instructions.


@njit(nogil=True, cache=True)
def count_expressed(indptr, indices, data, id_of_column):
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
def order_genes(  # noqa: PLR0913
    indptr, indices, data, id_of_column, medians, quantiles, target, starts, lengths, genes, values
):
    num_cells = len(indptr) - 1
    totals = np.zeros(num_cells)
    longest = 1
    for cell in range(num_cells):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    all_tokens, all_raw = np.empty(longest, np.int32), np.empty(longest, np.float32)
    all_keys, all_shown = np.empty(longest, np.float32), np.empty(longest, np.float32)
    all_items, spare = np.empty(longest, np.uint32), np.empty(longest, np.uint32)
    weights = 1 / medians
    count, count_of = np.empty((2, NUM_DIGITS), np.int32), np.empty(MOST_COUNTS, np.int32)
    for cell in range(num_cells):
        entries = slice(indptr[cell], indptr[cell + 1])
        length = _gather(indices[entries], data[entries], id_of_column, all_tokens, all_raw, all_items, spare, count)
        token, raw, key = all_tokens[:length], all_raw[:length], all_keys[:length]
        shown, items = all_shown[:length], all_items[:length]
        total, most = _total(raw)
        totals[cell] = total
        if len(quantiles) or not len(medians):
            if 0 < most < MOST_COUNTS:
                _sort_counts(raw, most, items, count_of)
            else:
                _sort_descending(raw, raw, token, medians[:0], items, spare, count)
        if len(quantiles):
            _write_bins(items, raw, quantiles, shown)
        else:
            scale = np.float32(target / total) if target and total else np.float32(1)
            for gene in range(length):
                shown[gene] = raw[gene] * scale
        if len(medians):
            for gene in range(length):
                key[gene] = raw[gene] * weights[np.uint32(token[gene])]
            _sort_descending(key, raw, token, weights, items, spare, count)
        wanted = slice(starts[cell], starts[cell] + lengths[cell])
        cell_genes, cell_values = genes[wanted], values[wanted]
        for place in range(len(cell_genes)):
            slot = np.uint32(items[place] & SLOT)
            cell_genes[place] = token[slot]
            cell_values[place] = shown[slot]
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
            items[gene] = (np.uint32(token[gene]) << KEY_BITS) | np.uint32(gene)
        _sort_items(items[:length], spare, count)
        bits = raw.view(np.uint32)
        spare[:length] = bits[:length]
        for gene in range(length):
            token[gene] = np.int32(items[gene] >> KEY_BITS)
            bits[gene] = spare[items[gene] & SLOT]
    return length


@njit(nogil=True, cache=True)
def _total(raw):
    """Sum of a cell, and its largest value if all are whole numbers whose sum int32 holds, else 0."""
    whole_total, most, is_broken = np.int32(0), np.int32(0), np.int32(0)
    for gene in range(len(raw)):
        # Beyond int32 the conversion would be undefined: the compiler may then leave out the comparison below.
        whole = np.int32(min(raw[gene], MOST_WHOLE))
        whole_total = np.int32(whole_total + whole)
        most = np.int32(max(most, whole))
        is_broken |= np.int32(np.float32(whole) != raw[gene])
    if not is_broken and np.int64(most) * len(raw) < MOST_INT32:
        return np.float64(whole_total), np.int64(most)
    total = 0.0
    for gene in range(len(raw)):
        total += raw[gene]
    return total, np.int64(0)


@njit(nogil=True, cache=True)
def _sort_counts(raw, most, items, count_of):
    """Put into `items` the genes in the order of descending counts, none above `most`; equal counts keep theirs."""
    places = count_of[: most + 1]
    places[:] = 0
    for gene in range(len(raw)):
        places[np.uint32(raw[gene])] += 1
    running = np.int32(0)
    for value in range(most, -1, -1):
        running, places[value] = running + places[value], running
    for gene in range(len(raw)):
        count = np.uint32(raw[gene])
        items[np.uint32(places[count])] = np.uint32(gene)
        places[count] += 1


@njit(nogil=True, cache=True)
def _sort_descending(key, raw, token, weights, items, spare, count):
    """Put into `items` the genes in the order of descending keys; equal keys keep their order.

    `key` is rounded to float32; where two round to the same, the products of value and weight decide.
    """
    # The bits of positive floats order as the floats do; measured down from the highest they descend.
    bits = key.view(np.uint32)
    highest, lowest = np.uint32(0), np.uint32(0xFFFFFFFF)
    for gene in range(len(bits)):
        highest, lowest = max(highest, bits[gene]), min(lowest, bits[gene])
    dropped = np.uint32(0)
    while len(bits) and (highest - lowest) >> dropped > SLOT:
        dropped += np.uint32(1)
    for gene in range(len(bits)):
        items[gene] = (((highest - bits[gene]) >> dropped) << KEY_BITS) | np.uint32(gene)
    _sort_items(items, spare, count)
    # The leading bits bring nearly every pair in order; this settles the rest.
    for place in range(1, len(items)):
        item = items[place]
        if item >> KEY_BITS > items[np.uint64(place - 1)] >> KEY_BITS:
            continue
        before = place - 1
        while before >= 0 and _is_behind(items[np.uint64(before)], item, key, raw, token, weights):
            items[np.uint64(before + 1)] = items[np.uint64(before)]
            before -= 1
        items[np.uint64(before + 1)] = item


@njit(nogil=True, cache=True, inline="always")
def _is_behind(item, other, key, raw, token, weights):
    """Whether a gene must stand behind another that now follows it."""
    gene, rival = item & SLOT, other & SLOT
    if key[gene] != key[rival] or not len(weights):
        return key[gene] < key[rival]
    return raw[gene] * weights[np.uint32(token[gene])] < raw[rival] * weights[np.uint32(token[rival])]


@njit(nogil=True, cache=True)
def _sort_items(items, spare, count):
    """Radix sort by the two digits of the key, stable."""
    high = KEY_BITS + DIGIT_BITS
    count[:] = 0
    for place in range(len(items)):
        count[0, (items[place] >> KEY_BITS) & DIGIT] += 1
        count[1, items[place] >> high] += 1
    before_low = before_high = np.int32(0)
    for value in range(NUM_DIGITS):
        before_low, count[0, value] = before_low + count[0, value], before_low
        before_high, count[1, value] = before_high + count[1, value], before_high
    for place in range(len(items)):
        value = (items[place] >> KEY_BITS) & DIGIT
        spare[np.uint32(count[0, value])] = items[place]
        count[0, value] += 1
    for place in range(len(items)):
        value = spare[place] >> high
        items[np.uint32(count[1, value])] = spare[place]
        count[1, value] += 1


@njit(nogil=True, cache=True)
def _write_bins(items, raw, quantiles, shown):
    """Bins of one cell whose `items` are in descending order of value."""
    left = right = len(quantiles)
    top, last = 0, len(items) - 1
    while top <= last:
        value, bottom = raw[items[top] & SLOT], top
        while bottom < last and raw[items[bottom + 1] & SLOT] == value:
            bottom += 1
        while left > 0 and np.ceil(last * quantiles[left - 1]) > last - top:
            left -= 1
        while right > 0 and np.floor(last * quantiles[right - 1]) >= last - bottom:
            right -= 1
        shared = np.float32((left + right + 1) // 2)
        for place in range(top, bottom + 1):
            shown[items[place] & SLOT] = shared
        top = bottom + 1


@njit(nogil=True, cache=True)
def write_rows(ids, values, begins, lengths, row_ids, row_values, row_mask):
    for row in range(len(begins)):
        tokens, place = slice(begins[row], begins[row] + lengths[row]), slice(lengths[row])
        from_ids, to_ids = ids[tokens], row_ids[row][place]
        from_values, to_values = values[tokens], row_values[row][place]
        mask = row_mask[row][place]
        # Plain loops, one after another: numba first makes sure of an assigned slice that it does not overlap.
        for token in range(len(to_ids)):
            to_ids[token] = from_ids[token]
        for token in range(len(to_values)):
            to_values[token] = from_values[token]
        for token in range(len(mask)):
            mask[token] = 1


COMPILED = (count_expressed, order_genes, write_rows) if HAS_NUMBA else None
