"""Cells on disk: h5ad, zarr, h5mu and 10x `.h5`, opened but not read; folders with matrix.mtx are read whole."""

import os
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import sparse

from .cell_matrix_scmmgpt import Antibodies, Cells, Matrix, check_bounds, check_places, check_shape, in_memory
from .errors_scmmgpt import UserError
from .features_scmmgpt import ANTIBODY, GENE, kind_of_type, not_read
from .tenx_files_scmmgpt import TenxCells, is_tenx_file, is_tenx_folder, read_tenx_file, read_tenx_folder

try:
    import anndata
    import h5py
except ImportError:  # only paths and backed files need them
    anndata = h5py = None

try:
    import zarr
except ImportError:
    zarr = None  # type: ignore[assignment]


RNA_NAMES = ("rna", "gex", "gene expression", "mrna")
# Entries of a column-wise matrix that are turned into rows at a time: about 200 MB.
WINDOW_ENTRIES = 16_000_000
MOST_LEVELS = 100  # of groups within groups


def rna_modality(modalities: Any) -> str:
    """Name of the modality with gene expression."""
    names = list(modalities)
    chosen = next((name for name in names if name.lower() in RNA_NAMES), None)
    if chosen is None:
        raise UserError(f"None of the modalities {names} is called rna; pass the one that holds gene expression.")
    return chosen


def open_path(path: str) -> Cells:
    """Matrices of an h5ad, zarr, h5mu or 10x file or folder; of several modalities the one with gene expression."""
    if anndata is None:
        raise ImportError('Reading files needs anndata: pip install "anndata>=0.12".')
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no file {path}.")
    if is_tenx_folder(path):
        tenx = read_tenx_folder(path)
        return Cells([in_memory("X", tenx.matrix, tenx.var, tenx.var.index.tolist())], tenx.barcodes)
    if os.path.isdir(path) and zarr is None:
        raise ImportError("Reading zarr stores needs zarr: pip install zarr.")
    close = None
    try:
        if os.path.isdir(path):
            group: Any = zarr.open_group(path, mode="r")
        else:
            group = open_hdf5(path)
            close = group.close
        if is_tenx_file(group):
            return _from_tenx(group, close)
        return _from_mudata(group["mod"], close) if "mod" in group else _from_group(group, None, close)
    except Exception as error:  # h5py, zarr and anndata each have their own ways to say "damaged"
        if close is not None:
            close()
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from error
        raise UserError(
            f"{path} cannot be read as h5ad, zarr, h5mu or 10x h5; it may be truncated ({error})."
        ) from error


def open_hdf5(path: str | os.PathLike) -> Any:
    """A file, opened for reading, whose groups can be followed to their ends.

    HDF5 lets a group lie in itself. Whoever follows it meets the limit of recursion inside of h5py, which then keeps its
    lock: all other threads of the process would wait for ever at their next file.
    """
    file = h5py.File(path, "r")
    try:
        _refuse_loops(file, (), set())
    except BaseException:
        file.close()
        raise
    return file


def _refuse_loops(group: Any, above: tuple[Any, ...], followed: set[Any]) -> None:
    """`followed` are groups that ended: many links may lead to one."""
    info = h5py.h5o.get_info(group.id)
    place = info.fileno, info.addr
    if place in above or len(above) >= MOST_LEVELS:
        raise UserError(
            f"Group {group.name!r} lies in itself, or {MOST_LEVELS} groups deep: nobody can read all of it."
        )
    if place in followed:
        return
    for name in group:
        inner = None
        with suppress(KeyError, OSError, RuntimeError, ValueError):  # what is damaged is said where it is needed
            inner = group[name]
        if isinstance(inner, h5py.Group):
            _refuse_loops(inner, (*above, place), followed)
    followed.add(place)


def _from_tenx(file: Any, close: Callable[[], None] | None) -> Cells:
    tenx = read_tenx_file(file)
    shape = len(tenx.barcodes), len(tenx.var)
    matrix = Matrix("X", shape, _explained("X", open_rows(tenx).rows), tenx.var, tenx.var.index.tolist())
    return Cells([matrix], tenx.barcodes, close=close)


def open_rows(tenx: TenxCells) -> "RowWiseMatrix":
    """Rows of a 10x `.h5`: columns of features x cells on disk are rows of cells x features."""
    return RowWiseMatrix(SimpleNamespace(group=tenx.matrix, shape=(len(tenx.barcodes), len(tenx.var))))


