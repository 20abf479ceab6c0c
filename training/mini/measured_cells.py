"""Cells as they were counted: what redrawn cells lack is that genes of one type rise and fall together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
    """

    counts: sp.csr_matrix
    profiles: np.ndarray


def read_measured_cells(
    files: Iterable[Path], identifier: GeneIdentifier, profiles: Profiles
) -> dict[str, MeasuredCells]:
    """By family of studies: the cells of all files that hold counts of whole transcriptomes and went into a profile."""
    table, num_genes = profiles.table, profiles.share.shape[1]
    row_of = {key: i for i, key in enumerate(zip(table.study, table.original, strict=True))}
    families = {}
    for path in files:
        cells = anndata.read_h5ad(path)
        matrix, columns = on_vocabulary(cells, identifier, num_genes)
        belongs = np.full(cells.n_obs, -1)
        for row, members in rows_by_profile(cells.obs, path.stem):
            belongs[members] = row_of.get((row["study"], row["original"]), -1)
        mine = np.flatnonzero(belongs >= 0)
        if holds_counts(cells) and columns.sum() >= WHOLE_TRANSCRIPTOME and len(mine):
            families[path.stem] = MeasuredCells(matrix[mine], belongs[mine])
    return families
