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

    Parameters
    ----------
    values
        Cells x genes, non-negative.
    num_shuffles
        Times the labels are shuffled, to see how far chance alone reaches.
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
    folds = require("sklearn.model_selection").StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    naive_bayes = require("sklearn.naive_bayes").MultinomialNB
    guesses = np.empty_like(codes)
    for fitted, held_out in folds.split(codes, codes):
        guesses[held_out] = naive_bayes().fit(values[fitted], codes[fitted]).predict(values[held_out])
    hits = np.bincount(codes, weights=guesses == codes) / np.bincount(codes)
    return float(hits.mean())


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

    Parameters
    ----------
    others
        Compare with these; None: within `cells`, each pair once, the smaller row first.
    """
    settings = settings or DuplicateSettings()
    both = cells if others is None else sp.vstack([cells, others], format="csr")
    signatures = _minhash(both, settings)
    candidates = _candidate_pairs(signatures, settings)
    if others is not None:
        candidates = candidates[(candidates[:, 0] < cells.shape[0]) & (candidates[:, 1] >= cells.shape[0])]
    overlap = _jaccard(both, candidates)
    pairs = candidates[overlap >= settings.min_overlap]
    return pairs if others is None else pairs - np.array([0, cells.shape[0]])


def _minhash(cells: sp.csr_matrix, settings: DuplicateSettings) -> np.ndarray:
    """(cells, bands * rows_per_band) signatures; cells with too few genes get one that matches no other."""
    generator = np.random.default_rng(settings.seed)
    num_hashes = settings.bands * settings.rows_per_band
    factors = generator.integers(0, _LOW_61_BITS, num_hashes, dtype=np.uint64) | np.uint64(1)
    offsets = generator.integers(0, _LOW_61_BITS, num_hashes, dtype=np.uint64)
    signatures = np.empty((cells.shape[0], num_hashes), np.uint64)
    _fill_signatures(cells.indptr, cells.indices, factors, offsets, _LOW_61_BITS, signatures)
    few = np.diff(cells.indptr) < settings.min_genes
    signatures[few] = np.flatnonzero(few).astype(np.uint64)[:, None] + _LOW_61_BITS
    return signatures


@numba.njit(cache=True)
def _fill_signatures(indptr, indices, factors, offsets, mask, signatures):
    for cell in range(len(indptr) - 1):
        for h in range(len(factors)):
            smallest = mask
            for position in range(indptr[cell], indptr[cell + 1]):
                hashed = (np.uint64(indices[position] + 1) * factors[h] + offsets[h]) & mask
                smallest = min(smallest, hashed)
            signatures[cell, h] = smallest


def _candidate_pairs(signatures: np.ndarray, settings: DuplicateSettings) -> np.ndarray:
    """Pairs of rows that agree in at least one band."""
    found = set()
    for band in range(settings.bands):
        part = signatures[:, band * settings.rows_per_band : (band + 1) * settings.rows_per_band]
        keys = np.ascontiguousarray(part).view(f"V{part.shape[1] * 8}").ravel()
        _, bucket_of = np.unique(keys, return_inverse=True)
        order = np.argsort(bucket_of, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(bucket_of[order])) + 1):
            if 1 < len(bucket) <= settings.max_bucket:
                left, right = np.triu_indices(len(bucket), 1)
                found.update(zip(bucket[left].tolist(), bucket[right].tolist(), strict=True))
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def _jaccard(cells: sp.csr_matrix, pairs: np.ndarray) -> np.ndarray:
    expressed = sp.csr_matrix((np.ones(cells.nnz, np.float32), cells.indices, cells.indptr), shape=cells.shape)
    shared = np.concatenate(
        [
            np.asarray(expressed[part[:, 0]].multiply(expressed[part[:, 1]]).sum(axis=1)).ravel()
            for part in np.array_split(pairs, max(1, len(pairs) // 50_000))
        ]
    )
    num_genes = np.diff(cells.indptr)
    return shared / np.maximum(num_genes[pairs[:, 0]] + num_genes[pairs[:, 1]] - shared, 1)
