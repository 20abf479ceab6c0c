"""Names for cells from their similarities to candidates: calibrated confidence, and back-off in the Cell Ontology.

The rules of `scmmgpt.annotate`, for one cell at a time: what an endpoint says about a cell never depends on the other
cells of a request. A Hub file: it lies beside `handler.py` in every published repository.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING or __package__:
    from scmmgpt.processing.ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, read_ontology
else:
    from ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, read_ontology

UNKNOWN = "unknown"
DEFAULT_MIN_CONFIDENCE = 0.3


@dataclass(frozen=True)
class Candidates:
    """What cells may be called: labels as given, their ontology ids (None for free text) and definitions."""

    labels: tuple[str, ...]
    term_ids: tuple[str | None, ...]
    definitions: tuple[str, ...]


class Naming:
    """The ontology and the calibration of one model directory.

    Parameters
    ----------
    directory
        A complete Hub repository.
    trained_types
        Names or ids of the types the model was trained on: the candidates when none are given.
    """

    def __init__(self, directory: Path, trained_types: Sequence[str] = ()):
        self.ontology: Ontology = read_ontology(directory)
        path = directory / "calibration.json"
        self.calibration = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.default_candidates = self.candidates(list(trained_types)) if trained_types else self._all_terms()

    @property
    def min_confidence(self) -> float:
        return float(self.calibration.get("min_confidence", DEFAULT_MIN_CONFIDENCE))

    def candidates(self, labels: Sequence[str]) -> Candidates:
        """Labels with what the ontology knows about them."""
        terms = [self.ontology.find(label) for label in labels]
        names = (term.label if term and label == term.id else label for label, term in zip(labels, terms, strict=True))
        return Candidates(
            tuple(names),
            tuple(term.id if term else None for term in terms),
            tuple(term.definition if term else "" for term in terms),
        )

    def _all_terms(self) -> Candidates:
        return self.candidates([term for term in self.ontology.terms if term not in UNINFORMATIVE_TERMS])

    def probabilities(self, similarities: np.ndarray, scale: float, candidates: Candidates) -> np.ndarray:
        """From cosines (cells, candidates) to calibrated probabilities.

        Parameters
        ----------
        similarities
            Cosines between cells and candidates.
        scale
            The model's inverse temperature.
        candidates
            The columns.
        """
        bias = self.calibration.get("class_bias") or {}
        keys = zip(candidates.term_ids, candidates.labels, strict=True)
        class_bias = np.array([bias.get(term_id or label, bias.get(label, 0.0)) for term_id, label in keys])
        pairs = sorted(self.calibration.get("temperature_by_candidates") or [[1, 1.0]])
        numbers, temperatures = zip(*pairs, strict=True)
        temperature = np.interp(np.log(len(candidates.labels)), np.log(numbers), temperatures)
        logits = (similarities * scale - class_bias) / temperature
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def calls(self, probabilities: np.ndarray, candidates: Candidates, min_confidence: float) -> list[dict]:
        """One call per row: the best candidate, or the most specific ancestor that reaches `min_confidence`.

        Parameters
        ----------
        probabilities
            (cells, candidates).
        candidates
            The columns.
        min_confidence
            For an ancestor: how far above the share that chance would give it. 0 always names the best candidate.
        """
        groups = self._groups(candidates)
        return [self._call(row, candidates, groups, min_confidence) for row in probabilities]

    def _call(self, probability: np.ndarray, candidates: Candidates, groups: dict, min_confidence: float) -> dict:
        order = np.argsort(-probability, kind="stable")
        best = int(order[0])
        name, term_id, confidence = candidates.labels[best], candidates.term_ids[best], float(probability[best])
        if confidence < min_confidence:
            name, term_id = UNKNOWN, None
            for ancestor, members in groups.items():
                mass, chance = float(probability[members].sum()), len(members) / len(probability)
                # A group of nearly all candidates holds nearly all probability and says nothing.
                if best in members and mass - chance >= min_confidence * (1 - chance) > 0:
                    name, term_id, confidence = self._given_name(ancestor, candidates), ancestor, mass
                    break
        return {
            "cell_type": name,
            "cell_type_ontology_term_id": term_id or UNKNOWN,
            "confidence": round(confidence, 6),
            "second_choice": candidates.labels[order[1]] if len(order) > 1 else UNKNOWN,
        }

    def _given_name(self, term_id: str, candidates: Candidates) -> str:
        if term_id in candidates.term_ids:
            return candidates.labels[candidates.term_ids.index(term_id)]
        return self.ontology.terms[term_id].label

    def _groups(self, candidates: Candidates) -> dict[str, list[int]]:
        """Ancestors of several candidates, with these: few candidates first, then deep before shallow."""
        members: dict[str, list[int]] = {}
        for index, term_id in enumerate(candidates.term_ids):
            for ancestor in [term_id, *self.ontology.ancestors(term_id)] if term_id else []:
                members.setdefault(ancestor, []).append(index)
        several = [
            term_id
            for term_id, held in members.items()
            if len(held) > 1 and term_id not in UNINFORMATIVE_TERMS and term_id in self.ontology.terms
        ]
        depth = {term_id: len(self.ontology.ancestors(term_id)) for term_id in several}
        order = sorted(several, key=lambda term_id: (len(members[term_id]), -depth[term_id], term_id))
        return {term_id: members[term_id] for term_id in order}
