"""`audit`: do an author's labels fit the ontology, the cells, the clusters and the archives they are meant for?

A label is doubted where three opinions on its cell, averaged, give it little chance: a logistic regression and a linear
discriminant on the study's expression, each fitted without the cell (as in confident learning), and the model's own
reading of the cell, which has seen none of the study's labels. Alone, each of them is wrong more often.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import shared_arguments
from .author_labels import map_labels
from .cells import column_of
from .consensus import divided
from .embedding import EvidenceBatch
from .errors import UserError, require
from .processing.author_labels_scmmgpt import NamedTerm
from .processing.encoding_scmmgpt import similarity_scale
from .processing.labels_scmmgpt import is_unknown, is_unknown_id
from .processing.ontology_scmmgpt import Ontology
from .storage import Additions
from .verb import Destination, Execution, Verb

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from .loading import ModelSource

MIN_CHANCE = 0.05  # a label with less is doubted; chosen on planted swaps, see docs/howto/audit.md
MIN_CELLS_OF_LABEL = 10  # fewer teach a classifier nothing: such labels are not judged
SURE_ENOUGH = 0.5  # of a term, to be used in place of the author's words
NO_TYPE = "other"
_FOLDS, _GENES, _COMPONENTS = 5, 2000, 50
_CELLS_PER_COMMUNITY, _MOST_COMMUNITIES = 50, 40
_MIXED_SHARE, _MIXED_CELLS = 0.15, 5


@dataclass
class Audit:
    """What was found: one mapping a label, the chance of each cell's label, what else it could be, mixed clusters."""

    labels: list[NamedTerm]
    codes: np.ndarray
    chance: np.ndarray
    instead: np.ndarray
    clusters: list[dict[str, Any]]
    embeds: np.ndarray
    gene_account: dict[str, Any] = field(default_factory=dict)

    @property
    def is_doubted(self) -> np.ndarray:
        """Cells whose label their expression contradicts."""
        return self.chance < MIN_CHANCE

    def term_ids(self) -> np.ndarray:
        """The Cell Ontology id of each cell's label, "unknown" where none is sure enough."""
        ids = [one.term_id if one.confidence >= SURE_ENOUGH else "unknown" for one in self.labels]
        return np.array(ids, dtype=object)[self.codes]

    def columns(self) -> dict[str, np.ndarray]:
        """Columns for obs, one value a cell."""
        terms = np.array([one.term or "unknown" for one in self.labels], dtype=object)
        names = np.array([one.label for one in self.labels], dtype=object)
        return {
            "audit_term": terms[self.codes],
            "audit_term_ontology_term_id": self.term_ids(),
            "audit_chance": self.chance.astype(np.float32),
            "audit_doubted": self.is_doubted,
            "audit_instead": np.where(self.is_doubted, names[self.instead], ""),
        }

    def summary(self) -> dict[str, Any]:
        """The findings in plain types."""
        doubted = self.is_doubted
        rows = []
        for code, mapping in enumerate(self.labels):
            mine = self.codes == code
            others = np.bincount(self.instead[mine & doubted], minlength=len(self.labels))
            likelier = self.labels[int(others.argmax())].label if others.any() else ""
            counts = {"cells": int(mine.sum()), "doubted": int((mine & doubted).sum()), "mostly_instead": likelier}
            rows.append(mapping.as_dict() | counts)
        return {
            "cells": len(self.codes),
            "labels": rows,
            "doubted": int(doubted.sum()),
            "not_judged": int(np.isnan(self.chance).sum()),
            "mixed_clusters": self.clusters,
        }


