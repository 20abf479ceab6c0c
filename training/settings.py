"""A run's numbers, typed: what both stages take, and what each takes alone. One yaml file holds those of one run.

Every number of a run has its home here or, where Hugging Face already has a name for it, in the section `training`,
whose keys are those of `transformers.TrainingArguments` (stage 1) or `trl.SFTConfig` (stage 2).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from scmmgpt.training.corpus.recipe import GeneTokenizerSettings
from scmmgpt.training.strict_yaml import CHECKED, KeywordsOf, read_settings

Training = Literal["full", "lora", "freeze"]
ModelConfig = Annotated[dict[str, Any], KeywordsOf("scmmgpt.modeling_scmmgpt", "ScMMGPTConfig")]
Stage1Arguments = Annotated[dict[str, Any], KeywordsOf("transformers", "TrainingArguments")]
Stage2Arguments = Annotated[dict[str, Any], KeywordsOf("trl", "SFTConfig")]
Stage1Rates = Annotated[dict[str, float], KeywordsOf(__name__, "TowerSettings", only_names=True)]
Stage2Rates = Annotated[dict[str, float], KeywordsOf(__name__, "Stage2Towers", only_names=True)]


@dataclass(config=CHECKED, frozen=True)
class DataSettings:
    """Which rows of which corpus.

    Attributes
    ----------
    corpus
        A folder made by `scmmgpt corpus build`.
    scheme
        What is held out whole: studies, donors, tissues or cell types.
    max_genes
        Genes of a cell to keep, from the first, in training and by the model's processor; None keeps all.
    packed
        Cells end to end instead of padded: no token is wasted where the attention takes packed sequences.
    """

    corpus: str
    scheme: Literal["study", "donor", "tissue", "cell_type"] = "study"
    sources: list[str] = Field(default_factory=list)
    source_weights: dict[str, float] = Field(default_factory=dict)
    type_balance: float = 0.0
    distinct_types: bool = True
    similar_lengths: bool = True
    block_rows: int = 8192
    max_genes: int | None = None
    max_text_tokens: int = 128
    packed: bool = False


@dataclass(config=CHECKED, frozen=True)
class Stage2Data(DataSettings):
    """Which rows, in which directions.

    Attributes
    ----------
    unlabelled_share
        Share of the rows that come without text (text -> cell learns from them with the empty text).
    cells_to_text, text_to_cells
        The directions that are trained.
    num_target_genes
        Genes whose counts a request must explain, drawn for each batch; None takes all.
    instructions
        Conversations made by `training/chat/instructions.py`, in the place of a corpus.
    """

    corpus: str = ""
    instructions: str | None = None
    unlabelled_share: float = Field(default=0.0, ge=0, lt=1)
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
    tokenizer, qformer_tokenizer
        Text tokenizers; None trains a small one on the corpus's texts. `start_from` brings its own.
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
    config: ModelConfig = Field(default_factory=dict)
    cell_encoder: str | None = None
    qformer: str | None = None
    tokenizer: str | None = None
    qformer_tokenizer: str | None = None
    tokenizer_size: int = 4096
    gene_tokenizer: GeneTokenizerSettings = Field(default_factory=dict)
    attention: str | dict[str, str] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for part in ("cell_encoder", "qformer", "tokenizer", "qformer_tokenizer"):
            if self.start_from is not None and getattr(self, part) is not None:
                raise ValueError(f"start_from brings a {part} of its own: give {part} or start_from, not both.")


@dataclass(config=CHECKED, frozen=True)
class Stage2Model(ModelSettings):
    """Where the weights come from, with a language model's.

    Attributes
    ----------
    language_model
        Directory or Hub name of any causal LM, whose tokenizer is taken as well; None keeps that of `start_from`, or
        makes a new one.
    projector_start_steps
        Steps in which the projector alone learns to spell a cell's type in the LLM's words, before the run: with
        `data.instructions`.
    """

    language_model: str | None = None
    projector_start_steps: int = 0


@dataclass(config=CHECKED, frozen=True)
class TowerSettings:
    """What is trained in full, through LoRA adapters, or not at all. `heads` are projections and loss heads."""

    cell_encoder: Training = "full"
    qformer: Training = "full"
    heads: Training = "full"


@dataclass(config=CHECKED, frozen=True)
class Stage2Towers(TowerSettings):
    """The towers of stage 1, and those that stage 2 adds."""

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
        Held-out cells that are measured on at each evaluation.
    patience
        Evaluations without a better `metric_for_best_model` after which the run stops; None never stops early.
    """

    max_cells: int = 1000
    patience: int | None = None


@dataclass(config=CHECKED, frozen=True)
class Stage2Evaluation(EvaluationSettings):
    """What is measured while training, and what is generated for it.

    Attributes
    ----------
    num_generated_texts, num_generated_cells
        Cells that are described, and pseudo-cells drawn per type, at each evaluation.
    """

    num_generated_texts: int = 64
    num_generated_cells: int = 16


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
    """What a run of either stage takes.

    Attributes
    ----------
    learning_rates
        Learning rates of towers that differ from `training.learning_rate`.
    training
        Arguments of the trainer.
    """

    output: str
    data: DataSettings
    model: ModelSettings = Field(default_factory=ModelSettings)
    towers: TowerSettings = Field(default_factory=TowerSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    learning_rates: dict[str, float] = Field(default_factory=dict)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    hardware: HardwareSettings = Field(default_factory=HardwareSettings)
    training: dict[str, Any] = Field(default_factory=dict)


@dataclass(config=CHECKED, frozen=True)
class Stage1Settings(RunSettings):
    """A run of stage 1.

    Attributes
    ----------
    mask_share
        Share of a cell's values that are hidden for the masked-value loss (`config.value_weight` > 0).
    """

    learning_rates: Stage1Rates = Field(default_factory=dict)
    training: Stage1Arguments = Field(default_factory=dict)
    mask_share: float = Field(default=0.15, gt=0, lt=1)


@dataclass(config=CHECKED, frozen=True)
class Stage2Settings(RunSettings):
    """A run of stage 2.

    Attributes
    ----------
    language_retention
        Weight of how far the LLM's words without cells move from those of the LLM without its adapters: with LoRA and
        `data.instructions`.
    """

    data: Stage2Data
    language_retention: float = Field(default=0.0, ge=0)
    model: Stage2Model = Field(default_factory=Stage2Model)
    towers: Stage2Towers = Field(default_factory=Stage2Towers)
    learning_rates: Stage2Rates = Field(default_factory=dict)
    evaluation: Stage2Evaluation = Field(default_factory=Stage2Evaluation)
    training: Stage2Arguments = Field(default_factory=dict)


STAGES: dict[str, type[RunSettings]] = {
    "stage 1 (training/stage1.py)": Stage1Settings,
    "stage 2 (training/stage2.py)": Stage2Settings,
}
Stage = TypeVar("Stage", bound=RunSettings)


def read_recipe(path: str | Path, kind: type[Stage], changes: Iterable[str] = ()) -> Stage:
    """The settings of a run in a yaml file, with changes such as `training.max_steps=20`."""
    others = {name: stage for name, stage in STAGES.items() if stage is not kind}
    return read_settings(path, kind, changes=changes, others=others)
