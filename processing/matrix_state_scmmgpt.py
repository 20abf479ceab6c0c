"""What a matrix of expression values is: raw counts, normalised, log1p or z-scored. Judged by its entries."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import sparse

# Natural log1p of counts per million cannot pass this; base-2 logarithms of deep cells do.
MAX_NATURAL_LOG = float(np.log1p(1e6))
MAX_LOG2 = float(np.log2(1 + 1e6)) + 1
LOG_BASES = (float(np.e), 2.0, 10.0)
SMALLEST_COUNTS = (1, 2, 3, 4, 5)
# About half of all z-scores are negative; a few negative entries among others are a fault to be reported.
MAX_SHARE_OF_STRAY_NEGATIVES = 0.1
ROWS_THAT_MUST_AGREE = 0.95


class MatrixState(NamedTuple):
    """What the entries of a matrix are.

    `kind` is "counts", "normalised" (linear, not whole numbers), "log1p", "scaled" (z-scores) or "empty".
    `base` is the logarithm's; `exact` says that the counts behind a normalised matrix can be told exactly.
    """

    kind: str
    detail: str
    base: float = 0.0
    exact: bool = False


COUNTS = MatrixState("counts", "whole numbers")


def recognise(block: sparse.csr_matrix, log_base: float | None = None) -> MatrixState:
    """Judge a sample of cells by the values of its entries; NaN and inf do not take part.

    `log_base` is the base of the logarithm, where the file says so.
    """
    if _are_counts(block.data):
        return COUNTS
    block = _usable(block)
    values = block.data
    if values.size == 0:
        return MatrixState("empty", "no entry but zeros")
    share_negative = float(np.mean(values < 0))
    if share_negative > MAX_SHARE_OF_STRAY_NEGATIVES and (values != np.rint(values)).any():
        return MatrixState("scaled", f"{share_negative:.0%} of its entries are negative")
    if share_negative:
        block.data[values < 0] = 0
        block.eliminate_zeros()
        values = block.data
        if values.size == 0:
            return COUNTS  # nothing but whole negative numbers: they are refused when they are read
    share_whole = float(np.mean(values == np.rint(values)))
    if share_whole == 1:
        return COUNTS
    return _recognise_fractions(block, share_whole, log_base)


def _recognise_fractions(block: sparse.csr_matrix, share_whole: float, log_base: float | None) -> MatrixState:
    largest = float(block.data.max())
    if largest <= MAX_LOG2:
        for base in [log_base] if log_base else LOG_BASES:
            if largest * np.log(base) <= np.log(1e8) and _holds_counts(block, base):
                return MatrixState("log1p", f"log{_base_name(base)}(1 + x) of scaled counts", base, exact=True)
    if _holds_counts(block, None):
        return MatrixState("normalised", f"scaled counts, {_scale_name(block)}", exact=True)
    if share_whole > ROWS_THAT_MUST_AGREE:
        return MatrixState("normalised", "nearly all whole numbers: expected or corrected counts")
    if _has_constant_sums(block) or largest > MAX_LOG2:
        return MatrixState("normalised", f"linear, {_scale_name(block)}")
    if _has_unit_variance(block):
        return MatrixState("scaled", "every gene has unit variance")
    likely = LOG_BASES[0] if largest <= MAX_NATURAL_LOG else LOG_BASES[1]
    base = log_base or next((base for base in LOG_BASES if _has_constant_sums(_unlogged(block, base))), likely)
    return MatrixState("log1p", f"log{_base_name(base)}(1 + x)", base)


def linear_values(data: np.ndarray, state: MatrixState) -> np.ndarray:
    """Undo the logarithm of a log1p matrix; other matrices are linear as they are."""
    return np.expm1(data.astype(np.float64) * np.log(state.base)) if state.kind == "log1p" else data


def recover_counts(indptr: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers that a cell's scaled values are multiples of, and which cells they were found for.

    Dividing a cell by its library size keeps the ratios of its counts, so the smallest value stands for a small
    whole number, nearly always 1, and every other value is a multiple of that unit. Cells where this fails come
    back as they are.
    """
    counts = data.astype(np.float64)
    lengths = np.diff(indptr)
    filled = np.flatnonzero(lengths)
    found = np.ones(len(lengths), dtype=bool)
    if not filled.size:
        return counts, found
    starts = indptr[:-1][filled] - indptr[0]
    unit = np.minimum.reduceat(counts, starts)
    multiples = counts / np.repeat(unit, lengths[filled])
    found[filled] = False
    for smallest in SMALLEST_COUNTS:
        whole = np.rint(multiples * smallest)
        # float32 holds log1p(x) to 6e-8 of itself: the tolerance follows that error to the recovered multiple.
        error = np.abs(multiples * smallest - whole) - 2e-6 * whole
        agrees = (np.maximum.reduceat(error, starts) < 2e-3) & (np.maximum.reduceat(whole, starts) < 25_000)
        new = agrees & ~found[filled]
        entries = np.repeat(new, lengths[filled])
        counts[entries] = whole[entries]
        found[filled[new]] = True
    return counts, found


