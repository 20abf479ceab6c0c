"""Which genes speak for a call against its runner-up, and whether the genes of a study speak for any call at all.

For a call speak the genes that its cells and the called type's profile both raise. Profiles are the measured means that
travel with the model, not marker lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .embedding import CELLS_PER_CHUNK
from .processing.back_off_scmmgpt import Calls
from .processing.calling_scmmgpt import CellAnnotator
from .processing.labels_scmmgpt import UNKNOWN
from .processing.type_profiles_scmmgpt import TypeProfiles
from .report import GroupGenes

if TYPE_CHECKING:
    from .verb import Verb

# Cells whose genes are looked at: enough for stable means, few enough for any file.
_MAX_CELLS = 6_000
_MIN_CELLS_PER_GROUP = 20
_NUM_GENES = 6
_NUM_SHUFFLES = 20


@dataclass(frozen=True)
class CalledGenes:
    """The genes of the cells that share a call, among at most some thousands of each.

    `names` are the calls, `group_of_cell` (N,) says which of them each cell has.
    """

    names: np.ndarray
    group_of_cell: np.ndarray
    genes: GroupGenes

    @classmethod
    def of(cls, verb: Verb, calls: Calls) -> CalledGenes:
        """Read some cells of each call once more."""
        names, group_of_cell = numbered(calls.labels)
        return cls(names, group_of_cell, genes_of_groups(verb, group_of_cell, len(names)))

    @property
    def differences(self) -> np.ndarray:
        """(groups, genes) how far the mean of each group lies above that of all cells."""
        means = self.genes.value_sums / np.maximum(self.genes.num_cells, 1)[:, None]
        return means - self.genes.value_sums.sum(axis=0) / max(self.genes.num_cells.sum(), 1)


def numbered(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct names in order, and (N,) the number of each cell's: texts as wide as the longest would fill memory."""
    first_seen: dict[str, int] = {}
    numbers = np.fromiter((first_seen.setdefault(name, len(first_seen)) for name in names), np.int64, len(names))
    distinct, place = np.unique(list(first_seen), return_inverse=True)
    return distinct.astype(str), place[numbers]


def support_of_genes(called: CalledGenes, profiles: TypeProfiles) -> float:
    """How much better the calls' genes agree with some type than the same values under shuffled gene names would.

    In standard deviations, cells counting alike; infinite where there is but one call, of which nothing can be said.
    """
    is_call = called.names != UNKNOWN
    if is_call.sum() < 2:
        return float("inf")
    measured = called.genes.value_sums[:, profiles.gene_rows].sum(axis=0) > 0
    differences = called.differences[is_call][:, profiles.gene_rows[measured]]
    types = profiles.differences[:, measured] / profiles.norms(profiles.gene_rows[measured])[:, None]
    generator = np.random.default_rng(0)
    best = (types @ differences.T).max(axis=0)
    shuffled = (differences[:, generator.permutation(differences.shape[1])] for _ in range(_NUM_SHUFFLES))
    by_chance = np.array([(types @ one.T).max(axis=0) for one in shuffled])
    deviations = (best - by_chance.mean(axis=0)) / np.maximum(by_chance.std(axis=0), 1e-9)
    return float(np.average(deviations, weights=np.bincount(called.group_of_cell)[is_call]))


def evidence_of(verb: Verb, calls: Calls) -> tuple[dict[str, np.ndarray], float]:
    """The table of the genes that speak for each call, and the `support_of_genes`; nothing without type profiles."""
    profiles = verb.loaded.annotator.type_profiles
    if profiles is None:
        return _table([]), float("inf")
    called = CalledGenes.of(verb, calls)
    return _evidence_table(called, verb.loaded.annotator, calls), support_of_genes(called, profiles)


def _evidence_table(called: CalledGenes, annotator: CellAnnotator, calls: Calls) -> dict[str, np.ndarray]:
    """For each called type its most frequent runner-up, and the genes that speak most for it against that one."""
    runners_up, second_of_cell = numbered(calls.second_choices)
    size = len(called.names), len(runners_up)
    pairs = np.bincount(called.group_of_cell * size[1] + second_of_cell, minlength=size[0] * size[1]).reshape(size)
    rows = []
    for group, (name, counts) in enumerate(zip(called.names, pairs, strict=True)):
        counts[runners_up == name] = 0
        if name == UNKNOWN or not counts.any():
            continue
        against = str(runners_up[counts.argmax()])
        rows.append((str(name), against, ", ".join(_speaking(annotator, called.genes, group, str(name), against))))
    return _table(rows)


def _table(rows: list[tuple[str, str, str]]) -> dict[str, np.ndarray]:
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
