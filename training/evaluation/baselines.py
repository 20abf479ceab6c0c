"""The simple methods that a large model must beat, on the same cells with the same candidates.

Every function takes a `Reference` (training cells on the genes of the test cells), the test cells' log expression, and
returns probabilities cells x candidates. A candidate without training cells gets 0: a baseline cannot name what it
has not seen.

Training cells of a finer type than the candidates count for the candidate above them in the Cell Ontology, which
raises every baseline; `exact_labels=True` turns that off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.special import softmax

from .expression import (
    linear_expression,
    log_expression,
    log_normalised,
    most_variable,
    on_genes,
    principal_space,
    upper_symbols,
)
from .systems import Annotation, Predict, System
from .type_tree import TypeTree

if TYPE_CHECKING:
    from anndata import AnnData

NUM_GENES = 2000
NUM_MARKERS = 50
NUM_NEIGHBOURS = 15
FIRMNESS = 20.0  # turns cosines and marker scores into probabilities; it moves calibration, never the winner


@dataclass(frozen=True)
class Reference:
    """Training cells on the genes of the test cells: log expression, own type, and index of the candidate it means."""

    expression: sp.csr_matrix
    types: np.ndarray
    candidate: np.ndarray
    num_candidates: int

    def spread(self, scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Columns for some candidates put among zeros for the others."""
        full = np.zeros((len(scores), self.num_candidates))
        full[:, candidates] = scores
        return full


@dataclass
class TrainingCells:
    """Labelled cells of several sources, each on its own genes.

    Parameters
    ----------
    sources
        AnnData with the types in `obs[label]`.
    """

    sources: Sequence[AnnData]
    label: str = "cell_type"
    _linear: list[tuple[sp.csr_matrix, np.ndarray, np.ndarray]] = field(init=False, repr=False)
    _last: tuple = field(init=False, repr=False, default=(None, None))

    def __post_init__(self):
        self._linear = [
            (linear_expression(source), upper_symbols(source), source.obs[self.label].astype(str).to_numpy())
            for source in self.sources
        ]

    @property
    def types(self) -> set[str]:
        """Every type with a training cell."""
        return {name for _, _, types in self._linear for name in types}

    @property
    def num_cells(self) -> int:
        return sum(len(types) for _, _, types in self._linear)

    def reference(
        self, cells: AnnData, labels: Sequence[str], tree: TypeTree, exact_labels: bool = False
    ) -> Reference:
        """The training cells that mean one of `labels`, on the genes of `cells`; the last answer is kept."""
        genes = upper_symbols(cells)
        key = (tuple(genes), tuple(labels), exact_labels)
        if self._last[0] != key:
            parts = list(self._aligned(genes, self._linear, list(labels), tree, exact_labels))
            expression = [log_normalised(matrix) for matrix, _, _ in parts]
            self._last = (
                key,
                Reference(
                    sp.csr_matrix(sp.vstack([sp.csr_matrix((0, len(genes)), dtype=np.float32), *expression])),
                    np.concatenate([np.array([], str), *(types for _, types, _ in parts)]),
                    np.concatenate([np.array([], int), *(candidate for _, _, candidate in parts)]),
                    len(labels),
                ),
            )
        return self._last[1]

    def on_genes_of(self, genes: np.ndarray) -> sp.csr_matrix:
        """Linear values of all training cells on some genes."""
        return sp.csr_matrix(sp.vstack([on_genes(matrix, symbols, genes) for matrix, symbols, _ in self._linear]))

    def counts(self, cells: AnnData, labels: Sequence[str], tree: TypeTree) -> tuple[sp.csr_matrix, np.ndarray]:
        """Raw counts of the training cells that mean one of `labels`, on the genes of `cells`, and that label."""
        genes = upper_symbols(cells)
        with_counts = [one for one in self._linear if np.array_equal(one[0].data, np.round(one[0].data))]
        parts = list(self._aligned(genes, with_counts, list(labels), tree, False))
        matrices = [sp.csr_matrix((0, len(genes)), dtype=np.float32), *(matrix for matrix, _, _ in parts)]
        meaning = np.concatenate([np.array([], int), *(candidate for _, _, candidate in parts)])
        return sp.csr_matrix(sp.vstack(matrices)), np.asarray(labels, object)[meaning]

    def _aligned(
        self, genes: np.ndarray, sources: list, labels: list[str], tree: TypeTree, exact_labels: bool
    ) -> Iterator[tuple[sp.csr_matrix, np.ndarray, np.ndarray]]:
        """Of each source the cells that mean a label: linear values on `genes`, own types, indices of labels."""
        index: dict[str | None, int] = {label: i for i, label in enumerate(labels)}
        means = {name: index.get(name if exact_labels else tree.nearest_of(name, labels), -1) for name in self.types}
        for matrix, symbols, types in sources:
            meaning = np.array([means[name] for name in types], int)
            kept = meaning >= 0
            if kept.any():
                yield on_genes(matrix[kept], symbols, genes), types[kept], meaning[kept]


def majority(reference: Reference, cells: sp.csr_matrix) -> np.ndarray:
    """The share of each candidate among the training cells, for every cell alike."""
    counts = np.bincount(reference.candidate, minlength=reference.num_candidates)
    return np.tile(counts / counts.sum(), (cells.shape[0], 1))


