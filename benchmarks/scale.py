"""Millions of cells annotated or embedded file to file, killed on the way: time, memory, and whether the bytes are the same.

    python -m benchmarks.scale --folder /a/large/disk                    # 3,000,000 cells: hours on two cores
    python -m benchmarks.scale --num-cells 6000 --compared 4096          # does it run?

Thinned copies of real cells (SCMMGPT_DATA names them), no two the same. The command is killed (SIGKILL) so many times
on the way and run again; so it is with the first `--compared` of the same cells, which are also annotated without a
kill. What the two short runs added must be the same bytes. With `--verb embed` the first cells of the long run must have
the same bytes too; names are decided over a whole study, so that more cells may change them. `--format zarr` reads and
writes zarr; `--engine ray` also kills a worker.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

import anndata
import h5py
import pandas as pd
import psutil
import zarr

from benchmarks._measuring import OUT, in_own_process, machine, options, own_memory, print_rows, row, write_report
from benchmarks._tiled import real_cells, write_tiled

Engine: TypeAlias = Literal["local", "ray"]
SECONDS_BETWEEN_LOOKS = 0.2


class Run:
    """`scmmgpt annotate` or `embed` of one file in a process of its own, watched."""

    def __init__(self, path: Path, output: Path, engine: Engine, verb: str):
        self.output, self.engine, self.verb = output, engine, verb
        self.command = [sys.executable, "-m", "scmmgpt", verb, str(path), "--output", str(output)]
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
            sys.exit(f"{self.verb} ended with {process.returncode}: {said}")
        if most_cells is not None:
            sys.exit(f"{self.verb} ended before {most_cells} cells were done: it could not be killed there.")

    def row_of(self, num_cells: int, seconds: float) -> dict:
        kind, kills = self.output.suffix[1:], len(self.killed_after)
        return row(
            "scale",
            f"{self.verb} {num_cells:,} cells, {kind}, {self.engine}, killed {kills} times",
            {"rate": round(num_cells / seconds, 1)},
            "cells/s",
            seconds=round(seconds),
            peak_mb=round(self.peak_mb),
            killed_after=self.killed_after,
            workers_killed=self.workers_killed,
        )

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


def hash_of(path: Path, num_cells: int) -> str:
    """Of all that was added to the first cells."""
    group: Any
    with h5py.File(path) if path.suffix == ".h5ad" else nullcontext(zarr.open_group(path, mode="r")) as group:
        obs = anndata.io.read_elem(group["obs"])[:num_cells]
        added = [group["obsm"][name][:num_cells] for name in sorted(group["obsm"]) if name.startswith("X_scmmgpt")]
    columns = obs[[name for name in obs if name.startswith("scmmgpt")]].astype(str)
    parts = [pd.util.hash_pandas_object(columns).to_numpy(), *added]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def at_equal_steps(num_cells: int, number: int) -> list[int]:
    return [num_cells * step // (number + 1) for step in range(1, number + 1)]


def main() -> int:
    given = options(
        __doc__,
        num_cells=3_000_000,
        compared=98_304,
        kills=2,
        kept=0.35,
        format="h5ad",
        engine="local",
        verb="annotate",
        folder=Path,
    )
    about, kind, cells = machine(), given.format, real_cells()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place)
        files = {  # written by processes whose memory is given back, for the runs need it
            size: in_own_process(write_tiled, cells, size, folder / f"{size}.{kind}", given.kept)
            for size in (given.compared, given.num_cells)
        }
        rows, hashes = [], {}
        for name, size, kills in (
            ("unbroken", given.compared, 0),
            ("killed", given.compared, given.kills),
            ("large", given.num_cells, given.kills),
        ):
            run = Run(files[size], folder / f"{name}.{kind}", given.engine, given.verb)
            seconds = run.to_the_end(at_equal_steps(size, kills))
            hashes[name] = hash_of(run.output, given.compared)
            rows.append(run.row_of(size, seconds))
            print_rows(rows[-1:])
    compared = {hashes[name] for name in hashes if given.verb == "embed" or name != "large"}
    name = f"scale_{given.verb}_{kind}_{given.engine}.json"
    write_report(OUT / name, rows, machine=about, settings=vars(given), hashes=hashes, are_equal=len(compared) == 1)
    print("The same bytes." if len(compared) == 1 else f"The bytes differ: {hashes}")
    return len(compared) - 1


if __name__ == "__main__":
    sys.exit(main())
