"""A matrix of cells x genes, wherever it lies, read as csr blocks of rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from .errors_scmmgpt import UserError

CHUNK_SIZE = 4096
MAX_DENSE_BYTES = 128 * 1024**2
CELLS_PER_PART = 2048


class CsrRows(NamedTuple):
    """Rows of a csr matrix; `indptr` may start anywhere in `indices` and `data`."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @property
    def entries(self) -> slice:
        """Where the rows' entries lie."""
        return slice(int(self.indptr[0]), int(self.indptr[-1]))

    def matrix(self, num_columns: int) -> sparse.csr_matrix:
        """The same rows as a matrix of their own."""
        parts = self.data[self.entries], self.indices[self.entries], self.indptr - self.indptr[0]
        return sparse.csr_matrix(parts, shape=(len(self.indptr) - 1, num_columns))


class Matrix(NamedTuple):
    """One matrix of cells x genes that a file or object holds, and how to read some of its rows."""

    name: str
    shape: tuple[int, int]
    read: Callable[[int, int], Any]
    var: Any
    var_names: Sequence[str]
    is_dense: bool = False
    set_aside: dict[str, dict[str, Any]] = {}

    def rows(self, start: int, stop: int) -> CsrRows:
        """Rows from `start` up to `stop` as csr, in the matrix's own numbers."""
        return as_csr_rows(self.read(start, stop))

    def blocks(
        self, chunk_size: int | None = None, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Bounds of consecutive row blocks of rows `first` to `last`; a dense matrix's fit in little memory too."""
        last = self.shape[0] if last is None else min(last, self.shape[0])
        step = chunk_size or CHUNK_SIZE
        if self.is_dense:
            step = min(step, max(1, MAX_DENSE_BYTES // max(1, 8 * self.shape[1])))
        return ((start, min(start + step, last)) for start in range(first, last, step))

    def with_columns(self, kept: np.ndarray, set_aside: dict[str, dict[str, Any]]) -> "Matrix":
        """The matrix of some columns alone; `set_aside` is the account of the others."""
        new_place = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)

        def read(start: int, stop: int) -> CsrRows:
            rows = self.rows(start, stop)
            places = new_place[rows.indices[rows.entries]]
            is_kept = places >= 0
            kept_before = np.concatenate([[0], np.cumsum(is_kept)])
            return CsrRows(
                kept_before[rows.indptr - rows.indptr[0]], places[is_kept], rows.data[rows.entries][is_kept]
            )

        return self._replace(
            shape=(self.shape[0], int(kept.sum())),
            read=read,
            var=None if self.var is None else self.var[kept],
            var_names=[self.var_names[place] for place in np.flatnonzero(kept).tolist()],
            set_aside=set_aside,
        )


class Antibodies(NamedTuple):
    """A matrix of cells x antibodies that lies beside the genes; `obs_names` where its cells are not those of the RNA."""

    place: str
    matrix: Matrix
    obs_names: Sequence[str] | None = None


class Cells:
    """Every matrix that came with some cells, X first; closes its file when a `with` block ends."""

    def __init__(
        self,
        matrices: list[Matrix],
        obs_names: Sequence[str] = (),
        log_base: float | None = None,
        modality: str | None = None,
        close: Callable[[], None] | None = None,
    ):
        self.matrices = matrices
        self.antibodies: list[Antibodies] = []
        self.obs_names = obs_names
        self.num_repeated_names = len(obs_names) - len(set(obs_names))
        self.log_base = log_base
        self.modality = modality
        self.num_without_rna = 0  # cells that only other modalities have
        self.set_aside: dict[str, dict[str, Any]] = {}
        self._close = close

    def __enter__(self) -> "Cells":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._close is not None:
            self._close()


def as_csr_rows(block: Any) -> CsrRows:
    """Some rows of any kind of matrix as csr."""
    if isinstance(block, CsrRows):
        return block
    if hasattr(block, "compute"):  # dask
        block = block.compute()
    if not sparse.issparse(block):
        block = np.atleast_2d(np.asarray(block))
    if block.dtype == np.float16:
        block = _in_single_precision(block)
    check_values(block)
    csr = sparse.csr_matrix(block)
    if not csr.has_canonical_format:  # the same entry stored twice; never the caller's own matrix, see `in_memory`
        csr.sum_duplicates()
    return CsrRows(csr.indptr.astype(np.int64), csr.indices.astype(np.int32, copy=False), csr.data)


def _in_single_precision(block: Any) -> Any:
    """Values of half precision, with which scipy cannot compute; files have them all the same."""
    if not sparse.issparse(block):
        return block.astype(np.float32)
    return type(block)((block.data.astype(np.float32), block.indices, block.indptr), shape=block.shape)


def parts(num_cells: int, start: int = 0, size: int = CELLS_PER_PART) -> Iterator[slice]:
    """Consecutive slices that cover the cells from `start` on."""
    for first in range(start, num_cells, size):
        yield slice(first, min(first + size, num_cells))


def check_bounds(indptr: np.ndarray, num_entries: int) -> None:
    """Refuse row (or column) bounds that point outside the entries: the kernels read where they are told to."""
    if indptr.size == 0 or indptr[0] != 0 or indptr[-1] > num_entries or (np.diff(indptr) < 0).any():
        raise UserError(
            "The matrix is damaged: its `indptr` does not run from 0 upwards to the number of its entries."
        )


def check_places(indices: np.ndarray, size: int) -> None:
    """Refuse entries that lie outside the matrix, for the same reason."""
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise UserError(
            f"The matrix is damaged: its `indices` reach from {indices.min()} to {indices.max()} of {size}."
        )


def check_values(block: Any) -> None:
    """Refuse texts, dates and complex numbers, and more than two dimensions."""
    if getattr(getattr(block, "dtype", None), "kind", "f") in "SUVcmM":
        raise UserError(f"The matrix holds values of type {block.dtype}; expected numbers.")
    if len(block.shape) != 2:
        raise UserError(f"The matrix has {len(block.shape)} dimensions; expected cells x genes.")


def check_shape(name: str, shape: tuple[int, ...], var_names: Sequence[str]) -> None:
    """Refuse a matrix that is not cells x these genes."""
    if len(shape) != 2:
        raise UserError(f"`{name}` has {len(shape)} dimensions; expected cells x genes.")
    if shape[1] != len(var_names):
        raise UserError(f"`{name}` has {shape[1]} columns, but there are {len(var_names)} gene names.")


def in_memory(name: str, matrix: Any, var: Any, var_names: Sequence[str]) -> Matrix:
    """A matrix that is at hand; csr is read without a copy."""
    check_values(matrix)
    check_shape(name, matrix.shape, var_names)
    if sparse.issparse(matrix) and matrix.format in ("csr", "csc"):
        check_bounds(matrix.indptr, min(len(matrix.indices), len(matrix.data)))
        check_places(matrix.indices, matrix.shape[matrix.format == "csr"])
    if sparse.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()
    if sparse.issparse(matrix) and not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if not sparse.issparse(matrix):
        return Matrix(name, tuple(matrix.shape), lambda start, stop: matrix[start:stop], var, var_names, is_dense=True)
    indptr, indices = matrix.indptr.astype(np.int64, copy=False), matrix.indices.astype(np.int32, copy=False)
    return Matrix(
        name,
        tuple(matrix.shape),
        lambda start, stop: CsrRows(indptr[start : stop + 1], indices, matrix.data),
        var,
        var_names,
    )