def nearest_mean(reference: Reference, cells: sp.csr_matrix) -> np.ndarray:
    """Cosine to the mean of each training type on all shared genes; a candidate has the best of its types."""
    from sklearn.preprocessing import normalize

    types, code = np.unique(reference.types, return_inverse=True)
    means = _group_means(reference.expression, code, len(types))
    cosine = normalize(cells) @ normalize(means).T
    candidate_of_type = np.array([reference.candidate[code == i][0] for i in range(len(types))])
    seen = np.unique(candidate_of_type)
    best = np.column_stack([cosine[:, candidate_of_type == c].max(1) for c in seen])
    return reference.spread(softmax(FIRMNESS * best, axis=1), seen)


def nearest_neighbours(reference: Reference, cells: sp.csr_matrix) -> np.ndarray:
    """Votes of the 15 nearest training cells on 50 components of the 2,000 most variable genes."""
    from sklearn.neighbors import KNeighborsClassifier

    project = principal_space(reference.expression, num_genes=NUM_GENES)
    neighbours = min(NUM_NEIGHBOURS, len(reference.candidate))
    classifier = KNeighborsClassifier(neighbours).fit(project(reference.expression), reference.candidate)
    return reference.spread(classifier.predict_proba(project(cells)), classifier.classes_)


def logistic_regression(reference: Reference, cells: sp.csr_matrix) -> np.ndarray:
    """Multinomial logistic regression with balanced classes on the 2,000 most variable genes.

    C = 0.02 was the best of 0.02, 0.1 and 1 on the studies it is tested on: the choice favours the baseline.
    """
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(reference.candidate)
    if len(seen) == 1:
        return reference.spread(np.ones((cells.shape[0], 1)), seen)
    genes = most_variable(reference.expression, NUM_GENES)
    classifier = LogisticRegression(C=0.02, max_iter=200, class_weight="balanced")
    classifier.fit(reference.expression[:, genes].toarray(), reference.candidate)
    return reference.spread(classifier.predict_proba(cells[:, genes].toarray()), classifier.classes_)


def marker_score(reference: Reference, cells: sp.csr_matrix) -> np.ndarray:
    """Mean standardised expression of each candidate's 50 markers, which are computed from the training cells.

    A marker is a gene whose mean in the candidate exceeds its largest mean in any other candidate; the largest
    excesses count.
    """
    seen, code = np.unique(reference.candidate, return_inverse=True)
    means = _group_means(reference.expression, code, len(seen))
    dense = cells.toarray()
    standard = (dense - dense.mean(0)) / np.maximum(dense.std(0), 0.1)
    columns = []
    for i in range(len(seen)):
        rest = np.delete(means, i, axis=0).max(0) if len(seen) > 1 else 0
        excess = means[i] - rest
        markers = np.argsort(-excess, kind="stable")[: max(min(NUM_MARKERS, int((excess > 0).sum())), 1)]
        columns.append(standard[:, markers].mean(1))
    return reference.spread(softmax(np.column_stack(columns), axis=1), seen)


Method = Callable[[Reference, sp.csr_matrix], np.ndarray]
METHODS: dict[str, Method] = {
    "majority": majority,
    "nearest class mean": nearest_mean,
    "HVG + PCA + kNN": nearest_neighbours,
    "HVG + logistic regression": logistic_regression,
    "marker score": marker_score,
}


def baseline_systems(
    training: TrainingCells, tree: TypeTree, methods: dict[str, Method] | None = None, exact_labels: bool = False
) -> list[System]:
    """Every baseline as a system that is trained anew for the genes and candidates it is asked about.

    The tree says which training types mean which candidate; with `exact_labels` only the candidate's own does.
    """
    suffix = ", exact labels" if exact_labels else ""
    return [
        System(f"{name}{suffix}", predict=_predict_by(method, training, tree, exact_labels), is_baseline=True)
        for name, method in (METHODS if methods is None else methods).items()
    ]


def naming_system(training: TrainingCells, tree: TypeTree) -> System:
    """Nearest class mean among all types of the training cells: what it says when nobody gives it labels."""
    name = "nearest class mean"
    labels = sorted(training.types)
    predict = _predict_by(METHODS[name], training, tree, exact_labels=True)

    def annotate(cells: AnnData, given: Sequence[str] | None) -> Annotation:
        asked = labels if given is None else list(given)
        return Annotation(np.array(asked, object)[predict(cells, asked).argmax(1)].astype(str))

    return System(f"{name}, all trained types", annotate=annotate, is_baseline=True)


def components_system(seed: int = 0) -> System:
    """The embedding baseline: 50 components of the 2,000 most variable genes of the cells themselves."""

    def embed(cells: AnnData) -> np.ndarray:
        expression = log_expression(cells)
        return principal_space(expression, num_genes=NUM_GENES, seed=seed)(expression)

    return System("HVG + PCA", embed=embed, is_baseline=True)


def _predict_by(method: Method, training: TrainingCells, tree: TypeTree, exact_labels: bool) -> Predict:
    last: dict = {"cells": None, "labels": None, "scores": None}

    def predict(cells: AnnData, labels: Sequence[str]) -> np.ndarray:
        if last["cells"] is not cells or last["labels"] != list(labels):
            reference = training.reference(cells, labels, tree, exact_labels)
            if len(reference.candidate):
                scores = method(reference, log_expression(cells))
            else:
                scores = np.full((cells.n_obs, len(labels)), 1 / len(labels))
            last.update(cells=cells, labels=list(labels), scores=scores)
        return last["scores"]

    return predict


def _group_means(matrix: sp.csr_matrix, code: np.ndarray, num_groups: int) -> np.ndarray:
    member = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))), shape=(num_groups, len(code)))
    return np.asarray((member @ matrix).todense()) / np.bincount(code, minlength=num_groups)[:, None]
