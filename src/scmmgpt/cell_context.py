"""What is known of cells beside what the model reads: species, tissue, genes, and which genes they raise in their study."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

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
