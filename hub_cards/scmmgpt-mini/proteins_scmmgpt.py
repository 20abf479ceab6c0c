"""Antibodies counted beside the RNA (CITE-seq and its like) as evidence about the types of cells.

Counts are read as log(1 + x), less what isotype controls say of how sticky a cell is. Two levels are fitted to each
antibody over the cells of the study, and a cell has the protein with some probability; an antibody whose levels do not
part says little. That is compared with what is known of the types: their phenotypes, and where these are silent, a
little, how the types express the gene. Of what is not known a type is expected to be like any cell of the study. An
antibody that was not measured, or that names no gene, says nothing, so that any panel will do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .cell_matrix_scmmgpt import Antibodies, Cells
from .features_scmmgpt import HASHTAG, features_of
from .ontology_scmmgpt import Ontology
from .protein_names_scmmgpt import ISOFORMS, ProteinNames, is_control
from .surface_phenotypes_scmmgpt import SurfacePhenotypes
from .type_profiles_scmmgpt import TypeProfiles

# Fewer cells do not show the two levels of an antibody.
MIN_CELLS = 100
# All measured on development studies, see training/LOG.md.
WEIGHT = 0.5
_TRUST = 0.9  # how far a phenotype is believed
_SHARE_OF_GENE = 0.25  # how far the RNA of a type speaks for its proteins
_GENE_UNIT = 2.0
_SHARES = (0.3, 0.7)
_NO_PARTING, _FULL_PARTING = 1.0, 2.5  # distances of the two levels, in standard deviations
_QUANTILES, _ROUNDS = 256, 60
_MOST_LOGARITHM = 30.0

MakeArray = Callable[[str, tuple[int, ...], type], np.ndarray]


def _in_memory(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.empty(shape, dtype)


class Proteins(NamedTuple):
    """Values of P antibodies for the N cells of the RNA, NaN where a cell was not measured, and where they lie."""

    names: list[str]
    values: np.ndarray
    place: str
    scale: str

    @property
    def is_measured(self) -> np.ndarray:
        """(N,) which cells have values."""
        return ~np.isnan(self.values).any(axis=1)


def read_proteins(cells: Cells, make_array: MakeArray = _in_memory) -> Proteins | None:
    """The antibodies of some cells; of several matrices raw counts come first. None where there are none."""
    found = [each for each in cells.antibodies if each.matrix.shape[1]]
    if not found:
        return None
    chosen = next((each for each in found if _scale(each) == COUNTS), found[0])
    matrix, scale = chosen.matrix, _scale(chosen)
    kept = np.flatnonzero(features_of(None, matrix.var_names).kinds != HASHTAG)
    values = make_array("proteins", (matrix.shape[0], len(kept)), np.float32)
    for start, stop in matrix.blocks():
        values[start:stop] = matrix.rows(start, stop).matrix(matrix.shape[1])[:, kept].toarray()
    if chosen.obs_names is not None:
        values = _of_cells(values, chosen.obs_names, cells.obs_names)
    return Proteins([str(matrix.var_names[column]) for column in kept.tolist()], values, chosen.place, scale)


COUNTS, LINEAR, LOGARITHMS = "counts", "linear values", "values that came normalised, used as they are"


def _scale(antibodies: Antibodies) -> str:
    matrix = antibodies.matrix
    data = matrix.rows(0, min(256, matrix.shape[0])).matrix(matrix.shape[1]).data
    data = data[~np.isnan(data)].astype(np.float64)
    if (data < 0).any() or (data.size and data.max() <= _MOST_LOGARITHM and (data % 1 != 0).any()):
        return LOGARITHMS
    return COUNTS if (data % 1 == 0).all() else LINEAR


def _of_cells(values: np.ndarray, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Rows by the names of the cells; NaN for those without one."""
    row = {str(name): place for place, name in enumerate(names)}
    rows = np.array([row.get(str(name), -1) for name in wanted])
    result = values[rows]
    result[rows < 0] = np.nan
    return result


@dataclass(frozen=True)
class Panel:
    """Which of a study's P antibodies are what, and how probably each of its N cells has the protein.

    `proteins` are named as in `protein_names_scmmgpt`, None where no gene is known or the antibody is a control.
    `parting` (P,) is 0 where an antibody does not part the cells, 1 where it does clearly.
    """

    names: list[str]
    proteins: list[str | None]
    is_control: np.ndarray
    presence: np.ndarray
    parting: np.ndarray

    @cached_property
    def share(self) -> np.ndarray:
        """(P,) share of the cells with each protein: what is expected of a type of which nothing is known, within limits."""
        return np.clip(self.presence.mean(axis=0), *_SHARES).astype(np.float32)

    @classmethod
    def of(cls, measured: Proteins, names: ProteinNames) -> "Panel":
        """Fit the two levels of every antibody that names a protein."""
        is_control_ = np.array([is_control(name) for name in measured.names])
        proteins = [
            None if control else names.protein(name) for name, control in zip(measured.names, is_control_, strict=True)
        ]
        has_values = measured.is_measured
        values = measured.values[has_values].astype(np.float64)
        counted = measured.scale in (COUNTS, LINEAR)
        if counted:
            values = np.log1p(values)
        stickiness = values[:, is_control_].mean(axis=1) if is_control_.any() else None
        presence, parting = np.full(measured.values.shape, 0.5, np.float32), np.zeros(len(proteins), np.float32)
        for column, protein in enumerate(proteins):
            if protein is not None:
                presence[has_values, column], parting[column] = _presence(values[:, column], stickiness, counted)
        return cls(measured.names, proteins, is_control_, presence, parting)


