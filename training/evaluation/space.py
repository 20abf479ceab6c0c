"""What neighbours in space add: layers of a cortex from niches, and cell types with and without smoothing over space.

    python -m scmmgpt.training.evaluation.space --layers starmap.h5ad --types merfish.h5ad --output FILE.json

Layers are learnt by logistic regression on all animals but one and predicted for that one, from the own embedding, from
the composition of the neighbourhood, from the niche embedding, and from a niche embedding over a shuffled graph.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from scipy import sparse

from scmmgpt.api import annotate, embed
from scmmgpt.cells import open_cells
from scmmgpt.errors import require
from scmmgpt.loading import LoadedModel, load
from scmmgpt.niche_finding import compositions, niche_numbers, niche_vectors
from scmmgpt.spatial import likeness, read_space

from .results import provenance

if TYPE_CHECKING:
    from anndata import AnnData

REGULARISATION = 0.1
THINNED_TO = 0.2


def leave_one_out(features: np.ndarray, truth: np.ndarray, animals: np.ndarray) -> float:
    """Mean balanced accuracy over the animals, each predicted from the others."""
    require("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = []
    for animal in np.unique(animals):
        left_out = animals == animal
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=REGULARISATION))
        model.fit(features[~left_out], truth[~left_out])
        scores.append(balanced_accuracy_score(truth[left_out], model.predict(features[left_out])))
    return round(float(np.mean(scores)), 3)


def shuffled(adata: AnnData, animal_key: str) -> AnnData:
    """The same cells at each other's places within their animal."""
    adata, random = adata.copy(), np.random.default_rng(0)
    for animal in adata.obs[animal_key].unique():
        own = np.flatnonzero(adata.obs[animal_key] == animal)
        adata.obsm["spatial"][own] = adata.obsm["spatial"][random.permutation(own)]
    return adata


def layers(adata: AnnData, animal_key: str, loaded: LoadedModel) -> dict[str, Any]:
    """Balanced accuracy of each kind of features, and how well the niches that nobody trained fit the layers."""
    require("sklearn")
    from sklearn.metrics import normalized_mutual_info_score

    truth, animals = (adata.obs[name].astype(str).to_numpy() for name in ("spatial_domain", animal_key))
    embeds = np.asarray(embed(adata, model=loaded, progress=False).obsm["X_scmmgpt"])
    expression = np.log1p(1000 * _dense(adata) / np.maximum(_dense(adata).sum(axis=1, keepdims=True), 1))
    space = read_space(open_cells(adata), animal_key)
    wrong_space = read_space(open_cells(shuffled(adata, animal_key)), animal_key)
    types = {
        "author types": adata.obs.cell_type_original.astype(str).to_numpy(),
        "called types": annotate(adata, model=loaded, progress=False).obs["scmmgpt_cell_type"].astype(str).to_numpy(),
    }
    compared = {
        "own expression": expression,
        "own embedding": embeds,
        "own and neighbours' expression": np.hstack([expression, space.graph @ expression]),
        "own and neighbours' embedding": np.hstack([embeds, space.graph @ embeds]),
    }
    fit = {}
    for name, values in types.items():
        composition = compositions(values, space)[1]
        vectors = niche_vectors(embeds, composition, space)
        compared[f"neighbours' composition, {name}"] = composition
        compared[f"niche embedding, {name}"] = vectors
        wrong = niche_vectors(embeds, compositions(values, wrong_space)[1], wrong_space)
        compared[f"niche embedding, {name}, shuffled places"] = wrong
        for most in (4, 8):
            numbers = niche_numbers(vectors, embeds.shape[1], space, most)
            fit[f"{most} niches, {name}"] = round(float(normalized_mutual_info_score(truth, numbers)), 3)
    accuracy = {name: leave_one_out(values, truth, animals) for name, values in compared.items()}
    return {"cells": adata.n_obs, "balanced_accuracy": accuracy, "nmi_of_niches_with_layers": fit}


def _dense(adata: AnnData) -> np.ndarray:
    return np.asarray(sparse.csr_matrix(adata.X).todense(), dtype=np.float64)


def thinned(adata: AnnData) -> AnnData:
    """A fifth of the counts, drawn at random."""
    adata, random = adata.copy(), np.random.default_rng(0)
    counts = sparse.csr_matrix(adata.X)
    counts.data = random.binomial(counts.data.astype(np.int64), THINNED_TO).astype(np.float32)
    counts.eliminate_zeros()
    adata.X = counts
    return adata


def types(adata: AnnData, section_key: str, loaded: LoadedModel) -> dict[str, Any]:
    """Accuracy of `annotate` without and with `spatial=True`, and with the cells at each other's places."""
    adata = adata[adata.obs.cell_type_ontology_term_id != "unknown"].copy()
    truth = adata.obs.cell_type.astype(str).to_numpy()
    embeds = np.asarray(embed(adata, model=loaded, progress=False).obsm["X_scmmgpt"])
    settings: dict[str, dict[str, Any]] = {
        "the study's labels": {"labels": sorted(set(truth)), "min_confidence": 0},
        "the study's labels, decided together": {"labels": sorted(set(truth)), "min_confidence": 0, "consensus": True},
        "no labels": {},
    }
    rows = []
    for name, how in settings.items():
        row: dict[str, Any] = {"setting": name}
        for column, cells, is_on in (
            ("without", adata, False),
            ("with", adata, True),
            ("shuffled places", shuffled(adata, section_key), True),
        ):
            where: dict[str, Any] = {"spatial": True, "library_key": section_key} if is_on else {}
            called = annotate(cells, model=loaded, progress=False, **how, **where).obs["scmmgpt_cell_type"]
            row[column] = round(float((called.astype(str).to_numpy() == truth).mean()), 3)
        rows.append(row)
    found = likeness(embeds, read_space(open_cells(adata), section_key).graph)
    return {"cells": adata.n_obs, "likeness_of_neighbours": round(found, 3), "accuracy": rows}


def main(
    layers_file: Annotated[Path, typer.Option("--layers", help="Cells with spatial_domain and donor_id.")],
    types_file: Annotated[Path, typer.Option("--types", help="Cells with cell_type and section.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
) -> None:
    """Write the figures."""
    import anndata

    loaded = load()
    cortex, other = anndata.read_h5ad(layers_file), anndata.read_h5ad(types_file)
    result = {
        "layers": {"study": layers_file.stem, **layers(cortex, "donor_id", loaded)},
        "types": [
            {"study": layers_file.stem, **types(cortex, "donor_id", loaded)},
            {"study": f"{layers_file.stem}, a fifth of the counts", **types(thinned(cortex), "donor_id", loaded)},
            {"study": types_file.stem, **types(other, "section", loaded)},
        ],
    }
    content = {"run": provenance(seed=0, device=str(loaded.device)), **result}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
