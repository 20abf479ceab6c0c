"""What the report of `annotate` shows, gathered from the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .context_report import map_of_labels
from .evidence import genes_of_groups
from .layout import lay_out
from .processing.back_off_scmmgpt import Calls
from .processing.calling_scmmgpt import Scorer
from .processing.labels_scmmgpt import UNKNOWN
from .protein_evidence import protein_line
from .report import (
    MAX_POINTS_LAID_OUT,
    Report,
    cluster_unknown,
    drawn_cells,
    find_embedding,
    points_of,
    type_rows,
)

if TYPE_CHECKING:
    from .scoring import CalledStudy
    from .verb import Verb

_CLUSTER_COLUMNS = ("leiden", "louvain", "seurat_clusters", "cluster", "clusters")


def write_report(
    page: Path,
    verb: Verb,
    record: dict[str, Any],
    study: CalledStudy,
    cluster_key: str | None,
) -> None:
    """Write the page of one run of `annotate`."""
    calls, embeds, scorer, sets = study.calls, study.cells.embeds, study.scorer, study.sets
    labels = calls.labels.astype(str)
    unknown = np.flatnonzero(labels == UNKNOWN)
    groups = labels.astype(object)
    clusters = _unknown_clusters(verb, embeds, unknown, cluster_key)
    groups[unknown] = [f"{UNKNOWN}\t{cluster}" for cluster in clusters]
    names, group_of_cell = np.unique(groups.astype(str), return_inverse=True)
    genes = genes_of_groups(verb, group_of_cell, len(names))
    number_of = {name: number for number, name in enumerate(names)}
    rows = type_rows(labels, calls.term_ids, calls.confidence)
    details = record["annotate"]
    evidence = details["evidence"]
    speaks = {name: (against, speaking) for name, against, speaking in zip(*evidence.values(), strict=True)}
    of_types = details.get("proteins", {}).get("evidence", {})
    proteins = {name: said for name, *said in zip(*of_types.values(), strict=True)} if of_types else {}
    for row in rows:
        row["against"], row["evidence"] = speaks.get(row["label"], ("", ""))
        row["proteins"], row["proteins_against"] = proteins.get(row["label"], ("", ""))
        row["candidates"] = _most_frequent(sets[labels == row["label"]])
        row["genes"] = genes.top(number_of[row["label"]]) if row["label"] in number_of else []
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
                **({"proteins": protein_line(details["proteins"])} if "proteins" in details else {}),
            }
        ),
        versions=_readable({**details["model"], **details["versions"]}),
        warnings=verb.warnings,
        maps=map_of_labels(verb, labels, details["settings"].get("library_key")),
    ).write(page)


def _points(verb: Verb, embeds: np.ndarray, calls: Calls) -> dict[str, Any]:
    key = find_embedding(sorted(verb.cells.present["obsm"]))
    if key is not None:
        rows = drawn_cells(len(embeds))
        coordinates, source = verb.cells.embedding(key)[rows], f"obsm[{key!r}]"
    else:
        rows = drawn_cells(len(embeds), MAX_POINTS_LAID_OUT)
        coordinates, source = lay_out(np.asarray(embeds[rows])), "UMAP of the model's embedding"
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


def _most_frequent(sets: np.ndarray) -> tuple[str, int]:
    """The most frequent label set, and the percentage of the cells that have it."""
    names, counts = np.unique(sets.astype(str), return_counts=True)
    return str(names[counts.argmax()]), round(100 * float(counts.max()) / len(sets))


def _readable(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: _in_words(value) for name, value in figures.items()}


def _in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(item)}" for name, item in value.items())
    if isinstance(value, np.ndarray | list):
        return ", ".join(map(str, value))
    return round(value, 4) if isinstance(value, float) else value
