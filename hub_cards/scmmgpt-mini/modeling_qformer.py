# Copyright 2026 The scmmgpt authors. All rights reserved.
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
"""Cell states in, query tokens out; texts beside them through the same self-attention.

The architecture of BLIP-2's Q-Former, so that any BERT initialises it: queries and text share self-attention, each
has a feed-forward of its own, and only queries look at the cell, every `cross_attention_frequency` layers. Where the
encoder gives summaries of the cell, queries start from them: a small Q-Former then need not find them first.
"""

# Shape letters: B cells or texts, Q queries, S text tokens, L cell states, D hidden size.

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_scmmgpt import ScMMGPTAttention
from .configuration_scmmgpt import ScMMGPTQFormerConfig
from .modeling_cell_encoder import summary_tokens
from .tower_scmmgpt import ScMMGPTTower, with_rows

QFormerMode = Literal["contrast", "match", "caption"]


@dataclass
class ScMMGPTQFormerOutput(ModelOutput):
    """What a Q-Former returns; of a branch that was not given, None.

    Parameters
    ----------
    query_states
        States of the query tokens (B, Q, D), which have looked at the cell.
    text_states
        States of the words (B, S, D).
    hidden_states
        What went into the first layer and came out of each: queries, then words (B, Q + S, D).
    attentions
        Weights of the attention that queries and words share (B, heads, Q + S, Q + S): eager attention has them.
    cross_attentions
        Weights of the queries over the cell (B, heads, Q, L), of every layer that looks at it.
    """

    query_states: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


def joint_mask(mode: QFormerMode, num_queries: int, text_mask_BS: torch.Tensor) -> torch.Tensor:
    """Who sees whom among [queries; text], (B, 1, Q+S, Q+S), True = sees.

    - contrast: each branch sees itself alone;
    - match: everybody sees everybody;
    - caption: queries see queries, a text token sees all queries and the text up to itself.
    """
    num_texts, length = text_mask_BS.shape
    total = num_queries + length
    is_text = torch.arange(total, device=text_mask_BS.device) >= num_queries
    if mode == "contrast":
        sees = is_text[:, None] == is_text[None, :]
    elif mode == "match":
        sees = torch.ones(total, total, dtype=torch.bool, device=text_mask_BS.device)
    elif mode == "caption":
        sees = torch.ones(total, total, dtype=torch.bool, device=text_mask_BS.device).tril()
        sees[:, :num_queries] = True
        sees[:num_queries, num_queries:] = False
    else:
        raise ValueError(f"`mode` is one of contrast, match and caption, got {mode!r}.")
    real = torch.cat([text_mask_BS.new_ones(num_texts, num_queries), text_mask_BS], dim=1).bool()
    # A padded token sees itself, so that no row of the softmax is empty.
    itself = torch.eye(total, dtype=torch.bool, device=text_mask_BS.device)
    return ((sees & real[:, None, :]) | itself)[:, None]


def check_words(input_ids: torch.Tensor, vocab_size: int) -> None:
    """Refuse words that have no vector. Not traced by torch.compile."""
    if not torch.compiler.is_compiling() and input_ids.numel() and input_ids.max() >= vocab_size:
        raise ValueError(
            f"Token ids go up to {int(input_ids.max())}, but the Q-Former has vectors for {vocab_size} words. If the "
            "tokenizer has grown, the Q-Former must grow too: `resize_token_embeddings(len(tokenizer))`."
        )


class ScMMGPTQFormerFeedForward(nn.Module):
    def __init__(self, config: ScMMGPTQFormerConfig):
        super().__init__()
        self.linear1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.norm(states + self.dropout(self.linear2(self.activation(self.linear1(states)))))


class ScMMGPTQFormerLayer(GradientCheckpointingLayer):
    def __init__(self, config: ScMMGPTQFormerConfig, looks_at_cell: bool):
        super().__init__()
        self.self_attn = ScMMGPTAttention(config)
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.looks_at_cell = looks_at_cell
        if looks_at_cell:
            self.cross_attn = ScMMGPTAttention(config, key_value_size=config.encoder_hidden_size)
            self.cross_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query_feed_forward = ScMMGPTQFormerFeedForward(config)
        self.text_feed_forward = ScMMGPTQFormerFeedForward(config)

    def forward(self, states, attention_mask, cell_states, cell_mask, num_queries, **kwargs):
        attended, _ = self.self_attn(states, attention_mask=attention_mask, **kwargs)
        states = self.self_attn_norm(states + self.dropout(attended))
        queries, text = states[:, :num_queries], states[:, num_queries:]
        if num_queries and self.looks_at_cell:
            attended, _ = self.cross_attn(queries, attention_mask=cell_mask, key_value_states=cell_states, **kwargs)
            queries = self.cross_attn_norm(queries + self.dropout(attended))
        branches = []
        if num_queries:
            branches.append(self.query_feed_forward(queries))
        if text.shape[1]:
            branches.append(self.text_feed_forward(text))
        return torch.cat(branches, dim=1)


