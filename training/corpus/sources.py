"""Where the cells of a corpus come from: h5ad and zarr files, folders of them, and TileDB-SOMA experiments.

Every source gives its table of cells, its facts and a `ChosenMatrix` of the processor: which matrix to read, what it
holds, and rows `start` to `stop` of it as counts or linear values. Nothing larger than those rows is read.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgpt.errors import UserError, require
from scmmgpt.processing.cell_files_scmmgpt import open_hdf5, rna_modality
from scmmgpt.processing.cell_reading_scmmgpt import Cells, ChosenMatrix, Matrix, choose_matrix, open_cells
from scmmgpt.processing.features_scmmgpt import only_genes

CENSUS_PREFIX = "census:"
_SOMA_LAYERS = ("raw", "counts", "data")  # the Census calls counts "raw"; an experiment made from h5ad "data"
_SOMA_NAME_COLUMNS = ("var_id", "feature_id", "feature_name")
_FACTS = ("licence", "license", "source", "title", "normalisation")


class SourceError(UserError):
    """A source that cannot be used, with the reason."""


@dataclass(frozen=True)
class CellSource(ABC):
    """A named place with cells; `FileSource` and `SomaSource` know how to read it."""

    name: str
    uri: str

    @property
    @abstractmethod
    def cells(self) -> Cells:
        """Every matrix that the source holds, unread."""

    @property
    @abstractmethod
    def num_cells(self) -> int: ...

    @abstractmethod
    def obs_rows(self, start: int, stop: int) -> pd.DataFrame:
        """What the source knows of cells `start` to `stop`."""

    @property
    @abstractmethod
    def facts(self) -> dict:
        """Licence, origin and the like, where the source says."""

    @abstractmethod
    def size_stamp(self) -> str:
        """Changes when the source does, at the cost of a directory listing."""

    @abstractmethod
    def content_hash(self) -> str: ...

    @cached_property
    def chosen(self) -> ChosenMatrix:
        """The matrix to read, chosen once from a sample of the whole source: every shard then reads the same."""
        return choose_matrix(self.cells)

    def rows(self, start: int, stop: int) -> anndata.AnnData:
        """Cells `start` to `stop` as counts, or as linear values where counts cannot be told."""
        rows, _ = self.chosen.linear_rows(start, stop)
        matrix = self.chosen.matrix
        parts = rows.data[rows.entries], rows.indices[rows.entries], rows.indptr - rows.indptr[0]
        values = sp.csr_matrix(parts, shape=(stop - start, matrix.shape[1]))
        var = pd.DataFrame(index=pd.Index(matrix.var_names, dtype=str)) if matrix.var is None else matrix.var
        return anndata.AnnData(values, var=var)

    @property
    def holds_counts(self) -> bool:
        state = self.chosen.state
        return state.kind == "counts" or state.exact


@dataclass(frozen=True)
class FileSource(CellSource):
    """A file on disk: h5ad, zarr, or the RNA of h5mu."""

    @cached_property
    def cells(self) -> Cells:
        return open_cells(self.uri)

    @cached_property
    def group(self):
        if Path(self.uri).is_dir():
            import zarr

            return zarr.open_group(self.uri, mode="r")
        file = open_hdf5(self.uri)
        return file["mod"][rna_modality(file["mod"])] if "mod" in file else file

    @cached_property
    def _obs(self) -> pd.DataFrame:
        return anndata.io.read_elem(self.group["obs"])

    @property
    def num_cells(self) -> int:
        return self.cells.matrices[0].shape[0]

    def obs_rows(self, start: int, stop: int) -> pd.DataFrame:
        return self._obs.iloc[start:stop]

    @cached_property
    def facts(self) -> dict:
        uns = self.group.get("uns", {})
        return {key: str(anndata.io.read_elem(uns[key])) for key in _FACTS if key in uns}

    def size_stamp(self) -> str:
        stats = [path.stat() for path in _files_of(Path(self.uri))]
        return f"{sum(stat.st_size for stat in stats)}-{max(stat.st_mtime_ns for stat in stats)}"

    def content_hash(self) -> str:
        digest = hashlib.sha256()
        for path in _files_of(Path(self.uri)):
            digest.update(path.relative_to(Path(self.uri).parent).as_posix().partition("/")[2].encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class SomaSource(CellSource):
    """A TileDB-SOMA experiment: a local folder, or one organism of the hosted CELLxGENE Census."""

    measurement: str = "RNA"

    @cached_property
    def experiment(self):
        tiledbsoma = require("tiledbsoma")
        if not self.uri.startswith(CENSUS_PREFIX):
            return tiledbsoma.Experiment.open(self.uri)
        _, version, organism = self.uri.split(":")
        census = require("cellxgene_census").open_soma(census_version=version)
        return census["census_data"][organism]

    @cached_property
    def cells(self) -> Cells:
        matrix = Matrix(self.layer, (self.num_cells, len(self.var)), self._read, self.var, list(self.var.index))
        return only_genes(Cells([matrix]))

    @cached_property
    def _cell_ids(self) -> np.ndarray:
        return self.experiment.obs.read(column_names=["soma_joinid"]).concat()["soma_joinid"].to_numpy()

    @property
    def num_cells(self) -> int:
        return len(self._cell_ids)

    def obs_rows(self, start: int, stop: int) -> pd.DataFrame:
        obs = self.experiment.obs.read((self._cell_ids[start:stop],)).concat().to_pandas()
        names = obs["obs_id"] if "obs_id" in obs else obs["soma_joinid"].astype(str)
        return obs.set_index(names.rename(None))

    @cached_property
    def var(self) -> pd.DataFrame:
        var = self.experiment.ms[self.measurement].var.read().concat().to_pandas()
        column = next((name for name in _SOMA_NAME_COLUMNS if name in var), None)
        if column is None:
            raise SourceError(
                f"{self.uri}: no gene names; looked for the var columns {', '.join(_SOMA_NAME_COLUMNS)}."
            )
        return var.set_index(var[column].astype(str).rename(None))

    @cached_property
    def facts(self) -> dict:
        if self.uri.startswith(CENSUS_PREFIX):
            return {"licence": "CC BY 4.0 (CELLxGENE Discover Census)", "source": self.uri}
        return {}

    @cached_property
    def layer(self) -> str:
        layers = list(self.experiment.ms[self.measurement].X)
        chosen = [name for name in _SOMA_LAYERS if name in layers] or layers
        if not chosen:
            raise SourceError(f"{self.uri}: the measurement {self.measurement} holds no X layer.")
        return chosen[0]

    def _read(self, start: int, stop: int) -> sp.csr_matrix:
        cell_ids = self._cell_ids[start:stop]
        table = self.experiment.ms[self.measurement].X[self.layer].read((cell_ids, slice(None))).tables().concat()
        places = (
            pd.Index(cell_ids).get_indexer(table["soma_dim_0"].to_numpy()),
            pd.Index(self.var["soma_joinid"]).get_indexer(table["soma_dim_1"].to_numpy()),
        )
        return sp.csr_matrix((table["soma_data"].to_numpy(), places), shape=(len(cell_ids), len(self.var)))

    def size_stamp(self) -> str:
        if self.uri.startswith(CENSUS_PREFIX):
            return f"{self.uri}-{self.num_cells}"  # releases of the Census never change
        names = sorted(path.relative_to(self.uri).as_posix() for path in Path(self.uri).rglob("*"))
        return f"{len(names)}-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}"

    def content_hash(self) -> str:
        # Fragments are write-once and carry their time and a random id in their names.
        return hashlib.sha256(self.size_stamp().encode()).hexdigest()


def find_sources(places: list[str]) -> list[CellSource]:
    """The sources at some places, each once, under unique names.

    Parameters
    ----------
    places
        h5ad or zarr files, SOMA experiments, folders of those, or `census:VERSION:ORGANISM`.
    """
    uris = [uri for place in places for uri in _uris_at(str(place))]
    uris = list(dict.fromkeys(uris))
    if not uris:
        raise SourceError(f"No cells found: {', '.join(map(str, places))} hold no h5ad, zarr or SOMA experiment.")
    stems = Counter(_stem(uri) for uri in uris)
    names = [_stem(uri) if stems[_stem(uri)] == 1 else f"{Path(uri).parent.name}_{_stem(uri)}" for uri in uris]
    if len(set(names)) < len(names):
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        raise SourceError(f"Several sources are called {', '.join(twice)}: rename the files or build them one by one.")
    return [open_source(uri, name) for uri, name in zip(uris, names, strict=True)]


def open_source(uri: str, name: str) -> CellSource:
    """The reader for one source."""
    is_soma = uri.startswith(CENSUS_PREFIX) or (Path(uri).is_dir() and _is_soma(Path(uri)))
    return SomaSource(name, uri) if is_soma else FileSource(name, uri)


def _uris_at(place: str) -> list[str]:
    if place.startswith(CENSUS_PREFIX):
        if place.count(":") != 2:
            raise SourceError(f"{place}: write it as census:VERSION:ORGANISM, e.g. census:stable:homo_sapiens.")
        return [place]
    path = Path(place)
    if not path.exists():
        raise SourceError(f"{place} does not exist.")
    if path.is_file() or _is_soma(path) or _is_zarr(path):
        return [str(path)]
    return [uri for child in sorted(path.iterdir()) if _may_hold_cells(child) for uri in _uris_at(str(child))]


def _may_hold_cells(path: Path) -> bool:
    return path.is_dir() or path.suffix in (".h5ad", ".h5mu")


def _is_zarr(path: Path) -> bool:
    return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


def _is_soma(path: Path) -> bool:
    return (path / "__group").is_dir() or (path / "__tiledb_group.tdb").exists()


def _stem(uri: str) -> str:
    return uri.replace(":", "_") if uri.startswith(CENSUS_PREFIX) else Path(uri).stem.replace(" ", "_")


def _files_of(path: Path) -> list[Path]:
    return sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]
