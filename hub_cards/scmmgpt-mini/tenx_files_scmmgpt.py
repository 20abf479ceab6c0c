"""Cells as 10x Genomics' Cell Ranger writes them: `.h5` of either version, and folders with `matrix.mtx`."""

import gzip
import os
import zlib
from typing import Any, NamedTuple

from scipy import sparse

from .errors_scmmgpt import UserError
from .features_scmmgpt import PEAK, REMEDIES

try:
    import pandas as pd
    from anndata.utils import make_index_unique
except ImportError:  # only files need them
    pd = make_index_unique = None

MATRIX_FILE = "matrix.mtx"


class TenxCells(NamedTuple):
    """Names of the cells, the table of features, and the matrix: cells x features in memory, or a group of a file."""

    barcodes: list[str]
    var: Any
    matrix: Any


def is_tenx_file(file: Any) -> bool:
    """Whether an open HDF5 file is one of Cell Ranger's."""
    return bool(_groups(file))


def _groups(file: Any) -> list[Any]:
    """The groups that hold a matrix: `matrix` since version 3, before it one for each genome."""
    groups = [file[name] for name in file if hasattr(file[name], "keys")]
    return [group for group in groups if {"barcodes", "indptr", "indices", "data", "shape"} <= set(group)]


def read_tenx_file(file: Any) -> TenxCells:
    """The tables of an open `.h5`; its matrix stays on disk."""
    groups = _groups(file)
    if len(groups) > 1:
        names = ", ".join(group.name.strip("/") for group in groups)
        raise UserError(
            f"The file holds several genomes ({names}): read the one you want, scanpy.read_10x_h5(genome=)."
        )
    (group,) = groups
    features = group["features"] if "features" in group else {"id": group["genes"], "name": group["gene_names"]}
    columns = [_texts(features[name]) for name in ("id", "name", "feature_type") if name in features]
    return TenxCells(_texts(group["barcodes"]), _var(*columns), group)


def _texts(dataset: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in dataset[:]]


def _var(ids: list[str], names: list[str], types: list[str] | None = None) -> Any:
    """The table of features as scanpy names its columns, under unique names."""
    columns = {"gene_ids": ids} | ({"feature_types": types} if types is not None else {})
    return pd.DataFrame(columns, index=make_index_unique(pd.Index(names, dtype=object)))


def is_tenx_folder(path: str | os.PathLike) -> bool:
    """Whether a folder holds `matrix.mtx`, plain or gzipped, perhaps with a prefix as on GEO."""
    return os.path.isdir(path) and bool(_with_ending(path, MATRIX_FILE))


def read_tenx_folder(path: str | os.PathLike) -> TenxCells:
    """All of a folder with matrix.mtx, features.tsv or genes.tsv, and barcodes.tsv, in memory."""
    matrix_file = _only(path, MATRIX_FILE)
    if not (_with_ending(path, "features.tsv") or _with_ending(path, "genes.tsv")) and _with_ending(path, "peaks.bed"):
        raise UserError(f"{path} holds peaks, no genes. {REMEDIES[PEAK]}.")
    features = _lines(_only(path, "features.tsv", "genes.tsv"))
    barcodes = [fields[0] for fields in _lines(_only(path, "barcodes.tsv"))]
    try:
        from scipy.io import mmread

        matrix = sparse.csr_matrix(mmread(matrix_file, spmatrix=True).T)
    except Exception as error:  # parser, decompressor and numpy each have their own ways to say "damaged"
        raise _unreadable(matrix_file, error) from error
    if matrix.dtype.kind not in "biuf":
        raise UserError(f"{matrix_file} holds values of type {matrix.dtype}; counts are whole numbers.")
    if matrix.shape != (len(barcodes), len(features)):
        raise UserError(
            f"{matrix_file} has {matrix.shape[1]} features x {matrix.shape[0]} cells, but the tables beside it name "
            f"{len(features)} and {len(barcodes)}."
        )
    ids, names = [fields[0] for fields in features], [fields[min(1, len(fields) - 1)] for fields in features]
    has_types = all(len(fields) > 2 for fields in features)
    return TenxCells(barcodes, _var(ids, names, [fields[2] for fields in features] if has_types else None), matrix)


def _with_ending(folder: str | os.PathLike, *names: str) -> list[str]:
    endings = tuple(name + packed for name in names for packed in ("", ".gz"))
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(endings)]


def _only(folder: str | os.PathLike, *names: str) -> str:
    found = _with_ending(folder, *names)
    if len(found) != 1:
        listed = ", ".join(map(os.path.basename, found)) or "none"
        raise UserError(f"{folder} must hold one {' or '.join(names)} (.gz or not); found {listed}.")
    return found[0]


def _lines(path: str) -> list[list[str]]:
    opened = gzip.open if path.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
            return [line.rstrip("\r\n").split("\t") for line in file if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read; it may be damaged or truncated ({said}).")
