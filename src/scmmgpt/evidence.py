"""Which genes speak for a call against its runner-up: those that the cells and the called type's profile both raise.

Profiles are the measured means that travel with the model, not marker lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .embedding import CELLS_PER_CHUNK
from .processing.back_off_scmmgpt import Calls
from .processing.calling_scmmgpt import CellAnnotator
from .processing.labels_scmmgpt import UNKNOWN
from .report import GroupGenes

if TYPE_CHECKING:
    from .verb import Verb

# Cells whose genes are looked at: enough for stable means, few enough for any file.
_MAX_CELLS = 6_000
_MIN_CELLS_PER_GROUP = 20
_NUM_GENES = 6


def evidence_table(verb: Verb, calls: Calls) -> dict[str, np.ndarray]:
    """For each called type its most frequent runner-up, and the genes that speak most for it against that one."""
    annotator = verb.loaded.annotator
    labels, seconds = calls.labels.astype(str), calls.second_choices.astype(str)
    names, group_of_cell = np.unique(labels, return_inverse=True)
    rows = []
    if annotator.type_profiles is not None and len(names) > 0:
        genes = genes_of_groups(verb, group_of_cell, len(names))
        for group, name in enumerate(names):
            others, counts = np.unique(seconds[(group_of_cell == group) & (seconds != name)], return_counts=True)
            if name == UNKNOWN or not len(others):
                continue
            against = str(others[counts.argmax()])
            rows.append((str(name), against, ", ".join(_speaking(annotator, genes, group, str(name), against))))
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        title: np.array(list(column), dtype=object)
        for title, column in zip(("cell_type", "against", "genes"), columns, strict=True)
    }


def _speaking(annotator: CellAnnotator, genes: GroupGenes, group: int, name: str, against: str) -> list[str]:
    """Genes by how much they are raised in the group, times how much higher the one type has them than the other."""
    called, other = _profile(annotator, name), _profile(annotator, against)
    if called is None or other is None or annotator.type_profiles is None:
        return []
    rows = annotator.type_profiles.gene_rows
    mean = genes.value_sums[group, rows] / max(genes.num_cells[group], 1)
    elsewhere = genes.value_sums[:, rows].sum(axis=0) / max(genes.num_cells.sum(), 1)
    speaks = (
        np.maximum(mean - elsewhere, 0) * (called - other) if len(genes.num_cells) > 1 else mean * (called - other)
    )
    best = np.argsort(-speaks, kind="stable")[:_NUM_GENES]
    return [str(genes.genes[rows[place]]) for place in best if speaks[place] > 0]


def _profile(annotator: CellAnnotator, name: str) -> np.ndarray | None:
    """The profile of a type, else the mean of those below it."""
    profiles, term = annotator.type_profiles, annotator.ontology.find(name)
    if profiles is None or term is None:
        return None
    own = [place for place, one in enumerate(profiles.term_ids) if one == term.id]
    below = [place for place, one in enumerate(profiles.term_ids) if term.id in annotator.ontology.ancestors(one)]
    return profiles.differences[own or below].mean(axis=0) if own or below else None


def genes_of_groups(verb: Verb, group_of_cell: np.ndarray, num_groups: int) -> GroupGenes:
    """Sums over at most the same number of cells of each group, as the model sees them."""
    gene_tokenizer = verb.loaded.processor.gene_tokenizer
    most = max(_MIN_CELLS_PER_GROUP, _MAX_CELLS // num_groups)
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
