"""Labelled cells to test on, checked once at the border, with everything a person should know noted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgpt import storage
from scmmgpt.errors import UserError
from scmmgpt.hashes import hash_of_files
from scmmgpt.processing.features_scmmgpt import features_of

from .metrics import FEWEST_DONORS
from .type_tree import TypeTree

if TYPE_CHECKING:
    from anndata import AnnData

DONOR_COLUMNS = ("donor_id", "donor", "patient", "subject", "individual", "sample", "sample_id")
NO_LABEL = {"", "nan", "na", "none", "unknown", "unassigned"}


@dataclass(frozen=True)
class Study:
    """Cells with one true type each.

    Attributes
    ----------
    donors, tissues
        One a cell, or None when the data do not say.
    is_simulated
        Simulated cells are called so wherever a number from them appears.
    notes
        What was decided on the way, for the report.
    """

    name: str
    cells: AnnData
    truth: np.ndarray
    donors: np.ndarray | None = None
    tissues: np.ndarray | None = None
    is_simulated: bool = False
    sha256: str = ""
    notes: tuple[str, ...] = ()

    @property
    def types(self) -> list[str]:
        """The types that occur, sorted: the candidates that are fair to everybody."""
        return sorted(set(self.truth))

    def part(self, rows: np.ndarray) -> Study:
        """The same study with some of its cells."""
        return replace(
            self,
            cells=self.cells[rows].copy(),
            truth=self.truth[rows],
            donors=None if self.donors is None else self.donors[rows],
            tissues=None if self.tissues is None else self.tissues[rows],
        )


def open_study(
    data: AnnData | str | os.PathLike,
    label: str,
    *,
    name: str | None = None,
    donor: str | None = None,
    is_simulated: bool = False,
    tree: TypeTree | None = None,
) -> Study:
    """The study in some AnnData or file; what cannot be evaluated is refused, what is odd is noted.

    Parameters
    ----------
    data
        Cells, or the path of an h5ad.
    label
        The column of `obs` with the true types. Cells without one are left out.
    name
        What to call the study; the file's name without a better one.
    donor
        The column of `obs` with donors; None looks for a usual name.
    is_simulated
        Say so in every result.
    tree
        Where labels are looked up.
    """
    adata = read_cells(Path(data)) if isinstance(data, str | os.PathLike) else data
    is_gene = features_of(adata.var, adata.var_names).is_gene
    adata = adata if is_gene.all() else adata[:, is_gene].copy()  # the model does so itself; baselines must too
    obs = adata.obs
    if label not in obs:
        raise UserError(_no_such_column(label, obs))
    truth = obs[label].astype(object).where(obs[label].notna(), "").astype(str).to_numpy()
    labelled = np.array([value.strip().lower() not in NO_LABEL for value in truth])
    notes = []
    if not labelled.all():
        notes.append(
            f"{int((~labelled).sum())} of {len(truth)} cells have no label in obs[{label!r}] and are left out."
        )
    if len(set(truth[labelled])) < 2:
        found = ", ".join(sorted(set(truth[labelled]))) or "none"
        raise UserError(
            f"obs[{label!r}] holds {len(set(truth[labelled]))} cell type(s) ({found}); evaluation needs at least two."
        )
    donors, donor_note = _donors(obs, donor)
    notes.append(donor_note)
    study = Study(
        name or (Path(data).stem if not hasattr(data, "obs") else "cells"),
        adata,
        truth,
        donors,
        obs["tissue"].astype(str).to_numpy() if "tissue" in obs else None,
        is_simulated,
        _sha256(data),
    )
    study = study if labelled.all() else study.part(np.flatnonzero(labelled))
    notes += _ontology_notes(study.types, tree or TypeTree.load())
    return replace(study, notes=tuple(notes))


def read_cells(path: Path) -> AnnData:
    """The cells of a file of any format."""
    return storage.read_cells(storage.check_input(path))


def study_of_cells(obs: pd.DataFrame, name: str) -> np.ndarray:
    """The study of each cell of a file called `name`: what is left out together."""
    column = next((column for column in ("study_profile", "dataset") if column in obs), None)
    return np.full(len(obs), name, object) if column is None else obs[column].astype(str).to_numpy()


def _no_such_column(label: str, obs: pd.DataFrame) -> str:
    near = get_close_matches(label, list(map(str, obs.columns)), n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"obs has no column {label!r}.{hint} Columns: {', '.join(map(str, obs.columns[:20])) or 'none'}."


def _donors(obs: pd.DataFrame, donor: str | None) -> tuple[np.ndarray | None, str]:
    if donor is not None and donor not in obs:
        raise UserError(_no_such_column(donor, obs))
    column = donor or next((name for name in DONOR_COLUMNS if name in obs), None)
    if column is None:
        return None, "No column of donors was found: intervals are over cells, which makes them too narrow."
    donors = obs[column].astype(str).to_numpy()
    number = len(set(donors))
    if number < FEWEST_DONORS:
        return donors, f"obs[{column!r}] holds {number} donor(s), under {FEWEST_DONORS}: intervals are over cells."
    return donors, f"Intervals are over the {number} donors of obs[{column!r}]."


def _ontology_notes(types: Sequence[str], tree: TypeTree) -> list[str]:
    outside = [name for name in types if tree.find(name) is None]
    if not outside:
        return []
    shown = ", ".join(map(repr, outside[:5])) + (", ..." if len(outside) > 5 else "")
    return [
        f"{len(outside)} of {len(types)} types are not in the Cell Ontology ({shown}): no ontology distance for them."
    ]


def _sha256(data: AnnData | str | os.PathLike) -> str:
    """Of the file, or of labels and matrix for cells in memory."""
    if isinstance(data, str | os.PathLike):
        place = Path(data)
        return hash_of_files(sorted(filter(Path.is_file, place.rglob("*"))) if place.is_dir() else [place])
    digest, matrix = hashlib.sha256(), data.X
    digest.update("\n".join(map(str, [*data.obs_names, *data.var_names])).encode())
    for part in (matrix.data, matrix.indices) if hasattr(matrix, "indices") else (np.asarray(matrix),):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
