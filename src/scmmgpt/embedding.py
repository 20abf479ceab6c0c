"""Cells through the model: in chunks that any file size allows, in batches that the memory allows, resumable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .bf16 import in_bf16_where_it_pays
from .cell_variation import Variation, variation
from .cells import CellsInFile, CellsInMemory
from .device import Batches
from .loading import LoadedModel
from .processing.calling_scmmgpt import Candidates
from .processing.encoding_scmmgpt import tokenize_texts
from .processing.gene_layout_scmmgpt import padded_cells
from .processing.input_account_scmmgpt import joined_accounts
from .progress import Workspace, progress_bar

if TYPE_CHECKING:
    import torch

    from .ray_engine import RayEngine

CELLS_PER_CHUNK = 1024

Item = TypeVar("Item")
Arrays = dict[str, np.ndarray]
# Inputs of one batch on the model's device, and the same as numpy tokens -> one row per cell for each array.
Compute = Callable[[dict[str, "torch.Tensor"], Arrays], Arrays]
# What to compute, for whichever copy of the model computes it: another process makes its own.
MakeCompute = Callable[[LoadedModel], Compute]


@dataclass
class CellRun:
    """One run over all cells: what to read, with which model, how large the batches are."""

    loaded: LoadedModel
    cells: CellsInMemory | CellsInFile
    batches: Batches
    workspace: Workspace
    progress: bool = True
    cells_per_chunk: int | None = None
    engine: RayEngine | None = None
    gene_account: dict[str, Any] = field(default_factory=dict)
    first_chunk: dict[str, np.ndarray] | None = None

    @property
    def gene_tokenizer(self) -> Any:
        return self.loaded.processor.gene_tokenizer

    @property
    def source(self) -> Any:
        """What the gene tokenizer reads."""
        return self.cells.source

    def compute(self, what: str, make: MakeCompute) -> Arrays:
        """Arrays over all cells, filled chunk by chunk by the computation that `make` makes from a model.

        `what` is said by the progress bar, and names the arrays that are kept.
        """
        arrays: Arrays = {}
        is_resumed = self.workspace.done(what) > 0
        for rows, results in self._computed(what, make):
            for name, values in results.items():
                if name not in arrays:
                    shape = (self.cells.num_cells, *values.shape[1:])
                    arrays[name] = self.workspace.array(f"{what}-{name}", shape, values.dtype, kept=is_resumed)
                arrays[name][rows] = values
            self.workspace.finish(what, rows.stop)
        return arrays or self.workspace.reopen(what)

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array over the cells that is made anew from finished ones: on disk where those are."""
        return self.workspace.array(f"derived-{name}", shape, dtype)

    def _computed(self, what: str, make: MakeCompute) -> Iterator[tuple[slice, Arrays]]:
        if self.engine is None:
            compute = in_bf16_where_it_pays(make, self.loaded, self.workspace.notes, self.cells.num_cells)
            for rows, _, results in self.results(what, compute):
                yield rows, results
            return
        with self._watched(what) as keep:
            for rows, results, account in self.engine.results(self, make, self.workspace.done(what)):
                keep(rows, account)
                yield rows, results

    def results(self, what: str, compute: Compute) -> Iterator[tuple[slice, dict[str, np.ndarray], Arrays]]:
        """(rows, their tokens, their results) of every chunk that was not finished before an interruption."""
        with self._watched(what) as keep:
            for rows, features, account in one_ahead(self._chunks(self.workspace.done(what))):
                if rows.start == 0:
                    self.first_chunk = features
                results = run_chunk(features, compute, self.batches, self.loaded.device)
                keep(rows, account)
                yield rows, features, results

    @contextmanager
    def _watched(self, what: str) -> Iterator[Callable[[slice, dict[str, Any]], None]]:
        """A function that takes note of rows that were computed and of the account of all that were read so far."""
        done, before = self.workspace.done(what), self.workspace.notes.get(what)
        self.gene_account = dict(before or {})

        def keep(rows: slice, account: dict[str, Any]) -> None:
            self.gene_account = self.workspace.notes[what] = joined_accounts(before, account)
            advance(rows.stop - rows.start)

        try:
            with progress_bar(what, self.cells.num_cells, shown=self.progress, done=done) as advance:
                yield keep
        except BaseException:
            self.workspace.remove_if_unused()
            self.workspace.release()
            raise

    @cached_property
    def variation(self) -> Variation:
        """How much the first cells vary."""
        if self.first_chunk is None:  # computed elsewhere, or before an interruption
            _, self.first_chunk, _ = next(self._chunks(0))
        return variation(self.gene_tokenizer, self.first_chunk)

    def _chunks(self, start: int) -> Iterator[tuple[slice, dict[str, np.ndarray], dict[str, Any]]]:
        """(rows, their tokens, the account of all from `start` to them)."""
        size, account = self.cells_per_chunk or CELLS_PER_CHUNK, None
        while start < self.cells.num_cells:
            before = account
            try:
                for features in self.gene_tokenizer.iter_chunks(self.source, size, start=start, packed=True):
                    stop = start + len(features["cell_cu_seqlens"]) - 1
                    account = joined_accounts(before, self.gene_tokenizer.account)
                    yield slice(start, stop), dict(features), account
                    start = stop
            except MemoryError:
                if size == 1:
                    raise
                size //= 2
                warnings.warn(f"Out of memory: continuing with {size} cells at a time.", stacklevel=2)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; the next one is made in a thread while the caller is at work on this one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def run_chunk(features: dict[str, np.ndarray], compute: Compute, batches: Batches, device: torch.device) -> Arrays:
    """Compute one chunk, packed or padded, in batches of cells of like length, so that little is spent on padding."""
    import torch

    is_packed = "cell_cu_seqlens" in features
    lengths = np.diff(features["cell_cu_seqlens"]) if is_packed else features["gene_mask"].sum(axis=1)
    order = np.argsort(lengths, kind="stable")

    def compute_batch(part: slice) -> Arrays:
        chosen = order[part]
        if is_packed:
            tokens = padded_cells(features, chosen)
        else:
            longest = max(int(lengths[chosen].max()), 1)
            tokens = {name: np.ascontiguousarray(values[chosen, :longest]) for name, values in features.items()}
        inputs = {name: torch.from_numpy(values).to(device) for name, values in tokens.items()}
        with torch.inference_mode():
            return compute(inputs, tokens)

    results = [result for _, result in batches.run(len(order), compute_batch)]
    place = np.argsort(order, kind="stable")
    return {name: np.concatenate([result[name] for result in results])[place] for name in results[0]}


