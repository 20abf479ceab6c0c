"""How the cost of annotation grows: with cells, labels, genes and the size of a batch, as one picture.

    python -m benchmarks.curves                        # up to 300,000 cells: many minutes
    python -m benchmarks.curves --most-cells 1000      # does it run?

Time should grow in proportion to the cells and stay nearly flat in labels (their texts are embedded beforehand, and
kept) and genes (the model attends to few of them and sums up the others); the grey line shows what proportion
would be. Real cells over and over (SCMMGPT_DATA names them); for the genes, made ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from benchmarks._measuring import OUT, machine, peak_memory, row, write_report
from benchmarks._tiled import real_cells, tiled, write_tiled

CELLS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
LABELS = (10, 30, 100, 300, 1_000, 3_000)
GENES = (200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TITLES = {
    "cells": "cells in the file",
    "labels": "labels",
    "genes": "expressed genes of a cell",
    "batch": "batch size",
}


def seconds_of(work: Callable[[], Any], repeats: int) -> list[float]:
    """Sorted times of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)


def over_cells(model, sizes, repeats: int) -> dict[int, list[float]]:
    """Seconds of a whole run, file to file."""
    import scmmgpt

    cells, found = real_cells(), {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = write_tiled(cells, size, Path(folder) / "cells.h5ad")
            output = Path(folder) / "out.h5ad"
            work = lambda path=path, output=output: scmmgpt.annotate(  # noqa: E731
                path, output=output, model=model, summary_only=True, progress=False
            )
            # The largest takes long enough to be steady in one run.
            found[size] = seconds_of(work, repeats if size <= 30_000 else 1)
            output.unlink()
    return found


def over_labels(model, num_cells: int, repeats: int) -> dict[int, list[float]]:
    """Seconds of annotation; the labels' texts were embedded before, as they are from the second run on."""
    import scmmgpt

    cells = tiled(real_cells(), num_cells)
    names = [term.label for term in model.ontology.terms.values()]
    found = {}
    for size in LABELS:
        labels = names[:size] + [f"type number {number}" for number in range(size - len(names))]
        work = lambda labels=labels: scmmgpt.annotate(cells, labels, model=model, progress=False)  # noqa: E731
        work()
        found[size] = seconds_of(work, repeats)
    return found


def over_genes(model, num_cells: int, repeats: int) -> dict[int, list[float]]:
    """Seconds to embed cells that express so many genes."""
    import scmmgpt

    genes, random, found = model.processor.gene_tokenizer.genes, np.random.default_rng(0), {}
    for size in [size for size in GENES if size < len(genes)] + [min(GENES[-1], len(genes))]:
        columns = np.concatenate([np.sort(random.choice(len(genes), size, replace=False)) for _ in range(num_cells)])
        counts = random.poisson(2, len(columns)).astype(np.float32) + 1
        matrix = sparse.csr_matrix((counts, columns, np.arange(num_cells + 1) * size), (num_cells, len(genes)))
        cells = AnnData(matrix)
        cells.var_names = genes
        work = lambda cells=cells: scmmgpt.embed(cells, model=model, progress=False)  # noqa: E731
        work()
        found[size] = seconds_of(work, repeats)
    return found


def over_batches(model, num_cells: int, repeats: int) -> dict[int, list[float]]:
    """Seconds to embed the same cells in batches of so many."""
    import scmmgpt

    cells, found = tiled(real_cells(), num_cells), {}
    for size in BATCHES:
        work = lambda size=size: scmmgpt.embed(cells, model=model, batch_size=size, progress=False)  # noqa: E731
        work()
        found[size] = seconds_of(work, repeats)
    return found


def draw(curves: dict[str, dict[int, list[float]]], path: Path) -> None:
    """Four panels, both axes logarithmic; bars from the fastest to the slowest run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for axis, (name, points) in zip(axes.flat, curves.items(), strict=True):
        sizes = np.array(list(points))
        middle = np.array([np.median(times) for times in points.values()])
        low, high = (np.array([pick(times) for times in points.values()]) for pick in (min, max))
        axis.errorbar(sizes, middle, yerr=[middle - low, high - middle], marker="o", capsize=3, color="#1f6f8b")
        end = -1 if name in ("cells", "batch") else 0
        power = -1 if name == "batch" else 1
        axis.plot(sizes, middle[end] * (sizes / sizes[end]) ** float(power), color="0.75", linewidth=1, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel=TITLES[name], ylabel="seconds")
        axis.grid(alpha=0.25)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--most-cells", type=int, default=CELLS[-1])
    parser.add_argument("--few-cells", type=int, default=512, help="for the other three curves")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    import scmmgpt

    about, model = machine(), scmmgpt.load(device=arguments.device)
    few, repeats = arguments.few_cells, arguments.repeats
    with peak_memory() as memory:
        curves = {
            "cells": over_cells(model, [size for size in CELLS if size <= arguments.most_cells], repeats),
            "labels": over_labels(model, few, repeats),
            "genes": over_genes(model, few // 4, repeats),
            "batch": over_batches(model, few, repeats),
        }
    done = {"labels": few, "genes": few // 4, "batch": few}
    rows = []
    for name, points in curves.items():
        for size, times in points.items():
            cells = done.get(name, size)
            rates = {"rate": cells / np.median(times), "low": cells / times[-1], "high": cells / times[0]}
            rates = {key: round(float(value), 2) for key, value in rates.items()}
            rows.append(row("curve", f"{TITLES[name]}: {size:,}", rates, "cells/s"))
    OUT.mkdir(exist_ok=True)
    draw(curves, OUT / "curves.svg")
    seconds = {name: {str(size): times for size, times in points.items()} for name, points in curves.items()}
    write_report("curves", rows, machine=about, settings=vars(arguments), seconds=seconds, **memory)
    print(f"Picture: {OUT / 'curves.svg'}")


if __name__ == "__main__":
    main()
