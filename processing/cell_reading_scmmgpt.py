"""Cells in any container, read as csr blocks of a few thousand rows: never whole, never changed."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from .matrix_state_scmmgpt import MatrixState, count_bad_values, linear_values, recognise, recover_counts

try:
    import anndata
    import h5py
except ImportError:  # only paths and backed files need them
    anndata = h5py = None

try:
    import zarr
except ImportError:
    zarr = None

CHUNK_SIZE = 4096
MAX_DENSE_BYTES = 128 * 1024**2
SAMPLE_BLOCKS, SAMPLE_ROWS = 4, 128
COUNT_LAYERS = ("counts", "raw_counts", "count", "raw", "umi", "umis", "umi_counts", "rawcounts", "soupx_counts")
KIND_ORDER = ("counts", "log1p", "normalised")


class CsrRows(NamedTuple):
    """Rows of a csr matrix; `indptr` may start anywhere in `indices` and `data`."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @property
    def entries(self) -> slice:
        """Where the rows' entries lie."""
        return slice(int(self.indptr[0]), int(self.indptr[-1]))


class Matrix(NamedTuple):
    """One matrix of cells x genes that a file or object holds, and how to read some of its rows."""

    name: str
    shape: tuple[int, int]
    read: Callable[[int, int], Any]
    var: Any
    var_names: Sequence[str]

    def rows(self, start: int, stop: int) -> CsrRows:
        """Rows from `start` up to `stop` as csr, in the matrix's own numbers."""
        return _as_csr_rows(self.read(start, stop))

    def blocks(self, chunk_size: int | None = None) -> Iterator[tuple[int, int]]:
        """Bounds of consecutive row blocks that fit in little memory even when the matrix is dense."""
        most = max(1, MAX_DENSE_BYTES // max(1, 8 * self.shape[1]))
        step = min(chunk_size or CHUNK_SIZE, most)
        return ((start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step))


class Cells:
    """Every matrix that came with some cells, X first; closes its file when a `with` block ends."""

    def __init__(
        self,
        matrices: list[Matrix],
        obs_names: Sequence[str] = (),
        log_base: float | None = None,
        close: Callable[[], None] | None = None,
    ):
        self.matrices = matrices
        self.num_repeated_names = len(obs_names) - len(set(obs_names))
        self.log_base = log_base
        self._close = close

    def __enter__(self) -> "Cells":
        return self

    def __exit__(self, *error) -> None:
        if self._close is not None:
            self._close()


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
        raise ValueError(
            f"`{self.matrix.name}` holds {found} value{'s' if sum(totals.values()) > 1 else ''} ({place}). "
            "Expression cannot be negative or undefined: mend them, or name another matrix with `layer=`."
        )


def open_cells(cells: Any, name: str = "cells") -> Cells:
    """Everything about the cells that is known before any value is read.

    Parameters
    ----------
    cells
        An AnnData (in memory, backed or a view), a path to h5ad, zarr or h5mu, or a pair (matrix, gene names).
    name
        What to call them in messages.
    """
    if isinstance(cells, (str, os.PathLike)):
        return _open_path(os.fspath(cells))
    if hasattr(cells, "mod") and hasattr(cells, "mod_names"):  # MuData
        return open_cells(_rna_modality(cells.mod), name)
    if hasattr(cells, "var_names") and hasattr(cells, "obs_names"):
        return _from_anndata(cells)
    if isinstance(cells, tuple) and len(cells) == 2:
        matrix, var_names = cells
        matrix = matrix if hasattr(matrix, "shape") else np.asarray(matrix)
        matrix = matrix.reshape(1, -1) if matrix.ndim == 1 else matrix
        return Cells([_in_memory("the matrix", matrix, None, list(var_names))])
    raise TypeError(
        f"`cells` must be an AnnData, a path to an h5ad, zarr or h5mu file, or a pair (matrix, gene names); "
        f"got {type(cells).__name__}."
    )


def choose_matrix(cells: Cells, layer: str | None = None, counts: bool | None = None) -> ChosenMatrix:
    """Pick raw counts wherever they lie, else the next best; refuse when only z-scores are found.

    Parameters
    ----------
    cells
        What `open_cells` returned.
    layer
        Use this layer; "X" and "raw" name those two.
    counts
        True: take the values as counts whatever they look like. False: they are not counts even if whole numbers.
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
        raise ValueError(
            "No raw counts were found, and z-scored values cannot be turned back into expression. Looked at "
            + "; ".join(f"`{name}`: {what}" for name, what in looked_at.items())
            + ". Put the counts in a layer, for example `adata.layers['counts']`, or name the right one with `layer=`."
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
            raise ValueError(f"There is no layer {layer!r}; found {', '.join(matrix.name for matrix in matrices)}.")
        return asked[:1]

    def place(matrix: Matrix) -> int:
        plain = matrix.name.removeprefix("layers['").removesuffix("']").lower()
        if matrix.name in ("X", "the matrix"):
            return 0
        return 1 if plain in COUNT_LAYERS and matrix.name != "raw" else 2 if matrix.name == "raw" else 3

    return sorted(matrices, key=place)


def _sample(matrix: Matrix) -> sparse.csr_matrix:
    """A few blocks of neighbouring cells, spread over the matrix."""
    num_cells = matrix.shape[0]
    if num_cells <= SAMPLE_BLOCKS * SAMPLE_ROWS:
        starts = range(0, num_cells, SAMPLE_ROWS)
    else:
        starts = np.linspace(0, num_cells - SAMPLE_ROWS, SAMPLE_BLOCKS).astype(int)
    blocks = []
    for start in starts:
        stop = min(int(start) + SAMPLE_ROWS, num_cells)
        rows = matrix.rows(int(start), stop)
        shape = (stop - int(start), matrix.shape[1])
        parts = rows.data[rows.entries], rows.indices[rows.entries], rows.indptr - rows.indptr[0]
        blocks.append(sparse.csr_matrix(parts, shape=shape, dtype=np.float64))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix(matrix.shape)


def _as_csr_rows(block: Any) -> CsrRows:
    if isinstance(block, CsrRows):
        return block
    if hasattr(block, "compute"):  # dask
        block = block.compute()
    if not sparse.issparse(block):
        block = np.atleast_2d(np.asarray(block))
    csr = sparse.csr_matrix(block)
    return CsrRows(csr.indptr.astype(np.int64), csr.indices.astype(np.int32, copy=False), csr.data)


def _in_memory(name: str, matrix: Any, var: Any, var_names: Sequence[str]) -> Matrix:
    if matrix.shape[1] != len(var_names):
        raise ValueError(f"`{name}` has {matrix.shape[1]} columns, but there are {len(var_names)} gene names.")
    if sparse.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()
    if sparse.issparse(matrix) and not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if not sparse.issparse(matrix):
        return Matrix(name, tuple(matrix.shape), lambda start, stop: matrix[start:stop], var, var_names)
    indptr, indices = matrix.indptr.astype(np.int64, copy=False), matrix.indices.astype(np.int32, copy=False)
    return Matrix(
        name,
        tuple(matrix.shape),
        lambda start, stop: CsrRows(indptr[start : stop + 1], indices, matrix.data),
        var,
        var_names,
    )


def _from_anndata(adata: Any) -> Cells:
    """Matrices of an AnnData; those of a view or a backed file are cut out of it block by block."""
    names = list(adata.var_names)
    piecewise = getattr(adata, "is_view", False) or getattr(adata, "isbacked", False)

    def matrix(
        name: str, pick: Callable[[Any], Any], shape: tuple[int, int], var: Any, var_names: list[str]
    ) -> Matrix:
        if piecewise:
            return Matrix(name, shape, lambda start, stop: pick(adata[start:stop]), var, var_names)
        return _in_memory(name, pick(adata), var, var_names)

    shape = (adata.n_obs, adata.n_vars)
    matrices = []
    if getattr(adata, "filename", None) is not None or adata.X is not None:
        matrices.append(matrix("X", lambda part: part.X, shape, adata.var, names))
    for layer in adata.layers:
        pick = lambda part, layer=layer: part.layers[layer]  # noqa: E731
        matrices.append(matrix(f"layers[{layer!r}]", pick, shape, adata.var, names))
    if adata.raw is not None:
        raw_names = list(adata.raw.var_names)
        raw_shape = (adata.n_obs, len(raw_names))
        matrices.append(matrix("raw", lambda part: part.raw.X, raw_shape, adata.raw.var, raw_names))
    return Cells(matrices, adata.obs_names, _log_base(adata.uns))


def _log_base(uns: Any) -> float | None:
    """The base scanpy wrote down, if it did."""
    with suppress(KeyError, TypeError, AttributeError):
        base = uns["log1p"]["base"]
        return None if base is None else float(base)
    return None


def _rna_modality(modalities: Any) -> Any:
    names = list(modalities)
    chosen = next((name for name in names if name.lower() in ("rna", "gex", "gene expression", "mrna")), None)
    if chosen is None:
        raise ValueError(f"None of the modalities {names} is called rna; pass the one that holds gene expression.")
    return modalities[chosen]


def _open_path(path: str) -> Cells:
    if anndata is None:
        raise ImportError('Reading files needs anndata: pip install "anndata>=0.12".')
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if os.path.isdir(path):
            group, close = zarr.open(path, mode="r"), None
        else:
            group = h5py.File(path, "r")
            close = group.close
        if "mod" in group:
            group = _rna_modality(group["mod"])
        return _from_group(group, close)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as h5ad, zarr or h5mu; it may be cut short ({error}).") from error


def _from_group(group: Any, close: Callable[[], None] | None) -> Cells:
    """Matrices of an AnnData on disk: opened, not read."""
    read_element = anndata.io.read_elem
    var, obs = read_element(group["var"]), read_element(group["obs"])
    matrices = [_on_disk("X", group["X"], var)] if "X" in group else []
    for layer in group.get("layers", {}):
        matrices.append(_on_disk(f"layers[{layer!r}]", group["layers"][layer], var))
    if "raw" in group and "X" in group["raw"]:
        matrices.append(_on_disk("raw", group["raw"]["X"], read_element(group["raw"]["var"])))
    uns = None
    with suppress(KeyError):
        uns = {"log1p": read_element(group["uns"]["log1p"])}
    return Cells(matrices, obs.index, _log_base(uns), close)


def _on_disk(name: str, element: Any, var: Any) -> Matrix:
    is_sparse = hasattr(element, "keys")
    matrix = anndata.io.sparse_dataset(element) if is_sparse else element
    if is_sparse and matrix.format != "csr":
        matrix = matrix.to_memory().tocsr()
        return _in_memory(name, matrix, var, list(var.index))
    return Matrix(name, tuple(matrix.shape), lambda start, stop: matrix[start:stop], var, list(var.index))
