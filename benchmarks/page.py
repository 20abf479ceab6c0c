"""The page in a headless Chromium: how fast, how much memory, how equal to Python, how large; and its pictures.

    python -m benchmarks.page                                            # builds the page, then all parts
    python -m benchmarks.page --page my-page --only size equality
    python -m benchmarks.page --pictures docs/_static --output docs/measured/browser.json

Each part is measured in a browser of its own. With `--only`, those measured before stay in the JSON of `--output`. Real
cells are those that SCMMGPT_DATA names; made files are these cells over and over, thinned so that no two are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from scipy import sparse

import scmmgpt
from benchmarks._tiled import real_cells, tiled, write_tiled
from scmmgpt.hub_cards.page_accessibility import contrast, nameless, overhang
from scmmgpt.hub_cards.page_visitor import CHROMIUM, Visitor, chromium, served

OUT = Path(__file__).parent / "out"
SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "pbmc_facs_300.h5ad"
REAL = ("real/pbmc_ifnb_unlabelled.h5ad", "real/pbmc_facs_zheng2017.h5ad", "real/celltypist_sample_unlabelled.h5ad")
LABELS = ["B cell", "monocyte", "CD4-positive T cell", "CD8-positive T cell", "natural killer cell", "dendritic cell"]
NUM_GENES, KEPT, NUM_POINTS = 20_000, 0.9, 100_000
# Moves the map to and fro with every frame for five seconds; the times of the frames.
MOVE = """() => new Promise((resolve) => {
  const map = document.getElementById("points"), times = [];
  const step = (time) => {
    times.push(time);
    map.dispatchEvent(new KeyboardEvent("keydown", { key: times.length % 20 < 10 ? "ArrowLeft" : "ArrowRight" }));
    if (time - times[0] < 5000) requestAnimationFrame(step);
    else resolve(times);
  };
  requestAnimationFrame(step);
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the page.")
    parser.add_argument(
        "--page", type=Path, help="a folder that `scmmgpt export page` wrote; default: one that is built"
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--cells", nargs="+", type=Path, help="real files for the comparison with Python")
    parser.add_argument("--pictures", type=Path, default=OUT)
    parser.add_argument("--output", type=Path, default=OUT / "page.json")
    asked = parser.parse_args()
    if CHROMIUM is None or (asked.page is None and shutil.which("npm") is None):
        print("Skipped: this wants Chromium, and Node with npm or a page that was built before (--page FOLDER).")
        sys.exit(0)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(asked.output.read_text()) if asked.output.is_file() and asked.only != list(PARTS) else {}
    report = {"rows": []} | before | {"machine": _machine()}
    with tempfile.TemporaryDirectory() as folder:
        if asked.page is None:
            asked.page = Path(folder) / "page"
            report["build"] = build(asked.page)
        for name in asked.only:
            report[name] = PARTS[name](asked)
            asked.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps(report[name]), flush=True)


def build(page: Path) -> dict[str, Any]:
    """`scmmgpt export page`, with the work of npm."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "scmmgpt", "export", "page", str(page)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - started), "cpu_s": round(cpu), "load_average": os.getloadavg()[0]}


def size(asked: argparse.Namespace) -> dict[str, Any]:
    """Bytes, time to the first paint, and every request after the page has loaded, through a whole visit."""
    files = [path.stat().st_size for path in asked.page.rglob("*") if path.is_file()]
    of_server: list[str] = []
    with served(asked.page, asked=of_server) as url, chromium() as browser, tempfile.TemporaryDirectory() as folder:
        before = time.perf_counter()
        visitor = Visitor(browser, url).until_ready()
        ready = time.perf_counter() - before
        paint = "performance.getEntriesByType('paint').map(entry => entry.startTime)"
        painted = min(visitor.page.evaluate(paint), default=None)
        of_browser, loaded = len(visitor.requests), len(of_server)
        visitor.open(SAMPLE)
        visitor.name_cells()
        visitor.search("a cell that makes antibodies")
        visitor.draw_around(0.1, 0.1, 0.9, 0.9)
        for button in ("csv", "h5ad"):
            visitor.download(f"#{button}", Path(folder) / button)
        return {
            "bytes": sum(files),
            "files": len(files),
            "first_paint_ms": painted and round(painted),
            "ready_s": round(ready, 1),
            "requests_while_loading": loaded,
            "requests_after": visitor.requests[of_browser:] + of_server[loaded:],
            "problems": visitor.problems,
        }


def equality(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Embeddings and calls of real files, beside those of Python."""
    folder = os.environ.get("SCMMGPT_DATA")
    paths = asked.cells or ([Path(folder) / name for name in REAL] if folder else [])
    if not paths:
        print("Skipped: this wants the development cells that SCMMGPT_DATA names, or --cells.")
    return [_compared(asked.page, path) for path in paths]


def _compared(page: Path, path: Path) -> dict[str, Any]:
    by_python = _by_python(path)
    with tempfile.TemporaryDirectory() as folder, served(page) as url, chromium() as browser:
        visitor = Visitor(browser, url).until_ready()
        visitor.open(path)
        visitor.name_cells()
        by_page = {"default": anndata.read_h5ad(visitor.download("#h5ad", Path(folder) / "default.h5ad"))}
        visitor.name_cells(LABELS)
        by_page["own labels"] = anndata.read_h5ad(visitor.download("#h5ad", Path(folder) / "own.h5ad"))
        problems = visitor.problems + ([visitor.error] if visitor.error else [])
    embeds = by_page["default"].obsm["X_scmmgpt"]
    cosine = (embeds * by_python["embeds"]).sum(axis=1)
    row = {
        "file": path.name,
        "cells": len(cosine),
        "genes": by_page["default"].n_vars,
        "lowest_cosine": float(cosine.min()),
    }
    for way, found in by_page.items():
        for name in ("cell_type", "candidates"):
            same = found.obs[f"scmmgpt_{name}"].astype(str).to_numpy() == by_python[way][name]
            row[f"same_{name}, {way}"] = round(float(same.mean()), 5)
    return row | {"problems": problems}


def _by_python(path: Path) -> dict[str, Any]:
    cells = anndata.read_h5ad(path)
    found: dict[str, Any] = {"embeds": scmmgpt.embed(cells, progress=False).obsm["X_scmmgpt"]}
    for way, labels in (("default", None), ("own labels", LABELS)):
        called = scmmgpt.annotate(cells, labels, proteins=False, progress=False).obs
        found[way] = {name: called[f"scmmgpt_{name}"].astype(str).to_numpy() for name in ("cell_type", "candidates")}
    return found


def seconds(asked: argparse.Namespace) -> dict[str, Any]:
    """5,000 cells x 20,000 genes, opened and named."""
    return _timed(asked.page, 5_000)


def memory(asked: argparse.Namespace) -> dict[str, Any]:
    """50,000 cells x 20,000 genes: the matrix is read in chunks, and never in memory as a whole."""
    return _timed(asked.page, 50_000)


def _timed(page: Path, num_cells: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiled(_widened(real_cells()), num_cells, Path(folder) / "cells.h5ad", KEPT)
        with h5py.File(path) as file:
            num_entries = int(file["X/data"].shape[0])
        with served(page) as url, chromium() as browser:
            visitor = Visitor(browser, url).until_ready()
            idle, before = _peak_mb(), _cpu_seconds()
            started = time.perf_counter()
            visitor.open(path)
            opened = time.perf_counter() - started
            visitor.name_cells()
            wall = time.perf_counter() - started
            said = visitor.text("#status")
            return {
                "cells": num_cells,
                "genes": NUM_GENES,
                "entries": num_entries,
                "file_mb": round(path.stat().st_size / 1e6, 1),
                "matrix_in_memory_mb": round(num_entries * 8 / 1e6, 1),
                "opened_s": round(opened, 1),
                "wall_s": round(wall, 1),
                "cpu_s": round(_cpu_seconds() - before, 1),
                "peak_mb": round(max(idle, _peak_mb())),
                "peak_before_mb": round(idle),
                "status": said,
                "engine": visitor.text("#about"),
                "load_average": os.getloadavg()[0],
                "problems": visitor.problems + ([visitor.error] if visitor.error else []),
            }


def _widened(cells: anndata.AnnData) -> anndata.AnnData:
    """The same cells with columns for genes that nobody expresses, 20,000 in all."""
    empty = NUM_GENES - cells.n_vars
    matrix = sparse.hstack([cells.X, sparse.csr_matrix((cells.n_obs, empty))], format="csr", dtype=np.float32)
    widened = anndata.AnnData(matrix)
    widened.var_names = [*cells.var_names, *(f"unmeasured{number}" for number in range(empty))]
    return widened


def smooth(asked: argparse.Namespace) -> dict[str, Any]:
    """100,000 cells on a map that the file brings, moved for five seconds, drawn by the processor: there is no GPU here."""
    with tempfile.TemporaryDirectory() as folder, served(asked.page) as url, chromium() as browser:
        visitor = Visitor(browser, url).until_ready()
        visitor.open(_mapped(Path(folder) / "map.h5ad"))
        visitor.page.select_option("#colour", "cluster")
        visitor.wait()
        before = _cpu_seconds()
        times = visitor.page.evaluate(MOVE)
        cpu, shown = _cpu_seconds() - before, visitor.page.get_attribute("#points", "data-shown")
        visitor.draw_around(0.01, 0.01, 0.99, 0.99)
        frames = np.diff(times)
        return {
            "points": NUM_POINTS,
            "points_in_motion": int(shown),
            "frames_per_second": round(1000 / float(frames.mean()), 1),
            "milliseconds_of_95_in_100_frames": round(float(np.quantile(frames, 0.95))),
            "cpu_ms_per_frame": round(1000 * cpu / len(frames), 1),
            "selected": visitor.text("#chosen p"),
            "load_average": os.getloadavg()[0],
            "problems": visitor.problems,
        }


def _mapped(path: Path) -> Path:
    """Cells with a map of twelve clusters, and next to no counts."""
    generator, cells = np.random.default_rng(0), real_cells()
    cluster = generator.integers(12, size=NUM_POINTS)
    made = tiled(cells[:, :200], NUM_POINTS)
    made.obs_names = [f"cell{number}" for number in range(NUM_POINTS)]
    made.obs["cluster"] = [f"cluster {number}" for number in cluster]
    made.obsm["X_umap"] = generator.normal(size=(NUM_POINTS, 2)) + 8 * generator.normal(size=(12, 2))[cluster]
    made.write_h5ad(path)
    return path


def readable(asked: argparse.Namespace) -> dict[str, Any]:
    """Contrast after WCAG 2.2, light and dark, before and after cells are named; names of controls; width at 320 pixels."""
    found: dict[str, Any] = {}
    with served(asked.page) as url, chromium() as browser:
        for scheme in ("light", "dark"):
            visitor = Visitor(browser, url, scheme=scheme).until_ready()
            before = contrast(visitor.page)
            visitor.open(SAMPLE)
            visitor.name_cells()
            after = contrast(visitor.page)
            visitor.page.set_viewport_size({"width": 320, "height": 640})
            found[scheme] = after | {"too_low": before["too_low"] + after["too_low"]}
            found[scheme] |= {"nameless": nameless(visitor.page), "overhang": overhang(visitor.page)}
            visitor.close()
    return found


def pictures(asked: argparse.Namespace) -> list[str]:
    """The page with named cells: wide and narrow, light and dark."""
    asked.pictures.mkdir(parents=True, exist_ok=True)
    written = []
    with served(asked.page) as url, chromium() as browser:
        for width, height, shape in ((1440, 1000, "wide"), (390, 844, "narrow")):
            for scheme in ("light", "dark"):
                visitor = Visitor(browser, url, width=width, height=height, scheme=scheme).until_ready()
                visitor.open(SAMPLE)
                visitor.name_cells()
                if shape == "narrow":
                    visitor.page.locator("#map-title").evaluate("title => title.scrollIntoView()")
                path = asked.pictures / f"browser_{shape}_{scheme}.png"
                visitor.page.screenshot(path=path)
                visitor.close()
                written.append(path.name)
    return written


def _machine() -> dict[str, Any]:
    """The processor; torch, which `_measuring` asks more with, has nothing to do with a browser."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"processor": name, "cores": os.cpu_count(), "date": date.today().isoformat()}


# ---- the processes of the browser


def _own_processes() -> Iterator[Path]:
    """Those that this process started, and those that they started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    for number in parents:
        above = number
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and number != os.getpid():
            yield Path("/proc") / str(number)


def _cpu_seconds() -> float:
    ticks = 0
    for folder in _own_processes():
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_mb() -> float:
    """The largest memory that the largest of these processes had: that of the page with its worker."""
    peaks = [0.0]
    for folder in _own_processes():
        lines = (folder / "status").read_text().splitlines()
        peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return max(peaks)


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "size": size,
    "equality": equality,
    "seconds": seconds,
    "memory": memory,
    "smooth": smooth,
    "readable": readable,
    "pictures": pictures,
}

if __name__ == "__main__":
    main()
