"""Annotation with the embedded model, file to file: cells a second, and whether memory grows with the file.

    python -m benchmarks.annotation                              # 100,000 and 300,000 cells: several minutes
    python -m benchmarks.annotation --num-cells 4000 12000 --repeats 1       # does it run?

Real cells over and over (SCMMGPT_DATA names them), each run in a process of its own that reads the file, names every
cell and writes the copy with the names. The rival's way, on a few hundred of the same cells: its matching head is
asked about every cell and every label, as LangCell's is, so that time grows with the labels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks._measuring import interleaved, machine, peak_memory, row, write_report
from benchmarks._tiled import real_cells, tiled, write_tiled

FEW_LABELS = [
    "B cell",
    "CD4-positive, alpha-beta T cell",
    "CD8-positive, alpha-beta T cell",
    "natural killer cell",
    "CD14-positive monocyte",
    "dendritic cell",
    "platelet",
    "hematopoietic stem cell",
]
MOST_GROWTH = 1.1


def annotate_file(path: Path, engine: str) -> dict[str, float]:
    """Time and memory of one run, in this process."""
    import scmmgpt

    cluster = {"engine": engine} if engine != "local" else {}
    model = scmmgpt.load(device=None)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, peak_memory() as found:
        start = time.perf_counter()
        result = scmmgpt.annotate(
            path, output=Path(folder) / "out.h5ad", model=model, summary_only=True, progress=False, **cluster
        )
        seconds = time.perf_counter() - start
    return {"rate": result.n_obs / seconds, "seconds": round(seconds, 1), **found}


def in_its_own_process(path: Path, engine: str) -> dict[str, float]:
    call = [sys.executable, "-m", "benchmarks.annotation", "--one-file", str(path), "--engine", engine]
    answer = subprocess.run(call, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(answer.stderr[-2000:])
    return json.loads(answer.stdout.splitlines()[-1])


def file_rows(sizes: list[int], repeats: int, folder: Path, engine: str) -> list[dict]:
    """One row for each size; sizes take turns."""
    cells = real_cells()
    files = {size: write_tiled(cells, size, folder / f"{size}.h5ad") for size in sizes}
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size, path in files.items():
            runs[size].append(in_its_own_process(path, engine))
    rows = []
    for size, found in runs.items():
        rates = [run["rate"] for run in found]
        spread = {"rate": round(float(np.median(rates)), 1), "low": round(min(rates), 1), "high": round(max(rates), 1)}
        peak = float(np.median([run["peak_mb"] for run in found]))
        way = f"{size:,} cells, file to file" + (f", {engine}" if engine != "local" else "")
        rows.append(row("annotation", way, spread, "cells/s", num_cells=size, peak_mb=round(peak, 1)))
    return rows


def label_rows(num_cells: int, repeats: int) -> list[dict]:
    """Ours and the matching head for each label, on the same cells in memory."""
    import scmmgpt

    cells, model = tiled(real_cells(), num_cells), scmmgpt.load(device=None)

    def ours() -> int:
        scmmgpt.annotate(cells, FEW_LABELS, model=model, progress=False)
        return num_cells

    def matched() -> int:
        scmmgpt.annotate(cells, FEW_LABELS, model=model, rerank=len(FEW_LABELS), progress=False)
        return num_cells

    names = {f"matching head for each of {len(FEW_LABELS)} labels": matched, f"ours, {len(FEW_LABELS)} labels": ours}
    found = interleaved(names, repeats)
    plain = found[next(iter(names))]["rate"]
    return [row("annotation", way, rates, "cells/s", plain=plain) for way, rates in found.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-cells", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--few-cells", type=int, default=512, help="for the comparison with the rival's way")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--folder", type=Path, help="where the files may lie; 12 KB a cell are needed")
    parser.add_argument("--one-file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    if arguments.one_file:
        print(json.dumps(annotate_file(arguments.one_file, arguments.engine)))
        return 0
    about = machine("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = file_rows(arguments.num_cells, arguments.repeats, Path(folder), arguments.engine)
    peaks = [line["peak_mb"] for line in rows]
    growth = round(max(peaks) / min(peaks), 3)
    if arguments.engine == "local":
        rows += label_rows(arguments.few_cells, arguments.repeats)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("folder", "one_file")}
    name = "annotation" if arguments.engine == "local" else f"annotation_{arguments.engine}"
    write_report(name, rows, machine=about, settings=settings, memory_growth=growth)
    print(f"The highest peak of memory is {growth} times the lowest; allowed: {MOST_GROWTH}.")
    return 0 if growth <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
