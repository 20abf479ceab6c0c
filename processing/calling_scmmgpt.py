"""From similarities between cells and labels to calls: confidence, second choice, back-off in the tree.

The steps, in order, for N cells and C candidates:

1. logits = similarity x the model's scale, minus the class bias of `calibration.json`.
2. Prior correction: from each label's logits a share of their mean over the data is taken away, so that a label that
   the model likes for every cell does not win everywhere. It assumes roughly even types, and is therefore off
   under 100 cells and when one label wins more than 60 % of them.
3. Where the model directory holds profiles of its types, how well a cell agrees with them, in comparison with the other
   cells, is added to the logits. It needs a study as the prior correction does, and is off where that is.
4. confidence = softmax(logits / temperature), with the temperature fitted for this number of candidates.
5. Below `min_confidence` a call moves to the most specific ancestor whose candidates together reach it, else "unknown".
   An ancestor of k of the n candidates collects k/n by chance alone, so it must reach `min_confidence` beyond that:
   (confidence - k/n) / (1 - k/n). What all candidates have in common is never an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import softmax

from .calibration_scmmgpt import Calibration
from .cell_matrix_scmmgpt import parts
from .labels_scmmgpt import UNKNOWN, LabelSet
from .ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology
from .type_profiles_scmmgpt import Agreement

MIN_CELLS_FOR_PRIOR = 100
MAX_SHARE_OF_ONE_LABEL = 0.6


@dataclass
class Calls:
    """One call per cell: parallel arrays of length N."""

    labels: np.ndarray
    term_ids: np.ndarray
    confidence: np.ndarray
    second_choices: np.ndarray

    @classmethod
    def empty(cls, num_cells: int) -> Calls:
        names = [np.full(num_cells, UNKNOWN, dtype=object) for _ in range(3)]
        return cls(names[0], names[1], np.zeros(num_cells, dtype=np.float32), names[2])

    def put(self, rows: slice | np.ndarray, calls: Calls) -> None:
        for name in ("labels", "term_ids", "confidence", "second_choices"):
            getattr(self, name)[rows] = getattr(calls, name)

    def take(self, rows: np.ndarray) -> Calls:
        return Calls(self.labels[rows], self.term_ids[rows], self.confidence[rows], self.second_choices[rows])


class Scorer:
    """Calibrated probabilities of the candidates for any rows of the data.

    Parameters
    ----------
    cell_embeds, label_embeds
        Unit vectors, (N, D) and (C, D).
    scale
        The model's logit scale.
    prior_share
        None takes the calibration's, and turns it off where the assumption does not hold. A number is obeyed; 0 judges
        every cell by itself.
    agreement
        How well the cells agree with the profiles of types; None: there are none.
    term_ids
        What the candidates mean, if that is more than `labels` knows: free text may be understood.
    """

    def __init__(
        self,
        cell_embeds: np.ndarray,
        label_embeds: np.ndarray,
        labels: LabelSet,
        calibration: Calibration,
        *,
        scale: float,
        prior_share: float | None = None,
        agreement: Agreement | None = None,
        term_ids: Sequence[str | None] | None = None,
    ):
        self.cell_embeds = cell_embeds
        self.weights = (label_embeds * scale).astype(np.float32)
        self.bias = calibration.bias_of(labels.labels, term_ids or labels.term_ids)
        self.temperature = calibration.temperature(len(labels))
        self.agreement, self.profile_weight = agreement, 0.0
        is_study = self._is_study() if prior_share is None else prior_share != 0
        self.prior_share = (calibration.prior_share if prior_share is None else prior_share) if is_study else 0.0
        if self.prior_share:
            self.bias = self.bias + self.prior_share * self._mean_logits()
        if is_study and agreement is not None:
            self.profile_weight = calibration.profile_weight

    def logits(self, rows: slice | np.ndarray) -> np.ndarray:
        logits = np.asarray(self.cell_embeds[rows], dtype=np.float32) @ self.weights.T - self.bias
        if self.agreement is None or not self.profile_weight:
            return logits
        return logits + self.profile_weight * self.agreement.evidence(rows, logits.shape[1])

    def probabilities(self, rows: slice | np.ndarray) -> np.ndarray:
        return softmax(self.logits(rows) / self.temperature, axis=1)

    def _mean_logits(self) -> np.ndarray:
        mean_cell = np.mean(self.cell_embeds, axis=0, dtype=np.float64).astype(np.float32)
        mean = mean_cell @ self.weights.T - self.bias
        return mean - mean.mean()

    def _is_study(self) -> bool:
        """Whether there are enough cells, of more than one type, to compare them with one another."""
        num_cells, num_labels = len(self.cell_embeds), len(self.bias)
        if num_cells < MIN_CELLS_FOR_PRIOR or num_labels < 2:
            return False
        wins = np.zeros(num_labels)
        for rows in parts(num_cells):
            wins += np.bincount(self.logits(rows).argmax(axis=1), minlength=num_labels)
        return bool(wins.max() <= MAX_SHARE_OF_ONE_LABEL * num_cells)


def rerank(probabilities: np.ndarray, match: np.ndarray, candidates: np.ndarray, weight: float) -> np.ndarray:
    """Mix the matching head's opinion into the best candidates, which keep their common share.

    Parameters
    ----------
    probabilities
        (N, C).
    match, candidates
        (N, k): the matching head's probability that a candidate describes the cell, and which candidate it is.
    weight
        0 ignores the matching head, 1 trusts nothing else among the k.
    """
    best = np.take_along_axis(probabilities, candidates, axis=1)
    log_mixed = (1 - weight) * np.log(best + 1e-12) + weight * np.log(match + 1e-12)
    result = probabilities.copy()
    np.put_along_axis(result, candidates, softmax(log_mixed, axis=1) * best.sum(axis=1, keepdims=True), axis=1)
    return result


class Caller:
    """Turns probabilities into calls, backing off in the tree where they are too low."""

    def __init__(self, labels: LabelSet, ontology: Ontology, min_confidence: float):
        self.labels = labels
        self.min_confidence = min_confidence
        self._names = np.array(labels.labels, dtype=object)
        self._ids = np.array([labels.term_id_or_unknown(index) for index in range(len(labels))], dtype=object)
        # Of two names for one term the first counts.
        self._given = dict(zip(reversed(labels.term_ids), reversed(labels.labels), strict=True))
        self._ontology = ontology
        self._groups, self._membership = self._collect_groups()
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

    def _collect_groups(self) -> tuple[list[str], sparse.csr_array]:
        """Ancestors that hold several candidates, most specific first, and which candidates each holds."""
        members: dict[str, list[int]] = {}
        for index, term_id in enumerate(self.labels.term_ids):
            for ancestor in [term_id, *self._ontology.ancestors(term_id)] if term_id else []:
                members.setdefault(ancestor, []).append(index)
        informative = {
            term_id: held
            for term_id, held in members.items()
            if 1 < len(held) < len(self.labels)
            and term_id not in UNINFORMATIVE_TERMS
            and term_id in self._ontology.terms
        }
        if not informative or self.min_confidence == 0:
            return [], sparse.csr_array((len(self.labels), 0))
        # Among ancestors of the same candidates the deepest says most.
        depth = {term_id: len(self._ontology.ancestors(term_id)) for term_id in informative}
        groups = sorted(informative, key=lambda term_id: (len(informative[term_id]), -depth[term_id], term_id))
        columns = np.repeat(np.arange(len(groups)), [len(informative[group]) for group in groups])
        rows = np.concatenate([informative[group] for group in groups])
        shape = (len(self.labels), len(groups))
        return groups, sparse.csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)


def _two_best(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best and the second best column of each row, without sorting thousands of others."""
    best = probabilities.argmax(axis=1)
    others = probabilities.copy()
    np.put_along_axis(others, best[:, None], -1, axis=1)
    return best, others.argmax(axis=1)


def call_cells(
    num_cells: int,
    probabilities: Callable[[slice], np.ndarray],
    caller: Caller,
    clusters: np.ndarray | None = None,
) -> Calls:
    """Call every cell, or every cluster by the mean probability of its cells.

    Parameters
    ----------
    num_cells
        N.
    probabilities
        Rows -> (rows, C).
    caller
        What turns probabilities into calls.
    clusters
        A cluster number for each cell; None calls each cell by itself.
    """
    if clusters is None:
        calls = Calls.empty(num_cells)
        for rows in parts(num_cells):
            calls.put(rows, caller.calls(probabilities(rows)))
        return calls
    num_clusters = int(clusters.max()) + 1
    total = np.zeros((num_clusters, len(caller.labels)), dtype=np.float64)
    for rows in parts(num_cells):
        np.add.at(total, clusters[rows], probabilities(rows))
    return caller.calls(total / np.bincount(clusters, minlength=num_clusters)[:, None]).take(clusters)