class ScMMGPTQFormerEmbeddings(nn.Module):
    """Queries as they are, text as words + positions; both normalised together, as BLIP-2 does."""

    random_parameters = ("query_tokens",)

    def __init__(self, config: ScMMGPTQFormerConfig):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.hidden_size))
        self.num_summaries = config.num_summary_tokens
        if self.num_summaries:
            self.summary_in = nn.Linear(self.num_summaries * config.encoder_hidden_size, config.hidden_size)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.max_length = config.max_position_embeddings

    def start_queries(self, cell_states: torch.Tensor) -> torch.Tensor:
        """What each cell's queries start from (B, Q, D)."""
        queries = self.query_tokens.expand(cell_states.shape[0], -1, -1)
        if not self.num_summaries:
            return queries
        return queries + self.summary_in(summary_tokens(cell_states, self.num_summaries).flatten(1))[:, None]

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > self.max_length:
            raise ValueError(
                f"A text of {input_ids.shape[1]} tokens does not fit the Q-Former's {self.max_length} positions. "
                f"Shorten it, or pass `truncation=True, max_length={self.max_length}` to the processor."
            )
        check_words(input_ids, self.word_embeddings.num_embeddings)
        # Positions count real tokens, so that padding on either side changes nothing.
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return self.word_embeddings(input_ids) + self.position_embeddings(positions)

    def forward(self, cell_states=None, input_ids=None, attention_mask=None) -> torch.Tensor:
        branches = [] if cell_states is None else [self.start_queries(cell_states)]
        if input_ids is not None:
            branches.append(self.embed_text(input_ids, attention_mask))
        return self.dropout(self.norm(torch.cat(branches, dim=1)))


class ScMMGPTQFormer(ScMMGPTTower):
    """Q-Former: query tokens cross-attend to a cell; `mode` sets the attention mask between queries and text.

    Examples
    --------
    >>> config = ScMMGPTQFormerConfig(
    ...     vocab_size=30,
    ...     hidden_size=16,
    ...     encoder_hidden_size=8,
    ...     intermediate_size=16,
    ...     num_hidden_layers=2,
    ...     num_attention_heads=2,
    ...     num_query_tokens=4,
    ... )
    >>> qformer = ScMMGPTQFormer(config).eval()
    >>> qformer(cell_states=torch.rand(2, 5, 8)).query_states.shape
    torch.Size([2, 4, 16])
    >>> qformer(input_ids=torch.tensor([[1, 2, 3]])).text_states.shape
    torch.Size([1, 3, 16])
    """

    config: ScMMGPTQFormerConfig
    base_model_prefix = "qformer"
    main_input_name = "cell_states"
    _no_split_modules = ["ScMMGPTQFormerLayer"]
    _can_record_outputs = {
        "hidden_states": ScMMGPTQFormerLayer,
        "attentions": OutputRecorder(ScMMGPTAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(ScMMGPTAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: ScMMGPTQFormerConfig):
        super().__init__(config)
        self.embeddings = ScMMGPTQFormerEmbeddings(config)
        self.layers = nn.ModuleList(
            [
                ScMMGPTQFormerLayer(config, looks_at_cell=i % config.cross_attention_frequency == 0)
                for i in range(config.num_hidden_layers)
            ]
        )
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def word_vectors(self, device: torch.device) -> torch.Tensor:
        """The vectors of all words (V, D). Looked up, not read: offloaded weights are there for `forward` alone."""
        return self.embeddings.word_embeddings(torch.arange(self.config.vocab_size, device=device))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        cell_states: torch.Tensor | None = None,
        cell_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        mode: QFormerMode = "match",
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTQFormerOutput:
        """Give cells, texts or both (then as many cells as texts).

        Parameters
        ----------
        cell_states
            States of the cell encoder (B, L, encoder hidden).
        cell_mask
            1 where a state is real, 0 at padding (B, L); None: all are.
        input_ids
            Words (B, S), as the Q-Former's tokenizer gives them.
        attention_mask
            1 where a word is real, 0 at padding on either side (B, S); None: all are.
        mode
            Who sees whom. "contrast": each branch itself alone; "match": everybody everybody; "caption": words see
            the queries and the words before them.
        **kwargs
            `output_hidden_states`, `output_attentions` and `return_dict`, as in all of transformers.
        """
        num_queries, seen_of_cell, joint = 0, None, None
        if input_ids is not None and attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        states = self.embeddings(cell_states, input_ids, attention_mask)
        if cell_states is not None:
            num_queries = self.config.num_query_tokens
            seen_of_cell = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=states[:, :num_queries],
                attention_mask=cell_mask,
                encoder_hidden_states=cell_states,
            )
        if attention_mask is not None:
            joint = joint_mask(mode, num_queries, attention_mask)
        for layer in self.layers:
            # By position: of what comes by keyword, reentrant checkpointing loses the gradients.
            states = layer(states, joint, cell_states, seen_of_cell, num_queries, **kwargs)
        return ScMMGPTQFormerOutput(
            query_states=states[:, :num_queries] if cell_states is not None else None,
            text_states=states[:, num_queries:] if input_ids is not None else None,
        )


class ScMMGPTCaptionHead(nn.Module):
    """BERT's masked-LM head over the Q-Former's text states; the output matrix is its word embeddings."""

    def __init__(self, config: ScMMGPTQFormerConfig):
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))
        self.constant_parameters = {"bias": 0.0}

    def forward(self, text_states: torch.Tensor, word_vectors: torch.Tensor) -> torch.Tensor:
        return F.linear(self.norm(F.gelu(self.transform(text_states))), word_vectors, self.bias)

    def resize(self, vocab_size: int) -> None:
        self.bias = with_rows(self.bias, vocab_size)


__all__ = ["QFormerMode", "ScMMGPTCaptionHead", "ScMMGPTQFormer", "ScMMGPTQFormerOutput", "joint_mask"]
