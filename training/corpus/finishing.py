"""From finished shards to a finished corpus: row index, duplicates, splits, marker genes, card and manifest.

Everything here follows from the shards and the recipe alone, in a fixed order, so that a resumed build ends with the
same bytes as one that was never stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .card import render_card
from .markers import MarkerSums, marker_genes
from .metadata import UNKNOWN
from .reading import INDEX_FILE, MANIFEST, MARKER_FILE, SPLIT_FILE, Corpus, Selection, token_matrix
from .shard_building import BuildJob, SourcePlan
from .shards import Receipt, Shard, whole_or_absent, write_json, write_text
from .splits import SCHEMES, SPLITS, TRAIN, split_scheme

FORMAT_VERSION = 1
# On a panel of thirty genes two cells agree by chance; equal tokens say nothing there.
_MIN_TOKENS_TO_TELL_CELLS_APART = 50
_INDEX_COLUMNS = ("source", "study", "donor", "tissue", "cell_type_ontology_term_id", "cell_type")


def finish_corpus(
    job: BuildJob, plans: list[SourcePlan], receipts: list[tuple[Shard, Receipt]], skipped: dict[str, str]
) -> dict:
    """Write all that belongs to a corpus beside its shards, the manifest last. Returns the manifest."""
    shards = [shard for shard, receipt in receipts if receipt.num_rows]
    index, names = _index(job, shards)
    _write_index(job.corpus, index)
    splits = _splits(job, index, names)
    write_json(job.corpus / SPLIT_FILE, splits)
    tokenizer = job.gene_tokenizer
    manifest = {
        "format_version": FORMAT_VERSION,
        "settings_hash": job.settings_hash,
        "recipe": asdict(job.recipe),
        "num_rows": len(index["num_tokens"]),
        "num_tokens": int(index["num_tokens"].sum(dtype=np.int64)),
        "num_duplicates": int(index["is_duplicate"].sum()),
        "value_mode": tokenizer.value_mode,
        "vocabulary_size": tokenizer.vocab_size,
        "num_special": tokenizer.vocab_size - len(tokenizer.genes),
        "ontology_version": job.ontology.version,
        "gene_tables": list(tokenizer.gene_names.sources) if tokenizer.gene_names else [],
        "names": names,
        "shards": [
            {
                "file": shard.file_name,
                "num_rows": receipt.num_rows,
                "num_bytes": receipt.num_bytes,
                "sha256": receipt.sha256,
            }
            for shard, receipt in receipts
            if receipt.num_rows
        ],
        "sources": [_source_summary(plan, receipts) for plan in plans],
        "skipped": skipped,
        "findings": _findings(receipts),
        "left_out": dict(sorted(sum((Counter(receipt.left_out) for _, receipt in receipts), Counter()).items())),
    }
    corpus = Corpus(job.corpus, manifest, splits)
    write_json(job.corpus / MARKER_FILE, _markers(job, corpus, shards))
    write_text(job.corpus / "README.md", render_card(manifest, splits, _label_counts(index, names)))
    write_json(job.corpus / MANIFEST, manifest)
    return manifest


def _tables(corpus: Path, shards: list[Shard], columns: list[str]) -> Iterator[pa.Table]:
    for shard in shards:
        with pa.memory_map(str(shard.path(corpus))) as file:
            yield pa.ipc.open_stream(file).read_all().select(columns)


def _index(job: BuildJob, shards: list[Shard]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """A few integers for each row, and what the codes among them stand for."""
    names: dict[str, dict[str, int]] = {column: {} for column in _INDEX_COLUMNS}
    parts: dict[str, list[np.ndarray]] = {column: [] for column in (*_INDEX_COLUMNS, "num_tokens", "cell_hash")}
    columns = [*_INDEX_COLUMNS, "cell_hash", "gene_ids"]
    for table in _tables(job.corpus, shards, columns):
        parts["num_tokens"].append(pc.list_value_length(table["gene_ids"]).to_numpy().astype(np.int32))
        parts["cell_hash"].append(table["cell_hash"].to_numpy())
        text = {column: table[column].to_pylist() for column in _INDEX_COLUMNS}
        text["donor"] = [f"{study}/{donor}" for study, donor in zip(text["study"], text["donor"], strict=True)]
        for column, words in text.items():
            codes = names[column]
            parts[column].append(np.array([codes.setdefault(word, len(codes)) for word in words], np.int32))
    index = {column: np.concatenate(arrays or [np.empty(0, np.int32)]) for column, arrays in parts.items()}
    hashes = index.pop("cell_hash")
    is_duplicate = np.ones(len(hashes), bool)
    is_duplicate[np.unique(hashes, return_index=True)[1]] = False
    is_duplicate &= (index["num_tokens"] >= _MIN_TOKENS_TO_TELL_CELLS_APART) & job.recipe.deduplicate
    index["is_duplicate"] = is_duplicate.astype(np.uint8)
    return index, {column: list(codes) for column, codes in names.items()}


def _write_index(corpus: Path, index: dict[str, np.ndarray]) -> None:
    batch = pa.RecordBatch.from_pydict(index)
    # One batch in the file format: its columns are mapped from disk as they are.
    with (
        whole_or_absent(corpus / INDEX_FILE) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def _splits(job: BuildJob, index: dict[str, np.ndarray], names: dict[str, list[str]]) -> dict:
    """Every scheme with its groups, and which coarser labels of held-out types remain in training."""
    schemes = {}
    for scheme in SCHEMES:
        column = "cell_type_ontology_term_id" if scheme == "cell_type" else scheme
        counts = np.bincount(index[column], minlength=len(names[column]))
        num_cells = dict(zip(names[column], counts.tolist(), strict=True))
        schemes[scheme] = split_scheme(num_cells, scheme, job.recipe.splits, job.ontology)
    held_out = [term for split in SPLITS if split != TRAIN for term in schemes["cell_type"][split]]
    coarser = {ancestor for term in held_out for ancestor in job.ontology.ancestors(term)}
    return {
        "schemes": schemes,
        "families": {family: list(members) for family, members in job.recipe.families.items()},
        "settings": asdict(job.recipe.splits),
        "coarser_labels_in_training": sorted(coarser & set(schemes["cell_type"][TRAIN])),
    }


def _markers(job: BuildJob, corpus: Corpus, shards: list[Shard]) -> dict:
    """Marker genes of every cell type, from training cells only."""
    selection = Selection(TRAIN, job.recipe.marker_scheme)
    names = corpus.names("cell_type_ontology_term_id")
    sums = MarkerSums(len(names), len(corpus.names("source")), job.gene_tokenizer.vocab_size)
    first = 0
    for table in _tables(job.corpus, shards, ["gene_ids", "gene_values"]):
        for part in table.to_batches():
            rows = np.arange(first, first + part.num_rows)
            first += part.num_rows
            kept = corpus.is_selected(rows, selection)
            cells = token_matrix(pa.Table.from_batches([part]), corpus.manifest)[kept]
            sums.add(cells, corpus.index["cell_type_ontology_term_id"][rows[kept]], corpus.index["source"][rows[kept]])
    genes = ["<special>"] * (job.gene_tokenizer.vocab_size - len(job.gene_tokenizer.genes)) + job.gene_tokenizer.genes
    found = marker_genes(sums, genes, job.recipe.num_markers)
    markers = {names[code]: marker for code, marker in found.items() if names[code] != UNKNOWN}
    return {"scheme": job.recipe.marker_scheme, "split": TRAIN, "markers": markers}


def _source_summary(plan: SourcePlan, receipts: list[tuple[Shard, Receipt]]) -> dict:
    mine = [receipt for shard, receipt in receipts if shard.source == plan.name]
    # Where a file lay and when it was touched are no part of the corpus: only its name and content are.
    kept = {key: value for key, value in asdict(plan).items() if key not in ("uri", "stamp")}
    return {**kept, "file": Path(plan.uri).name, "num_rows": sum(receipt.num_rows for receipt in mine)}


def _findings(receipts: list[tuple[Shard, Receipt]]) -> list[dict]:
    counts: Counter = Counter()
    for _, receipt in receipts:
        for finding in receipt.findings:
            counts[finding["source"], finding["kind"], finding["detail"]] += finding["num_cells"]
    keys = ("source", "kind", "detail", "num_cells")
    return [dict(zip(keys, (*key, num_cells), strict=True)) for key, num_cells in sorted(counts.items())]


def _label_counts(index: dict[str, np.ndarray], names: dict[str, list[str]]) -> dict[str, int]:
    counts = np.bincount(index["cell_type"], minlength=len(names["cell_type"]))
    return dict(sorted(zip(names["cell_type"], counts.tolist(), strict=True), key=lambda item: (-item[1], item[0])))
