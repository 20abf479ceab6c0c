"""The audit of a finished corpus: labels source by source, and the same cells on two sides of a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from .checks import DuplicateSettings, band_hashes, candidate_pairs, gene_overlap, label_coherence
from .metadata import UNKNOWN
from .reading import Corpus, Selection
from .shards import CorpusError
from .sources import find_sources
from .splits import TRAIN

_PART_ROWS = 4096
_LABEL_ROWS = 2000
_MOST_EXAMPLES = 20


def audit_corpus(
    folder: str | Path,
    *,
    test_set: str | None = None,
    scheme: str = "study",
    settings: DuplicateSettings | None = None,
) -> dict:
    """What is wrong with a corpus: labels at chance, and the same cells on both sides of a split or in a test set.

    A shard whose bytes have changed is refused.
    """
    corpus, settings = Corpus.open(folder), settings or DuplicateSettings()
    if scheme not in corpus.splits["schemes"]:
        raise CorpusError(
            f"There is no split scheme {scheme!r}; the corpus has {', '.join(corpus.splits['schemes'])}."
        )
    corpus.check_content()
    report: dict = {
        "cells": len(corpus),
        "scheme": scheme,
        "labels": {source: _coherence(corpus, source) for source in corpus.names("source")},
        "exact_duplicates": int(corpus.index["is_duplicate"].sum()),
        "across_splits": _across_splits(corpus, scheme, settings),
    }
    if test_set is not None:
        report["test_set"] = {source.name: _against(corpus, source, settings) for source in find_sources([test_set])}
    report["passed"] = not (
        any(result and result["at_chance"] for result in report["labels"].values())
        or report["across_splits"]["num_pairs"]
        or any(result["num_pairs"] for result in report.get("test_set", {}).values())
    )
    return report


def _coherence(corpus: Corpus, source: str) -> dict | None:
    unlabelled = corpus.names("cell_type").index(UNKNOWN) if UNKNOWN in corpus.names("cell_type") else -1
    is_mine = corpus.index["source"] == corpus.names("source").index(source)
    rows = np.flatnonzero(is_mine & (corpus.index["cell_type"] != unlabelled))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:_LABEL_ROWS])
    if len(rows) == 0:
        return None
    coherence = label_coherence(corpus.matrix(rows), corpus.index["cell_type"][rows])
    return None if coherence is None else coherence.as_dict()


def _across_splits(corpus: Corpus, scheme: str, settings: DuplicateSettings) -> dict:
    """Nearly equal cells of which one trains and the other does not."""
    bands = np.concatenate([band_hashes(cells, settings) for cells in _parts(corpus)])
    bands[corpus.index["is_duplicate"].astype(bool)] = 0  # never selected
    is_training = corpus.is_selected(slice(None), Selection(TRAIN, scheme))
    pairs, overlap = _confirmed(
        candidate_pairs(bands, settings, is_training),
        lambda part: gene_overlap(corpus.matrix(part[:, 0]), corpus.matrix(part[:, 1])),
        settings,
    )
    examples = [
        {**_where(corpus, one, "cell"), **_where(corpus, other, "other"), "gene_overlap": round(float(share), 3)}
        for (one, other), share in zip(pairs[:_MOST_EXAMPLES], overlap, strict=False)
    ]
    return {"num_pairs": len(pairs), "examples": examples}


def _against(corpus: Corpus, source, settings: DuplicateSettings) -> dict:
    """Cells of a test set that the corpus holds, compared on the genes that the test set measured."""
    cells = _tokenised(corpus, source)
    measured = np.unique(cells.indices)
    bands = [band_hashes(cells[:, measured], settings)]
    bands += [band_hashes(part[:, measured].tocsr(), settings) for part in _parts(corpus)]
    sides = np.repeat([0, 1], [cells.shape[0], len(corpus)])
    pairs, overlap = _confirmed(
        candidate_pairs(np.concatenate(bands), settings, sides) - np.array([0, cells.shape[0]]),
        lambda part: gene_overlap(cells[part[:, 0]][:, measured], corpus.matrix(part[:, 1])[:, measured]),
        settings,
    )
    examples = [
        {"test_row": int(row), **_where(corpus, other, "cell"), "gene_overlap": round(float(share), 3)}
        for (row, other), share in zip(pairs[:_MOST_EXAMPLES], overlap, strict=False)
    ]
    return {
        "cells": cells.shape[0],
        "num_pairs": len(pairs),
        "num_test_cells_found": len(np.unique(pairs[:, 0])),
        "examples": examples,
    }


def _tokenised(corpus: Corpus, source) -> sp.csr_matrix:
    """The cells of a source in the columns of the corpus."""
    tokenizer = corpus.gene_tokenizer()
    parts = []
    for start in range(0, source.num_cells, _PART_ROWS):
        cells = source.rows(start, min(start + _PART_ROWS, source.num_cells))
        tokens = tokenizer(cells, counts=True, packed=True)
        parts.append(
            sp.csr_matrix(
                (tokens["gene_values"][0], tokens["gene_ids"][0].astype(np.int32), tokens["cell_cu_seqlens"]),
                shape=(cells.n_obs, tokenizer.vocab_size),
            )
        )
    cells = sp.vstack(parts, format="csr")
    is_gene = cells.indices >= corpus.manifest["num_special"]
    cells.data *= is_gene
    cells.eliminate_zeros()
    return cells


def _parts(corpus: Corpus) -> Iterator[sp.csr_matrix]:
    for start in range(0, len(corpus), _PART_ROWS):
        yield corpus.matrix(np.arange(start, min(start + _PART_ROWS, len(corpus))))


def _confirmed(
    pairs: np.ndarray, overlap_of: Callable[[np.ndarray], np.ndarray], settings: DuplicateSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs whose genes overlap enough, and how much; part by part, so that few cells are in memory."""
    parts = [overlap_of(pairs[start : start + _PART_ROWS]) for start in range(0, len(pairs), _PART_ROWS)]
    overlap = np.concatenate([np.empty(0), *parts])
    is_enough = overlap >= settings.min_overlap
    return pairs[is_enough], overlap[is_enough]


def _where(corpus: Corpus, row: int, prefix: str) -> dict:
    facts = corpus.table([int(row)], ["source", "row", "study"]).to_pylist()[0]
    return {f"{prefix}_{key}": value for key, value in facts.items()}
