"""Pseudo-cells: cells asked for by the names of a study's types, held against that study's real cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgpt.errors import UserError

from . import metrics_generation as measure
from .baseline_generation import GaussianCopulaGenerator, NegativeBinomialGenerator, RealCells
from .baselines import TrainingCells
from .expression import holds_counts, linear_expression, log_normalised, on_genes, principal_space, upper_symbols
from .results import Record, record_for
from .study import Study
from .systems import System, needed
from .type_tree import TypeTree

if TYPE_CHECKING:
    from anndata import AnnData

GENERATORS = {"negative binomial": NegativeBinomialGenerator, "Gaussian copula": GaussianCopulaGenerator}
NEIGHBOURS = (3, 5, 10, 25)
MOST_PER_TYPE = 100
FEWEST_PER_TYPE = 10
FEWEST_FOR_COVARIANCE = 40


def generate_study(
    systems: list[System], study: Study, *, training: TrainingCells | None = None, tree: TypeTree, seed: int = 0
) -> list[Record]:
    """Every system's cells, the floors, the ceiling and the shuffled-text control, on the same genes.

    Real cells of each type are cut in three: the reference of every metric; the ceiling, "real cells, other third";
    and the ruler, on which variable genes and principal components are fitted. A space fitted on the reference itself
    would stretch along the reference's own noise, and even real cells would be told apart in it. Genes are those
    that every system and the study share.
    Types with fewer than ten cells in a third are left out. Training cells give the floor "negative binomial of training
    cells" and the distance to the nearest training cell.
    """
    reference, other, ruler = _thirds(study, seed)
    asked = {name: min(int(np.sum(reference.truth == name)), MOST_PER_TYPE) for name in reference.types}
    drawn = {s.name: _draw(s, asked, seed) for s in [*systems, *_floors(other, training, tree, reference.types)]}
    drawn["real cells, other third"] = (linear_expression(other.cells), upper_symbols(other.cells), other.truth)
    genes = _shared_genes(upper_symbols(study.cells), *(symbols for _, symbols, _ in drawn.values()))
    space = _Space(reference, other, ruler, genes, training, tree)
    by_name = {s.name: s for s in systems}
    records = []
    for name, (counts, symbols, types) in drawn.items():
        system = by_name.get(name, System(name, is_baseline=True))
        values = space.measure(on_genes(counts, symbols, genes), types)
        records.append(record_for("generation", system, reference, values, genes=len(genes), control="none"))
        if name in by_name:
            values = space.neighbours(on_genes(counts, symbols, genes), _other_types(types))
            records.append(
                record_for("generation", system, reference, values, genes=len(genes), control="shuffled text")
            )
    return records


class _Space:
    """The reference cells on the shared genes, and the ruler's components that distances are taken in."""

    def __init__(
        self,
        reference: Study,
        other: Study,
        ruler: Study,
        genes: np.ndarray,
        training: TrainingCells | None,
        tree: TypeTree,
    ):
        self.counts, self.types = _counts_on(reference, genes), reference.truth
        self.has_counts = holds_counts(reference.cells)
        self.expression = log_normalised(self.counts)
        self.ruler, self.ruler_types = log_normalised(_counts_on(ruler, genes)), ruler.truth
        self.project = principal_space(self.ruler)
        self.points = self.project(self.expression)
        self.held_out = self._points_of(_counts_on(other, genes))
        self.training = self._training_points(training, reference, genes, tree)

    def measure(self, counts: sp.csr_matrix, types: np.ndarray) -> dict[str, float]:
        """All metrics of some cells that were asked for by `types`."""
        expression, points = log_normalised(counts), self._points_of(counts)
        values = self.neighbours(counts, types)
        values |= self._distances(points, types)
        auc = measure.real_or_generated_auc(self.points, points)
        values |= {f"real_or_generated_auc_{name}": value for name, value in auc.items()}
        values |= self._marginals(counts, expression, types)
        values |= self._structure(expression, types)
        if self.training is not None:
            values["nearest_training_ratio"] = measure.nearest_training_ratio(points, self.held_out, self.training)
        values["duplicates"] = float(measure.num_duplicates(counts.toarray()))
        return values

    def neighbours(self, counts: sp.csr_matrix, types: np.ndarray) -> dict[str, float]:
        """k-NN accuracy against the real cells for every k that they allow."""
        points = self._points_of(counts)
        return {
            f"knn_{k}": measure.neighbour_accuracy(self.points, self.types, points, types, k)
            for k in NEIGHBOURS
            if k <= len(self.points)
        }

    def _distances(self, points: np.ndarray, types: np.ndarray) -> dict[str, float]:
        pairs = [(points[types == name], self.points[self.types == name]) for name in np.unique(types)]
        return {
            "mmd": _mean(measure.maximum_mean_discrepancy, pairs),
            "sliced_wasserstein": _mean(measure.sliced_wasserstein, pairs),
            "gromov_wasserstein": measure.gromov_wasserstein(points, self.points),
        }

    def _marginals(self, counts: sp.csr_matrix, expression: sp.csr_matrix, types: np.ndarray) -> dict[str, float]:
        values = {"sparsity_distance": measure.distribution_distance(_share_seen(counts), _share_seen(self.counts))}
        if self.has_counts:
            values["library_size_distance"] = measure.distribution_distance(
                _log_totals(counts), _log_totals(self.counts)
            )
        distances = []
        for name, markers in self._markers().items():
            real = self.expression[self.types == name][:, markers].toarray()
            made = expression[types == name][:, markers].toarray()
            distances += [measure.distribution_distance(made[:, i], real[:, i]) for i in range(len(markers))]
        values["marker_distance"] = float(np.mean(distances))
        return values

    def _structure(self, expression: sp.csr_matrix, types: np.ndarray) -> dict[str, float]:
        """Spread and dependence within types that have enough real cells."""
        within, agreement = [], []
        for name in np.unique(types):
            real = self.expression[self.types == name].toarray()
            if len(real) >= FEWEST_FOR_COVARIANCE:
                made = expression[types == name].toarray()
                ruler = self.ruler[self.ruler_types == name].toarray()
                within.append(measure.share_within_factor(measure.component_variance_ratios(real, made, ruler)))
                agreement.append(measure.covariance_agreement(real, made))
        if not within:
            return {}
        return {
            "components_within_factor_3": float(np.mean(within)),
            "covariance_agreement": float(np.mean(agreement)),
        }

    def _markers(self, num_markers: int = 10) -> dict[str, np.ndarray]:
        """Genes whose mean in a type exceeds that in every other type the most, from the reference cells."""
        names = np.unique(self.types)
        means = np.vstack([np.asarray(self.expression[self.types == name].mean(0)) for name in names])
        return {
            name: np.argsort(-(means[i] - np.delete(means, i, axis=0).max(0)), kind="stable")[:num_markers]
            for i, name in enumerate(names)
        }

    def _points_of(self, counts: sp.csr_matrix) -> np.ndarray:
        return self.project(log_normalised(counts))

    def _training_points(
        self, training: TrainingCells | None, reference: Study, genes: np.ndarray, tree: TypeTree, most: int = 5000
    ) -> np.ndarray | None:
        if training is None:
            return None
        cells = training.reference(_on(reference.cells, genes), reference.types, tree).expression
        rows = np.random.default_rng(0).permutation(cells.shape[0])[:most]
        return self.project(cells[np.sort(rows)]) if len(rows) else None


