"""What the report of `annotate` shows, gathered from the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .embedding import CELLS_PER_CHUNK
from .processing.back_off_scmmgpt import Calls
from .processing.calling_scmmgpt import Scorer
from .processing.labels_scmmgpt import UNKNOWN
from .report import (
    MAX_POINTS_FOR_UMAP,
    GroupGenes,
    Report,
    cluster_unknown,
    drawn_cells,
    find_embedding,
    lay_out,
    points_of,
    type_rows,
)

if TYPE_CHECKING:
    from .verb import Verb

# Cells whose genes are looked at: enough for stable percentages, few enough for any file.
_MAX_CELLS_FOR_GENES = 6_000
_MIN_CELLS_PER_GROUP = 20
_CLUSTER_COLUMNS = ("leiden", "louvain", "seurat_clusters", "cluster", "clusters")


def write_report(
    page: Path,
    verb: Verb,
    record: dict[str, Any],
    calls: Calls,
    embeds: np.ndarray,
    scorer: Scorer,
    cluster_key: str | None,
) -> None:
    """Write the page of one run of `annotate`."""
    labels = calls.labels.astype(str)
    unknown = np.flatnonzero(labels == UNKNOWN)
    groups = labels.astype(object)
    clusters = _unknown_clusters(verb, embeds, unknown, cluster_key)
    groups[unknown] = [f"{UNKNOWN}\t{cluster}" for cluster in clusters]
    names, group_of_cell = np.unique(groups.astype(str), return_inverse=True)
    genes = _genes_of_groups(verb, group_of_cell, len(names))
    number_of = {name: number for number, name in enumerate(names)}
    rows = type_rows(labels, calls.term_ids, calls.confidence)
    for row in rows:
        row["genes"] = genes.top(number_of[row["label"]]) if row["label"] in number_of else []
    details = record["annotate"]
    Report(
        title=verb.cells.path.name if verb.cells.path else "Annotation of cells",
        num_cells=len(labels),
        points=_points(verb, embeds, calls),
        types=rows,
        unknown_clusters=[
            {
                "cluster": cluster,
                "cells": int((clusters == cluster).sum()),
                "nearest": _nearest(unknown[clusters == cluster], scorer),
                "genes": genes.top(number_of[f"{UNKNOWN}\t{cluster}"]),
            }
            for cluster in np.unique(clusters)
        ],
        gene_account=_readable(record["genes"]),
        settings=_readable(
            {
                "num_candidates": len(scorer.candidates.labels),
                "unknown_percent": round(100 * len(unknown) / len(labels), 1),
                "median_confidence": round(float(np.median(calls.confidence)), 3),
                **details["settings"],
            }
        ),
        versions=_readable({**details["model"], **details["versions"]}),
        warnings=verb.warnings,
    ).write(page)


def _points(verb: Verb, embeds: np.ndarray, calls: Calls) -> dict[str, Any]:
    key = find_embedding(sorted(verb.cells.present["obsm"]))
    if key is not None:
        rows = drawn_cells(len(embeds))
        coordinates, source = verb.cells.embedding(key)[rows], f"obsm[{key!r}]"
    else:
        rows = drawn_cells(len(embeds), MAX_POINTS_FOR_UMAP)
        coordinates, source = lay_out(np.asarray(embeds[rows]))
    return points_of(coordinates, source, calls.labels[rows], calls.confidence[rows])


def _unknown_clusters(verb: Verb, embeds: np.ndarray, unknown: np.ndarray, cluster_key: str | None) -> np.ndarray:
    obs = verb.cells.obs
    column = next((name for name in (cluster_key, *_CLUSTER_COLUMNS) if name in obs), None)
    if not len(unknown):
        return np.empty(0, dtype=str)
    given = None if column is None else obs[column].astype(str).to_numpy()[unknown]
    return cluster_unknown(np.asarray(embeds)[unknown], given)


def _nearest(cells: np.ndarray, scorer: Scorer) -> list[tuple[str, float]]:
    mean, labels = scorer.probabilities(cells[:500]).mean(axis=0), scorer.candidates.labels.labels
    return [(labels[index], round(float(mean[index]), 3)) for index in np.argsort(-mean)[:3]]


def _genes_of_groups(verb: Verb, group_of_cell: np.ndarray, num_groups: int) -> GroupGenes:
    """Sums over the same number of cells of each group, as the model sees them."""
    gene_tokenizer = verb.loaded.processor.gene_tokenizer
    most = max(_MIN_CELLS_PER_GROUP, _MAX_CELLS_FOR_GENES // num_groups)
    shuffled = np.random.default_rng(0).permutation(len(group_of_cell))
    chosen = np.sort(
        np.concatenate([shuffled[group_of_cell[shuffled] == group][:most] for group in range(num_groups)])
    )
    genes = GroupGenes.empty(gene_tokenizer.genes, num_groups)
    for start in range(0, len(chosen), CELLS_PER_CHUNK):
        rows = chosen[start : start + CELLS_PER_CHUNK]
        features = gene_tokenizer(verb.cells.rows(rows), return_tensors="np")
        cell, place = np.nonzero(gene_tokenizer.is_gene(features["gene_ids"], features["gene_mask"]))
        genes.add(
            group_of_cell[rows],
            gene_tokenizer.gene_rows(features["gene_ids"][cell, place]),
            features["gene_values"][cell, place],
            cell,
        )
    return genes


def _readable(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: _in_words(value) for name, value in figures.items()}


def _in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(item)}" for name, item in value.items())
    if isinstance(value, np.ndarray | list):
        return ", ".join(map(str, value))
    return round(value, 4) if isinstance(value, float) else value
