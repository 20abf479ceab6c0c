"""Millions of cells annotated file to file, killed on the way: time, memory, and whether the bytes are the same.

    python -m benchmarks.scale --folder /a/large/disk                    # 3,000,000 cells: hours on two cores
    python -m benchmarks.scale --num-cells 6000 --compared 4096          # does it run?

Thinned copies of real cells (SCMMGPT_DATA names them), no two the same. `scmmgpt annotate` is killed (SIGKILL) so many
times on the way and run again; then the first `--compared` of the same cells are annotated without a kill, and with as
many. The embeddings of the first cells must be the same bytes in all three, and so must everything that the two short
runs added. `--format zarr` reads and writes zarr; `--engine ray` also kills a worker.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import anndata
import numpy as np
import pandas as pd
import psutil

from benchmarks._measuring import OUT, machine, options, own_memory, row, write_report
from benchmarks._tiled import real_cells, write_tiled

Engine: TypeAlias = Literal["local", "ray"]
SECONDS_BETWEEN_LOOKS = 0.2


class Run:
    """`scmmgpt annotate` of one file in a process of its own, watched."""

    def __init__(self, path: Path, output: Path, engine: Engine):
        self.output, self.engine = output, engine
        self.command = [sys.executable, "-m", "scmmgpt", "annotate", str(path), "--output", str(output)]
        self.command += ["--engine", engine] if engine != "local" else []
        self.peak_mb, self.killed_after, self.workers_killed = 0.0, list[int](), 0

    def to_the_end(self, kills_after: list[int]) -> float:
        """Seconds of the clock; the process is killed after so many cells each time, and begun again."""
        start = time.perf_counter()
        for most_cells in [*kills_after, None]:
            self._once(most_cells)
        return time.perf_counter() - start

    def _once(self, most_cells: int | None) -> None:
        with subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None:
                self.peak_mb = max(self.peak_mb, own_memory(process.pid))
                if self.engine == "ray" and not self.workers_killed and self._done():
                    self.workers_killed = kill_a_worker()
                if most_cells is not None and self._done() >= most_cells:
                    process.send_signal(signal.SIGKILL)
                    self.killed_after.append(self._done())
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)
            said = process.stderr.read().decode() if process.stderr else ""
        if process.returncode:
            sys.exit(f"annotate ended with {process.returncode}: {said}")
        if most_cells is not None:
            sys.exit(f"annotate ended before {most_cells} cells were done: it could not be killed there.")

    def _done(self) -> int:
        """Cells that a next run would not compute again."""
        state = self.output.with_name(f".{self.output.name}.unfinished") / "state.json"
        try:
            return max(json.loads(state.read_text())["done"].values(), default=0)
        except (OSError, ValueError):
            return 0


def kill_a_worker() -> int:
    """How many processes of Ray that hold a copy of the model were killed: one, where there is one."""
    for process in psutil.process_iter(["cmdline"]):
        if "".join(process.info["cmdline"] or []).startswith("ray::MapWorker"):
            process.kill()
            return 1
    return 0


def parts_of(path: Path, num_cells: int) -> Iterator[tuple[str, bytes]]:
    """What was added to the first cells, by its name, as bytes."""
    added = anndata.read_h5ad(path, backed="r") if path.suffix == ".h5ad" else anndata.experimental.read_lazy(path)
    first = added[:num_cells].to_memory()
    for name in sorted(name for name in first.obsm if name.startswith("X_scmmgpt")):
        yield name, np.ascontiguousarray(first.obsm[name]).tobytes()
    for name in sorted(name for name in first.obs if name.startswith("scmmgpt")):
        yield name, pd.util.hash_pandas_object(first.obs[name].astype(str), index=True).to_numpy().tobytes()


def hashes_of(path: Path, num_cells: int) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in parts_of(path, num_cells)}


def at_equal_steps(num_cells: int, number: int) -> list[int]:
    return [num_cells * step // (number + 1) for step in range(1, number + 1)]


def main() -> int:
    given = options(
        __doc__, num_cells=3_000_000, compared=98_304, kills=2, kept=0.35, format="h5ad", engine="local", folder=Path
    )
    about = machine()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder, kind = Path(place), given.format
        cells = real_cells()
        few = write_tiled(cells, given.compared, folder / f"few.{kind}", kept=given.kept)
        unbroken, killed = (Run(few, folder / f"{name}.{kind}", given.engine) for name in ("unbroken", "killed"))
        seconds = {
            "unbroken": unbroken.to_the_end([]),
            "killed": killed.to_the_end(at_equal_steps(given.compared, given.kills)),
        }
        many = write_tiled(cells, given.num_cells, folder / f"many.{kind}", kept=given.kept)
        large = Run(many, folder / f"large.{kind}", given.engine)
        seconds["large"] = large.to_the_end(at_equal_steps(given.num_cells, given.kills))
        found = {run.output.stem: hashes_of(run.output, given.compared) for run in (unbroken, killed, large)}
    rows = [
        row(
            "scale",
            f"{size:,} cells, {kind}, {given.engine}, killed {len(run.killed_after)} times",
            {"rate": round(size / seconds[run.output.stem], 1)},
            "cells/s",
            seconds=round(seconds[run.output.stem]),
            peak_mb=round(run.peak_mb),
            killed_after=run.killed_after,
            workers_killed=run.workers_killed,
        )
        for run, size in ((unbroken, given.compared), (killed, given.compared), (large, given.num_cells))
    ]
    embedded = {hashes["X_scmmgpt"] for hashes in found.values()}
    are_equal = found["unbroken"] == found["killed"] and len(embedded) == 1
    write_report(OUT / f"scale_{kind}_{given.engine}.json", rows, machine=about, hashes=found, are_equal=are_equal)
    print("The same bytes." if are_equal else "The bytes differ.")
    return 0 if are_equal else 1


if __name__ == "__main__":
    sys.exit(main())
