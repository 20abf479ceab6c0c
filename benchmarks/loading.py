"""How fast cells reach a model: a corpus through `datasets` beside plain access to the same cells.

python -m benchmarks.loading --num-cells 20000

Every row of the table reads shuffled batches of 64 from the same synthetic cells in one process with a warm cache.
Rates move with the machine: compare rows of one run, and on a busy machine those per CPU-second. `--mean-genes` are the
expressed genes of a cell, about. The last part reads corpora of 1x and 10x the size and writes down the memory that the
process itself holds; mapped files, which the system may drop at any time, are not counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from torch.utils.data import DataLoader

from benchmarks._measuring import OUT, in_own_process, machine, options, peak_memory, row, write_report
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.training.assembly import CorpusRows
from scmmgpt.training.collators import CellCollator, TokenizingCollator
from scmmgpt.training.corpus.build import build_corpus
from scmmgpt.training.corpus.reading import GENE_COLUMNS, Corpus, Selection
from scmmgpt.training.corpus.recipe import CorpusRecipe
from scmmgpt.training.data import BatchSettings, CorpusBatchSampler

BATCH = 64
SETTINGS = BatchSettings(batch_size=BATCH)
ALL = Selection("all")


def synthetic_cells(num_cells: int, num_genes: int, mean_genes: int, seed: int = 0) -> anndata.AnnData:
    """Sparse counts with about `mean_genes` expressed genes a cell, made in parts."""
    generator = np.random.default_rng(seed)
    popularity = generator.dirichlet(np.full(num_genes, 0.3))
    parts = []
    for start in range(0, num_cells, 1000):
        size = min(1000, num_cells - start)
        expected = popularity * mean_genes * 3 * generator.lognormal(0, 0.4, (size, 1))
        parts.append(sp.csr_matrix(generator.poisson(expected).astype(np.float32)))
    obs = pd.DataFrame({"cell_type": generator.choice(["B cell", "T cell", "monocyte", "neuron"], num_cells)})
    obs.index = [f"cell{number}" for number in range(num_cells)]
    genes = pd.DataFrame(index=[f"GENE{number}" for number in range(num_genes)])
    return anndata.AnnData(sp.vstack(parts, format="csr"), obs=obs, var=genes)


def measure(batches: Callable[[], Iterator], seconds: float) -> dict[str, int]:
    """Cells per second by the clock and by the processor's time, after a warm-up of one batch."""
    iterator = batches()
    next(iterator)
    clock, processor, num_cells = time.perf_counter(), time.process_time(), 0
    for batch in iterator:
        num_cells += BATCH if batch is None else len(batch["gene_ids"])
        if time.process_time() - processor > seconds:
            break
    return {
        "rate": round(num_cells / (time.perf_counter() - clock)),
        "per_cpu_second": round(num_cells / (time.process_time() - processor)),
    }


def random_rows(num_cells: int) -> Iterator[np.ndarray]:
    order = np.random.default_rng(0).permutation(num_cells)
    return (np.sort(order[start : start + BATCH]) for start in range(0, num_cells - BATCH, BATCH))


def from_h5ad(path: Path) -> Iterator[None]:
    """Plain random rows of a backed h5ad, as csr."""
    with h5py.File(path) as file:
        matrix = anndata.io.sparse_dataset(file["X"])
        for rows in random_rows(matrix.shape[0]):
            matrix[rows]
            yield None


def from_lists(corpus: Corpus) -> Iterator[dict]:
    """Rows as Python lists one by one, padded: what `dataset[i]` gives without a format."""
    collate = CellCollator(corpus.manifest["value_mode"])
    dataset = corpus.dataset.select_columns(list(GENE_COLUMNS))
    return (collate([dataset[int(row)] for row in rows]) for rows in random_rows(len(corpus)))


def loader(corpus: Corpus, collate: Callable, settings: BatchSettings = SETTINGS) -> Iterator[dict]:
    """As the stages read: whole batches of rows as Arrow tables."""
    order = CorpusBatchSampler(corpus, ALL, settings)
    return iter(DataLoader(CorpusRows(corpus), batch_sampler=order, collate_fn=collate))


