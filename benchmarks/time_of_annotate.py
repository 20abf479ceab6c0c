"""Where the time of `scmmgpt annotate` goes: shares of the samples of a profiler, the start of the program included.

    pip install py-spy
    python -m benchmarks.time_of_annotate --num-cells 20000

Real cells over and over, as in benchmarks/annotation.py. Time that was spent waiting is not sampled.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks._measuring import OUT, machine, options, write_report
from benchmarks._tiled import real_cells, write_tiled

# What a sample is counted as: by the outermost of these functions on its stack, but for imports, which may be anywhere.
IMPORTS = "_find_and_load"
STAGES = {
    "ScMMGPTModel.run_cell_encoder": "cell encoder",
    "ScMMGPTModel.query_cells": "Q-Former",
    "TokenEvidence.__call__": "agreement with type profiles",
    "ScMMGPTGeneTokenizer.iter_chunks": "reading and tokenising",
    "over_neighbours": "neighbours and communities",
    "evidence_of": "genes that speak for calls",
    "CellAnnotator.call": "calls",
    "CellAnnotator.label_sets": "sets of labels",
    "Verb.begin": "opening file and model",
    "Verb.finish": "writing",
}
REST = "everything else"
SAMPLES_A_SECOND = 50


def stage_of(stack: str) -> str:
    """The stage of one line of py-spy's raw format.

    Examples
    --------
    >>> stage_of("main (cli.py:1);_score (scoring.py:2);over_neighbours (consensus.py:3);eigh (linalg.py:4)")
    'neighbours and communities'
    """
    functions = [frame.split(" (")[0].strip() for frame in stack.split(";")]
    if IMPORTS in functions:
        return "imports"
    return next((STAGES[function] for function in functions if function in STAGES), REST)


def shares_of(raw: str) -> dict[str, float]:
    """Percent of the samples, largest first."""
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, number = line.rsplit(" ", 1)
        counts[stage_of(stack)] += int(number)
    return {stage: round(100 * number / counts.total(), 1) for stage, number in counts.most_common()}


def main() -> None:
    asked = options(__doc__, num_cells=20_000, folder=Path)
    profiler = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if profiler is None:
        print("Skipped: this wants the profiler py-spy (pip install py-spy).")
        return
    cells, before = real_cells(), machine()
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        folder = Path(place)
        path = write_tiled(cells, asked.num_cells, folder / "cells.h5ad", kept=0.9)
        record = [
            profiler,
            "record",
            "--rate",
            str(SAMPLES_A_SECOND),
            "--format",
            "raw",
            "--output",
            str(folder / "raw"),
        ]
        annotate = [sys.executable, "-m", "scmmgpt", "annotate", str(path), "--output", str(folder / "out.h5ad")]
        subprocess.run([*record, "--", *annotate], check=True, capture_output=True)
        shares = shares_of((folder / "raw").read_text())
    rows = [{"task": "annotate", "way": stage, "unit": "% of time", "rate": share} for stage, share in shares.items()]
    write_report(OUT / "time_of_annotate.json", rows, machine=before, num_cells=asked.num_cells)


if __name__ == "__main__":
    main()