def _from_mudata(modalities: Any, close: Callable[[], None] | None) -> Cells:
    """Matrices of the modality with gene expression; of the others only the names are read."""
    modality = rna_modality(modalities)
    cells = _from_group(modalities[modality], modality, close)
    others = [name for name in modalities if name != modality]
    names_of = {name: (_index(modalities[name]["obs"]), _index(modalities[name]["var"])) for name in others}
    note_other_modalities(cells, _index(modalities[modality]["obs"]), names_of)
    for name in others:
        if kind_of_type(name) == ANTIBODY:
            cells.antibodies += antibodies_of_modality(name, _from_group(modalities[name], name, None))
    return cells


def antibodies_of_modality(name: str, cells: Cells) -> list[Antibodies]:
    """The matrices of a modality of antibodies, whose cells may be others than those of the RNA."""
    return [Antibodies(f"mod[{name!r}]", matrix, cells.obs_names) for matrix in cells.matrices]


def note_other_modalities(cells: Cells, cell_names: Any, others: dict[str, tuple[Any, Any]]) -> None:
    """Write down what MuData holds beside the RNA: modality -> (names of its cells, names of its features)."""
    for modality, (_, feature_names) in others.items():
        cells.set_aside |= not_read("mod", modality, list(feature_names))
    cells.num_without_rna = len({name for names, _ in others.values() for name in names} - set(cell_names))


def note_matrices_of_obsm(cells: Cells, obsm: Any, uns: Any = None) -> None:
    """Write down matrices of proteins and the like that lie beside the genes, and keep those of antibodies."""
    for key in obsm:
        if kind_of_type(key) == ANTIBODY and not key.startswith("X_"):
            cells.antibodies += _antibodies_of_obsm(key, obsm[key], uns or {})
        if kind_of_type(key) != GENE and not key.startswith("X_"):
            matrix = obsm[key]
            names = (
                matrix.columns if hasattr(matrix, "columns") else getattr(matrix, "attrs", {}).get("column-order", ())
            )
            shape: tuple[int, ...] = getattr(matrix, "shape", ())
            cells.set_aside |= not_read("obsm", key, list(names), shape[1] if len(shape) > 1 else len(names))


def _antibodies_of_obsm(key: str, element: Any, uns: Any) -> list[Antibodies]:
    """A table of antibodies, or a matrix whose columns `uns` names as scvi-tools does; else nobody knows which is which."""
    is_table_on_disk = getattr(element, "attrs", {}).get("encoding-type") == "dataframe"
    table = anndata.io.read_elem(element) if is_table_on_disk and not hasattr(element, "columns") else element
    names = table.columns if hasattr(table, "columns") else uns.get(f"{key}_names", uns.get("protein_names", ()))
    values = table.to_numpy() if hasattr(table, "to_numpy") else table
    if len(getattr(values, "shape", ())) != 2 or len(names) != values.shape[1]:
        return []
    return [Antibodies(f"obsm[{key!r}]", in_memory(f"obsm[{key!r}]", values, None, [str(name) for name in names]))]


def _from_group(group: Any, modality: str | None, close: Callable[[], None] | None) -> Cells:
    """Matrices of an AnnData on disk: opened, not read."""
    read_element = anndata.io.read_elem
    var = read_element(group["var"])
    matrices = [on_disk("X", group["X"], var)] if "X" in group else []
    for layer in group.get("layers", {}):
        matrices.append(on_disk(f"layers[{layer!r}]", group["layers"][layer], var))
    raw = group.get("raw")
    if hasattr(raw, "keys") and "X" in raw:  # where there is none, anndata may write that there is none
        matrices.append(on_disk("raw", raw["X"], read_element(raw["var"])))
    uns = {name: _element(group, name) for name in ("log1p", "protein_names", "protein_expression_names")}
    uns = {name: value for name, value in uns.items() if value is not None}
    cells = Cells(matrices, _index(group["obs"]), log_base(uns), modality, close)
    if modality is None:
        cells.obs_names = ()  # of millions of cells; only modalities are told apart by them
    note_matrices_of_obsm(cells, group.get("obsm", {}), uns)
    return cells


def _element(group: Any, name: str) -> Any:
    """An element of `uns`, if it is there."""
    with suppress(KeyError):
        return anndata.io.read_elem(group["uns"][name])
    return None


def _index(table: Any) -> Any:
    """Names of the cells or of the features; their other columns stay unread."""
    read_element = anndata.io.read_elem
    return read_element(table[table.attrs["_index"]]) if hasattr(table, "keys") else read_element(table).index