@shared_arguments
def audit(
    adata: AnnData | str | os.PathLike,
    label: str,
    *,
    cluster_key: str | None = None,
    model: ModelSource = None,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    device: Any = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Audit:
    """Check an author's labels: terms for them, cells that contradict them, clusters that mix them.

    Parameters
    ----------
    adata
        AnnData or MuData, or the path of a file of cells.
    label
        The column of `.obs` with the author's cell types.
    cluster_key
        A column of `.obs` with clusters; None: communities of like cells.
    """
    require("sklearn")
    keys = [f"scmmgpt_{name}" for name in ("audit_term", "audit_chance", "audit_doubted", "audit_instead")]
    destination, execution = Destination(output, overwrite=overwrite), Execution(device, batch_size, progress)
    verb = Verb.begin("audit", adata, model, execution, destination, keys=Additions(obs=dict.fromkeys(keys)))
    names, codes = _coded(column_of(verb.cells.obs, label), label)
    clusters = None if cluster_key is None else column_of(verb.cells.obs, cluster_key)
    mappings = map_labels(names, verb.loaded)
    zero_shot, embeds, account = _own_reading(verb, mappings)
    chance, instead = label_chances(_expression(verb), codes, zero_shot)
    groups = _communities(embeds) if clusters is None else clusters.to_numpy()
    mixed = mixed_clusters(groups, codes, mappings, verb.loaded.ontology)
    found = Audit(mappings, codes, chance, instead, mixed, embeds, account)
    if output is not None:
        columns = {f"scmmgpt_{name}": values for name, values in found.columns().items()}
        record = verb.record(account, label=label, cluster_key=cluster_key, least_chance=MIN_CHANCE)
        verb.finish(Additions(obs=columns, uns={"scmmgpt": record}))
    elif verb.workspace is not None:
        verb.workspace.remove()
    return found


def _coded(column: pd.Series, label: str) -> tuple[list[str], np.ndarray]:
    codes, names = column.factorize(sort=True)
    if len(names) < 2:
        raise UserError(f"obs[{label!r}] holds one label alone; an audit compares at least two.")
    if len(names) > max(50, len(codes) // 3):
        raise UserError(f"obs[{label!r}] holds {len(names)} labels for {len(codes)} cells; are these cell types?")
    return [str(name) for name in names], codes


def _own_reading(verb: Verb, mappings: Sequence[NamedTerm]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """What the model makes of each cell among the author's labels, (N, C); embeddings; which genes were read."""
    words = [_words_for_cells(one, verb.loaded.ontology) for one in mappings]
    distinct = list(dict.fromkeys(words))
    annotator, loaded = verb.loaded.annotator, verb.loaded
    candidates = annotator.candidates(annotator.label_set(distinct), loaded.embed_texts)
    run = verb.start_run(words=distinct)
    cells = run.compute("audit", EvidenceBatch(candidates))
    measured = run.gene_tokenizer.measured_genes(run.source) if candidates.profiles else None
    scorer = annotator.scorer(cells, candidates, scale=similarity_scale(loaded.model), measured_genes=measured)
    places = [distinct.index(word) for word in words]
    chances = np.asarray(scorer.probabilities(slice(0, verb.cells.num_cells)))[:, places]
    return chances / chances.sum(axis=1, keepdims=True), np.asarray(cells["embeds"]), run.gene_account


def _words_for_cells(named: NamedTerm, ontology: Ontology) -> str:
    """What the model compares cells of a label with; a label that names no type is one of other cells."""
    if named.confidence >= SURE_ENOUGH:
        return named.term
    return NO_TYPE if is_unknown(named.label) or is_unknown_id(named.label, ontology) else named.label


def _expression(verb: Verb) -> np.ndarray:
    """Components of log expression over the most variable genes, (N, 50)."""
    from scipy import sparse

    from .processing.cell_reading_scmmgpt import choose_matrix, open_cells
    from .training.evaluation.expression import log_normalised, most_variable

    cells = open_cells(verb.cells.source)
    try:
        chosen = choose_matrix(cells)
        rows, _ = chosen.linear_rows(0, verb.cells.num_cells)
        shape = (verb.cells.num_cells, chosen.matrix.shape[1])
        matrix = sparse.csr_matrix((rows.data, rows.indices, rows.indptr - rows.indptr[0]), shape=shape)
    finally:
        cells.close()
    expression = log_normalised(matrix)
    return principal_components(expression[:, most_variable(expression, _GENES)].toarray())


def principal_components(values: np.ndarray) -> np.ndarray:
    """The main components of rows, largest first, whatever the order of the rows: exact, and with a fixed sign."""
    from scipy.linalg import eigh

    centred = values.astype(np.float64) - values.mean(axis=0)
    number = min(_COMPONENTS, *(size - 1 for size in values.shape)) or 1
    size = values.shape[1]
    axes = eigh(centred.T @ centred, subset_by_index=[size - number, size - 1])[1][:, ::-1]
    return centred @ (axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(number)]))


def label_chances(expression: np.ndarray, codes: np.ndarray, zero_shot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chance of each cell's label, NaN where it is not judged, and the likeliest label of all.

    `expression` (N, F), `codes` (N,) of the labels, `zero_shot` (N, C): chances by somebody who has seen no label.
    """
    enough = np.bincount(codes, minlength=zero_shot.shape[1]) >= MIN_CELLS_OF_LABEL
    judged = enough[codes]
    chances = np.array(zero_shot, dtype=np.float64)
    if enough.sum() > 1:
        columns = np.flatnonzero(enough)
        opinions = _opinions_of_others(expression[judged], np.searchsorted(columns, codes[judged]))
        own = chances[np.ix_(judged, columns)]
        own /= np.maximum(own.sum(axis=1, keepdims=True), 1e-12)
        chances[judged] = 0
        chances[np.ix_(judged, columns)] = (own + sum(opinions)) / (1 + len(opinions))
    chance = chances[np.arange(len(codes)), codes]
    chance[~judged] = np.nan
    return chance, chances.argmax(axis=1)


def _opinions_of_others(expression: np.ndarray, codes: np.ndarray) -> list[np.ndarray]:
    """Chances (N, C) by classifiers that were fitted to the labels of other cells."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    scaled = (expression - expression.mean(axis=0)) / (expression.std(axis=0) + 1e-9)
    fold = np.empty(len(codes), dtype=np.int64)
    fold[np.lexsort((scaled[:, -1], scaled[:, 0], codes))] = np.arange(len(codes)) % _FOLDS  # whatever their order is
    folds = PredefinedSplit(fold)
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    pairs = ((LogisticRegression(max_iter=1000, tol=1e-3), scaled), (discriminant, expression))
    return [cross_val_predict(one, values, codes, cv=folds, method="predict_proba") for one, values in pairs]


def _communities(embeds: np.ndarray) -> np.ndarray:
    number = int(np.clip(len(embeds) // _CELLS_PER_COMMUNITY, 1, _MOST_COMMUNITIES))
    communities = np.zeros(len(embeds), dtype=np.int64)
    for community, rows in enumerate(divided(embeds, number)):
        communities[rows] = community
    return communities.astype(str)


def mixed_clusters(
    clusters: np.ndarray, codes: np.ndarray, mappings: Sequence[NamedTerm], ontology: Ontology
) -> list[dict[str, Any]]:
    """Clusters of whose cells a good part carries a label of another lineage than most, the most mixed first."""
    found = []
    for cluster in np.unique(clusters):
        counts = np.bincount(codes[clusters == cluster], minlength=len(mappings))
        most = int(counts.argmax())
        others = [
            code
            for code in np.flatnonzero(counts).tolist()
            if not _is_one_lineage(mappings[most], mappings[code], ontology)
        ]
        number = int(counts[others].sum())
        if number >= max(_MIXED_CELLS, _MIXED_SHARE * counts.sum()):
            shares = {
                mappings[code].label: int(counts[code]) for code in np.argsort(-counts)[:4].tolist() if counts[code]
            }
            share = round(number / int(counts.sum()), 3)
            found.append({"cluster": str(cluster), "cells": int(counts.sum()), "other_share": share, "labels": shares})
    return sorted(found, key=lambda row: -row["other_share"])


def _is_one_lineage(one: NamedTerm, other: NamedTerm, ontology: Ontology) -> bool:
    if one.label == other.label or (one.term_id and one.term_id == other.term_id):
        return True
    return other.term_id in ontology.ancestors(one.term_id) or one.term_id in ontology.ancestors(other.term_id)
