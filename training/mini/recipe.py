"""The recipe of the embedded model, typed: its sources, its simulator, and a run of each stage for each part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import anndata
import typer
from pydantic import Field
from pydantic.dataclasses import dataclass

from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.settings import (
    DataSettings,
    ModelConfig,
    ModelSettings,
    Stage1Arguments,
    Stage1Settings,
    Stage2Arguments,
    Stage2Data,
    Stage2Model,
    Stage2Rates,
    Stage2Settings,
    Stage2Towers,
)
from scmmgpt.training.strict_yaml import CHECKED, read_settings

from .cell_simulator import SimulatorSettings
from .profile_tables import ProfileTable, read_profile_table

RECIPE = Path("training/recipes/mini.yaml")
# What the scripts of this folder take alike.
RecipeFile: TypeAlias = Annotated[Path, typer.Option("--config", help="The recipe of the embedded model.")]
CellFolder: TypeAlias = Annotated[
    Path, typer.Option("--data", envvar="SCMMGPT_DATA", help="The folder with the cells.")
]


@dataclass(config=CHECKED, frozen=True)
class Source:
    """A file of cells, or a table of mean profiles, and the licence that lets a model trained on it be shared."""

    file: str
    licence: str
    simulated: bool = False
    table: ProfileTable | None = None

    @property
    def family(self) -> str:
        """What the file is called, without its endings."""
        return self.file.rpartition("/")[2].split(".")[0]

    def read(self, data: Path, ontology: Ontology) -> anndata.AnnData:
        """Its cells, or the columns of its table as cells."""
        if self.table is not None:
            return read_profile_table(data / self.file, self.table, ontology)
        return anndata.read_h5ad(data / self.file)


@dataclass(config=CHECKED, frozen=True)
class Stage1Part:
    """Some steps of stage 1 with the same settings.

    Attributes
    ----------
    num_ontology_texts
        Types of the whole ontology whose wordings are contrasted with one another at every step.
    shortcut_only
        Cells are embedded by the shortcut of their pooled tokens alone, at half the cost; the Q-Former's queries wait.
    config
        Fields of the model's configuration that this part changes.
    training
        Arguments of the trainer beyond those that all parts share.
    """

    batch_size: int
    num_ontology_texts: int
    training: Stage1Arguments
    config: ModelConfig = Field(default_factory=dict)
    ontology_text_weight: float = 0.5
    shortcut_only: bool = False


@dataclass(config=CHECKED, frozen=True)
class Stage2Part:
    """The second stage: language about cells, and cells from language.

    Attributes
    ----------
    choice_rate
        Share of the questions that name candidates to choose from.
    measured_rate
        Share of batches whose requests ask for cells as they were counted; in the others cells are redrawn.
    num_requests
        Cells per step that a text should lead to.
    num_leading_genes, num_other_genes
        Genes of a request that are compared: those that fill most of a cell, and a changing few of the others.
    towers, learning_rates, training
        As in every recipe of stage 2.
    """

    batch_size: int
    training: Stage2Arguments
    towers: Stage2Towers
    learning_rates: Stage2Rates = Field(default_factory=dict)
    choice_rate: float = 0.2
    measured_rate: float = 0.4
    max_answer_tokens: int = 72
    num_requests: int = 32
    max_request_tokens: int = 48
    num_leading_genes: int = 2_000
    num_other_genes: int = 500


@dataclass(config=CHECKED, frozen=True)
class FactorPart:
    """The end of stage 2: the cell decoder, by factors.

    Attributes
    ----------
    platforms
        Their names, and parts of the names of the studies that used them; the first is that of all other studies.
    read_platforms
        Those that count reads, not molecules.
    config
        Fields of the model's configuration that belong to the decoder.
    num_groups, factors_of_group
        Counted kinds whose states are alike are analysed together; each such group has factors of its own.
    cells_per_profile, num_leading_genes, em_steps
        How much the factor analysis of counted cells looks at, and for how long.
    num_states, num_own_genes
        Directions in which mean profiles differ, and genes of each population that these directions miss.
    num_texts, max_text_tokens
        Requests that the reader learns from.
    """

    platforms: dict[str, tuple[str, ...]]
    read_platforms: tuple[str, ...]
    training: Stage2Arguments
    towers: Stage2Towers
    config: ModelConfig = Field(default_factory=dict)
    num_states: int = 112
    num_own_genes: int = 192
    num_groups: int = 8
    factors_of_group: int = 10
    cells_per_profile: int = 60
    num_leading_genes: int = 2_500
    em_steps: int = 8
    num_texts: int = 40_000
    max_text_tokens: int = 64


@dataclass(config=CHECKED, frozen=True)
class ProjectionPart:
    """The last matrix of the cells' embeddings, moved by single cells.

    Attributes
    ----------
    cells_per_source
        No source gives more cells than these.
    counted_share
        Share of the cells drawn at a step that were counted; the others were simulated.
    temperature
        Of the contrast between cells of one type and of others.
    profile_weight
        Of how far the likeness of two cells may be from the mean of what it was and of what type profiles say.
    """

    steps: int
    batch_size: int
    learning_rate: float
    cells_per_source: int = 6_000
    counted_share: float = 0.5
    temperature: float = 0.1
    profile_weight: float = 100.0


@dataclass(config=CHECKED, frozen=True)
class MiniRecipe:
    """Every number of the embedded model's training.

    Attributes
    ----------
    data, model, training
        As in every recipe of a run, shared by all parts.
    """

    sources: tuple[Source, ...]
    development_studies: tuple[str, ...]
    simulator: SimulatorSettings
    data: DataSettings
    model: ModelSettings
    training: Stage1Arguments
    stage1: tuple[Stage1Part, ...]
    stage2: Stage2Part
    factors: FactorPart
    projection: ProjectionPart
    tissue_names: dict[str, str] = Field(default_factory=dict)
    tissue_parts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    disease_names: dict[str, str] = Field(default_factory=dict)
    seed: int = 0

    def cut_to(self, steps: int | None) -> MiniRecipe:
        """The same recipe with no part longer than so many steps."""
        if steps is None:
            return self
        texts = min(self.factors.num_texts, 100 * steps)
        return replace(
            self,
            stage1=tuple(replace(part, training=_cut(part.training, steps)) for part in self.stage1),
            stage2=replace(self.stage2, training=_cut(self.stage2.training, steps)),
            factors=replace(self.factors, training=_cut(self.factors.training, steps), num_texts=texts),
            projection=replace(self.projection, steps=min(self.projection.steps, steps)),
        )

    def stage1_run(self, number: int, output: Path) -> Stage1Settings:
        """A part of stage 1 as a run of its own."""
        part = self.stage1[number]
        return Stage1Settings(
            output=str(output),
            data=self.data,
            model=replace(self.model, config={**self.model.config, **part.config}),
            training={**self.training, **part.training, "seed": self.seed * 100 + number},
        )

    def stage2_run(self, part: Stage2Part | FactorPart, output: Path, seed: int) -> Stage2Settings:
        """A part of stage 2 as a run of its own."""
        return Stage2Settings(
            output=str(output),
            data=Stage2Data(corpus=self.data.corpus),
            model=Stage2Model(config=self.model.config),
            towers=part.towers,
            learning_rates=part.learning_rates if isinstance(part, Stage2Part) else {},
            training={**self.training, **part.training, "seed": self.seed * 100 + seed},
        )


def _cut(training: dict[str, Any], steps: int) -> dict[str, Any]:
    """At most so many steps, the warm-up in proportion."""
    whole = training["max_steps"]
    kept = min(whole, steps)
    return {**training, "max_steps": kept, "warmup_steps": max(1, training["warmup_steps"] * kept // whole)}


def read_recipe(path: Path) -> MiniRecipe:
    """The recipe in a yaml file; a key that does not exist is refused."""
    return read_settings(path, MiniRecipe)
