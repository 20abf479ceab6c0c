"""The floor for pseudo-cells: a negative binomial per type and gene, genes independent given the library size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .metrics import Labels


@dataclass(frozen=True)
class TypeOfCounts:
    """One fitted type: expected share of each gene, dispersion of each gene, mean and spread of log library size."""

    share: np.ndarray
    dispersion: np.ndarray
    log_library_mean: float
    log_library_std: float


class NegativeBinomialGenerator:
    """Draws counts for each type from means and dispersions of its training cells.

    For cell i with library size l_i and gene g with share p_g the counts have mean l_i p_g and variance
    l_i p_g + d_g (l_i p_g)^2; d_g is the moment estimate. Library sizes are log-normal.

    Parameters
    ----------
    counts
        Training cells x genes, raw counts.
    types
        The type of each cell.
    """

    def __init__(self, counts: sp.csr_matrix | np.ndarray, types: Labels):
        types = np.asarray(types).astype(str)
        counts = sp.csr_matrix(counts)
        if np.any(counts.data != np.round(counts.data)):
            raise ValueError(
                "The negative binomial needs raw counts; the training cells hold values that are not whole."
            )
        names, cells = np.unique(types, return_counts=True)
        self.fitted = {name: _fit(counts[types == name].toarray()) for name in names}
        self.share_of_type = dict(zip(names, cells / cells.sum(), strict=True))

    def sample(self, cell_type: str, num_cells: int, seed: int) -> np.ndarray:
        """`num_cells` new cells of a type, cells x genes, int64."""
        if cell_type not in self.fitted:
            raise ValueError(f"{cell_type!r} has no training cells; known are {', '.join(sorted(self.fitted))}.")
        fitted, generator = self.fitted[cell_type], np.random.default_rng(seed)
        library = np.exp(generator.normal(fitted.log_library_mean, fitted.log_library_std, size=(num_cells, 1)))
        shape = 1 / np.maximum(fitted.dispersion, 1e-8)
        return generator.poisson(library * fitted.share * generator.gamma(shape, 1 / shape, (num_cells, len(shape))))

    def sample_mixture(self, num_cells: int, seed: int) -> np.ndarray:
        """`num_cells` cells of types drawn by their share among the training cells."""
        numbers = np.random.default_rng(seed).multinomial(num_cells, list(self.share_of_type.values()))
        blocks = [self.sample(name, n, seed) for name, n in zip(self.share_of_type, numbers, strict=True) if n]
        return np.vstack(blocks)


def _fit(counts: np.ndarray) -> TypeOfCounts:
    library = np.maximum(counts.sum(1, keepdims=True), 1)
    share = counts.sum(0) / library.sum()
    expected = library * share
    excess = ((counts - expected) ** 2 - expected).sum(0)
    dispersion = np.clip(excess / np.maximum((expected**2).sum(0), 1e-12), 0, 100)
    return TypeOfCounts(share, dispersion, float(np.log(library).mean()), float(np.log(library).std()))
