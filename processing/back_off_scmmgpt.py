"""From the probabilities of candidate labels to calls, backing off in the Cell Ontology where they are too low."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from .cell_matrix_scmmgpt import parts
from .errors_scmmgpt import UserError
from .label_sets_scmmgpt import Groups
from .labels_scmmgpt import UNKNOWN, LabelSet
from .ontology_scmmgpt import Ontology


class Calls(NamedTuple):
    """One call per cell: parallel arrays of length N."""

    labels: np.ndarray
    term_ids: np.ndarray
    confidence: np.ndarray
    second_choices: np.ndarray

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The calls by the names of the `obs` columns that keep them, without prefix."""
        names = "cell_type", "cell_type_ontology_term_id", "confidence", "second_choice"
        return dict(zip(names, self, strict=True))

    def with_unknown(self, rows: np.ndarray) -> "Calls":
        """The same calls, with some cells unknown whatever the model says about them."""
        return self._replace(
            labels=np.where(rows, UNKNOWN, self.labels),
            term_ids=np.where(rows, UNKNOWN, self.term_ids),
            confidence=np.where(rows, np.float32(0), self.confidence),
        )


def check_min_confidence(min_confidence: float | None) -> None:
    """Refuse what is no probability; None leaves the choice to the model."""
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise UserError(f"min_confidence must lie between 0 and 1, got {min_confidence}.")


class BackOff:
    """Turns probabilities into calls; where they are too low, backs off to ancestors in the ontology: step 5."""

    def __init__(self, labels: LabelSet, ontology: Ontology, min_confidence: float):
        self.labels = labels
        self.min_confidence = min_confidence
        self._names = np.array(labels.labels, dtype=object)
        self._ids = np.array([term_id or UNKNOWN for term_id in labels.term_ids], dtype=object)
        # Of two names for one term the first counts.
        self._given = dict(zip(reversed(labels.term_ids), reversed(labels.labels), strict=True))
        self._ontology = ontology
        groups = Groups.of(labels, ontology)
        self._groups, self._membership = groups.term_ids, groups.membership
        self._chance = np.asarray(self._membership.sum(axis=0)).ravel() / len(labels)

    def calls(self, probabilities: np.ndarray) -> Calls:
        """The call for each row of (N, C) probabilities."""
        best, second = _two_best(probabilities)
        calls = Calls(
            self._names[best],
            self._ids[best],
            probabilities[np.arange(len(best)), best].astype(np.float32),
            self._names[second] if len(self._names) > 1 else np.full(len(best), UNKNOWN, dtype=object),
        )
        low = np.flatnonzero(calls.confidence < self.min_confidence)
        if len(low):
            self._back_off(calls, low, probabilities[low], best[low])
        return calls

    def _back_off(self, calls: Calls, low: np.ndarray, probabilities: np.ndarray, best: np.ndarray) -> None:
        calls.labels[low] = calls.term_ids[low] = UNKNOWN
        if not self._groups:
            return
        mass = probabilities @ self._membership
        holds_best = self._membership[best].toarray() > 0
        enough = holds_best & ((mass - self._chance) / (1 - self._chance) >= self.min_confidence)
        found = enough.any(axis=1)
        group = enough.argmax(axis=1)  # groups are sorted: the most specific comes first
        for row, place, chosen in zip(low[found], np.flatnonzero(found), group[found], strict=True):
            term_id = self._groups[chosen]
            calls.labels[row] = self._given.get(term_id, self._ontology.terms[term_id].label)
            calls.term_ids[row] = term_id
            calls.confidence[row] = mass[place, chosen]


def _two_best(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best and the second best column of each row, without sorting thousands of others."""
    best = probabilities.argmax(axis=1)
    others = probabilities.copy()
    np.put_along_axis(others, best[:, None], -1, axis=1)
    return best, others.argmax(axis=1)


def call_cells(
    num_cells: int,
    probabilities: Callable[[slice], np.ndarray],
    back_off: BackOff,
    clusters: np.ndarray | None = None,
) -> Calls:
    """Call every cell, or every cluster (a number for each cell) by the mean probability of its cells.

    `probabilities` gives those of some rows, (rows, C).
    """
    if clusters is None:
        blocks = [back_off.calls(probabilities(rows)) for rows in parts(num_cells)]
        return Calls(*map(np.concatenate, zip(*blocks, strict=True)))
    return Calls(*(column[clusters] for column in back_off.calls(group_means(probabilities, clusters))))


def group_means(values: Callable[[slice], np.ndarray], groups: np.ndarray) -> np.ndarray:
    """(groups, C): means of the values (rows, C) over the cells of each group, of which every cell names its own."""
    sizes = np.bincount(groups)
    total: np.ndarray | float = 0.0
    for rows in parts(len(groups)):
        group = groups[rows]
        place = sparse.csr_array((np.ones(len(group)), (group, np.arange(len(group)))), (len(sizes), len(group)))
        total = total + place @ np.asarray(values(rows), dtype=np.float64)
    return np.asarray(total) / sizes[:, None]
