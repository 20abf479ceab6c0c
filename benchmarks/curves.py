"""How the cost of annotation grows: with cells, labels, genes and the size of a batch, as one picture.

    python -m benchmarks.curves                        # up to 300,000 cells: many minutes
    python -m benchmarks.curves --most-cells 1000      # does it run?

Time should grow in proportion to the cells and stay nearly flat in labels (their texts are embedded beforehand, and
kept) and genes (the model attends to few of them and sums up the others); the grey line shows what proportion
would be. Real cells over and over (SCMMGPT_DATA names them); for the genes, made ones. `--few-cells` is for all curves but the
first.
"""

from __future__ import annotations

import tempfile
import timeit
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from benchmarks._measuring import OUT, machine, options, peak_memory, row, write_report
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


Runs: TypeAlias = Iterator[tuple[int, Callable[[], Any]]]
STEADY_IN_ONE_RUN = 30_000


def times_of(runs: Iterable[tuple[int, Callable[[], Any]]], repeats: int) -> dict[int, list[float]]:
    """Sorted seconds of some runs of each size, after one to warm up."""
    found = {}
    for size, work in runs:
        is_long = size > STEADY_IN_ONE_RUN
        if not is_long:
            work()
        found[size] = sorted(timeit.repeat(work, "gc.enable()", number=1, repeat=1 if is_long else repeats))
    return found


def over_cells(model: Any, most: int) -> Runs:
    """Whole runs, file to file."""
    import scmmgpt

    cells = real_cells()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for size in CELLS:
            if size <= most:
                path = write_tiled(cells, size, folder / "cells.h5ad")
                output = folder / "out.h5ad"
                yield (
                    size,
                    partial(scmmgpt.annotate, path, model=model, output=output, summary_only=True, progress=False),
                )


def over_labels(model: Any, num_cells: int) -> Runs:
    """Annotation with so many labels, whose texts are embedded before, as they are from the second run on."""
    import scmmgpt

    cells = tiled(real_cells(), num_cells)
    names = [term.label for term in model.ontology.terms.values()]
    for size in LABELS:
        labels = names[:size] + [f"type number {number}" for number in range(size - len(names))]
        yield size, partial(scmmgpt.annotate, cells, labels, model=model, progress=False)


def over_genes(model: Any, num_cells: int) -> Runs:
    """Embedding of cells that express so many genes."""
    import scmmgpt

    genes, random = model.processor.gene_tokenizer.genes, np.random.default_rng(0)
    for size in [size for size in GENES if size < len(genes)] + [min(GENES[-1], len(genes))]:
        columns = np.concatenate([np.sort(random.choice(len(genes), size, replace=False)) for _ in range(num_cells)])
        counts = random.poisson(2, len(columns)).astype(np.float32) + 1
        matrix = sparse.csr_matrix((counts, columns, np.arange(num_cells + 1) * size), (num_cells, len(genes)))
        yield size, partial(scmmgpt.embed, AnnData(matrix, var=pd.DataFrame(index=genes)), model=model, progress=False)


def over_batches(model: Any, num_cells: int) -> Runs:
    """Embedding of the same cells in batches of so many."""
    import scmmgpt

    cells = tiled(real_cells(), num_cells)
    for size in BATCHES:
        yield size, partial(scmmgpt.embed, cells, model=model, batch_size=size, progress=False)


def draw(curves: dict[str, dict[int, list[float]]], path: Path) -> None:
    """Four panels, both axes logarithmic; bars from the fastest to the slowest run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    for axis, (name, points) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        sizes = np.array(list(points))
        middle = np.array([np.median(times) for times in points.values()])
        low, high = np.array([(times[0], times[-1]) for times in points.values()]).T
        axis.errorbar(sizes, middle, yerr=[middle - low, high - middle], marker="o", capsize=3, color="#1f6f8b")
        end = -1 if name in ("cells", "batch") else 0
        power = -1 if name == "batch" else 1
        axis.plot(sizes, middle[end] * (sizes / sizes[end]) ** float(power), color="0.75", linewidth=1, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel=TITLES[name], ylabel="seconds")
        axis.grid(alpha=0.25)
    figure.savefig(path)


def main() -> None:
    given = options(__doc__, most_cells=CELLS[-1], few_cells=512, repeats=3, device=str)
    warnings.simplefilter("ignore", UserWarning)
    import scmmgpt

    about, model, few = machine(), scmmgpt.load(device=given.device), given.few_cells
    runs = {
        "cells": over_cells(model, given.most_cells),
        "labels": over_labels(model, few),
        "genes": over_genes(model, few // 4),
        "batch": over_batches(model, few),
    }
    with peak_memory() as memory:
        curves = {name: times_of(work, given.repeats) for name, work in runs.items()}
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
    write_report(OUT / "curves.json", rows, machine=about, settings=vars(given), seconds=curves, **memory)
    print(f"Picture: {OUT / 'curves.svg'}")


if __name__ == "__main__":
    main()
