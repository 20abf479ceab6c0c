"""Cells of a request -> what the processor takes. Nothing is read before its declared size was looked at.

A Hub file: it lies beside `handler.py` in every published repository.
"""

import base64
import binascii
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING or __package__:
    from .schema_scmmgpt import MAX_CELLS, MAX_GENES, MAX_H5AD_BYTES, MAX_H5AD_UNPACKED_BYTES, BadRequest
else:
    from schema_scmmgpt import MAX_CELLS, MAX_GENES, MAX_H5AD_BYTES, MAX_H5AD_UNPACKED_BYTES, BadRequest

try:
    import h5py
except ImportError:  # only h5ad files need it
    h5py = None

_TEXTS_PER_READ = 16
# What the expressed genes of a cell hold of the reference mass of all that were measured: .42 to .50 in four studies of
# 1,267 to 21,636 genes.
EXPRESSED_SHARE_OF_PANEL = 0.45
SECONDS_TO_CHECK = 30


@contextmanager
def opened_cells(cells: Any) -> Iterator[Any]:
    """A pair (matrix, gene names), or the path of an h5ad that lives as long as the context."""
    if hasattr(cells, "h5ad"):
        with tempfile.NamedTemporaryFile(suffix=".h5ad") as file:
            file.write(_decode(cells.h5ad))
            file.flush()
            check_h5ad_apart(file.name)
            yield file.name
    elif hasattr(cells, "indptr"):
        shape = (len(cells.indptr) - 1, len(cells.genes))
        data = np.asarray(cells.data, dtype=np.float32)
        matrix = sparse.csr_matrix((data, np.asarray(cells.indices, dtype=np.int64), cells.indptr), shape=shape)
        yield matrix, list(cells.genes)
    else:
        yield _from_dicts(cells)


def _from_dicts(counts: list[dict[str, float]]) -> tuple[sparse.csr_matrix, list[str]]:
    column_of = {gene: column for column, gene in enumerate(dict.fromkeys(gene for cell in counts for gene in cell))}
    if not column_of:
        raise BadRequest("The cells hold no genes.")
    if len(column_of) > MAX_GENES:
        raise BadRequest(f"The cells name {len(column_of)} different genes; at most {MAX_GENES} are taken.")
    indptr = np.cumsum([0, *map(len, counts)])
    indices = np.fromiter((column_of[gene] for cell in counts for gene in cell), dtype=np.int64, count=indptr[-1])
    data = np.fromiter((value for cell in counts for value in cell.values()), dtype=np.float32, count=indptr[-1])
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(len(counts), len(column_of)))
    return matrix, list(column_of)


def names_expressed_genes(cells: Any) -> bool:
    """Whether cells are {gene: count} without a zero, which would say what else was measured."""
    return isinstance(cells, list) and all(all(cell.values()) for cell in cells)


