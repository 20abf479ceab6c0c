"""What the embedded model reads: many wordings of each cell type, markers counted from profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scmmgpt.processing.ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, Term
from scmmgpt.processing.prompting_scmmgpt import DESCRIPTIONS, cell_text
from scmmgpt.training.evaluation.expression import TARGET_SUM
from scmmgpt.training.evaluation.type_tree import TypeTree

from .profiles import Profiles

NUM_MARKERS = 25
NUM_NAMED_MARKERS = 6


@dataclass
class TypeTexts:
    """Draws a wording of a cell type: name or synonym, with or without definition, parents, tissue and markers.

    Attributes
    ----------
    markers
        Genes by which each type of the training profiles stands out, most telling first.
    marker_rate
        Share of texts that name some of them.
    """

    ontology: Ontology
    markers: dict[str, list[str]] = field(default_factory=dict)
    marker_rate: float = 0.35
    tissue_rate: float = 0.15
    tree: TypeTree = field(init=False)

    def __post_init__(self):
        self.tree = TypeTree(self.ontology)

    def draw(self, term_id: str, generator: np.random.Generator, tissue: str | None = None) -> str:
        """A new text about the type."""
        place = {"tissue": tissue} if tissue and generator.random() < self.tissue_rate else {}
        text = self._wording(self.ontology.terms[term_id], place, generator)
        markers = self.markers.get(term_id)
        if markers and generator.random() < self.marker_rate:
            chosen = generator.choice(markers, min(NUM_NAMED_MARKERS, len(markers)), replace=False)
            about = text if generator.random() < 0.7 else ""
            text = f"{about} Markers: {', '.join(chosen)}.".strip()
        return text

    def _wording(self, term: Term, place: dict[str, str], generator: np.random.Generator) -> str:
        name = term.label
        if term.synonyms and generator.random() < 0.4:
            name = str(generator.choice(term.synonyms))
        # Half the texts in the plain wording, which annotation uses; the others in all.
        paraphrase = 0 if generator.random() < 0.5 else int(generator.integers(len(DESCRIPTIONS)))
        kind = generator.random()
        if kind < 0.15:
            return f"{name}s" if generator.random() < 0.3 else name
        if kind < 0.35 or not term.definition:
            return cell_text({"cell_type": name, **place}, paraphrase=paraphrase)
        if kind < 0.65:
            return cell_text({"cell_type": name, **place}, term.definition, paraphrase)
        if kind < 0.8:
            return self.tree.definition_without_name(term.id) or name
        parents = [self.ontology.terms[parent].label for parent in term.parents if parent in self.ontology.terms]
        kinship = f", a kind of {' and '.join(parents[:2])}" if parents else ""
        return cell_text({"cell_type": f"{name}{kinship}", **place}, paraphrase=paraphrase)

    @property
    def readable_terms(self) -> list[str]:
        """Types about which there is something to say, in order of id."""
        return sorted(
            key for key, term in self.ontology.terms.items() if term.definition and key not in UNINFORMATIVE_TERMS
        )


def marker_genes(profiles: Profiles, genes: Sequence[str]) -> dict[str, list[str]]:
    """For each type the genes whose log expression stands out most among all types, by standard deviations."""
    terms = profiles.table.term_id.to_numpy()
    log_share = np.log1p(TARGET_SUM * profiles.share)
    whole = profiles.measured.sum(1) >= profiles.measured.shape[1] // 3
    known = list(np.unique(terms[whole]))
    mean = np.array([log_share[whole & (terms == term)].mean(0) for term in known])
    outstanding = (mean - mean.mean(0)) / (mean.std(0) + 0.3)
    order = np.argsort(-outstanding, axis=1)[:, :NUM_MARKERS]
    return {term: [genes[i] for i in row] for term, row in zip(known, order, strict=True)}


def tokenizer_corpus(ontology: Ontology, genes: Sequence[str]) -> list[str]:
    """Every name and definition of the ontology, and the genes' names."""
    texts = [
        f"{term.label}. {term.definition} {', '.join(term.synonyms)}" for _, term in sorted(ontology.terms.items())
    ]
    return texts + [", ".join(genes[i : i + 50]) for i in range(0, len(genes), 50)]
