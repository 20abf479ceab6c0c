"""Shards on disk: what a row holds, and files that are either whole or absent.

A shard is one Arrow stream, readable by `datasets` without copying, with a small JSON receipt beside it that is written
last. A shard counts as built when both are there and agree; everything else is built again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from scmmgpt import atomic_files
from scmmgpt.errors import UserError
from scmmgpt.hashes import hash_of_files

SHARD_FOLDER = "data"
RECEIPT_FOLDER = "receipts"
TEXT_COLUMNS = (
    "cell_id",
    "source",
    "study",
    "donor",
    "organism",
    "tissue",
    "tissue_ontology_term_id",
    "disease",
    "assay",
    "sex",
    "development_stage",
    "suspension_type",
    "cell_type",
    "cell_type_ontology_term_id",
    "cell_type_original",
    "label_kind",
)

# How the values of each mode fit an integer: the type, and how many steps make one unit.
# log1p values end below 16 even at a target of a million counts: 1/4096 is finer than half a percent of one count.
VALUE_STORAGE = {"bins": ("uint8", 1), "rank": ("uint16", 1), "log1p": ("uint16", 4096), "counts": ("uint32", 1)}


class CorpusError(UserError):
    """A corpus that cannot be built or read, with what to do."""


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of one source, and the file they go to."""

    source: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.source}-{self.number:05d}"

    @property
    def file_name(self) -> str:
        return f"{SHARD_FOLDER}/{self.name}.arrow"

    def path(self, corpus: Path) -> Path:
        return corpus / self.file_name

    def receipt_path(self, corpus: Path) -> Path:
        return corpus / RECEIPT_FOLDER / f"{self.name}.json"


@dataclass(frozen=True)
class Receipt:
    """What a finished shard holds and from what it was made."""

    shard: str
    made_from: str
    num_rows: int
    num_bytes: int
    sha256: str
    left_out: dict
    findings: list


def plan_shards(source: str, num_cells: int, shard_rows: int) -> list[Shard]:
    """Cut a source into shards of equal numbers of cells."""
    starts = range(0, num_cells, shard_rows)
    return [Shard(source, number, start, min(start + shard_rows, num_cells)) for number, start in enumerate(starts)]


def row_features(value_mode: str, vocabulary_size: int) -> Features:
    """The columns of a shard."""
    id_type = "uint16" if vocabulary_size <= 1 << 16 else "uint32"
    return Features(
        {
            "gene_ids": List(Value(id_type)),
            "gene_values": List(Value(VALUE_STORAGE[value_mode][0])),
            "library_size": Value("float32"),
            "num_genes": Value("int32"),
            "row": Value("int64"),
            "cell_hash": Value("uint64"),
            **{column: Value("string") for column in TEXT_COLUMNS},
        }
    )


def to_stored_values(values: np.ndarray, value_mode: str) -> np.ndarray:
    """Model values as the integers that are written."""
    dtype, steps = VALUE_STORAGE[value_mode]
    stored = np.rint(values.astype(np.float64) * steps)
    if stored.size and stored.max() > np.iinfo(dtype).max:
        raise CorpusError(f"A {value_mode} value of {values.max():g} does not fit {dtype}: use another value_mode.")
    return stored.astype(dtype)


def to_model_values(stored: np.ndarray, value_mode: str) -> np.ndarray:
    """Written integers as the float32 values that the model reads."""
    steps = VALUE_STORAGE[value_mode][1]
    values = stored.astype(np.float32)
    return values if steps == 1 else values * np.float32(1 / steps)


def write_shard(
    corpus: Path, shard: Shard, batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> tuple[int, int, str]:
    """Write a shard; returns its rows, its size in bytes and its sha256."""
    num_rows = 0
    path = shard.path(corpus)
    with (
        whole_or_absent(path) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows, path.stat().st_size, hash_of_files([path])


def finished_receipt(corpus: Path, shard: Shard, made_from: str) -> Receipt | None:
    """The receipt of a shard that is whole and was made from the same cells with the same settings."""
    path = shard.receipt_path(corpus)
    if not path.is_file():
        return None
    receipt = Receipt(**json.loads(path.read_text()))
    file = shard.path(corpus)
    is_whole = file.is_file() and file.stat().st_size == receipt.num_bytes
    return receipt if is_whole and receipt.made_from == made_from else None


def remove_shard(corpus: Path, shard: Shard) -> None:
    shard.receipt_path(corpus).unlink(missing_ok=True)
    shard.path(corpus).unlink(missing_ok=True)


@contextmanager
def clear_when_disk_is_full(corpus: Path) -> Iterator[None]:
    """Say what to do when there is no room; everything built so far stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"The disk of {corpus} is full. What is built is kept: make room and run the same command again."
        raise CorpusError(message) from error


def remove_partial_files(corpus: Path) -> None:
    """Clear what a killed build left behind."""
    for path in list(corpus.rglob("*.partial")):
        atomic_files.remove(path)


def write_json(path: Path, content: object) -> None:
    """Write JSON that is either whole or absent, the same bytes for the same content."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    with whole_or_absent(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """A temporary file that takes the name `path` once it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        atomic_files.rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)
