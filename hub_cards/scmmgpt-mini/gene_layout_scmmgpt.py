"""Blocks of cells -> token arrays: lengths, places, values; padded or end to end."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

from .cell_matrix_scmmgpt import CsrRows
from .gene_kernels_scmmgpt import count_expressed, order_genes
from .gene_vocabulary_scmmgpt import CLS_ID, PAD_ID

NOTHING = np.empty(0)


class CellBlock(NamedTuple):
    """Some cells as counts or linear values, and the vocabulary id of each column (-1 = none).

    `target` is the sum that cells are scaled to, `total` the sum of all entries, vocabulary or not, and
    `turned_back` the number of cells whose counts were recovered from normalised values.
    """

    rows: CsrRows
    id_of_column: np.ndarray
    target: float
    total: float
    turned_back: int

    @property
    def num_cells(self) -> int:
        """Cells in the block."""
        return len(self.rows.indptr) - 1


class Layout(NamedTuple):
    """How cells are written down: the settings of the gene tokenizer that concern order, value and length."""

    value_mode: Literal["log1p", "bins", "counts", "rank"]
    medians: np.ndarray
    num_bins: int
    max_genes: int
    add_cls: bool
    include_zero_genes: bool
    packed: bool = False
    sample_seed: int | None = None


def lay_out(blocks: list[CellBlock], layout: Layout) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Fresh token arrays of all cells, and the sum of each cell's vocabulary genes, block by block."""
    expressed = [count_expressed(*block.rows, block.id_of_column) for block in blocks]
    shown = [_shown_lengths(block, lengths, layout) for block, lengths in zip(blocks, expressed, strict=True)]
    widths = np.concatenate(shown) + layout.add_cls
    bounds = np.concatenate([[0], np.cumsum(widths)])
    width = max(int(widths.max()), 1)
    begins = bounds[:-1] if layout.packed else np.arange(len(widths)) * width
    size = int(bounds[-1]) if layout.packed else len(widths) * width
    # Zeros are the `<pad>` id, its value and its mask. Pages of a fresh array cost most when they are first touched, so
    # each array is made once, in its final type, and written where there are tokens alone.
    ids, values = np.zeros(size, np.int64), np.zeros(size, np.float32)
    totals, first = [], 0
    for block, lengths in zip(blocks, expressed, strict=True):
        starts = begins[first : first + block.num_cells]
        totals.append(_fill(block, starts, lengths, layout, ids, values))
        first += block.num_cells
    if layout.add_cls:
        ids[begins] = CLS_ID
    if layout.packed:
        if layout.value_mode == "log1p":
            np.log1p(values, out=values)
        if layout.value_mode == "rank":
            values[:] = np.arange(size) - np.repeat(begins, widths) + (not layout.add_cls)
        bounds = bounds.astype(np.int32)
        return {"gene_ids": ids[None], "gene_values": values[None], "cell_cu_seqlens": bounds}, totals
    padded: dict[str, np.ndarray] = {"gene_ids": ids.reshape(-1, width), "gene_values": values.reshape(-1, width)}
    ranks = np.arange(width, dtype=np.float32) + np.float32(not layout.add_cls)  # 0 for `<cls>`, 1 for the first gene
    mask = np.zeros((len(widths), width), np.int64)
    for of_cell, is_real, length in zip(padded["gene_values"], mask, widths.tolist(), strict=True):
        is_real[:length] = 1
        if layout.value_mode == "log1p":
            np.log1p(of_cell[:length], out=of_cell[:length])
        if layout.value_mode == "rank":
            of_cell[:length] = ranks[:length]
    return {**padded, "gene_mask": mask}, totals


def pad_tokens(gene_ids: np.ndarray, gene_values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> dict:
    """Tokens of cells that lie end to end, `lengths` of them each, one cell to a row, as wide as the longest."""
    lengths = np.asarray(lengths)
    is_real = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids, values = np.full(is_real.shape, PAD_ID, np.int64), np.zeros(is_real.shape, np.float32)
    ids[is_real], values[is_real] = gene_ids, gene_values
    return {"gene_ids": ids, "gene_values": values, "gene_mask": is_real.astype(np.int64)}


def padded_cells(packed: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Some of the packed cells, by number, as padded rows no wider than their longest."""
    begins, ends = packed["cell_cu_seqlens"][chosen], packed["cell_cu_seqlens"][chosen + 1]
    width = max(int((ends - begins).max(initial=0)), 1)
    tokens = {name: np.zeros((len(chosen), width), packed[name].dtype) for name in ("gene_ids", "gene_values")}
    mask = np.zeros((len(chosen), width), np.int64)
    for row, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        for name, values in tokens.items():
            values[row, : end - begin] = packed[name][0, begin:end]
        mask[row, : end - begin] = 1
    return {**tokens, "gene_mask": mask}


def _shown_lengths(block: CellBlock, expressed: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.include_zero_genes:
        measured = len(np.unique(block.id_of_column[block.id_of_column >= 0]))
        return np.full(block.num_cells, min(measured, layout.max_genes))
    return np.minimum(expressed, layout.max_genes)


def _fill(
    block: CellBlock, begins: np.ndarray, expressed: np.ndarray, layout: Layout, ids: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Write one block's cells into the flat arrays; return the sum of each cell's vocabulary genes."""
    starts = begins + layout.add_cls
    lengths = np.minimum(expressed, layout.max_genes)
    quantiles = np.linspace(0, 1, layout.num_bins - 1) if layout.value_mode == "bins" else NOTHING
    target = block.target if layout.value_mode == "log1p" else 0.0
    cells = *block.rows, block.id_of_column, layout.medians, quantiles, float(target)
    if layout.sample_seed is None or (lengths == expressed).all():
        totals = order_genes(*cells, starts, lengths, ids, values)
    else:
        bounds = np.concatenate([[0], np.cumsum(expressed)])
        all_ids, all_values = np.empty(bounds[-1], np.int64), np.empty(bounds[-1], np.float32)
        totals = order_genes(*cells, bounds[:-1], expressed, all_ids, all_values)
        random = np.random.default_rng(layout.sample_seed)
        for cell, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            chosen = bounds[cell] + np.sort(random.permutation(expressed[cell])[:length])
            ids[start : start + length], values[start : start + length] = all_ids[chosen], all_values[chosen]
    if layout.include_zero_genes:
        _append_zero_genes(block, starts, lengths, layout, ids)
    return totals


def _append_zero_genes(
    block: CellBlock, starts: np.ndarray, lengths: np.ndarray, layout: Layout, ids: np.ndarray
) -> None:
    measured = np.unique(block.id_of_column[block.id_of_column >= 0])
    room = min(len(measured), layout.max_genes)
    for start, length in zip(starts, lengths, strict=True):
        if length < room:
            zeros = np.setdiff1d(measured, ids[start : start + length], assume_unique=True)
            ids[start + length : start + room] = zeros[: room - length]


def sum_duplicates(rows: CsrRows, id_of_column: np.ndarray, num_ids: int) -> tuple[CsrRows, np.ndarray]:
    """Add up columns that are one gene; the columns of the result are vocabulary ids."""
    known = np.flatnonzero(id_of_column >= 0)
    shape = len(id_of_column), num_ids
    place = sparse.csr_matrix((np.ones(len(known), np.float32), (known, id_of_column[known])), shape=shape)
    merged = rows.matrix(shape[0]) @ place
    columns = np.arange(num_ids, dtype=np.int32)
    return CsrRows(merged.indptr.astype(np.int64), merged.indices.astype(np.int32), merged.data), columns
