"""Clustering, batch removal and retrieval: what an embedding, or a matrix of scores, is good for."""

from __future__ import annotations

import numpy as np

from scmmgpt.processing.prompting_scmmgpt import label_text

from . import metrics_embedding
from .results import Record, record_for
from .study import Study
from .systems import System, checked_scores, needed
from .type_tree import TypeTree

RANKS = (1, 5, 20)


def cluster_study(system: System, study: Study, *, seed: int = 0) -> Record:
    """ARI, NMI, ASW and AvgBIO against the types; with two donors or batches also how well those mix."""
    embedding = np.asarray(needed(system.embed)(study.cells), dtype=np.float64)
    values = metrics_embedding.bio_conservation(embedding, study.truth, seed=seed)
    batches = study.donors if study.donors is not None and len(set(study.donors)) > 1 else None
    if batches is not None:
        values |= metrics_embedding.batch_mixing(embedding, study.truth, batches)
    values |= metrics_embedding.scib_scores(embedding, study.truth, batches)
    conditions = {"clusters_by": metrics_embedding.clustering_method(), "dimensions": embedding.shape[1]}
    return record_for("clustering", system, study, values, **conditions)


def retrieve(system: System, study: Study, tree: TypeTree) -> Record:
    """Recall at 1, 5 and 20 in both directions, beside the recall of a blind ranking.

    Every type is one text: cells of one type share it, and a text that stood in the gallery once a cell would be found
    by chance the more often the commoner it is. text -> cell asks for any cell of the type among all cells.
    """
    similarity = _cells_by_texts(system, study, tree)
    values: dict[str, float] = {}
    for k in RANKS:
        if k <= len(study.types):
            found, blind = metrics_embedding.recall_at(similarity, study.truth, study.types, k)
            values |= {f"cell_to_text_r@{k}": found, f"cell_to_text_r@{k}_blind": blind}
        found, blind = metrics_embedding.recall_at(similarity.T, study.types, study.truth, k)
        values |= {f"text_to_cell_r@{k}": found, f"text_to_cell_r@{k}_blind": blind}
    values["text_to_cell_precision@20"] = _precision_at(similarity.T, study, 20)
    gallery = {"texts": len(study.types), "gallery_cells": study.cells.n_obs}
    return record_for("retrieval", system, study, values, **gallery)


def _cells_by_texts(system: System, study: Study, tree: TypeTree) -> np.ndarray:
    """Dot products with the types' texts (name and definition) where the system embeds both sides, else its scores."""
    if system.embed is not None and system.embed_text is not None:
        terms = [tree.term(name) for name in study.types]
        texts = [label_text(n, term.definition if term else None) for n, term in zip(study.types, terms, strict=True)]
        return np.asarray(system.embed(study.cells)) @ np.asarray(system.embed_text(texts)).T
    return checked_scores(system, study.cells, study.types)


def _precision_at(similarity: np.ndarray, study: Study, k: int) -> float:
    """Share of right cells among the k best of each text, averaged over texts with k cells."""
    shares = []
    for scores, name in zip(similarity, study.types, strict=True):
        if np.sum(study.truth == name) >= k:
            best = np.argsort(-scores, kind="stable")[:k]
            shares.append(np.mean(study.truth[best] == name))
    return float(np.mean(shares)) if shares else float("nan")
