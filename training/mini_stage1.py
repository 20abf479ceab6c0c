"""Stage 1 of the embedded model: cells redrawn at every step against wordings of their types."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from scmmgpt.modeling_scmmgpt import ScMMGPTForPreTraining
from scmmgpt.modeling_scmmgpt.losses_scmmgpt import contrast_loss

from .cell_simulator import CellSimulator, DrawnCell, SimulatedBatches, pad_cells
from .collators import Lineages, text_labels
from .mini_recipe import MiniRecipe, Stage1Part
from .mini_texts import TypeTexts

TEXT_PREFIX = "ontology_text_"


@dataclass
class Stage1Batch:
    """Composes a batch: cells, a text for each, and pairs of wordings of types from the whole ontology."""

    simulator: CellSimulator
    texts: TypeTexts
    tokenizer: PreTrainedTokenizerBase
    max_text_tokens: int
    num_ontology_texts: int
    lineages: Lineages = field(init=False)

    def __post_init__(self):
        self.lineages = Lineages(self.texts.ontology)

    def __call__(self, rows: np.ndarray, cells: list[DrawnCell], generator: np.random.Generator) -> dict:
        table = self.simulator.profiles.table
        terms, tissues = table.term_id.to_numpy()[rows], table.tissue.to_numpy()[rows]
        texts = [self.texts.draw(term, generator, tissue) for term, tissue in zip(terms, tissues, strict=True)]
        batch = {
            **pad_cells(cells),
            **self.tokenize(texts),
            "text_labels": text_labels(texts),
            "text_lineage": self.lineages.of(list(terms)),
        }
        return batch | self._ontology_pairs(generator)

    def _ontology_pairs(self, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        if not self.num_ontology_texts:
            return {}
        terms = list(generator.choice(self.texts.readable_terms, self.num_ontology_texts, replace=False))
        texts = [self.texts.draw(term, generator) for _ in range(2) for term in terms]
        tokens = self.tokenize(texts)
        pairs = {f"{TEXT_PREFIX}{name}": tokens[name] for name in ("input_ids", "attention_mask")}
        return pairs | {f"{TEXT_PREFIX}lineage": self.lineages.of(terms)}

    def tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_text_tokens, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}


class Stage1Trainer(Trainer):
    """Trainer whose batches come whole from a stream, and whose loss also contrasts wordings with each other."""

    def __init__(self, *arguments, ontology_text_weight: float = 0.5, num_workers: int = 1, **keywords):
        super().__init__(*arguments, **keywords)
        self.ontology_text_weight = ontology_text_weight
        self.num_stream_workers = num_workers

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=None, num_workers=self.num_stream_workers)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pairs = {
            name.removeprefix(TEXT_PREFIX): inputs.pop(name) for name in list(inputs) if name.startswith(TEXT_PREFIX)
        }
        output = model(**inputs)
        loss = output.loss
        if pairs:
            lineage = pairs.pop("lineage")
            embeds = model.get_text_features(**pairs).pooler_output
            first, second = embeds.chunk(2)
            scale = model.model.similarity_scale()
            between = contrast_loss(first, second, scale, None, lineage, model.config.target_temperature)
            loss = loss + self.ontology_text_weight * between
        return (loss, output) if return_outputs else loss


def train_stage1(
    model: ScMMGPTForPreTraining,
    recipe: MiniRecipe,
    simulator: CellSimulator,
    texts: TypeTexts,
    tokenizer: PreTrainedTokenizerBase,
    num_workers: int = 1,
) -> list[dict]:
    """Train all parts of stage 1 in turn; returns the logged losses."""
    history: list[dict] = []
    full = model.config.cell_config.num_attended_genes
    for number, part in enumerate(recipe.stage1):
        history += _train_part(model, recipe, part, number, simulator, texts, tokenizer, num_workers)
    model.config.cell_config.num_attended_genes = full
    return history


def _train_part(model, recipe, part: Stage1Part, number, simulator, texts, tokenizer, num_workers) -> list[dict]:
    model.config.cell_config.num_attended_genes = part.num_attended_genes
    model.config.match_weight, model.config.caption_weight = part.match_weight, part.caption_weight
    compose = Stage1Batch(simulator, texts, tokenizer, recipe.max_text_tokens, part.num_ontology_texts)
    seed = recipe.seed * 100 + number
    trainer = Stage1Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="runs/mini-stage1",
            max_steps=part.steps,
            learning_rate=part.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, part.steps // 8),
            weight_decay=0.05,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            seed=seed,
        ),
        train_dataset=SimulatedBatches(simulator, compose, part.batch_size, seed),
        ontology_text_weight=part.ontology_text_weight,
        num_workers=num_workers,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]
