"""Code blocks of the documentation, and the files that they speak of."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from scmmgpt import api, loading, verb

DATA = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<language>python|sh|r)\n(?P<code>.*?)```", re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One block of a page; with a reason, it is not run."""

    language: str
    code: str
    reason: str | None


def blocks_of(page: Path) -> list[Block]:
    return [Block(found["language"], found["code"], found["reason"]) for found in BLOCK.finditer(page.read_text())]


def commands(code: str) -> list[list[str]]:
    """Shell lines as lists of words, comments left out, continued lines joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def write_files(folder: Path) -> None:
    """The files that the pages take for granted, from real cells: a few of each of ten types."""
    cells = anndata.read_h5ad(DATA)
    cells = cells[np.argsort(cells.obs["cell_type"].astype(str).to_numpy(), kind="stable")][::10].copy()
    cells.obs["leiden"] = (np.arange(cells.n_obs) % 3).astype(str)
    cells.layers["counts"] = cells.X.copy()
    # The picture of the report takes what is there, which spares the test a UMAP.
    cells.obsm["X_umap"] = np.random.default_rng(0).normal(size=(cells.n_obs, 2)).astype(np.float32)
    cells.write_h5ad(folder / "cells.h5ad")
    cells.write_h5ad(folder / "atlas.h5ad")
    (folder / "labels.txt").write_text("B cell\nmonocyte\nnatural killer cell\nCD4-positive, alpha-beta T cell\n")
    mouse = anndata.AnnData(cells.X, obs=cells.obs[["tissue"]], var=cells.var[[]])
    mouse.var_names = [name.capitalize() for name in cells.var_names]
    mouse.write_h5ad(folder / "mouse.h5ad")


@cache
def _load(model: str | None, device: Any, generative: bool) -> loading.LoadedModel:
    return loading.load(model, device=device, generative=generative)


def load_once(model: Any = None, *, device: Any = None, generative: bool = False) -> loading.LoadedModel:
    """What `load` gives; the same model again for the same arguments."""
    if isinstance(model, loading.LoadedModel):
        return loading.load(model, device=device, generative=generative)
    return _load(None if model is None else str(model), device, generative)


def load_models_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the loading of the embedded model in each call of a page."""
    for module in (api, verb):
        monkeypatch.setattr(module, "load", load_once)
