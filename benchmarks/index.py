"""An index of an atlas: time and memory to build it, and recall and time per query of the approximate search.

    python -m benchmarks.index --output docs/measured/index.json

The atlas is tiled: real cells (SCMMGPT_DATA names them) are repeated until there are as many as asked for, and each
count of each copy is thinned at random, so that no two cells are the same. Two sizes are built, each in a process of
its own: memory is flat when both need the same. Memory is what the process itself holds (mapped files, which the
system may drop at any time, are not counted), read every 50 ms. Recall is the share of the true best cells, found by
a search through all vectors, that the approximate search finds too. `--folder` says where the atlas and its index lie
meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scmmgpt
from benchmarks._measuring import in_own_process, options, peak_memory
from benchmarks._tiled import write_tiled
from scmmgpt.index import Index, build_index
from scmmgpt.processing.prompting_scmmgpt import query_text

STUDY = "pbmc_facs_zheng2017.h5ad"
SIZES = (75_000, 300_000)
KEPT = 0.7  # of the molecules of a copy
TOP = 20
QUERIES = (
    "cells that make antibodies",
    "natural killer cells that kill by granzymes",
    "classical monocytes",
    "naive CD4 T cells",
    "regulatory T cells",
    "stem cells that will become blood",
    "CD8 T cells",
    "B cells from blood",
    "cells that present antigens",
    "memory T cells",
)


def build(atlas: Path, folder: Path) -> dict[str, float]:
    """Time and memory of a build; the model is loaded and its kernels compiled before the clock starts."""
    model = scmmgpt.load(device="cpu")
    scmmgpt.embed(anndata.AnnData(*_first_cells(atlas)), model=model, progress=False)
    clock, processor = time.perf_counter(), time.process_time()
    with peak_memory() as memory:
        build_index(atlas, folder, model=model, progress=False)
    return {
        "seconds": round(time.perf_counter() - clock, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "megabytes": round(memory["growth_mb"]),
    }


def _first_cells(atlas: Path) -> tuple[sp.csr_matrix, pd.DataFrame, pd.DataFrame]:
    with h5py.File(atlas) as file:
        read = anndata.io.read_elem
        return anndata.io.sparse_dataset(file["X"])[:64], read(file["obs"])[:64], read(file["var"])


def query(folder: Path, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Recall and time per query, the query's text already embedded."""
    index, model = Index.open(folder), scmmgpt.load(device="cpu")
    vectors = model.embed_texts([query_text(text) for text in QUERIES])
    with peak_memory() as memory:
        best = [index.nearest(vector, TOP, exact=True) for vector in vectors]
        found = [index.nearest(vector, TOP) for vector in vectors]
    recall = [np.isin(first[0], second[0]).mean() for first, second in zip(best, found, strict=True)]
    return {
        "recall": {"mean": round(float(np.mean(recall)), 4), "least": round(float(min(recall)), 4)},
        "approximate_ms": _times(index, vectors, repeats, exact=False),
        "exact_ms": _times(index, vectors, repeats, exact=True),
        "held": {"megabytes": round(memory["growth_mb"])},
    }


def _times(index: Index, vectors: np.ndarray, repeats: int, exact: bool) -> dict[str, float]:
    times = []
    for vector in [*vectors] * repeats:
        start = time.perf_counter()
        index.nearest(vector, TOP, exact=exact)
        times.append(1000 * (time.perf_counter() - start))
    return {name: round(float(np.percentile(times, share)), 1) for name, share in (("p50", 50), ("p95", 95))}


def measure(source: Path, sizes: Sequence[int], folder: Path) -> list[dict]:
    study = anndata.read_h5ad(source)
    names, obs = pd.DataFrame(index=study.var_names), study.obs[["cell_type", "tissue"]]
    cells = anndata.AnnData(sp.csr_matrix(study.X), obs=obs, var=names)
    rows = []
    for size in sizes:
        atlas, index = folder / f"atlas{size}.h5ad", folder / f"index{size}"
        write_tiled(cells, size, atlas, KEPT)
        row = {
            "cells": size,
            "atlas_megabytes": round(atlas.stat().st_size / 1e6),
            "build": in_own_process(build, atlas, index),
            "index_megabytes": round(sum(path.stat().st_size for path in index.iterdir()) / 1e6),
            "query": in_own_process(query, index),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
        atlas.unlink()
    return rows


def main() -> None:
    settings = options(__doc__, cells=SIZES, output=Path, folder=Path)
    sources = sorted(Path(os.environ.get("SCMMGPT_DATA", ".")).rglob(STUDY))
    if not sources:
        sys.exit(f"SCMMGPT_DATA must name a folder with {STUDY}.")
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        rows = measure(sources[0], settings.cells, Path(folder))
    if settings.output:
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        settings.output.write_text(json.dumps(report(rows), indent=1) + "\n")


def report(rows: list[dict]) -> dict:
    """The figures with all that is needed to get them again."""
    return {
        "command": "python -m benchmarks.index --output docs/measured/index.json",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        "data": f"{STUDY}, tiled, {KEPT:.0%} of the molecules kept in each copy; {len(QUERIES)} texts, top {TOP}",
        "rows": rows,
    }


if __name__ == "__main__":
    main()