def embed_batch(loaded: LoadedModel) -> Compute:
    """A computation of unit vectors."""

    def compute(inputs: dict[str, torch.Tensor], tokens: Arrays) -> Arrays:
        return {"embeds": loaded.model.get_cell_features(**inputs).pooler_output.cpu().numpy()}

    return compute


def token_batch(loaded: LoadedModel) -> Compute:
    """A computation of the tokens that a language model reads cells as."""

    def compute(inputs: dict[str, torch.Tensor], tokens: Arrays) -> Arrays:
        return {"tokens": loaded.model.get_cell_tokens(**inputs).float().cpu().numpy()}

    return compute


@dataclass(frozen=True)
class EvidenceBatch:
    """Makes the computation of `CellEvidence` from whichever copy of the model computes: it may be pickled.

    The matching head judges the `num_best` best texts of each cell; 0: it is not asked.
    """

    candidates: Candidates
    texts: Sequence[str] = ()
    num_best: int = 0

    def __call__(self, loaded: LoadedModel) -> Compute:
        read_tokens = loaded.annotator.token_evidence(loaded.processor.gene_tokenizer, self.candidates)
        read_cells = self._match_batch(loaded) if self.num_best else embed_batch(loaded)

        def compute(inputs: dict[str, torch.Tensor], tokens: Arrays) -> Arrays:
            return {**read_cells(inputs, tokens), **read_tokens(tokens)}

        return compute

    def _match_batch(self, loaded: LoadedModel) -> Compute:
        """Unit vectors, and the matching head's opinion about each cell's best texts; a cell is encoded once for all."""
        import torch

        towers = getattr(loaded.model, "model", loaded.model)
        text = tokenize_texts(loaded.model, loaded.processor, self.texts)
        input_ids = text.get("qformer_input_ids", text["input_ids"])
        mask = text.get("qformer_attention_mask", text["attention_mask"])
        text_vectors = torch.from_numpy(self.candidates.embeds).to(loaded.device)
        num_best = min(self.num_best, len(self.texts))

        def compute(inputs: dict[str, torch.Tensor], tokens: Arrays) -> Arrays:
            vectors = towers.get_cell_features(**inputs).pooler_output
            best = (vectors @ text_vectors.T).topk(num_best, dim=1).indices
            states, state_mask = towers.encode_cells(**inputs)
            match = [
                towers.match_logits(states, state_mask, input_ids[column], mask[column]).softmax(-1)[:, 1]
                for column in best.T
            ]
            return {
                "embeds": vectors.cpu().numpy(),
                "matched": best.cpu().numpy(),
                "match": torch.stack(match, dim=1).float().cpu().numpy(),
            }

        return compute
