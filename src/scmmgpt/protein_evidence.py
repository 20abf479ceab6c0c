"""Antibodies beside the RNA, for `annotate` and `describe`: what they say of the cells, and how much that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .processing.author_labels_scmmgpt import by_name
from .processing.back_off_scmmgpt import Calls, group_means
from .processing.cell_matrix_scmmgpt import parts
from .processing.cell_reading_scmmgpt import open_cells
from .processing.labels_scmmgpt import UNKNOWN
from .processing.ontology_scmmgpt import Ontology
from .processing.protein_names_scmmgpt import ProteinNames, without_marks
from .processing.proteins_scmmgpt import MIN_CELLS, Panel, ProteinEvidence, expected_proteins, read_proteins
from .processing.surface_phenotypes_scmmgpt import SurfacePhenotypes

if TYPE_CHECKING:
    from .loading import LoadedModel
    from .processing.calling_scmmgpt import Candidates, Scorer
    from .verb import Verb

_CLEAR, _MOST_NAMED = 0.5, 6
_LEAST_EXPECTED, _LEAST_SAID = 0.3, 0.05
ALONE = "cells are judged one by one, and the two levels of an antibody show only in a study"
FEW = f"fewer than {MIN_CELLS} cells were measured, which do not show the two levels of an antibody"
NO_PROTEIN = "no antibody names the protein of a known gene"
NO_CELL = "no cell of it has the name of a cell of the RNA"


@dataclass(frozen=True)
class StudyProteins:
    """The antibodies of a study; without a panel the account says why they are not used."""

    account: dict[str, Any]
    panel: Panel | None = None

    @classmethod
    def of(cls, verb: Verb, *, one_by_one: bool = False) -> StudyProteins | None:
        """Read the antibodies that came with the cells; None where there are none."""
        with open_cells(verb.cells.source) as cells:
            measured = read_proteins(cells)
        if measured is None:
            return None
        number = int(measured.is_measured.sum())
        account = {"place": measured.place, "scale": measured.scale, "cells": number}
        if number < len(measured.values):
            account["cells_without_proteins"] = len(measured.values) - number
        names = ProteinNames(verb.loaded.processor.gene_tokenizer.gene_names)
        if one_by_one or number < MIN_CELLS:
            return cls(account | {"not_used": NO_CELL if not number else ALONE if one_by_one else FEW})
        panel = Panel.of(measured, names)
        account |= _names(panel)
        if not any(panel.proteins):
            return cls(account | {"not_used": NO_PROTEIN})
        return cls(account, panel)

    def evidence(self, candidates: Candidates, loaded: LoadedModel) -> ProteinEvidence | None:
        """What the antibodies say for each label."""
        if self.panel is None:
            return None
        expected = self._expected(candidates.labels.labels, candidates.term_ids, loaded)
        return ProteinEvidence(self.panel, expected) if expected.any() else None

    def _expected(self, labels: Sequence[str], term_ids: Sequence[str | None], loaded: LoadedModel) -> np.ndarray:
        annotator, gene_tokenizer = loaded.annotator, loaded.processor.gene_tokenizer
        phenotypes = SurfacePhenotypes(annotator.ontology, ProteinNames(gene_tokenizer.gene_names))
        meant, words = types_of_labels(labels, term_ids, annotator.ontology)
        panel: Any = self.panel
        profiles, genes = annotator.type_profiles, gene_tokenizer.genes
        return expected_proteins(meant, panel.proteins, phenotypes, profiles, genes, words)

    def results(
        self, scorer: Scorer, calls: Calls, loaded: LoadedModel
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The conflict of every cell, by the name of its column, and what the record says of the proteins."""
        if scorer.proteins is None:
            return {}, self.account
        conflict, num_changed = _changes(scorer)
        told = {
            "changed_calls": num_changed,
            "mean_conflict": round(float(conflict.mean()), 4),
            "evidence": self._evidence_table(calls, loaded),
        }
        return {"protein_conflict": conflict}, self.account | told

    def _evidence_table(self, calls: Calls, loaded: LoadedModel) -> dict[str, np.ndarray]:
        """For each called type the antibodies that its cells have, or lack, as is known of the type, and those that disagree."""
        panel: Any = self.panel
        labels = calls.labels.astype(str)
        called, first = np.unique(labels, return_index=True)
        terms = [term or None for term in calls.term_ids[first].astype(str).tolist()]
        expected_of_types = self._expected(called.tolist(), terms, loaded)
        rows = []
        for name, expected in zip(called.tolist(), expected_of_types, strict=True):
            if name == UNKNOWN:
                continue
            of_type = labels == name
            share = panel.presence[of_type].mean(axis=0)
            agrees = np.where(np.abs(expected) >= _LEAST_EXPECTED, expected * (share - 0.5) * panel.parting, 0)
            for_, against = (
                [
                    f"{without_marks(panel.names[at])}{'+' if share[at] > 0.5 else '-'}"
                    for at in order
                    if sign * agrees[at] > _LEAST_SAID
                ]
                for sign, order in ((1, _has_first(agrees, share)), (-1, _has_first(-agrees, share)))
            )
            rows.append((name, ", ".join(for_[:_MOST_NAMED]), ", ".join(against[:_MOST_NAMED])))
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        titles = ("cell_type", "proteins", "proteins_against")
        return {title: np.array(list(column), dtype=object) for title, column in zip(titles, columns, strict=True)}

    def sentences(self, clusters: np.ndarray | None = None) -> list[str]:
        """For each cell what its proteins are, or those of its cluster, in words; empty where nothing is clear."""
        panel: Any = self.panel
        presence = panel.presence
        if clusters is not None:
            presence = group_means(lambda rows: panel.presence[rows], clusters)[clusters]
        clear = [
            at
            for at in np.argsort(-panel.parting, kind="stable")
            if panel.parting[at] >= _CLEAR and panel.proteins[at]
        ]
        short = [without_marks(panel.names[at]) for at in clear]
        result = []
        for row in presence[:, clear]:
            high = [name for name, one in zip(short, row, strict=True) if one > 0.9][:_MOST_NAMED]
            low = [name for name, one in zip(short, row, strict=True) if one < 0.1][:_MOST_NAMED]
            said = [f"{', '.join(names)} {level}" for names, level in ((high, "high"), (low, "low")) if names]
            result.append(f"Surface proteins, by antibodies: {'; '.join(said)}." if said else "")
        return result


