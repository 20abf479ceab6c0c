"""What a text says about a row of a corpus: which facts are told, drawn anew for every row; the words are the processor's.

Two cells of one type need not have the same text: the name may be a synonym, and definition, lineage and the marker
genes that this very cell expresses come and go.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scmmgpt.processing.ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology
from scmmgpt.processing.prompting_scmmgpt import cell_text, lineage_text, marker_text

from .reading import Corpus

_NUM_WORDINGS = 30  # divisible by the number of wordings of any template, so each is drawn equally often


@dataclass
class CellTextWriter:
    """(row, generator) -> a text; for `CellTextCollator`.

    Attributes
    ----------
    synonym_share, definition_share, lineage_share, marker_share
        How often a text calls the type by a synonym, defines it, places it in the ontology, or names marker genes.
    max_markers, max_kinds
        The most marker genes, and the most general types, that a text names.
    """

    ontology: Ontology
    markers: dict[str, list[str]]
    gene_ids: dict[str, int]
    synonym_share: float = 0.2
    definition_share: float = 0.5
    lineage_share: float = 0.25
    marker_share: float = 0.5
    max_markers: int = 6
    max_kinds: int = 3

    @classmethod
    def of_corpus(cls, corpus: Corpus, **settings) -> CellTextWriter:
        """The writer with a corpus's ontology and marker genes."""
        return cls(corpus.ontology, corpus.markers, corpus.gene_tokenizer().vocabulary, **settings)

    def __call__(self, row: dict, generator: np.random.Generator) -> str:
        draws, wording = generator.random(4), int(generator.integers(_NUM_WORDINGS))
        term = self.ontology.terms.get(row["cell_type_ontology_term_id"])
        if term is None:
            return cell_text(row, paraphrase=wording)
        if term.synonyms and draws[0] < self.synonym_share:
            row = {**row, "cell_type": term.synonyms[int(generator.integers(len(term.synonyms)))]}
        parts = [cell_text(row, term.definition if draws[1] < self.definition_share else None, wording)]
        kinds = self.kinds(term.id)
        if kinds and draws[2] < self.lineage_share:
            parts.append(lineage_text(kinds, wording))
        genes = self.expressed_markers(row)
        if genes and draws[3] < self.marker_share:
            parts.append(marker_text(genes, wording))
        return " ".join(parts)

    def kinds(self, term_id: str) -> list[str]:
        """Labels of the nearest ancestors that say something."""
        telling = [term for term in self.ontology.ancestors(term_id) if term not in UNINFORMATIVE_TERMS]
        return [self.ontology.terms[term].label for term in telling[: self.max_kinds]]

    def expressed_markers(self, row: dict) -> list[str]:
        """Marker genes of the row's type that the row's cell expresses, best first."""
        names, ids = self._markers_with_ids.get(row["cell_type_ontology_term_id"], ((), ()))
        if not len(names):
            return []
        is_expressed = np.isin(ids, np.asarray(row["gene_ids"]))
        return [name for name, expressed in zip(names, is_expressed, strict=True) if expressed][: self.max_markers]

    @cached_property
    def _markers_with_ids(self) -> dict[str, tuple[list[str], np.ndarray]]:
        return {
            term_id: (names, np.array([self.gene_ids[name] for name in names]))
            for term_id, names in self.markers.items()
        }
