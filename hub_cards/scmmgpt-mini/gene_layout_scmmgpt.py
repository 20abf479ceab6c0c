"""Blocks of cells -> token arrays: lengths, places, values; padded or end to end."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

from .cell_matrix_scmmgpt import CsrRows
from .gene_kernels_scmmgpt import count_expressed, order_genes, write_rows
from .gene_vocabulary_scmmgpt import CLS_ID

NOTHING = np.empty(0)
CELLS_AT_ONCE = 256  # their tokens stay in the cache until they are in their rows


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

    def cells(self, chosen: slice) -> "CellBlock":
        """Some of them, one after another; the entries stay where they are."""
        return self._replace(rows=self.rows._replace(indptr=self.rows.indptr[chosen.start : chosen.stop + 1]))


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
    lengths = [of_block + layout.add_cls for of_block in shown]
    return (_packed if layout.packed else _padded)(blocks, expressed, lengths, layout)


def pad_tokens(gene_ids: np.ndarray, gene_values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> dict:
    """Tokens of cells that lie end to end, `lengths` of them each, one cell to a row, as wide as the longest."""
    lengths = np.asarray(lengths, np.int64)
    padded = _empty_rows(lengths)
    ids, values = np.asarray(gene_ids, np.int64), np.asarray(gene_values, np.float32)
    write_rows(ids, values, _bounds(lengths)[:-1], lengths, *padded.values())
    return padded


def padded_cells(packed: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Some of the packed cells, by number, as padded rows no wider than their longest."""
    bounds = packed["cell_cu_seqlens"].astype(np.int64)
    begins, lengths = bounds[chosen], bounds[chosen + 1] - bounds[chosen]
    padded = _empty_rows(lengths)
    write_rows(packed["gene_ids"][0], packed["gene_values"][0], begins, lengths, *padded.values())
    return padded


