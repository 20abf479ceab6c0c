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
"""One attention for every tower, and `torch_varlen`: torch's own flash kernels behind transformers' interface.

`torch_varlen` needs no flash-attn package and no compiler. On a CPU, or in float32, the same call runs an exact
reference, sequence by sequence, so that both paths can be compared anywhere.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import find_packed_sequence_indices, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None  # type: ignore[assignment] # the function, or None where torch has none

# Shape letters: B rows, H heads, Q queries, K keys, T tokens of all sequences, D head size.


def takes_packed_sequences(implementation: str | None) -> bool:
    """Whether this attention honours cumulative sequence lengths. sdpa and eager ignore them without a word."""
    return implementation is not None and ("flash" in implementation or implementation == "torch_varlen")


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    scores_BHQK = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = torch.where(attention_mask, 0.0, torch.finfo(scores_BHQK.dtype).min).to(scores_BHQK.dtype)
        scores_BHQK = scores_BHQK + attention_mask
    # Softmax in float32: over a thousand genes bfloat16 loses the tail.
    weights_BHQK = nn.functional.softmax(scores_BHQK, dim=-1, dtype=torch.float32).to(query.dtype)
    weights_BHQK = nn.functional.dropout(weights_BHQK, p=dropout, training=module.training)
    return torch.matmul(weights_BHQK, value).transpose(1, 2).contiguous(), weights_BHQK


def _attend_sequence_by_sequence(query_THD, key_THD, value_THD, starts_query, starts_key, causal, scale):
    outputs = torch.zeros_like(query_THD)
    bounds_query, bounds_key = starts_query.tolist(), starts_key.tolist()
    groups = query_THD.shape[1] // key_THD.shape[1]
    for i in range(len(bounds_query) - 1):
        rows, cols = slice(*bounds_query[i : i + 2]), slice(*bounds_key[i : i + 2])
        num_queries, num_keys = rows.stop - rows.start, cols.stop - cols.start
        if num_queries == 0 or num_keys == 0:
            continue
        query, key, value = (x.transpose(0, 1)[None] for x in (query_THD[rows], key_THD[cols], value_THD[cols]))
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mask = None
        if causal and num_queries > 1:  # aligned at the bottom right, as flash attention does
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
            mask = mask.tril(diagonal=num_keys - num_queries)
        outputs[rows] = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)[0].transpose(
            0, 1
        )
    return outputs


def _attend_varlen(query_THD, key_THD, value_THD, starts_query, starts_key, causal, scale):
    if varlen_attn is None or not query_THD.is_cuda or query_THD.dtype not in (torch.float16, torch.bfloat16):
        return _attend_sequence_by_sequence(query_THD, key_THD, value_THD, starts_query, starts_key, causal, scale)
    longest = [int(starts.diff().max()) for starts in (starts_query, starts_key)]
    return varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        starts_query.int(),
        starts_key.int(),
        *longest,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=key_THD.shape[1] != query_THD.shape[1],
    )


def _starts(lengths: torch.Tensor) -> torch.Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def _lengths_without_mask(query, key, position_ids):
    """Sequence lengths when nothing is padded: restarting positions mark packed rows, else each row is a sequence."""
    rows, num_queries, num_keys = query.shape[0], query.shape[1], key.shape[1]
    full_keys = torch.full((rows,), num_keys, device=query.device)
    if num_queries != num_keys or position_ids is None or position_ids.shape[0] != rows:
        return torch.full((rows,), num_queries, device=query.device), full_keys
    packed = find_packed_sequence_indices(position_ids)
    lengths = full_keys if packed is None else torch.cat([torch.bincount(row) for row in packed])
    return lengths, lengths


def torch_varlen_attention_forward(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    is_causal=None,
    position_ids=None,
    cu_seq_lens_q=None,
    cu_seq_lens_k=None,
    **kwargs,
):
    if dropout:
        raise ValueError(
            "`torch_varlen` has no attention dropout: set `attention_dropout=0`, or use another attention."
        )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, T, H, D)
    if cu_seq_lens_q is not None:  # one row that holds all sequences
        outputs = _attend_varlen(query[0], key[0], value[0], cu_seq_lens_q, cu_seq_lens_k, causal, scaling)[None]
        return outputs.contiguous(), None
    if attention_mask is None:
        lengths_query, lengths_key = _lengths_without_mask(query, key, position_ids)
        starts = _starts(lengths_query), _starts(lengths_key)
        outputs = _attend_varlen(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), *starts, causal, scaling)
        return outputs.view_as(query).contiguous(), None
    real_key = attention_mask.bool()
    if causal:
        real_query = real_key[:, -query.shape[1] :]
    elif getattr(module, "is_cross_attention", False) or query.shape[1] != key.shape[1]:
        real_query = torch.ones(query.shape[:2], dtype=torch.bool, device=query.device)
    else:
        real_query = real_key
    starts = _starts(real_query.sum(1)), _starts(real_key.sum(1))
    outputs = torch.zeros_like(query)
    outputs[real_query] = _attend_varlen(
        query[real_query], key[real_key], value[real_key], *starts, causal, scaling
    ).to(outputs.dtype)
    return outputs.contiguous(), None


def register_torch_varlen() -> None:
    """Make the name known to transformers, and so to every LLM too: done when a model is asked for it, not before."""
    AttentionInterface.register("torch_varlen", torch_varlen_attention_forward)
    AttentionMaskInterface.register("torch_varlen", flash_attention_mask)


def attend(module: nn.Module, implementation: str | None, query, key, value, attention_mask, **kwargs):
    """Outputs (B, Q, H, D) and weights, if any, by transformers' interface.

    A tensor that says of each pair who sees whom, (B, 1, Q, K), is understood by eager and sdpa alone: where flash or
    flex attention is chosen, sdpa gives the same numbers.
    """
    is_cross_attention = getattr(module, "is_cross_attention", False)
    if is_cross_attention and "flash" in (implementation or "") and attention_mask is not None:
        # transformers' flash takes the padding of keys for that of the queries, where their numbers differ.
        attention_mask = attention_mask.bool()[:, None, None]
    is_mask_of_pairs = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4
    if is_mask_of_pairs and implementation != "eager":
        implementation = "sdpa"
    attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation or "eager", eager_attention_forward)
    return attention(module, query, key, value, attention_mask, **kwargs)


class ScMMGPTAttention(nn.Module):
    """Multi-head attention, self or cross, never causal by itself: masks say who sees whom.

    Four plain linears, so that LoRA, quantisation and tensor parallelism find what they know.
    """

    def __init__(self, config, key_value_size: int | None = None):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False  # without this attribute sdpa would run causal, in silence
        self.is_cross_attention = key_value_size is not None
        key_value_size = key_value_size or config.hidden_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(key_value_size, config.hidden_size)
        self.v_proj = nn.Linear(key_value_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None, key_value_states=None, **kwargs):
        source = hidden_states if key_value_states is None else key_value_states
        query, key, value = (
            linear(states).view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for linear, states in ((self.q_proj, hidden_states), (self.k_proj, source), (self.v_proj, source))
        )
        outputs, weights = attend(
            self,
            self.config._attn_implementation,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(outputs.reshape(*hidden_states.shape[:-1], -1)), weights


__all__ = ["ScMMGPTAttention", "attend", "register_torch_varlen", "takes_packed_sequences"]
