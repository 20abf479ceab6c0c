"""What is known of cells beside what the model reads: species, tissue, genes, and which genes they raise in their study."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from .cells import CellsInFile, CellsInMemory
from .claims import CellFacts
from .processing.prompting_scmmgpt import FIELD_COLUMNS, NUM_RAISED_GENES, cell_context, is_missing

# Cells that stand for their study: enough for means and percentiles, few enough for any file.
_MAX_CELLS = 6_000
_MIN_CELLS_PER_GROUP = 30
# Cells below which nothing is called raised: a study of a few cells is no background.
MIN_STUDY = 20
_SHARE_OF_ONE_TISSUE = 0.9
_MAX_LETTERS = 60
_LEAST_DIFFERENCE = 0.3


@dataclass
class Study:
    """Cells that are compared with one another.

    Attributes
    ----------
    values
        (cells, genes) as the model reads them, zero where a gene was not detected.
    genes, gene_ids
        Names and ids of the columns.
    """

    values: sp.csr_matrix
    genes: list[str]
    gene_ids: np.ndarray

    @cached_property
    def place_of(self) -> dict[str, int]:
        return {gene: place for place, gene in enumerate(self.genes)}

    @cached_property
    def means(self) -> np.ndarray:
        return np.asarray(self.values.mean(axis=0)).ravel()

    @cached_property
    def spreads(self) -> np.ndarray:
        squares = np.asarray(self.values.multiply(self.values).mean(axis=0)).ravel()
        return np.sqrt(np.maximum(squares - self.means**2, 0))


def study_of(gene_tokenizer: Any, features: dict[str, np.ndarray]) -> Study:
    """The cells of a call of the gene tokenizer as a matrix over its genes."""
    is_gene = gene_tokenizer.is_gene(features["gene_ids"], features["gene_mask"])
    cell, place = np.nonzero(is_gene)
    columns = gene_tokenizer.gene_rows(features["gene_ids"][cell, place])
    shape = (len(is_gene), len(gene_tokenizer.genes))
    values = sp.csr_matrix((features["gene_values"][cell, place], (cell, columns)), shape=shape)
    return Study(values, gene_tokenizer.genes, gene_tokenizer.gene_ids)


def raised_genes(study: Study, values: sp.csr_matrix, number: int) -> list[str]:
    """Genes that some cells, taken together, have higher than the study, those that stand out most first.

    Times the spread over the study: a gene that hardly any other cell shows is chance more often than a marker.
    """
    difference = np.asarray(values.mean(axis=0)).ravel() - study.means
    score = np.where(difference > _LEAST_DIFFERENCE, difference * study.spreads, 0)
    best = np.argsort(-score, kind="stable")[:number]
    return [study.genes[place] for place in best if score[place] > 0]


# ---- groups of cells in their study


@dataclass
class Groups:
    """Groups of cells (clusters, or cells by themselves) beside the study that they belong to.

    Attributes
    ----------
    group_of_cell
        (cells,) the number of the group of each cell that stands for the study, -1 for none.
    tissues
        The tissue of each group, "" where it is not given.
    """

    study: Study
    group_of_cell: np.ndarray
    species: str
    tissues: list[str]
    num_measured: int
    measured: frozenset[str]

    @property
    def is_compared(self) -> bool:
        return self.study.values.shape[0] >= MIN_STUDY

    def members(self, group: int) -> sp.csr_matrix:
        return self.study.values[np.flatnonzero(self.group_of_cell == group)]

    def raised(self, group: int) -> list[str]:
        return raised_genes(self.study, self.members(group), NUM_RAISED_GENES) if self.is_compared else []

    def context(self, group: int) -> str:
        """What the language model is told of a group."""
        detected = int(np.median(np.diff(self.members(group).indptr)))
        genes = (detected, self.num_measured)
        return cell_context(self.species, self.tissues[group], genes, self.raised(group))

    def gene_percentile(self, group: int, gene: str) -> float | None:
        """How many of a hundred cells of the study have less of a gene than the group has on average."""
        if gene not in self.measured:
            return None
        if not self.is_compared:
            return float("nan")
        column = self._column(gene)
        mean = column[self.group_of_cell == group].mean()
        return float(100 * ((column < mean).mean() + (column == mean).mean() / 2))

    def gene_share(self, group: int, gene: str) -> float:
        return float((self._column(gene)[self.group_of_cell == group] > 0).mean()) if gene in self.measured else 0.0

    def _column(self, gene: str) -> np.ndarray:
        return self.study.values[:, self.study.place_of[gene]].toarray().ravel()

    def facts(self, group: int, label: str, second: str = "", candidates: tuple[str, ...] = ()) -> CellFacts:
        """For claims about a group."""
        return CellFacts(
            label,
            second,
            candidates,
            self.species,
            self.tissues[group],
            tuple(self.raised(group)),
            lambda gene: self.gene_percentile(group, gene),
            lambda gene: self.gene_share(group, gene),
        )


def read_groups(gene_tokenizer: Any, cells: CellsInMemory | CellsInFile, groups: np.ndarray) -> Groups:
    """Groups of some cells (-1: in none), read off so many cells of each that all fit into memory."""
    number = int(groups.max()) + 1
    chosen = _chosen(groups, max(_MIN_CELLS_PER_GROUP, _MAX_CELLS // max(number, 1)))
    features = {name: np.asarray(values) for name, values in gene_tokenizer(cells.rows(chosen)).items()}
    species = str((gene_tokenizer.account or {}).get("species") or "")
    measured = gene_tokenizer.measured_genes(cells.source)
    names = gene_tokenizer.genes
    return Groups(
        study_of(gene_tokenizer, features),
        groups[chosen],
        species,
        [tissue_of(cells.obs, np.flatnonzero(groups == group)) for group in range(number)],
        len(measured),
        frozenset(names[place] for place in measured),
    )


def _chosen(groups: np.ndarray, most: int) -> np.ndarray:
    shuffled = np.random.default_rng(0).permutation(len(groups))
    by_group = (shuffled[groups[shuffled] == group][:most] for group in np.unique(groups))
    return np.sort(np.concatenate(list(by_group)))


def tissue_of(obs: Any, rows: np.ndarray) -> str:
    """The tissue that nearly all of some cells are said to come from, as plain words."""
    column = next((name for name in FIELD_COLUMNS["tissue"] if name in obs), None)
    if column is None or not len(rows):
        return ""
    counts = obs[column].iloc[rows].astype(str).value_counts()
    tissue, share = str(counts.index[0]), counts.iloc[0] / len(rows)
    return "" if share < _SHARE_OF_ONE_TISSUE or is_missing(tissue) else plain_words(tissue)


def origin(species: str, tissue: str) -> str:
    """What is known of where cells are from, as the end of a sentence."""
    if not species:
        return ""
    return f" from {species} {tissue}" if tissue else f" of a {species} sample"


def plain_words(text: str) -> str:
    """The first words of a value of a table, without anything that a language model could take for an order or a mark."""
    words = "".join(letter if letter.isalnum() or letter in " ,-/" else " " for letter in text).split()
    short = " ".join(words)
    # A tissue has a few words; a sentence is none.
    return short if len(short) <= _MAX_LETTERS and len(words) <= 6 else ""
