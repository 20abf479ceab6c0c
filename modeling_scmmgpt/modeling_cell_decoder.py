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
"""Text to cell: text features to a negative binomial per gene, and samples from it.

Three parts. A projector reads a few text features off the LLM's hidden states. A flow turns noise into a latent, given
those features: it carries what the text leaves open, so that two cells of one text differ as real cells do. Text
features and latent pass through the cell encoder's transformer; every gene then reads its mean and dispersion off the
result by attention. The latent of a real cell, needed only in training, is a weighted sum of its gene vectors.
"""

# Shape letters: B cells, K text features, M memory tokens, Z latent size, G genes asked for, D hidden size,
# E embedding size of the gene table.

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .attention_scmmgpt import attend
from .configuration_scmmgpt import ScMMGPTCellConfig, ScMMGPTCellDecoderConfig
from .modeling_cell_encoder import sum_of_genes
from .tower_scmmgpt import ScMMGPTTower, with_rows

# Counts and library sizes are positive: their logarithms stay in this range.
LOG_RATE_RANGE = (-20.0, 5.0)
LOG_DISPERSION_RANGE = (-4.0, 6.0)
# Noise on a real cell's latent in training, so that the decoder is smooth where the flow is inexact.
LATENT_NOISE = 0.3
# Share of latents hidden in training: those cells are told by their text alone, so that the decoder learns to read it.
LATENT_DROPOUT = 0.3
# Times and noises for each latent in a training step: the flow is small, its loss a noisy estimate.
FLOW_DRAWS = 8


@dataclass
class ScMMGPTCellOutput(ModelOutput):
    """Generated cells.

    Parameters
    ----------
    counts
        Whole numbers (cells, genes).
    gene_ids
        The vocabulary id of each gene (genes,).
    library_size
        The total count over the whole vocabulary that each cell was drawn with (cells,).
    """

    counts: torch.Tensor | None = None
    gene_ids: torch.Tensor | None = None
    library_size: torch.Tensor | None = None


@dataclass
class ScMMGPTCellDecoderLoss(ModelOutput):
    """Losses of text -> cell.

    Parameters
    ----------
    loss
        The weighted sum.
    reconstruction_loss
        Negative log-likelihood of the counts, a mean over genes.
    flow_loss
        Squared error of the flow's velocity.
    library_loss
        Negative log-likelihood of the library size.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    flow_loss: torch.Tensor | None = None
    library_loss: torch.Tensor | None = None


def negative_binomial_loss(counts: torch.Tensor, mean: torch.Tensor, dispersion: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood per gene; variance = mean + mean^2 / dispersion."""
    counts, log_total = counts.float(), torch.log(mean + dispersion)
    likelihood = (
        torch.lgamma(counts + dispersion)
        - torch.lgamma(dispersion)
        - torch.lgamma(counts + 1)
        + dispersion * (torch.log(dispersion) - log_total)
        + counts * (torch.log(mean) - log_total)
    )
    return -likelihood.mean()


