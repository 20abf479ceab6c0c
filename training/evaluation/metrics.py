"""Numbers about labels: how often right, how far wrong, how sure, and how sure of that number.

Pure functions of arrays. `truth` and `predicted` hold one label a cell, `confidence` one probability a cell, `correct`
one truth value a cell. What a bootstrap repeats a thousand times is written in numpy; tests/test_metrics.py holds it
against scikit-learn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from scmmgpt.processing.labels_scmmgpt import UNKNOWN

from .type_tree import TypeTree

Labels = Sequence[str] | np.ndarray
Numbers = Sequence[float] | np.ndarray

FEWEST_DONORS = 5  # below this a resampling of donors has too few distinct outcomes to say anything


def accuracy(truth: Labels, predicted: Labels) -> float:
    """Share of cells with the right label."""
    truth, predicted = _codes(truth, predicted)
    return float(np.mean(truth == predicted))


def macro_f1(truth: Labels, predicted: Labels) -> float:
    """F1 averaged over the types that occur in `truth`, each type counting once however rare it is."""
    true_positive, num_true, num_predicted = _counts_per_true_type(truth, predicted)
    return float(np.mean(2 * true_positive / (num_true + num_predicted)))


def balanced_accuracy(truth: Labels, predicted: Labels) -> float:
    """Recall averaged over the types that occur in `truth`."""
    true_positive, num_true, _ = _counts_per_true_type(truth, predicted)
    return float(np.mean(true_positive / num_true))


def hierarchical_f1(truth: Labels, predicted: Labels, tree: TypeTree) -> float:
    """F1 between the lineages of the true and the given type, averaged over a type's cells, then over the true types.

    A lineage is the type with its ancestors in the Cell Ontology, without the root and the other terms that describe
    nearly any cell (`UNINFORMATIVE_TERMS`), so that strangers share nothing. "unknown" scores 0, as does any name that
    the ontology does not know, unless it is the very name of the type.
    """
    shared = _by_pair(truth, predicted, lambda true, named: _f1_of_sets(tree.lineage(true), tree.lineage(named)))
    return float(pd.Series(shared).groupby(np.asarray(truth, object)).mean().mean())


def meant_types(predicted: Labels, types: Sequence[str], tree: TypeTree, *, finer_counts: bool) -> np.ndarray:
    """The given names in the words of a study: of its own `types` the same term, else the name as it was.

    With `finer_counts` a name means the nearest type above it, as "CD4 T cell" does "T cell" where the study stops
    there.
    """
    same = {tree.find(name): name for name in types if tree.find(name)}
    meant = {
        name: (tree.nearest_of(name, types) if finer_counts else same.get(tree.find(name))) or name
        for name in set(predicted)
    }
    return np.array([meant[name] for name in predicted], object).astype(str)


def set_metrics(truth: Labels, sets: Sequence[Set[str]], tree: TypeTree) -> dict[str, float]:
    """How often sets of names, one a cell, hold the true type, how large they are, and how many say nothing.

    A set holds a type that it names (`exact_coverage`) or that lies below a term that it names (`coverage`), so that
    the root holds every type; the share of sets that name nothing better is `share_of_root`.
    """
    held = [frozenset(names) for names in sets]
    exact = _by_pair(truth, held, lambda true, names: (tree.find(true) or true) in {tree.find(n) or n for n in names})
    above = _by_pair(
        truth, held, lambda true, names: not tree.ancestors(true).keys().isdisjoint(map(tree.find, names))
    )
    return {
        "coverage": float(np.mean(exact | above)),
        "exact_coverage": float(np.mean(exact)),
        "mean_set_size": float(np.mean([len(names) for names in held])),
        "share_of_root": float(np.mean([is_root(names, tree) for names in held])),
    }


def is_root(names: Set[str], tree: TypeTree) -> bool:
    """Whether a set of names says nothing better than the root does."""
    return not frozenset().union(*map(tree.lineage, names)) - {UNKNOWN}


def per_type_table(truth: Labels, predicted: Labels) -> list[dict]:
    """One row a type of `truth`: cells, precision, recall, F1 and the wrong label it was given most often."""
    from sklearn.metrics import precision_recall_fscore_support

    truth, predicted = np.asarray(truth, object), np.asarray(predicted, object)
    names = sorted(set(truth))
    scores = precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "cells"), scores, strict=True)))
    wrong = (Counter(sorted(predicted[(truth == name) & (predicted != name)])) for name in names)
    most_often = [mistakes.most_common(1)[0][0] if mistakes else "" for mistakes in wrong]
    return table.assign(type=names, most_often_taken_for=most_often).to_dict("records")


def exact_or_parent_hits(truth: Labels, predicted: Labels, tree: TypeTree) -> np.ndarray:
    """For each cell, whether its label is right or a direct parent of the right one in the Cell Ontology."""
    return _by_pair(truth, predicted, lambda true, named: true == named or tree.is_parent(named, of=true))


def ontology_distance(truth: Labels, predicted: Labels, tree: TypeTree) -> tuple[float, float]:
    """Mean number of is-a steps between true and given type, and the share of cells where both are in the ontology.

    A right label is at distance 0. Cells whose true or given label the ontology does not know are left out of the
    mean, which is why their share comes with it.
    """
    steps = _by_pair(truth, predicted, tree.distance).astype(float)
    known = np.isfinite(steps)
    return (float(steps[known].mean()) if known.any() else float("nan")), float(known.mean())


class Interval(NamedTuple):
    """A bootstrap interval and what was resampled ("donors" or "cells")."""

    low: float
    high: float
    unit: str


def bootstrap_interval(
    metric: Callable[..., float],
    *arrays: Labels | Numbers,
    donors: Labels | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `metric(*arrays)`, over donors when there are at least five, else over cells.

    Cells of one donor are not independent, so with donors at hand whole donors are drawn with replacement.
    """
    columns = _texts_as_codes(arrays)
    num_cells = len(columns[0])
    members = _cells_of_donors(donors)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        if members is None:
            drawn = generator.integers(num_cells, size=num_cells)
        else:
            drawn = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        values.append(metric(*[column[drawn] for column in columns]))
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), "cells" if members is None else "donors")


