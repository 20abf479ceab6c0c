"""Sets of labels that hold the truth as often as they promise.

A set holds every label whose probability is not more than `gap` (of its logarithm) below the best one's. Where that
would be more than `MOST_LABELS`, nothing fits, and the set is the root of the ontology. A label stands for the types
below it as well. The gap is fitted so that in a new study, not among new cells of a known one, at most `MISS_RATE` of
the cells have a type that their set does not hold: conformal risk control, with studies as what is exchangeable.
"""

from collections.abc import Sequence

import numpy as np

MISS_RATE = 0.1
MOST_LABELS = 10
ROOT = "cell"
BETWEEN = " | "


def label_sets(probabilities: np.ndarray, labels: Sequence[str], gap: float) -> np.ndarray:
    """(N,) texts: the labels of each row's set, the most probable first."""
    order, distance = nearest_labels(probabilities)
    names = np.array(labels, dtype=object)
    sizes = set_sizes(distance, gap)
    return np.array(
        [BETWEEN.join(names[row[:size]]) if size else ROOT for row, size in zip(order, sizes, strict=True)],
        dtype=object,
    )


def nearest_labels(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, k) the best labels of each row, and how far their log probability lies below the best: one more than fit."""
    number = min(MOST_LABELS + 1, probabilities.shape[1])
    best = np.argpartition(-probabilities, number - 1, axis=1)[:, :number]
    best.sort(axis=1)  # labels of one probability keep the order in which they were given
    values = np.take_along_axis(probabilities, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best, values = np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
    logarithms = np.log(np.maximum(values, 1e-30))
    return best, logarithms[:, :1] - logarithms


def set_sizes(distance: np.ndarray, gap: float) -> np.ndarray:
    """How many of the nearest labels each row's set holds; 0: it is the root."""
    sizes = (distance <= gap).sum(axis=1)
    return np.where((sizes > MOST_LABELS) | ~np.isfinite(gap), 0, sizes)


def fitted_gap(studies: Sequence[tuple[np.ndarray, np.ndarray]], miss_rate: float = MISS_RATE) -> float:
    """The smallest gap that keeps the promise in a study like these; infinite where only the root does.

    Each study is the distances (N, k) of its cells' nearest labels and which of these hold the cell's type.
    """
    needed = [np.sort(_needed(distance, holds)) for distance, holds in studies]
    gaps = np.unique(np.concatenate([[0.0], *(values[np.isfinite(values)] for values in needed)]))
    missed = sum(1 - np.searchsorted(values, gaps, side="right") / len(values) for values in needed)
    enough = np.flatnonzero((missed + 1) / (len(needed) + 1) <= miss_rate)
    return float(gaps[enough[0]]) if len(enough) else float("inf")


def _needed(distance: np.ndarray, holds: np.ndarray) -> np.ndarray:
    """From which gap on each cell's set holds its type, or is the root."""
    held = np.where(holds, distance, np.inf).min(axis=1)
    return np.minimum(held, distance[:, MOST_LABELS]) if distance.shape[1] > MOST_LABELS else held


def share_held(distance: np.ndarray, holds: np.ndarray, gap: float) -> float:
    """The share of cells whose set holds their type."""
    sizes = set_sizes(distance, gap)
    within = np.arange(distance.shape[1]) < sizes[:, None]
    return float(np.mean((sizes == 0) | (holds & within).any(axis=1)))