def _presence(values: np.ndarray, stickiness: np.ndarray | None, counted: bool) -> tuple[np.ndarray, float]:
    """The probability of each cell to lie on the upper of two levels, and how clearly these part.

    Levels of counts vary at least as much as counting does: a few more are no second level.
    """
    from scipy.special import expit, logit

    if stickiness is not None:
        values = values - _slope(values, stickiness) * (stickiness - stickiness.mean())
    low, high, share, variance = two_levels(values)
    if counted:
        variance = max(variance, _variance_of_counting(float(np.expm1(values.clip(min=0)).mean())))
    presence = expit((high - low) / variance * (values - (high + low) / 2) + logit(share))
    distance = (high - low) / np.sqrt(variance)
    return presence, float(np.clip((distance - _NO_PARTING) / (_FULL_PARTING - _NO_PARTING), 0, 1))


def _variance_of_counting(mean: float) -> float:
    """The variance of log(1 + x) where every cell has the same protein and x is counted with this mean."""
    return mean / (1 + mean) ** 2


def _slope(values: np.ndarray, stickiness: np.ndarray) -> float:
    """By how much the background of an antibody rises with the controls: of cells on the lower level."""
    low, high, _, _ = two_levels(values)
    background = values < (low + high) / 2
    spread = np.var(stickiness[background]) if background.sum() > 20 else 0.0
    if spread < 1e-6:
        return 0.0
    together = np.mean((values[background] - values[background].mean()) * stickiness[background])
    return float(np.clip(together / spread, 0, 1))


def two_levels(values: np.ndarray) -> tuple[float, float, float, float]:
    """Low and high level, share of the high one, and variance about both, of a mixture fitted to the quantiles.

    The order of the cells plays no part.
    """
    from scipy.special import expit, logit

    quantiles = np.quantile(values, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    low, high, share = _best_cut(quantiles)
    variance = max(quantiles.var() / 10, 1e-3)
    for _ in range(_ROUNDS):
        upper = expit((high - low) / variance * (quantiles - (high + low) / 2) + logit(share))
        share = float(np.clip(upper.mean(), 0.01, 0.99))
        high = upper @ quantiles / max(upper.sum(), 1e-9)
        low = (1 - upper) @ quantiles / max((1 - upper).sum(), 1e-9)
        variance = max((upper @ (quantiles - high) ** 2 + (1 - upper) @ (quantiles - low) ** 2) / _QUANTILES, 1e-3)
    return float(low), float(high), share, float(variance)


def _best_cut(quantiles: np.ndarray) -> tuple[float, float, float]:
    """Means below and above the cut that parts sorted values best, and the share above it."""
    number = np.arange(1, len(quantiles))
    sums = np.cumsum(quantiles)[:-1]
    below, above = sums / number, (quantiles.sum() - sums) / (len(quantiles) - number)
    best = int(np.argmax(number * (len(quantiles) - number) * (above - below) ** 2))
    return float(below[best]), float(above[best]), 1 - (best + 1) / len(quantiles)


def expected_proteins(
    term_ids: Sequence[str | None],
    proteins: Sequence[str | None],
    phenotypes: SurfacePhenotypes,
    profiles: TypeProfiles | None,
    genes: Sequence[str],
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """(types, antibodies) between -1, lacks it, and 1, has it; 0 where nothing is known of a protein on a type.

    `genes` are those of the vocabulary, of which the profiles name rows; `labels` as in `SurfacePhenotypes.table`.
    """
    said = phenotypes.table(term_ids, proteins, labels)
    if profiles is None:
        return said
    column = {genes[row]: place for place, row in enumerate(profiles.gene_rows)}
    known = [at for at, one in enumerate(proteins) if one is not None and one not in ISOFORMS and one in column]
    of_genes = np.zeros_like(said)
    of_genes[:, known] = _of_types(
        profiles, term_ids, [column[str(proteins[at])] for at in known], phenotypes.ontology
    )
    return np.where(said != 0, said, _SHARE_OF_GENE * (of_genes - of_genes.mean(axis=0)))


def _of_types(
    profiles: TypeProfiles, term_ids: Sequence[str | None], columns: Sequence[int], ontology: Ontology
) -> np.ndarray:
    """(types, columns) of the profile of each type, else the mean of those below it; saturated."""
    differences = np.clip(profiles.differences[:, columns] / _GENE_UNIT, -1, 1)
    lineages = [{one, *ontology.ancestors(one)} for one in profiles.term_ids]
    result = np.zeros((len(term_ids), len(columns)), np.float32)
    for row, term_id in enumerate(term_ids):
        own = [place for place, one in enumerate(profiles.term_ids) if one == term_id]
        below = [place for place, lineage in enumerate(lineages) if term_id in lineage]
        if own or below:
            result[row] = differences[own or below].mean(axis=0)
    return result


@dataclass(frozen=True)
class ProteinEvidence:
    """What the antibodies of N cells say for each of C labels; `expected` is (C, P), see `expected_proteins`."""

    panel: Panel
    expected: np.ndarray

    def evidence(self, rows: slice | np.ndarray) -> np.ndarray:
        """(rows, C) logarithms of likelihoods beside those of any cell of the study, weighted; 0 without values."""
        presence = self.panel.presence[rows].astype(np.float32)
        of_anybody = np.log(self.panel.share * presence + (1 - self.panel.share) * (1 - presence))
        has, lacks = (
            (np.log(_TRUST * one + (1 - _TRUST) * (1 - one)) - of_anybody) * self.panel.parting
            for one in (presence, 1 - presence)
        )
        for_having = has @ np.maximum(self.expected, 0).T
        return (WEIGHT * (for_having + lacks @ np.maximum(-self.expected, 0).T)).astype(np.float32)
