"""A finished corpus: its rows as a `datasets.Dataset`, its compact row index, its splits and its ontology.

The rows stay on disk, mapped into memory; the index holds a few integers a row. Memory does not grow with the corpus.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from scmmgpt.errors import UserError, first_line
from scmmgpt.hashes import hash_of_files
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, Ontology

from .shards import CorpusError, to_model_values
from .splits import SCHEMES, SPLITS

MANIFEST = "manifest.json"
SPLIT_FILE = "splits.json"
MARKER_FILE = "markers.json"
INDEX_FILE = "rows.arrow"
TABLES_FOLDER = "tables"  # the gene tokenizer and the ontology
GENE_COLUMNS = ("gene_ids", "gene_values")
# The columns of the index that name a group, and the scheme that splits by it.
GROUP_OF_SCHEME = {"study": "study", "donor": "donor", "tissue": "tissue", "cell_type": "cell_type_ontology_term_id"}


@dataclass(frozen=True)
class Selection:
    """Which rows of a corpus to read.

    Attributes
    ----------
    split, scheme
        "train", "validation", "test" or "all", by the groups of a scheme.
    is_labelled
        Only cells whose type the ontology knows.
    """

    split: str = "train"
    scheme: str = "study"
    is_labelled: bool = False
    sources: tuple[str, ...] = ()

    def __post_init__(self):
        if self.split not in (*SPLITS, "all"):
            raise UserError(f"split must be one of {', '.join(SPLITS)} or all, got {self.split!r}.")
        if self.scheme not in SCHEMES:
            raise UserError(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}.")


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. `Corpus.open` checks that it is whole."""

    path: Path
    manifest: dict
    splits: dict

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """The corpus in a folder; an unfinished or damaged one is refused with what to do."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise CorpusError(f"{path} holds no finished corpus: run `scmmgpt corpus build SOURCES --output {path}`.")
        try:
            manifest, splits = (json.loads((path / name).read_text()) for name in (MANIFEST, SPLIT_FILE))
            shards = [(path / shard["file"], int(shard["num_bytes"])) for shard in manifest["shards"]]
            dict(splits["schemes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(
                f"The corpus {path} is damaged ({first_line(error)}): run the same `scmmgpt corpus build` again."
            ) from error
        for file, num_bytes in shards:
            if not file.is_file() or file.stat().st_size != num_bytes:
                problem = "has changed" if file.is_file() else "is missing"
                raise CorpusError(f"{file} {problem}: run the same `scmmgpt corpus build` again to make it anew.")
        return cls(path, manifest, splits)

    def check_content(self) -> None:
        """Read every shard and refuse one whose bytes are not those that were written."""
        for shard in self.manifest["shards"]:
            if hash_of_files([self.path / shard["file"]]) != shard["sha256"]:
                raise damaged_shard(self.path / shard["file"], "its SHA-256 is not that of its receipt")

    def __len__(self) -> int:
        return self.manifest["num_rows"]

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """All rows, mapped from disk."""
        return datasets.concatenate_datasets([self._shard(self.path / one["file"]) for one in self.manifest["shards"]])

    def _shard(self, file: Path) -> datasets.Dataset:
        try:
            return datasets.Dataset.from_file(str(file))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged_shard(file, first_line(error)) from error

    @cached_property
    def ontology(self) -> Ontology:
        return Ontology.read(self.path / TABLES_FOLDER / FILE_NAME)

    @cached_property
    def markers(self) -> dict[str, list[str]]:
        """Marker genes of each cell type, found in the training cells of the scheme that the manifest names."""
        return json.loads((self.path / MARKER_FILE).read_text())["markers"]

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """One array per column of the row index, mapped from disk."""
        with pa.memory_map(str(self.path / INDEX_FILE)) as file:
            table = pa.ipc.open_file(file).read_all()
        return {name: table[name].chunk(0).to_numpy() for name in table.column_names} if len(table) else {}

    def names(self, column: str) -> list[str]:
        """What the codes of an index column stand for."""
        return self.manifest["names"][column]

    def is_selected(self, rows: np.ndarray | slice, selection: Selection) -> np.ndarray:
        """Which of these rows belong to a selection. Duplicates never do."""
        selected = ~self.index["is_duplicate"][rows].astype(bool)
        if selection.split != "all":
            column = GROUP_OF_SCHEME[selection.scheme]
            chosen = set(self.splits["schemes"][selection.scheme][selection.split])
            selected &= self._lookup(column, chosen)[self.index[column][rows]]
        if selection.is_labelled:
            selected &= self._lookup("cell_type_ontology_term_id", set(self.ontology.terms))[
                self.index["cell_type_ontology_term_id"][rows]
            ]
        if selection.sources:
            selected &= self._lookup("source", set(selection.sources))[self.index["source"][rows]]
        return selected

    def rows(self, selection: Selection) -> np.ndarray:
        """Row numbers of a selection. For very large corpora prefer the batch sampler, which never holds them all."""
        return np.flatnonzero(self.is_selected(slice(None), selection))

    def select(self, selection: Selection) -> datasets.Dataset:
        """A map-style dataset of the selected rows."""
        return self.dataset.select(self.rows(selection))

    def table(self, rows: np.ndarray | list[int], columns: list[str] | None = None) -> pa.Table:
        """Some rows as one Arrow table."""
        chosen = tuple(columns or self.dataset.column_names)
        if chosen not in self._readers:  # making a view costs more than reading a batch
            self._readers[chosen] = self.dataset.select_columns(list(chosen)).with_format("arrow")
        return self._readers[chosen][rows].combine_chunks()

    @cached_property
    def _readers(self) -> dict[tuple[str, ...], datasets.Dataset]:
        return {}

    def matrix(self, rows: np.ndarray) -> sp.csr_matrix:
        """Values of some cells, cells x vocabulary, without the special tokens."""
        return token_matrix(self.table(rows, list(GENE_COLUMNS)), self.manifest)

    def gene_tokenizer(self) -> ScMMGPTGeneTokenizer:
        """The gene tokenizer that the corpus was made with."""
        return ScMMGPTGeneTokenizer.from_pretrained(self.path / TABLES_FOLDER)

    def _lookup(self, column: str, chosen: set[str]) -> np.ndarray:
        return np.array([name in chosen for name in self.names(column)], dtype=bool)


def damaged_shard(file: Path, why: str) -> CorpusError:
    return CorpusError(f"{file} is damaged ({why}): delete it and run the same `scmmgpt corpus build` again.")


def token_matrix(table: pa.Table, manifest: dict) -> sp.csr_matrix:
    """The values in a table of rows, cells x vocabulary, without the special tokens."""
    offsets, gene_ids, stored = ragged(table)
    values = to_model_values(stored, manifest["value_mode"])
    values[gene_ids < manifest["num_special"]] = 0
    cells = sp.csr_matrix(
        (values, gene_ids.astype(np.int32), offsets), shape=(len(table), manifest["vocabulary_size"])
    )
    cells.eliminate_zeros()
    cells.sort_indices()
    return cells


def ragged(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, gene ids and stored values of the cells in a table, without a copy where Arrow allows."""
    gene_ids, values = (_only_chunk(table[column]) for column in GENE_COLUMNS)
    offsets = gene_ids.offsets.to_numpy()
    return offsets - offsets[0], gene_ids.flatten().to_numpy(), values.flatten().to_numpy()


def as_rows(table: pa.Table) -> list[dict]:
    """The rows of a table: gene lists as arrays that share its memory, everything else as Python values."""
    columns = {name: table[name].to_pylist() for name in table.column_names if name not in GENE_COLUMNS}
    for name in set(GENE_COLUMNS) & set(table.column_names):
        lists = _only_chunk(table[name])
        bounds = lists.offsets.to_numpy()
        columns[name] = np.split(lists.flatten().to_numpy(), bounds[1:-1] - bounds[0])
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _only_chunk(column: pa.ChunkedArray) -> pa.ListArray:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
