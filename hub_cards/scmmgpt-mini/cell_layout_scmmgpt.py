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
"""Cells as tensors: padded rows or one packed row; and which tensors are no cells."""

import torch


def unpack_cells(packed_1T: torch.Tensor, cell_cu_seqlens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay packed cells out as padded rows; also return the mask, 1 = real."""
    lengths = cell_cu_seqlens.diff()
    mask_BL = torch.arange(int(lengths.max()), device=packed_1T.device) < lengths[:, None]
    padded = packed_1T.new_zeros(*mask_BL.shape, *packed_1T.shape[2:])
    padded[mask_BL] = packed_1T[0]
    return padded, mask_BL.long()


def check_cells(
    gene_ids: torch.Tensor,
    gene_values: torch.Tensor,
    gene_mask: torch.Tensor | None,
    cell_cu_seqlens: torch.Tensor | None,
    vocab_size: int,
):
    """Refuse what would otherwise become a silent wrong answer. Not traced by torch.compile."""
    if torch.compiler.is_compiling():
        return
    if gene_ids.numel() and (gene_ids.max() >= vocab_size or gene_ids.min() < 0):
        raise ValueError(
            f"Gene ids go from {int(gene_ids.min())} to {int(gene_ids.max())}, but this model's vocabulary has "
            f"{vocab_size} entries. The cells were tokenised with another model's processor."
        )
    if not torch.isfinite(gene_values).all():
        row = int((~torch.isfinite(gene_values)).nonzero()[0, 0])
        raise ValueError(
            f"`gene_values` holds NaN or infinity, first in row {row}. Clean the matrix before tokenising."
        )
    if gene_mask is not None and not gene_mask.any(-1).all():
        row = int((~gene_mask.bool().any(-1)).nonzero()[0, 0])
        raise ValueError(f"`gene_mask` hides every gene of cell {row}: an empty cell still needs its `<cls>` token.")
    if cell_cu_seqlens is not None:
        check_bounds(cell_cu_seqlens, gene_ids)


def check_bounds(cell_cu_seqlens: torch.Tensor, gene_ids: torch.Tensor):
    end, total = int(cell_cu_seqlens[-1]), gene_ids.shape[1]
    if gene_ids.shape[0] != 1 or end != total:
        raise ValueError(
            f"`cell_cu_seqlens` ends at {end}, but `gene_ids` holds {gene_ids.shape[0]} x {total} genes. Packed cells "
            "must be concatenated in one row."
        )
    if (cell_cu_seqlens.diff() < 1).any():
        row = int((cell_cu_seqlens.diff() < 1).nonzero()[0, 0])
        raise ValueError(f"`cell_cu_seqlens` gives cell {row} no token: an empty cell still needs its `<cls>` token.")


__all__ = ["check_cells", "unpack_cells"]
