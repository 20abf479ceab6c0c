"""Words in which people ask for cells: type, tissue, organism, stage and disease, each said or left out, in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from scmmgpt.processing.ontology_scmmgpt import Ontology, Term
from scmmgpt.processing.prompting_scmmgpt import cell_request, generation_text, with_article

# What the stages of the sources are called in a sentence; adult is what is meant where nothing is said.
STAGES = {"Fetal": ("fetal",), "Fetal E14.5": ("embryonic", "fetal"), "Neonatal": ("neonatal", "newborn")}
TISSUE_RATE, STAGE_RATE, DISEASE_RATE = 0.75, 0.85, 0.8
SYNONYM_RATE, DEFINITION_RATE, PLURAL_RATE = 0.35, 0.2, 0.2
PERSONS_WORDS_RATE = 0.7
PREPOSITIONS, PREPOSITION_RATES = ("from", "in", "of", "isolated from"), (0.5, 0.2, 0.25, 0.05)


@dataclass
class RequestTexts:
    """Draws a text that asks for cells of a profile.

    Attributes
    ----------
    tissue_names, disease_names, tissue_parts
        As in the recipe: names of tissues in the sources to what a reader calls them; part of a study's name to the
        disease of its donors; tissues and what is part of them.
    """

    ontology: Ontology
    tissue_names: Mapping[str, str] = field(default_factory=dict)
    disease_names: Mapping[str, str] = field(default_factory=dict)
    tissue_parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def facts(self, row: Mapping) -> dict[str, str]:
        """What a text may say of a row of the table of profiles. The organism is said where it is not human."""
        disease = next((name for part, name in self.disease_names.items() if part in row["study"]), "")
        return {
            "term_id": row["term_id"],
            "tissue": self.tissue_names.get(row["tissue"], row["tissue"]),
            "organism": "mouse" if row["organism"] == "Mus musculus" else "human",
            "stage": row["stage"] if row["stage"] in STAGES else "",
            "disease": disease,
        }

    def draw(self, facts: Mapping[str, str], generator: np.random.Generator) -> str:
        """A new text about the facts."""
        term = self.ontology.terms[facts["term_id"]]
        name = term.label
        if term.synonyms and generator.random() < SYNONYM_RATE:
            name = str(generator.choice(term.synonyms))
        definition = _definition(term, generator)
        if definition and generator.random() < 0.15:
            name = "cell"
        if generator.random() < PERSONS_WORDS_RATE:
            text = generation_text(self._words(name, facts, generator))
            return f"{text} {definition}" if definition else text
        return self._template(name, facts, definition, generator)

    def _template(self, name: str, facts: Mapping[str, str], definition: str | None, generator) -> str:
        said = {"cell_type": name, "organism": "Mus musculus" if facts["organism"] == "mouse" else ""}
        for fact, rate in (("tissue", TISSUE_RATE), ("disease", DISEASE_RATE)):
            if facts[fact] and generator.random() < rate:
                said[fact] = facts[fact]
        if facts["stage"] and generator.random() < STAGE_RATE:
            said["stage"] = f"{_stage(facts, generator)} stage"
        return cell_request(said, definition, int(generator.integers(3)))

    def _words(self, name: str, facts: Mapping[str, str], generator) -> str:
        """As a person would type it: "fetal human B cells from spleen", "a spleen B cell of a patient with COVID-19"."""
        organism = facts["organism"]
        if organism == "mouse" and generator.random() < 0.2:
            organism = "murine"
        says_organism = generator.random() < (0.97 if facts["organism"] == "mouse" else 0.5)
        tissue = facts["tissue"] if generator.random() < TISSUE_RATE else ""
        front = []
        if facts["stage"] and generator.random() < STAGE_RATE:
            front.append(_stage(facts, generator))
        elif not facts["stage"] and generator.random() < 0.1:
            front.append("adult")
        if says_organism and generator.random() < 0.5:
            front.append(organism)
            says_organism = False
        if tissue and generator.random() < 0.2:
            front.append(tissue)
            tissue = ""
        is_plural = generator.random() < PLURAL_RATE
        words = " ".join([*front, f"{name}s" if is_plural and not name.endswith("s") else name])
        if tissue:
            place = f"{organism} {tissue}" if says_organism else tissue
            says_organism = False
            article = "the " if generator.random() < 0.25 else ""
            words += f" {generator.choice(PREPOSITIONS, p=PREPOSITION_RATES)} {article}{place}"
        if says_organism:
            words += f" of a {organism}" if generator.random() < 0.6 else f", {organism}"
        words += _health(facts["disease"], generator)
        if not is_plural and generator.random() < 0.5:
            words = with_article(words)
        return words.lower() if generator.random() < 0.08 else words


def _definition(term: Term, generator: np.random.Generator) -> str | None:
    return term.definition if term.definition and generator.random() < DEFINITION_RATE else None


def _stage(facts: Mapping[str, str], generator: np.random.Generator) -> str:
    return str(generator.choice(STAGES[facts["stage"]]))


def _health(disease: str, generator: np.random.Generator) -> str:
    if disease and generator.random() < DISEASE_RATE:
        return str(generator.choice([f" of a patient with {disease}", f" with {disease}", f", {disease}"]))
    return " of a healthy donor" if not disease and generator.random() < 0.05 else ""
