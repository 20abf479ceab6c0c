"""What annotation says about what it should not name: noise, wrong gene names, doublets, other species, cell lines.

    python -m scmmgpt.training.evaluation.out_of_distribution --output docs/measured/out_of_distribution.json \\
        [--development DIR]

`--development` names a model trained without the development studies: what it says of some of them, whose tissues it
never saw, stands beside what the model that was trained on them says. `SCMMGPT_DATA` names the folder with the cells.
Every condition is measured with the guard against what looks like no cell and without it, the candidates being the
types that the model was trained on.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import scipy.sparse as sp
import typer

from scmmgpt.processing.result_keys_scmmgpt import ResultKeys

from .results import provenance

if TYPE_CHECKING:
    from anndata import AnnData

    from scmmgpt.loading import LoadedModel

NUM_CELLS = 400
# Counts all; the first four are real and have trained no weights of ours.
STUDIES = {
    "kang_lupus_muscat": "real/kang_lupus_muscat.h5ad",
    "pbmc_ifnb": "real/pbmc_ifnb_unlabelled.h5ad",
    "pbmc5k_10x": "real/pbmc5k_10x_unlabelled.h5ad",
    "celltypist_sample": "real/celltypist_sample_unlabelled.h5ad",
    "pbmc_facs_zheng2017": "real/pbmc_facs_zheng2017.h5ad",
    "Human_Adult_Liver_HCA": "sim/sim_human_adult.h5ad",
    "Mouse_Adult_Brain_MCA": "sim/sim_mouse.h5ad",
}
# Nothing of these kinds was in the training: lines of cancer cells.
CELL_LINES = {"sciplex3": "real/sciplex3_bmfm.h5ad", "cellbench_lines": "real/cellbench_lines.h5ad"}
# Of tissues that no other study of the training holds; the development model was trained without them.
LEFT_OUT = {
    "Human_Adult_Liver_HCA": "sim/sim_human_adult.h5ad",
    "Human_Adult_Prostate_Henry": "sim/sim_human_adult.h5ad",
    "Human_Fetal_Eye_Descartes": "sim/sim_human_fetal.h5ad",
    "Human_Fetal_Stomach_Descartes": "sim/sim_human_fetal.h5ad",
    "Mouse_Adult_Uterus_MCA": "sim/sim_mouse.h5ad",
}
Change = Callable[["AnnData", np.random.Generator], "AnnData"]


def as_they_are(cells: AnnData, random: np.random.Generator) -> AnnData:
    return cells


def shuffled_gene_names(cells: AnnData, random: np.random.Generator) -> AnnData:
    """The counts of real cells under the wrong names: a column too far, a table sorted by itself."""
    return _cells(cells.X, random.permutation(cells.var_names))


def noise_of_the_mean(cells: AnnData, random: np.random.Generator) -> AnnData:
    """Counts drawn from the mean of all cells, as in droplets that hold no cell."""
    share = np.asarray(cells.X.sum(axis=0)).ravel() / cells.X.sum()
    return _cells(random.poisson(_totals(cells) * share), cells.var_names)


def noise_over_all_genes(cells: AnnData, random: np.random.Generator) -> AnnData:
    """Counts spread over all genes alike."""
    return _cells(random.poisson(_totals(cells) * np.full(cells.n_vars, 1 / cells.n_vars)), cells.var_names)


def doublets(cells: AnnData, random: np.random.Generator) -> AnnData:
    """Two cells of different types in one."""
    types = cells.obs["cell_type"].astype(str).to_numpy()
    if len(set(types)) < 2:
        raise ValueError("The cells have no types to tell them apart.")
    partner = random.permutation(cells.n_obs)
    pairs = np.flatnonzero(types != types[partner])
    return _cells(cells.X[pairs] + cells.X[partner[pairs]], cells.var_names)


def yeast(cells: AnnData, random: np.random.Generator) -> AnnData:
    """The same counts under the systematic names of yeast's genes."""
    return _cells(cells.X, _systematic_names(cells.n_vars))


