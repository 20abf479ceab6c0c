"""The order of a corpus's rows: shuffled, with distinct texts and similar lengths in a batch.

Short runs of neighbouring rows are dealt at random into blocks, and rows are shuffled inside a block. Reading stays
sequential enough for a disk, and only one block is in memory at a time. Trainer divides the rows among processes, and
skips those that a run has seen.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Sampler

from scmmgpt.training.corpus.reading import Corpus, Selection
from scmmgpt.training.strict_yaml import RecipeError

# `datasets` divides blocks without reading in vain when their number is a multiple of that of the processes.
_FEW_BLOCKS, _MANY_BLOCKS = 8, 64


@dataclass(frozen=True)
class BatchSettings:
    """How rows become batches.

    Attributes
    ----------
    run_rows
        Neighbouring rows that stay together until a block is shuffled.
    block_rows
        Rows shuffled together: the buffer.
    distinct_types
        Spread cell types, so that a batch repeats a text as rarely as its rows allow.
    similar_lengths
        Put cells of similar length into a batch, which spares padding.
    type_balance
        0: every row once an epoch. 1: every cell type equally often. Between: n ** -type_balance.
    source_weights
        How often the rows of a source appear, 1 where not named.
    """

    batch_size: int = 64
    seed: int = 0
    run_rows: int = 64
    block_rows: int = 8192
    distinct_types: bool = True
    similar_lengths: bool = True
    type_balance: float = 0.0
    source_weights: dict[str, float] = field(default_factory=dict)
    drop_last: bool = False

    def __post_init__(self):
        for name in ("batch_size", "run_rows", "block_rows"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @property
    def is_weighted(self) -> bool:
        return self.type_balance > 0 or any(weight != 1 for weight in self.source_weights.values())


class RowSampler(Sampler[int]):
    """A sampler of rows that knows how many it draws, and draws anew in each epoch."""

    epoch = 0

    @abstractmethod
    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class CorpusBatchSampler(Sampler[list[int]]):
    """Row numbers of an epoch's batches, in an order that depends on seed and epoch alone."""

    def __init__(self, corpus: Corpus, selection: Selection, settings: BatchSettings):
        self.corpus, self.selection, self.settings = corpus, selection, settings
        self.epoch = 0
        self._counted = (-1, 0)  # epoch, rows
        self._weights = _row_weights(corpus, selection, settings) if settings.is_weighted else None

    def __iter__(self) -> Iterator[list[int]]:
        size = self.settings.batch_size
        left = np.empty(0, np.int64)
        for number, rows in enumerate(self._blocks()):
            rows = np.concatenate([left, rows])
            whole = len(rows) // size * size
            generator = self._generator(1, number)
            # What does not fill a batch waits for the next block, so that only an epoch's last batch is small.
            order = generator.permutation(len(rows))
            left = rows[order[whole:]]
            yield from (batch.tolist() for batch in self._arrange(rows[order[:whole]], generator))
        if len(left) and not self.settings.drop_last:
            yield left.tolist()

    def __len__(self) -> int:
        whole, rest = divmod(self.num_rows, self.settings.batch_size)
        return whole + (rest > 0 and not self.settings.drop_last)

    @property
    def num_rows(self) -> int:
        """Rows of this epoch."""
        if self._counted[0] != self.epoch:
            self._counted = (self.epoch, sum(len(rows) for rows in self._blocks()))
        return self._counted[1]

    def _arrange(self, rows: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Cut the rows of a block into batches of similar lengths and distinct types, in random order."""
        size = self.settings.batch_size
        if self.settings.similar_lengths:
            lengths = self.corpus.index["num_tokens"][rows]
            rows = rows[np.argsort(lengths, kind="stable")]
        if self.settings.distinct_types:
            # Types are spread within windows of a few batches, which keeps lengths similar as well.
            window = size * (8 if self.settings.similar_lengths else max(1, len(rows) // size))
            types = self.corpus.index["cell_type"]
            parts = [rows[start : start + window] for start in range(0, len(rows), window)] or [rows]
            rows = np.concatenate([part[spread_types(types[part], generator)] for part in parts])
        batches = rows.reshape(-1, size)
        return list(batches[generator.permutation(len(batches))])

    def _blocks(self) -> Iterator[np.ndarray]:
        """Rows of each block, ascending within a run; repeated or left out by their weights."""
        for number, runs in enumerate(_deal_runs(len(self.corpus), self.settings, self._generator(0, 0))):
            rows = _rows_of_runs(runs, self.settings.run_rows, len(self.corpus))
            rows = rows[self.corpus.is_selected(rows, self.selection)]
            if self._weights is not None:
                expected = self._weights[self.corpus.index["source"][rows], self.corpus.index["cell_type"][rows]]
                times = np.floor(expected + self._generator(2, number).random(len(rows))).astype(np.int64)
                rows = np.repeat(rows, times)
            yield rows

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, self.epoch, purpose, number])


def spread_types(types: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An order in which the rows of every type lie evenly from start to end, each at a random place of its share.

    Examples
    --------
    >>> order = spread_types(np.array([0, 0, 0, 1, 1, 1]), np.random.default_rng(0))
    >>> [len({0, 1} & set(pair)) for pair in np.array([0, 0, 0, 1, 1, 1])[order].reshape(-1, 2).tolist()]
    [2, 2, 2]
    """
    shuffled = generator.permutation(len(types))
    by_type = shuffled[np.argsort(types[shuffled], kind="stable")]
    _, first, size = np.unique(types[by_type], return_index=True, return_counts=True)
    rank = np.arange(len(types)) - np.repeat(first, size)
    phase = np.repeat(generator.random(len(size)), size)
    return by_type[np.argsort((rank + phase) / np.repeat(size, size), kind="stable")]


def _deal_runs(num_rows: int, settings: BatchSettings, generator: np.random.Generator) -> list[np.ndarray]:
    """Deal the corpus's runs of neighbouring rows into blocks."""
    runs = generator.permutation(-(-num_rows // settings.run_rows))
    num_blocks = max(1, round(num_rows / settings.block_rows))
    multiple = _MANY_BLOCKS if num_blocks >= _MANY_BLOCKS else _FEW_BLOCKS
    num_blocks = -(-num_blocks // multiple) * multiple
    return np.array_split(runs, min(num_blocks, max(1, len(runs))))


def _rows_of_runs(runs: np.ndarray, run_rows: int, num_rows: int) -> np.ndarray:
    rows = (np.sort(runs)[:, None] * run_rows + np.arange(run_rows)).ravel()
    return rows[rows < num_rows]


def _row_weights(corpus: Corpus, selection: Selection, settings: BatchSettings) -> np.ndarray:
    """(sources, cell types) how often a row appears in an epoch of as many rows: rare types repeat, common ones thin."""
    unknown = sorted(set(settings.source_weights) - set(corpus.names("source")))
    if unknown:
        raise RecipeError(
            f"source_weights names {', '.join(unknown)}; the corpus has {', '.join(corpus.names('source'))}."
        )
    shape = len(corpus.names("source")), len(corpus.names("cell_type"))
    counts = np.zeros(shape)
    for start in range(0, len(corpus), 1 << 20):
        part = slice(start, start + (1 << 20))
        kept = corpus.is_selected(part, selection)
        np.add.at(counts, (corpus.index["source"][part][kept], corpus.index["cell_type"][part][kept]), 1)
    of_type = np.maximum(counts.sum(axis=0), 1) ** -settings.type_balance
    of_source = np.array([settings.source_weights.get(name, 1.0) for name in corpus.names("source")])
    weights = of_source[:, None] * of_type[None, :]
    return weights * counts.sum() / max((weights * counts).sum(), 1e-12)
