"""How two groups of cells differ: energy distance with its permutation test, and the genes that change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

# Distances of so many cells of a group are looked at: the response sizes of types of any size can be compared.
MAX_CELLS = 500
NUM_PERMUTATIONS = 999
# Fewer say nothing: a test over them cannot reach any level that one would report.
MIN_CELLS = 5
LEAST_CELLS_OF_GENE, LEAST_SHARE_OF_GENE = 3, 0.005
LEAST_FOLD_CHANGE = 0.25  # of log2
SIGNIFICANT = 0.05
# Of donors in both groups so many make the genes' test one over donors, which are independent; cells of one are not.
MIN_DONORS = 3
_PSEUDOCOUNT = 0.1  # of counts per 10,000


@dataclass(frozen=True)
class EnergyTest:
    """The energy distance of two samples, and the share of permutations that reach it."""

    distance: float
    p_value: float


def energy_test(
    vectors: np.ndarray,
    is_treated: np.ndarray,
    strata: np.ndarray | None = None,
    *,
    num_permutations: int = NUM_PERMUTATIONS,
    seed: int = 0,
) -> EnergyTest:
    """Energy distance of treated and other vectors, without the bias of small samples, and its permutation test.

    2 E|X - Y| - E|X - X'| - E|Y - Y'|; about 0 where both are drawn from one distribution, and below 0 by chance.

    Parameters
    ----------
    vectors
        Cells x dimensions.
    is_treated
        Which cells are treated; at least two of either.
    strata
        Groups (donors) within which treatments are permuted, so that donors explain nothing.
    num_permutations, seed
        How many permutations; the same seed gives the same ones.
    """
    random = np.random.default_rng(seed)
    distances = _pairwise(vectors)
    permuted = np.array([is_treated, *(_permuted(is_treated, strata, random) for _ in range(num_permutations))])
    found = _energy(distances, permuted.astype(np.float64))
    reached = int((found[1:] >= found[0] - 1e-12).sum())
    return EnergyTest(float(found[0]), (1 + reached) / (1 + num_permutations))


def _pairwise(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    squares = (vectors**2).sum(axis=1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * vectors @ vectors.T, 0))


def _permuted(is_treated: np.ndarray, strata: np.ndarray | None, random: np.random.Generator) -> np.ndarray:
    if strata is None:
        return random.permutation(is_treated)
    result = is_treated.copy()
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        result[members] = is_treated[random.permutation(members)]
    return result


def _energy(distances: np.ndarray, treated: np.ndarray) -> np.ndarray:
    """Energy distance for each row of `treated`, which says with ones who is treated."""
    num_treated = treated.sum(axis=1)
    num_others = treated.shape[1] - num_treated
    to_treated = treated @ distances
    within = (to_treated * treated).sum(axis=1)
    between = (to_treated * (1 - treated)).sum(axis=1)
    among_others = distances.sum() - within - 2 * between
    return (
        2 * between / (num_treated * num_others)
        - within / np.maximum(num_treated * (num_treated - 1), 1)
        - among_others / np.maximum(num_others * (num_others - 1), 1)
    )


def false_discovery_rates(p_values: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's rates."""
    return stats.false_discovery_control(p_values) if len(p_values) else np.empty(0)


def sample(is_treated: np.ndarray, *, most: int = MAX_CELLS, seed: int = 0) -> np.ndarray:
    """Places of at most so many treated cells and others."""
    order = np.random.default_rng(seed).permutation(len(is_treated))
    return np.sort(np.concatenate([order[is_treated[order] == side][:most] for side in (True, False)]))


@dataclass(frozen=True)
class GeneChanges:
    """log2 fold change of the mean, p-value and false discovery rate of each tested gene, by its column."""

    columns: np.ndarray
    log2_fold_change: np.ndarray
    p_value: np.ndarray
    fdr: np.ndarray

    @property
    def is_changed(self) -> np.ndarray:
        """Which of them are significant and large enough."""
        return (self.fdr < SIGNIFICANT) & (np.abs(self.log2_fold_change) >= LEAST_FOLD_CHANGE)

    def top(self, direction: int, number: int = 5) -> np.ndarray:
        """Columns of those that change most, up (1) or down (-1), the surest first."""
        chosen = np.flatnonzero(self.is_changed & (np.sign(self.log2_fold_change) == direction))
        order = np.lexsort((-np.abs(self.log2_fold_change[chosen]), self.p_value[chosen]))
        return self.columns[chosen[order[:number]]]


def gene_changes(
    expression: sparse.csr_array,
    is_treated: np.ndarray,
    donors: np.ndarray | None = None,
    *,
    least_share: float = 0.02,
) -> GeneChanges:
    """Genes of treated cells against the others: over donors in both, paired, where there are three; else over cells.

    `expression` is log1p of counts per 10,000. Genes that few of the cells express are not tested.
    """
    treated, others = expression[is_treated], expression[~is_treated]
    num_cells = np.asarray((expression > 0).sum(axis=0)).ravel()
    columns = np.flatnonzero(num_cells >= max(LEAST_CELLS_OF_GENE, LEAST_SHARE_OF_GENE * len(is_treated)))
    treated, others = (part[:, columns].toarray() for part in (treated, others))
    fold = np.log2((np.expm1(treated).mean(axis=0) + _PSEUDOCOUNT) / (np.expm1(others).mean(axis=0) + _PSEUDOCOUNT))
    pairs = None if donors is None else donor_differences(treated, others, donors[is_treated], donors[~is_treated])
    if pairs is not None and len(pairs) >= MIN_DONORS:
        with np.errstate(invalid="ignore", divide="ignore"):
            t = pairs.mean(axis=0) / (pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs)))
        p_values = 2 * stats.t.sf(np.abs(np.nan_to_num(t)), len(pairs) - 1)
    else:
        p_values = stats.mannwhitneyu(treated, others, axis=0, method="asymptotic").pvalue
    p_values = np.nan_to_num(p_values, nan=1.0)
    return GeneChanges(columns, fold, p_values, false_discovery_rates(p_values))


def donor_differences(
    treated: np.ndarray, others: np.ndarray, donors_treated: np.ndarray, donors_others: np.ndarray
) -> np.ndarray:
    """log2 fold change of the means of each donor that has cells of both kinds: donors x genes."""
    both = np.intersect1d(donors_treated, donors_others)
    means = [
        [np.log2(np.expm1(part[donors == donor]).mean(axis=0) + _PSEUDOCOUNT) for donor in both]
        for part, donors in ((treated, donors_treated), (others, donors_others))
    ]
    return np.array(means[0]) - np.array(means[1]) if len(both) else np.empty((0, treated.shape[1]))
