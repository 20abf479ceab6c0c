"""Cells in any container: which matrices they bring, and which of them to read. Nothing is changed."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from .cell_files_scmmgpt import (
    antibodies_of_modality,
    log_base,
    note_matrices_of_obsm,
    note_other_modalities,
    on_disk,
    open_path,
    rna_modality,
)
from .cell_matrix_scmmgpt import Cells, CsrRows, Matrix, in_memory
from .errors_scmmgpt import UserError
from .features_scmmgpt import ANTIBODY, kind_of_type, only_genes
from .matrix_state_scmmgpt import MatrixState, count_bad_values, linear_values, recognise, recover_counts

SAMPLE_BLOCKS, SAMPLE_ROWS = 4, 32
# Whole numbers too, but not the counts of whole cells.
OTHER_INTEGER_LAYERS = ("unspliced", "ambiguous", "spanning", "rank", "ranks", "mask")
COUNT_LAYERS = ("counts", "raw_counts", "count", "raw", "umi", "umis", "umi_counts", "rawcounts", "soupx_counts")
KIND_ORDER = ("counts", "log1p", "normalised")


class ChosenMatrix(NamedTuple):
    """The matrix to read, what it holds, and what was found in those looked at."""

    matrix: Matrix
    state: MatrixState
    looked_at: dict[str, str]

    def linear_rows(self, start: int, stop: int) -> tuple[CsrRows, int]:
        """Rows as counts or linear expression values, checked, with the number of cells turned back into counts."""
        rows = self.matrix.rows(start, stop)
        data = rows.data[rows.entries]
        if count_bad_values(data):
            self._refuse_bad_values(start)
        if self.state.kind in ("counts", "empty", "scaled"):
            return CsrRows(rows.indptr, rows.indices, rows.data.astype(np.float32, copy=False)), 0
        linear = linear_values(data, self.state)
        indptr, indices = rows.indptr - rows.indptr[0], rows.indices[rows.entries]
        num_recovered = 0
        if self.state.exact:
            nonzero = sparse.csr_matrix(
                (linear, indices, indptr), shape=(stop - start, self.matrix.shape[1]), copy=True
            )
            nonzero.eliminate_zeros()
            linear, found = recover_counts(nonzero.indptr, nonzero.data)
            indptr, indices, num_recovered = nonzero.indptr, nonzero.indices, int(found.sum())
        return CsrRows(indptr, indices, linear.astype(np.float32)), num_recovered

    def _refuse_bad_values(self, first_row: int) -> None:
        totals: dict[str, int] = {}
        place = ""
        for start, stop in self.matrix.blocks():
            rows = self.matrix.rows(start, stop)
            data = rows.data[rows.entries]
            for name, count in count_bad_values(data).items():
                totals[name] = totals.get(name, 0) + count
            if not place and totals:
                entry = int(np.flatnonzero(~np.isfinite(data) | (data < 0))[0])
                cell = start + int(np.searchsorted(rows.indptr[1:] - rows.indptr[0], entry, side="right"))
                gene = self.matrix.var_names[int(rows.indices[rows.entries][entry])]
                place = f"first in cell {cell}, gene {str(gene)!r}"
        found = ", ".join(f"{count} {name}" for name, count in totals.items())
        raise UserError(
            f"`{self.matrix.name}` holds {found} value{'s' if sum(totals.values()) > 1 else ''} ({place}). "
            "Expression values must be finite and not negative: fix them, put another matrix into X, or name one with "
            "`layer=` where a call takes it."
        )


def open_cells(cells: Any) -> Cells:
    """Everything about the cells that is known before any value is read.

    They may be an AnnData (in memory, backed or a view), a MuData, a path to h5ad, zarr, h5mu or to a file or
    folder of 10x, a table of cells x genes, or a pair (matrix, gene names). Columns that are no genes are set aside.
    """
    opened = _opened(cells)
    try:
        return only_genes(opened)
    except UserError:
        opened.close()
        raise


def _opened(cells: Any) -> Cells:
    if isinstance(cells, (str, os.PathLike)):
        return open_path(os.fspath(cells))
    if hasattr(cells, "mod") and hasattr(cells, "obs_names"):  # MuData; a pandas table has a method `mod`
        modality = rna_modality(cells.mod)
        opened = _opened(cells.mod[modality])
        opened.modality = modality
        others = {name: (part.obs_names, part.var_names) for name, part in cells.mod.items() if name != modality}
        note_other_modalities(opened, cells.mod[modality].obs_names, others)
        for name in others:
            if kind_of_type(name) == ANTIBODY:
                opened.antibodies += antibodies_of_modality(name, _opened(cells.mod[name]))
        return opened
    if hasattr(cells, "var_names") and hasattr(cells, "obs_names"):
        return _from_anndata(cells)
    if hasattr(cells, "columns") and hasattr(cells, "to_numpy"):  # a pandas table
        return Cells([in_memory("the table", cells.to_numpy(), None, list(cells.columns))], cells.index)
    if isinstance(cells, tuple) and len(cells) == 2:
        matrix, var_names = cells
        matrix = matrix if hasattr(matrix, "shape") else np.asarray(matrix)
        matrix = matrix.reshape(1, -1) if matrix.ndim == 1 else matrix
        return Cells([in_memory("the matrix", matrix, None, list(var_names))])
    raise TypeError(
        "`cells` must be an AnnData, a path to an h5ad, zarr, h5mu or 10x file, or a pair (matrix, gene names); "
        f"got {type(cells).__name__}."
    )


def choose_matrix(cells: Cells, layer: str | None = None, counts: bool | None = None) -> ChosenMatrix:
    """Pick raw counts wherever they lie, else the next best; refuse when only z-scores are found.

    `layer` names the one to use, "X" and "raw" those two. `counts=True` takes the values as counts whatever they look
    like; with False they are none even if whole numbers.
    """
    matrices = _named(cells.matrices, layer)
    looked_at: dict[str, str] = {}
    chosen: tuple[int, Matrix, MatrixState] | None = None
    for matrix in matrices:
        state = _state(matrix, cells.log_base, counts)
        looked_at[matrix.name] = f"{state.kind} ({state.detail})"
        rank = _rank(state)
        if rank is not None and (chosen is None or rank < chosen[0]):
            chosen = (rank, matrix, state)
        if rank == 0:
            break
    if chosen is None:
        raise UserError(
            "No raw counts were found, and z-scored values cannot be turned back into expression. Looked at "
            + "; ".join(f"`{name}`: {what}" for name, what in looked_at.items())
            + ". Put the counts in a layer, for example `adata.layers['counts']`, or name the right one with `layer=` where a call "
            "takes it."
        )
    return ChosenMatrix(chosen[1], chosen[2], looked_at)


def _rank(state: MatrixState) -> int | None:
    """Counts, then what counts can be told from, then other logarithms and linear values; never z-scores."""
    if state.kind == "scaled":
        return None
    if state.kind == "empty":
        return 9
    return KIND_ORDER.index(state.kind) + (0 if state.kind == "counts" or state.exact else len(KIND_ORDER))


def _state(matrix: Matrix, log_base: float | None, counts: bool | None) -> MatrixState:
    if counts:
        return MatrixState("counts", "as the caller says")
    state = recognise(_sample(matrix), log_base)
    if counts is False and state.kind == "counts":
        return MatrixState("normalised", "whole numbers that the caller says are no counts")
    return state


def _named(matrices: list[Matrix], layer: str | None) -> list[Matrix]:
    """The matrices in the order in which to look: X, layers that are called counts, raw, other layers."""
    if layer is not None:
        asked = [matrix for matrix in matrices if matrix.name in (layer, f"layers[{layer!r}]")]
        if not asked:
            raise UserError(f"There is no layer {layer!r}; found {', '.join(matrix.name for matrix in matrices)}.")
        return asked[:1]

    def place(matrix: Matrix) -> int:
        if not matrix.name.startswith("layers["):
            return 2 if matrix.name == "raw" else 0
        return 1 if _plain(matrix.name) in COUNT_LAYERS else 3

    kept = [one for one in matrices if "bin" not in _plain(one.name) and _plain(one.name) not in OTHER_INTEGER_LAYERS]
    return sorted(kept or matrices, key=place)


def _plain(name: str) -> str:
    """Name of a layer in small letters."""
    return name.removeprefix("layers['").removesuffix("']").lower()


def _sample(matrix: Matrix) -> sparse.csr_matrix:
    """A few blocks of neighbouring cells, spread over the matrix."""
    num_cells = matrix.shape[0]
    if num_cells <= SAMPLE_BLOCKS * SAMPLE_ROWS:
        starts = np.arange(0, num_cells, SAMPLE_ROWS)
    else:
        starts = np.linspace(0, num_cells - SAMPLE_ROWS, SAMPLE_BLOCKS).astype(int)
    blocks = []
    for start in starts:
        stop = min(int(start) + SAMPLE_ROWS, num_cells)
        blocks.append(matrix.rows(int(start), stop).matrix(matrix.shape[1]))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix(matrix.shape)


def _from_anndata(adata: Any) -> Cells:
    """Matrices of an AnnData: a backed one stays on its disk, a view is cut out block by block."""
    names = adata.var_names.tolist()
    is_backed, is_view = getattr(adata, "isbacked", False), getattr(adata, "is_view", False)

    def matrix(name: str, pick: Callable[[Any], Any], num_genes: int, var: Any, var_names: list[str]) -> Matrix:
        # anndata cannot slice a view of a backed file again: it reads the chosen cells, and only those.
        if is_view and not is_backed:
            shape = (adata.n_obs, num_genes)
            is_dense = not sparse.issparse(pick(adata[:1]))
            return Matrix(name, shape, lambda start, stop: pick(adata[start:stop]), var, var_names, is_dense)
        whole = pick(adata)
        if is_backed and not is_view and not isinstance(whole, np.ndarray) and not sparse.issparse(whole):
            return on_disk(name, whole, var)
        return in_memory(name, whole, var, var_names)

    matrices = []
    if is_backed or (adata[:1] if is_view else adata).X is not None:
        matrices.append(matrix("X", lambda part: part.X, adata.n_vars, adata.var, names))
    for layer in [layer for layer in adata.layers if layer is not None]:  # to anndata 0.13, None is X
        pick = lambda part, layer=layer: part.layers[layer]  # noqa: E731
        matrices.append(matrix(f"layers[{layer!r}]", pick, adata.n_vars, adata.var, names))
    if adata.raw is not None:
        raw_names = adata.raw.var_names.tolist()
        matrices.append(matrix("raw", lambda part: part.raw.X, len(raw_names), adata.raw.var, raw_names))
    cells = Cells(matrices, adata.obs_names, log_base(adata.uns))
    note_matrices_of_obsm(cells, adata.obsm, adata.uns)
    return cells
