"""Stage 1 of the embedded model: cells redrawn at every step against wordings of their types."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from scmmgpt.modeling_scmmgpt import ScMMGPTForPreTraining
from scmmgpt.modeling_scmmgpt.losses_scmmgpt import contrast_loss
from scmmgpt.training.collators import Lineages, text_labels

from .cell_simulator import CellSimulator, DrawnCell, SimulatedBatches, pad_cells
from .recipe import MiniRecipe, Stage1Part
from .texts import TypeTexts

TEXT_PREFIX = "ontology_text_"


@dataclass
class Stage1Batch:
    """Composes a batch: cells, texts about them, and pairs of wordings of types from the whole ontology.

    Attributes
    ----------
    one_text_per_type
        Cells of one type share a text in the batch, `text_of_cell` saying which: half the work where the loss is
        contrast alone. Otherwise each cell has a text of its own, which may name its tissue.
    """

    simulator: CellSimulator
    texts: TypeTexts
    tokenizer: PreTrainedTokenizerBase
    max_text_tokens: int
    num_ontology_texts: int
    one_text_per_type: bool
    lineages: Lineages = field(init=False)

    def __post_init__(self):
        self.lineages = Lineages(self.texts.ontology)

    def __call__(self, rows: np.ndarray, cells: list[DrawnCell], generator: np.random.Generator) -> dict:
        table = self.simulator.profiles.table
        terms, tissues = table.term_id.to_numpy()[rows], table.tissue.to_numpy()[rows]
        if self.one_text_per_type:
            types, text_of_cell = np.unique(terms, return_inverse=True)
            texts = [self.texts.draw(term, generator) for term in types]
            labels = {"text_of_cell": torch.from_numpy(text_of_cell)}
        else:
            texts = [self.texts.draw(term, generator, tissue) for term, tissue in zip(terms, tissues, strict=True)]
            labels = {"text_labels": text_labels(texts)}
        batch = {**pad_cells(cells), **self.tokenize(texts), **labels, "text_lineage": self.lineages.of(list(terms))}
        return batch | self._ontology_pairs(generator)

    def _ontology_pairs(self, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        if not self.num_ontology_texts:
            return {}
        terms = list(generator.choice(self.texts.readable_terms, self.num_ontology_texts, replace=False))
        tokens = self.tokenize([self.texts.draw(term, generator) for _ in range(2) for term in terms])
        pairs = {f"{TEXT_PREFIX}{name}": tokens[name] for name in tokens}
        return pairs | {f"{TEXT_PREFIX}lineage": self.lineages.of(terms)}

    def tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_text_tokens, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}


class StreamTrainer(Trainer):
    """Trainer whose batches come whole from a stream."""

    def get_train_dataloader(self) -> DataLoader:
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_size=None, num_workers=1)


class Stage1Trainer(StreamTrainer):
    """Stage 1's losses, and wordings of one type contrasted with those of other types."""

    def __init__(self, *arguments, part: Stage1Part, **keywords):
        super().__init__(*arguments, **keywords)
        self.part = part

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        names = [name for name in inputs if name.startswith(TEXT_PREFIX)]
        pairs = {name.removeprefix(TEXT_PREFIX): inputs.pop(name) for name in names}
        loss = self._shared_text_loss(model, **inputs) if "text_of_cell" in inputs else model(**inputs).loss
        if pairs:
            lineage = pairs.pop("lineage")
            first, second = model.get_text_features(**pairs).pooler_output.chunk(2)
            loss = loss + self.part.ontology_text_weight * self._contrast(model, first, second, None, lineage)
        return (loss, {}) if return_outputs else loss

    def _shared_text_loss(
        self, model, gene_ids, gene_values, gene_mask, input_ids, attention_mask, text_of_cell, text_lineage
    ):
        if self.part.shortcut_only:
            towers = model.model
            cells = F.normalize(
                towers.project_summary(towers.cell_encoder.pool(gene_ids, gene_values, gene_mask)), dim=-1
            )
        else:
            cells = model.get_cell_features(gene_ids, gene_values, gene_mask).pooler_output
        texts = model.get_text_features(input_ids, attention_mask).pooler_output
        return self._contrast(model, cells, texts[text_of_cell], text_of_cell, text_lineage)

    @staticmethod
    def _contrast(model, first, second, labels, lineage):
        scale = model.model.similarity_scale()
        return contrast_loss(first, second, scale, labels, lineage, model.config.target_temperature)


def training_arguments(steps: int, learning_rate: float, seed: int) -> TrainingArguments:
    """What all parts of the training share."""
    return TrainingArguments(
        output_dir="runs/mini",
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 8),
        weight_decay=0.05,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
    )


def train_stage1(
    model: ScMMGPTForPreTraining,
    recipe: MiniRecipe,
    simulator: CellSimulator,
    texts: TypeTexts,
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict]:
    """Train all parts of stage 1 in turn; returns the logged losses."""
    history: list[dict] = []
    for number, part in enumerate(recipe.stage1):
        compose = Stage1Batch(
            simulator,
            texts,
            tokenizer,
            recipe.max_text_tokens,
            part.num_ontology_texts,
            one_text_per_type=not (part.match_weight or part.caption_weight),
        )
        model.config.match_weight, model.config.caption_weight = part.match_weight, part.caption_weight
        seed = recipe.seed * 100 + number
        trainer = Stage1Trainer(
            model=model,
            args=training_arguments(part.steps, part.learning_rate, seed),
            train_dataset=SimulatedBatches(simulator, compose, part.batch_size, seed),
            part=part,
        )
        trainer.train()
        history += [entry for entry in trainer.state.log_history if "loss" in entry]
    return history
