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
"""What the joint models return, and the flags by which a caller asks for the states of their towers.

Every joint output names a tower's states alike: `cell_hidden_states` and `cell_attentions` are the cell encoder's,
`text_hidden_states` and `text_attentions` the Q-Former's over texts. `hidden_states` and `attentions` are those of the
part that speaks last: the language model where there is one, else the Q-Former over cells. All are None unless
`output_hidden_states=True` or `output_attentions=True` asks for them; as everywhere in transformers, attentions come
from `attn_implementation="eager"` alone.
"""

# Shape letters: B cells, N texts, Q query tokens, S text tokens, D embedding size.

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import ModelOutput, TransformersKwargs

States = tuple[torch.Tensor, ...]

STATE_FLAGS = ("output_hidden_states", "output_attentions")
KNOWN = frozenset(TransformersKwargs.__annotations__)
# What transformers calls a model's cache: `cache` from 5.24 on, which takes the older name with a warning.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


@dataclass
class ScMMGPTCellFeatures(BaseModelOutputWithPooling):
    """Features of cells.

    Attributes
    ----------
    last_hidden_state
        Query states (B, Q, Q-Former hidden).
    pooler_output
        One unit-length float32 embedding per cell (B, D). Where cells are encoded ahead of a prompt
        (`mm_encoder_outputs`): their tokens (B, Q, LLM hidden).
    hidden_states, attentions, cross_attentions
        The Q-Former's, a tensor per layer: states, self-attention, and attention to the cell.
    cell_hidden_states, cell_attentions
        The cell encoder's, a tensor per layer.
    """

    cross_attentions: States | None = None
    cell_hidden_states: States | None = None
    cell_attentions: States | None = None

    def states(self, of_queries: str = "") -> dict[str, States | None]:
        """The towers' states by their names in a joint output, where the Q-Former's begin with `of_queries`."""
        of_qformer = ("hidden_states", "attentions", "cross_attentions")
        return {
            **{f"{of_queries}{name}": getattr(self, name) for name in of_qformer},
            **{name: getattr(self, name) for name in ("cell_hidden_states", "cell_attentions")},
        }


class _WithTexts:
    """An output that texts are added to."""

    def add_texts(self, texts: BaseModelOutputWithPooling) -> None:
        self.text_embeds = texts.pooler_output
        self.text_hidden_states, self.text_attentions = texts.hidden_states, texts.attentions


@dataclass
class ScMMGPTOutput(_WithTexts, ModelOutput):
    """Cells and texts in one space; what was not given is None.

    Attributes
    ----------
    cell_embeds, text_embeds
        Unit-length float32 embeddings of cells (B, D) and texts (N, D).
    logits_per_cell
        Their scaled similarities (B, N).
    hidden_states, attentions, cross_attentions
        The Q-Former's over cells.
    cell_hidden_states, cell_attentions
        The cell encoder's.
    text_hidden_states, text_attentions
        The Q-Former's over texts.
    """

    cell_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    logits_per_cell: torch.Tensor | None = None
    hidden_states: States | None = None
    attentions: States | None = None
    cross_attentions: States | None = None
    cell_hidden_states: States | None = None
    cell_attentions: States | None = None
    text_hidden_states: States | None = None
    text_attentions: States | None = None


@dataclass
class ScMMGPTPreTrainingOutput(_WithTexts, ModelOutput):
    """The losses of stage 1.

    Attributes
    ----------
    loss
        The weighted sum of the others.
    contrast_loss, match_loss, caption_loss, value_loss
        Each by its name; one of weight 0 is None.
    cell_embeds, text_embeds
        Unit-length float32 embeddings (B, D); None where no text was given.
    hidden_states, attentions, cross_attentions
        The Q-Former's over cells.
    cell_hidden_states, cell_attentions
        The cell encoder's.
    text_hidden_states, text_attentions
        The Q-Former's over texts.
    """

    loss: torch.Tensor | None = None
    contrast_loss: torch.Tensor | None = None
    match_loss: torch.Tensor | None = None
    caption_loss: torch.Tensor | None = None
    value_loss: torch.Tensor | None = None
    cell_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: States | None = None
    attentions: States | None = None
    cross_attentions: States | None = None
    cell_hidden_states: States | None = None
    cell_attentions: States | None = None
    text_hidden_states: States | None = None
    text_attentions: States | None = None

    def weighted_sum(self, config: PreTrainedConfig) -> torch.Tensor:
        """The loss to train on, by the config's weights."""
        parts = [
            getattr(config, f"{name}_weight") * self[f"{name}_loss"]
            for name in ("contrast", "match", "caption", "value")
            if self.get(f"{name}_loss") is not None
        ]
        if not parts:
            raise ValueError(
                "Nothing to learn: the batch has neither text nor `target_values` (or their weights are 0)."
            )
        return torch.stack(parts).sum()


@dataclass
class ScMMGPTModelOutputWithPast(BaseModelOutputWithPast):
    """A causal LM's states over prompts with cells.

    Attributes
    ----------
    last_hidden_state, past_key_values, hidden_states, attentions
        The language model's.
    qformer_hidden_states, qformer_attentions, qformer_cross_attentions
        The Q-Former's over cells.
    cell_hidden_states, cell_attentions
        The cell encoder's.
    """

    qformer_hidden_states: States | None = None
    qformer_attentions: States | None = None
    qformer_cross_attentions: States | None = None
    cell_hidden_states: States | None = None
    cell_attentions: States | None = None


@dataclass
class ScMMGPTCausalLMOutput(CausalLMOutputWithPast):
    """A causal LM's output over prompts with cells, and the losses of stage 2.

    Attributes
    ----------
    loss
        The weighted sum of the two losses.
    logits, past_key_values, hidden_states, attentions
        The language model's.
    language_loss, cell_generation_loss
        Of cell -> text and of text -> cell; None for what the batch does not teach.
    qformer_hidden_states, qformer_attentions, qformer_cross_attentions
        The Q-Former's over cells.
    cell_hidden_states, cell_attentions
        The cell encoder's.
    """

    language_loss: torch.Tensor | None = None
    cell_generation_loss: torch.Tensor | None = None
    qformer_hidden_states: States | None = None
    qformer_attentions: States | None = None
    qformer_cross_attentions: States | None = None
    cell_hidden_states: States | None = None
    cell_attentions: States | None = None


def requested_states(config: PreTrainedConfig, kwargs: Mapping[str, Any], passes_on: bool = False) -> dict[str, Any]:
    """What goes on to every tower: the `output_*` flags of a call, or of the joint config.

    Nothing else does: the language model's sequence lengths, say, would be taken for those of the cells. A name that no
    model of transformers has is refused, if only its `output_` is wrong where others pass on to the language model.
    """
    for name in kwargs:
        if name not in KNOWN and (not passes_on or name.startswith("output_")):
            nearest = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise TypeError(f"{name!r} is not an argument of this model.{hint}")
    # A flag that the joint config leaves off may be on in a tower's own.
    asked = {name: getattr(config, name, None) or None for name in STATE_FLAGS}
    asked |= {name: kwargs[name] for name in STATE_FLAGS if kwargs.get(name) is not None}
    return {name: value for name, value in asked.items() if value is not None} | {"return_dict": True}


__all__ = [
    "CACHE",
    "ScMMGPTCausalLMOutput",
    "ScMMGPTCellFeatures",
    "ScMMGPTModelOutputWithPast",
    "ScMMGPTOutput",
    "ScMMGPTPreTrainingOutput",
    "requested_states",
]
