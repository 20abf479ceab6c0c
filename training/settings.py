"""A run's numbers: one yaml file, read into typed settings. A key that does not exist is refused, the nearest named.

Every number of a run has its home here or, where Hugging Face already has a name for it, in the section `training`,
whose keys are those of `transformers.TrainingArguments` (stage 1) or `trl.SFTConfig` (stage 2).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from scmmgpt.errors import UserError

CHECKED = ConfigDict(extra="forbid", strict=False)
Training = Literal["full", "lora", "freeze"]
Settings = TypeVar("Settings")


class RecipeError(UserError):
    """A recipe that cannot be run, with the key, what was wrong and what to write instead."""


@dataclass(config=CHECKED, frozen=True)
class DataSettings:
    """Which rows of which corpus.

    Attributes
    ----------
    corpus
        A folder made by `scmmgpt corpus build`.
    scheme
        What is held out whole: studies, donors, tissues or cell types.
    unlabelled_share
        Stage 2: share of the rows that come without text (text -> cell learns from them with the empty text).
    max_genes
        Genes of a cell to keep, from the first; None keeps all.
    packed
        Cells end to end instead of padded: no token is wasted where the attention takes packed sequences.
    cells_to_text, text_to_cells
        Stage 2: the directions that are trained.
    num_target_genes
        Stage 2: genes whose counts a request must explain, drawn for each batch; None takes all.
    """

    corpus: str
    scheme: Literal["study", "donor", "tissue", "cell_type"] = "study"
    sources: list[str] = Field(default_factory=list)
    source_weights: dict[str, float] = Field(default_factory=dict)
    type_balance: float = 0.0
    distinct_types: bool = True
    similar_lengths: bool = True
    block_rows: int = 8192
    unlabelled_share: float = Field(default=0.0, ge=0, lt=1)
    max_genes: int | None = None
    max_text_tokens: int = 128
    packed: bool = False
    cells_to_text: bool = True
    text_to_cells: bool = True
    num_target_genes: int | None = 2048


@dataclass(config=CHECKED, frozen=True)
class ModelSettings:
    """Where the weights come from.

    Attributes
    ----------
    start_from
        A checkpoint of ours, directory or Hub name: model and processor. None starts from `config` and the parts.
    config
        Fields of `ScMMGPTConfig`; with `start_from`, those that differ from the checkpoint's.
    cell_encoder, qformer
        Pretrained towers: directories or Hub names of a converted scGPT, a converted BERT. `start_from` brings its own.
    language_model
        Directory or Hub name of any causal LM.
    tokenizer, qformer_tokenizer
        Text tokenizers; None trains a small one on the corpus's texts.
    tokenizer_size
        Pieces of a tokenizer that is trained.
    attention
        One implementation for all towers, or one for each: `{cell_config: torch_varlen, qformer_config: sdpa, ...}`.
        "auto": flash kernels for the cell encoder where a GPU runs it in half precision (the flash-attn package's, or
        else torch's own), sdpa everywhere else.
    gene_tokenizer
        Settings of the gene tokenizer that differ from the corpus's: `value_mode`, `max_genes`, `gene_order`, ...
    """

    start_from: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    cell_encoder: str | None = None
    qformer: str | None = None
    language_model: str | None = None
    tokenizer: str | None = None
    qformer_tokenizer: str | None = None
    tokenizer_size: int = 4096
    gene_tokenizer: dict[str, Any] = Field(default_factory=dict)
    attention: str | dict[str, str] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for tower in ("cell_encoder", "qformer"):
            if self.start_from is not None and getattr(self, tower) is not None:
                raise ValueError(f"start_from brings a {tower} of its own: give {tower} or start_from, not both.")


@dataclass(config=CHECKED, frozen=True)
class TowerSettings:
    """What is trained in full, through LoRA adapters, or not at all. `heads` are projections and loss heads."""

    cell_encoder: Training = "full"
    qformer: Training = "full"
    heads: Training = "full"
    language_model: Training = "full"
    cell_decoder: Training = "full"


@dataclass(config=CHECKED, frozen=True)
class LoraSettings:
    """Adapters of the towers that are trained by LoRA.

    Attributes
    ----------
    merge
        At the end, also write the whole model with the adapters merged into its weights.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    merge: bool = True


@dataclass(config=CHECKED, frozen=True)
class EvaluationSettings:
    """What is measured while training, on rows that were held out.

    Attributes
    ----------
    max_cells
        Held-out cells that are embedded at each evaluation.
    num_generated_texts, num_generated_cells
        Stage 2: cells that are described, and pseudo-cells drawn per type, at each evaluation.
    patience
        Evaluations without a better `metric_for_best_model` after which the run stops; None never stops early.
    """

    max_cells: int = 1000
    num_generated_texts: int = 64
    num_generated_cells: int = 16
    patience: int | None = None


@dataclass(config=CHECKED, frozen=True)
class HardwareSettings:
    """What the plan needs to know of the machines.

    Attributes
    ----------
    peak_tflops
        Of one device in the run's precision; None looks the device up, or measures a CPU.
    price_per_hour
        Of one device, in any currency; None leaves the cost out of the plan.
    utilisation
        Share of the peak that the plan reckons with.
    """

    num_devices: int = 1
    peak_tflops: float | None = None
    price_per_hour: float | None = None
    utilisation: float = 0.35


@dataclass(config=CHECKED, frozen=True)
class RunSettings:
    """One run.

    Attributes
    ----------
    learning_rates
        Learning rates of towers that differ from `training.learning_rate`.
    mask_share
        Stage 1: share of a cell's values that are hidden for the masked-value loss (`config.value_weight` > 0).
    training
        Arguments of `TrainingArguments` (stage 1) or `SFTConfig` (stage 2).
    """

    output: str
    data: DataSettings
    model: ModelSettings = Field(default_factory=ModelSettings)
    towers: TowerSettings = Field(default_factory=TowerSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    learning_rates: dict[str, float] = Field(default_factory=dict)
    mask_share: float = Field(default=0.15, gt=0, lt=1)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    hardware: HardwareSettings = Field(default_factory=HardwareSettings)
    training: dict[str, Any] = Field(default_factory=dict)

    def __post_init__(self):
        towers = [field.name for field in fields(TowerSettings)]
        for tower in self.learning_rates:
            if tower not in towers:
                raise ValueError(f"learning_rates names {tower!r}; the towers are {', '.join(towers)}.")


def read_recipe(path: str | Path, changes: Iterable[str] = ()) -> RunSettings:
    """The settings in a yaml file, with changes such as `training.max_steps=20`.

    Variables of the environment stand as `${NAME}`.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"There is no recipe at {path}. Recipes lie in training/recipes.")
    content = parse_yaml(_fill_in_environment(read_text(path), path), path)
    for change in changes:
        _apply(content, change)
    return check_settings(content, RunSettings, where=str(path))


def read_text(path: Path) -> str:
    """A recipe as it was written."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as UTF-8 text: {error}") from error


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """The keys and values of a recipe, or the reason why it has none."""
    try:
        content = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise RecipeError(f"{path} is no recipe: it must hold `name: value` lines.")
    return content


def check_settings(content: dict, settings: type[Settings], where: str) -> Settings:
    """Typed settings from nested dicts."""
    try:
        return TypeAdapter(settings).validate_python(content)
    except ValidationError as error:
        problems = [f"  {problem}" for problem in _problems(error, settings)]
        raise RecipeError("\n".join([f"{where} cannot be run:", *problems])) from None


def check_names(given: dict, allowed: list[str], where: str) -> None:
    """Refuse a key that `allowed` does not hold, naming the nearest that it does."""
    for name in given:
        if name not in allowed:
            raise RecipeError(f"{where}: `{name}` does not exist.{_did_you_mean(name, allowed)}")


def _problems(error: ValidationError, settings: type) -> Iterator[str]:
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            *parents, name = problem["loc"]
            yield f"`{place}` does not exist.{_did_you_mean(str(name), _names_below(settings, parents))}"
        elif problem["type"] in ("missing", "missing_argument"):
            yield f"`{place}` is missing."
        else:
            yield f"`{place}`: {problem['msg']}, got {problem['input']!r}."


def _names_below(settings: Any, parents: list) -> list[str]:
    for parent in parents:
        settings = get_type_hints(settings).get(parent, settings)
        settings = next((option for option in (settings, *get_args(settings)) if is_dataclass(option)), settings)
    return [field.name for field in fields(settings)] if is_dataclass(settings) else []


def _did_you_mean(name: str, allowed: list[str]) -> str:
    nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f" Did you mean `{nearest[0]}`?" if nearest else f" There is: {', '.join(allowed[:20])}."


def _fill_in_environment(text: str, path: Path) -> str:
    filled = os.path.expandvars(text)
    if "${" in filled:
        name = filled.split("${", 1)[1].split("}", 1)[0]
        raise RecipeError(f"{path} needs the environment variable {name}: export {name}=... and run again.")
    return filled


def _apply(content: dict, change: str) -> None:
    place, is_change, value = change.partition("=")
    if not is_change:
        raise RecipeError(f"A change is written section.key=value, got {change!r}.")
    *parents, name = place.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[name] = yaml.safe_load(value)