def _floors(other: Study, training: TrainingCells | None, tree: TypeTree, types: list[str]) -> list[System]:
    """Simple generators: of the training cells (the floors), and of this study's other third (what they could reach).

    The training cells themselves say what could be known of the study's cells from other studies.
    """
    floors = []
    if holds_counts(other.cells):
        counts = sp.csr_matrix(other.cells.X)
        for name, kind in GENERATORS.items():
            floors.append(_floor(f"{name} of this study", kind(counts, other.truth), upper_symbols(other.cells)))
    if training is not None:
        genes = upper_symbols(other.cells)
        counts, meaning = training.counts(other.cells, types, tree)
        if len(meaning):
            for name, kind in GENERATORS.items():
                floors.append(_floor(f"{name} of training cells", kind(counts, meaning), genes))
            floors.append(_floor("real cells of training studies", RealCells(counts, meaning), genes))
    return floors


def _floor(name: str, fitted: NegativeBinomialGenerator | RealCells, genes: np.ndarray) -> System:
    from anndata import AnnData

    def generate(text: str, num_cells: int, seed: int) -> AnnData:
        draw = (
            fitted.sample(text, num_cells, seed) if text in fitted.fitted else fitted.sample_mixture(num_cells, seed)
        )
        return AnnData(sp.csr_matrix(draw), var=pd.DataFrame(index=genes.astype(str)))

    return System(name, generate=generate, is_baseline=True)


def _draw(system: System, asked: dict[str, int], seed: int) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    blocks = [needed(system.generate)(name, number, seed + i) for i, (name, number) in enumerate(asked.items())]
    counts = sp.vstack([sp.csr_matrix(block.X) for block in blocks], format="csr")
    return counts, upper_symbols(blocks[0]), np.repeat(list(asked), list(asked.values()))


def _thirds(study: Study, seed: int) -> tuple[Study, Study, Study]:
    """Three parts with the same number of cells of each type."""
    generator = np.random.default_rng(seed)
    rows_of_type = [generator.permutation(np.flatnonzero(study.truth == name)) for name in study.types]
    sizes = [min(len(rows) // 3, MOST_PER_TYPE) for rows in rows_of_type]
    kept = [(rows, size) for rows, size in zip(rows_of_type, sizes, strict=True) if size >= FEWEST_PER_TYPE]
    if len(kept) < 2:
        raise UserError(f"{study.name} has fewer than two types with {3 * FEWEST_PER_TYPE} cells: nothing to compare.")
    first, second, third = (
        study.part(np.sort(np.concatenate([rows[i * size : (i + 1) * size] for rows, size in kept]))) for i in range(3)
    )
    return first, second, third


def _shared_genes(*symbols: np.ndarray) -> np.ndarray:
    shared = set(symbols[0]).intersection(*symbols[1:])
    if len(shared) < 20:
        raise UserError(f"Generated and real cells share {len(shared)} genes; at least 20 are needed.")
    return np.array([name for name in dict.fromkeys(symbols[0]) if name in shared], object)


def _on(cells: AnnData, genes: np.ndarray) -> AnnData:
    symbols = upper_symbols(cells)
    column = {symbol: i for i, symbol in reversed(list(enumerate(symbols)))}
    return cells[:, [column[gene] for gene in genes]]


def _counts_on(study: Study, genes: np.ndarray) -> sp.csr_matrix:
    return on_genes(linear_expression(study.cells), upper_symbols(study.cells), genes)


def _other_types(types: np.ndarray) -> np.ndarray:
    """Each type's cells under the name of the next type."""
    names, codes = np.unique(types, return_inverse=True)
    return np.roll(names, -1)[codes]


def _mean(distance: Callable, pairs: list) -> float:
    return float(np.mean([distance(made, real) for made, real in pairs]))


def _share_seen(counts: sp.csr_matrix) -> np.ndarray:
    return np.diff(sp.csr_matrix(counts).indptr) / counts.shape[1]


def _log_totals(counts: sp.csr_matrix) -> np.ndarray:
    return np.log10(np.asarray(counts.sum(1)).ravel() + 1)
