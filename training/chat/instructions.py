"""Instruction data from labelled cells: questions about cells, with answers made of what is known of these cells.

    python -m scmmgpt.training.chat.instructions --config training/recipes/mini.yaml --output runs/chat_instructions

Each row is one conversation: `messages` as JSON, and the cells that its placeholders take, as tokens. Cells come from the
sources of the embedded model, whose licences let a model be shared; rows without cells replay general instructions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import typer

from scmmgpt.cell_context import origin, raised_genes
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, UNINFORMATIVE_TERMS, Ontology
from scmmgpt.processing.prompting_scmmgpt import NUM_RAISED_GENES, cell_context, reading, with_article
from scmmgpt.training.chat import wordings
from scmmgpt.training.chat.studies import LabelledStudy, read_studies
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, RecipeFile, read_recipe

OWN_ANSWERS = Path(__file__).parent / "own_answers.json"
# How often each kind of question opens a conversation.
OPENINGS = {
    "name": 24,
    "describe": 16,
    "choose": 14,
    "check": 14,
    "genes": 6,
    "against": 6,
    "function": 5,
    "where": 4,
    "species": 3,
    "compare": 12,
    "empty": 3,
    "doublet": 3,
    "mixed up": 2,
    "limits": 4,
}
FOLLOW_UPS = ("genes", "function", "check", "against", "where", "species", "limits", "name", "describe")
SHARE_GENERAL = 0.16
# Shares of conversations whose context says the tissue, and the raised genes.
SHARE_TISSUE, SHARE_GENES = 0.6, 0.75
NUM_ANSWER_GENES = 3


@dataclass
class Cell:
    """One cell with all that an answer may say about it."""

    label: str
    study: LabelledStudy
    tokens: tuple[np.ndarray, np.ndarray]
    raised: list[str]
    told: list[str]
    tissue: str
    num_detected: int

    @property
    def context(self) -> str:
        genes = (self.num_detected, self.study.num_measured)
        return cell_context(self.study.species, self.tissue, genes, self.told)

    @property
    def speaking(self) -> list[str]:
        """The genes of its context that its type raises in its study, those that say most first."""
        return self.study.by_type(self.label, self.told)[:NUM_ANSWER_GENES]


@dataclass
class Maker:
    """Makes conversations; the same seed makes the same ones."""

    studies: list[LabelledStudy]
    ontology: Ontology
    functions: dict[str, str]
    general: dict[str, str]
    generator: np.random.Generator
    labels: list[str] = field(init=False)

    def __post_init__(self):
        self.labels = sorted({label for study in self.studies for label in study.types})
        sizes = np.array([len(study.types) ** 0.5 * study.weight for study in self.studies])
        self._study_weights = sizes / sizes.sum()

    def rows(self, number: int) -> Iterator[dict]:
        kinds, weights = list(OPENINGS), np.array(list(OPENINGS.values()), float)
        for _ in range(number):
            if self.generator.random() < SHARE_GENERAL:
                yield self.general_row()
                continue
            kind = kinds[self.generator.choice(len(kinds), p=weights / weights.sum())]
            yield self.cell_row(kind)

    # ---- rows

    def general_row(self) -> dict:
        question = self.one_of(sorted(self.general))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": self.general[question]}]
        return _row("general", messages, [])

    def cell_row(self, kind: str) -> dict:
        if kind in ("empty", "doublet", "mixed up"):
            cell, answer = {"empty": self.empty, "doublet": self.doublet, "mixed up": self.mixed_up}[kind]()
            question = self.one_of(wordings.NAME_QUESTIONS + wordings.DESCRIBE_QUESTIONS)
            return _row(kind, [*reading(question, [cell.context]), _said(answer)], [cell])
        study = self.studies[self.generator.choice(len(self.studies), p=self._study_weights)]
        if kind == "compare" and len(study.types) > 1:
            return self.comparison(study)
        cell = self.cell(study)
        openings = kind if kind != "compare" else "name"
        question, answer = self.ask(openings, cell)
        messages = [*reading(question, [cell.context]), _said(answer)]
        asked = {openings}
        for _ in range(self.generator.choice(4, p=(0.5, 0.3, 0.15, 0.05))):
            following = self.one_of([other for other in FOLLOW_UPS if other not in asked])
            asked.add(following)
            question, answer = self.ask(following, cell)
            messages += [{"role": "user", "content": question}, _said(answer)]
        return _row(kind, messages, [cell])

    def comparison(self, study: LabelledStudy) -> dict:
        number = 3 if len(study.types) > 2 and self.generator.random() < 0.3 else 2
        types = self.generator.choice(study.types, number, replace=False)
        cells = [self.cell(study, str(label)) for label in types]
        parts = [
            f"cell {number} is {with_article(cell.label)}{wordings.by_genes(cell.speaking[:2])}"
            for number, cell in enumerate(cells, 1)
        ]
        answer = f"{'; '.join(parts)}."
        question = self.one_of(wordings.COMPARE_QUESTIONS)
        messages = [*reading(question, [cell.context for cell in cells]), _said(answer[:1].upper() + answer[1:])]
        return _row("compare", messages, cells)

    # ---- cells

    def cell(self, study: LabelledStudy, label: str | None = None) -> Cell:
        label = label or self.one_of(study.types)
        members = np.flatnonzero(study.labels == label)
        number = int(self.generator.choice(members))
        # The genes of a cluster as often as those of a cell alone: both are asked about.
        others = self.generator.choice(members, min(len(members), int(self.generator.integers(2, 20))), replace=False)
        together = np.union1d([number], others) if self.generator.random() < 0.5 else np.array([number])
        return self.as_cell(study, label, study.tokens(number), study.study.values[together])

    def as_cell(self, study: LabelledStudy, label: str, tokens, values) -> Cell:
        raised = raised_genes(study.study, values, 2 * NUM_RAISED_GENES)
        told = raised[:NUM_RAISED_GENES] if self.generator.random() < SHARE_GENES else []
        tissue = study.tissue if self.generator.random() < SHARE_TISSUE else ""
        return Cell(label, study, tokens, raised, told, tissue, len(tokens[0]) - 1)

    def empty(self) -> tuple[Cell, str]:
        study = self.one_of(self.studies)
        cell = self.cell(study)
        ids, values = cell.tokens
        kept = np.sort(self.generator.permutation(len(ids) - 1)[: int(self.generator.integers(5, 60))]) + 1
        cell.tokens = np.r_[ids[:1], ids[kept]], np.r_[values[:1], values[kept]]
        cell.num_detected, cell.told = len(kept), []
        return cell, self.one_of(wordings.EMPTY_ANSWERS).format(number=cell.num_detected)

    def doublet(self) -> tuple[Cell, str]:
        study = self.one_of([study for study in self.studies if len(study.types) > 1])
        first = self.one_of(study.types)
        second = self.one_of(self.unrelated(first, study.types) or study.types)
        pair = [int(self.generator.choice(np.flatnonzero(study.labels == label))) for label in (first, second)]
        tokens, values = study.merged(*pair)
        cell = self.as_cell(study, first, tokens, values)
        return cell, self.one_of(wordings.DOUBLET_ANSWERS).format(
            first=with_article(first), second=with_article(second)
        )

    def mixed_up(self) -> tuple[Cell, str]:
        """A cell whose counts stand under other genes' names."""
        study = self.one_of(self.studies)
        cell = self.cell(study)
        ids, values = cell.tokens
        drawn = self.generator.choice(study.measured_ids, len(ids) - 1, replace=False)
        cell.tokens = np.r_[ids[:1], np.sort(drawn)], np.r_[values[:1], self.generator.permutation(values[1:])]
        names = [study.study.genes[number] for number in self.generator.choice(len(study.study.genes), 6)]
        cell.told = names if cell.told else []
        return cell, self.one_of(wordings.MIXED_UP_ANSWERS)

    # ---- questions

    def ask(self, kind: str, cell: Cell) -> tuple[str, str]:
        asks: dict[str, Callable[[Cell], tuple[str, str]]] = {
            "name": self.ask_name,
            "describe": self.ask_description,
            "choose": self.ask_choice,
            "check": self.ask_check,
            "genes": self.ask_genes,
            "against": self.ask_against,
            "function": self.ask_function,
            "where": self.ask_where,
            "species": self.ask_species,
            "limits": self.ask_limits,
        }
        return asks[kind](cell)

    def ask_name(self, cell: Cell) -> tuple[str, str]:
        answer = self.one_of(wordings.NAME_ANSWERS).format(type=with_article(cell.label))
        return self.one_of(wordings.NAME_QUESTIONS), answer

    def ask_description(self, cell: Cell) -> tuple[str, str]:
        where = origin(cell.study.species, cell.tissue)
        parts = [self.one_of(wordings.DESCRIPTION_OPENINGS).format(type=with_article(cell.label), where=where)]
        if cell.speaking:
            parts.append(self.one_of(wordings.GENE_SENTENCES).format(genes=wordings.listed(cell.speaking)))
        if (told := self.function_of(cell.label)) and self.generator.random() < 0.6:
            parts.append(told)
        return self.one_of(wordings.DESCRIBE_QUESTIONS), " ".join(parts)

    def ask_choice(self, cell: Cell) -> tuple[str, str]:
        others = self.unrelated(cell.label, cell.study.types) or self.unrelated(cell.label, self.labels)
        most = min(len(others), int(self.generator.integers(1, 7)))
        candidates = [cell.label, *self.generator.choice(others, most, replace=False)]
        listed = "; ".join(self.generator.permutation(candidates))
        question = f"{self.one_of(wordings.NAME_QUESTIONS)} Choose one of: {listed}."
        return question, cell.label

    def ask_check(self, cell: Cell) -> tuple[str, str]:
        draw = self.generator.random()
        own = self.ontology.find(cell.label)
        above = [] if own is None else self.ontology.ancestors(own.id)
        if draw < 0.4:
            asked, answer = cell.label, f"Yes, this is {with_article(cell.label)}."
        elif draw < 0.55 and (known := [term for term in above if term not in UNINFORMATIVE_TERMS][:4]):
            asked = self.ontology.terms[self.one_of(known)].label
            answer = f"Yes: it is {with_article(cell.label)}, which is a kind of {asked}."
        else:
            asked = self.one_of(cell.study.types if draw < 0.85 else self.labels)
            is_right = asked == cell.label or self.is_above(asked, above)
            answer = f"Yes, this is {with_article(asked)}." if is_right else f"No, this is {with_article(cell.label)}."
        return self.one_of(wordings.CHECK_QUESTIONS).format(type=with_article(asked)), answer

    def unrelated(self, label: str, among: list[str]) -> list[str]:
        """Types that are neither the same nor above or below one another."""
        own = self.ontology.find(label)
        above = [] if own is None else self.ontology.ancestors(own.id)

        def is_below(other: str) -> bool:
            term = self.ontology.find(other)
            return own is not None and term is not None and own.id in self.ontology.ancestors(term.id)

        return [one for one in among if one != label and not self.is_above(one, above) and not is_below(one)]

    def is_above(self, label: str, term_ids: list[str]) -> bool:
        term = self.ontology.find(label)
        return term is not None and term.id in term_ids

    def ask_genes(self, cell: Cell) -> tuple[str, str]:
        question = self.one_of(wordings.GENE_QUESTIONS)
        if not cell.speaking:
            return question, self.one_of(wordings.NO_GENES_ANSWERS)
        return question, self.one_of(wordings.GENE_SENTENCES).format(genes=wordings.listed(cell.speaking))

    def ask_against(self, cell: Cell) -> tuple[str, str]:
        rival = cell.study.rival(cell.label)
        if rival is None:
            return self.ask_genes(cell)
        question = self.one_of(wordings.AGAINST_QUESTIONS)
        genes = cell.study.against(cell.label, rival, cell.told)[:2]
        if not genes:
            return question, f"The nearest other type is {with_article(rival)}; {wordings.NO_GENES_AGAINST}"
        answer = f"The nearest other type is {with_article(rival)}. {wordings.listed(genes)} "
        return question, f"{answer}{'speaks' if len(genes) == 1 else 'speak'} for {with_article(cell.label)}."

    def ask_function(self, cell: Cell) -> tuple[str, str]:
        told = self.function_of(cell.label)
        return self.one_of(wordings.FUNCTION_QUESTIONS), told or wordings.NO_FUNCTION.format(
            type=with_article(cell.label)
        )

    def function_of(self, label: str) -> str:
        """What such cells do: the base LLM's own words or, as often, the ontology's."""
        own, term = self.functions.get(label, ""), self.ontology.find(label)
        defined = "" if term is None else wordings.from_definition(label, term.definition)
        known = [text for text in (wordings.first_sentence(own), defined) if text]
        return self.one_of(known) if known else ""

    def ask_where(self, cell: Cell) -> tuple[str, str]:
        question = self.one_of(wordings.TISSUE_QUESTIONS)
        answers = wordings.TISSUE_ANSWERS if cell.tissue else wordings.NO_TISSUE_ANSWERS
        return question, self.one_of(answers).format(tissue=cell.tissue, type=with_article(cell.label))

    def ask_species(self, cell: Cell) -> tuple[str, str]:
        answer = self.one_of(wordings.SPECIES_ANSWERS).format(species=cell.study.species)
        return self.one_of(wordings.SPECIES_QUESTIONS), answer

    def ask_limits(self, cell: Cell) -> tuple[str, str]:
        """Medical advice, orders hidden in a question, and questions that are none."""
        draw = self.generator.random()
        if draw < 0.5:
            return self.one_of(wordings.MEDICAL_QUESTIONS), self.one_of(wordings.MEDICAL_ANSWERS)
        if draw < 0.75:
            return self.one_of(wordings.NO_QUESTIONS), self.one_of(wordings.NO_QUESTION_ANSWERS)
        return self.one_of(wordings.ORDERS).format(type=with_article(self.one_of(self.labels))), self.one_of(
            wordings.NAME_ANSWERS
        ).format(type=with_article(cell.label))

    def one_of(self, choices):
        return choices[int(self.generator.integers(len(choices)))]


