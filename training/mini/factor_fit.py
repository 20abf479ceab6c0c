"""The numbers of a cell decoder with factors that need no text: in closed form, or by EM.

From mean profiles: what platforms do to genes, and the states in which profiles differ. From counted cells: the factors
by which cells of one kind differ, their covariance in each kind, dispersions and library sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

# What is added to a share before its logarithm: three hundredths of a transcript in a cell of ten thousand.
PSEUDO_SHARE = 3e-6
# Weight of genes in the space of states: the root of their mean share, within these limits.
SHARE_LIMITS = (1e-6, 1e-3)
# Shrinkage, in profiles, information and cells.
PLATFORM_RIDGE, LOADING_RIDGE, KIND_PRIOR = 3.0, 20.0, 25.0
# Of a count beyond its mean, in means: one cell with a gene of its own must not make a factor.
RESIDUAL_LIMITS = (-1.0, 4.0)
DISPERSION_LIMITS = (0.02, 20.0)
PRIOR_CELLS = 50.0


def truly_measured(share: np.ndarray, measured: np.ndarray, study: Sequence[str]) -> np.ndarray:
    """(P, G) measured, and seen in the study at all: what no profile of a study shows was filtered out of it."""
    _, place = numbered(study)
    member = _members(place)
    return measured & ((member @ (share > 0).astype(np.float32)) > 0)[place]


def log_shares(share: np.ndarray, measured: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """(P, G) logarithms; what a profile did not measure is taken from its kind, and else from all profiles."""
    logs = np.log(share + PSEUDO_SHARE, dtype=np.float32)
    overall = (logs * measured).sum(0) / np.maximum(measured.sum(0), 1)
    member = _members(kind)
    number = member @ measured.astype(np.float32)
    mean = (member @ (logs * measured) + 0.5 * overall) / (number + 0.5)
    return np.where(measured, logs, mean[kind])


def platform_shifts(logs: np.ndarray, kind: np.ndarray, platform: np.ndarray, number: int) -> np.ndarray:
    """(number, G) what each platform adds to the log share of a gene, beside the first: within kinds, by ridge."""
    member = _members(kind)
    size = member.sum(1, keepdims=True)

    def within(values: np.ndarray) -> np.ndarray:
        return values - (member @ values / size)[kind]

    design = within(np.eye(number, dtype=np.float32)[platform])
    shifts = np.linalg.solve(design.T @ design + PLATFORM_RIDGE * np.eye(number), design.T @ within(logs))
    shifts -= shifts[0]
    shifts[np.setdiff1d(np.arange(number), platform)] = 0  # nothing is known of a platform without profiles
    return shifts


@dataclass(frozen=True)
class StateSpace:
    """log share = `mean` + states x `loadings`.T for each profile.

    Attributes
    ----------
    mean
        (G,).
    loadings
        (G, S); a step of one is a deviation of the leading state.
    states
        (P, S) of the profiles.
    """

    mean: np.ndarray
    loadings: np.ndarray
    states: np.ndarray


def state_space(logs: np.ndarray, alike: np.ndarray, number: int) -> StateSpace:
    """Leading components of the means of profiles that are `alike` (P,), genes weighted by how much of a cell they fill.

    What parts two studies of the same cells is no state that a text could ask for.
    """
    member = _members(alike)
    means = member @ logs / member.sum(1, keepdims=True)
    mean = means.mean(0)
    weight = np.clip(np.exp(means).mean(0), *SHARE_LIMITS) ** 0.5
    weight /= weight.mean()
    weighted = (means - mean) * weight
    scores, sizes, _ = np.linalg.svd(weighted @ weighted.T, hermitian=True)
    number = min(number, int((sizes > 1e-6 * sizes[0]).sum()))
    states = scores[:, :number] * np.sqrt(sizes[:number])
    axes = weighted.T @ scores[:, :number] / np.sqrt(sizes[:number])
    scale = states[:, 0].std()
    ridge = 1e-3 * np.eye(number) * (states**2).sum(0).mean()
    loadings = np.linalg.solve(states.T @ states + ridge, states.T @ (means - mean)).T * scale
    return StateSpace(mean, loadings.astype("f4"), ((logs - mean) * weight @ axes / scale).astype("f4"))


@dataclass(frozen=True)
class Counted:
    """N counted cells: counts (N, G), base = log of what their profile and library let expect (N, G), genes measured
    (N, G), the kind of each cell (N,), and which class of dispersions it has (N,)."""

    counts: sp.csr_matrix
    base: np.ndarray
    measured: np.ndarray
    kind: np.ndarray
    profile: np.ndarray
    noise: np.ndarray

    def on(self, genes: np.ndarray) -> Counted:
        columns = (self.counts[:, genes], self.base[:, genes], self.measured[:, genes])
        return Counted(*columns, self.kind, self.profile, self.noise)

    def rows(self, cells: np.ndarray, kind: np.ndarray) -> Counted:
        """Some of the cells, whose kinds are called otherwise."""
        values = (self.counts[cells], self.base[cells], self.measured[cells])
        return Counted(*values, kind, numbered(self.profile[cells])[1], self.noise[cells])


@dataclass(frozen=True)
class Factors:
    """Loadings (G, R), covariances of the factors in each kind (J, R, R), dispersions by class (C, G)."""

    loadings: np.ndarray
    covariances: np.ndarray
    dispersions: np.ndarray


def fit_factors(cells: Counted, number: int, steps: int, leading: int, seed: int = 0) -> Factors:
    """Factor analysis of negative binomial counts by EM; loadings of all genes from the factors of the leading ones.

    Each step linearises the likelihood at the present fit, as a generalised linear model is fitted. Factors of a cell have
    the covariance of its kind as their prior, which is that of all cells as far as the kind has few.
    """
    order = np.argsort(-np.minimum(np.exp(cells.base), 1.0).sum(0), kind="stable")
    genes = np.sort(order[:leading])
    state = _State.begin(cells.on(genes), number, seed)
    for _ in range(steps):
        state.infer_cells()
        state.infer_genes()
    whole = _State(cells, np.zeros((cells.counts.shape[1], number), np.float32), state.mean, state.covariance)
    whole.dispersions = whole.moments()
    blocks = np.array_split(np.arange(cells.counts.shape[1]), max(1, cells.counts.shape[1] // leading))
    parts = []
    for block in blocks:
        part = _State(cells.on(block), whole.loadings[block], state.mean, state.covariance)
        part.dispersions = whole.dispersions[:, block]
        part.solve_genes()
        part.dispersions = part.moments()
        parts.append(part)
    loadings = np.concatenate([part.loadings for part in parts])
    return Factors(loadings, state.kind_covariances, np.concatenate([part.dispersions for part in parts], axis=1))


class _State:
    """Where the EM stands: loadings, and mean and covariance of the factors of each cell."""

    kind_covariances: np.ndarray

    def __init__(self, cells: Counted, loadings: np.ndarray, mean: np.ndarray, covariance: np.ndarray):
        self.cells, self.loadings, self.mean, self.covariance = cells, loadings, mean, covariance
        self.counts = np.asarray(cells.counts.todense(), np.float32)
        self.upper = np.triu_indices(loadings.shape[1])
        self.dispersions = np.full((cells.noise.max() + 1, len(loadings)), 0.3, np.float32)

    @classmethod
    def begin(cls, cells: Counted, number: int, seed: int) -> _State:
        from sklearn.utils.extmath import randomized_svd

        num_cells, num_genes = cells.counts.shape
        empty = np.zeros((num_genes, number), np.float32), np.zeros((num_cells, number), np.float32)
        state = cls(cells, *empty, np.zeros((num_cells, number, number), np.float32))
        state.dispersions = state.moments()
        weight, residual = state.working()
        _, sizes, axes = randomized_svd(np.sqrt(weight) * residual, number, random_state=seed)
        state.loadings = (axes.T * sizes / np.sqrt(num_cells) / (np.sqrt(weight.mean(0)) + 1e-3)[:, None]).astype("f4")
        state.kind_covariances = np.eye(number, dtype="f4")[None].repeat(cells.kind.max() + 1, 0)
        return state

    def expected(self) -> np.ndarray:
        return np.exp(np.minimum(self.cells.base + self.mean @ self.loadings.T, 12.0))

    def working(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights and residuals (N, G) in the logarithm."""
        expected = self.expected()
        weight = expected / (1 + self.dispersions[self.cells.noise] * expected) * self.cells.measured
        return weight, np.clip((self.counts - expected) / np.maximum(expected, 1e-6), *RESIDUAL_LIMITS)

    def moments(self) -> np.ndarray:
        """Dispersions by class and gene, shrunk towards the class's middle where a gene says little."""
        expected, cells = self.expected() * self.cells.measured, self.cells
        excess = (self.counts - expected) ** 2 * cells.measured - expected
        result = np.empty((cells.noise.max() + 1, self.counts.shape[1]), np.float32)
        for noise in range(len(result)):
            mine = cells.noise == noise
            size = (expected[mine] ** 2).sum(0)
            raw = excess[mine].sum(0) / np.maximum(size, 1e-9)
            middle = np.median(np.clip(raw[size > np.quantile(size, 0.8)], *DISPERSION_LIMITS)) if mine.any() else 0.3
            result[noise] = np.clip((raw * size + middle * PRIOR_CELLS) / (size + PRIOR_CELLS), *DISPERSION_LIMITS)
        return result

    def infer_cells(self) -> None:
        cells, (rows, columns) = self.cells, self.upper
        weight, residual = self.working()
        response = weight * (residual + self.mean @ self.loadings.T)
        precision = self._square(weight @ (self.loadings[:, rows] * self.loadings[:, columns]))
        precision += np.linalg.inv(self.kind_covariances)[cells.kind]
        self.covariance = np.linalg.inv(precision).astype(np.float32)
        self.mean = np.einsum("nij,nj->ni", self.covariance, response @ self.loadings).astype(np.float32)
        member = _members(cells.profile)  # a profile is the mean of its cells
        self.mean -= (member @ self.mean / member.sum(1, keepdims=True))[cells.profile]
        second = self.covariance + self.mean[:, :, None] * self.mean[:, None]
        pooled, member = second.mean(0), _members(cells.kind)
        sums = (member @ second.reshape(len(second), -1)).reshape(-1, *pooled.shape)
        by_kind = (sums + KIND_PRIOR * pooled) / (member.sum(1)[:, None, None] + KIND_PRIOR)
        # The factors of all cells together have covariance one: the loadings take up the rest.
        root = np.linalg.cholesky(pooled.astype(np.float64))
        back = np.linalg.inv(root)
        self.kind_covariances = (back @ by_kind @ back.T).astype(np.float32)
        self.covariance = (back @ self.covariance @ back.T).astype(np.float32)
        self.mean = (self.mean @ back.T).astype(np.float32)
        self.loadings = (self.loadings @ root).astype(np.float32)

    def infer_genes(self) -> None:
        self.solve_genes()
        self.dispersions = self.moments()

    def solve_genes(self) -> None:
        rows, columns = self.upper
        weight, residual = self.working()
        response = weight * (residual + self.mean @ self.loadings.T)
        second = self.covariance[:, rows, columns] + self.mean[:, rows] * self.mean[:, columns]
        information = self._square(weight.T @ second) + LOADING_RIDGE * np.eye(self.loadings.shape[1], dtype="f4")
        self.loadings = np.linalg.solve(information, (response.T @ self.mean)[:, :, None])[:, :, 0].astype(np.float32)

    def _square(self, upper: np.ndarray) -> np.ndarray:
        rows, columns = self.upper
        full = np.empty((len(upper), self.loadings.shape[1], self.loadings.shape[1]), np.float32)
        full[:, rows, columns] = full[:, columns, rows] = upper
        return full


