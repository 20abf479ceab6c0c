"""Description: does the text about a cell say what is true of that cell, and does it come from the cell at all?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import scipy.sparse as sp

from scmmgpt.processing.prompting_scmmgpt import cell_text

from . import metrics_text
from .metrics_text import FactFinder
from .results import Record, record_for
from .study import Study
from .systems import System, needed
from .task_annotation import blank, shuffled_genes
from .type_tree import TypeTree

MOST_CELLS = 200


def describe_study(
    system: System, study: Study, tree: TypeTree, *, seed: int = 0, most: int = MOST_CELLS
) -> list[Record]:
    """Fact precision and overlap of the descriptions, and of three controls that never saw the cell.

    Controls: the same texts dealt out to other cells, descriptions of cells with shuffled genes, of empty cells. A
    description that scores no better than they do tells nothing about its cell.
    """
    sample = study.part(_even_sample(study.truth, most, seed))
    references = reference_texts(sample, tree)
    finder = FactFinder(tree, list(sample.cells.var_names))
    describe = needed(system.describe)
    texts = list(describe(sample.cells))
    dealt = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    runs = {
        "none": texts,
        "texts of other cells": dealt,
        "shuffled genes": list(describe(shuffled_genes(sample.cells, seed))),
        "blank cells": list(describe(blank(sample.cells))),
    }
    records = []
    for control, said in runs.items():
        values = text_metrics(said, references, sample, finder, system)
        records.append(record_for("description", system, sample, values, control=control))
    return records


def text_metrics(
    texts: Sequence[str], references: Sequence[str], study: Study, finder: FactFinder, system: System
) -> dict[str, float]:
    """Facts first, overlap after; overlap metrics whose package is missing are left out."""
    values = metrics_text.fact_precision(
        [finder.find(text) for text in texts],
        types=list(study.truth),
        tissues=None if study.tissues is None else list(study.tissues),
        expressed=expressed_genes(study),
        tree=finder.tree,
    )
    values |= overlap(texts, references)
    if system.embed_text is not None:
        said, wanted = system.embed_text(list(texts)), system.embed_text(list(references))
        values["embedding_discrepancy"] = metrics_text.embedding_discrepancy(np.asarray(said), np.asarray(wanted))
    return values


def overlap(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-2, BLEU-4, ROUGE and METEOR of exact and stemmed words, as far as their packages are installed."""
    values: dict[str, float] = {}
    with suppress(ModuleNotFoundError):
        values |= {f"bleu_{order}": metrics_text.bleu(texts, references, order) for order in (2, 4)}
    with suppress(ModuleNotFoundError):
        values |= metrics_text.rouge(texts, references)
    with suppress(ModuleNotFoundError):
        values["meteor_exact_stem"] = metrics_text.meteor_exact_stem(texts, references)
    return values


def reference_texts(study: Study, tree: TypeTree) -> list[str]:
    """What training would have said of each cell: its type, its tissue, the type's definition."""
    texts = []
    for i, name in enumerate(study.truth):
        term = tree.term(name)
        facts = {"cell_type": name} | ({} if study.tissues is None else {"tissue": study.tissues[i]})
        texts.append(cell_text(facts, term.definition if term else ""))
    return texts


def expressed_genes(study: Study) -> list[set[str]]:
    """The names of the genes with a value above zero, for each cell."""
    matrix = sp.csr_matrix(study.cells.X)
    names = np.asarray(study.cells.var_names)
    return [
        set(names[matrix.indices[start:stop][matrix.data[start:stop] > 0]])
        for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    ]


def _even_sample(truth: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most `most` rows, types as even as they can be."""
    generator = np.random.default_rng(seed)
    rank = np.zeros(len(truth))
    for name in np.unique(truth):
        rows = np.flatnonzero(truth == name)
        rank[generator.permutation(rows)] = np.arange(len(rows))
    return np.sort(np.argsort(rank, kind="stable")[:most])
