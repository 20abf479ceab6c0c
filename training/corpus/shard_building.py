"""One shard at a time: rows of a source -> quality filter -> tokens and facts -> an Arrow file and its receipt.

The functions here run in worker processes. All they need travels in a `BuildJob`, which is small and pickles.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from transformers import BatchFeature

from scmmgpt.hashes import hash_of_files
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, Ontology

from .checks import label_coherence
from .metadata import UNKNOWN, Finding, Tissues, describe_cells
from .reading import TABLES_FOLDER
from .recipe import CorpusRecipe, fingerprint
from .shards import (
    TEXT_COLUMNS,
    VALUE_STORAGE,
    CorpusError,
    Receipt,
    Shard,
    finished_receipt,
    row_features,
    to_stored_values,
    write_json,
    write_shard,
)
from .sources import CellSource, SourceError, open_source
from .splits import study_family

_LABEL_WINDOWS, _LABEL_WINDOW_ROWS = 20, 100


@dataclass(frozen=True)
class SourcePlan:
    """What was found out about a source before its first shard: enough to build it and to know it again."""

    name: str
    uri: str
    num_cells: int
    stamp: str
    content_hash: str
    matrix: str
    matrix_state: str
    facts: dict
    label_check: dict | None

    @property
    def has_refused_labels(self) -> bool:
        return bool(self.label_check and self.label_check["refused"])


@dataclass(frozen=True)
class BuildJob:
    """Where a corpus goes and how it is made."""

    corpus: Path
    recipe: CorpusRecipe
    _sources: dict = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def gene_tokenizer(self) -> ScMMGPTGeneTokenizer:
        return ScMMGPTGeneTokenizer.from_pretrained(self.corpus / TABLES_FOLDER)

    @cached_property
    def ontology(self) -> Ontology:
        return Ontology.read(self.corpus / TABLES_FOLDER / FILE_NAME)

    @cached_property
    def tissues(self) -> Tissues:
        return Tissues.read(self.corpus / TABLES_FOLDER / FILE_NAME)

    @cached_property
    def features(self):
        return row_features(self.gene_tokenizer.value_mode, self.gene_tokenizer.vocab_size)

    @cached_property
    def settings_hash(self) -> str:
        return settings_hash(self.recipe, self.corpus / TABLES_FOLDER)

    def source(self, plan: SourcePlan) -> CellSource:
        """The opened source; a worker keeps the last one open."""
        if plan.name not in self._sources:
            self._sources.clear()
            self._sources[plan.name] = open_source(plan.uri, plan.name)
        return self._sources[plan.name]

    def made_from(self, plan: SourcePlan) -> str:
        return fingerprint([self.settings_hash, plan.content_hash, plan.num_cells, plan.has_refused_labels])

    def __getstate__(self) -> dict:
        return {"corpus": self.corpus, "recipe": self.recipe, "_sources": {}}


def settings_hash(recipe: CorpusRecipe, tables: Path) -> str:
    """Changes when anything changes that a shard's content depends on, save the source itself."""
    hashes = {path.name: hash_of_files([path]) for path in sorted(tables.iterdir())}
    return fingerprint([recipe.shard_settings(), hashes, VALUE_STORAGE, TEXT_COLUMNS])


def plan_source(job: BuildJob, source: CellSource, stamp: str, content_hash: str) -> SourcePlan:
    """Open a source, choose its matrix and check its labels."""
    chosen = source.chosen
    if job.gene_tokenizer.value_mode == "counts" and not source.holds_counts:
        raise SourceError(
            f"{source.uri} holds no counts ({chosen.state.detail}): a corpus of counts cannot use it. "
            "Leave it out, or build with the value_mode log1p, bins or rank."
        )
    licence = job.recipe.of_source(source.name).licence
    return SourcePlan(
        source.name,
        source.uri,
        source.num_cells,
        stamp,
        content_hash,
        chosen.matrix.name,
        f"{chosen.state.kind}: {chosen.state.detail}",
        {**source.facts, **({"licence": licence} if licence else {})},
        _check_labels(job, source),
    )