def molecules_of_reads(counts: sp.csr_matrix, share: np.ndarray, profile: np.ndarray, size: float = 4.0) -> float:
    """Log of the molecules whose copies the reads of a cell are: from how many genes are seen, over profiles.

    Were molecules of gene g negative binomial around M share_g, so many genes would be seen as are.
    """
    found = []
    for row in np.unique(profile):
        mine = counts[profile == row]
        expected = share[row] / share[row].sum()
        seen = mine.nnz / (mine.shape[0] * mine.shape[1])
        low, high = 5.0, 15.0
        for _ in range(30):
            middle = (low + high) / 2
            would_be = 1 - ((1 + np.exp(middle) * expected / size) ** -size).mean()
            low, high = (middle, high) if would_be < seen else (low, middle)
        found.append(middle)
    return float(np.median(found))


def library_sizes(
    totals: np.ndarray, kind: np.ndarray, family: np.ndarray, platform: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log totals: mean and spread of each of `number` platforms (the first, where it has no cells), and what a kind adds."""
    logs = np.log(np.maximum(totals, 1))
    groups, group = np.unique(np.array([family, kind.astype(str)]), axis=1, return_inverse=True)
    member = _members(group)
    mean = (member @ logs[:, None])[:, 0] / member.sum(1)
    platform_of = np.array([platform[group == i][0] for i in range(len(mean))])
    family_of = groups[0]
    middle = np.array([mean[family_of == name].mean() for name in family_of])
    added = np.array(
        [(mean - middle)[groups[1] == str(i)].sum() / (1 + (groups[1] == str(i)).sum()) for i in range(kind.max() + 1)]
    )
    spread = logs - mean[group]
    centers = np.array([mean[platform_of == i].mean() if (platform_of == i).any() else np.nan for i in range(number)])
    spreads = np.array([spread[platform == i].std() if (platform == i).any() else np.nan for i in range(number)])
    return np.where(np.isnan(centers), centers[0], centers), np.where(np.isnan(spreads), spreads[0], spreads), added


def groups_of_kinds(states: np.ndarray, number: int) -> np.ndarray:
    """(J,) groups of kinds whose states point the same way."""
    from scipy.cluster.hierarchy import fcluster, linkage

    unit = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-9)
    return fcluster(linkage(unit, "ward"), number, "maxclust") - 1


def choose_cells(profile: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many cells of each profile, in order."""
    generator = np.random.default_rng(seed)
    return np.sort(
        np.concatenate([generator.permutation(np.flatnonzero(profile == row))[:most] for row in np.unique(profile)])
    )


def _members(group: np.ndarray) -> np.ndarray:
    return (group == np.arange(group.max() + 1)[:, None]).astype(np.float32)


def numbered(*columns: Sequence) -> tuple[list[tuple], np.ndarray]:
    """The distinct rows of some columns in order, and which of them each row is."""
    rows = list(zip(*columns, strict=True))
    distinct = sorted(set(rows))
    place = {row: i for i, row in enumerate(distinct)}
    return distinct, np.array([place[row] for row in rows])
