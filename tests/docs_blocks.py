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
from scipy import sparse

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
    cells.obsm["X_umap"] = np.random.default_rng(0).normal(size=(cells.n_obs, 2)).astype(np.float32)
    cells.write_h5ad(folder / "cells.h5ad")
    cells.write_h5ad(folder / "atlas.h5ad")
    (folder / "labels.txt").write_text("B cell\nmonocyte\nnatural killer cell\nCD4-positive, alpha-beta T cell\n")
    mouse = anndata.AnnData(cells.X, obs=cells.obs[["tissue"]], var=cells.var[[]])
    mouse.var_names = [name.capitalize() for name in cells.var_names]
    mouse.write_h5ad(folder / "mouse.h5ad")

    write_context_files(folder)


def write_context_files(folder: Path) -> None:
    """A tissue in two sections, where types live apart, and a screen in which one of two types responds."""
    cells = anndata.read_h5ad(DATA)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    names = list(cells.obs["cell_type"].value_counts().index[:4])
    cells = cells[cells.obs["cell_type"].isin(names)].copy()
    corner = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])[[names.index(name) for name in cells.obs["cell_type"]]]
    cells.obsm["spatial"] = corner + np.random.default_rng(0).uniform(0, 7, size=(cells.n_obs, 2))
    cells.obs["section"] = [f"section {number % 2 + 1}" for number in range(cells.n_obs)]
    cells.obs["library_id"] = cells.obs["section"]  # squidpy's name for it
    cells.write_h5ad(folder / "tissue.h5ad")
    screen = cells[cells.obs["cell_type"].isin(names[:2])].copy()
    screen.obs["stim"] = np.where(np.arange(screen.n_obs) % 2, "treated", "control")
    responds = ((screen.obs["stim"] == "treated") & (screen.obs["cell_type"] == names[0])).to_numpy()
    counts = screen.X.toarray()
    counts[np.ix_(responds, screen.var_names.isin(["ISG15", "IFI6", "MX1", "LY6E", "IFITM1"]))] += 100
    screen.X = sparse.csr_matrix(counts)
    screen.write_h5ad(folder / "screen.h5ad")


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
