# /// script
# requires-python = ">=3.11"
# dependencies = ["scmmgpt[train,eval]"]
# ///
"""How many planted label swaps `audit` finds, beside cross-validated logistic regression (cleanlab's idea).

    python -m scmmgpt.training.evaluation.planted_swaps STUDY.h5ad... --output docs/measured/planted_swaps.json

In each study 5 % of the labels are replaced by another label of the study, drawn evenly. The baseline doubts a cell as
confident learning does: its label is not the likeliest among those whose chance reaches their own cells' mean chance.
Its chances at the audit's own threshold are shown too, so that rule and chances can be told apart. Swaps are drawn from
labels as they are: cells that were mislabelled before count as false alarms of both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from scmmgpt.label_audit import MIN_CELLS_OF_LABEL, MIN_CHANCE, audit
from scmmgpt.loading import LoadedModel, load
from scmmgpt.training.evaluation.expression import log_expression, most_variable

SHARE, NUM_SEEDS = 0.05, 3


def swapped(codes: np.ndarray, seed: int, share: float = SHARE) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a share of them replaced by others, and which those are."""
    generator = np.random.default_rng(seed)
    is_swapped = np.zeros(len(codes), dtype=bool)
    is_swapped[generator.choice(len(codes), round(share * len(codes)), replace=False)] = True
    steps = generator.integers(1, codes.max() + 1, is_swapped.sum())
    changed = codes.copy()
    changed[is_swapped] = (changed[is_swapped] + steps) % (codes.max() + 1)
    return changed, is_swapped


def confident_learning(chances: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Cells that belong to another label by the confident joint (Northcutt et al. 2021)."""
    means = np.array([chances[codes == code, code].mean() for code in range(chances.shape[1])])
    likely = np.where(chances >= means, chances, -1.0)
    return (likely.max(axis=1) >= 0) & (likely.argmax(axis=1) != codes)


def cross_validated(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Chances (N, C) by logistic regression on the expression of other cells."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-2))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return cross_val_predict(classifier, values, codes, cv=folds, method="predict_proba")


def measure(doubted: np.ndarray, chance: np.ndarray, is_swapped: np.ndarray) -> dict[str, float]:
    """Precision and recall of the doubts, and average precision of the order of the chances."""
    from sklearn.metrics import average_precision_score

    hits = int((doubted & is_swapped).sum())
    return {
        "precision": hits / max(int(doubted.sum()), 1),
        "recall": hits / int(is_swapped.sum()),
        "average_precision": float(average_precision_score(is_swapped, 1 - chance)),
    }


def compare(cells: anndata.AnnData, label: str, loaded: LoadedModel, seeds: Sequence[int]) -> dict[str, dict]:
    """{method: mean measures} over some draws of swaps, on labels that enough cells share."""
    names = cells.obs[label].astype(str)
    counts = names.map(names.value_counts()).to_numpy()
    cells = cells[(counts >= 2 * MIN_CELLS_OF_LABEL) & ~names.isin(("unknown", "cell")).to_numpy()].copy()
    codes, types = cells.obs[label].astype(str).factorize(sort=True)
    expression = log_expression(cells)
    values = expression[:, most_variable(expression, 2000)].toarray()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        changed, is_swapped = swapped(codes, seed)
        for method, (doubted, chance) in _methods(cells, values, changed, types, loaded).items():
            found.setdefault(method, []).append(measure(doubted, chance, is_swapped))
    return {
        "cells": {"number": cells.n_obs, "labels": len(types)},
        **{
            method: {name: round(float(np.mean([one[name] for one in all_])), 3) for name in all_[0]}
            for method, all_ in found.items()
        },
    }


def _methods(
    cells: anndata.AnnData, values: np.ndarray, codes: np.ndarray, types: Sequence[str], loaded: LoadedModel
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows = np.arange(len(codes))
    cells.obs["swapped"] = np.asarray(types, dtype=object)[codes]
    own = audit(cells, "swapped", model=loaded, progress=False)
    by_others = cross_validated(values, codes)
    chance = by_others[rows, codes]
    return {
        "scmmgpt audit": (own.is_doubted, np.nan_to_num(own.chance, nan=1.0)),
        "logistic regression, confident learning": (confident_learning(by_others, codes), chance),
        "logistic regression, chance under 5 %": (chance < MIN_CHANCE, chance),
    }


def main(argv: Sequence[str] | None = None, say: Callable[[str], Any] = print) -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS)
    given = parser.parse_args(argv)
    loaded, studies = load(), {}
    for path in given.studies:
        studies[path.stem] = compare(anndata.read_h5ad(path), given.label, loaded, range(given.seeds))
        say(f"{path.stem}: {json.dumps(studies[path.stem])}")
    report = {
        "command": "python -m scmmgpt.training.evaluation.planted_swaps",
        "date": date.today().isoformat(),
        "share": SHARE,
        "seeds": given.seeds,
        "least_chance": MIN_CHANCE,
        "weights_sha256": loaded.weights_hash,
        "studies": studies,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
