"""The end of the embedded model's stage 2: what a text leaves open is learnt once the latents stand still.

Beside the other losses the flow chases latents that move. Here texts and cells are encoded once, and the flow and the
library sizes train on them alone: thousands of steps in minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.training import stage2
from scmmgpt.training.stage2 import Stage2Trainer
from scmmgpt.training.trainer import Rows

from .cell_simulator import pad_cells
from .conversation_batches import ConversationBatches
from .recipe import MiniRecipe


@dataclass
class EncodedPairs:
    """N texts as features (N, K, D), the latents (N, Z) of the cells that they ask for, and the cells' totals (N,)."""

    features: torch.Tensor
    latent: torch.Tensor
    library: torch.Tensor

    @property
    def numbers(self) -> Dataset:
        """The rows of a trainer: `collate` makes batches of them."""
        return Dataset.from_dict({"number": range(len(self.latent))})

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        numbers = torch.tensor([row["number"] for row in rows])
        return {name: value[numbers] for name, value in vars(self).items()}


class FlowTrainer(Stage2Trainer):
    """The losses of flow and library size alone; some texts are hidden, as in the rest of stage 2."""

    def losses_of(self, model, inputs):
        decoder, features = model.cell_decoder, inputs["features"]
        hidden = torch.rand(len(features)) < decoder.config.text_dropout
        features = decoder.text_features.hide(features, hidden).detach()
        flow, library_loss = decoder.latent_losses(inputs["latent"], features, inputs["library"])
        return flow + library_loss, {}


@torch.no_grad()
def encode_pairs(
    model: ScMMGPTForConditionalGeneration, compose: ConversationBatches, number: int, seed: int
) -> EncodedPairs:
    """Texts and cells as stage 2 draws them, through the frozen model."""
    model.eval()
    parts = []
    for batch in range(-(-number // compose.settings.num_requests)):
        _, tokens, cells = compose.requested_cells(np.random.default_rng([seed, batch]))
        parts.append(
            (
                model.text_features(tokens["input_ids"], tokens["attention_mask"]),
                model.cell_latents(**pad_cells(cells)),
                torch.tensor([float(cell.counts.sum()) for cell in cells]),
            )
        )
    return EncodedPairs(*(torch.cat(column)[:number] for column in zip(*parts, strict=True)))


def train_flow(
    model: ScMMGPTForConditionalGeneration, recipe: MiniRecipe, compose: ConversationBatches, output: Path
) -> list[dict]:
    """Train flow and library head in place; returns the logged losses."""
    run = recipe.stage2_run(recipe.flow, output, seed=80)
    pairs = encode_pairs(model, compose, recipe.flow.num_pairs, run.training["seed"])
    rows = Rows(pairs.numbers, None, pairs.collate)
    trainer = stage2.train(run, model, compose.processor, rows, fresh=True, make_trainer=FlowTrainer)
    return [entry for entry in trainer.state.log_history if "loss" in entry]
