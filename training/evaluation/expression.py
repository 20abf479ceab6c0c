"""Cells as matrices that metrics and baselines share: linear values, log expression on named genes, components.

Genes are matched by upper-case symbol, which joins most one-to-one pairs of human and mouse genes; the model's own
gene matching is richer, and the baselines are given this one because anybody can repeat it in a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scmmgpt.errors import UserError

if TYPE_CHECKING:
    from anndata import AnnData

LARGEST_LOG_VALUE = 30.0  # exp(30) transcripts in one cell do not exist: a larger value is not a logarithm
TARGET_SUM = 1e4


def linear_expression(adata: AnnData) -> sp.csr_matrix:
    """Values proportional to transcripts: counts as they are, log1p values inverted.

    Entries decide, not labels: whole numbers and anything above 30 are linear. A base-2 logarithm is inverted as a
    natural one, which keeps the order of genes within each cell.
    """
    matrix = sp.csr_matrix(adata.X, dtype=np.float32, copy=True)
    values = matrix.data
    if not np.isfinite(values).all() or (values < 0).any():
        raise UserError("X holds NaN, infinite or negative values; give counts or log1p-normalised values in X.")
    is_linear = len(values) == 0 or values.max() > LARGEST_LOG_VALUE or np.array_equal(values, np.round(values))
    if not is_linear:
        matrix.data = np.expm1(values)
    return matrix


def holds_counts(adata: AnnData) -> bool:
    """Whether every value of X is a whole number."""
    values = adata.X.data if sp.issparse(adata.X) else np.asarray(adata.X)
    return bool(np.array_equal(values, np.round(values)))


def upper_symbols(adata: AnnData) -> np.ndarray:
    """The gene symbols of AnnData in upper case."""
    names = adata.var.get("feature_name", adata.var_names)
    return np.array([str(name).upper() for name in names], object)


def on_genes(matrix: sp.csr_matrix, symbols: np.ndarray, genes: np.ndarray) -> sp.csr_matrix:
    """Columns of `matrix` rearranged to `genes`; missing genes are 0, of duplicate ones the first counts."""
    column_of = {symbol: i for i, symbol in reversed(list(enumerate(symbols)))}
    pairs = np.array([(column_of[gene], i) for i, gene in enumerate(genes) if gene in column_of]).reshape(-1, 2)
    selector = sp.csr_matrix(
        (np.ones(len(pairs), np.float32), (pairs[:, 0], pairs[:, 1])), shape=(matrix.shape[1], len(genes))
    )
    return sp.csr_matrix(matrix @ selector)


def log_normalised(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """log(1 + x) of each cell scaled to a sum of 10,000 over the genes of `matrix`; empty cells stay empty."""
    totals = np.asarray(matrix.sum(1)).ravel()
    scale = np.divide(TARGET_SUM, totals, out=np.zeros_like(totals), where=totals > 0)
    return sp.csr_matrix(sp.diags(scale.astype(np.float32)) @ matrix).log1p()


def log_expression(adata: AnnData) -> sp.csr_matrix:
    """`log_normalised` of `linear_expression`."""
    return log_normalised(linear_expression(adata))


def most_variable(matrix: sp.csr_matrix, num_genes: int) -> np.ndarray:
    """Columns of largest variance, in their own order."""
    mean = np.asarray(matrix.mean(0)).ravel()
    variance = np.asarray(matrix.multiply(matrix).mean(0)).ravel() - mean**2
    return np.sort(np.argsort(-variance, kind="stable")[:num_genes])


def principal_space(matrix: sp.csr_matrix, *, num_genes: int = 2000, num_components: int = 50, seed: int = 0):
    """Fit variable genes and their components on `matrix`; returns the function that takes cells there."""
    from sklearn.decomposition import PCA

    genes = most_variable(matrix, num_genes)
    dense = matrix[:, genes].toarray()
    components = PCA(min(num_components, *(n - 1 for n in dense.shape)) or 1, random_state=seed).fit(dense)
    return lambda cells: components.transform(sp.csr_matrix(cells)[:, genes].toarray())