def _said(answer: str) -> dict:
    return {"role": "assistant", "content": answer}


def _row(kind: str, messages: list[dict], cells: list[Cell]) -> dict:
    return {
        "kind": kind,
        "messages": json.dumps(messages),
        "studies": [cell.study.name for cell in cells],
        "labels": [cell.label for cell in cells],
        "gene_ids": [cell.tokens[0].astype(np.int32) for cell in cells],
        "gene_values": [cell.tokens[1].astype(np.float32) for cell in cells],
    }


FEATURES = datasets.Features(
    {
        "kind": datasets.Value("string"),
        "messages": datasets.Value("string"),
        "studies": datasets.List(datasets.Value("string")),
        "labels": datasets.List(datasets.Value("string")),
        "gene_ids": datasets.List(datasets.List(datasets.Value("int32"))),
        "gene_values": datasets.List(datasets.List(datasets.Value("float32"))),
    }
)


def main(
    data: CellFolder,
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    config: RecipeFile = RECIPE,
    number: Annotated[int, typer.Option(help="Conversations to make.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Other conversations for another seed.")] = 0,
) -> None:
    """Write a set of conversations about cells."""
    recipe = read_recipe(config)
    processor = ScMMGPTProcessor.from_pretrained(EMBEDDED_MODEL)
    ontology = Ontology.read(EMBEDDED_MODEL / FILE_NAME)
    studies = read_studies(recipe, data, processor.gene_tokenizer, ontology)
    own = json.loads(OWN_ANSWERS.read_text(encoding="utf-8"))
    maker = Maker(studies, ontology, own["functions"], own["general"], np.random.default_rng(seed))
    rows = list(maker.rows(number))
    datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(output)
    kinds, counts = np.unique([row["kind"] for row in rows], return_counts=True)
    print(f"{len(rows)} conversations about {len(maker.labels)} types of {len(studies)} studies in {output}")
    print(", ".join(f"{kind}: {count}" for kind, count in zip(kinds, counts, strict=True)))


if __name__ == "__main__":
    typer.run(main)
