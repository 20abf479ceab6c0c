"""How much the cells of a study vary: droplets without cells, and made-up values, vary hardly more than by chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .processing.matrix_state_scmmgpt import recover_counts

# Cells of one pure type, shallowly sequenced, come down to 1.02; counts drawn from one profile lie at 1.
NOISE_DISPERSION = 1.05
# Where counts cannot be told. Cells of one pure type come down to .057; noise of deep cells has .01 and less.
NOISE_SPREAD = 0.02
_MIN_CELLS = 100
_NUM_GENES = 100


class Variation(NamedTuple):
    """How much the highest genes of some cells vary, their median.

    `dispersion` is the variance of their counts beside that of chance alone, which is 1; `spread` the variance of their
    shares beside the square of the mean share, where no counts can be told. None: it cannot be told.
    """

    dispersion: float | None = None
    spread: float | None = None

    def is_noise(self, account: Mapping[str, Any]) -> bool:
        """Whether the cells vary hardly more than by chance; `account` is that of their genes and values."""
        came_as_counts = account.get("matrix_state") == "counts" or account.get("cells_turned_back_into_counts")
        if self.dispersion is not None:
            return bool(came_as_counts) and self.dispersion < NOISE_DISPERSION
        return self.spread is not None and account.get("matrix_state") != "scaled" and self.spread < NOISE_SPREAD


UNTOLD = Variation()


def variation(gene_tokenizer: Any, features: Mapping[str, np.ndarray]) -> Variation:
    """That of cells in tokens, packed or padded."""
    if gene_tokenizer.value_mode != "log1p":
        return UNTOLD
    is_gene = gene_tokenizer.is_gene(features["gene_ids"]) & (features["gene_values"] > 0)
    if "cell_cu_seqlens" in features:
        bounds = np.concatenate([[0], is_gene.cumsum()])[features["cell_cu_seqlens"]]
    else:
        bounds = np.concatenate([[0], is_gene.sum(axis=1).cumsum()])
    values = np.expm1(features["gene_values"][is_gene].astype(np.float64))
    genes = gene_tokenizer.gene_rows(features["gene_ids"][is_gene])
    counts, found = recover_counts(bounds, values)
    is_filled = np.diff(bounds) > 0
    if np.count_nonzero(found & is_filled) >= _MIN_CELLS:
        return Variation(dispersion=_dispersion(*_cells(counts, genes, bounds, found & is_filled)))
    if np.count_nonzero(is_filled) >= _MIN_CELLS:
        return Variation(spread=_spread(*_cells(values, genes, bounds, is_filled)))
    return UNTOLD


def _cells(
    values: np.ndarray, genes: np.ndarray, bounds: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of some cells the values, their genes, and which of these cells each is of."""
    cell = np.repeat(np.arange(len(chosen)), np.diff(bounds))
    kept = chosen[cell]
    return values[kept], genes[kept], (np.cumsum(chosen) - 1)[cell[kept]]


def _dispersion(counts: np.ndarray, genes: np.ndarray, cell: np.ndarray) -> float:
    """Pearson's X2 of each gene against the same share of every cell, per cell."""
    totals = np.bincount(cell, weights=counts)
    sums = np.bincount(genes, weights=counts)
    squares = np.bincount(genes, weights=counts**2 / np.maximum(totals, 1)[cell])
    highest = _highest(sums)
    chi_squares = squares[highest] * totals.sum() / sums[highest] - sums[highest]
    return float(np.median(chi_squares) / len(totals))


def _spread(values: np.ndarray, genes: np.ndarray, cell: np.ndarray) -> float:
    shares = values / np.bincount(cell, weights=values)[cell]
    highest = _highest(np.bincount(genes, weights=shares))
    means, squares = (np.bincount(genes, weights=each)[highest] / (cell[-1] + 1) for each in (shares, shares**2))
    return float(np.median(squares / means**2 - 1))


def _highest(sums: np.ndarray) -> np.ndarray:
    highest = np.argsort(-sums)[:_NUM_GENES]
    return highest[sums[highest] > 0]
