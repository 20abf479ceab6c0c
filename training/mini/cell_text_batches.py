"""Stage 1 of the embedded model: cells redrawn at every step against wordings of their types."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from scmmgpt.modeling_scmmgpt import ScMMGPTForPreTraining
from scmmgpt.modeling_scmmgpt.losses_scmmgpt import contrast_loss
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.training import stage1
from scmmgpt.training.assembly import assemble_config, assemble_pretraining_model
from scmmgpt.training.collators import Lineages, text_groups
from scmmgpt.training.stage1 import Stage1Trainer
from scmmgpt.training.trainer import Rows

from .cell_simulator import CellSimulator, DrawnCell, SimulatedBatches, as_it_is, pad_cells
from .recipe import MiniRecipe, Stage1Part
from .texts import TypeTexts

PREFIX = "ontology_text_"


@dataclass
class CellTextBatches:
    """Composes batches: cells, texts about them, and pairs of wordings of types from the whole ontology.

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
            labels = {"text_groups": text_groups(texts)}
        batch = {**pad_cells(cells), **self.tokenize(texts), **labels, "text_lineage": self.lineages.of(list(terms))}
        return batch | self._ontology_pairs(generator)

    def _ontology_pairs(self, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        if not self.num_ontology_texts:
            return {}
        terms = list(generator.choice(self.texts.readable_terms, self.num_ontology_texts, replace=False))
        tokens = self.tokenize([self.texts.draw(term, generator) for _ in range(2) for term in terms])
        pairs = {f"{PREFIX}{name}": tokens[name] for name in tokens}
        return pairs | {f"{PREFIX}lineage": self.lineages.of(terms)}

    def tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_text_tokens, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}


class OntologyTextTrainer(Stage1Trainer):
    """Stage 1's trainer, which also contrasts wordings of one type with those of other types."""

    def __init__(self, *args: Any, part: Stage1Part, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.part = part

    def losses_of(self, model, inputs):
        pairs = {name.removeprefix(PREFIX): value for name, value in inputs.items() if name.startswith(PREFIX)}
        cells = {name: value for name, value in inputs.items() if not name.startswith(PREFIX)}
        shares_texts = "text_of_cell" in cells
        loss, outputs = self._shared_text_loss(model, **cells) if shares_texts else super().losses_of(model, cells)
        if pairs:
            lineage = pairs.pop("lineage")
            first, second = model.get_text_features(**pairs).pooler_output.chunk(2)
            loss = loss + self.part.ontology_text_weight * self._contrast(model, first, second, None, lineage)
        return loss, outputs

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
        loss = self._contrast(model, cells, texts[text_of_cell], text_of_cell, text_lineage)
        return loss, {"contrast_loss": loss}

    @staticmethod
    def _contrast(model, first, second, labels, lineage):
        scale = model.model.similarity_scale()
        return contrast_loss(first, second, scale, labels, lineage, model.config.target_temperature)


def train_stage1(
    recipe: MiniRecipe, simulator: CellSimulator, texts: TypeTexts, processor: ScMMGPTProcessor, output: Path
) -> tuple[ScMMGPTForPreTraining, list[dict]]:
    """Train all parts of stage 1 in turn; the model, and the logged losses."""
    runs = [recipe.stage1_run(number, output / f"part_{number + 1}") for number in range(len(recipe.stage1))]
    torch.manual_seed(recipe.seed)
    model = assemble_pretraining_model(runs[0], assemble_config(runs[0], processor))
    history: list[dict] = []
    for part, run in zip(recipe.stage1, runs, strict=True):
        model.config.update(part.config)
        compose = CellTextBatches(
            simulator,
            texts,
            processor.tokenizer,
            recipe.data.max_text_tokens,
            part.num_ontology_texts,
            one_text_per_type=not (model.config.match_weight or model.config.caption_weight),
        )
        stream = SimulatedBatches(simulator, compose, part.batch_size, run.training["seed"])
        rows = Rows(stream, None, as_it_is)
        trainer = stage1.train(
            run, model, processor, rows, fresh=True, make_trainer=partial(OntologyTextTrainer, part=part)
        )
        history += [entry for entry in trainer.state.log_history if "loss" in entry]
    return model, history