def on_disk(name: str, element: Any, var: Any) -> Matrix:
    """A matrix of an open file: dense, csr or csc, as an array, a group or anndata's backed matrix."""
    names = var.index.tolist()
    if not (hasattr(element, "keys") or hasattr(element, "group")):
        check_shape(name, tuple(element.shape), names)
        read = _explained(name, lambda start, stop: element[start:stop])
        return Matrix(name, tuple(element.shape), read, var, names, is_dense=True)
    matrix = anndata.io.sparse_dataset(element) if hasattr(element, "keys") else element
    check_shape(name, tuple(matrix.shape), names)
    reader = RowWiseMatrix if matrix.format == "csr" else ColumnWiseMatrix
    return Matrix(name, tuple(matrix.shape), _explained(name, reader(matrix).rows), var, names)


def _explained(name: str, read: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    """The same reading, with a reason where the file turns out to be damaged."""

    def read_or_refuse(start: int, stop: int) -> Any:
        try:
            return read(start, stop)
        except UserError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"`{name}` cannot be read; the file may be damaged ({said}).") from error

    return read_or_refuse


def _checked_indptr(matrix: Any, size: int) -> np.ndarray:
    """Bounds of the rows or columns of a matrix on disk."""
    indptr = np.asarray(matrix.group["indptr"][:], dtype=np.int64)
    if len(indptr) != size + 1:
        raise UserError(f"The matrix is damaged: its `indptr` has {len(indptr)} entries, not {size + 1}.")
    check_bounds(indptr, min(matrix.group["indices"].shape[0], matrix.group["data"].shape[0]))
    return indptr


class RowWiseMatrix:
    """Rows of anndata's backed csr matrix, read straight from its arrays: its own slicing costs 16 ms a slice."""

    def __init__(self, matrix: Any):
        self._indices, self._data = matrix.group["indices"], matrix.group["data"]
        self._indptr = _checked_indptr(matrix, matrix.shape[0])
        self._num_columns = matrix.shape[1]

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows `start` to `stop`."""
        indptr = self._indptr[start : stop + 1]
        entries = slice(int(indptr[0]), int(indptr[-1]))
        indices = self._indices[entries]
        check_places(indices, self._num_columns)
        parts = self._data[entries], indices, indptr - indptr[0]
        return sparse.csr_matrix(parts, shape=(stop - start, self._num_columns))


class ColumnWiseMatrix:
    """Rows of anndata's backed csc matrix, gathered in one pass over the file for a window of many rows."""

    def __init__(self, matrix: Any):
        self._group = matrix.group
        self._shape = tuple(matrix.shape)
        self._indptr = _checked_indptr(matrix, matrix.shape[1])
        num_entries = max(int(self._indptr[-1]), 1)
        self._window_rows = max(1, int(self._shape[0] * min(1.0, WINDOW_ENTRIES / num_entries)))
        self._first, self._window = 0, sparse.csr_matrix((0, self._shape[1]))

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows `start` to `stop`; a new window is read where these leave the old one."""
        if start < self._first or stop > self._first + self._window.shape[0]:
            self._first = start
            self._window = self._read_window(start, min(max(stop, start + self._window_rows), self._shape[0]))
        return self._window[start - self._first : stop - self._first]

    def _read_window(self, start: int, stop: int) -> sparse.csr_matrix:
        """All columns of some rows, read a span of columns at a time."""
        parts, column = [], 0
        while column < self._shape[1]:
            after = int(np.searchsorted(self._indptr, self._indptr[column] + WINDOW_ENTRIES, side="right")) - 1
            after = min(max(after, column + 1), self._shape[1])
            entries = slice(int(self._indptr[column]), int(self._indptr[after]))
            row, value = self._group["indices"][entries], self._group["data"][entries]
            columns = np.repeat(np.arange(column, after), np.diff(self._indptr[column : after + 1]))
            inside = (row >= start) & (row < stop)
            parts.append((value[inside], row[inside] - start, columns[inside]))
            column = after
        value, row, columns = (np.concatenate(part) for part in zip(*parts, strict=True))
        return sparse.csr_matrix((value, (row, columns)), shape=(stop - start, self._shape[1]))


def log_base(uns: Any) -> float | None:
    """The base scanpy wrote down, if it did."""
    with suppress(KeyError, TypeError, AttributeError):
        base = uns["log1p"]["base"]
        return None if base is None else float(base)
    return None
