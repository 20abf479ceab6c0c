"""Which labels a study holds: the few names that together say most about its communities of cells.

A name agrees with a type by the F1 of their ancestors in the ontology (each counts among its own, those that say nothing
do not count), so that a parent, a child and a sibling are partly right. What a name says about a community is the mean of its probability there and of its
expected agreement. Names are chosen greedily, and each must add a least share of the study: a name for a handful of
cells, or a second name for what another one already says, does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology

# How many times more than any other a type must add that stands above or below one that is held: two names for the
# same cells are worse than one.
RELATED = 5


@dataclass(frozen=True)
class Lineages:
    """What C labels have in common in the ontology.

    `agreement` (C, C) is how far each two say the same, from 0 to 1: free text agrees with itself alone. `is_above`
    (C, C) whether the first is a type above the second.
    """

    agreement: np.ndarray
    is_above: np.ndarray

    @property
    def is_parent(self) -> np.ndarray:
        """(C,) whether some other label is a type below it."""
        return np.asarray(self.is_above.any(axis=1))

    @classmethod
    def of(cls, term_ids: Sequence[str | None], ontology: Ontology) -> "Lineages":
        place: dict[str, int] = {}
        rows, columns = [], []
        for row, term_id in enumerate(term_ids):
            lineage = {term_id, *ontology.ancestors(term_id)} if term_id else set()
            for ancestor in sorted(lineage - UNINFORMATIVE_TERMS):
                rows.append(row)
                columns.append(place.setdefault(ancestor, len(place)))
        counts = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), (len(term_ids), len(place)))
        shared, sizes = (counts @ counts.T).toarray(), np.asarray(counts.sum(axis=1)).ravel()
        agreement = 2 * shared / np.maximum(sizes[:, None] + sizes, 1)
        np.fill_diagonal(agreement, 1)
        return cls(agreement, (shared == sizes[:, None]) & (sizes[:, None] > 0) & (sizes[:, None] < sizes))


def held_labels(
    probabilities: np.ndarray, num_cells: np.ndarray, lineages: Lineages, least_share: float
) -> np.ndarray:
    """The labels that a study holds, by index, in order: those that each add at least `least_share` to what is said.

    `probabilities` (K, C) are those of its K communities, `num_cells` (K,) their sizes. Of a type and one above it both
    are held only where each adds several times that.
    """
    said = (probabilities + probabilities @ lineages.agreement) / 2
    weight = num_cells / num_cells.sum()

    def lost(label: int, others: list[int]) -> float:
        """What would no longer be said without a label."""
        return float(weight @ np.maximum(said[:, label] - said[:, others].max(axis=1, initial=0), 0))

    held: list[int] = []
    while True:
        best = said[:, held].max(axis=1, initial=0)
        gain = weight @ np.maximum(said - best[:, None], 0)
        chosen = int(gain.argmax())
        if held and gain[chosen] <= least_share:
            break
        for label in list(held):
            others = [one for one in held if one != label]
            if lost(label, [*others, chosen]) <= least_share:
                held = others
        held.append(chosen)
    while True:
        related = [one for one in held if lineages.is_above[one, held].any() or lineages.is_above[held, one].any()]
        losses = {one: lost(one, [other for other in held if other != one]) for one in sorted(related)}
        weakest = min(losses, key=lambda one: losses[one], default=None)
        if weakest is None or losses[weakest] > RELATED * least_share:
            return np.array(sorted(held))
        held.remove(weakest)


def names_of_held(
    held: np.ndarray, probabilities: np.ndarray, num_cells: np.ndarray, lineages: Lineages, least_part: float
) -> np.ndarray:
    """The names of held labels, by index: a type above one where that has too small a part of what is said below it.

    Held labels are the most specific that fit best; `probabilities` (K, C) are of all labels, parents among them. A
    type above two held labels names neither: the study tells them apart.
    """
    best = held[probabilities[:, held].argmax(axis=1)]
    within = lineages.is_above | np.eye(len(lineages.is_above), dtype=bool)
    names = []
    for label in held:
        said = num_cells[best == label] @ probabilities[best == label]
        name = label
        above = np.flatnonzero(lineages.is_above[:, label])
        for parent in above[np.argsort(lineages.is_above[above].sum(axis=1), kind="stable")]:
            if within[parent, held].sum() > 1:
                break
            if within[parent, name] and said[within[name]].sum() < least_part * said[within[parent]].sum():
                name = parent
        names.append(name)
    return np.array(names)
