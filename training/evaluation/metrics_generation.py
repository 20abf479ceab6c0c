"""Numbers about pseudo-cells: are they of the asked type, spread like real cells, and not copies of training cells.

Pure functions of matrices cells x features. `log_expression` and `principal_space` (in training/evaluation/expression.py) bring
counts to the spaces meant here. Every number wants two companions: real against real, and the floor of
`baselines.NegativeBinomialGenerator`.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from .metrics import Labels, auroc

MOST_CELLS_FOR_PAIRS = 1000  # distances between all pairs: memory and time grow with the square
MOST_CELLS_FOR_GROMOV = 250


def neighbour_accuracy(
    real: np.ndarray, real_types: Labels, generated: np.ndarray, asked_types: Labels, k: int
) -> float:
    """Share of generated cells whose k nearest real cells have, by majority, the type that was asked for.

    Ties go to the type of the nearest among the tied (Cell2Sentence's protocol: k = 3, 5, 10, 25).
    """
    if k > len(real):
        raise ValueError(f"k = {k} neighbours were asked for and the reference holds {len(real)} cells.")
    real_types, codes = np.unique(np.asarray(real_types).astype(str), return_inverse=True)
    asked_types = np.asarray(asked_types).astype(str)
    hits = 0
    for start in range(0, len(generated), 1000):
        distance = cdist(generated[start : start + 1000], real)
        near = np.argsort(distance, axis=1, kind="stable")[:, :k]
        for asked, neighbours in zip(asked_types[start:], codes[near], strict=False):
            votes = np.bincount(neighbours, minlength=len(real_types))
            winners = np.flatnonzero(votes == np.max(votes))
            winner = next(code for code in neighbours if code in winners)
            hits += real_types[winner] == asked
    return hits / len(generated)


def maximum_mean_discrepancy(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> float:
    """Squared MMD, unbiased, with a Gaussian kernel as wide as the median distance within `second` (the real one).

    Zero on average for two samples of one distribution, so a small one may be below zero.
    """
    generator = np.random.default_rng(seed)
    first, second = (_at_most(rows, MOST_CELLS_FOR_PAIRS, generator) for rows in (first, second))
    within_second = cdist(second, second, "sqeuclidean")
    width = np.median(within_second[np.triu_indices(len(second), 1)]) or 1.0
    kernel_11 = np.exp(-cdist(first, first, "sqeuclidean") / width)
    kernel_22 = np.exp(-within_second / width)
    kernel_12 = np.exp(-cdist(first, second, "sqeuclidean") / width)
    return float(_mean_off_diagonal(kernel_11) + _mean_off_diagonal(kernel_22) - 2 * kernel_12.mean())


def sliced_wasserstein(first: np.ndarray, second: np.ndarray, *, num_directions: int = 200, seed: int = 0) -> float:
    """Wasserstein-2 distance between two clouds, averaged (in squares) over random directions."""
    generator = np.random.default_rng(seed)
    size = min(len(first), len(second))
    first, second = (_at_most(rows, size, generator) for rows in (first, second))
    directions = generator.normal(size=(first.shape[1], num_directions))
    directions /= np.linalg.norm(directions, axis=0)
    gap = np.sort(first @ directions, axis=0) - np.sort(second @ directions, axis=0)
    return float(np.sqrt(np.mean(gap**2)))


def gromov_wasserstein(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> float:
    """Gromov-Wasserstein discrepancy of the two clouds' inner distances, scaled by the mean of the second (POT).

    It compares shapes and not places: a cloud moved elsewhere is at distance 0. NaN where POT is not installed.
    """
    try:
        from ot.gromov import gromov_wasserstein2
    except ImportError:
        return float("nan")
    generator = np.random.default_rng(seed)
    first, second = (_at_most(rows, MOST_CELLS_FOR_GROMOV, generator) for rows in (first, second))
    distance_1, distance_2 = cdist(first, first), cdist(second, second)
    scale = distance_2.mean() or 1.0
    return float(gromov_wasserstein2(distance_1 / scale, distance_2 / scale, symmetric=True))


def distribution_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples of one number, in standard deviations of the second (the real one).

    For library size give log10 of the totals, for sparsity the share of genes seen, for a marker its expression.
    """
    return float(wasserstein_distance(first, second) / (np.std(second) or 1.0))


def real_or_generated_auc(real: np.ndarray, generated: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """How well a classifier tells real from generated, cross-validated: 0.5 is a perfect forgery, 1 an obvious one.

    `linear` (logistic regression) sees means, `forest` (random forest) also spread and dependence between features.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    size = min(len(real), len(generated))
    generator = np.random.default_rng(seed)
    cells = np.vstack([_at_most(real, size, generator), _at_most(generated, size, generator)])
    is_generated = np.repeat([0, 1], size)
    folds = StratifiedKFold(min(5, size), shuffle=True, random_state=seed)
    classifiers = {
        "linear": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)),
        "forest": RandomForestClassifier(100, min_samples_leaf=3, random_state=seed),
    }
    return {
        name: auroc(cross_val_predict(c, cells, is_generated, cv=folds, method="predict_proba")[:, 1], is_generated)
        for name, c in classifiers.items()
    }


def nearest_training_ratio(generated: np.ndarray, held_out: np.ndarray, training: np.ndarray) -> float:
    """Median distance to the nearest training cell, generated cells over held-out real cells: far below 1 is copying."""
    return float(np.median(_nearest(generated, training)) / np.median(_nearest(held_out, training)))


def component_variance_ratios(
    real: np.ndarray, generated: np.ndarray, ruler: np.ndarray, num_components: int = 10
) -> np.ndarray:
    """Variance of generated over variance of real cells of one type along real principal components.

    The components are those of `ruler`, other real cells of the type: along components fitted on `real` itself its
    variance would be inflated by its own noise.
    """
    _, _, directions = np.linalg.svd(ruler - ruler.mean(0), full_matrices=False)
    directions = directions[: min(num_components, len(ruler) - 1)].T
    return np.var(generated @ directions, axis=0) / np.maximum(np.var(real @ directions, axis=0), 1e-12)


def share_within_factor(ratios: np.ndarray, factor: float = 3.0) -> float:
    """Share of ratios between 1/factor and factor."""
    return float(np.mean((ratios >= 1 / factor) & (ratios <= factor)))


def covariance_agreement(real: np.ndarray, generated: np.ndarray, num_genes: int = 200) -> float:
    """Correlation, over pairs of genes, of real and generated gene-gene covariance within one type.

    Over the `num_genes` genes that vary most in the real cells. Cells whose genes are independent score about 0.
    """
    varied = np.argsort(-np.var(real, axis=0), kind="stable")[:num_genes]
    pairs = np.triu_indices(len(varied), 1)
    real_pairs = np.cov(real[:, varied], rowvar=False)[pairs]
    generated_pairs = np.cov(generated[:, varied], rowvar=False)[pairs]
    if np.std(real_pairs) == 0 or np.std(generated_pairs) == 0:
        return 0.0
    return float(np.corrcoef(real_pairs, generated_pairs)[0, 1])


def num_duplicates(counts: np.ndarray) -> int:
    """How many cells are an exact copy of an earlier one."""
    return len(counts) - len({row.tobytes() for row in np.ascontiguousarray(counts)})


def _nearest(cells: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.concatenate([cdist(cells[i : i + 1000], others).min(1) for i in range(0, len(cells), 1000)])


def _at_most(rows: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= most else rows[np.sort(generator.choice(len(rows), most, replace=False))]


def _mean_off_diagonal(matrix: np.ndarray) -> float:
    n = len(matrix)
    if n < 2:
        raise ValueError("The maximum mean discrepancy needs at least two cells on each side.")
    return (matrix.sum() - np.trace(matrix)) / (n * (n - 1))
