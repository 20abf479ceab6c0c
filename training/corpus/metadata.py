"""What a corpus knows about each cell: one table of plain text columns, whatever the source called or typed them.

Labels are looked up in the Cell Ontology. What could not be used as it stood is returned as findings, each with the
nearest term, so that a person can mend the source.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from scmmgpt.processing.ontology_scmmgpt import Ontology, plain_name

UNKNOWN = "unknown"
UNLABELLED = frozenset({"", "nan", "none", "na", "n/a", "unknown", "unassigned", "unlabelled", "unlabeled"})

# The corpus's word for a fact, and what sources call it; the first column found is taken.
OBS_COLUMNS = {
    "cell_type": ("cell_type", "celltype", "cell_types"),
    "cell_type_ontology_term_id": ("cell_type_ontology_term_id", "cell_ontology_id"),
    "cell_type_original": ("cell_type_original", "author_cell_type"),
    "label_kind": ("label_kind",),
    "tissue": ("tissue", "tissue_general", "organ"),
    "tissue_ontology_term_id": ("tissue_ontology_term_id",),
    "disease": ("disease", "condition"),
    "assay": ("assay", "technology"),
    "sex": ("sex", "gender"),
    "development_stage": ("development_stage", "stage"),
    "organism": ("organism", "species"),
    "suspension_type": ("suspension_type",),
    "donor": ("donor_id", "donor", "individual", "patient"),
    "study": ("study_profile", "study", "dataset_id"),
    "barcode": ("barcode",),
}
_FLAGS = {"is_doublet": ("is_doublet", "predicted_doublet", "doublet"), "is_primary_data": ("is_primary_data",)}


@dataclass(frozen=True)
class Finding:
    """Something in a source that a person should know, with how many cells it concerns."""

    source: str
    kind: str
    detail: str
    num_cells: int


@dataclass(frozen=True)
class CellLabel:
    """A cell type as the corpus writes it."""

    term_id: str
    name: str
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Tissues:
    """Names of UBERON, by id and by plain spelling."""

    label_of: dict[str, str]

    @classmethod
    def read(cls, path: str | Path) -> Tissues:
        """The names in the ontology table that travels with the model."""
        return cls(json.loads(gzip.decompress(Path(path).read_bytes())).get("tissues", {}))

    @cached_property
    def _id_of(self) -> dict[str, str]:
        return {plain_name(label): term_id for term_id, label in self.label_of.items()}

    def find(self, term_id: str, name: str) -> tuple[str, str]:
        """Id and name of a tissue; as given where UBERON knows neither."""
        found = term_id if term_id in self.label_of else self._id_of.get(plain_name(name), UNKNOWN)
        return (found, self.label_of[found]) if found in self.label_of else (UNKNOWN, name)


def describe_cells(
    obs: pd.DataFrame,
    source: str,
    ontology: Ontology,
    columns: Mapping[str, str] | None = None,
    tissues: Tissues | None = None,
) -> tuple[pd.DataFrame, list[Finding]]:
    """The facts of every cell as text, "unknown" where the source is silent, and the findings on the way.

    Parameters
    ----------
    obs
        The source's own table. Not modified.
    source
        Its name: stands in for a study or a donor that is not given.
    ontology
        Where cell types are looked up.
    columns
        Names of `obs` columns to use for some facts in place of those in `OBS_COLUMNS`.
    tissues
        Where tissues are looked up, if anywhere.
    """
    chosen = {fact: _column(obs, fact, (columns or {}).get(fact)) for fact in OBS_COLUMNS}
    findings = [
        Finding(source, "mixed types", f"obs[{column!r}] mixes {_type_names(obs[column])}; read as text", len(obs))
        for column in chosen.values()
        if column is not None and _is_mixed(obs[column])
    ]
    facts = pd.DataFrame(
        {fact: _as_text(obs[column]) if column else UNKNOWN for fact, column in chosen.items()}, index=obs.index
    )
    facts["cell_id"] = obs.index.astype(str)
    for fact in ("study", "donor"):
        facts.loc[facts[fact] == UNKNOWN, fact] = source
    if chosen["cell_type_original"] is None:
        facts["cell_type_original"] = facts["cell_type"]
    findings += _resolve_labels(facts, source, ontology)
    if tissues is not None:
        findings += _resolve_tissues(facts, source, tissues)
    for flag, names in _FLAGS.items():
        column = next((name for name in names if name in obs), None)
        facts[flag] = _as_text(obs[column]).str.lower().isin({"true", "1", "doublet"}) if column else None
    return facts.reset_index(drop=True), findings


def resolve_label(term_id: str, name: str, ontology: Ontology) -> CellLabel:
    """One label in the ontology's spelling, with the problem if it has one."""
    is_named, has_id = name.lower() not in UNLABELLED, term_id.lower() not in UNLABELLED
    if not is_named and not has_id:
        return CellLabel(UNKNOWN, UNKNOWN)
    by_name = ontology.find(name) if is_named else None
    by_id = ontology.find(term_id) if has_id else None
    labels = (term.label for term in ontology.terms.values())
    if has_id and by_id is None:
        nearest = by_name.label if by_name else _nearest(name, labels)
        detail = f"{term_id} ({name}) is not in the ontology; nearest term: {nearest}"
        return CellLabel(
            by_name.id if by_name else UNKNOWN, by_name.label if by_name else name, "unknown term", detail
        )
    if by_id is None:
        if by_name is not None:
            return CellLabel(by_name.id, by_name.label)
        detail = f"{name!r} is not in the ontology; nearest term: {_nearest(name, labels)}"
        return CellLabel(UNKNOWN, name, "free text label", detail)
    if by_name is not None and not _related(by_name.id, by_id.id, ontology):
        detail = f"{term_id} is {by_id.label!r} but the cells are called {name!r}; treated as unlabelled"
        return CellLabel(UNKNOWN, UNKNOWN, "clashing label", detail)
    if by_id.id != term_id:
        return CellLabel(by_id.id, by_id.label, "obsolete term", f"{term_id} is now {by_id.id} ({by_id.label})")
    return CellLabel(by_id.id, by_id.label)


