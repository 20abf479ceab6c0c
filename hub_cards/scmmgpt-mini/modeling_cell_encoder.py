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
"""Genes and their values in, cell states out: scGPT's encoder, an AutoModel of its own.

Two things go beyond scGPT, both off by default: pooled tokens that summarise all genes of a cell however many there
are, and attention over only the first genes that the processor gives. Together they make an encoder that reads whole
transcriptomes at a laptop's cost. With `pooled_shortcut` the layers see the pooled tokens, but leave them as they are.
"""

# Shape letters: B cells, L genes of the longest cell, T genes of all cells, E embedding size, D hidden size.

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_scmmgpt import ScMMGPTAttention, takes_packed_sequences
from .cell_layout_scmmgpt import check_cells, unpack_cells
from .configuration_scmmgpt import ScMMGPTCellConfig
from .tower_scmmgpt import ScMMGPTTower

# Value labels that are not to be predicted, as in every transformers loss.
IGNORE = -100


@dataclass
class ScMMGPTCellEncoderOutput(ModelOutput):
    """What a cell encoder returns.

    Parameters
    ----------
    loss
        Mean squared error over the masked values, where `value_labels` were given.
    last_hidden_state
        States of each cell's tokens (B, L, D): `<cls>`, then pooled tokens if the encoder has any, then genes.
    pooler_output
        The state of `<cls>` (B, D).
    state_mask
        1 where `last_hidden_state` is real, 0 at padding (B, L).
    value_predictions
        The value of each gene (B, L), by a model that has a head for it.
    hidden_states
        What went into the first layer and came out of each; of packed cells one row (1, T, D).
    attentions
        Attention weights of each layer (B, heads, L, L): eager attention has them, no other.
    """

    loss: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    state_mask: torch.Tensor | None = None
    value_predictions: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ScMMGPTGeneTable(nn.Embedding):
    """One vector per gene; with weights, the weighted sum of each cell's vectors, which never lie side by side."""

    def forward(self, gene_ids: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        if weights is None:
            return super().forward(gene_ids)
        weights = weights.to(self.weight.dtype)
        return F.embedding_bag(gene_ids, self.weight, per_sample_weights=weights, mode="sum")


def sum_of_genes(table: nn.Module, gene_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum (B, E) of the vectors of a gene table, which may be that of an encoder of another kind.

    A table is called, never read: where weights are offloaded, they are there for `forward` alone.
    """
    if isinstance(table, ScMMGPTGeneTable):
        return table(gene_ids, weights)
    vectors_BLE = table(gene_ids)
    return torch.einsum("bl,ble->be", weights.to(vectors_BLE.dtype), vectors_BLE)


class ScMMGPTValueScale(nn.Module):
    """One number times a vector, plus another.

    No `nn.Linear`, which every quantiser takes for a matrix worth rounding: expression values are given in its
    weight's type, and 4.86 counts would become 4.
    """

    random_parameters, constant_parameters = ("weight",), {"bias": 0.0}

    def __init__(self, config: ScMMGPTCellConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, 1))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return F.linear(values.unsqueeze(-1).to(self.weight.dtype), self.weight, self.bias)


class ScMMGPTCellEmbeddings(nn.Module):
    """Gene vector + value vector, each normalised on its own, as scGPT does."""

    def __init__(self, config: ScMMGPTCellConfig):
        super().__init__()
        self.config = config
        self.gene_embeddings = ScMMGPTGeneTable(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        self.gene_projection: nn.Module = nn.Identity()
        # CODEPATH: scGPT has one width, scmmgpt-mini a wide table over narrow layers.
        if config.embedding_size != config.hidden_size:
            self.gene_projection = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
        self.gene_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # CODEPATH: scGPT's weights and scmmgpt-mini read values as they are.
        if config.value_encoding == "continuous":
            self.value_in = ScMMGPTValueScale(config)
            self.value_out = nn.Linear(config.hidden_size, config.hidden_size)
        # CODEPATH: "bins" is scGPT's other published input style.
        elif config.value_encoding == "bins":
            self.value_bins = nn.Embedding(config.num_bins + 1, config.hidden_size)  # one more: the masked value
        # CODEPATH: "none" is for encoders of ranked genes trained from scratch; all converted ones read values.
        if config.value_encoding != "none":
            self.value_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, gene_ids: torch.Tensor, gene_values: torch.Tensor) -> torch.Tensor:
        genes_BLD = self.gene_norm(self.gene_projection(self.gene_embeddings(gene_ids)))
        # CODEPATH: as in the constructor.
        if self.config.value_encoding == "none":
            return self.dropout(genes_BLD)
        # CODEPATH: scGPT's converted weights expect a value of their own at `<cls>`, scmmgpt-mini the processor's.
        cls, cls_value = self.config.cls_token_id, self.config.cls_value
        if cls is not None and cls_value is not None:
            gene_values = gene_values.masked_fill(gene_ids == cls, cls_value)
        return genes_BLD + self.dropout(self.embed_values(gene_values))

    def embed_values(self, gene_values: torch.Tensor) -> torch.Tensor:
        # CODEPATH: as in the constructor.
        if self.config.value_encoding == "bins":
            masked = self.config.num_bins
            bins_BL = torch.where(gene_values < 0, masked, gene_values.long().clamp(max=masked - 1))
            return self.value_norm(self.value_bins(bins_BL))
        states_BLD = F.relu(self.value_in(gene_values.clamp(max=self.config.max_value)))
        return self.value_norm(self.value_out(states_BLD))


class ScMMGPTPooledGenes(nn.Module):
    """A few tokens that hold the value-weighted sum of *all* gene vectors of a cell."""

    def __init__(self, config: ScMMGPTCellConfig):
        super().__init__()
        self.num_tokens = config.num_pooled_tokens
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.embedding_size, config.pooled_intermediate_size)
        self.down = nn.Linear(config.pooled_intermediate_size, config.embedding_size)
        self.out_norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.out = nn.Linear(config.embedding_size, config.num_pooled_tokens * config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, summed_BE: torch.Tensor) -> torch.Tensor:
        pooled_BE = self.norm(summed_BE)
        pooled_BE = pooled_BE + self.dropout(self.down(F.gelu(self.up(pooled_BE))))
        return self.out(self.out_norm(pooled_BE)).unflatten(-1, (self.num_tokens, -1))


class ScMMGPTCellLayer(GradientCheckpointingLayer):
    """Post-norm transformer layer, the one of `torch.nn.TransformerEncoderLayer`."""

    def __init__(self, config: ScMMGPTCellConfig):
        super().__init__()
        self.self_attn = ScMMGPTAttention(config)
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.linear1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states, attention_mask=None, **kwargs: Unpack[TransformersKwargs]):
        attended, _ = self.self_attn(hidden_states, attention_mask=attention_mask, **kwargs)
        hidden_states = self.self_attn_norm(hidden_states + self.dropout(attended))
        inner = self.linear2(self.dropout(self.activation(self.linear1(hidden_states))))
        return self.final_norm(hidden_states + self.dropout(inner))


class ScMMGPTValueHead(nn.Module):
    """Cell states -> the expression value of each gene: scGPT's decoder, for masked-value pre-training."""

    def __init__(self, config: ScMMGPTCellConfig):
        super().__init__()
        self.linear1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.linear2 = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 1)

    def forward(self, states_BLD: torch.Tensor) -> torch.Tensor:
        inner = F.leaky_relu(self.linear2(F.leaky_relu(self.linear1(states_BLD))))
        return self.out(inner).squeeze(-1)


def masked_value_loss(predictions_BL: torch.Tensor, value_labels: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the masked values alone; 0, with a gradient, when nothing is masked."""
    masked = value_labels != IGNORE
    error = (predictions_BL.float() - value_labels.float()).square()
    return (error * masked).sum() / masked.sum().clamp(min=1)


class ScMMGPTCellPreTrainedModel(ScMMGPTTower):
    config: ScMMGPTCellConfig
    base_model_prefix = "model"
    main_input_name = "gene_ids"
    input_modalities = ["cell"]
    _no_split_modules = ["ScMMGPTCellLayer"]
    _can_record_outputs = {"hidden_states": ScMMGPTCellLayer, "attentions": ScMMGPTAttention}


class ScMMGPTCellEncoder(ScMMGPTCellPreTrainedModel):
    """Embed the genes of cells; the first token of every cell is `<cls>`.

    Examples
    --------
    >>> config = ScMMGPTCellConfig(
    ...     vocab_size=50, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, pad_token_id=0, cls_token_id=1
    ... )
    >>> encoder = ScMMGPTCellEncoder(config).eval()
    >>> encoder(torch.tensor([[1, 7, 9]]), torch.tensor([[0.0, 2.0, 1.0]])).pooler_output.shape
    torch.Size([1, 16])
    """

    def __init__(self, config: ScMMGPTCellConfig):
        super().__init__(config)
        self.embeddings = ScMMGPTCellEmbeddings(config)
        # CODEPATH: scmmgpt-mini has pooled tokens, scGPT none.
        if config.num_pooled_tokens:
            self.pooled_genes = ScMMGPTPooledGenes(config)
        self.layers = nn.ModuleList([ScMMGPTCellLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.gene_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.gene_embeddings = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)  # packed rows have packed states, the last as the others
    def forward(
        self,
        gene_ids: torch.Tensor,
        gene_values: torch.Tensor,
        gene_mask: torch.Tensor | None = None,
        cell_cu_seqlens: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTCellEncoderOutput:
        """States of the tokens of each cell, and of its `<cls>`.

        Parameters
        ----------
        gene_ids
            Ids in the gene vocabulary (B, L), `<cls>` first; of packed cells one row (1, T).
        gene_values
            The expression value of each gene, in the unit of the processor, in the shape of `gene_ids`.
        gene_mask
            1 where a gene is real, 0 at padding (B, L); None: all are.
        cell_cu_seqlens
            Where each packed cell begins, and the last one ends (B + 1,). Packed cells come back padded, with the
            same numbers.
        **kwargs
            `output_hidden_states`, `output_attentions` and `return_dict`, as in all of transformers.
        """
        check_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens, self.config.vocab_size)
        if cell_cu_seqlens is not None and not self._runs_packed():
            gene_values, _ = unpack_cells(gene_values, cell_cu_seqlens)
            gene_ids, gene_mask = unpack_cells(gene_ids, cell_cu_seqlens)
            cell_cu_seqlens = None
        if cell_cu_seqlens is not None:
            packed_1TD = self._encode_packed(gene_ids, gene_values, cell_cu_seqlens, **kwargs)
            states_BLD, state_mask = unpack_cells(packed_1TD, cell_cu_seqlens)
        else:
            embedded_BLD, state_mask = self._embed(gene_ids, gene_values, gene_mask)
            states_BLD = self.run_layers(embedded_BLD, state_mask, **kwargs)
            # CODEPATH: scmmgpt-mini has the shortcut, scGPT none.
            if self.config.pooled_shortcut:
                pooled = summary_tokens(embedded_BLD, self.config.num_pooled_tokens)
                states_BLD = torch.cat([states_BLD[:, :1], pooled, gene_states(states_BLD, self.config)[:, 1:]], dim=1)
        return ScMMGPTCellEncoderOutput(
            last_hidden_state=states_BLD, pooler_output=states_BLD[:, 0], state_mask=state_mask
        )

    def run_layers(self, states_BLD: torch.Tensor, state_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """The transformer alone, over states of any origin: the cell decoder sends text features through it."""
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=states_BLD, attention_mask=state_mask
        )
        for layer in self.layers:
            states_BLD = layer(states_BLD, attention_mask=attention_mask, **kwargs)
        return states_BLD

    def pool(self, gene_ids: torch.Tensor, gene_values: torch.Tensor, gene_mask: torch.Tensor) -> torch.Tensor:
        """The pooled tokens alone (B, P, D): all genes of each cell, before any layer."""
        # <cls> weighs nothing, but stays: a cell without genes still has one token to sum over.
        weights_BL = F.pad((gene_values.clamp(min=0) * gene_mask)[:, 1:], (1, 0))
        return self.pooled_genes(self.embeddings.gene_embeddings(gene_ids, weights_BL))

    def _runs_packed(self) -> bool:
        plain = self.config.num_pooled_tokens == 0 and self.config.num_attended_genes is None
        return plain and takes_packed_sequences(self.config._attn_implementation)

    def _encode_packed(self, gene_ids, gene_values, cell_cu_seqlens, **kwargs):
        longest = int(cell_cu_seqlens.diff().max())
        kwargs.update(cu_seq_lens_q=cell_cu_seqlens, cu_seq_lens_k=cell_cu_seqlens)
        kwargs.update(max_length_q=longest, max_length_k=longest)
        states_1TD = self.embeddings(gene_ids, gene_values)
        for layer in self.layers:
            states_1TD = layer(states_1TD, **kwargs)
        return states_1TD

    def _embed(self, gene_ids, gene_values, gene_mask):
        if gene_mask is None:
            gene_mask = torch.ones_like(gene_ids)
        attended = slice(0, self.config.num_attended_genes and self.config.num_attended_genes + 1)
        states_BLD = self.embeddings(gene_ids[:, attended], gene_values[:, attended])
        # CODEPATH: as in the constructor.
        if not self.config.num_pooled_tokens:
            return states_BLD, gene_mask[:, attended].long()
        pooled = self.pool(gene_ids, gene_values, gene_mask)
        ones = gene_mask.new_ones(pooled.shape[:2])
        # <cls> stays first: it is what `pooler_output` reads.
        states_BLD = torch.cat([states_BLD[:, :1], pooled, states_BLD[:, 1:]], dim=1)
        return states_BLD, torch.cat([gene_mask[:, :1], ones, gene_mask[:, attended][:, 1:]], dim=1).long()


class ScMMGPTCellEncoderForMaskedValues(ScMMGPTCellPreTrainedModel):
    """Pre-train a cell encoder from scratch: predict the values that were hidden behind `mask_value`.

    Examples
    --------
    >>> config = ScMMGPTCellConfig(
    ...     vocab_size=50, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, pad_token_id=0, cls_token_id=1
    ... )
    >>> model = ScMMGPTCellEncoderForMaskedValues(config).eval()
    >>> genes, hidden = torch.tensor([[1, 7, 9]]), torch.tensor([[0.0, config.mask_value, 1.0]])
    >>> labels = torch.tensor([[-100.0, 2.0, -100.0]])
    >>> output = model(genes, hidden, value_labels=labels)
    >>> output.value_predictions.shape, output.loss.shape
    (torch.Size([1, 3]), torch.Size([]))
    """

    accepts_loss_kwargs = False

    def __init__(self, config: ScMMGPTCellConfig):
        super().__init__(config)
        self.model = ScMMGPTCellEncoder(config)
        self.value_head = ScMMGPTValueHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        gene_ids: torch.Tensor,
        gene_values: torch.Tensor,
        gene_mask: torch.Tensor | None = None,
        value_labels: torch.Tensor | None = None,
        cell_cu_seqlens: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTCellEncoderOutput:
        """The value of every gene, and how far off the hidden ones are.

        Parameters
        ----------
        gene_ids, gene_mask, cell_cu_seqlens, **kwargs
            As `ScMMGPTCellEncoder` takes them.
        gene_values
            Expression values (B, L), with the config's `mask_value` in the place of those to be predicted.
        value_labels
            The values to be predicted (B, L), -100 elsewhere; None: no loss.
        """
        outputs = self.model(gene_ids, gene_values, gene_mask, cell_cu_seqlens, return_dict=True, **kwargs)
        predictions, loss = self.value_head(gene_states(outputs.last_hidden_state, self.config)), None
        if value_labels is not None:
            loss = masked_value_loss(predictions, value_labels[:, : predictions.shape[1]])
        # A new one: what is set on an output that exists comes last in its tuple.
        return ScMMGPTCellEncoderOutput(**{**outputs, "loss": loss, "value_predictions": predictions})


def summary_tokens(states_BLD: torch.Tensor, num_pooled_tokens: int) -> torch.Tensor:
    """The states of the pooled tokens, which stand behind `<cls>`."""
    return states_BLD[:, 1 : 1 + num_pooled_tokens]


def gene_states(states_BLD: torch.Tensor, config: ScMMGPTCellConfig) -> torch.Tensor:
    """The states that stand at the positions of `gene_ids`: all but the pooled tokens behind `<cls>`."""
    pooled = config.num_pooled_tokens
    return states_BLD if not pooled else torch.cat([states_BLD[:, :1], states_BLD[:, 1 + pooled :]], dim=1)


__all__ = [
    "ScMMGPTCellEncoder",
    "ScMMGPTCellEncoderForMaskedValues",
    "ScMMGPTCellEncoderOutput",
    "ScMMGPTValueHead",
    "gene_states",
    "masked_value_loss",
    "sum_of_genes",
    "summary_tokens",
    "unpack_cells",
]