def _packed(
    blocks: list[CellBlock], expressed: list[np.ndarray], lengths: list[np.ndarray], layout: Layout
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    bounds = _bounds(np.concatenate(lengths))
    ids, values = np.empty(bounds[-1], np.int64), np.empty(bounds[-1], np.float32)
    totals, first = [], 0
    for block, of_block in zip(blocks, expressed, strict=True):
        here = bounds[first : first + block.num_cells + 1]
        tokens = slice(here[0], here[-1])
        chance = _chance(of_block, layout)
        totals.append(_write(block, of_block, here - here[0], layout, chance, ids[tokens], values[tokens]))
        first += block.num_cells
    features = {"gene_ids": ids[None], "gene_values": values[None], "cell_cu_seqlens": bounds.astype(np.int32)}
    return features, totals


def _padded(
    blocks: list[CellBlock], expressed: list[np.ndarray], lengths: list[np.ndarray], layout: Layout
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Some cells at a time are written end to end, where they stay in the cache, and go from there to their rows.

    Pages of a fresh array cost most when they are first touched, so that rows are written where there are tokens alone.
    """
    padded = _empty_rows(np.concatenate(lengths))
    most = padded["gene_ids"][:CELLS_AT_ONCE].size
    all_ids, all_values = np.empty(most, np.int64), np.empty(most, np.float32)
    totals, row = [], 0
    for block, of_block, wanted in zip(blocks, expressed, lengths, strict=True):
        chance = _chance(of_block, layout)
        for start in range(0, block.num_cells, CELLS_AT_ONCE):
            part = slice(start, min(start + CELLS_AT_ONCE, block.num_cells))
            bounds = _bounds(wanted[part])
            ids, values = all_ids[: bounds[-1]], all_values[: bounds[-1]]
            totals.append(_write(block.cells(part), of_block[part], bounds, layout, chance, ids, values))
            rows = (array[row + part.start : row + part.stop] for array in padded.values())
            write_rows(ids, values, bounds[:-1], wanted[part], *rows)
        row += block.num_cells
    return padded, np.split(np.concatenate(totals), np.cumsum([block.num_cells for block in blocks])[:-1])


def _empty_rows(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Zeros are the `<pad>` id, its value and its mask."""
    shape = len(lengths), max(int(lengths.max(initial=0)), 1)
    return {
        "gene_ids": np.zeros(shape, np.int64),
        "gene_values": np.zeros(shape, np.float32),
        "gene_mask": np.zeros(shape, np.int64),
    }


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _shown_lengths(block: CellBlock, expressed: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.include_zero_genes:
        measured = len(np.unique(block.id_of_column[block.id_of_column >= 0]))
        return np.full(block.num_cells, min(measured, layout.max_genes))
    return np.minimum(expressed, layout.max_genes)


def _chance(expressed: np.ndarray, layout: Layout) -> np.random.Generator | None:
    """What chooses genes of the cells of one block; None if all genes are kept, or the first ones."""
    is_needed = layout.sample_seed is not None and (expressed > layout.max_genes).any()
    return np.random.default_rng(layout.sample_seed) if is_needed else None


def _write(
    block: CellBlock,
    expressed: np.ndarray,
    bounds: np.ndarray,
    layout: Layout,
    chance: np.random.Generator | None,
    ids: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """Write cells end to end, every token; return the sum of each cell's vocabulary genes."""
    begins = bounds[:-1]
    totals = _write_genes(block, expressed, begins + layout.add_cls, layout, chance, ids, values)
    if layout.add_cls:
        ids[begins], values[begins] = CLS_ID, 0
    if layout.value_mode == "log1p":
        np.log1p(values, out=values)
    if layout.value_mode == "rank":  # 0 for `<cls>`, 1 for the first gene
        values[:] = np.arange(bounds[-1]) - np.repeat(begins, np.diff(bounds)) + (not layout.add_cls)
    return totals


def _write_genes(
    block: CellBlock,
    expressed: np.ndarray,
    starts: np.ndarray,
    layout: Layout,
    chance: np.random.Generator | None,
    ids: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    lengths = np.minimum(expressed, layout.max_genes)
    quantiles = np.linspace(0, 1, layout.num_bins - 1) if layout.value_mode == "bins" else NOTHING
    target = block.target if layout.value_mode == "log1p" else 0.0
    cells = *block.rows, block.id_of_column, layout.medians, quantiles, float(target)
    if chance is None:
        totals = order_genes(*cells, starts, lengths, ids, values)
    else:
        bounds = _bounds(expressed)
        all_ids, all_values = np.empty(bounds[-1], np.int64), np.empty(bounds[-1], np.float32)
        totals = order_genes(*cells, bounds[:-1], expressed, all_ids, all_values)
        for cell, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            chosen = bounds[cell] + np.sort(chance.permutation(expressed[cell])[:length])
            ids[start : start + length], values[start : start + length] = all_ids[chosen], all_values[chosen]
    if layout.include_zero_genes:
        _append_zero_genes(block, starts, lengths, layout, ids, values)
    return totals


def _append_zero_genes(
    block: CellBlock,
    starts: np.ndarray,
    lengths: np.ndarray,
    layout: Layout,
    ids: np.ndarray,
    values: np.ndarray,
) -> None:
    measured = np.unique(block.id_of_column[block.id_of_column >= 0])
    room = min(len(measured), layout.max_genes)
    for start, length in zip(starts, lengths, strict=True):
        if length < room:
            zeros = np.setdiff1d(measured, ids[start : start + length], assume_unique=True)
            rest = slice(start + length, start + room)
            ids[rest], values[rest] = zeros[: room - length], 0


def sum_duplicates(rows: CsrRows, id_of_column: np.ndarray, num_ids: int) -> tuple[CsrRows, np.ndarray]:
    """Add up columns that are one gene; the columns of the result are vocabulary ids."""
    known = np.flatnonzero(id_of_column >= 0)
    shape = len(id_of_column), num_ids
    place = sparse.csr_matrix((np.ones(len(known), np.float32), (known, id_of_column[known])), shape=shape)
    merged = rows.matrix(shape[0]) @ place
    columns = np.arange(num_ids, dtype=np.int32)
    return CsrRows(merged.indptr.astype(np.int64), merged.indices.astype(np.int32), merged.data), columns
