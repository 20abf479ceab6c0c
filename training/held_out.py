"""What a model can do on cells that were held out, measured while it trains: name their types, find their texts.

Candidates of a cell are the types of its own study. Nearest-class-mean, fitted on the run's training cells and shown the
same cells and candidates, stands beside every number: a model that does not beat it has not earned its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.processing.prompting_scmmgpt import label_text
from scmmgpt.training.corpus.reading import Corpus, Selection
from scmmgpt.training.evaluation.metrics import accuracy, macro_f1
from scmmgpt.training.evaluation.metrics_embedding import recall_at

CELLS_PER_BATCH = 64
TRAINING_CELLS_PER_TYPE = 200


@dataclass
class HeldOutCells:
    """Cells of held-out groups with their types, and the types as texts.

    Attributes
    ----------
    rows
        Their row numbers in the corpus.
    batches
        Cells in the order of `types` and `studies`, as arguments of `get_cell_features`.
    candidates
        Names of all types, in the order of `candidate_texts`, which are arguments of `get_text_features`.
    """

    rows: np.ndarray
    batches: list[dict]
    types: np.ndarray
    studies: np.ndarray
    candidates: list[str]
    candidate_texts: dict

    def __call__(self, model) -> dict[str, float]:
        """Zero-shot accuracy and macro-F1 (a mean over studies), and retrieval in both directions."""
        cells = self.embed_cells(model)
        texts = model.get_text_features(**_on(model, self.candidate_texts)).pooler_output.cpu().numpy()
        return self.scores(cells @ texts.T)

    def scores(self, similarity: np.ndarray) -> dict[str, float]:
        """The same from any similarity of cells and candidates."""
        named = self.best_names(similarity)
        per_study = [
            (accuracy(self.types[here], named[here]), macro_f1(self.types[here], named[here]))
            for here in (self.studies == study for study in np.unique(self.studies))
        ]
        right, f1 = np.mean(per_study, axis=0)
        return {
            "zero_shot_accuracy": float(right),
            "zero_shot_macro_f1": float(f1),
            "cell_to_text_recall_1": recall_at(similarity, self.types, self.candidates, 1)[0],
            "text_to_cell_recall_1": recall_at(similarity.T, self.candidates, self.types, 1)[0],
        }

    def best_names(self, similarity: np.ndarray) -> np.ndarray:
        """The best candidate of each cell among the types of its study."""
        allowed = np.zeros_like(similarity, dtype=bool)
        for study in np.unique(self.studies):
            here = self.studies == study
            allowed[np.ix_(here, np.isin(self.candidates, self.types[here]))] = True
        return np.array(self.candidates)[np.where(allowed, similarity, -np.inf).argmax(1)]

    def embed_cells(self, model) -> np.ndarray:
        """Unit-length embeddings of all cells."""
        embeds = [model.get_cell_features(**_on(model, batch)).pooler_output.float().cpu() for batch in self.batches]
        return torch.cat(embeds).numpy()


def held_out_cells(
    corpus: Corpus, selection: Selection, max_cells: int, collate: Callable, encode: Callable
) -> HeldOutCells | None:
    """Labelled rows of a selection, as evenly from its studies as they allow; None where it has none."""
    rows = spread_over(corpus, corpus.rows(selection), "study", max_cells)
    if not len(rows):
        return None
    table = corpus.table(rows, ["cell_type", "study"])
    types, studies = (np.array(table[name].to_pylist()) for name in ("cell_type", "study"))
    return as_held_out(rows, types, studies, lambda part: collate(corpus.table(part)), encode, corpus.ontology)


def as_held_out(
    rows: np.ndarray,
    types: np.ndarray,
    studies: np.ndarray,
    cells_of: Callable[[np.ndarray], dict],
    encode: Callable[[list[str]], dict],
    ontology: Ontology,
) -> HeldOutCells:
    """Held-out rows in batches, and their types as the texts that annotation uses."""
    names = sorted(set(types))
    texts = encode([label_text(name, definition_of(name, ontology)) for name in names])
    parts = [rows[start : start + CELLS_PER_BATCH] for start in range(0, len(rows), CELLS_PER_BATCH)]
    return HeldOutCells(rows, [cells_of(part) for part in parts], types, studies, names, texts)


def definition_of(label: str, ontology: Ontology) -> str | None:
    """What the ontology says of a label, None for a label of your own."""
    term = ontology.find(label)
    return term.definition if term else None


def spread_over(corpus: Corpus, rows: np.ndarray, column: str, max_rows: int, seed: int = 0) -> np.ndarray:
    """At most `max_rows` of the rows, the same number from each group while groups last; ascending."""
    generator = np.random.default_rng(seed)
    rows = generator.permutation(rows)
    groups = corpus.index[column][rows]
    by_group = np.argsort(groups, kind="stable")
    _, first, size = np.unique(groups[by_group], return_index=True, return_counts=True)
    rank = np.empty(len(rows), dtype=np.int64)
    rank[by_group] = np.arange(len(rows)) - np.repeat(first, size)
    return np.sort(rows[np.argsort(rank, kind="stable")[:max_rows]])


def nearest_class_mean(corpus: Corpus, train: Selection, held_out: HeldOutCells) -> dict[str, float]:
    """What the simplest classifier reaches on the same cells: the mean log expression of each type's training cells."""
    known = spread_over(
        corpus, corpus.rows(train), "cell_type", TRAINING_CELLS_PER_TYPE * len(corpus.names("cell_type"))
    )
    types = np.array(corpus.names("cell_type"))[corpus.index["cell_type"][known]]
    wanted = np.isin(types, held_out.candidates)
    training, types = _log_expression(corpus, known[wanted]), types[wanted]
    cells = _log_expression(corpus, held_out.rows)
    similarity = np.full((len(held_out.rows), len(held_out.candidates)), -2.0)
    for column, name in enumerate(held_out.candidates):
        if (types == name).any():
            mean = np.asarray(training[types == name].mean(0)).ravel()
            similarity[:, column] = np.asarray(cells @ mean).ravel() / max(np.linalg.norm(mean), 1e-12)
    return held_out.scores(similarity)


def _log_expression(corpus: Corpus, rows: np.ndarray):
    matrix = corpus.matrix(rows).astype(np.float32)
    if corpus.manifest["value_mode"] == "counts":
        totals = np.maximum(np.asarray(matrix.sum(1)).ravel(), 1.0)
        matrix.data = np.log1p(matrix.data * np.repeat(1e4 / totals, np.diff(matrix.indptr)))
    return matrix


def _on(model, inputs: dict) -> dict:
    return {name: value.to(model.device) for name, value in inputs.items()}
