"""What every benchmark shares: command line, interleaved runs, the machine's limits, memory, one form of report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

OUT = Path(__file__).parent / "out"


def options(description: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line: `num_cells=4` makes `--num-cells 8` possible, a tuple takes several values, False is a switch.

    A type in place of a default, such as `Path`, is for an option that may be left out.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        kind: dict[str, Any] = {"type": type(default), "default": default}
        if default is False:
            kind = {"action": "store_true"}
        elif isinstance(default, tuple):
            kind |= {"type": type(default[0]), "nargs": "+"}
        elif isinstance(default, type):
            kind = {"type": default}
        parser.add_argument(f"--{name.replace('_', '-')}", **kind)
    return parser.parse_args()


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that runs in a new process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def interleaved(ways: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, float]]:
    """Things done per second by each way: median, lowest and highest of runs in turn, after one to warm up."""
    for work in ways.values():
        work()
    clock: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            wall, own = time.perf_counter(), time.process_time()
            done = work()
            clock[name].append(done / (time.perf_counter() - wall))
            processor[name].append(done / max(time.process_time() - own, 1e-9))
    return {
        name: {
            "rate": round(float(np.median(clock[name])), 3),
            "low": round(min(clock[name]), 3),
            "high": round(max(clock[name]), 3),
            "per_cpu_second": round(float(np.median(processor[name])), 3),
        }
        for name in ways
    }


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where a number was measured, and whether others were at work there."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_at_start": round(os.getloadavg()[0], 1),
    }
    found["was_quiet"] = found["load_at_start"] < 0.5
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@torch.inference_mode()
def matmul_peak(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of a large product of matrices by the better of the libraries at hand."""
    size = 8192 if device.startswith("cuda") else 2048
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    ways: list[Callable[[], Any]] = [lambda: one @ other]
    if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(other.T.contiguous(), size)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(one, packed, None, "none", [], ""))
    return 2 * size**3 / min(_best_seconds(way, device) for way in ways)


def _best_seconds(work: Callable[[], Any], device: str, repeats: int = 5) -> float:
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


@contextmanager
def peak_memory(every: float = 0.05) -> Iterator[dict[str, float]]:
    """The most memory that this process held itself, in MB; mapped files, which the system may drop, do not count.

    `growth_mb` is what came on top of the memory held at the start.
    """
    before, over = own_memory(), threading.Event()
    found = {"peak_mb": before}

    def watch() -> None:
        while not over.wait(every):
            found["peak_mb"] = max(found["peak_mb"], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found["growth_mb"] = round(found["peak_mb"] - before, 1)
        found["peak_mb"] = round(found["peak_mb"], 1)


def own_memory(process: int | str = "self") -> float:
    """MB that a process holds itself; 0 for one that has just ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def row(task: str, way: str, found: dict[str, float], unit: str, **more: Any) -> dict[str, Any]:
    """One line of the common table; `more`: plain (the rate of the rival's way), share_of_limit, peak_mb, goal."""
    line = {"task": task, "way": way, "unit": unit, **found, **more}
    if more.get("plain"):  # the rival's own row has ratio 1
        line["ratio"] = round(found["rate"] / more["plain"], 2)
    return line


def write_report(path: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Keep a benchmark's rows as JSON, and print them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows, **more}, indent=1, default=str) + "\n")
    print_rows(rows)


def print_rows(rows: list[dict[str, Any]]) -> None:
    for line in rows:
        spread = f"({line['low']:,.2f} to {line['high']:,.2f})" if "low" in line else ""
        figures = f"{line['rate']:>12,.2f} {line['unit']:<12} {spread}"
        extra = [f"{name} {line[name]}" for name in ("ratio", "share_of_limit", "peak_mb", "goal") if name in line]
        print(f"{line['task']:<12} {line['way']:<44} {figures} {', '.join(extra)}", flush=True)