def yeast_with_symbols(cells: AnnData, random: np.random.Generator) -> AnnData:
    """The same, but that the genes of ribosomes, highest in yeast too, go by symbols, some of which are also human."""
    height = np.asarray(cells.X.sum(axis=0)).ravel()
    names = np.array(_systematic_names(cells.n_vars), dtype=object)
    symbols = [f"RP{part}{number}" for part in "LS" for number in range(44)][: cells.n_vars // 4]
    names[np.argsort(-height)[: len(symbols)]] = random.permutation(symbols)
    return _cells(cells.X, names)


CHANGES: dict[str, Change] = {
    "as they are": as_they_are,
    "gene names shuffled": shuffled_gene_names,
    "noise, all genes alike": noise_over_all_genes,
    "noise, mean of the cells": noise_of_the_mean,
    "doublets of two types": doublets,
    "yeast, systematic names": yeast,
    "yeast, symbols": yeast_with_symbols,
}


def _cells(matrix: Any, names: Any) -> AnnData:
    from anndata import AnnData

    cells = AnnData(sp.csr_matrix(matrix, dtype=np.float32))
    cells.var_names = [str(name) for name in names]
    return cells


def _totals(cells: AnnData) -> np.ndarray:
    return np.asarray(cells.X.sum(axis=1))


def _systematic_names(number: int) -> list[str]:
    """YAL001C, YAL001W, YAL002C, ...: chromosome, arm, place and strand."""
    places = product(range(1, 1000), "ABCDEFGHIJKLMNOP", "LR", "CW")
    return [f"Y{chromosome}{arm}{n:03d}{strand}" for n, chromosome, arm, strand in islice(places, number)]


def measure(loaded: LoadedModel, cells: AnnData) -> dict[str, Any]:
    """What annotation says about some cells; only the reason where it refuses them."""
    from scmmgpt.api import annotate

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            annotated = annotate(cells, model=loaded, progress=False)
    except ValueError as error:
        return {"refused": str(error).partition(". ")[0]}
    keys = ResultKeys()
    confidence = annotated.obs[keys.confidence].to_numpy()
    labels = annotated.obs[keys.cell_type].astype(str)
    candidates = {loaded.ontology.find(name) for name in (loaded.training_summary or {})["cell_types"]}
    terms = {term.label for term in candidates if term}
    settings = annotated.uns[keys.name]["annotate"]["settings"]
    return {
        "cells": annotated.n_obs,
        "unknown": round(float((labels == "unknown").mean()), 3),
        "named_coarsely": round(float((~labels.isin(terms | {"unknown"})).mean()), 3),
        "mean_confidence": round(float(confidence.mean()), 3),
        "implausible": round(settings["implausible_cells"] / annotated.n_obs, 3),
        "warnings": sorted({str(one.message).partition(":")[0] for one in caught if one.category is UserWarning}),
    }


@contextmanager
def without_guard(loaded: LoadedModel) -> Iterator[None]:
    """The model as it was before it knew what looks like no cell."""
    gene_tokenizer = loaded.processor.gene_tokenizer
    gene_tokenizer.looks_implausible = lambda gene_ids, **_: np.zeros(len(gene_ids), dtype=bool)
    try:
        yield
    finally:
        del gene_tokenizer.looks_implausible


def open_study(path: Path, profile: str, random: np.random.Generator) -> AnnData:
    """Some cells of a file, chosen at random, or of one profile of a simulated file."""
    import anndata

    cells = anndata.read_h5ad(path)
    if "study_profile" in cells.obs:
        cells = cells[(cells.obs["study_profile"].astype(str) == profile).to_numpy()]
    return cells[np.sort(random.permutation(cells.n_obs)[:NUM_CELLS])].copy()


def run(
    loaded: LoadedModel, data: Path, seed: int = 0, development: LoadedModel | None = None
) -> list[dict[str, Any]]:
    """One row per study and change, with the guard and without it."""
    rows = []
    conditions = [(loaded, name, file, CHANGES) for name, file in STUDIES.items()]
    conditions += [(loaded, name, file, {"cell lines": as_they_are}) for name, file in CELL_LINES.items()]
    if development is not None:
        for model, condition in ((loaded, "a tissue of the training"), (development, "the same, never seen")):
            conditions += [(model, name, file, {condition: as_they_are}) for name, file in LEFT_OUT.items()]
    for model, name, file, changes in conditions:
        cells = open_study(data / file, name, np.random.default_rng(seed))
        for condition, change in changes.items():
            try:
                changed = change(cells, np.random.default_rng(seed))
            except ValueError:
                continue  # no types, no doublets
            row = {"study": name, "simulated": file.startswith("sim/"), "condition": condition}
            with without_guard(model):
                row["before"] = measure(model, changed)
            row["after"] = measure(model, changed)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main(output: Annotated[Path, typer.Option()], model: str | None = None, development: str | None = None) -> None:
    """Measure what annotation says about what it should not name."""
    from scmmgpt.loading import load

    loaded = load(model)
    left_out = load(development) if development else None
    rows = run(loaded, Path(os.environ["SCMMGPT_DATA"]), development=left_out)
    min_confidence = loaded.annotator.calibration.min_confidence
    head = {**provenance(seed=0, device=str(loaded.device), model=loaded.name), "min_confidence": min_confidence}
    output.write_text(json.dumps({"run": head, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
