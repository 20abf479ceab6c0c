"""How fast cells become tokens, against faithful plain versions of what Geneformer's and scGPT's tokenisers do.

    python -m benchmarks.tokenize_cells [--num-cells 10000] [--flat 1000000]

One run, one thread, cells per second of CPU time, so that ratios stand on a busy machine too. Cells are made: negative
binomial counts over 20,000 genes, about 2,600 of them expressed in a cell. `--flat` also tokenises that many shallow
cells (600 counts each) from a file in chunks and prints the memory it took. Padded and packed calls on all cells at once are
timed in processes of their own that take turns, since a first call also pays for what is compiled and for memory that
no call has touched yet; on a virtual machine the host may have to find that memory first.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from benchmarks._measuring import OUT, in_own_process, interleaved, machine, options, write_report
from benchmarks._measuring import row as table_row
from benchmarks._tiled import tiled, write_tiled
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.gene_kernels_scmmgpt import count_expressed, order_genes

NUM_GENES, MAX_GENES, BLOCK = 20_000, 2_048, 1_000
FILE_CHUNK = 512
NOTHING = np.empty(0)
# Mean counts of a cell that give it about 700 and 2,200 expressed genes.
COUNTS = 960, 4_500
CELLS_OF_ONE_CALL = 4_000
ROUNDS = 5  # processes of each way; a first call differs from process to process by half
GOALS = {
    "kernel rank": 50_000,
    "kernel bins": 50_000,
    "processor, fresh arrays, log1p": 20_000,
    "rank with the h5ad read / Geneformer's way": 6,
    "kernel bins / scGPT's collator": 12,
}


def made_cells(num_cells: int, seed: int = 0, mean_counts: int = 6_000) -> ad.AnnData:
    """Counts of about 2,600 expressed genes a cell, fewer with fewer counts."""
    random = np.random.default_rng(seed)
    mean = random.lognormal(-3, 2, NUM_GENES)
    mean *= mean_counts / mean.sum()
    blocks = []
    for start in range(0, num_cells, BLOCK):
        rows = min(BLOCK, num_cells - start)
        depth = random.lognormal(0, 0.4, (rows, 1))
        blocks.append(sparse.csr_matrix(random.poisson(random.gamma(2, 0.5, (rows, NUM_GENES)) * mean * depth)))
    genes = pd.DataFrame(index=[f"GENE{number}" for number in range(NUM_GENES)])
    return ad.AnnData(sparse.vstack(blocks, format="csr").astype(np.float32), var=genes)


def common_rows(found: dict[str, dict[str, float]]) -> list[dict]:
    """Each rate by the clock, beside that of the rival it is compared with."""
    rival = {"rank": "Geneformer's way with the h5ad read", "bins": "scGPT's collator, 1,200 genes"}
    rows = []
    for name, rates in found.items():
        plain = next((found[other]["rate"] for word, other in rival.items() if word in name.split()), None)
        rows.append(table_row("tokenising", name, rates, "cells/s", **({"plain": plain} if plain else {})))
    return rows


# ---- ours


def kernel(cells: sparse.csr_matrix, medians: np.ndarray, quantiles: np.ndarray) -> Callable[[], int]:
    """The bare kernel into arrays that are used again, a block of cells at a time."""
    ids = np.arange(NUM_GENES, dtype=np.int32)
    indptr = cells.indptr.astype(np.int64)
    genes, values = np.empty(BLOCK * MAX_GENES, np.int64), np.empty(BLOCK * MAX_GENES, np.float32)
    starts = np.arange(BLOCK) * MAX_GENES

    def work() -> int:
        for start in range(0, cells.shape[0], BLOCK):
            block = indptr[start : start + BLOCK + 1], cells.indices, cells.data, ids
            lengths = np.minimum(count_expressed(*block), MAX_GENES)
            order_genes(*block, medians, quantiles, 0.0, starts[: len(lengths)], lengths, genes, values)
        return cells.shape[0]

    return work


def whole_call(gene_tokenizer: ScMMGPTGeneTokenizer, adata: ad.AnnData, batch: int = 1024) -> Callable[[], int]:
    """The call on one AnnData after another, gene matching, masks and fresh arrays included."""
    parts = [adata[start : start + batch].copy() for start in range(0, adata.n_obs, batch)]

    def work() -> int:
        for part in parts:
            gene_tokenizer(part)
        return adata.n_obs

    return work


def from_file(gene_tokenizer: ScMMGPTGeneTokenizer, path: Path) -> Callable[[], int]:
    """The call on an h5ad file, in chunks of as many cells as Geneformer's."""
    return lambda: sum(len(chunk["gene_ids"]) for chunk in gene_tokenizer.iter_chunks(path, chunk_size=FILE_CHUNK))


