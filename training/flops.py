"""How many floating-point operations a batch takes, from the configuration alone: for plans and for utilisation.

Matrix products only, two operations for each multiply-add (tests/test_flops.py compares with torch's own counter).
Training costs three forward passes where weights learn, two where gradients only pass through, one where none do.
"""

# Shape letters: B cells, L genes, S text tokens, Q query tokens.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scmmgpt.training.settings import Stage2Towers, TowerSettings

_PASSES = {"full": 3, "lora": 2, "freeze": 2}


@dataclass(frozen=True)
class BatchShape:
    """Real tokens of a batch. Lengths are means over the batch; attention is quadratic in them."""

    num_cells: int
    num_genes: float
    num_text_tokens: float = 0.0
    num_prompt_tokens: float = 0.0
    num_target_genes: int = 0

    @property
    def num_tokens(self) -> float:
        """Genes, text and prompts of all cells."""
        return self.num_cells * (self.num_genes + self.num_text_tokens + self.num_prompt_tokens)


def transformer_flops(
    length: float, hidden: int, intermediate: int, layers: int, *, attended: float | None = None, gated: bool = False
) -> float:
    """One sequence through a transformer: projections, feed-forward, attention scores and sums."""
    attended = length if attended is None else attended
    projections = 2 * length * 4 * hidden * hidden
    feed_forward = 2 * length * (3 if gated else 2) * hidden * intermediate
    attention = 2 * 2 * length * attended * hidden
    return layers * (projections + feed_forward + attention)


def cell_encoder_flops(config: Any, shape: BatchShape) -> float:
    """All cells of a batch through the cell encoder. Encoders of other families are read by the same names."""
    length = _num_cell_states(config, shape)
    per_cell = transformer_flops(length, config.hidden_size, config.intermediate_size, config.num_hidden_layers)
    width = getattr(config, "embedding_size", config.hidden_size)
    if width != config.hidden_size:
        per_cell += 2 * length * width * config.hidden_size
    if getattr(config, "value_encoding", "none") == "continuous":
        per_cell += 2 * length * (config.hidden_size + config.hidden_size**2)
    return shape.num_cells * per_cell


def qformer_flops(config: Any, num_cell_states: float, *, queries: bool = True, text_tokens: float = 0.0) -> float:
    """One row through the Q-Former: queries, text, or both side by side."""
    num_queries = config.num_query_tokens if queries else 0
    hidden, layers = config.hidden_size, config.num_hidden_layers
    flops = transformer_flops(num_queries + text_tokens, hidden, config.intermediate_size, layers)
    if queries:
        crossing = -(-layers // config.cross_attention_frequency)
        projections = 2 * 2 * num_queries * hidden**2 + 2 * 2 * num_cell_states * config.encoder_hidden_size * hidden
        flops += crossing * (projections + 2 * 2 * num_queries * num_cell_states * hidden)
    return flops


def stage_1_flops(config: Any, shape: BatchShape, towers: TowerSettings) -> float:
    """One training step of stage 1 on one device: contrast, matching on three times the pairs, captioning."""
    encoder, qformer = config.cell_config, config.qformer_config
    states, text = _num_cell_states(encoder, shape), shape.num_text_tokens
    per_pair = qformer_flops(qformer, states) + qformer_flops(qformer, states, queries=False, text_tokens=text)
    if config.match_weight:
        per_pair += 3 * qformer_flops(qformer, states, text_tokens=text)
    if config.caption_weight:
        per_pair += qformer_flops(qformer, states, text_tokens=text)
        per_pair += 2 * text * qformer.hidden_size * (qformer.vocab_size + qformer.hidden_size)
    flops = _PASSES[towers.qformer] * shape.num_cells * (per_pair if text else 0.0)
    return flops + _encoder_passes(towers) * cell_encoder_flops(encoder, shape)


def stage_2_flops(config: Any, shape: BatchShape, towers: Stage2Towers) -> float:
    """One training step of stage 2 on one device: the answer's loss, and the cell decoder's over its target genes."""
    encoder, qformer, language = config.cell_config, config.qformer_config, config.text_config
    flops = _encoder_passes(towers) * cell_encoder_flops(encoder, shape)
    flops += _PASSES[towers.qformer] * shape.num_cells * qformer_flops(qformer, _num_cell_states(encoder, shape))
    per_cell = language_model_flops(language, shape.num_prompt_tokens)
    per_cell += language_model_flops(language, shape.num_text_tokens, with_head=False)
    flops += _PASSES[towers.language_model] * shape.num_cells * per_cell
    decoder = config.cell_decoder_config
    memory = decoder.num_text_tokens + 2 * decoder.num_memory_tokens
    readout = 2 * 2 * shape.num_target_genes * memory * encoder.hidden_size
    return flops + _PASSES[towers.cell_decoder] * shape.num_cells * readout


def language_model_flops(config: Any, num_tokens: float, *, with_head: bool = True) -> float:
    """One sequence through a causal LM with gated feed-forward and grouped keys."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    projections = 2 * num_tokens * hidden * head_dim * (2 * heads + 2 * groups)
    feed_forward = 2 * num_tokens * 3 * hidden * config.intermediate_size
    attention = 2 * 2 * num_tokens * num_tokens * heads * head_dim
    head = 2 * num_tokens * hidden * config.vocab_size if with_head else 0.0
    return config.num_hidden_layers * (projections + feed_forward + attention) + head


def _num_cell_states(encoder: Any, shape: BatchShape) -> float:
    attended = getattr(encoder, "num_attended_genes", None)
    return min(shape.num_genes, attended + 1 if attended else shape.num_genes) + getattr(
        encoder, "num_pooled_tokens", 0
    )


def _encoder_passes(towers: TowerSettings) -> int:
    return 1 if towers.cell_encoder == "freeze" else _PASSES[towers.cell_encoder]