def sample_counts(mean: torch.Tensor, dispersion: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw negative binomial counts: a Poisson whose rate is gamma distributed."""
    shape = dispersion.expand_as(mean).contiguous()
    rate = torch._standard_gamma(shape, generator=generator) * (mean / shape)
    return torch.poisson(rate, generator=generator).int()


class ScMMGPTTextFeatures(nn.Module):
    """Cross-attention projector: learned queries read the LLM's hidden states. No text has features of its own."""

    random_parameters = ("queries", "no_text")

    def __init__(self, config: ScMMGPTCellDecoderConfig, hidden_size: int, text_hidden_size: int):
        super().__init__()
        self.config = config
        self.is_causal = False  # without this attribute sdpa would run causal, in silence
        self.queries = nn.Parameter(torch.zeros(config.num_text_tokens, hidden_size))
        self.no_text = nn.Parameter(torch.zeros(config.num_text_tokens, hidden_size))
        self.query_proj = nn.Linear(hidden_size, hidden_size)
        self.key_proj = nn.Linear(text_hidden_size, hidden_size)
        self.value_proj = nn.Linear(text_hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.num_heads = config.num_attention_heads

    def forward(self, text_states: torch.Tensor | None = None, text_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The features of no text (1, K, D) where none is given, and in each row without a single real token."""
        if text_states is None or text_mask is None:
            return self.no_text[None]
        query, key, value = (
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for states in (
                self.query_proj(self.queries).expand(len(text_states), -1, -1),
                self.key_proj(text_states),
                self.value_proj(text_states),
            )
        )
        is_empty = ~text_mask.bool().any(1)
        visible = (text_mask.bool() | is_empty[:, None])[:, None, None]
        scaling, implementation = query.shape[-1] ** -0.5, self.config._attn_implementation
        attended, _ = attend(self, implementation, query, key, value, visible, scaling=scaling)
        features_BKD = self.norm(self.queries + self.out_proj(attended.flatten(2)))
        return self.hide(features_BKD, is_empty)

    def hide(self, features_BKD: torch.Tensor, hidden_B: torch.Tensor) -> torch.Tensor:
        return torch.where(hidden_B[:, None, None], self.no_text.to(features_BKD.dtype), features_BKD)


class ScMMGPTLatentEncoder(nn.Module):
    """The latent of a real cell: the value-weighted sum of its gene vectors, squeezed and normalised."""

    def __init__(self, config: ScMMGPTCellDecoderConfig, embedding_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(embedding_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(embedding_size, config.flow_hidden_size)
        self.down = nn.Linear(config.flow_hidden_size, config.latent_size)
        self.out_norm = nn.LayerNorm(config.latent_size, eps=config.layer_norm_eps, elementwise_affine=False)

    def forward(self, summed_BE: torch.Tensor) -> torch.Tensor:
        return self.out_norm(self.down(F.gelu(self.up(self.norm(summed_BE)))))


class ScMMGPTLatentFlow(nn.Module):
    """The velocity that carries noise to latents along straight lines, given text features (rectified flow)."""

    def __init__(self, config: ScMMGPTCellDecoderConfig, hidden_size: int):
        super().__init__()
        width = config.flow_hidden_size
        self.latent_in = nn.Linear(config.latent_size, width)
        self.time_in = nn.Linear(width, width)
        self.text_in = nn.Linear(config.num_text_tokens * hidden_size, width)
        self.norms = nn.ModuleList(
            [nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(config.num_flow_layers)]
        )
        self.up = nn.ModuleList([nn.Linear(2 * width, 2 * width) for _ in range(config.num_flow_layers)])
        self.down = nn.ModuleList([nn.Linear(2 * width, width) for _ in range(config.num_flow_layers)])
        self.out = nn.Linear(width, config.latent_size)

    def forward(self, latent_BZ: torch.Tensor, time_B: torch.Tensor, features_BKD: torch.Tensor) -> torch.Tensor:
        condition = self.text_in(features_BKD.flatten(1)) + self.time_in(self._embed_time(time_B, features_BKD.dtype))
        states = self.latent_in(latent_BZ)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            states = states + down(F.silu(up(torch.cat([norm(states), condition], dim=-1))))
        return self.out(states)

    def _embed_time(self, time_B: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        half = self.time_in.in_features // 2
        frequencies = torch.exp(-math.log(1000.0) * torch.arange(half, device=time_B.device) / half)
        angles = 1000.0 * time_B[:, None].float() * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


class ScMMGPTGeneHead(nn.Module):
    """Each gene reads its share of the cell's counts off the memory tokens, by attention; dispersion per gene.

    A gene weighs the tokens by its keys and reads one number off each: two small products, no (cells x genes x hidden)
    tensor, so that twenty thousand genes cost little. Loadings of its own add what its vector does not say.
    """

    def __init__(self, config: ScMMGPTCellDecoderConfig, hidden_size: int, embedding_size: int, vocab_size: int):
        super().__init__()
        self.memory_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.gene_query = nn.Linear(embedding_size, hidden_size)
        self.gene_readout = nn.Linear(embedding_size, hidden_size)
        self.memory_key = nn.Linear(hidden_size, hidden_size)
        self.memory_value = nn.Linear(hidden_size, hidden_size)
        # Log share of an average cell's counts, and log dispersion: free numbers of each gene.
        self.gene_bias = nn.Parameter(torch.empty(vocab_size))
        self.gene_dispersion = nn.Parameter(torch.empty(vocab_size))
        self.constant_parameters = {"gene_bias": -math.log(vocab_size), "gene_dispersion": 0.0}
        self.num_loadings = config.num_gene_loadings
        if self.num_loadings:
            num_tokens = config.num_text_tokens + 2 * config.num_memory_tokens
            self.memory_loadings = nn.Linear(num_tokens * hidden_size, self.num_loadings)
            self.gene_loadings = nn.Parameter(torch.empty(vocab_size, self.num_loadings))
            self.random_parameters = ("gene_loadings",)

    def forward(self, memory_BMD, genes_GE, gene_ids) -> tuple[torch.Tensor, torch.Tensor]:
        """(log share of the library (B, G), dispersion (G,))"""
        memory_BMD = self.memory_norm(memory_BMD)
        scale = memory_BMD.shape[-1] ** -0.5
        attention_BGM = self._product(self.gene_query(genes_GE), self.memory_key(memory_BMD)).mul(scale).softmax(-1)
        reading_BGM = self._product(self.gene_readout(genes_GE), self.memory_value(memory_BMD)).mul(scale)
        log_share_BG = (attention_BGM * reading_BGM).sum(-1) + self.gene_bias[gene_ids]
        if self.num_loadings:
            log_share_BG = log_share_BG + self.memory_loadings(memory_BMD.flatten(1)) @ self.gene_loadings[gene_ids].T
        dispersion_G = self.gene_dispersion[gene_ids].float().clamp(*LOG_DISPERSION_RANGE).exp()
        return log_share_BG.float().clamp(*LOG_RATE_RANGE), dispersion_G

    def resize(self, vocab_size: int) -> None:
        for name in ("gene_bias", "gene_dispersion", "gene_loadings"):
            if hasattr(self, name):
                setattr(self, name, with_rows(getattr(self, name), vocab_size))

    def _product(self, genes_GD: torch.Tensor, memory_BMD: torch.Tensor) -> torch.Tensor:
        return torch.einsum("gd,bmd->bgm", genes_GD, memory_BMD)


class ScMMGPTCellDecoder(ScMMGPTTower):
    """Text features to counts, by way of the cell encoder's layers and gene table, which are passed in.

    Parameters
    ----------
    config
        The decoder's own sizes.
    cell_config
        Of the encoder whose layers and genes it uses.
    text_hidden_size
        Width of the LLM's states.

    Examples
    --------
    >>> cells = ScMMGPTCellConfig(vocab_size=50, hidden_size=16, num_attention_heads=2)
    >>> config = ScMMGPTCellDecoderConfig(num_text_tokens=2, num_attention_heads=2, latent_size=4, flow_hidden_size=8)
    >>> decoder = ScMMGPTCellDecoder(config, cells, text_hidden_size=12).eval()
    >>> features = decoder.text_features(torch.rand(3, 5, 12), torch.ones(3, 5))
    >>> latent = decoder.sample_latent(features, torch.randn(3, 4), guidance_scale=1.0)
    >>> genes = torch.arange(7)
    >>> log_share, dispersion = decoder.decode(
    ...     latent, features, torch.nn.Identity(), torch.nn.Embedding(50, 16), genes
    ... )
    >>> log_share.shape, dispersion.shape
    (torch.Size([3, 7]), torch.Size([7]))
    """

    config: ScMMGPTCellDecoderConfig
    base_model_prefix = "cell_decoder"
    supports_gradient_checkpointing = False
    _no_split_modules = ["ScMMGPTCellDecoder"]

    def __init__(self, config: ScMMGPTCellDecoderConfig, cell_config: ScMMGPTCellConfig, text_hidden_size: int):
        super().__init__(config)
        hidden_size = cell_config.hidden_size
        embedding_size = getattr(cell_config, "embedding_size", None) or hidden_size
        self.text_features = ScMMGPTTextFeatures(config, hidden_size, text_hidden_size)
        self.latent_encoder = ScMMGPTLatentEncoder(config, embedding_size)
        self.flow = ScMMGPTLatentFlow(config, hidden_size)
        self.memory_in = nn.Linear(config.latent_size, config.num_memory_tokens * hidden_size)
        self.gene_head = ScMMGPTGeneHead(config, hidden_size, embedding_size, cell_config.vocab_size)
        self.library_head = nn.Linear(config.num_text_tokens * hidden_size, 2)
        self.post_init()

    def latents(self, gene_table: nn.Module, gene_ids, gene_values) -> torch.Tensor:
        """The latents (B, Z) of real cells, whose values hold no special tokens."""
        return self.latent_encoder(sum_of_genes(gene_table, gene_ids, gene_values.clamp(min=0)))

    def decode(self, latent_BZ, features_BKD, run_layers, gene_table, gene_ids):
        """Log share and dispersion of each gene: latent and text features pass through the cell encoder's layers."""
        latent_tokens = self.memory_in(latent_BZ).unflatten(-1, (self.config.num_memory_tokens, -1))
        memory_BMD = run_layers(torch.cat([features_BKD, latent_tokens], dim=1))
        return self.gene_head(torch.cat([memory_BMD, latent_tokens], dim=1), gene_table(gene_ids), gene_ids)

    def library_distribution(self, features_BKD) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the logarithm of the library size."""
        mean, spread = self.library_head(features_BKD.flatten(1)).float().unbind(-1)
        return mean + 7.0, F.softplus(spread) + 0.05

    def resize(self, vocab_size: int) -> None:
        self.gene_head.resize(vocab_size)

    def losses(self, features_BKD, cell, target_gene_ids, target_counts, library_B, run_layers, gene_table):
        """`cell` = (gene_ids, gene_values) of the cells to be generated, without special tokens; `library_B` their total."""
        if self.training:
            hidden_B = torch.rand(len(features_BKD), device=features_BKD.device) < self.config.text_dropout
            features_BKD = self.text_features.hide(features_BKD, hidden_B)
        latent_BZ = self.latents(gene_table, *cell)
        log_share, dispersion = self.decode(
            self._disturb(latent_BZ), features_BKD, run_layers, gene_table, target_gene_ids
        )
        library_B = library_B.float().clamp(min=1)
        mean = (library_B.log()[:, None] + log_share).exp()
        reconstruction = negative_binomial_loss(target_counts, mean, dispersion)
        flow, library = self.latent_losses(latent_BZ.detach(), features_BKD, library_B)
        # The likelihood is a mean over thousands of genes, most of them silent: bring it to the size of the others.
        loss = reconstruction * math.sqrt(target_counts.shape[1]) + flow + 0.1 * library
        return ScMMGPTCellDecoderLoss(
            loss=loss, reconstruction_loss=reconstruction, flow_loss=flow, library_loss=library
        )

    def latent_losses(self, latent_BZ, features_BKD, library_B) -> tuple[torch.Tensor, torch.Tensor]:
        """Of what a text leaves open: the flow to the latents of its cells, and the likelihood of their library sizes."""
        center, deviation = self.library_distribution(features_BKD)
        library = (((library_B.log() - center) / deviation).square() / 2 + deviation.log()).mean()
        return self._flow_loss(latent_BZ, features_BKD), library

    def _disturb(self, latent_BZ):
        if not self.training:
            return latent_BZ
        is_kept = torch.rand(len(latent_BZ), 1, device=latent_BZ.device) >= LATENT_DROPOUT
        return (latent_BZ + LATENT_NOISE * torch.randn_like(latent_BZ)) * is_kept

    def _flow_loss(self, latent_BZ, features_BKD):
        latent_BZ, features_BKD = latent_BZ.repeat(FLOW_DRAWS, 1), features_BKD.repeat(FLOW_DRAWS, 1, 1)
        noise = torch.randn_like(latent_BZ)
        time_B = torch.rand(len(latent_BZ), device=latent_BZ.device, dtype=latent_BZ.dtype)
        between = torch.lerp(noise, latent_BZ, time_B[:, None])
        return (self.flow(between, time_B, features_BKD) - (latent_BZ - noise)).square().mean()

    def sample_latent(self, features_BKD, noise_BZ, guidance_scale: float) -> torch.Tensor:
        """Sample a latent by integrating the flow from noise, with classifier-free guidance."""
        no_text = self.text_features().expand_as(features_BKD)
        latent_BZ, step = noise_BZ, 1.0 / self.config.num_flow_steps
        for i in range(self.config.num_flow_steps):
            time_B = torch.full((len(latent_BZ),), (i + 0.5) * step, device=latent_BZ.device, dtype=latent_BZ.dtype)
            velocity = self.flow(latent_BZ, time_B, features_BKD)
            if guidance_scale != 1.0:
                velocity = torch.lerp(self.flow(latent_BZ, time_B, no_text), velocity, guidance_scale)
            latent_BZ = latent_BZ + step * velocity
        return latent_BZ


__all__ = ["ScMMGPTCellDecoder", "ScMMGPTCellDecoderLoss", "ScMMGPTCellOutput", "sample_counts"]
