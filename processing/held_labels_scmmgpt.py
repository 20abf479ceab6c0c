"""Which labels a study holds: the few names that together say most about its communities of cells.

A name agrees with a type by the F1 of their ancestors in the ontology (each counts among its own, those that say nothing
do not count), so that a parent, a child and a sibling are partly right. What a name says about a community is the mean of its probability there and of its
expected agreement. Names are chosen greedily, and each must add a least share of the study: a name for a handful of
cells, or a second name for what another one already says, does not.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from .ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology


def name_agreement(term_ids: Sequence[str | None], ontology: Ontology) -> np.ndarray:
    """(C, C): how far each two labels say the same, from 0 to 1; free text agrees with itself alone."""
    place: dict[str, int] = {}
    rows, columns = [], []
    for row, term_id in enumerate(term_ids):
        lineage_of_row = {term_id, *ontology.ancestors(term_id)} if term_id else set()
        for ancestor in sorted(lineage_of_row - UNINFORMATIVE_TERMS):
            rows.append(row)
            columns.append(place.setdefault(ancestor, len(place)))
    lineage = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), (len(term_ids), len(place)))
    sizes = np.asarray(lineage.sum(axis=1)).ravel()
    agreement = 2 * (lineage @ lineage.T).toarray() / np.maximum(sizes[:, None] + sizes, 1)
    np.fill_diagonal(agreement, 1)
    return agreement


def held_labels(
    probabilities: np.ndarray, num_cells: np.ndarray, agreement: np.ndarray, least_share: float
) -> np.ndarray:
    """The labels that a study holds, by index, in order: those that each add at least `least_share` to what is said.

    `probabilities` (K, C) are those of its K communities, `num_cells` (K,) their sizes.
    """
    said = (probabilities + probabilities @ agreement) / 2
    weight = num_cells / num_cells.sum()
    held: list[int] = []
    best = np.zeros(len(said))
    while True:
        gain = weight @ np.maximum(said - best[:, None], 0)
        chosen = int(gain.argmax())
        if held and gain[chosen] <= least_share:
            return np.array(sorted(held))
        held = [*_still_needed(held, chosen, said, weight, least_share), chosen]
        best = said[:, held].max(axis=1)


def _still_needed(held: list[int], new: int, said: np.ndarray, weight: np.ndarray, least_share: float) -> list[int]:
    """What is left of the labels once `new` is there: without those that it replaces."""
    kept = list(held)
    for label in held:
        others = [one for one in kept if one != label] + [new]
        lost = weight @ np.maximum(said[:, label] - said[:, others].max(axis=1), 0)
        if lost <= least_share:
            kept.remove(label)
    return kept