def count_bad_values(data: np.ndarray) -> Mapping[str, int]:
    """How many entries are NaN, infinite or negative."""
    if data.size == 0 or np.issubdtype(data.dtype, np.unsignedinteger) or data.dtype == bool:
        return {}
    # A NaN passes through min and an infinity through max: two quick passes settle the usual case.
    smallest = data.min()
    if smallest >= 0 and np.isfinite(data.max()):
        return {}
    bad = {"NaN": np.isnan(data).sum(), "infinite": np.isinf(data).sum(), "negative": (data < 0).sum()}
    return {name: int(count) for name, count in bad.items() if count}


def _are_counts(values: np.ndarray) -> bool:
    """Whether plain counts are all there is, as in most matrices: settled without a copy."""
    return bool(values.any() and not count_bad_values(values) and (values == np.rint(values)).all())


def _usable(block: sparse.csr_matrix) -> sparse.csr_matrix:
    block = sparse.csr_matrix(block, dtype=np.float64, copy=True)
    block.data[~np.isfinite(block.data)] = 0
    block.eliminate_zeros()
    return block


def _unlogged(block: sparse.csr_matrix, base: float) -> sparse.csr_matrix:
    data = np.expm1(np.minimum(block.data * np.log(base), 50))
    return sparse.csr_matrix((data, block.indices, block.indptr), shape=block.shape)


def _holds_counts(block: sparse.csr_matrix, base: float | None) -> bool:
    """Whether the values of nearly every cell are multiples of one small unit."""
    linear = block if base is None else _unlogged(block, base)
    _, found = recover_counts(linear.indptr, linear.data)
    distinct = _rows_with_variety(linear)
    return bool(distinct.any()) and float(found[distinct].mean()) >= ROWS_THAT_MUST_AGREE


def _rows_with_variety(block: sparse.csr_matrix) -> np.ndarray:
    """Cells with two different values at least: in others anything is a multiple of anything."""
    rows = np.split(block.data, block.indptr[1:-1])
    return np.array([np.ptp(row) > 1e-6 * row.max() if row.size else False for row in rows], dtype=bool)


def _has_constant_sums(block: sparse.csr_matrix) -> bool:
    sums = np.asarray(block.sum(axis=1)).ravel()
    sums = sums[sums > 0]
    return sums.size > 1 and float(np.std(sums) / np.mean(sums)) < 1e-3


def _has_unit_variance(block: sparse.csr_matrix) -> bool:
    if block.shape[0] < 50:
        return False
    mean = np.asarray(block.mean(axis=0)).ravel()
    variance = np.asarray(block.multiply(block).mean(axis=0)).ravel() - mean**2
    spread = np.sqrt(variance[variance > 0])
    return spread.size > 20 and np.percentile(spread, 10) > 0.8 and np.percentile(spread, 90) < 1.2


def _scale_name(block: sparse.csr_matrix) -> str:
    if not _has_constant_sums(block):
        return "not whole numbers (TPM-like)"
    total = float(np.median(np.asarray(block.sum(axis=1)).ravel()))
    names = {1e4: "10,000 a cell (CP10k)", 1e6: "1,000,000 a cell (CPM or TPM)"}
    return next((name for size, name in names.items() if abs(total / size - 1) < 1e-2), f"{total:,.0f} a cell")


def _base_name(base: float) -> str:
    return "" if base == LOG_BASES[0] else f"{base:g}"
