"""An atlas embedded once: vectors on disk, metadata beside them, searched by text in milliseconds.

A folder holds `vectors.npy` (read through memory maps), `cells.h5ad` (obs and coordinates, no matrix), `index.json` (which model made
it) and, where the `search` extra is installed and the atlas is large, `approximate.faiss` with its lists in
`approximate.ivfdata`. Building and searching hold the metadata in memory, and of the vectors a part at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import shared_arguments
from .errors import UserError, first_line, require
from .mapped_arrays import new_array, open_array
from .processing.cell_matrix_scmmgpt import parts
from .storage import write_cells, written_by_rename

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData

    from .loading import ModelSource
    from .spatial import Space

DESCRIPTION, VECTORS, CELLS = "index.json", "vectors.npy", "cells.h5ad"
APPROXIMATE, LISTS = "approximate.faiss", "approximate.ivfdata"
# Below this an exact search through the memory map takes milliseconds.
MIN_CELLS_FOR_FAISS = 50_000
# Fixed, so that memory does not grow with the atlas; k-means wants 39 vectors for each list at least.
_TRAINING_VECTORS = 65_536
_TRAINING_VECTORS_PER_LIST = 39
_ROWS_AT_A_TIME = 16_384
_CANDIDATES_PER_RESULT = 50
_README = """---
tags: [scmmgpt, single-cell, embeddings]
---
# Index of {num_cells:,} cells

Unit vectors of the model `{model}`. Search it with `scmmgpt search DIR "text"` or `scmmgpt.search(DIR, "text")`.
"""


def is_index(path: Any) -> bool:
    """Whether a path is the folder of an index."""
    return isinstance(path, str | os.PathLike) and (Path(path) / DESCRIPTION).is_file()


@dataclass(frozen=True)
class Index:
    """A folder of vectors to search."""

    folder: Path
    model: dict[str, Any]
    num_cells: int

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Index:
        if not is_index(folder):
            raise UserError(f"{str(folder)!r} is not an index; make one with: scmmgpt index build ATLAS --output DIR")
        try:
            content = json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8"))
            return cls(Path(folder), dict(content["model"]), int(content["num_cells"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, error) from error

    @cached_property
    def vectors(self) -> np.ndarray:
        """(N, D) unit vectors, read from disk where needed."""
        try:
            vectors = open_array(self.folder / VECTORS)
            if vectors.ndim != 2 or len(vectors) != self.num_cells or vectors.dtype != np.float32:
                raise ValueError(f"{VECTORS} holds {vectors.dtype} of shape {vectors.shape}")
        except (OSError, ValueError) as error:
            raise _damaged(self.folder, error) from error
        return vectors

    @cached_property
    def obs(self) -> pd.DataFrame:
        import h5py
        from anndata.io import read_elem

        try:
            with h5py.File(self.folder / CELLS) as store:
                obs = read_elem(store["obs"])
            if len(obs) != self.num_cells:
                raise ValueError(f"{CELLS} has {len(obs)} cells, not {self.num_cells}")
        except Exception as error:  # h5py and anndata each have their own ways to say "damaged"
            raise _damaged(self.folder, error) from error
        return obs

    def space(self) -> Space | None:
        """Where the cells lie, None where the atlas had no coordinates."""
        from anndata import read_h5ad

        from .cells import open_cells
        from .spatial import COORDINATES, read_space

        cells = open_cells(read_h5ad(self.folder / CELLS))
        return read_space(cells) if COORDINATES in cells.present["obsm"] else None

    def describe(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "num_cells": self.num_cells,
            "dimension": int(self.vectors.shape[1]),
            "approximate": (self.folder / APPROXIMATE).exists(),
            "model": self.model,
        }

    def check_model(self, weights_hash: str) -> None:
        """Vectors of one model mean nothing to another."""
        if self.model["weights_sha256"] != weights_hash:
            raise UserError(
                f"The index {str(self.folder)!r} was made by another model ({self.model['name']!r}); "
                "pass that one as --model, or build the index again."
            )

    def nearest(
        self, query: np.ndarray, top: int, rows: np.ndarray | None = None, exact: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and scores of the `top` cells nearest to a unit vector, (D,).

        With `rows` (a filter) only these are looked at. `exact` never uses the approximate index.
        """
        if rows is None and not exact and (self.folder / APPROXIMATE).exists():
            rows = self._candidates(query, top)
        return best_rows(self.vectors, query, top, rows)

    def _candidates(self, query: np.ndarray, top: int) -> np.ndarray:
        """Rows that are probably among the best; their true scores are computed afterwards."""
        num = min(self.num_cells, max(1000, top * _CANDIDATES_PER_RESULT))
        _, rows = self._approximate.search(query[None].astype(np.float32), num)
        return np.sort(rows[0][rows[0] >= 0])

    @cached_property
    def _approximate(self) -> Any:
        faiss = require("faiss")
        # The lists are mapped from the file beside the index, wherever the folder was moved to.
        flags = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY
        try:
            approximate = faiss.read_index(str(self.folder / APPROXIMATE), flags)
            faiss.extract_index_ivf(approximate).nprobe = 64
        except RuntimeError as error:
            raise _damaged(self.folder, error) from error
        return approximate


def _damaged(folder: str | os.PathLike, error: Exception) -> UserError:
    return UserError(f"The index {str(folder)!r} is damaged ({first_line(error)}); build it again.")