def types_of_labels(
    labels: Sequence[str], term_ids: Sequence[str | None], ontology: Ontology
) -> tuple[list[str | None], list[str]]:
    """The term of each label for what is known of proteins, and the label where it is an author's words, else "".

    What a label says ("CD16 Mono", "CD4 TCM") comes before the term that the model's texts find nearest to it.
    """
    meant, words = [], []
    for label, term_id in zip(labels, term_ids, strict=True):
        own = ontology.find(label)
        named = by_name(label, ontology).term_id if own is None else own.id
        meant.append(named or term_id)
        words.append(label if own is None else "")
    return meant, words


def protein_line(account: Mapping[str, Any]) -> str:
    """What `annotate` did with antibodies, in one line.

    Examples
    --------
    >>> protein_line({"place": "X", "scale": "counts", "antibodies": ["CD3", "CD4"], "cells": 200, "changed_calls": 7})
    '2 antibodies of X (counts) in 200 cells: 7 calls changed'
    >>> protein_line({"place": "mod['prot']", "not_used": "fewer than 100 cells"})
    "antibodies of mod['prot'] not used: fewer than 100 cells"
    """
    if "changed_calls" not in account:
        return (
            f"antibodies of {account['place']} not used: {account.get('not_used', 'they say nothing of these labels')}"
        )
    used = f"{len(account['antibodies'])} antibodies of {account['place']} ({account['scale']}) in {account['cells']} cells"
    missing = account.get("cells_without_proteins")
    return f"{used}{f', {missing} without' if missing else ''}: {account['changed_calls']} calls changed"


def with_proteins(verb: Verb, texts: list[str], clusters: np.ndarray | None = None) -> list[str]:
    """Descriptions of cells, each with a sentence that names their proteins as proteins, where antibodies were counted."""
    measured = StudyProteins.of(verb)
    if measured is None or measured.panel is None:
        return texts
    return [f"{text} {said}".strip() for text, said in zip(texts, measured.sentences(clusters), strict=True)]


def _names(panel: Panel) -> dict[str, Any]:
    """What each antibody was taken for."""
    used = [at for at, protein in enumerate(panel.proteins) if protein]
    return {
        "antibodies": [panel.names[at] for at in used],
        "proteins": [str(panel.proteins[at]) for at in used],
        "not_parting": [panel.names[at] for at in used if panel.parting[at] == 0],
        "controls": [name for name, is_control in zip(panel.names, panel.is_control, strict=True) if is_control],
        "without_gene": [
            name
            for name, protein, is_control in zip(panel.names, panel.proteins, panel.is_control, strict=True)
            if protein is None and not is_control
        ],
    }


def _changes(scorer: Scorer) -> tuple[np.ndarray, int]:
    """How much probability the proteins moved in each cell, from 0 to 1, and how many best labels they changed."""
    of_rna = scorer.without_proteins()
    num_cells, changed = len(scorer.cells), 0
    conflict = np.empty(num_cells, np.float32)
    for rows in parts(num_cells):
        with_, without = scorer.probabilities(rows), of_rna.probabilities(rows)
        conflict[rows] = np.abs(with_ - without).sum(axis=1) / 2
        changed += int((with_.argmax(axis=1) != without.argmax(axis=1)).sum())
    return conflict, changed


def _has_first(agrees: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Antibodies by how much they say, those that the cells have before those that they lack."""
    return np.lexsort((-agrees, share <= 0.5))
