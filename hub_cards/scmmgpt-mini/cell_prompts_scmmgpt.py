# Copyright 2026 The scmmgpt authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Cells in prompts: their tokens take the places of `<cell>`, and `generate` encodes them once."""

# Shape letters: B prompts, S text tokens.

from typing import Any

import torch
from torch import nn
from transformers.utils import torch_compilable_check

from .configuration_scmmgpt import ScMMGPTConfig
from .outputs_scmmgpt import CACHE, ScMMGPTCellFeatures

CELL_INPUTS = ("gene_ids", "gene_values", "gene_mask", "cell_cu_seqlens")


class ScMMGPTCellTokenProjector(nn.Sequential):
    """The Q-Former's states of a cell as tokens of the LLM's width.

    Queries may agree so much that a projector cannot tell them apart: with `positions` each has a vector of its own
    added, so that the tokens of a cell can spell several words.
    """

    def __init__(self, config: ScMMGPTConfig, width: int):
        hidden = config.projector_hidden_size
        super().__init__(nn.Linear(config.qformer_config.hidden_size, hidden), nn.GELU(), nn.Linear(hidden, width))
        if config.projector_positions:
            shape = config.qformer_config.num_query_tokens, config.qformer_config.hidden_size
            self.positions = nn.Parameter(torch.zeros(shape))
            self.random_parameters = ("positions",)

    def forward(self, query_states: torch.Tensor) -> torch.Tensor:
        positions = getattr(self, "positions", None)
        return super().forward(query_states if positions is None else query_states + positions)


class ScMMGPTPromptMixin:
    """For the model that holds the LLM: finds placeholders and fills them."""

    config: ScMMGPTConfig
    get_input_embeddings: Any

    def placeholder_mask(self, input_ids, inputs_embeds=None):
        """(B, S) True where a cell's tokens go: nowhere, where no word of the LLM stands for a cell."""
        if self.config.cell_token_id is None:
            words = inputs_embeds[..., 0] if input_ids is None else input_ids
            return torch.zeros_like(words, dtype=torch.bool)
        if input_ids is not None:
            return input_ids == self.config.cell_token_id
        token = torch.full((), self.config.cell_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def place_cells(self, input_ids, inputs_embeds, cell_tokens):
        """Put the cells' tokens where the prompts hold placeholders, in reading order."""
        is_cell = self.placeholder_mask(input_ids, inputs_embeds)
        self.check_number_of_cells(is_cell, cell_tokens)
        cell_tokens = cell_tokens.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(is_cell.unsqueeze(-1), cell_tokens)

    def check_number_of_cells(self, is_cell, cell_tokens):
        num_placeholders, (num_cells, num_queries) = is_cell.sum(), cell_tokens.shape[:2]
        torch_compilable_check(
            num_placeholders == num_cells * num_queries,
            lambda: (
                f"The prompts hold {int(num_placeholders)} <cell> placeholder tokens, that is "
                f"{int(num_placeholders) / num_queries:g} cells of {num_queries} tokens, but {num_cells} cells were passed. "
                "Tokenise prompts and cells in one call, `processor(cells=..., text=...)`."
            ),
        )

    def refuse_unfilled_placeholders(self, input_ids):
        num_placeholders = self.placeholder_mask(input_ids).sum()
        torch_compilable_check(
            num_placeholders == 0,
            lambda: (
                f"The prompts hold {int(num_placeholders)} <cell> placeholder tokens, that is "
                f"{int(num_placeholders) / self.config.num_query_tokens:g} cells, but 0 cells were passed."
            ),
        )


class ScMMGPTPromptGenerationMixin:
    """For the model that generates: what transformers does with images and videos alone, done with cells."""

    config: ScMMGPTConfig
    model: Any

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor, model_kwargs, model_input_name, generation_config
    ):
        """Encode cells once, before prompts are repeated, into `mm_encoder_outputs`."""
        cells = {name: model_kwargs.pop(name) for name in CELL_INPUTS if model_kwargs.get(name) is not None}
        if cells:
            model_kwargs["mm_encoder_outputs"] = {"cell": self.model.read_cells(**cells)}
        elif model_kwargs.get("mm_encoder_outputs") is None and model_input_name == "input_ids":
            cache = model_kwargs.get(CACHE)
            past_length = 0 if cache is None else cache.get_seq_length()
            # A prompt no longer than what is in the cache is its new part alone.
            is_whole = inputs_tensor.shape[1] > past_length
            self.model.refuse_unfilled_placeholders(inputs_tensor[:, past_length:] if is_whole else inputs_tensor)
        return model_kwargs

    def _expand_multimodal_outputs(self, input_ids, mm_encoder_output, expand_size=1, inputs_embeds=None):
        """Repeat each prompt's whole group of cells: cells of all prompts lie flat, one after the other."""
        if mm_encoder_output.get("cell") is None:
            return mm_encoder_output
        tokens = mm_encoder_output["cell"].pooler_output
        words = input_ids if input_ids is not None and input_ids.shape[1] else None
        is_cell = self.model.placeholder_mask(words, inputs_embeds)
        self.model.check_number_of_cells(is_cell, tokens)
        per_prompt = is_cell.sum(-1) // self.config.num_query_tokens
        groups = torch.arange(len(tokens), device=tokens.device).split(per_prompt.tolist())
        order = torch.cat([group.repeat(expand_size) for group in groups])
        return {"cell": ScMMGPTCellFeatures(pooler_output=tokens[order])}


__all__ = ["ScMMGPTCellTokenProjector", "ScMMGPTPromptGenerationMixin", "ScMMGPTPromptMixin"]
