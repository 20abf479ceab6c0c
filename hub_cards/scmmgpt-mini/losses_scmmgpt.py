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
"""Stage-1 objectives: contrast with negatives from every process, hard negatives, who may be a negative of whom."""

# Shape letters: B pairs of this process, N pairs of all processes, D embedding size.

import torch
from torch import distributed
from torch.nn import functional as F

# Sampling weight of an easy negative beside a hard one, so that every allowed pair can be drawn.
NEGATIVE_FLOOR = 1e-4


class _GatherWithGradient(torch.autograd.Function):
    """all_gather whose backward returns to each process the gradient of its own rows, summed over all processes."""

    @staticmethod
    def forward(ctx, rows):
        gathered = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


def _world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, with gradients where the rows have them."""
    if _world()[1] == 1:
        return rows
    return _GatherWithGradient.apply(rows)


def lineage_overlap(lineage_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare ontology terms by their ancestors: (related, Jaccard similarity), both N x N.

    A row holds a term and then its ancestors, padded with -1. Two terms are related when one is the other or its
    ancestor: "T cell" is true of a CD4 T cell, and so never its negative.
    """
    terms, positions = lineage_NK.unique(return_inverse=True)
    member = torch.zeros(len(lineage_NK), len(terms), device=lineage_NK.device).scatter_(1, positions, 1.0)
    member[:, terms < 0] = 0.0
    shared = member @ member.T
    sizes = member.sum(1)
    jaccard = shared / (sizes[:, None] + sizes[None, :] - shared).clamp(min=1)
    is_above = member[:, positions[:, 0]] > 0  # the column's own term is among the row's
    known = lineage_NK[:, 0] >= 0
    return (is_above | is_above.T) & known[:, None] & known[None, :], jaccard


def relations(num_pairs: int, text_groups, text_lineage, device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which pairs may not be negatives of each other, and how similar the others' texts are (None: not known)."""
    same = torch.eye(num_pairs, dtype=torch.bool, device=device)
    if text_groups is not None:
        same = same | (text_groups[:, None] == text_groups[None, :])
    if text_lineage is None:
        return same, None
    related, similarity = lineage_overlap(text_lineage)
    return same | related, similarity


def scaled_similarity(first: torch.Tensor, second: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scaled cosines of unit vectors, (rows of first, rows of second), in float32 under autocast too.

    A cosine of bfloat16 has 8 bits, and the scale may be 100: what would be left of a difference is noise.
    """
    with torch.autocast(first.device.type, enabled=False):
        return scale * first.float() @ second.float().T


def contrast_loss(
    cell_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    scale: torch.Tensor,
    text_groups: torch.Tensor | None = None,
    text_lineage: torch.Tensor | None = None,
    target_temperature: float = 0.1,
) -> torch.Tensor:
    """Symmetric cross-entropy of cells against texts; negatives come from every process.

    Cells that share a text, or whose types are ancestors of each other, are left out of the sum, not pushed apart.
    With lineages the remaining target mass is spread by similarity: a sibling type is a milder error.
    """
    rank, world = _world()
    num_pairs = len(cell_embeds)
    rows = torch.arange(num_pairs, device=cell_embeds.device) + rank * num_pairs
    labels, lineage = (known if known is None else gather(known) for known in (text_groups, text_lineage))
    excluded, similarity = relations(num_pairs * world, labels, lineage, cell_embeds.device)
    excluded, own = excluded[rows], torch.zeros(num_pairs, num_pairs * world, device=cell_embeds.device)
    own[torch.arange(num_pairs), rows] = 1.0
    hidden = excluded & (own == 0)
    targets = own
    if similarity is not None:
        closeness = torch.exp((similarity[rows] - 1) / target_temperature).masked_fill(hidden, 0.0)
        targets = torch.where(own > 0, 1.0, closeness)
        targets = targets / targets.sum(1, keepdim=True)
    losses = []
    for own_embeds, other_embeds in ((cell_embeds, text_embeds), (text_embeds, cell_embeds)):
        logits = scaled_similarity(own_embeds, gather(other_embeds), scale)
        logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
        losses.append(-(targets * F.log_softmax(logits, dim=1)).masked_fill(hidden, 0.0).sum(1).mean())
    return torch.stack(losses).mean()


@torch.no_grad()
def sample_negatives(
    similarity_BB: torch.Tensor, excluded_BB: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw for each row another row, likelier the more alike; also say which rows have any allowed negative."""
    weights = (similarity_BB.softmax(1) + NEGATIVE_FLOOR).masked_fill(excluded_BB, 0.0)
    has_negative = weights.sum(1) > 0
    weights[~has_negative] = 1.0
    return torch.multinomial(weights, 1, generator=generator).squeeze(1), has_negative


def caption_loss(logits_BSV: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy over the real tokens of the text; 0 when no text has two tokens."""
    # Both must be real: with padding in front, the last pad token is not to predict the first word.
    is_pair = (attention_mask[:, 1:] * attention_mask[:, :-1]).bool()
    labels = input_ids[:, 1:].masked_fill(~is_pair, -100)
    total = F.cross_entropy(logits_BSV[:, :-1].float().flatten(0, 1), labels.flatten(), reduction="sum")
    return total / is_pair.sum().clamp(min=1)


__all__ = [
    "caption_loss",
    "contrast_loss",
    "gather",
    "lineage_overlap",
    "relations",
    "sample_negatives",
    "scaled_similarity",
]
