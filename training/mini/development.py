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
from scmmgpt.training.evaluation.baselines import TrainingCells, logistic_regression, nearest_mean
from scmmgpt.training.evaluation.expression import log_expression
from scmmgpt.training.evaluation.metrics import accuracy, expected_calibration_error, macro_f1
from scmmgpt.training.evaluation.model_system import StudyScores
from scmmgpt.training.evaluation.task_annotation import reword
from scmmgpt.training.evaluation.type_tree import TypeTree
from scmmgpt.training.mini.profiles import UNKNOWN
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, MiniRecipe, RecipeFile, read_recipe

TEST_STUDIES = ("pbmc_10x3tech_symphony", "pancreas_wang_xin", "kang_lupus_muscat", "osmfish_mouse_cortex")
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


def read_studies(names: list[str], data: Path) -> Iterator[tuple[str, anndata.AnnData]]:
    """Labelled cells of studies, which are files or `study_profile`s of the simulated files."""
    simulated = sorted((data / "sim").glob("*.h5ad"))
    opened: dict[Path, anndata.AnnData] = {}
    for name in names:
        path = data / "real" / f"{name}.h5ad"
        for file in [path] if path.exists() else simulated:
            cells = opened.setdefault(file, anndata.read_h5ad(file))
            mine = np.ones(cells.n_obs, bool) if file == path else (cells.obs["study_profile"] == name).to_numpy()
            mine &= (cells.obs["cell_type_ontology_term_id"] != UNKNOWN).to_numpy()
            if mine.any():
                yield name, cells[mine].copy()
                break
        else:
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


def training_cells(recipe: MiniRecipe, data: Path, left_out: set[str]) -> TrainingCells:
    """The cells behind the profiles: the recipe's sources without the studies left out."""
    sources = []
    for source in recipe.sources:
        cells = anndata.read_h5ad(data / source.file)
        study = cells.obs["study_profile"].astype(str) if "study_profile" in cells.obs else Path(source.file).stem
        kept = (cells.obs["cell_type_ontology_term_id"] != UNKNOWN).to_numpy() & ~np.isin(study, list(left_out))
        if kept.any():
            sources.append(cells[kept].copy())
    return TrainingCells(sources)


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
    training = training_cells(recipe, data, left_out) if baselines else None
    results = {}
    for study in embed_studies(loaded, read_studies(names, data)):
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
