"""How good a model directory is on whole studies, beside nearest class mean and logistic regression.

    python -m scmmgpt.training.mini.development MODEL_DIR [--studies development|test] [--baselines] [--json FILE]

The development studies are those of the recipe; nothing is ever chosen on the test studies. Candidates are the types
of each study. The baselines are trained on exactly the cells behind the model's profiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import pandas as pd
import typer

from scmmgpt.loading import LoadedModel, load
from scmmgpt.processing.encoding_scmmgpt import TextEmbedder
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.evaluation.baselines import TrainingCells, logistic_regression, nearest_mean
from scmmgpt.training.evaluation.expression import log_expression
from scmmgpt.training.evaluation.metrics import accuracy, expected_calibration_error, macro_f1
from scmmgpt.training.evaluation.model_system import StudyScores
from scmmgpt.training.evaluation.study import study_of_cells
from scmmgpt.training.evaluation.task_annotation import reword
from scmmgpt.training.evaluation.type_tree import TypeTree
from scmmgpt.training.mini.profiles import UNKNOWN
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, MiniRecipe, RecipeFile, Source, read_recipe

TEST_STUDIES = (
    "pbmc_10x3tech_symphony",
    "pancreas_wang_xin",
    "kang_lupus_muscat",
    "osmfish_mouse_cortex",
    "human_pancreas_enge2017",
    "human_pbmc_zanini2018",
    "lymphoid_ref_spacexr",
    "mouse_fetal_liver_su2017_screclassify",
)
FOLDERS = ("real", "../dev2/real")
WORDINGS = ("name", "synonym", "definition without the name", "shuffled names")


@dataclass
class EmbeddedStudy:
    """A study whose cells went through the model once."""

    name: str
    cells: anndata.AnnData
    truth: np.ndarray
    scores: StudyScores

    @property
    def types(self) -> list[str]:
        return sorted(set(self.truth))


def read_studies(
    names: Iterable[str], sources: Iterable[Source], data: Path, ontology: Ontology
) -> Iterator[tuple[str, anndata.AnnData]]:
    """Labelled cells of studies: of the recipe's sources, or of files in `FOLDERS` that are none of them.

    What a source knows of a study by its mean profiles alone holds no cells to be measured on.
    """
    wanted = list(names)
    for source in sources:
        if source.table is not None or not wanted:
            continue
        cells = source.read(data, ontology)
        study = study_of_cells(cells.obs, source.family)
        labelled = (cells.obs["cell_type_ontology_term_id"] != UNKNOWN).to_numpy()
        for name in [name for name in wanted if name in set(study)]:
            wanted.remove(name)
            yield name, cells[(study == name) & labelled].copy()
    for name in wanted:
        path = next((path for folder in FOLDERS if (path := data / folder / f"{name}.h5ad").exists()), None)
        if path is not None:
            cells = anndata.read_h5ad(path)
            yield name, cells[(cells.obs["cell_type_ontology_term_id"] != UNKNOWN).to_numpy()].copy()
        elif name not in {source.family for source in sources}:
            raise ValueError(f"No study is called {name!r} in {data}.")


def embed_studies(loaded: LoadedModel, studies: Iterable[tuple[str, anndata.AnnData]]) -> Iterator[EmbeddedStudy]:
    """Send studies through the model; the texts of labels are embedded once for all of them."""
    embed_texts = TextEmbedder(loaded.model, loaded.processor)
    for name, cells in studies:
        truth = cells.obs["cell_type"].astype(str).to_numpy()
        yield EmbeddedStudy(name, cells, truth, StudyScores.of(loaded, cells, embed_texts))


def probabilities(study: EmbeddedStudy, labels: list[str], prior_share: float | None) -> np.ndarray:
    """What annotation would say, before it backs off."""
    return study.scores.scorer(labels, prior_share=prior_share).probabilities(slice(None))


def measure(study: EmbeddedStudy, tree: TypeTree, trained: set[str]) -> dict[str, float]:
    """Accuracy and macro-F1 in every wording, with the prior correction off and as calibrated."""
    result: dict[str, float] = {"cells": len(study.truth), "candidates": len(study.types)}
    for wording in WORDINGS:
        scores = probabilities(study, reword(study.types, wording, tree), prior_share=0.0)
        named = np.array(study.types, object)[scores.argmax(1)]
        result[wording] = accuracy(study.truth, named)
        if wording == "name":
            result["name_f1"] = macro_f1(study.truth, named)
    scores = probabilities(study, study.types, prior_share=None)
    named = np.array(study.types, object)[scores.argmax(1)]
    result["calibrated"], result["calibrated_f1"] = accuracy(study.truth, named), macro_f1(study.truth, named)
    result["ece"] = expected_calibration_error(scores.max(1), named == study.truth)
    unseen = np.array([tree.find(name) not in trained for name in study.truth])
    result["unseen_share"] = float(unseen.mean())
    if unseen.any():
        result["unseen"] = accuracy(study.truth[unseen], named[unseen])
    return result


def measure_baselines(training: TrainingCells, study: EmbeddedStudy, tree: TypeTree) -> dict[str, float]:
    reference = training.reference(study.cells, study.types, tree)
    expression = log_expression(study.cells)
    result = {}
    for name, method in (("ncm", nearest_mean), ("lr", logistic_regression)):
        named = np.array(study.types, object)[method(reference, expression).argmax(1)]
        result[name], result[f"{name}_f1"] = accuracy(study.truth, named), macro_f1(study.truth, named)
    return result


def training_cells(recipe: MiniRecipe, data: Path, left_out: set[str], ontology: Ontology) -> TrainingCells:
    """The cells behind the profiles: the recipe's sources without the studies left out."""
    sources = []
    for source in recipe.sources:
        if source.table is None:
            cells = source.read(data, ontology)
            study = study_of_cells(cells.obs, source.family)
            kept = (cells.obs["cell_type_ontology_term_id"] != UNKNOWN).to_numpy() & ~np.isin(study, list(left_out))
            sources.append(cells[kept].copy())
    return TrainingCells([cells for cells in sources if cells.n_obs])


def main(
    model: Path,
    data: CellFolder,
    config: RecipeFile = RECIPE,
    studies: Literal["development", "test"] = "development",
    baselines: bool = False,
    json: Path | None = None,
) -> None:
    """How good a model directory is on whole studies."""
    recipe, loaded, tree = read_recipe(config), load(model), TypeTree.load()
    summary = loaded.training_summary or {}
    names = list(recipe.development_studies if studies == "development" else TEST_STUDIES)
    left_out = set(recipe.development_studies) if summary["development"] else set()
    training = training_cells(recipe, data, left_out, loaded.ontology) if baselines else None
    results = {}
    for study in embed_studies(loaded, read_studies(names, recipe.sources, data, loaded.ontology)):
        name = study.name
        results[name] = measure(study, tree, set(summary["cell_types"]))
        if training is not None:
            results[name] |= measure_baselines(training, study, tree)
        print(name, " ".join(f"{key}={value:.3f}" for key, value in results[name].items()), flush=True)
    print("mean", pd.DataFrame(results.values()).mean().sort_index().round(3).to_dict())
    if json:
        json.write_text(dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
