"""Is a corpus what it says? Labels that fit their cells, and no cell on both sides of a split.

Label coherence: a classifier fitted inside one source must beat the same classifier fitted to shuffled labels; a source
at chance has labels that do not belong to its cells. Duplicates: equal rows by hash; nearly equal rows by MinHash over
the expressed genes, each candidate pair confirmed by its exact overlap.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numba
import numpy as np
import scipy.sparse as sp

from scmmgpt.errors import require

_LOW_61_BITS = np.uint64((1 << 61) - 1)
# Shuffled labels land four standard deviations above their own mean about once in thirty thousand sources.
_DEVIATIONS_ABOVE_CHANCE = 4.0


@dataclass(frozen=True)
class LabelCoherence:
    """How well labels can be told from the cells, against chance. Accuracies are balanced over types."""

    num_cells: int
    num_types: int
    accuracy: float
    shuffled_accuracy: float
    deviations: float

    @property
    def is_at_chance(self) -> bool:
        """Whether the labels might as well have been dealt out at random."""
        return self.deviations < _DEVIATIONS_ABOVE_CHANCE

    def as_dict(self) -> dict:
        return {**asdict(self), "at_chance": self.is_at_chance}


def label_coherence(
    values: sp.csr_matrix, labels: np.ndarray, *, num_shuffles: int = 20, num_folds: int = 5, seed: int = 0
) -> LabelCoherence | None:
    """Cross-validated naive Bayes against shuffled labels; None where there are not two types to tell apart.

    `values` are cells x genes, non-negative; `labels` holds the type of each cell. Shuffling them `num_shuffles` times
    shows how far chance alone reaches.
    """
    names, codes = np.unique(labels, return_inverse=True)
    enough = np.bincount(codes) >= 2 * num_folds
    kept = enough[codes]
    if enough.sum() < 2:
        return None
    values, codes = values[kept], np.unique(codes[kept], return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    accuracy = _balanced_accuracy(values, codes, num_folds, seed)
    shuffled = [_balanced_accuracy(values, generator.permutation(codes), num_folds, seed) for _ in range(num_shuffles)]
    chance, spread = float(np.mean(shuffled)), max(float(np.std(shuffled)), 1e-3)
    deviations = (accuracy - chance) / spread
    return LabelCoherence(len(codes), int(enough.sum()), round(accuracy, 4), round(chance, 4), round(deviations, 2))


def _balanced_accuracy(values: sp.csr_matrix, codes: np.ndarray, num_folds: int, seed: int) -> float:
    selection = require("sklearn.model_selection")
    folds = selection.StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    naive_bayes = require("sklearn.naive_bayes").MultinomialNB()
    guesses = selection.cross_val_predict(naive_bayes, values, codes, cv=folds)
    return float(require("sklearn.metrics").balanced_accuracy_score(codes, guesses))


@dataclass(frozen=True)
class DuplicateSettings:
    """What counts as nearly the same cell.

    Cells that express few genes agree by chance (a panel of 33 genes has few possible gene sets): below `min_genes`
    only exact duplicates count.
    """

    min_overlap: float = 0.9
    min_genes: int = 100
    bands: int = 16
    rows_per_band: int = 12
    max_bucket: int = 200
    seed: int = 0


def near_duplicates(
    cells: sp.csr_matrix, others: sp.csr_matrix | None = None, settings: DuplicateSettings | None = None
) -> np.ndarray:
    """Pairs (row, row of `others`) whose expressed genes overlap by at least `min_overlap` (Jaccard).

    Both are cells x genes; what is not zero is expressed. Without `others`, pairs within `cells`, each once, the
    smaller row first.
    """
    settings = settings or DuplicateSettings()
    both = cells if others is None else sp.vstack([cells, others], format="csr")
    sides = None if others is None else np.repeat([0, 1], [cells.shape[0], others.shape[0]])
    pairs = candidate_pairs(band_hashes(both, settings), settings, sides)
    pairs = pairs[gene_overlap(both[pairs[:, 0]], both[pairs[:, 1]]) >= settings.min_overlap]
    return pairs if others is None else pairs - np.array([0, cells.shape[0]])


def band_hashes(cells: sp.csr_matrix, settings: DuplicateSettings) -> np.ndarray:
    """(cells, bands) numbers; cells that express nearly the same genes share at least one of them.

    Part by part over a corpus this takes 8 bytes a band and cell. A cell with too few genes gets 0, which matches none.
    """
    generator = np.random.default_rng(settings.seed)
    num_hashes = settings.bands * settings.rows_per_band
    factors = generator.integers(0, _LOW_61_BITS, num_hashes, dtype=np.uint64) | np.uint64(1)
    offsets = generator.integers(0, _LOW_61_BITS, num_hashes, dtype=np.uint64)
    bands = np.zeros((cells.shape[0], settings.bands), np.uint64)
    _fill_bands(cells.indptr, cells.indices, factors, offsets, _LOW_61_BITS, settings.rows_per_band, bands)
    bands[np.diff(cells.indptr) < settings.min_genes] = 0
    return bands


@numba.njit(cache=True)
def _fill_bands(indptr, indices, factors, offsets, mask, rows_per_band, bands):
    for cell in range(len(indptr) - 1):
        for h in range(len(factors)):
            smallest = mask
            for position in range(indptr[cell], indptr[cell + 1]):
                hashed = (np.uint64(indices[position] + 1) * factors[h] + offsets[h]) & mask
                smallest = min(smallest, hashed)
            band = h // rows_per_band
            bands[cell, band] = (bands[cell, band] ^ smallest) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)


def candidate_pairs(bands: np.ndarray, settings: DuplicateSettings, sides: np.ndarray | None = None) -> np.ndarray:
    """Pairs of rows that share a band hash, the smaller row first; with `sides`, only pairs across them."""
    found: set[tuple[int, int]] = set()
    for hashes in bands.T:
        order = np.argsort(hashes, kind="stable")
        order = order[hashes[order] > 0]
        for bucket in np.split(order, np.flatnonzero(np.diff(hashes[order])) + 1):
            if 1 < len(bucket) <= settings.max_bucket:
                left, right = (bucket[places] for places in np.triu_indices(len(bucket), 1))
                apart = slice(None) if sides is None else sides[left] != sides[right]
                found.update(zip(left[apart].tolist(), right[apart].tolist(), strict=True))
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def gene_overlap(cells: sp.csr_matrix, others: sp.csr_matrix) -> np.ndarray:
    """Jaccard overlap of the expressed genes of cells and others, row by row."""
    expressed, expressed_others = (
        sp.csr_matrix((np.ones(part.nnz, np.float32), part.indices, part.indptr), shape=part.shape)
        for part in (cells, others)
    )
    shared = np.asarray(expressed.multiply(expressed_others).sum(axis=1)).ravel()
    return shared / np.maximum(np.diff(cells.indptr) + np.diff(others.indptr) - shared, 1)
