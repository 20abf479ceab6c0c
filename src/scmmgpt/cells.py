"""Cells to go through a part at a time, whether they are in memory or in a file of any size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError
from .processing.cell_files_scmmgpt import rna_modality
from .processing.tenx_files_scmmgpt import is_tenx_folder
from .spatialdata_tables import table_of
from .storage import anndata_of, check_input, open_store, read_cells, unreadable

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

_TEXT = np.dtypes.StringDType()
GRAPH = "connectivities"  # where scanpy keeps the graph of neighbours, in obsp


def open_cells(data: AnnData | MuData | str | os.PathLike) -> CellsInMemory | CellsInFile:
    """One way to read cells from AnnData, backed AnnData, MuData or a path."""
    if isinstance(data, str | os.PathLike):
        path = check_input(data)
        return CellsInMemory(read_cells(path)) if is_tenx_folder(path) else CellsInFile(path)
    if hasattr(data, "mod") and hasattr(data, "obs_names"):
        if data.isbacked:
            raise UserError("Backed MuData cannot be read in parts; give its path instead.")
        return CellsInMemory(data.mod[rna_modality(data.mod)], source=data)
    if not all(hasattr(data, name) for name in ("obs", "var", "X", "n_obs")):
        raise UserError(f"Expected AnnData, MuData or the path of a file of cells, got {type(data).__name__}.")
    if data.isbacked:
        if data.is_view:
            raise UserError("A view of backed AnnData cannot be read in parts; call `.to_memory()` on it first.")
        return _as_in_its_file(data)
    return CellsInMemory(data)


def _as_in_its_file(data: AnnData) -> CellsInFile:
    """The file of backed AnnData, unless its tables say something else by now: results would not be those of the object."""
    cells = CellsInFile(Path(data.filename))
    for name, own, read in (("obs", data.obs, cells.obs), ("var", data.var, cells.var)):
        if not own.equals(read):
            raise UserError(
                f"`{name}` of the backed AnnData was changed since it was read from {cells.path}: write it to a file, or call "
                "`.to_memory()` on it."
            )
    return cells


class CellsInMemory:
    """Cells of an AnnData object; `source` is what it came in, and what the gene tokenizer reads."""

    path: Path | None = None

    def __init__(self, adata: AnnData, source: Any = None):
        self.adata = adata
        self.source = adata if source is None else source
        self.obs: pd.DataFrame = adata.obs
        self.num_cells: int = adata.n_obs

    def rows(self, rows: slice | np.ndarray) -> AnnData:
        return self.adata[rows]

    def embedding(self, key: str) -> np.ndarray:
        return np.asarray(self.adata.obsm[key])

    @property
    def has_graph(self) -> bool:
        """Whether the data bring a graph of neighbours."""
        return GRAPH in self.adata.obsp

    def graph(self, rows: slice) -> Any:
        """Those rows of it."""
        return self.adata.obsp[GRAPH][rows]

    @property
    def present(self) -> dict[str, set[str]]:
        """Names of the columns of `obs` and of the matrices in `obsm`."""
        return {"obs": set(self.adata.obs), "obsm": set(self.adata.obsm)}


class CellsInFile:
    """Cells of an .h5ad, .zarr, .h5mu or 10x .h5 file. `obs` and `var` are in memory, matrices are read row by row.

    The file is open only while it is read, so that nobody has to close it. Names are texts only when somebody asks for
    `obs`: those of millions of cells take four times the memory as objects.
    """

    def __init__(self, path: Path):
        from anndata.io import read_elem

        self.path = self.source = path
        try:
            with open_store(path) as store:
                is_tenx = isinstance(store, dict)
                obs: pd.DataFrame = store["obs"] if is_tenx else read_elem(store["obs"])
                self.var: pd.DataFrame = store["var"] if is_tenx else read_elem(store["var"])
                obsm = set(store["obsm"]) if "obsm" in store else set()
                self.has_graph: bool = "obsp" in store and GRAPH in store["obsp"]
            self._names, self._title, self._columns = _packed(obs.index), obs.index.name, obs.reset_index(drop=True)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:  # h5py, zarr and anndata each have their own ways to say "not AnnData"
            raise unreadable(path, error) from error
        self.num_cells: int = len(obs)
        self.present: dict[str, set[str]] = {"obs": set(obs), "obsm": obsm}

    @property
    def obs(self) -> pd.DataFrame:
        """What the file says of each cell."""
        return self._obs(slice(None))

    def _obs(self, rows: slice | np.ndarray) -> pd.DataFrame:
        obs, names = self._columns.iloc[rows].copy(), self._names[rows]
        obs.index = names.astype(object) if names.dtype == _TEXT else names
        return obs.rename_axis(index=self._title)

    def rows(self, rows: slice | np.ndarray) -> AnnData:
        with open_store(self.path) as store:
            tables = {"obs": self._obs(rows), "var": self.var.copy()}
            return anndata_of(store, lambda matrix: _read_rows(matrix, rows), tables)

    def embedding(self, key: str) -> np.ndarray:
        from anndata.io import read_elem

        with open_store(self.path) as store:
            return np.asarray(read_elem(store["obsm"][key]))  # an array, or a table

    def graph(self, rows: slice) -> Any:
        """Some rows of the graph of neighbours that the file brings, see `has_graph`."""
        with open_store(self.path) as store:
            return _read_rows(store["obsp"][GRAPH], rows)


def _packed(names: pd.Index) -> np.ndarray:
    is_text = all(isinstance(name, str) for name in names)
    return names.to_numpy(_TEXT) if is_text else names.to_numpy()


def column_of(obs: pd.DataFrame, name: str) -> pd.Series:
    """A column of `obs`, as text."""
    if name not in obs:
        raise UserError(f"obs has no column {name!r}; there are: {', '.join(map(str, obs.columns[:20]))}.")
    return obs[name].astype(str)


def check_column(data: Any, name: str | None) -> None:
    """Refuse a column that `obs` of some cells does not have, before a model is looked for."""
    if name is not None:
        column_of(open_cells(table_of(data)).obs, name)


def _read_rows(element: Any, rows: slice | np.ndarray) -> Any:
    """Rows of a dense or sparse matrix on disk, in memory."""
    from anndata.io import sparse_dataset

    is_group = hasattr(element, "keys")
    matrix = sparse_dataset(element) if is_group else element
    if isinstance(rows, slice):
        return matrix[rows]
    # On disk rows are read in increasing order, once each.
    in_order, place = np.unique(rows, return_inverse=True)
    if not is_group and hasattr(matrix, "oindex"):
        return matrix.oindex[in_order][place]
    return matrix[in_order][place]
