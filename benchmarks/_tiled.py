"""Files of as many cells as one likes: real ones over and over, written in flat memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

SOURCE = "real/pbmc_facs_zheng2017.h5ad"


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


def write_tiled(cells: anndata.AnnData, num_cells: int, path: Path) -> Path:
    """The same cells over and over, in an h5ad file, one copy of them in memory at a time."""
    cells[:1].write_h5ad(path)
    once = cells.X
    repeats = -(-num_cells // once.shape[0])
    starts = (np.arange(repeats)[:, None] * once.nnz + once.indptr[None, :-1]).ravel()
    indptr = np.append(starts, repeats * once.nnz)[: num_cells + 1]
    with h5py.File(path, "r+") as file:
        matrix = file["X"]
        for name in ("data", "indices", "indptr"):
            del matrix[name]
        for name in ("data", "indices"):
            values = getattr(once, name)
            many = matrix.create_dataset(name, shape=(int(indptr[-1]),), dtype=values.dtype, chunks=(1 << 18,))
            for start in range(0, int(indptr[-1]), len(values)):
                part = values[: int(indptr[-1]) - start]
                many[start : start + len(part)] = part
        matrix.create_dataset("indptr", data=indptr.astype(np.int64))
        matrix.attrs["shape"] = (num_cells, once.shape[1])
        del file["obs"]
        write_elem(file, "obs", pd.DataFrame(index=[f"cell{number}" for number in range(num_cells)]))
    return path
