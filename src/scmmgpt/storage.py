"""Files of cells, of several modalities the RNA: read a part at a time, written beside the target and renamed, never over the input."""

from __future__ import annotations

import glob
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from . import atomic_files
from .errors import UserError, first_line
from .hdf5_writing import hdf5_to_write
from .processing.cell_files_scmmgpt import open_hdf5, open_rows, rna_modality
from .processing.tenx_files_scmmgpt import TenxCells, is_tenx_file, is_tenx_folder, read_tenx_file, read_tenx_folder

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

SUFFIXES = (".h5ad", ".zarr")
INPUT_SUFFIXES = (*SUFFIXES, ".h5mu", ".h5")
_HALF_WRITTEN = ".half-written"


def check_input(path: str | os.PathLike) -> Path:
    """The path of a file of cells that exists, or the reason why it is not one."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no file {str(path)!r}.")
    if path.suffix not in INPUT_SUFFIXES and not is_tenx_folder(path):
        raise UserError(
            f"{str(path)!r} is not a file of cells; expected a name that ends in {', '.join(INPUT_SUFFIXES)}, or a "
            "folder with matrix.mtx, features.tsv and barcodes.tsv."
        )
    return path


def check_output(path: str | os.PathLike, source: Path | None = None, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """The path of an output that can be written, found out before any work is done.

    An .h5mu may be copied whole, with results in its RNA; every other input gives cells of one modality.
    """
    path = Path(path)
    if source is not None and source.suffix == ".h5mu":
        suffixes = (*suffixes, ".h5mu")
    if path.suffix not in suffixes:
        raise UserError(f"The output {str(path)!r} must end in {' or '.join(suffixes)}.")
    if source is not None:
        check_not_input(path, source)
    if path.is_dir() and path.suffix != ".zarr":
        raise UserError(f"The output {str(path)!r} is a folder.")
    if not path.parent.is_dir():
        raise UserError(f"The folder {str(path.parent)!r} does not exist; create it first.")
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.stem}.", suffix=f"{_HALF_WRITTEN}{path.suffix}"
        ):
            pass
    except OSError as error:
        raise UserError(f"Nothing can be written to {str(path.parent)!r}: {error.strerror}.") from error
    return path


def check_not_input(path: Path, source: Path) -> None:
    """Refuse an output that is one of the files that are read, or lies in one that is a folder."""
    if path.exists() and path.samefile(source):
        raise UserError(f"The output is the input ({path}): choose another name, the input is never overwritten.")
    if source.is_dir() and source.suffix == ".zarr" and source.resolve() in path.resolve().parents:
        raise UserError(
            f"The output {str(path)!r} lies in the input: choose another folder, the input is never changed."
        )


@contextmanager
def written_by_rename(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; it takes the name when the block ends well and vanishes otherwise."""
    temporary = temporary_beside(path)
    try:
        with atomic_files.room_on_disk(path):
            yield temporary
        existed = path.exists()
        atomic_files.rename(temporary, path)
        if existed:  # said last: whoever turns warnings into errors keeps the result
            warnings.warn(f"{path} existed and was replaced.", stacklevel=3)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error}") from error
    finally:
        atomic_files.remove(temporary)


def temporary_beside(path: Path) -> Path:
    """A name beside `path` to write under; half-written files of processes that are no more are cleared.

    In a container these often had our own number.
    """
    before, after = f".{path.stem}.", f"{_HALF_WRITTEN}{path.suffix}"
    for left in path.parent.glob(f"{glob.escape(before)}*{after}"):
        process = left.name.removeprefix(before).removesuffix(after)
        if not process.isdigit():  # of an output with a longer name
            continue
        if process == str(os.getpid()) or not _is_running(process):
            atomic_files.remove(left)
    return path.with_name(f"{before}{os.getpid()}{after}")


def _is_running(process: str) -> bool:
    return not Path("/proc/self").exists() or Path("/proc", process).exists()


@dataclass
class Additions:
    """What a verb adds to the cells it was given."""

    obs: dict[str, Any] = field(default_factory=dict)
    obsm: dict[str, Any] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)

    def refuse_existing(self, present: dict[str, set[str]], overwrite: bool) -> None:
        """Stop before anything of the caller's is replaced."""
        if overwrite:
            return
        for where in ("obs", "obsm"):
            taken = sorted(set(getattr(self, where)) & present[where])
            if taken:
                raise UserError(
                    f"{where}[{taken[0]!r}] is already there. Pass overwrite=True (--overwrite) to replace it, "
                    "or key_added= (--key-added) to write under another name."
                )

    def write_into(self, adata: AnnData) -> None:
        for name, values in self.obs.items():
            adata.obs[name] = _as_series(values, adata.obs_names)
        for name, values in self.obsm.items():
            adata.obsm[name] = np.asarray(values)
        for name, values in self.uns.items():
            adata.uns[name] = merged(adata.uns.get(name), values)


