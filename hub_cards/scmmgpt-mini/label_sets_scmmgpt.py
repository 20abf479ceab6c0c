"""Sets of labels that hold the truth as often as they promise.

A set holds every label whose probability is not more than `gap` (of its logarithm) below the best one's. Where these are
more than `MOST_LABELS`, the set is the most specific type of the ontology that all of them belong to, and where they have
no such type in common, nothing fits: it is the root. A label stands for the types below it as well. The gap is fitted so
that in a new study, not among new cells of a known one, at most `MISS_RATE` of the cells have a type that their set does
not hold: conformal risk control, with studies as what is exchangeable.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .labels_scmmgpt import LabelSet
from .ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology

MISS_RATE = 0.1
MOST_LABELS = 5
ROOT = "cell"
BETWEEN = " | "
# Gaps that are tried, of the logarithm of probabilities.
GAPS = np.arange(0, 20, 0.25)


@dataclass(frozen=True)
class Groups:
    """Types of the ontology that several of C labels belong to, but not all, the most specific first.

    `membership` (C, G) says which; `term_ids` are their ids.
    """

    term_ids: list[str]
    membership: sparse.csr_array

    @classmethod
    def of(cls, labels: LabelSet, ontology: Ontology) -> "Groups":
        """The groups of a label set; types that describe nearly any cell are none."""
        members: dict[str, list[int]] = {}
        for index, term_id in enumerate(labels.term_ids):
            for ancestor in [term_id, *ontology.ancestors(term_id)] if term_id else []:
                members.setdefault(ancestor, []).append(index)
        informative = {
            term_id: held
            for term_id, held in members.items()
            if 1 < len(held) < len(labels) and term_id not in UNINFORMATIVE_TERMS and term_id in ontology.terms
        }
        # Among ancestors of the same labels the deepest says most.
        depth = {term_id: len(ontology.ancestors(term_id)) for term_id in informative}
        groups = sorted(informative, key=lambda term_id: (len(informative[term_id]), -depth[term_id], term_id))
        columns = np.repeat(np.arange(len(groups)), [len(informative[group]) for group in groups])
        rows = np.concatenate([informative[group] for group in groups]) if groups else columns
        ones = np.ones(len(rows), dtype=np.float32)
        return cls(groups, sparse.csr_array((ones, (rows, columns)), (len(labels), len(groups))))


@dataclass(frozen=True)
class Sets:
    """Of N cells the labels within the gap (N, C), and where these are too many the group that holds them all.

    `group` (N,) is its number; -1 where the labels themselves are the set, and the number of groups where only the
    root holds them.
    """

    within: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, groups: Groups, gap: float) -> "Sets":
        """The sets of rows of probabilities (N, C)."""
        logarithms = np.log(np.maximum(probabilities, 1e-30))
        within = logarithms >= logarithms.max(axis=1, keepdims=True) - gap
        number = within.sum(axis=1)
        group = np.full(len(within), -1)
        many = np.flatnonzero(number > MOST_LABELS)
        holds_all = within[many].astype(np.float32) @ groups.membership == number[many, None]
        is_root = np.ones((len(many), 1), dtype=bool)
        group[many] = np.hstack([holds_all, is_root]).argmax(axis=1)
        return cls(within, group if np.isfinite(gap) else np.full_like(group, len(groups.term_ids)))

    def hold(self, labels_above: np.ndarray, groups_above: np.ndarray) -> np.ndarray:
        """(N,) whether each set holds the truth: (N, C) labels and (N, G) groups that are it or stand above it."""
        is_root = np.ones((len(self.group), 1), dtype=bool)
        of_group = np.take_along_axis(np.hstack([groups_above, is_root]), self.group[:, None], axis=1)[:, 0]
        return np.where(self.group < 0, (self.within & labels_above).any(axis=1), of_group)


def label_sets(
    probabilities: np.ndarray, labels: LabelSet, groups: Groups, ontology: Ontology, gap: float
) -> np.ndarray:
    """(N,) texts: the labels of each row's set, the most probable first, or the type or root that holds them."""
    sets = Sets.of(probabilities, groups, gap)
    given = dict(zip(reversed(labels.term_ids), reversed(labels.labels), strict=True))
    names = [given.get(term_id, ontology.terms[term_id].label) for term_id in groups.term_ids]
    texts = np.array([*names, ROOT], dtype=object)[sets.group]
    own = np.array(labels.labels, dtype=object)
    for row in np.flatnonzero(sets.group < 0):
        chosen = np.flatnonzero(sets.within[row])
        text = BETWEEN.join(own[chosen[np.argsort(-probabilities[row, chosen], kind="stable")]])
        texts[row] = sys.intern(text)  # millions of cells share some hundreds of sets
    return texts


def fitted_gap(shares: Sequence[np.ndarray], miss_rate: float = MISS_RATE) -> float:
    """The smallest of `GAPS` that keeps the promise in a study like these; infinite where only the root does.

    Each study is the share of its cells whose set holds the truth, for each gap.
    """
    missed = sum(1 - np.asarray(share) for share in shares)
    enough = np.flatnonzero((missed + 1) / (len(shares) + 1) <= miss_rate)
    return float(GAPS[enough[0]]) if len(enough) else float("inf")
