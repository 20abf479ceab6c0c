"""The end of the embedded model's stage 2: what a text leaves open is learnt once the latents stand still.

Beside the other losses the flow chases latents that move. Here texts and cells are encoded once, and the flow and the
library sizes train on them alone: thousands of steps in minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.modeling_scmmgpt.modeling_cell_decoder import ScMMGPTCellDecoder

from .cell_simulator import pad_cells
from .recipe import MiniRecipe
from .stage1 import training_arguments
from .stage2 import Stage2Batch


class TextLeavesOpen(nn.Module):
    """The losses of flow and library size alone; some texts are hidden, as in the rest of stage 2."""

    def __init__(self, decoder: ScMMGPTCellDecoder):
        super().__init__()
        self.flow, self.library_head = decoder.flow, decoder.library_head
        self._decoder = (decoder,)  # not a submodule: nothing else of it learns

    def forward(self, features, latent, library) -> dict[str, torch.Tensor]:
        (decoder,) = self._decoder
        hidden = torch.rand(len(features)) < decoder.config.text_dropout
        features = decoder.text_features.hide(features, hidden).detach()
        flow, library_loss = decoder.latent_losses(latent, features, library)
        return {"loss": flow + library_loss}


@dataclass
class EncodedPairs(Dataset):
    """N texts as features (N, K, D), the latents (N, Z) of the cells that they ask for, and the cells' totals (N,)."""

    features: torch.Tensor
    latent: torch.Tensor
    library: torch.Tensor

    def __len__(self) -> int:
        return len(self.latent)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"features": self.features[index], "latent": self.latent[index], "library": self.library[index]}


@torch.no_grad()
def encode_pairs(model: ScMMGPTForConditionalGeneration, compose: Stage2Batch, number: int, seed: int) -> EncodedPairs:
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


def train_flow(model: ScMMGPTForConditionalGeneration, recipe: MiniRecipe, compose: Stage2Batch) -> list[dict]:
    """Train flow and library head in place; returns the logged losses."""
    settings, seed = recipe.flow, recipe.seed * 100 + 80
    pairs = encode_pairs(model, compose, settings.num_pairs, seed)
    torch.manual_seed(seed)
    arguments = training_arguments(settings.steps, settings.learning_rate, seed)
    arguments.per_device_train_batch_size = settings.batch_size
    arguments.logging_steps = 100
    trainer = Trainer(model=TextLeavesOpen(model.cell_decoder), args=arguments, train_dataset=pairs)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]
