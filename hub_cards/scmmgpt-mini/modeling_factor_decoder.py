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
"""Text to cell by factors: what a statistician would write down for counts of cells whose kind is told by a text.

The logarithm of a gene's share is its own level, plus its loadings times the state that the text asks for, plus its
loadings times factors by which cells of one kind differ, plus what the platform does to it. The factors are normal;
their covariance is that of the counted kinds of cells whose states are nearest. Counts are negative binomial, library
sizes log-normal.
"""

# Shape letters: N texts, B cells, K known populations, D hidden size, S directions of states, R factors, J counted kinds,
# A values of facts, P platforms, V the gene table, G genes asked for.

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_scmmgpt import ScMMGPTCellConfig, ScMMGPTCellDecoderConfig
from .modeling_cell_decoder import (
    LOG_DISPERSION_RANGE,
    ScMMGPTCellDecoder,
    ScMMGPTCellDecoderLoss,
    ScMMGPTTextFeatures,
    negative_binomial_loss,
)
from .tower_scmmgpt import ScMMGPTTower, with_rows

# How much more a kind counts than another whose state is one step of cosine further away.
KIND_SHARPNESS = 12.0
# The same of types whose cells lie in the place that a text names, and how much less those of another organism count.
KIN_SHARPNESS, OTHER_ORGANISM = 3.0, 0.1
# What stands against the types of a place, in cells of the very type, and how much further than their mean it moves cells:
# what a place does is much the same for all types, and the fit takes some of it for the types'.
PLACE_PRIOR, PLACE_STEP = 0.3, 1.5
# Of the very population that is asked for, if it is known; what stands against all others where nothing matches.
OWN_WEIGHT, NO_MATCH = 1e4, 1e-3
# How sharply what is asked for counts as a known population or not: half-way between, they are mixed.
KNOWN_SHARPNESS = 12.0
# Newton steps from counts to a state: the third moves nothing in the second decimal.
STATE_STEPS = 4
# Copies of one molecule differ between molecules as a gamma of this shape does: Smart-seq2, genes seen once.
COPIES_SHAPE = 0.8
# How far one gene may pull a state in a step: counts of a few genes in a few cells are enormous.
LARGEST_RESIDUAL = 3.0
BY_GENE = ("gene_bias", "gene_states", "gene_factors", "gene_platforms", "gene_dispersion")


