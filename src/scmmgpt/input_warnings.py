"""What in some cells may spoil results, said in words that name a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_FEW_COVERED = 0.5
# Cells of one pure type, shallowly sequenced, come down to 1.02; counts drawn from one profile lie at 1.
NOISE_DISPERSION = 1.05
_MIN_CELLS_FOR_DISPERSION = 100
_GENES_FOR_DISPERSION = 100


def input_warnings(account: Mapping[str, Any]) -> list[str]:
    """What an account of genes gives reason to doubt, each with a remedy."""
    found = []
    if account.get("share_of_counts", 1) < _FEW_COVERED:
        found.append(
            f"Only {account['share_of_counts']:.0%} of the counts lie in genes that the model knows: check the species "
            "and that var names are symbols or Ensembl ids."
        )
    if account.get("empty_cells"):
        found.append(f"{account['empty_cells']} cells express no gene that the model knows; they will be unknown.")
    if account.get("matrix_state") != "counts" and not account.get("cells_turned_back_into_counts"):
        found.append(
            f"No raw counts were found; {account.get('matrix')} ({account.get('matrix_detail')}) is used. Put raw "
            "counts into layers['counts'] if you have them."
        )
    if account.get("duplicate_cell_names"):
        found.append(
            f"{account['duplicate_cell_names']} cell names are repeated; adata.obs_names_make_unique() helps."
        )
    return found


def cell_warnings(
    num_implausible: int, num_cells: int, dispersion: float | None, account: Mapping[str, Any]
) -> list[str]:
    """What the cells' own values give reason to doubt.

    Parameters
    ----------
    num_implausible, num_cells
        Cells that look like no cell, of how many.
    dispersion
        What `dispersion` found.
    account
        Of the genes; where it says that no counts were read, `dispersion` means nothing.
    """
    found = []
    if num_implausible:
        found.append(
            f"{num_implausible} of {num_cells} cells look like no cell: genes that are usually high are not high in "
            "them. Noise looks like this, and so do counts under the wrong gene names: check that they match."
        )
    came_as_counts = account.get("matrix_state") == "counts" or account.get("cells_turned_back_into_counts")
    if came_as_counts and dispersion is not None and dispersion < NOISE_DISPERSION:
        found.append(
            "The cells differ hardly more than counts drawn from one profile: empty droplets look like this, and so "
            "does a pure population that was sequenced shallowly. Filter out empty droplets before you trust a name."
        )
    return found


def dispersion(gene_tokenizer: Any, features: Mapping[str, np.ndarray]) -> float | None:
    """Variance of the highest genes' counts beside that of chance alone, which is 1; None where it cannot be told.

    Parameters
    ----------
    gene_tokenizer
        What made the tokens.
    features
        Tokens of cells that came as counts.
    """
    is_gene = gene_tokenizer.is_gene(features["gene_ids"]) & (features["gene_values"] > 0)
    if gene_tokenizer.value_mode != "log1p" or np.count_nonzero(is_gene.any(axis=1)) < _MIN_CELLS_FOR_DISPERSION:
        return None
    counts = _counts(np.where(is_gene, features["gene_values"], 0).astype(np.float64))
    totals = counts.sum(axis=1, keepdims=True)
    places = np.where(is_gene, gene_tokenizer.gene_rows(features["gene_ids"]), 0).ravel()
    sums, squares = (
        np.bincount(places, weights=np.ravel(each)) for each in (counts, counts**2 / np.maximum(totals, 1))
    )
    highest = np.argsort(-sums)[:_GENES_FOR_DISPERSION]
    highest = highest[sums[highest] > 0]
    # Pearson's X2 of each gene against the same share of every cell, per cell.
    chi_squares = squares[highest] * totals.sum() / sums[highest] - sums[highest]
    return float(np.median(chi_squares) / np.count_nonzero(totals))


def _counts(values: np.ndarray) -> np.ndarray:
    """Counts behind log1p values of scaled cells: a cell's smallest value stands for 1."""
    linear = np.expm1(values)
    unit = np.where(linear > 0, linear, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    return np.rint(linear / unit)
