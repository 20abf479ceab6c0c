"""Mean expression profiles, study x original label: what the embedded model is trained on instead of single cells.

A labelled study of five thousand cells holds some twenty different things to learn. A profile is one of them; the
simulator in `cell_simulator.py` redraws cells from it at every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgpt.processing.features_scmmgpt import features_of
from scmmgpt.processing.gene_identity_scmmgpt import GeneIdentifier, gene_name_columns
from scmmgpt.training.evaluation.expression import TARGET_SUM, linear_expression
from scmmgpt.training.evaluation.study import study_of_cells

UNKNOWN = "unknown"
WHOLE_TRANSCRIPTOME = 5_000  # genes measured: below this a study is a panel and says nothing about gene statistics


@dataclass
class Profiles:
    """P profiles over the G genes of a vocabulary.

    Attributes
    ----------
    table
        One row a profile: study, family, original label, term_id, label, tissue, organism, stage, num_cells.
    share
        (P, G) each gene's share of the counts; rows sum to 1 over the measured genes.
    measured
        (P, G) genes that the study measured; a zero elsewhere means nothing.
    medians
        (G,) median of each gene's non-zero values in cells scaled to 10,000; NaN where never seen.
    """

    table: pd.DataFrame
    share: np.ndarray
    measured: np.ndarray
    medians: np.ndarray

    @property
    def masses(self) -> np.ndarray:
        """Each gene's mean share in whole transcriptomes, over the profiles that measured it."""
        whole = self.measured.sum(1) >= WHOLE_TRANSCRIPTOME
        times = self.measured[whole].sum(0)
        mass = self.share[whole].sum(0) / np.maximum(times, 1)
        return mass / mass.sum()

    def without(self, studies: Iterable[str]) -> Profiles:
        """The profiles of all other studies; a family's name leaves out all of its studies."""
        left_out = set(studies)
        known = set(self.table.study) | set(self.table.family)
        if strange := sorted(left_out - known):
            raise ValueError(f"No study or family is called {strange[0]!r}. Studies: {', '.join(sorted(known))}.")
        kept = ~(self.table.study.isin(left_out) | self.table.family.isin(left_out)).to_numpy()
        return Profiles(self.table[kept].reset_index(drop=True), self.share[kept], self.measured[kept], self.medians)


def read_profiles(
    sources: Iterable[tuple[str, anndata.AnnData]], identifier: GeneIdentifier, num_genes: int
) -> Profiles:
    """Profiles of all labelled cells; those without a Cell Ontology term are left out.

    Parameters
    ----------
    sources
        Name of the family of studies, and AnnData with `cell_type`, `cell_type_ontology_term_id`,
        `cell_type_original` and, where it holds several studies, `study_profile` or `dataset`; with `is_mean` rows are
        means of many cells and say nothing about the values in one.
    identifier
        Places genes in the vocabulary.
    num_genes
        Genes of that vocabulary.
    """
    tables, shares, measured, values = [], [], [], _ValuesByGene(num_genes)
    for family, cells in sources:
        matrix, columns = on_vocabulary(cells, identifier, num_genes)
        rows = rows_by_profile(cells.obs, family)
        for row, members in rows:
            total = np.asarray(matrix[members].sum(0)).ravel()
            tables.append(row)
            shares.append((total / total.sum()).astype(np.float32))
            measured.append(columns)
        if columns.sum() >= WHOLE_TRANSCRIPTOME and "is_mean" not in cells.obs:
            values.add(matrix)
    return Profiles(pd.DataFrame(tables), np.array(shares), np.array(measured), values.medians())


def on_vocabulary(
    cells: anndata.AnnData, identifier: GeneIdentifier, num_genes: int
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Linear values of the cells over the vocabulary's genes, and which of these were measured."""
    is_gene = features_of(cells.var, cells.var_names).is_gene
    cells = cells if is_gene.all() else cells[:, is_gene]
    rows = identifier.match(gene_name_columns(cells.var, cells.var_names)).rows
    known = np.flatnonzero(rows >= 0)
    selector = sp.csr_matrix((np.ones(len(known), np.float32), (known, rows[known])), shape=(cells.n_vars, num_genes))
    columns = np.zeros(num_genes, bool)
    columns[rows[known]] = True
    return sp.csr_matrix(linear_expression(cells) @ selector), columns


def rows_by_profile(obs: pd.DataFrame, name: str) -> list[tuple[dict, np.ndarray]]:
    """What the table says of each profile of a file called `name`, and the cells that go into it."""
    obs = obs.reset_index(drop=True).astype(str)
    obs["study"] = study_of_cells(obs, name)
    obs = obs[obs.cell_type_ontology_term_id != UNKNOWN]
    found = []
    for (study, original), members in obs.groupby(["study", "cell_type_original"], sort=True).groups.items():
        first = obs.loc[members[0]]
        row = {
            "study": study,
            "family": name,
            "original": original,
            "term_id": first.cell_type_ontology_term_id,
            "label": first.cell_type,
            "tissue": first.tissue,
            "organism": first.organism,
            "stage": first.get("stage", ""),
            "num_cells": len(members),
        }
        found.append((row, members.to_numpy()))
    return found


class _ValuesByGene:
    """Medians of non-zero values from a sample of cells of every study."""

    CELLS_PER_FILE = 4_000

    def __init__(self, num_genes: int):
        self.num_genes = num_genes
        self.genes: list[np.ndarray] = []
        self.values: list[np.ndarray] = []

    def add(self, matrix: sp.csr_matrix) -> None:
        step = max(1, matrix.shape[0] // self.CELLS_PER_FILE)
        sample = matrix[::step].tocoo()
        totals = np.maximum(np.asarray(matrix[::step].sum(1)).ravel(), 1e-9)
        self.genes.append(sample.col)
        self.values.append((sample.data / totals[sample.row] * TARGET_SUM).astype(np.float32))

    def medians(self) -> np.ndarray:
        genes, values = np.concatenate([np.array([], int), *self.genes]), np.concatenate([[], *self.values])
        median = pd.Series(values).groupby(genes).median()
        return median.reindex(range(self.num_genes)).to_numpy()
