"""Files of as many cells as one likes: real ones over and over, written in flat memory."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import anndata
import numpy as np
from anndata.experimental import concat_on_disk

SOURCE = "real/pbmc_facs_zheng2017.h5ad"
CELLS_PER_PART = 10_000


def real_cells() -> anndata.AnnData:
    """3,874 sorted blood cells with 700 expressed genes each; ends the benchmark, saying so, where they are not."""
    folder = os.environ.get("SCMMGPT_DATA")
    if not folder:
        print("Skipped: this wants the development cells that SCMMGPT_DATA names.")
        sys.exit(0)
    cells = anndata.read_h5ad(Path(folder) / SOURCE)
    return anndata.AnnData(cells.X.tocsr(), var=cells.var)


def tiled(cells: anndata.AnnData, num_cells: int) -> anndata.AnnData:
    """The same cells over and over, in memory."""
    return cells[np.arange(num_cells) % cells.n_obs].copy()


def write_tiled(cells: anndata.AnnData, num_cells: int, path: Path, kept: float = 1.0) -> Path:
    """The same cells over and over in an h5ad or zarr file, written in parts: they are never all in memory.

    `kept` is the share of the molecules that stay in each copy, drawn at random, so that no two cells are the same.
    """
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        files = []
        for start in range(0, num_cells, CELLS_PER_PART):
            numbers = np.arange(start, min(start + CELLS_PER_PART, num_cells))
            again, names = numbers % cells.n_obs, [f"cell{number}" for number in numbers]
            part = anndata.AnnData(cells.X[again], cells.obs.iloc[again].set_axis(names), cells.var)
            if kept < 1:
                part.X.data = generator.binomial(part.X.data.astype(np.int64), kept).astype(np.float32)
                part.X.eliminate_zeros()
            files.append(Path(folder) / f"{start}{path.suffix}")
            write = part.write_zarr if path.suffix == ".zarr" else part.write_h5ad
            write(files[-1])
        concat_on_disk(files, path, merge="same")
    return path
