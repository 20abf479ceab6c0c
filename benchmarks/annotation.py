"""Annotation with the embedded model, file to file: cells a second, and whether memory grows with the file.

    python -m benchmarks.annotation                              # 100,000 and 300,000 cells: several minutes
    python -m benchmarks.annotation --num-cells 4000 12000 --repeats 1       # does it run?

Real cells over and over (SCMMGPT_DATA names them), each run in a process of its own that reads the file, names every
cell and writes the copy with the names; `--folder` says where the files may lie (12 KB a cell), `--engine ray` uses a
cluster. `--report-cells` says of how many the command is timed, its start and its report included. The rival's way, on
a few hundred of the same cells: its matching head is asked about every cell and every label, as LangCell's is, so that
time grows with the labels.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from benchmarks._measuring import (
    OUT,
    in_own_process,
    interleaved,
    machine,
    options,
    peak_memory,
    row,
    write_report,
)
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
# Ten thousand cells with everything on, in twenty seconds.
GOAL_WITH_REPORT = 500
Engine: TypeAlias = Literal["local", "ray"]


def annotate_file(path: Path, engine: Engine) -> dict[str, float]:
    """Time and memory of one run, in this process."""
    import scmmgpt

    warnings.simplefilter("ignore", UserWarning)
    model = scmmgpt.load(device=None)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, peak_memory() as found:
        start = time.perf_counter()
        result = scmmgpt.annotate(
            path, output=Path(folder) / "out.h5ad", model=model, summary_only=True, progress=False, engine=engine
        )
        seconds = time.perf_counter() - start
    return {"rate": result.n_obs / seconds, "seconds": round(seconds, 1), **found}


def file_rows(sizes: list[int], repeats: int, folder: Path, engine: Engine) -> list[dict]:
    """One row for each size; sizes take turns."""
    cells = real_cells()
    files = {size: write_tiled(cells, size, folder / f"{size}.h5ad") for size in sizes}
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size, path in files.items():
            runs[size].append(in_own_process(annotate_file, path, engine))
    rows = []
    for size, found in runs.items():
        rates = [run["rate"] for run in found]
        spread = {"rate": round(float(np.median(rates)), 1), "low": round(min(rates), 1), "high": round(max(rates), 1)}
        peak = float(np.median([run["peak_mb"] for run in found]))
        way = f"{size:,} cells, file to file" + (f", {engine}" if engine != "local" else "")
        rows.append(row("annotation", way, spread, "cells/s", num_cells=size, peak_mb=round(peak, 1)))
    return rows


def command_row(num_cells: int, repeats: int, folder: Path) -> dict:
    """What somebody waits for who types the command: from its start to its report."""
    # No two cells are the same, or the map would show heaps of copies.
    path = write_tiled(real_cells(), num_cells, folder / "command.h5ad", kept=0.9)
    command = [sys.executable, "-m", "scmmgpt", "annotate", str(path), "--overwrite"]
    outputs = ["--output", str(folder / "out.h5ad"), "--report", str(folder / "report.html")]
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([*command, *outputs], check=True, capture_output=True)
        rates.append(num_cells / (time.perf_counter() - start))
    spread = {"rate": round(float(np.median(rates)), 1), "low": round(min(rates), 1), "high": round(max(rates), 1)}
    way = f"{num_cells:,} cells, start and report included"
    return row("annotation", way, spread, "cells/s", num_cells=num_cells, goal=GOAL_WITH_REPORT)


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
    given = options(
        __doc__,
        num_cells=(100_000, 300_000),
        few_cells=512,
        report_cells=10_000,
        repeats=3,
        engine="local",
        folder=Path,
    )
    warnings.simplefilter("ignore", UserWarning)
    about = machine("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        rows = file_rows(given.num_cells, given.repeats, Path(folder), given.engine)
        peaks = [line["peak_mb"] for line in rows]
        growth = round(max(peaks) / min(peaks), 3)
        if given.engine == "local":
            rows.append(command_row(given.report_cells, given.repeats, Path(folder)))
    if given.engine == "local":
        rows += label_rows(given.few_cells, given.repeats)
    name = "annotation" if given.engine == "local" else f"annotation_{given.engine}"
    write_report(OUT / f"{name}.json", rows, machine=about, settings=vars(given), memory_growth=growth)
    print(f"The highest peak of memory is {growth} times the lowest; allowed: {MOST_GROWTH}.")
    return 0 if growth <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