def expected_calibration_error(confidence: Numbers, correct: Numbers, num_bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by cells (Guo et al. 2017)."""
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gap = np.bincount(bins, weights=confidence - correct, minlength=num_bins)
    return float(np.abs(gap).sum() / len(confidence))


def risk_coverage(confidence: Numbers, correct: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Coverage (share of cells answered, surest first) and risk (share of those answered wrongly).

    Cells of equal confidence are answered together: each stands in at their common error rate, so that the order of
    the input does not matter.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    order = np.argsort(-confidence, kind="stable")
    _, tie = np.unique(-confidence[order], return_inverse=True)
    error = 1 - correct[order]
    error = (np.bincount(tie, weights=error) / np.bincount(tie))[tie]
    answered = np.arange(1, len(error) + 1)
    return answered / len(error), np.cumsum(error) / answered


def area_under_risk_coverage(confidence: Numbers, correct: Numbers) -> float:
    """Mean risk over all coverages: 0 is perfect, the plain error rate means that confidence says nothing."""
    return float(np.mean(risk_coverage(confidence, correct)[1]))


def accuracy_at_coverage(confidence: Numbers, correct: Numbers, coverage: float = 0.8) -> float:
    """Accuracy on the surest `coverage` of the cells."""
    covered, risk = risk_coverage(confidence, correct)
    return float(1 - risk[np.searchsorted(covered, coverage - 1e-9)])


def auroc(score: Numbers, positive: Numbers) -> float:
    """Chance that a positive cell scores above a negative one, ties counting half; NaN if either kind is absent."""
    positive = np.asarray(positive, bool)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    rank_sum = rankdata(score)[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _f1_of_sets(first: Set, second: Set) -> float:
    return 2 * len(first & second) / max(len(first) + len(second), 1)


def _counts_per_true_type(truth: Labels, predicted: Labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth, predicted = _codes(truth, predicted)
    num_types = max(truth.max(), predicted.max()) + 1
    num_true = np.bincount(truth, minlength=num_types)
    num_predicted = np.bincount(predicted, minlength=num_types)
    true_positive = np.bincount(truth[truth == predicted], minlength=num_types)
    occurs = num_true > 0
    return true_positive[occurs], num_true[occurs], num_predicted[occurs]


def _codes(truth: Labels, predicted: Labels) -> tuple[np.ndarray, np.ndarray]:
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(f"Truth holds {len(truth)} labels and prediction {len(predicted)}: same number, above 0.")
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.dtype.kind in "iu" and predicted.dtype.kind in "iu" and min(truth.min(), predicted.min()) >= 0:
        return truth, predicted  # codes already: the bootstrap comes here a thousand times
    codes = np.unique(np.concatenate([truth, predicted]).astype(str), return_inverse=True)[1]
    return codes[: len(truth)], codes[len(truth) :]


def _texts_as_codes(arrays: Sequence[Labels | Numbers]) -> list[np.ndarray]:
    """Text columns become numbers from one shared list, so that equal text stays equal across columns."""
    columns = [np.asarray(array) for array in arrays]
    texts = [column for column in columns if column.dtype.kind in "OUS"]
    if not texts:
        return columns
    code = {text: i for i, text in enumerate(dict.fromkeys(np.concatenate([t.astype(object) for t in texts])))}
    return [np.array([code[text] for text in c]) if c.dtype.kind in "OUS" else c for c in columns]


def _cells_of_donors(donors: Labels | None) -> list[np.ndarray] | None:
    if donors is None:
        return None
    members = list(pd.Series(donors).groupby(np.asarray(donors).astype(str)).indices.values())
    return members if len(members) >= FEWEST_DONORS else None


def _by_pair(truth: Labels, predicted: Labels | Sequence[Set[str]], compare: Callable) -> np.ndarray:
    """`compare(true, given)` for every cell, asked once for each distinct pair."""
    pairs = list(zip(truth, predicted, strict=True))
    answer = {pair: compare(*pair) for pair in set(pairs)}
    return np.array([answer[pair] for pair in pairs])
