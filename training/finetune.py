"""Fine-tune a model on your own labels or descriptions; one cell per label is enough: `scmmgpt finetune`.

The output is a complete model, as good as any other for every verb; with LoRA, `adapter/` in it holds the few MB that
were learnt and that load onto the base. New types without a single cell need no training: annotate with `labels=`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from scmmgpt.arguments import shared_arguments
from scmmgpt.atomic_files import room_on_disk
from scmmgpt.errors import UserError, require
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.modeling_scmmgpt import (
    ScMMGPTConfig,
    ScMMGPTForConditionalGeneration,
    ScMMGPTForPreTraining,
    ScMMGPTModel,
)
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME as ONTOLOGY_FILE
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.processing.prompting_scmmgpt import DESCRIPTIONS, description_question, is_missing, label_text
from scmmgpt.training import stage1
from scmmgpt.training.assembly import processor_to_train, text_encoder
from scmmgpt.training.collators import CellCollator, CellTextCollator, text_groups
from scmmgpt.training.corpus.shards import to_stored_values
from scmmgpt.training.data import RowSampler
from scmmgpt.training.held_out import HeldOutCells, as_held_out, definition_of
from scmmgpt.training.run import seed_everything, training_arguments
from scmmgpt.training.settings import (
    Stage1Settings,
    Stage2Data,
    Stage2Model,
    Stage2Settings,
    Stage2Towers,
    read_recipe,
)
from scmmgpt.training.strict_yaml import check_settings
from scmmgpt.training.trainer import Rows

if TYPE_CHECKING:
    from anndata import AnnData

RECIPE = Path(__file__).parent / "recipes" / "finetune.yaml"
ADAPTER, RUN = "adapter", "run"
MOST_HELD_OUT = 1000


@shared_arguments
def finetune(  # noqa: PLR0913 - what a person can choose, each by its name
    adata: AnnData | str | os.PathLike,
    label: str,
    *,
    model: str | os.PathLike | None = None,
    output: str | os.PathLike,
    lora: bool = True,
    shots: int | None = None,
    batch_key: str | None = None,
    text: str | None = None,
    recipe: str | os.PathLike | None = None,
    training: Mapping[str, Any] | None = None,
) -> dict[str, float | int | str]:
    """Fine-tune and write a model; return the accuracy on held-out cells before and after.

    Parameters
    ----------
    adata
        Labelled cells, or the path of an h5ad. Not changed. Cells without a label are left out.
    label
        The column of `obs` with the label of each cell; labels need not be in any ontology.
    model
        Where to start: a directory, a Hub repository, or None for the model that comes with the package.
    output
        The folder of the new model.
    lora
        Train small adapters and merge them into the result; False trains both towers in full.
    shots
        Cells of each label to learn from; all others are held out. None: nine in ten.
    batch_key
        The column of `obs` with donors or batches: every label is shown equally often from each.
    text
        The column of `obs` with a description of each cell: the language model learns to write it as well.
    recipe
        A YAML file with the settings of the run in place of `training/recipes/finetune.yaml`.
    training
        Settings of the recipe's section `training` to change, such as {"max_steps": 50}.
    """
    from scmmgpt.loading import find_model
    from scmmgpt.storage import check_input, read_cells

    base = find_model(model)
    settings = _settings(Path(output), recipe, training or {}, lora=lora)
    adata = read_cells(check_input(adata)) if isinstance(adata, str | os.PathLike) else adata
    processor = processor_to_train(base, EMBEDDED_MODEL / ONTOLOGY_FILE)
    cells = LabelledCells.of(adata, processor, label=label, batch_key=batch_key, text=text)
    ontology = processor.annotator().ontology
    train_rows, held_out_rows = split_cells(cells.labels, shots, seed=settings.training.get("seed", 0))
    held_out = _held_out(cells, held_out_rows, processor, ontology, settings)
    config = ScMMGPTConfig.from_pretrained(base)
    config.update(settings.model.config)
    seed_everything(_arguments(settings))
    network = ScMMGPTForPreTraining.from_pretrained(base, config=config)
    before = _score(network, held_out)
    trainer = stage1.train(
        settings, network, processor, _rows(cells, train_rows, processor, ontology, settings), fresh=True
    )
    trained = trainer.accelerator.unwrap_model(trainer.model).eval()
    after = _score(trained, held_out)
    with room_on_disk(Path(output)):
        _write(Path(output), base, trained, processor, cells, has_adapters="lora" in asdict(settings.towers).values())
    if text is not None:
        _learn_to_describe(Path(output), settings, cells, train_rows, ontology)
    shutil.rmtree(settings.output)
    return {
        "labels": len(set(cells.labels)),
        "cells_shown": len(train_rows),
        "cells_held_out": len(held_out_rows),
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }


# ---- cells


@dataclass(frozen=True)
class LabelledCells(Dataset):
    """Tokenised cells with their labels, one dict a cell, as the collators take rows of a corpus."""

    rows: list[dict]
    labels: np.ndarray
    batches: np.ndarray
    value_mode: str

    @classmethod
    def of(cls, adata: AnnData, processor: ScMMGPTProcessor, *, label: str, batch_key: str | None, text: str | None):
        """The cells of `adata` that have a label."""
        for column in filter(None, (label, batch_key, text)):
            if column not in adata.obs:
                known = ", ".join(map(str, adata.obs.columns[:20]))
                raise UserError(f"`obs` has no column {column!r}. It has: {known}.")
        labels = np.array([str(name).strip() for name in adata.obs[label]], dtype=object)
        kept = np.array([not is_missing(name) for name in adata.obs[label]])
        if len(set(labels[kept])) < 2:
            raise UserError(f"obs[{label!r}] names {len(set(labels[kept]))} label(s); training needs at least two.")
        adata, labels = adata[kept], labels[kept]
        genes = processor.gene_tokenizer
        tokens = genes(adata, packed=True, return_tensors="np")
        stored = to_stored_values(tokens["gene_values"].ravel(), genes.value_mode)
        bounds = tokens["cell_cu_seqlens"][1:-1]
        texts = adata.obs[text].astype(str) if text else [""] * len(labels)
        rows = [
            {
                "gene_ids": ids,
                "gene_values": values,
                "cell_type": name,
                "cell_type_ontology_term_id": "",
                "description": said,
                "cell_hash": number,
            }
            for number, (ids, values, name, said) in enumerate(
                zip(np.split(tokens["gene_ids"].ravel(), bounds), np.split(stored, bounds), labels, texts, strict=True)
            )
        ]
        batches = adata.obs[batch_key].astype(str).to_numpy() if batch_key else np.full(len(labels), "")
        return cls(rows, labels, batches, genes.value_mode)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]

    @property
    def collate(self) -> CellCollator:
        """Rows -> genes."""
        return CellCollator(self.value_mode)


def split_cells(labels: np.ndarray, shots: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells to learn from and cells to be measured on, for every label; a label's only cell is learnt from."""
    if shots is not None and shots < 1:
        raise UserError(f"shots must be at least 1, got {shots}. New types without a cell: `annotate(labels=...)`.")
    generator = np.random.default_rng(seed)
    shown, held_out = [], []
    for name in np.unique(labels.astype(str)):
        cells = generator.permutation(np.flatnonzero(labels == name))
        num_shown = min(len(cells), shots) if shots is not None else max(1, len(cells) - max(1, len(cells) // 10))
        shown.append(cells[:num_shown])
        held_out.append(cells[num_shown:])
    rest = generator.permutation(np.concatenate(held_out))[:MOST_HELD_OUT]
    return np.sort(np.concatenate(shown)), np.sort(rest)


class BalancedOrder(RowSampler):
    """Cells in random order, each label equally often and, within a label, each batch equally often."""

    def __init__(self, rows: np.ndarray, labels: np.ndarray, batches: np.ndarray, num_draws: int, seed: int):
        self.rows, self.num_draws, self.seed = rows, num_draws, seed
        _, group = np.unique(
            [f"{a}\t{b}" for a, b in zip(labels[rows], batches[rows], strict=True)], return_inverse=True
        )
        _, label = np.unique(labels[rows].astype(str), return_inverse=True)
        groups_of_label = np.array([len(set(group[label == i])) for i in range(label.max() + 1)])
        self.weights = 1 / (np.bincount(group)[group] * groups_of_label[label] * (label.max() + 1))

    def __iter__(self):
        generator = np.random.default_rng([self.seed, self.epoch])
        return iter(generator.choice(self.rows, self.num_draws, p=self.weights / self.weights.sum()).tolist())

    def __len__(self) -> int:
        return self.num_draws


@dataclass
class LabelCollator:
    """`CellTextCollator` for labels of any origin: cells of one label are never each other's negatives."""

    collate: CellTextCollator

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        return {**self.collate(rows), "text_groups": text_groups([row["cell_type"] for row in rows])}


@dataclass
class LabelWriter:
    """A label in words: half of the time the plain ones that annotation uses."""

    ontology: Ontology

    def __call__(self, row: dict, generator: np.random.Generator) -> str:
        wording = 0 if generator.random() < 0.5 else int(generator.integers(len(DESCRIPTIONS)))
        return label_text(row["cell_type"], definition_of(row["cell_type"], self.ontology), wording)


# ---- steps


def _settings(output: Path, recipe: str | os.PathLike | None, training: Mapping, *, lora: bool) -> Stage1Settings:
    content = asdict(read_recipe(Path(recipe or RECIPE), Stage1Settings))
    content["output"] = str(output / RUN)
    content["training"] |= training
    if not lora:
        content["towers"] = {name: "full" if way == "lora" else way for name, way in content["towers"].items()}
    return check_settings(content, Stage1Settings, where="finetune")


def _arguments(settings: Stage1Settings):
    from transformers import TrainingArguments

    return training_arguments(settings, TrainingArguments)


def _rows(cells: LabelledCells, shown: np.ndarray, processor, ontology: Ontology, settings: Stage1Settings) -> Rows:
    arguments = _arguments(settings)
    encode = text_encoder(processor, settings.data.max_text_tokens)
    collate = CellTextCollator(cells.collate, LabelWriter(ontology), encode, ontology, seed=arguments.seed)
    size = arguments.train_batch_size * arguments.world_size
    num_draws = max(len(shown), size)
    order = BalancedOrder(shown, cells.labels, cells.batches, num_draws, arguments.seed)
    return Rows(cells, None, LabelCollator(collate), order)


def _held_out(cells: LabelledCells, rows: np.ndarray, processor, ontology: Ontology, settings: Stage1Settings):
    if not len(rows):
        return None
    return as_held_out(
        rows,
        cells.labels[rows].astype(str),
        np.full(len(rows), "yours"),
        lambda part: cells.collate([cells[i] for i in part]),
        text_encoder(processor, settings.data.max_text_tokens),
        ontology,
    )


@torch.no_grad()
def _score(network: torch.nn.Module, held_out: HeldOutCells | None) -> dict[str, float]:
    if held_out is None:
        return {}
    scores = held_out(network.eval())
    return {"accuracy": scores["zero_shot_accuracy"], "macro_f1": scores["zero_shot_macro_f1"]}


def _write(output: Path, base: Path, trained, processor, cells: LabelledCells, *, has_adapters: bool) -> None:
    """The base with what was learnt in its weights, and the adapters beside it."""
    network = whole_model(base)
    if has_adapters:
        trained.save_pretrained(output / ADAPTER)
        network = require("peft").PeftModel.from_pretrained(network, output / ADAPTER).merge_and_unload()
    else:
        towers = network if isinstance(network, ScMMGPTModel) else network.model
        towers.load_state_dict(trained.model.state_dict(), strict=False)
    summary = dict(getattr(network.config, "training_summary", None) or {})
    network.config.training_summary = {**summary, "finetuned_labels": sorted(set(cells.labels))}
    network.save_pretrained(output)
    processor.save_pretrained(output)


def whole_model(base: Path) -> PreTrainedModel:
    """Everything a directory holds: with its language model if it has one."""
    made_as = json.loads((base / "config.json").read_text()).get("architectures") or []
    kinds = {kind.__name__: kind for kind in (ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining, ScMMGPTModel)}
    return kinds.get(made_as[0] if made_as else "", ScMMGPTForPreTraining).from_pretrained(base)


def _learn_to_describe(
    output: Path, settings: Stage1Settings, cells: LabelledCells, shown: np.ndarray, ontology: Ontology
):
    """Stage 2 on the user's own texts: the language model answers what it is asked about these cells."""
    require("trl")
    from scmmgpt.training import stage2
    from scmmgpt.training.conversations import ConversationCollator, ShuffledRows

    network = whole_model(output)
    if not isinstance(network, ScMMGPTForConditionalGeneration):
        raise UserError(f"{output} has no language model that could learn descriptions: start from a stage-2 model.")
    from datasets import Dataset as Table

    processor = ScMMGPTProcessor.from_pretrained(output)
    towers = Stage2Towers(
        cell_encoder="freeze", qformer="freeze", heads="freeze", language_model="lora", cell_decoder="freeze"
    )
    describing = Stage2Settings(
        output=str(output / RUN / "description"),
        data=Stage2Data(corpus=settings.data.corpus, text_to_cells=False),
        model=Stage2Model(start_from=str(output), attention=settings.model.attention, dtype=settings.model.dtype),
        towers=towers,
        lora=replace(settings.lora, merge=False),
        hardware=settings.hardware,
        training=settings.training,
    )
    collate = ConversationCollator(
        cells.collate,
        processor,
        ontology,
        max_tokens=settings.data.max_text_tokens,
        text_to_cells=False,
        ask=lambda row, generator: (description_question(int(generator.integers(4))), str(row["description"])),
    )
    table = Table.from_list([cells[i] for i in shown]).with_format("numpy")
    order = ShuffledRows(np.arange(len(shown)), settings.training.get("seed", 0))
    trainer = stage2.train(describing, network, processor, Rows(table, None, collate, order), fresh=True)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    trained.save_pretrained(output / f"{ADAPTER}_description")
    trained.merge_and_unload().save_pretrained(output)
