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
"""Text to cell, the part that a model with an LLM and a cell decoder shares: its loss, and `generate_cells`."""

# Shape letters: N texts, S text tokens, K text features, D cell hidden size.

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel

from .configuration_scmmgpt import ScMMGPTConfig
from .modeling_cell_decoder import ScMMGPTCellOutput, sample_counts
from .modeling_cell_encoder import check_cells, unpack_cells
from .modeling_factor_decoder import ScMMGPTFactorDecoder, amplified

GENES_PER_STEP = 4096  # genes decoded at once: bounds the memory of `generate_cells`


class CellsAndLanguage(Protocol):
    """What the towers of a model that generates cells must have."""

    cell_encoder: PreTrainedModel
    language_model: PreTrainedModel

    def run_cell_layers(self, states: torch.Tensor) -> torch.Tensor: ...


class ScMMGPTCellGenerationMixin:
    config: ScMMGPTConfig
    model: CellsAndLanguage
    cell_decoder: Any  # a CellDecoder; which methods it has is for its kind to say

    def _gene_table(self) -> nn.Module:
        return self.model.cell_encoder.get_input_embeddings()

    def text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the cell decoder reads off texts (N, K, cell hidden). A text without words has the features of no text.

        A tokenizer may give the empty text a first or last token of its own: they are not words.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if input_ids.shape[1] == 0:
            input_ids, attention_mask = F.pad(input_ids, (0, 1)), F.pad(attention_mask, (0, 1))
        has_words = self._words(input_ids, attention_mask).any(1, keepdim=True)
        visible = torch.where(has_words, attention_mask, 1)
        states = self.model.language_model(input_ids=input_ids, attention_mask=visible, use_cache=False)
        return self.cell_decoder.text_features(states.last_hidden_state, attention_mask * has_words)

    def _words(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Real tokens that are not the LLM's special ones, (N, S) bool."""
        config, special = self.config.text_config, set()
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(config, name, None)
            special |= set(token if isinstance(token, list) else [] if token is None else [token])
        special_ids = torch.tensor(sorted(special), dtype=input_ids.dtype, device=input_ids.device)
        return attention_mask.bool() & ~torch.isin(input_ids, special_ids)

    def cell_latents(self, gene_ids, gene_values, gene_mask=None) -> torch.Tensor:
        """The latents (B, Z) of real cells: what the flow learns to draw for their texts."""
        values = self._values_of_genes(gene_ids, gene_values, gene_mask)
        return self.cell_decoder.latents(self._gene_table(), gene_ids, values)

    def _values_of_genes(self, gene_ids, gene_values, gene_mask) -> torch.Tensor:
        """Values without those of padding and `<cls>`."""
        if gene_mask is not None:
            gene_values = gene_values * gene_mask
        cls_token_id = getattr(self.config.cell_config, "cls_token_id", None)
        return gene_values if cls_token_id is None else gene_values.masked_fill(gene_ids == cls_token_id, 0.0)

    def text_states(self, input_ids, attention_mask=None, guidance_scale: float = 1.0) -> torch.Tensor:
        """The states (N, S + K) of texts, of a decoder with factors: directions, and known populations."""
        return self._factors().states(self.text_features(input_ids, attention_mask), guidance_scale)

    def cell_states(
        self, counts_BG: torch.Tensor, gene_ids: torch.Tensor, platform: str | None = None
    ) -> torch.Tensor:
        """The states (B, S + K) of real cells, whose raw counts of `gene_ids` (G,) are given."""
        return self._factors().states_of_cells(counts_BG, gene_ids, platform)

    def _factors(self) -> ScMMGPTFactorDecoder:
        if not isinstance(self.cell_decoder, ScMMGPTFactorDecoder):
            raise ValueError("States are of cell decoders with factors; this model's has none.")
        return self.cell_decoder

    def cell_generation_loss(
        self, cells, cell_prompt_ids, cell_prompt_mask, target_gene_ids, target_counts, target_library_size=None
    ):
        """Losses of text -> cell. `cells` = (gene_ids, gene_values, gene_mask, cell_cu_seqlens) of the same cells."""
        gene_ids, gene_values, gene_mask, cell_cu_seqlens = cells
        check_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens, self.config.cell_config.vocab_size)
        if cell_cu_seqlens is not None:
            gene_values, _ = unpack_cells(gene_values, cell_cu_seqlens)
            gene_ids, gene_mask = unpack_cells(gene_ids, cell_cu_seqlens)
        cell = gene_ids, self._values_of_genes(gene_ids, gene_values, gene_mask)
        if len(cell_prompt_ids) != len(gene_ids) or len(target_counts) != len(gene_ids):
            raise ValueError(
                f"Text -> cell needs one text and one row of counts per cell: got {len(cell_prompt_ids)} texts, "
                f"{len(target_counts)} rows and {len(gene_ids)} cells."
            )
        features = self.text_features(cell_prompt_ids, cell_prompt_mask)
        library = target_counts.sum(1) if target_library_size is None else target_library_size
        return self.cell_decoder.losses(
            features, cell, target_gene_ids, target_counts, library, self.model.run_cell_layers, self._gene_table()
        )

    @torch.no_grad()
    def stream_cells(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        gene_ids: torch.Tensor | None = None,
        num_cells: int = 1,
        seed: int = 0,
        guidance_scale: float | None = None,
        library_size: float | None = None,
        batch_size: int = 64,
        **asked,
    ) -> Iterator[ScMMGPTCellOutput]:
        """Like `generate_cells`, a batch at a time: memory stays flat however many cells are asked for."""
        sizes = {"num_cells": num_cells, "batch_size": batch_size, "library_size": library_size}
        for name, value in {**sizes, "depth": asked.get("depth")}.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        genes = self._genes()
        wanted = genes if gene_ids is None else gene_ids.cpu()
        columns = self._columns(wanted, genes)
        scale = self.config.cell_decoder_config.guidance_scale if guidance_scale is None else guidance_scale
        features = self.text_features(input_ids, attention_mask)
        for text, first_seed in enumerate(_first_seeds(seed, input_ids, attention_mask)):
            draw = self._distributions(features[text], genes, scale, text, **asked)
            for start in range(0, num_cells, batch_size):
                # One generator per cell: the same cell comes out whatever the batch size.
                cells = range(start, min(start + batch_size, num_cells))
                generators = [torch.Generator().manual_seed((first_seed + cell) % 2**32) for cell in cells]
                log_share, dispersion, library, copies = draw(generators)
                if library_size is not None:
                    library = torch.full_like(library, library_size)
                mean = (log_share[:, columns] + library.log()[:, None]).exp() / copies
                counts = [
                    amplified(sample_counts(mean[i], dispersion[columns], generator), copies, generator)
                    for i, generator in enumerate(generators)
                ]
                yield ScMMGPTCellOutput(counts=torch.stack(counts), gene_ids=wanted, library_size=library)

    def _distributions(
        self,
        features_KD: torch.Tensor,
        genes: torch.Tensor,
        guidance_scale: float,
        text: int,
        *,
        depth: float | None = None,
        platform: str | None = None,
        states: torch.Tensor | None = None,
    ) -> Callable:
        """For one text: a function from generators to log shares, dispersions, library sizes and copies of as many cells."""
        decoder = self.cell_decoder
        if isinstance(decoder, ScMMGPTFactorDecoder):
            state = decoder.states(features_KD[None], guidance_scale)[0] if states is None else states[text]
            # The mixture of all cells has no state of its own: each cell takes that of a counted kind.
            is_mixture = states is None and torch.equal(features_KD, decoder.text_features.no_text)
            return decoder.sampler(None if is_mixture else state, genes, platform, depth)
        if platform is not None or states is not None:
            raise ValueError(
                "This model's cell decoder knows no platforms and no states: only a text can be asked for."
            )
        return lambda generators: self._draw_distribution(features_KD, generators, genes, guidance_scale, depth)

    def _genes(self) -> torch.Tensor:
        """Vocabulary ids that stand for genes: all but the special tokens."""
        config = self.config.cell_config
        special = [getattr(config, name, None) for name in ("pad_token_id", "cls_token_id", "mask_token_id")]
        ids = torch.arange(config.vocab_size)
        return ids[~torch.isin(ids, torch.tensor([token for token in special if token is not None]))]

    def _columns(self, wanted: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
        """Places of the wanted genes among all genes."""
        unknown = wanted[~torch.isin(wanted, genes)]
        if wanted.ndim != 1 or not len(wanted) or len(unknown):
            raise ValueError(
                f"`gene_ids` must be a vector of the vocabulary's {len(genes)} genes, got a tensor of shape "
                f"{tuple(wanted.shape)}{f' that holds {unknown[0]}, which is no gene' if len(unknown) else ''}."
            )
        return torch.searchsorted(genes, wanted)

    def _draw_distribution(self, features_KD, generators, genes, guidance_scale, depth):
        """For one text and as many cells as generators: log shares, dispersions, library sizes and copies of a molecule, on the CPU."""
        decoder, latent_size = self.cell_decoder, self.config.cell_decoder_config.latent_size
        features = features_KD.expand(len(generators), -1, -1)
        noise = torch.stack([torch.randn(latent_size + 1, generator=generator) for generator in generators])
        noise = noise.to(features.device, features.dtype)
        latent = decoder.sample_latent(features, noise[:, 1:], guidance_scale)
        center, deviation = decoder.library_distribution(features)
        if depth is not None:
            center = torch.full_like(center, math.log(depth))
        library = (center + deviation * noise[:, 0].float()).exp().clamp(min=1).cpu()
        log_share, dispersion = [], []
        for chunk in genes.to(features.device).split(GENES_PER_STEP):
            decoded = decoder.decode(latent, features, self.model.run_cell_layers, self._gene_table(), chunk)
            log_share.append(decoded[0].cpu())
            dispersion.append(decoded[1].cpu())
        return torch.cat(log_share, dim=1).log_softmax(1), torch.cat(dispersion), library, 1.0

    def generate_cells(self, input_ids: torch.Tensor, attention_mask=None, **kwargs) -> ScMMGPTCellOutput:
        """Draw `num_cells` cells for each text; a text's cells are consecutive rows.

        Parameters
        ----------
        input_ids, attention_mask
            Texts as `processor(text=...)` gives them. An empty text gives the mixture of all cells.
        **kwargs
            gene_ids
                Vocabulary ids of the genes wanted, all when None.
            num_cells, seed
                Same seed, same cells, whatever `batch_size`.
            guidance_scale
                Classifier-free guidance; 1: off, above 1: follows the text more strictly.
            library_size
                Total counts of every cell; None = drawn from what the text implies.
            depth
                Median of these totals, which differ between cells as they did in counted ones.
            platform
                One of `config.cell_decoder_config.platforms`.
            states
                (texts, `num_states + num_populations`) in the place of the texts' own: what `cell_states` and
                `text_states` give, or a mean of such.
        """
        batches = list(self.stream_cells(input_ids, attention_mask, **kwargs))
        return ScMMGPTCellOutput(
            counts=torch.cat([batch["counts"] for batch in batches]),
            gene_ids=batches[0].gene_ids,
            library_size=torch.cat([batch["library_size"] for batch in batches]),
        )


def _first_seeds(seed: int, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[int]:
    """Where each text's random numbers start: by its words, not by its place among other texts.

    A text that comes again continues elsewhere, so that its cells are new ones. 32 bits are all that torch's CPU
    generator takes; cells count up from the start, so those of one text never meet.
    """
    seen: Counter = Counter()
    seeds = []
    for row, ids in enumerate(input_ids.cpu()):
        words = tuple(ids.tolist() if attention_mask is None else ids[attention_mask[row].cpu().bool()].tolist())
        key = repr((seed, words, seen[words])).encode()
        seeds.append(int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little"))
        seen[words] += 1
    return seeds


__all__ = ["ScMMGPTCellGenerationMixin"]