def calls(num_counts: int, packed: bool, num_calls: int = 4) -> tuple[float, list[float]]:
    """Expressed genes a cell, and cells per CPU-second of one call after another on all cells, in this process."""
    adata = tiled(made_cells(BLOCK, mean_counts=num_counts), CELLS_OF_ONE_CALL)
    gene_tokenizer = ScMMGPTGeneTokenizer(list(adata.var_names), max_genes=None)
    gene_tokenizer(adata[:4].copy(), packed=packed)  # matches the genes, and loads what is compiled
    rates = []
    for _ in range(num_calls):
        start = time.process_time()
        tokens = gene_tokenizer(adata, packed=packed)
        rates.append(adata.n_obs / (time.process_time() - start))
        del tokens
    return adata.X.nnz / adata.n_obs, rates


def padded_rows() -> list[dict]:
    """The first call of a process and the median of later ones, padded beside packed, in processes that take turns."""
    rows = []
    for num_counts in COUNTS:
        found: dict[bool, list[list[float]]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for packed, of_way in found.items():
                genes, rates = in_own_process(calls, num_counts, packed)
                of_way.append(rates)
        for name, chosen in {"first call": slice(0, 1), "later": slice(1, None)}.items():
            plain, ours = (np.array([np.median(rates[chosen]) for rates in found[packed]]) for packed in (True, False))
            spread = {"rate": np.median(ours), "low": ours.min(), "high": ours.max()}
            spread = {which: round(float(rate), 1) for which, rate in spread.items()}
            way = f"padded, {name}, {genes:,.0f} genes a cell"
            plain_rate = round(float(np.median(plain)), 1)
            rows.append(table_row("tokenising", way, spread, "cells/CPU-s", plain=plain_rate, goal=round(1 / 1.3, 2)))
    return rows


# ---- what the machine allows


def sorting_alone(cells: sparse.csr_matrix, medians: np.ndarray) -> Callable[[], int]:
    """numpy's vectorised sort of every cell's keys, made beforehand, with the genes' places packed in: no more."""
    keys = (cells.data / medians[cells.indices]).astype(np.float32).view(np.uint32).astype(np.uint64)
    items = keys << np.uint64(32) | cells.indices.astype(np.uint64)

    def work() -> int:
        for start, stop in zip(cells.indptr[:-1], cells.indptr[1:], strict=True):
            np.sort(items[start:stop])
        return cells.shape[0]

    return work


# ---- the peers' ways, re-implemented plainly


def geneformer_way(path: Path, medians: np.ndarray) -> Callable[[], int]:
    """Geneformer: backed chunks of 512 cells, scaled and divided by the medians, each cell's genes sorted."""

    def work() -> int:
        adata = ad.read_h5ad(path, backed="r")
        totals = np.asarray(adata.obs["n_counts"])
        columns = np.arange(adata.n_vars)
        tokens = np.arange(adata.n_vars) + 2
        cells = []
        for start in range(0, adata.n_obs, FILE_CHUNK):
            chosen = np.arange(start, min(start + FILE_CHUNK, adata.n_obs))
            block = adata[chosen, columns].X
            scaled = sparse.csr_matrix(block / totals[chosen][:, None] * 10_000 / medians)
            for cell in range(scaled.shape[0]):
                row = scaled[cell]
                cells.append(tokens[row.indices][np.argsort(-row.data)][:MAX_GENES])
        adata.file.close()
        return len(cells)

    return work


def scgpt_way(cells: sparse.csr_matrix, most: int) -> Callable[[], int]:
    """scGPT's collator: a dense row, its non-zero genes, 51 quantile bins, a random choice, padding."""
    random = np.random.default_rng(0)

    def binned(values: np.ndarray) -> np.ndarray:
        edges = np.quantile(values, np.linspace(0, 1, 50))
        left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
        return np.ceil(random.random(len(values)) * (right - left) + left).astype(np.int64)

    def work() -> int:
        for start in range(0, cells.shape[0], 64):
            batch_ids, batch_values = [], []
            for row in cells[start : start + 64].toarray():
                genes = np.nonzero(row)[0]
                values = binned(row[genes])
                if len(genes) > most:
                    chosen = random.permutation(len(genes))[:most]
                    genes, values = genes[chosen], values[chosen]
                batch_ids.append(genes)
                batch_values.append(values)
            longest = max(map(len, batch_ids))
            for genes, values in zip(batch_ids, batch_values, strict=True):
                np.pad(genes, (0, longest - len(genes)))
                np.pad(values, (0, longest - len(values)))
        return cells.shape[0]

    return work


# ---- memory


def peak_of_a_million(gene_tokenizer: ScMMGPTGeneTokenizer, num_cells: int, folder: Path) -> list[str]:
    """Tokenise a file of many cells in chunks; the peak after the first tenth must be the peak at the end."""
    path = write_tiled(made_cells(BLOCK, seed=1, mean_counts=600), num_cells, folder / "many.h5ad")
    start, done, lines = time.process_time(), 0, []
    for chunk in gene_tokenizer.iter_chunks(path, chunk_size=BLOCK):
        done += len(chunk["gene_ids"])
        if done % max(num_cells // 10, 1) < BLOCK:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            lines.append(f"{done:>10,} cells  peak {peak:,.0f} MB")
    lines.append(f"{done / (time.process_time() - start):,.0f} cells per CPU second, read included")
    return lines


def main() -> None:
    given = options(__doc__, num_cells=10_000, repeats=5, flat=0)
    adata = tiled(made_cells(min(given.num_cells, 2 * BLOCK)), given.num_cells)
    cells, names = adata.X, list(adata.var_names)
    medians = np.random.default_rng(0).lognormal(1, 0.5, NUM_GENES)
    adata.obs["n_counts"] = np.asarray(cells.sum(axis=1)).ravel()
    log1p = ScMMGPTGeneTokenizer(names, medians=medians, gene_order="median_ratio", max_genes=MAX_GENES)
    rank = log1p.with_settings(value_mode="rank", add_cls=False)
    bins = log1p.with_settings(value_mode="bins", gene_order="value")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        adata.write_h5ad(path)
        ways = {
            "kernel rank": kernel(cells, medians, NOTHING),
            "kernel bins": kernel(cells, NOTHING, np.linspace(0, 1, 50)),
            "processor, fresh arrays, log1p": whole_call(log1p, adata),
            "processor, fresh arrays, bins": whole_call(bins, adata),
            "np.sort of rank's keys, nothing else": sorting_alone(cells, medians),
            "rank with the h5ad read": from_file(rank, path),
            "Geneformer's way with the h5ad read": geneformer_way(path, medians),
            "scGPT's collator, 1,200 genes": scgpt_way(cells, 1_200),
        }
        found = interleaved(ways, given.repeats)
        rates = {name: rates["per_cpu_second"] for name, rates in found.items()}
        ratios = {
            "rank with the h5ad read / Geneformer's way": rates["rank with the h5ad read"]
            / rates["Geneformer's way with the h5ad read"],
            "kernel bins / scGPT's collator": rates["kernel bins"] / rates["scGPT's collator, 1,200 genes"],
            "kernel rank / Geneformer's way": rates["kernel rank"] / rates["Geneformer's way with the h5ad read"],
        }
        flat = peak_of_a_million(log1p, given.flat, Path(folder)) if given.flat else []
    print(
        f"{cells.shape[0]:,} made cells, {cells.nnz / cells.shape[0]:,.0f} expressed genes each; cells per CPU second"
    )
    for name, number in rates.items():
        print(f"{name:<45}{number:>12,.0f}" + (f"   goal {GOALS[name]:,}" if name in GOALS else ""))
    for name, number in ratios.items():
        print(f"{name:<45}{number:>12.1f}" + (f"   goal {GOALS[name]}" if name in GOALS else ""))
    print(*flat, sep="\n")
    rows = common_rows(found) + padded_rows()
    write_report(OUT / "tokenize_cells.json", rows, num_cells=cells.shape[0], machine=machine(), flat=flat)


if __name__ == "__main__":
    main()