def _check_labels(job: BuildJob, source: CellSource) -> dict | None:
    """Can the labels be told from the cells? From windows spread over the source."""
    num_windows = min(_LABEL_WINDOWS, -(-source.num_cells // _LABEL_WINDOW_ROWS))
    starts = np.linspace(0, max(0, source.num_cells - _LABEL_WINDOW_ROWS), num_windows).astype(int)
    matrices, labels = [], []
    for start in sorted(set(starts.tolist())):
        stop = min(start + _LABEL_WINDOW_ROWS, source.num_cells)
        facts, _ = describe_cells(
            source.obs_rows(start, stop), source.name, job.ontology, job.recipe.columns_of(source.name)
        )
        matrices.append(source.rows(start, stop).X)
        labels.append(facts["cell_type"].to_numpy(dtype=str))
    names = np.concatenate(labels)
    coherence = label_coherence(sp.vstack(matrices, format="csr")[names != UNKNOWN], names[names != UNKNOWN])
    if coherence is None:
        return None
    return {**coherence.as_dict(), "refused": coherence.is_at_chance and job.recipe.labels_at_chance == "refuse"}


def build_shard(job: BuildJob, plan: SourcePlan, shard: Shard) -> Receipt:
    """Write one shard unless it is there already."""
    made_from = job.made_from(plan)
    receipt = finished_receipt(job.corpus, shard, made_from)
    if receipt is not None:
        return receipt
    left_out: Counter = Counter()
    findings: Counter[tuple[str, str, str]] = Counter()
    batches = _batches(job, plan, shard, left_out, findings)
    size = write_shard(job.corpus, shard, batches, job.features.arrow_schema)
    found = [asdict(Finding(*key, num_cells)) for key, num_cells in sorted(findings.items())]
    receipt = Receipt(shard.name, made_from, *size, dict(sorted(left_out.items())), found)
    write_json(shard.receipt_path(job.corpus), asdict(receipt))
    return receipt


def _batches(
    job: BuildJob, plan: SourcePlan, shard: Shard, left_out: Counter, findings: Counter
) -> Iterator[pa.RecordBatch]:
    for start in range(shard.start, shard.stop, job.recipe.chunk_rows):
        stop = min(start + job.recipe.chunk_rows, shard.stop)
        try:
            batch = _chunk(job, plan, start, stop, left_out, findings)
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, CorpusError):
                raise
            message = f"{plan.uri}, cells {start} to {stop}: cannot be read ({error})"
            raise SourceError(message) from error
        if batch.num_rows:
            yield batch


def _chunk(
    job: BuildJob, plan: SourcePlan, start: int, stop: int, left_out: Counter, findings: Counter
) -> pa.RecordBatch:
    """Cells `start` to `stop` of a source as rows of the corpus."""
    source, recipe = job.source(plan), job.recipe
    columns = recipe.columns_of(plan.name)
    facts, found = describe_cells(source.obs_rows(start, stop), plan.name, job.ontology, columns, job.tissues)
    for finding in found:
        findings[finding.source, finding.kind, finding.detail] += finding.num_cells
    cells = source.rows(start, stop)
    facts["source"], facts["row"] = plan.name, np.arange(start, stop)
    facts["study"] = [study_family(plan.name, study, recipe.families) for study in facts["study"]]
    if pattern := recipe.of_source(plan.name).donor_pattern:
        facts["donor"] = facts["donor"].str.extract(f"({pattern})", expand=False).fillna(facts["donor"])
    facts["library_size"] = np.asarray(cells.X.sum(axis=1), np.float32).ravel() if source.holds_counts else np.nan
    if plan.has_refused_labels:
        facts["cell_type"] = facts["cell_type_ontology_term_id"] = UNKNOWN
    tokens = job.gene_tokenizer(cells, counts=True, packed=True)
    bounds = tokens["cell_cu_seqlens"].astype(np.int64)
    facts["num_genes"] = np.diff(bounds) - job.gene_tokenizer.add_cls
    kept = _passes(facts, recipe, left_out)
    return _record_batch(job, facts[kept], tokens, bounds, kept)


def _passes(facts: pd.DataFrame, recipe: CorpusRecipe, left_out: Counter) -> np.ndarray:
    """Which cells pass the quality filters; the first reason against a cell is counted."""
    quality = recipe.quality
    reasons = {
        "few genes": facts["num_genes"] < quality.min_genes,
        "doublet": facts["is_doublet"].eq(True) & quality.drop_doublets,
        "not primary data": facts["is_primary_data"].eq(False) & quality.primary_data_only,
        "suspension type": _is_outside(facts["suspension_type"], quality.suspension_types),
        "organism": _is_outside(facts["organism"], quality.organisms),
    }
    kept = np.ones(len(facts), dtype=bool)
    for reason, applies in reasons.items():
        newly = kept & applies.to_numpy(dtype=bool)
        if newly.any():
            left_out[reason] += int(newly.sum())
        kept &= ~newly
    return kept


def _is_outside(column: pd.Series, wanted: tuple[str, ...]) -> pd.Series:
    return ~column.isin([*wanted, UNKNOWN]) if wanted else pd.Series(False, index=column.index)


def _record_batch(
    job: BuildJob, facts: pd.DataFrame, tokens: BatchFeature, bounds: np.ndarray, kept: np.ndarray
) -> pa.RecordBatch:
    schema = job.features.arrow_schema
    gene_ids = tokens["gene_ids"].ravel().astype(schema.field("gene_ids").type.value_type.to_pandas_dtype())
    values = to_stored_values(tokens["gene_values"].ravel(), job.gene_tokenizer.value_mode)
    hashes = [
        _cell_hash(gene_ids[first:last], values[first:last])
        for first, last in zip(bounds[:-1][kept], bounds[1:][kept], strict=True)
    ]
    is_kept_token = np.repeat(kept, np.diff(bounds))
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.diff(bounds)[kept])]), pa.int32())
    columns = {
        "gene_ids": pa.ListArray.from_arrays(offsets, pa.array(gene_ids[is_kept_token])),
        "gene_values": pa.ListArray.from_arrays(offsets, pa.array(values[is_kept_token])),
        "cell_hash": pa.array(hashes, pa.uint64()),
    }
    for name in schema.names:
        if name not in columns:
            columns[name] = pa.array(facts[name].to_numpy(), schema.field(name).type, from_pandas=True)
    return pa.RecordBatch.from_arrays(
        [columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema
    )


def _cell_hash(gene_ids: np.ndarray, values: np.ndarray) -> int:
    """A number that is equal for cells with equal tokens."""
    digest = hashlib.blake2b(gene_ids.tobytes(), digest_size=8)
    digest.update(values.tobytes())
    return int.from_bytes(digest.digest(), "big")


def leave_with_parent(parent: int) -> None:
    """Make a worker end when the process that started it is gone, even killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
