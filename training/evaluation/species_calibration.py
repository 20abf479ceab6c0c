"""Accuracy and confidence of `annotate` on studies of one species, and the temperature that each would have wanted.

    python -m scmmgpt.training.evaluation.species_calibration STUDY.h5ad ... [--output FILE.json]

For every study: accuracy with the study's own labels and mean confidence, as they are; the factor on the logits' scale
that fits the other studies best; and what that factor makes of the confidence here. A factor near 1 says that the
species needs no calibration of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.special import logit

from scmmgpt.api import annotate
from scmmgpt.loading import LoadedModel, load

from .results import provenance

_FACTORS = np.exp(np.linspace(-1.2, 1.2, 49))


def study_of(path: Path, label: str, most_cells: int, loaded: LoadedModel) -> dict[str, Any]:
    """Which calls of a study are right, and how sure they are."""
    import anndata

    adata = anndata.read_h5ad(path)
    if f"{label}_ontology_term_id" in adata.obs:
        adata = adata[adata.obs[f"{label}_ontology_term_id"].astype(str) != "unknown"]
    chosen = np.random.default_rng(0).permutation(adata.n_obs)[:most_cells]
    adata = adata[np.sort(chosen)].copy()
    truth = adata.obs[label].astype(str).to_numpy()
    found = annotate(adata, sorted(set(truth)), model=loaded, min_confidence=0, progress=False)
    called = found.obs["scmmgpt_cell_type"].astype(str).to_numpy()
    genes = found.uns["scmmgpt"]["genes"]
    return {
        "study": path.stem,
        "species": str(genes["species"]),
        "reach": float(genes["reach"]),
        "is_right": called == truth,
        "confidence": found.obs["scmmgpt_confidence"].to_numpy(dtype=np.float64),
    }


def scaled(confidence: np.ndarray, factor: float) -> np.ndarray:
    """Confidences whose log odds are multiplied by a factor, as another temperature would nearly do."""
    return 1 / (1 + np.exp(-factor * logit(np.clip(confidence, 1e-4, 1 - 1e-4))))


def expected_error(confidence: np.ndarray, is_right: np.ndarray, bins: int = 10) -> float:
    """Mean distance of confidence and accuracy over bins of confidence."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    parts = [(place == number) for number in range(bins) if (place == number).any()]
    return float(sum(part.mean() * abs(confidence[part].mean() - is_right[part].mean()) for part in parts))


def fitted_factor(studies: list[dict[str, Any]]) -> float:
    """The factor of the least log loss, each study counting the same."""
    losses = []
    for factor in _FACTORS:
        values = []
        for study in studies:
            chance = np.clip(scaled(study["confidence"], factor), 1e-4, 1 - 1e-4)
            values.append(-np.where(study["is_right"], np.log(chance), np.log(1 - chance)).mean())
        losses.append(np.mean(values))
    return float(_FACTORS[int(np.argmin(losses))])


def rows_of(studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each study, its factor fitted on the others."""
    rows = []
    for study in studies:
        others = [other for other in studies if other is not study] or [study]
        factor = fitted_factor(others)
        after = scaled(study["confidence"], factor)
        rows.append(
            {
                "study": study["study"],
                "species": study["species"],
                "reach": study["reach"],
                "cells": len(after),
                "accuracy": round(float(study["is_right"].mean()), 3),
                "mean_confidence": round(float(study["confidence"].mean()), 3),
                "calibration_error": round(expected_error(study["confidence"], study["is_right"]), 3),
                "factor_of_the_others": round(factor, 2),
                "calibration_error_after": round(expected_error(after, study["is_right"]), 3),
            }
        )
    return rows


def main(
    files: Annotated[list[Path], typer.Argument(help="Labelled studies of one species.")],
    output: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
    label: Annotated[str, typer.Option(help="The column of obs with the true types.")] = "cell_type",
    max_cells: Annotated[int, typer.Option(help="Cells of each study, chosen at random.")] = 600,
    model: Annotated[str | None, typer.Option(help="A model that was trained without these studies.")] = None,
) -> None:
    """Print one row for each study, and write them."""
    loaded = load(model)
    rows = rows_of([study_of(path, label, max_cells, loaded) for path in files])
    for row in rows:
        print(row)
    if output is not None:
        content = {"run": provenance(seed=0, device=str(loaded.device)), "model": loaded.name, "rows": rows}
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