@dataclass
class Population:
    """Cells that one text stands for: log shares of their mean (G,), what a step of each factor adds (G, R),
    dispersions (G,), mean and spread of the logarithm of the library size, molecules of a cell where reads are counted."""

    log_share: torch.Tensor
    loadings: torch.Tensor
    dispersion: torch.Tensor
    library_mean: float
    library_spread: float
    molecules: float

    def draw(self, generator: torch.Generator, depth: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Log shares (G,) and library size () of a new cell. One at a time: no batch can change it."""
        noise = torch.randn(self.loadings.shape[1] + 1, generator=generator)
        log_share = torch.addmv(self.log_share, self.loadings, noise[1:])
        center = self.library_mean if depth is None else math.log(depth)
        return log_share.log_softmax(0), torch.exp(center + self.library_spread * noise[0]).clamp(min=1)

    def copies(self, depth: float | None = None) -> float:
        """How often a molecule is counted."""
        total = math.exp(self.library_mean) if depth is None else depth
        return max(total / self.molecules, 1.0) if self.molecules else 1.0


def amplified(molecules: torch.Tensor, copies: float, generator: torch.Generator) -> torch.Tensor:
    """Reads of counted molecules: each is copied so often in the mean, some of them much more often."""
    if copies <= 1.0:
        return molecules
    seen = molecules > 0
    rate = torch._standard_gamma(COPIES_SHAPE * molecules[seen].float(), generator=generator) * (copies / COPIES_SHAPE)
    reads = torch.zeros_like(molecules)
    reads[seen] = torch.poisson(rate, generator=generator).clamp(min=1).to(reads.dtype)
    return reads


class ScMMGPTRequestReader(nn.Module):
    """Text features to the probabilities (N, A) of what the text says: side by side a type, an organism, a tissue, a
    stage and a disease. The first value of the last three is that nothing is said."""

    def __init__(self, config: ScMMGPTCellDecoderConfig, hidden_size: int):
        super().__init__()
        width = config.state_hidden_size
        self.fact_sizes = config.fact_sizes
        self.norm = nn.LayerNorm(config.num_text_tokens * hidden_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.num_text_tokens * hidden_size, width)
        self.down = nn.Linear(width, sum(config.fact_sizes))

    def forward(self, features_NKD: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, those of one fact adding up to one."""
        logits = self.down(F.gelu(self.up(self.norm(features_NKD.flatten(1))))).float()
        return torch.cat([part.log_softmax(1) for part in logits.split(self.fact_sizes, 1)], 1)


class ScMMGPTFactorDecoder(ScMMGPTTower):
    """Text features to populations of cells.

    Parameters
    ----------
    config
        The decoder's sizes and its platforms.
    cell_config
        Of the encoder whose genes it knows.
    text_hidden_size
        Width of the LLM's states.

    Examples
    --------
    >>> cells = ScMMGPTCellConfig(vocab_size=50, hidden_size=16, num_attention_heads=2)
    >>> config = ScMMGPTCellDecoderConfig(kind="factors", num_text_tokens=2, num_attention_heads=2)
    >>> decoder = ScMMGPTFactorDecoder(config, cells, text_hidden_size=12).eval()
    >>> state = decoder.states(decoder.text_features(torch.rand(3, 5, 12), torch.ones(3, 5)))
    >>> state.shape == (3, config.num_states + config.num_populations)
    True
    >>> decoder.population(state[0], torch.arange(7)).log_share.shape
    torch.Size([7])
    """

    config: ScMMGPTCellDecoderConfig
    base_model_prefix = "cell_decoder"
    supports_gradient_checkpointing = False
    _no_split_modules = ["ScMMGPTFactorDecoder"]
    random_parameters = ("gene_states", "gene_factors", "kind_states", "type_states", "type_levels")
    own_genes: torch.Tensor
    constant_parameters = {
        "population_facts": 1.0,
        "population_states": 0.0,
        "own_shifts": 0.0,
        "gene_bias": 0.0,
        "gene_platforms": 0.0,
        "gene_dispersion": 0.0,
        "kind_spreads": 0.1,
        "kind_libraries": 0.0,
        "platform_libraries": 7.0,
        "platform_spreads": 0.5,
        "platform_molecules": 0.0,
    }

    def __init__(self, config: ScMMGPTCellDecoderConfig, cell_config: ScMMGPTCellConfig, text_hidden_size: int):
        super().__init__(config)
        vocab_size, platforms = cell_config.vocab_size, len(config.platforms)
        self.text_features = ScMMGPTTextFeatures(config, cell_config.hidden_size, text_hidden_size)
        self.request_reader = ScMMGPTRequestReader(config, cell_config.hidden_size)
        # The mean state of each type in each organism, anywhere, and what is left of it without the places, stages and
        # diseases that it was found in; for each known population which values of the facts it answers to, and its state.
        num_types, num_organisms = config.fact_sizes[:2]
        self.type_states = nn.Parameter(torch.empty(num_types, num_organisms, config.num_states))
        self.type_levels = nn.Parameter(torch.empty(num_types, num_organisms, config.num_states))
        self.population_facts = nn.Parameter(torch.empty(config.num_populations, sum(config.fact_sizes)))
        self.population_states = nn.Parameter(torch.empty(config.num_populations, config.num_states))
        # What the states of a population leave out of its leading genes: a marker of one type is no direction of all.
        self.register_buffer("own_genes", torch.zeros(config.num_populations, config.num_own_genes, dtype=torch.int32))
        self.own_shifts = nn.Parameter(torch.empty(config.num_populations, config.num_own_genes))
        self.gene_bias = nn.Parameter(torch.empty(vocab_size))
        self.gene_states = nn.Parameter(torch.empty(vocab_size, config.num_states))
        self.gene_factors = nn.Parameter(torch.empty(vocab_size, config.num_factors))
        # The log shift of its share on each platform.
        self.gene_platforms = nn.Parameter(torch.empty(vocab_size, platforms))
        self.gene_dispersion = nn.Parameter(torch.empty(vocab_size))
        # The counted kinds of cells: their states, roots of their factors' covariances, their library sizes.
        self.kind_states = nn.Parameter(torch.empty(config.num_kinds, config.num_states + config.num_populations))
        self.kind_spreads = nn.Parameter(torch.empty(config.num_kinds, config.num_factors, config.factor_rank))
        self.kind_libraries = nn.Parameter(torch.empty(config.num_kinds))
        self.platform_libraries = nn.Parameter(torch.empty(platforms))
        self.platform_spreads = nn.Parameter(torch.empty(platforms))
        # The logarithm of the molecules that a cell's reads are copies of; 0 where molecules are counted.
        self.platform_molecules = nn.Parameter(torch.empty(platforms))
        self.post_init()

    def states(self, features_NKD: torch.Tensor, guidance_scale: float = 1.0) -> torch.Tensor:
        """The states (N, S + K) that texts ask for: how far along each direction, and how much of each known population.

        Guidance moves them away from no text and leaves the spread alone.
        """
        states = self.composed(self.request_reader(features_NKD).exp())
        if guidance_scale == 1.0:
            return states
        none = self.composed(self.request_reader(self.text_features()).exp())
        return torch.lerp(none.expand_as(states), states, guidance_scale)

    def composed(self, facts_NA: torch.Tensor) -> torch.Tensor:
        """The states of what texts say: those of the type, or, where a place, stage or disease is named, of its cells there.

        Where that population is known it is as it was found. Else the type moves as the place moves other types, those most
        like it before all, and the genes that are the type's own are as in the type elsewhere.
        """
        known = self.population_facts.float().split(self.config.fact_sizes, 1)
        said = facts_NA.split(self.config.fact_sizes, 1)
        of_type, of_organism, *of_place = (facts @ population.T for facts, population in zip(said, known, strict=True))
        is_there = torch.stack(of_place).prod(0)
        organism = of_organism + OTHER_ORGANISM * (1 - of_organism)
        is_known = of_type * of_organism * is_there
        number = is_known.sum(1, keepdim=True)
        found = is_known @ self.population_states.float() / (number + 1e-6)
        moved = self._moved(said, known, is_there * organism)
        there = torch.lerp(moved, found, (KNOWN_SHARPNESS * (number - 0.5)).sigmoid())
        anywhere = torch.einsum("nt,no,tos->ns", said[0], said[1], self.type_states.float())
        is_anywhere = torch.stack([values[:, 0] for values in said[2:]]).prod(0)[:, None]
        own = of_type * (organism + OWN_WEIGHT * of_organism * is_there)
        own = own / (own.sum(1, keepdim=True) + NO_MATCH)
        return torch.cat([torch.lerp(there, anywhere, is_anywhere), own], 1)

    def _moved(self, said: Sequence[torch.Tensor], known: Sequence[torch.Tensor], is_there: torch.Tensor):
        """(N, S) types moved to a place as the types that are known there are, of which `is_there` (N, K) says how much."""
        levels = self.type_levels.float()
        # What its only place does to a type cannot be told from the type itself.
        times_seen = torch.einsum("kt,ko->to", known[0], known[1]).clamp(min=1)[..., None]
        kept = torch.lerp(levels, self.type_states.float(), times_seen**-2)
        level = torch.einsum("nt,no,tos->ns", said[0], said[1], kept)
        of_known = torch.einsum("kt,ko,tos->ks", known[0], known[1], levels)
        alike = F.normalize(level, dim=1, eps=1e-6) @ F.normalize(of_known, dim=1, eps=1e-6).T
        weights = is_there * (KIN_SHARPNESS * (alike - 1)).exp()
        shift = weights @ (self.population_states.float() - of_known) / (weights.sum(1, keepdim=True) + PLACE_PRIOR)
        return level + PLACE_STEP * shift

    def log_shares(self, states: torch.Tensor, gene_ids: torch.Tensor) -> torch.Tensor:
        """Log shares (N, G) of states on the first platform, but for a constant."""
        directions, populations = states.float().split([self.config.num_states, self.config.num_populations], 1)
        shifts = populations[:, :, None] * self.own_shifts.float()
        own = shifts.new_zeros(len(states), len(self.gene_bias))
        own = own.index_add(1, self.own_genes.flatten().long(), shifts.flatten(1))
        shared = self.gene_bias[gene_ids].float() + directions @ self.gene_states[gene_ids].float().T
        return shared + own[:, gene_ids]

    def kinship(self, state_S: torch.Tensor) -> torch.Tensor:
        """How much each counted kind (J,) says about cells of a state."""
        directions = self.kind_states[:, : self.config.num_states].float()
        cosine = F.cosine_similarity(state_S[None, : self.config.num_states].float(), directions, dim=1, eps=1e-6)
        return (KIND_SHARPNESS * cosine).softmax(0)

    @torch.no_grad()
    def population(self, state_S, gene_ids: torch.Tensor, platform: str | None = None, kinship=None) -> Population:
        """Cells of a state, on the CPU in float32; their factors vary as in their kin, or as `kinship` says."""
        place = self.platform_place(platform)
        kinship = self.kinship(state_S) if kinship is None else kinship
        roots = self.kind_spreads.float()
        covariance = torch.einsum("j,jrq,jsq->rs", kinship, roots, roots)
        root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(covariance), device=covariance.device))
        loadings = self.gene_factors[gene_ids].float() @ root
        log_share = (
            self.log_shares(state_S[None], gene_ids)[0]
            + self.gene_platforms[gene_ids, place].float()
            - loadings.square().sum(1)
            / 2  # the mean of cells, not the cell without factors, has the shares of the state
        )
        dispersion = self.gene_dispersion[gene_ids].float().clamp(*LOG_DISPERSION_RANGE).exp()
        library = self.platform_libraries[place].float() + kinship @ self.kind_libraries.float()
        spread, molecules = float(self.platform_spreads[place]), float(self.platform_molecules[place])
        counted = math.exp(molecules) if molecules else 0.0
        return Population(log_share.cpu(), loadings.cpu(), dispersion.cpu(), float(library), spread, counted)

    def sampler(self, state_S, gene_ids: torch.Tensor, platform: str | None = None, depth: float | None = None):
        """A function from generators to log shares (B, G), dispersions (G,), library sizes (B,) and copies of a molecule.

        Without a state each cell is of a counted kind of its own: the mixture that no text stands for.
        """
        population = None if state_S is None else self.population(state_S, gene_ids, platform)

        def draw(generators: Sequence[torch.Generator]):
            drawn = []
            for generator in generators:
                kind = population or self._any_kind(gene_ids, generator, platform)
                drawn.append(kind.draw(generator, depth))
            shares, libraries = (torch.stack(column) for column in zip(*drawn, strict=True))
            return shares, kind.dispersion, libraries, kind.copies(depth)

        return draw

    def _any_kind(self, gene_ids: torch.Tensor, generator: torch.Generator, platform: str | None) -> Population:
        kind = int(torch.randint(len(self.kind_states), (), generator=generator))
        kinship = F.one_hot(torch.tensor(kind), len(self.kind_states)).to(self.kind_states)
        return self.population(self.kind_states[kind], gene_ids, platform, kinship)

    @torch.no_grad()
    def states_of_cells(
        self, counts_BG: torch.Tensor, gene_ids: torch.Tensor, platform: str | None = None
    ) -> torch.Tensor:
        """The likeliest states (B, S + K) of real cells, measured on `gene_ids`: directions, and no known population."""
        place, counts = self.platform_place(platform), counts_BG.float()
        loadings, prior = self.gene_states[gene_ids].float(), self._prior_precision()
        base = (self.gene_bias[gene_ids] + self.gene_platforms[gene_ids, place]).float()
        softness = 1 / self.gene_dispersion[gene_ids].float().clamp(*LOG_DISPERSION_RANGE).exp()
        states = torch.zeros(len(counts), loadings.shape[1], device=counts.device)
        for _ in range(STATE_STEPS):
            share = (base + states @ loadings.T).softmax(1)
            mean = counts.sum(1, keepdim=True) * share + 1e-6
            weight = mean / (1 + softness * mean)
            pull = weight * ((counts - mean) / mean).clamp(max=LARGEST_RESIDUAL)
            # Shares add up to one: a state acts on a gene by how far its loading lies from the mean over the cell.
            center = share @ loadings
            gradient = pull @ loadings - pull.sum(1, keepdim=True) * center - states * prior
            crossed = (weight @ loadings)[:, :, None] * center[:, None]
            curvature = torch.einsum("bg,gr,gs->brs", weight, loadings, loadings) - crossed - crossed.mT
            curvature += weight.sum(1)[:, None, None] * center[:, :, None] * center[:, None] + torch.diag(prior)
            states = states + torch.linalg.solve(curvature, gradient)
        return F.pad(states, (0, self.config.num_populations))

    def _prior_precision(self) -> torch.Tensor:
        return 1 / (self.kind_states[:, : self.config.num_states].float().square().mean(0) + 1e-3)

    def platform_place(self, platform: str | None) -> int:
        platforms: Sequence[str] = self.config.platforms
        if platform is not None and platform not in platforms:
            raise ValueError(f"`platform` must be one of {', '.join(platforms)}, got {platform!r}.")
        return 0 if platform is None else platforms.index(platform)

    def losses(self, features_BKD, cell, target_gene_ids, target_counts, library_B, run_layers, gene_table):
        """A bound on the likelihood of counts, given their texts alone: factors are drawn. `cell` is not read."""
        if self.training:
            hidden_B = torch.rand(len(features_BKD), device=features_BKD.device) < self.config.text_dropout
            features_BKD = self.text_features.hide(features_BKD, hidden_B)
        states = self.states(features_BKD)
        directions, of_kinds = (values[:, : self.config.num_states] for values in (states, self.kind_states))
        similarity = F.normalize(directions, dim=1, eps=1e-6) @ F.normalize(of_kinds, dim=1, eps=1e-6).T
        kinship = (KIND_SHARPNESS * similarity).softmax(1)
        roots = torch.einsum("bj,jrs->brs", kinship, self.kind_spreads)
        factors = torch.einsum("brs,bs->br", roots, torch.randn_like(roots[:, 0]))
        log_share = (
            self.log_shares(states, target_gene_ids)
            + factors @ self.gene_factors[target_gene_ids].T
            + self.gene_platforms[target_gene_ids, 0]
        )
        dispersion = self.gene_dispersion[target_gene_ids].clamp(*LOG_DISPERSION_RANGE).exp()
        log_library = library_B.float().clamp(min=1).log()
        mean = (log_library[:, None] + log_share.clamp(-20, 5)).exp()
        reconstruction = negative_binomial_loss(target_counts, mean, dispersion)
        center = self.platform_libraries[0] + kinship @ self.kind_libraries
        deviation = self.platform_spreads[0].abs() + 0.05
        library = (((log_library - center) / deviation).square() / 2 + deviation.log()).mean()
        loss = reconstruction * target_counts.shape[1] ** 0.5 + 0.1 * library
        return ScMMGPTCellDecoderLoss(loss=loss, reconstruction_loss=reconstruction, library_loss=library)

    def resize(self, vocab_size: int) -> None:
        for name in BY_GENE:
            setattr(self, name, with_rows(getattr(self, name), vocab_size))


CellDecoder = ScMMGPTCellDecoder | ScMMGPTFactorDecoder


def cell_decoder_of(
    config: ScMMGPTCellDecoderConfig, cell_config: ScMMGPTCellConfig, text_hidden_size: int
) -> CellDecoder:
    """A new decoder of the kind that the configuration names."""
    kind = ScMMGPTFactorDecoder if config.kind == "factors" else ScMMGPTCellDecoder
    return kind(config, cell_config, text_hidden_size)


__all__ = ["CellDecoder", "Population", "ScMMGPTFactorDecoder", "amplified", "cell_decoder_of"]