def rates(tokens: Corpus, counts: Corpus, files: dict[str, Path], seconds: float) -> dict[str, dict]:
    """Every way to the same cells, in cells per second."""
    padded = CellCollator(tokens.manifest["value_mode"])
    packed = CellCollator(tokens.manifest["value_mode"], packed=True)
    on_the_fly = TokenizingCollator(tokens.gene_tokenizer())
    ways: dict[str, Callable[[], Iterator]] = {
        "plain h5ad, gzip, random rows -> csr": lambda: from_h5ad(files["gzip"]),
        "plain h5ad, uncompressed, random rows -> csr": lambda: from_h5ad(files["plain"]),
        "HF lists, dataset[i] -> padded": lambda: from_lists(tokens),
        "corpus of tokens -> padded": lambda: loader(tokens, padded),
        "corpus of tokens -> packed": lambda: _whole_batches(loader(tokens, packed)),
        "corpus of counts, tokenised on the way -> padded": lambda: loader(counts, on_the_fly),
    }
    return {name: measure(way, seconds) for name, way in ways.items()}


def _whole_batches(batches: Iterator[dict]) -> Iterator[None]:
    return (None for _ in batches)


def own_memory(path: Path) -> float:
    """MB that reading a whole epoch makes the process itself hold, over what it held before."""
    corpus = Corpus.open(path)
    with peak_memory() as memory:
        for _ in loader(corpus, CellCollator(corpus.manifest["value_mode"])):
            pass
    return memory["growth_mb"]


def memory_of_a_corpus_ten_times_as_large(folder: Path, num_cells: int, gene_tokenizer: ScMMGPTGeneTokenizer) -> dict:
    found = {}
    for times in (1, 10):
        cells = synthetic_cells(num_cells * times, len(gene_tokenizer.genes), 300, seed=times)
        place = folder / f"times{times}.h5ad"
        cells.write_h5ad(place)
        corpus = build_corpus([str(place)], folder / f"times{times}", processor=gene_tokenizer, say=lambda line: None)
        found[f"{num_cells * times} cells"] = in_own_process(own_memory, corpus.path)
    return found


def main() -> None:
    settings = options(
        __doc__,
        num_cells=20_000,
        num_genes=20_000,
        mean_genes=1_000,
        max_genes=1_200,
        seconds=5.0,
        output=OUT / "loading.json",
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cells = synthetic_cells(settings.num_cells, settings.num_genes, settings.mean_genes)
        files = {"gzip": folder / "gzip.h5ad", "plain": folder / "plain.h5ad"}
        cells.write_h5ad(files["gzip"], compression="gzip")
        cells.write_h5ad(files["plain"])
        gene_tokenizer = ScMMGPTGeneTokenizer(genes=list(cells.var_names), max_genes=settings.max_genes)
        corpora = {
            mode: build_corpus(
                [str(files["plain"])],
                folder / mode,
                recipe=CorpusRecipe(tokens={"value_mode": mode}),
                processor=gene_tokenizer,
                say=lambda line: None,
            )
            for mode in ("log1p", "counts")
        }
        tokens_per_cell = corpora["log1p"].manifest["num_tokens"] / settings.num_cells
        ways = rates(corpora["log1p"], corpora["counts"], files, settings.seconds)
        memory = memory_of_a_corpus_ten_times_as_large(folder, settings.num_cells // 4, gene_tokenizer)
    print(f"{settings.num_cells:,} cells, {tokens_per_cell:,.0f} tokens a cell")
    plain = ways["plain h5ad, uncompressed, random rows -> csr"]["rate"]
    rows = [row("loading", way, found, "cells/s", plain=plain) for way, found in ways.items()]
    about = {"settings": vars(settings), "machine": machine(), "tokens_per_cell": round(tokens_per_cell, 1)}
    write_report(settings.output, rows, **about, own_memory_mb=memory)
    print(*(f"{size}: {megabytes} MB of its own memory" for size, megabytes in memory.items()), sep="\n")


if __name__ == "__main__":
    main()