def _nearest(name: str, labels: Iterable[str]) -> str:
    """The label spelt most like this name, "none" when nothing is half alike."""
    label_of = {plain_name(label): label for label in labels}
    matches = get_close_matches(plain_name(name), label_of, n=1, cutoff=0.5)
    return label_of[matches[0]] if matches else "none"


def _resolve_labels(facts: pd.DataFrame, source: str, ontology: Ontology) -> list[Finding]:
    """Write the ontology's ids and labels into `facts`."""
    pairs = facts.groupby(["cell_type_ontology_term_id", "cell_type"], sort=True).ngroup()
    findings, term_ids, names = [], {}, {}
    for number, rows in facts.groupby(pairs, sort=True):
        first = rows.iloc[0]
        label = resolve_label(first["cell_type_ontology_term_id"], first["cell_type"], ontology)
        term_ids[number], names[number] = label.term_id, label.name
        if label.problem:
            findings.append(Finding(source, label.problem, label.detail, len(rows)))
    facts["cell_type_ontology_term_id"] = pairs.map(term_ids)
    facts["cell_type"] = pairs.map(names)
    num_unlabelled = int((facts["cell_type"] == UNKNOWN).sum())
    if num_unlabelled:
        findings.append(Finding(source, "no cell type", "kept without a label", num_unlabelled))
    return findings


def _resolve_tissues(facts: pd.DataFrame, source: str, tissues: Tissues) -> list[Finding]:
    """Write UBERON's ids and names into `facts`."""
    findings = []
    for (term_id, name), rows in facts.groupby(["tissue_ontology_term_id", "tissue"], sort=True).groups.items():
        found_id, found_name = tissues.find(term_id, name)
        facts.loc[rows, "tissue_ontology_term_id"] = found_id
        facts.loc[rows, "tissue"] = found_name
        if found_id == UNKNOWN and name != UNKNOWN:
            detail = f"{name!r} is not in UBERON; nearest term: {_nearest(name, tissues.label_of.values())}"
            findings.append(Finding(source, "free text tissue", detail, len(rows)))
    return findings


def _related(one: str, other: str, ontology: Ontology) -> bool:
    return one == other or one in ontology.ancestors(other) or other in ontology.ancestors(one)


def _column(obs: pd.DataFrame, fact: str, wanted: str | None) -> str | None:
    if wanted is not None:
        return wanted if wanted in obs else None
    return next((name for name in OBS_COLUMNS[fact] if name in obs), None)


def _as_text(column: pd.Series) -> pd.Series:
    """Any column as text; whole numbers without their ".0", missing values as "unknown"."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = _as_text(pd.Series(column.cat.categories))
        codes = column.cat.codes.to_numpy()
        text = np.where(codes >= 0, names.to_numpy(dtype=object)[codes], UNKNOWN) if len(names) else UNKNOWN
        return pd.Series(text, index=column.index, dtype=object)
    return column.map(_word).astype(object)


def _word(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return UNKNOWN
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or UNKNOWN


def _is_mixed(column: pd.Series) -> bool:
    return column.dtype == object and column.dropna().map(type).nunique() > 1


def _type_names(column: pd.Series) -> str:
    return " and ".join(sorted(kind.__name__ for kind in column.dropna().map(type).unique()))