def _as_series(values: Any, index: pd.Index) -> pd.Series:
    import pandas as pd

    return pd.Series(values, index=index)


def merged(old: Any, new: dict) -> dict:
    """The record of this run beside those of earlier verbs."""
    return {**old, **new} if isinstance(old, dict) else dict(new)


def write_with_additions(source: Path, output: Path, additions: Additions) -> None:
    """Copy a file and add to the copy. Matrices are never loaded, so memory stays flat."""
    with written_by_rename(output) as temporary:
        if _can_be_copied(source, output):
            _copy(source, temporary)
            with _unwritable_said(), open_store(temporary, "r+") as store:
                _add_to_store(store, additions)
        else:
            adata = read_cells(source)
            additions.write_into(adata)
            write_cells(adata, temporary)


def _can_be_copied(source: Path, output: Path) -> bool:
    is_same_format = source.suffix == output.suffix or (source.suffix, output.suffix) == (".h5mu", ".h5ad")
    return is_same_format and not is_tenx_folder(source) and _has_modern_layout(source)


def _copy(source: Path, target: Path) -> None:
    if source.suffix != target.suffix:
        with open_store(source) as rna, hdf5_to_write(target) as copy:
            for name in rna:
                rna.copy(name, copy)
            copy.attrs.update(rna.attrs)
    elif source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        atomic_files.make_writable(target)
    else:
        shutil.copyfile(source, target)


def write_cells(adata: AnnData, path: Path) -> None:
    """Write AnnData in the format that the name asks for."""
    with _unwritable_said():
        if path.suffix == ".zarr":
            _write_zarr(adata, path)
        else:
            _write_h5ad(adata, path)


def check_tables(adata: AnnData) -> None:
    """Refuse columns that no file of cells can hold, by the first rows: found out before any work is done."""
    import h5py
    from anndata.io import write_elem

    with _unwritable_said(), h5py.File(io.BytesIO(), "w") as store:  # a name would be another thread's too
        for name, table in (("obs", adata.obs), ("var", adata.var)):
            write_elem(store, name, table.iloc[:1])


@contextmanager
def _unwritable_said() -> Iterator[None]:
    """Cells may hold what no file can, such as a name with a zero byte: say what and where."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # anndata's own kinds among them
        if atomic_files.is_no_room(error):
            raise
        where = [note for note in getattr(error, "__notes__", ()) if "key" in note]
        said = "; ".join(map(_one_line, [str(error), *where[:1]]))
        raise UserError(f"These cells cannot be written to a file: {said}.") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _write_h5ad(adata: AnnData, path: Path) -> None:
    """What `adata.write_h5ad` writes, on a disk that may be full."""
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    with hdf5_to_write(path) as store:
        write_elem(store, "/", adata, dataset_kwargs={"compression": "gzip"})
        _without_no_raw(store, adata)


def _write_zarr(adata: AnnData, path: Path) -> None:
    """What `adata.write_zarr` writes today, which warns that its format will be another one tomorrow."""
    import zarr
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    store = zarr.open_group(path, mode="w", zarr_format=2)
    write_elem(store, "/", adata)
    _without_no_raw(store, adata)
    zarr.consolidate_metadata(path)


def _without_no_raw(store: Any, adata: AnnData) -> None:
    """An element says that there is no `raw`, which not every reader expects."""
    if adata.raw is None and "raw" in store:
        del store["raw"]


def save_cells(adata: AnnData, path: Path) -> None:
    """Write AnnData under a temporary name, then rename."""
    with written_by_rename(path) as temporary:
        write_cells(adata, temporary)


def read_cells(path: Path, backed: bool = False) -> AnnData:
    """The whole file as AnnData; a file that is not one is refused by name."""
    import anndata
    from anndata.io import read_elem

    try:
        if is_tenx_folder(path):
            return _whole(_tenx_store(read_tenx_folder(path)))
        if path.suffix in (".h5mu", ".h5") or _has_modalities(path):
            with open_store(path) as store:
                return _whole(store) if isinstance(store, dict) else read_elem(store)
        if path.suffix == ".zarr":
            return _read_zarr_but_matrices(path) if backed else anndata.read_zarr(path)
        open_hdf5(path).close()
        return anndata.read_h5ad(path, backed="r" if backed else None)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except Exception as error:  # h5py, zarr and anndata each have their own ways to say "not AnnData"
        raise unreadable(path, error) from error


def _has_modalities(path: Path) -> bool:
    """Whether a zarr is MuData's."""
    return path.suffix == ".zarr" and (path / "mod").is_dir()


