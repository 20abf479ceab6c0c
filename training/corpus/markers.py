"""Marker genes of cell types, computed from the cells of a corpus."""

from __future__ import annotations

import re

import numpy as np
import scipy.sparse as sp

# Genes that mark stress, ambient RNA or the depth of a library before they mark a type.
_UNINFORMATIVE = re.compile(r"^(MT-|RP[SL]\d|MALAT1$|NEAT1$|XIST$|<)", re.IGNORECASE)
MIN_CELLS, MIN_SHARE_EXPRESSING = 5, 0.2


class MarkerSums:
    """Values and expressing cells of every type, summed part by part, so that a corpus of any size fits.

    Sources measure different genes. A source counts as measuring a gene when any of its cells expresses it; the mean
    of a gene is taken over the cells of such sources.
    """

    def __init__(self, num_types: int, num_sources: int, num_genes: int):
        self.values = np.zeros((num_types, num_genes), np.float32)
        self.expressing = np.zeros((num_types, num_genes), np.float32)
        self.num_cells = np.zeros((num_sources, num_types))
        self.is_measured = np.zeros((num_sources, num_genes), bool)

    def add(self, cells: sp.csr_matrix, types: np.ndarray, sources: np.ndarray) -> None:
        """Add cells (cells x genes) of these types and sources."""
        present, places = np.unique(types, return_inverse=True)
        columns = np.arange(len(types))
        member = sp.csr_matrix((np.ones(len(types), np.float32), (places, columns)), shape=(len(present), len(types)))
        is_expressed = sp.csr_matrix((np.ones(cells.nnz, np.float32), cells.indices, cells.indptr), shape=cells.shape)
        self.values[present] += (member @ cells).toarray()
        self.expressing[present] += (member @ is_expressed).toarray()
        np.add.at(self.num_cells, (sources, types), 1)
        for source in np.unique(sources):
            self.is_measured[source, np.unique(cells[sources == source].indices)] = True

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean value and share of expressing cells, types x genes; NaN where no source measured the gene."""
        num_measured = self.num_cells.T @ self.is_measured
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.values / num_measured, self.expressing / num_measured


def marker_genes(sums: MarkerSums, genes: list[str], num_markers: int) -> dict[int, list[str]]:
    """The genes that tell each type from the others, best first: high in it, low on average elsewhere, often expressed.

    Parameters
    ----------
    sums
        Of the cells to learn from.
    genes
        Names of the columns.
    num_markers
        How many to keep at most.
    """
    means, shares = sums.means()
    is_known = np.nan_to_num(sums.num_cells.sum(axis=0)) >= MIN_CELLS
    is_candidate = np.array([not _UNINFORMATIVE.match(gene) for gene in genes])
    known_means = np.where(is_known[:, None], means, np.nan)
    num_types = (~np.isnan(known_means)).sum(axis=0)
    total = np.nansum(known_means, axis=0)
    markers = {}
    for code in np.flatnonzero(is_known):
        elsewhere = (total - np.nan_to_num(known_means[code])) / np.maximum(num_types - 1, 1)
        score = shares[code] * (means[code] - elsewhere)
        score[~is_candidate | ~(shares[code] >= MIN_SHARE_EXPRESSING) | ~(score > 0)] = -np.inf
        best = np.argsort(-score, kind="stable")[:num_markers]
        markers[int(code)] = [genes[gene] for gene in best if np.isfinite(score[gene])]
    return markers
