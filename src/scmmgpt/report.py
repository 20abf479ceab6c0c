"""One self-contained HTML page about a run of `annotate`: opens offline, fits a supplement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .processing.labels_scmmgpt import UNKNOWN
from .storage import written_by_rename

MAX_POINTS = 20_000
MAX_POINTS_LAID_OUT = 5_000
_SEED = 0


@dataclass
class GroupGenes:
    """Which genes a group of cells really expresses, from sums over what the model saw.

    Values and detections are (groups, genes); the groups are called types and clusters of unknown cells.
    """

    genes: Sequence[str]
    value_sums: np.ndarray
    detected: np.ndarray
    num_cells: np.ndarray

    @classmethod
    def empty(cls, genes: Sequence[str], num_groups: int) -> GroupGenes:
        shape = (num_groups, len(genes))
        return cls(genes, np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(num_groups, np.int64))

    def add(self, group_of_cell: np.ndarray, gene_of_value: np.ndarray, values: np.ndarray, cell_of_value: np.ndarray):
        """Count more cells: one entry of `gene_of_value`, `values`, `cell_of_value` per expressed gene of a cell."""
        places = group_of_cell[cell_of_value] * len(self.genes) + gene_of_value  # one index is much faster than two
        np.add.at(self.value_sums.reshape(-1), places, values)
        np.add.at(self.detected.reshape(-1), places, (values > 0).astype(np.float32))
        self.num_cells += np.bincount(group_of_cell, minlength=len(self.num_cells))

    def top(self, group: int, num: int = 6, min_share: float = 0.2) -> list[dict[str, Any]]:
        """Genes whose mean value stands out most from the other cells, seen in a fair share of the group."""
        inside = max(self.num_cells[group], 1)
        outside = max(self.num_cells.sum() - self.num_cells[group], 1)
        share = self.detected[group] / inside
        share_outside = (self.detected.sum(0) - self.detected[group]) / outside
        lead = self.value_sums[group] / inside - (self.value_sums.sum(0) - self.value_sums[group]) / outside
        lead = np.where(share >= min_share, lead, -np.inf)
        best = [index for index in np.argsort(-lead, kind="stable")[:num] if lead[index] > 0]
        return [
            {"gene": self.genes[i], "percent": round(100 * share[i]), "elsewhere": round(100 * share_outside[i])}
            for i in best
        ]


@dataclass
class Report:
    """Everything the page shows.

    `points` holds the drawn cells: x, y, index of the label, confidence; `maps` are those of a tissue.
    """

    title: str
    num_cells: int
    points: dict[str, Any]
    types: list[dict[str, Any]]
    unknown_clusters: list[dict[str, Any]]
    gene_account: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, Any]
    warnings: Sequence[str] = field(default=())
    maps: Sequence[dict[str, Any]] = field(default=())

    def write(self, path: Path) -> None:
        with written_by_rename(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def html(self) -> str:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("scmmgpt"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        return environment.get_template("report.html.jinja").render(report=self, unknown=UNKNOWN)


def drawn_cells(num_cells: int, limit: int = MAX_POINTS) -> np.ndarray:
    """Which cells are drawn: all, or a random part that is the same every time."""
    if num_cells <= limit:
        return np.arange(num_cells)
    return np.sort(np.random.default_rng(_SEED).choice(num_cells, limit, replace=False))


def find_embedding(keys: Sequence[str]) -> str | None:
    """The map that the data bring with them, the most readable kind first."""
    for kind in ("umap", "tsne", "draw_graph", "phate", "mde", "spatial", "pca"):
        for key in sorted(keys, key=len):
            if kind in key.lower():
                return key
    return None


def points_of(coordinates: np.ndarray, source: str, labels: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """The drawn cells as short JSON: coordinates scaled to 0...1, labels as numbers, the most frequent first."""
    names, numbers, counts = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    finite = np.nan_to_num(np.asarray(coordinates, dtype=np.float64)[:, :2])
    span = np.maximum(np.ptp(finite, axis=0).max(), 1e-9) if len(finite) else 1.0
    scaled = (finite - finite.min(0)) / span if len(finite) else finite
    return {
        "source": source,
        "names": names[order].tolist(),
        "x": np.round(scaled[:, 0], 4).tolist(),
        "y": np.round(scaled[:, 1], 4).tolist(),
        "label": rank[numbers].tolist(),
        "confidence": np.round(confidence.astype(float), 2).tolist(),
    }


def type_rows(labels: np.ndarray, term_ids: np.ndarray, confidence: np.ndarray) -> list[dict[str, Any]]:
    """One row per called type, the most frequent first."""
    rows = []
    for label in np.unique(labels.astype(str)):
        chosen = labels == label
        values = confidence[chosen]
        rows.append(
            {
                "label": label,
                "term_id": str(term_ids[chosen][0]),
                "cells": int(chosen.sum()),
                "percent": round(100 * float(chosen.mean()), 1),
                "confidence": round(float(np.median(values)), 3),
                "low": round(float(np.quantile(values, 0.1)), 3),
            }
        )
    return sorted(rows, key=lambda row: (-row["cells"], row["label"]))


def cluster_unknown(embeds: np.ndarray, given: np.ndarray | None = None) -> np.ndarray:
    """A name for each unknown cell's cluster: the data's own clusters, else k-means of the model's vectors."""
    if given is not None:
        return np.asarray(given).astype(str)
    num_clusters = int(np.clip(len(embeds) // 50, 1, 8))
    if num_clusters == 1:
        return np.full(len(embeds), "1")
    from scipy.cluster.vq import kmeans2

    _, numbers = kmeans2(np.asarray(embeds, dtype=np.float64), num_clusters, minit="++", rng=_SEED)
    return (numbers + 1).astype(str)
