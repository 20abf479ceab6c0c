"""Cells as they were counted: what redrawn cells lack is that genes of one type rise and fall together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import anndata
import numpy as np
import scipy.sparse as sp

from scmmgpt.processing.gene_identity_scmmgpt import GeneIdentifier
from scmmgpt.training.evaluation.expression import holds_counts

from .profiles import WHOLE_TRANSCRIPTOME, Profiles, on_vocabulary, rows_by_profile


@dataclass(frozen=True)
class MeasuredCells:
    """N cells of one family of studies.

    Attributes
    ----------
    counts
        (N, G) over the genes of the vocabulary.
    profiles
        (N,) the profile that each cell went into.
    measured
        (G,) genes that were measured.
    """

    counts: sp.csr_matrix
    profiles: np.ndarray
    measured: np.ndarray

    @property
    def are_whole(self) -> bool:
        """Whether these are whole transcriptomes, not a panel."""
        return self.measured.sum() >= WHOLE_TRANSCRIPTOME


def read_measured_cells(
    sources: Iterable[tuple[str, anndata.AnnData]], identifier: GeneIdentifier, profiles: Profiles
) -> dict[str, MeasuredCells]:
    """By family of studies: the cells of all sources that hold counts and went into a profile."""
    table, num_genes = profiles.table, profiles.share.shape[1]
    row_of = {key: i for i, key in enumerate(zip(table.family, table.study, table.original, strict=True))}
    families = {}
    for family, cells in sources:
        matrix, columns = on_vocabulary(cells, identifier, num_genes)
        belongs = np.full(cells.n_obs, -1)
        for row, members in rows_by_profile(cells.obs, family):
            belongs[members] = row_of.get((family, row["study"], row["original"]), -1)
        mine = np.flatnonzero((belongs >= 0) & (np.diff(matrix.indptr) > 0))
        if holds_counts(cells) and len(mine):
            families[family] = MeasuredCells(matrix[mine], belongs[mine], columns)
    return families
