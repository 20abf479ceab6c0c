"""Simple generators of cells of a type: a negative binomial per gene, independent or joined by a Gaussian copula; and real
cells of other studies, handed out again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.stats import nbinom, norm

from .metrics import Labels

COPULA_GENES = 400
COPULA_SHRINKAGE = 0.1


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


class GaussianCopulaGenerator(NegativeBinomialGenerator):
    """The same marginal distributions, joined within each type by a Gaussian copula, as scDesign3 does.

    The genes that vary most in a type are joined; correlations are those of randomised normal scores, shrunk a little.
    """

    def __init__(self, counts: sp.csr_matrix | np.ndarray, types: Labels, seed: int = 0):
        super().__init__(counts, types)
        types, counts = np.asarray(types).astype(str), sp.csr_matrix(counts)
        generator = np.random.default_rng(seed)
        self.joined = {name: self._join(counts[types == name].toarray(), name, generator) for name in self.fitted}

    def sample(self, cell_type: str, num_cells: int, seed: int) -> np.ndarray:
        counts = super().sample(cell_type, num_cells, seed)
        (genes, root), fitted = self.joined[cell_type], self.fitted[cell_type]
        draw = np.random.default_rng(seed)  # the library sizes that the other genes were drawn with
        library = np.exp(draw.normal(fitted.log_library_mean, fitted.log_library_std, size=(num_cells, 1)))
        scores = norm.cdf(np.random.default_rng([seed, 1]).standard_normal((num_cells, len(genes))) @ root.T)
        size, chance = self._parameters(cell_type, genes, library)
        counts[:, genes] = nbinom.ppf(np.clip(scores, 1e-9, 1 - 1e-9), size, chance)
        return counts

    def _join(self, counts: np.ndarray, name: str, generator) -> tuple[np.ndarray, np.ndarray]:
        """The joined genes, and a root of their correlations."""
        scaled = np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4)
        genes = np.argsort(-scaled.var(0), kind="stable")[:COPULA_GENES]
        size, chance = self._parameters(name, genes, np.maximum(counts.sum(1, keepdims=True), 1))
        below, upto = (nbinom.cdf(counts[:, genes] - step, size, chance) for step in (1, 0))
        uniform = below + generator.random(below.shape) * (upto - below)
        scores = norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6))
        covariance = scores.T @ scores / len(scores) + 1e-6 * np.eye(len(genes))
        spread = np.sqrt(np.diag(covariance))
        correlation = (1 - COPULA_SHRINKAGE) * covariance / np.outer(spread, spread)
        np.fill_diagonal(correlation, 1.0)
        return genes, np.linalg.cholesky(correlation)

    def _parameters(self, name: str, genes: np.ndarray, library: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fitted = self.fitted[name]
        size = 1 / np.maximum(fitted.dispersion[genes], 1e-6)
        return size, size / (size + np.maximum(library * fitted.share[genes], 1e-12))


class RealCells:
    """Cells of a type as they were counted: what whoever knows other studies by heart would answer.

    What they reach beside a study is what a model of other studies could hope for: no batch of the study is theirs.
    """

    def __init__(self, counts: sp.csr_matrix, types: Labels):
        types, self.counts = np.asarray(types).astype(str), sp.csr_matrix(counts)
        self.fitted = {name: np.flatnonzero(types == name) for name in np.unique(types)}

    def sample(self, cell_type: str, num_cells: int, seed: int) -> sp.csr_matrix:
        """`num_cells` cells of a type, none twice while there are others."""
        return self._some(self.fitted[cell_type], num_cells, seed)

    def sample_mixture(self, num_cells: int, seed: int) -> sp.csr_matrix:
        """`num_cells` cells of any type."""
        return self._some(np.arange(self.counts.shape[0]), num_cells, seed)

    def _some(self, rows: np.ndarray, num_cells: int, seed: int) -> sp.csr_matrix:
        rounds = -(-num_cells // len(rows))
        generator = np.random.default_rng(seed)
        return self.counts[np.concatenate([generator.permutation(rows) for _ in range(rounds)])[:num_cells]]