def _read_zarr_but_matrices(path: Path) -> AnnData:
    """X and layers stay on disk, which anndata's `backed` offers for h5ad alone."""
    from anndata.io import read_elem, sparse_dataset

    def on_disk(element: Any) -> Any:
        return sparse_dataset(element) if hasattr(element, "keys") else element

    with open_store(path) as store:
        names = ("obs", "var", "uns", "obsm", "varm", "obsp", "varp")
        return anndata_of(store, on_disk, {name: read_elem(store[name]) for name in names if name in store})


def anndata_of(store: Any, read: Callable[[Any], Any], tables: dict[str, Any]) -> AnnData:
    """The AnnData of an open file, its matrices read by `read`, from tables that are at hand."""
    from anndata import AnnData
    from anndata.io import read_elem

    layers = {name: read(store["layers"][name]) for name in store.get("layers", {})}
    adata = AnnData(read(store["X"]) if "X" in store else None, layers=layers, **tables)
    if "raw" in store and "X" in store["raw"]:
        raw = store["raw"]
        adata.raw = AnnData(read(raw["X"]), obs=adata.obs[[]], var=read_elem(raw["var"]))
    return adata


def _whole(store: dict[str, Any]) -> AnnData:
    return anndata_of(store, lambda matrix: matrix[:], {name: store[name] for name in ("obs", "var")})


def read_summary(path: Path) -> AnnData:
    """What a person is told of a file: obs and uns, no matrix."""
    from anndata import AnnData
    from anndata.io import read_elem

    try:
        with open_store(path) as store:
            return AnnData(obs=read_elem(store["obs"]), uns=read_elem(store["uns"]) if "uns" in store else {})
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{str(path)!r} cannot be read as AnnData: {first_line(error)}")


@contextmanager
def open_store(path: Path, mode: Literal["r", "r+"] = "r") -> Iterator[Any]:
    """The h5py or zarr group of a file of cells; of several modalities that of the RNA.

    A 10x file has no groups like AnnData's: its tables and its matrix come in a dict.
    """
    if path.suffix == ".zarr":
        import zarr

        # What was consolidated cannot be edited; it is consolidated again after an edit.
        yield _of_rna(zarr.open_group(path, mode=mode, use_consolidated=False if mode != "r" else None))
        if mode != "r":
            zarr.consolidate_metadata(path)
        return
    with open_hdf5(path) if mode == "r" else hdf5_to_write(path, mode) as store:
        yield _tenx_store(read_tenx_file(store)) if is_tenx_file(store) else _of_rna(store)


def _tenx_store(cells: TenxCells) -> dict[str, Any]:
    import pandas as pd

    obs = pd.DataFrame(index=pd.Index(cells.barcodes, dtype=object))
    return {"obs": obs, "var": cells.var, "X": TenxRows(cells)}


class TenxRows:
    """Rows of a matrix of 10x, which keeps whole numbers of several widths, as the float32 of AnnData."""

    def __init__(self, cells: TenxCells):
        in_memory = sparse.issparse(cells.matrix)
        self._read = (lambda start, stop: cells.matrix[start:stop]) if in_memory else open_rows(cells).rows
        self.shape = (len(cells.barcodes), len(cells.var))

    def __getitem__(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        if isinstance(rows, slice):
            return self._read(*rows.indices(self.shape[0])[:2]).astype(np.float32)
        return sparse.vstack([self._read(row, row + 1) for row in rows], format="csr").astype(np.float32)


def _of_rna(store: Any) -> Any:
    return store["mod"][rna_modality(store["mod"])] if "mod" in store else store


def _has_modern_layout(path: Path) -> bool:
    """Whether obs and uns are groups that can be added to (anndata before 0.7 wrote compound tables).

    What is not there is made; tools that write without anndata leave out what would be empty.
    """
    with open_store(path) as store:
        names = [name for name in ("obs", "obsm", "uns") if name in store]
        return "obs" in names and all(store[name].attrs.get("encoding-type") for name in names)


def _add_to_store(store: Any, additions: Additions) -> None:
    from anndata.io import read_elem, write_elem

    for name in {"obsm", "uns"} - set(store):
        write_elem(store, name, {})
    obs = store["obs"]
    for name, values in additions.obs.items():
        series = _as_series(values, None)
        write_elem(obs, name, series.array if series.dtype == "category" else series.to_numpy())
    order = [name for name in obs.attrs["column-order"] if name not in additions.obs]
    obs.attrs["column-order"] = [*order, *additions.obs]
    for name, values in additions.obsm.items():
        write_elem(store["obsm"], name, np.asarray(values))
    for name, values in additions.uns.items():
        old = read_elem(store["uns"][name]) if name in store["uns"] else None
        write_elem(store["uns"], name, merged(old, values))
