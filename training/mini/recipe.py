"""The recipe of the embedded model, typed: sources, simulator, architecture, the parts of each stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from scmmgpt.training.strict_yaml import CHECKED, read_settings

from .cell_simulator import SimulatorSettings


@dataclass(config=CHECKED, frozen=True)
class Source:
    """A file of cells and the licence that lets a model trained on it be shared."""

    file: str
    licence: str
    simulated: bool = False


@dataclass(config=CHECKED, frozen=True)
class Stage1Part:
    """Some steps of stage 1 with the same settings.

    Attributes
    ----------
    num_ontology_texts
        Types of the whole ontology whose wordings are contrasted with one another at every step.
    shortcut_only
        Cells are embedded by the shortcut of their pooled tokens alone, at half the cost; the Q-Former's queries wait.
    """

    steps: int
    batch_size: int
    learning_rate: float
    match_weight: float
    caption_weight: float
    num_ontology_texts: int
    ontology_text_weight: float = 0.5
    shortcut_only: bool = False


@dataclass(config=CHECKED, frozen=True)
class Stage2Settings:
    """The second stage: language about cells, and cells from language.

    Attributes
    ----------
    cell_decoder_learning_rate
        Of text -> cell, which begins from nothing and has more to learn than the language model has.
    choice_rate
        Share of the questions that name candidates to choose from.
    measured_rate
        Share of batches whose requests ask for cells as they were counted; in the others cells are redrawn.
    num_requests
        Cells per step that a text should lead to.
    num_leading_genes, num_other_genes
        Genes of a request that are compared: those that fill most of a cell, and a changing few of the others.
    """

    steps: int
    batch_size: int
    learning_rate: float
    cell_decoder_learning_rate: float
    choice_rate: float = 0.2
    measured_rate: float = 0.4
    max_answer_tokens: int = 72
    num_requests: int = 32
    max_request_tokens: int = 48
    num_leading_genes: int = 2_000
    num_other_genes: int = 500


@dataclass(config=CHECKED, frozen=True)
class FlowSettings:
    """The end of stage 2: from texts to latents and library sizes, once the latents stand still.

    Attributes
    ----------
    num_pairs
        Texts with a cell each, encoded once.
    """

    steps: int
    batch_size: int
    learning_rate: float
    num_pairs: int


@dataclass(config=CHECKED, frozen=True)
class MiniRecipe:
    """Every number of the embedded model's training."""

    sources: tuple[Source, ...]
    development_studies: tuple[str, ...]
    simulator: SimulatorSettings
    model: dict[str, Any]
    stage1: tuple[Stage1Part, ...]
    stage2: Stage2Settings
    flow: FlowSettings
    tissue_names: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    tokenizer_size: int = 4096
    max_text_tokens: int = 64

    def cut_to(self, steps: int | None) -> MiniRecipe:
        """The same recipe with no part longer than so many steps."""
        if steps is None:
            return self
        return replace(
            self,
            stage1=tuple(replace(part, steps=min(part.steps, steps)) for part in self.stage1),
            stage2=replace(self.stage2, steps=min(self.stage2.steps, steps)),
            flow=replace(
                self.flow, steps=min(self.flow.steps, steps), num_pairs=min(self.flow.num_pairs, 100 * steps)
            ),
        )


def read_recipe(path: Path) -> MiniRecipe:
    """The recipe in a yaml file; a key that does not exist is refused."""
    return read_settings(path, MiniRecipe)