def hits(obs: pd.DataFrame, rows: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    """Some cells with their `score` before what `obs` says of them; a column of that name follows as `obs_score`."""
    found = obs.iloc[rows].rename(columns={"score": "obs_score"})
    found.insert(0, "score", score.astype(float))
    return found


def best_rows(
    vectors: np.ndarray, query: np.ndarray, top: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Exact search, a part at a time: row numbers and scores of the best, ties to the smaller row number."""
    rows = np.arange(len(vectors)) if rows is None else rows
    best_number, best_score = np.empty(0, np.int64), np.empty(0, np.float32)
    for part in parts(len(rows), size=_ROWS_AT_A_TIME):
        score = np.asarray(vectors[rows[part]], dtype=np.float32) @ query.astype(np.float32)
        number = np.concatenate([best_number, rows[part]])
        score = np.concatenate([best_score, score])
        order = np.lexsort((number, -score))[:top]
        best_number, best_score = number[order], score[order]
    return best_number, best_score


def rows_where(obs: pd.DataFrame, conditions: Sequence[str]) -> np.ndarray:
    """Rows whose obs holds every COLUMN=VALUE."""
    chosen = np.ones(len(obs), dtype=bool)
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals or column not in obs:
            raise UserError(
                f"The filter {condition!r} must be COLUMN=VALUE with a column of obs; there are: "
                f"{', '.join(map(str, obs.columns[:20]))}."
            )
        chosen &= (obs[column].astype(str) == value).to_numpy()
    if not chosen.any():
        raise UserError(f"No cell has {' and '.join(conditions)}.")
    return np.flatnonzero(chosen)


def write_index(
    folder: Path,
    vectors: np.ndarray,
    obs: pd.DataFrame,
    model: dict[str, Any],
    places: dict[str, dict[str, Any]] | None = None,
) -> Index:
    """Write an index under a temporary name, then rename. `places` are matrices of `obsm` and `obsp`."""
    from anndata import AnnData

    with written_by_rename(folder) as temporary:
        temporary.mkdir()
        _copy_vectors(vectors, temporary / VECTORS)
        write_cells(AnnData(obs=obs, **(places or {})), temporary / CELLS)
        if len(vectors) >= MIN_CELLS_FOR_FAISS:
            _write_approximate(vectors, temporary)
        content = {"model": model, "num_cells": len(vectors)}
        (temporary / DESCRIPTION).write_text(json.dumps(content, indent=1), encoding="utf-8")
        readme = _README.format(num_cells=len(vectors), model=model["name"])
        (temporary / "README.md").write_text(readme, encoding="utf-8")
    return Index.open(folder)


def _copy_vectors(vectors: np.ndarray, path: Path) -> None:
    copy = new_array(path, vectors.shape, np.float32)
    for rows in parts(len(vectors), size=_ROWS_AT_A_TIME):
        copy[rows] = vectors[rows]
    copy.flush()


def _write_approximate(vectors: np.ndarray, folder: Path) -> None:
    """Inverted lists of vectors at 8 bits a number, trained on a sample, merged on disk from parts of the atlas."""
    try:
        faiss = require("faiss")
    except UserError:
        return  # the exact search serves
    from faiss.contrib.ondisk import merge_ondisk

    num_cells, dimension = vectors.shape
    num_lists = int(np.clip(4 * np.sqrt(num_cells), 1, _TRAINING_VECTORS // _TRAINING_VECTORS_PER_LIST))
    approximate = faiss.index_factory(dimension, f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).choice(num_cells, min(num_cells, _TRAINING_VECTORS), replace=False)
    approximate.train(np.ascontiguousarray(vectors[np.sort(chosen)], dtype=np.float32))
    shards: list[str] = []
    for rows in parts(num_cells, size=_TRAINING_VECTORS):
        shards.append(str(folder / f"shard{len(shards)}.faiss"))
        for some in parts(rows.stop, start=rows.start, size=_ROWS_AT_A_TIME):
            numbers = np.arange(some.start, some.stop)
            approximate.add_with_ids(np.ascontiguousarray(vectors[some], dtype=np.float32), numbers)
        faiss.write_index(approximate, shards[-1])
        approximate.reset()
    merge_ondisk(approximate, shards, str(folder / LISTS))
    faiss.write_index(approximate, str(folder / APPROXIMATE))
    for shard in shards:
        Path(shard).unlink()


@shared_arguments
def build_index(
    atlas: AnnData | str | os.PathLike,
    output: str | os.PathLike,
    *,
    model: ModelSource = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Index:
    """Embed an atlas, which may be larger than memory, and write its index. Interrupted, it goes on where it was.

    Parameters
    ----------
    atlas
        AnnData or MuData, or the path of a file of cells.
    output
        The folder of the index, which must not exist yet.
    """
    from .embedding import embed_batch
    from .spatial import places_of
    from .verb import Execution, Verb

    folder = Path(output)
    if folder.exists():
        raise UserError(f"{str(folder)!r} is already there; choose another folder, or remove it first.")
    if not folder.parent.is_dir():
        raise UserError(f"The folder {str(folder.parent)!r} does not exist; create it first.")
    verb = Verb.begin("index", atlas, model, Execution(device, batch_size, progress))
    verb.output = folder  # what is unfinished lies beside it
    run = verb.start_run()
    vectors = run.compute("embed", embed_batch)["embeds"]
    index = write_index(folder, vectors, verb.cells.obs, verb.loaded.describe(), places_of(verb.cells))
    run.workspace.remove()
    return index


def push_index(folder: str | os.PathLike, repository: str, *, private: bool = False) -> str:
    """Upload an index to the Hub as a data set and return its address."""
    from huggingface_hub import HfApi

    index = Index.open(folder)
    api = HfApi()
    api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
    return str(api.upload_folder(folder_path=str(index.folder), repo_id=repository, repo_type="dataset"))