def on_panel_of_expressed(gene_tokenizer: Any, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The log1p values of one cell of which expressed genes alone are known, scaled by the panel that these speak for.

    They were written without panel scaling. What was measured is guessed from the cell itself, so that no other cell of
    a request has a say.
    """
    if gene_tokenizer.value_mode != "log1p" or not len(ids):
        return values
    genes = ids[gene_tokenizer.is_gene(ids)]
    share = np.float32(min(gene_tokenizer.panel_share(genes) / EXPRESSED_SHARE_OF_PANEL, 1))
    return np.log1p(np.expm1(values) * share) if share < 1 else values


def _decode(text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"cells.h5ad is not base64: {error}.") from None
    if len(content) > MAX_H5AD_BYTES:
        raise BadRequest(f"The h5ad has {len(content)} bytes; at most {MAX_H5AD_BYTES} are taken.")
    return content


def check_h5ad_apart(path: str, max_cells: int = MAX_CELLS, max_unpacked_bytes: int = MAX_H5AD_UNPACKED_BYTES) -> None:
    """`check_h5ad` in a process of its own: a damaged file can hang or end whatever reads it."""
    command = [sys.executable, str(Path(__file__).resolve()), path, str(max_cells), str(max_unpacked_bytes)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_CHECK, check=False)
    except subprocess.TimeoutExpired:
        raise BadRequest(f"The h5ad cannot be read: it takes more than {SECONDS_TO_CHECK} seconds.") from None
    if result.returncode:
        raise BadRequest(result.stdout.strip() or "The h5ad cannot be read: it is damaged.")


def check_h5ad(path: str, max_cells: int = MAX_CELLS, max_unpacked_bytes: int = MAX_H5AD_UNPACKED_BYTES) -> None:
    """Refuse an h5ad that would unpack into far more than it is, declares too much, or reaches outside itself."""
    if h5py is None:
        raise BadRequest("This endpoint does not accept h5ad: send the cells as {gene: count} or as CSR.")
    try:
        with h5py.File(path, "r") as file:
            _check_shapes(file, max_cells)
            _check_contents(file, max_unpacked_bytes)
            file.visititems(_read)
    except BadRequest:
        raise
    except Exception as error:  # a damaged or hostile file can fail anywhere in the library
        raise BadRequest(f"The h5ad cannot be read: {str(error)[:200]}.") from None


def _read(name: str, element: Any) -> None:
    if isinstance(element, h5py.Dataset) and element.shape is not None:
        element[()]


def _check_shapes(file: Any, max_cells: int) -> None:
    if not {"X", "obs", "var"} <= set(file):
        raise BadRequest("The h5ad is not an AnnData file: it needs X, obs and var.")
    shape = _declared_shape(file["X"])
    if len(shape) != 2:
        raise BadRequest(f"X of the h5ad has {len(shape)} dimensions; expected 2.")
    num_cells, num_genes = shape
    if num_cells > max_cells or num_genes > MAX_GENES:
        raise BadRequest(
            f"The h5ad declares {num_cells} cells x {num_genes} genes; at most {max_cells} x {MAX_GENES} are taken."
        )


def _declared_shape(matrix: Any) -> tuple[int, ...]:
    shape = matrix.shape if isinstance(matrix, h5py.Dataset) else matrix.attrs.get("shape", ())
    return tuple(int(size) for size in shape)


def _check_contents(file: Any, max_unpacked_bytes: int) -> None:
    """Every dataset's declared size, added up, before any is read."""
    total, waiting, seen = 0, [file], 0
    while waiting:
        group = waiting.pop()
        for name in group:
            seen += 1
            if seen > 10_000:
                raise BadRequest("The h5ad holds more than 10000 objects.")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise BadRequest(f"The h5ad links {name!r} to somewhere else.")
            element = group[name]
            if isinstance(element, h5py.Group):
                waiting.append(element)
                continue
            if not isinstance(element, h5py.Dataset):
                continue  # a named type holds no values
            if element.is_virtual or element.external:
                raise BadRequest(f"The h5ad keeps {name!r} outside itself.")
            left = max_unpacked_bytes - total
            total += _unpacked_bytes(element, left)
            if total > max_unpacked_bytes:
                raise BadRequest(
                    f"The h5ad declares more than {max_unpacked_bytes} bytes of content ({name!r} is too large)."
                )


def _unpacked_bytes(dataset: Any, limit: int) -> int:
    """Bytes that reading the dataset takes. Texts of any length must be looked at: many may share one stored copy."""
    total = int(dataset.size or 0) * max(dataset.dtype.itemsize, 1)
    if not dataset.dtype.hasobject or total > limit:
        return total
    if dataset.dtype.kind != "O" or dataset.ndim > 1:
        raise BadRequest(f"The h5ad keeps texts in a form that is not taken ({dataset.name!r}).")
    if dataset.ndim == 0:
        return total + len(dataset[()])
    for start in range(0, len(dataset), _TEXTS_PER_READ):
        total += sum(len(value) for value in dataset[start : start + _TEXTS_PER_READ])
        if total > limit:
            break
    return total


if __name__ == "__main__":  # a check apart, see `check_h5ad_apart`
    try:
        check_h5ad(sys.argv[1], *map(int, sys.argv[2:]))
    except BadRequest as reason:
        sys.exit(print(reason) or 1)  # noqa: T201
