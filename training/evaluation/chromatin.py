"""What gene activities say of cell types: measured on cells of which RNA and chromatin were both read (SNARE-seq).

    python -m scmmgpt.training.evaluation.chromatin FILE.h5mu --output docs/measured/chromatin.json

Calls of the model, which never saw chromatin or this study, stand beside methods that learn from the RNA of half of its cells
and name the chromatin of the other half. Embeddings of both modalities of a cell are matched against shuffled ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from .expression import log_expression
from .metrics import accuracy, balanced_accuracy, macro_f1
from .results import provenance

if TYPE_CHECKING:
    from anndata import AnnData

    from scmmgpt.loading import LoadedModel

UNCLEAR = "Mis"
NUM_NEIGHBOURS = 15
TOP_SHARE = 0.01


def study(path: Path) -> tuple[AnnData, AnnData, np.ndarray]:
    """RNA and gene activities of the cells of a clear type, and the type of each."""
    from scmmgpt import gene_activity
    from scmmgpt.chromatin import read_h5mu

    both = read_h5mu(path)
    rna, activity = both["rna"], gene_activity(both)
    clear = ((rna.obs["cell_type"] != UNCLEAR) & (rna.obs["cell_type"] != "unknown")).to_numpy()
    names = rna.obs_names[clear]
    return rna[names].copy(), activity[names].copy(), rna.obs["cell_type"][clear].astype(str).to_numpy()


def systems(
    rna: AnnData, activity: AnnData, truth: np.ndarray, loaded: LoadedModel, seed: int = 0
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(method, which cells it was asked about, its calls)."""
    import scmmgpt

    labels, everyone = sorted(set(truth)), np.ones(len(truth), dtype=bool)

    def called(cells: AnnData) -> np.ndarray:
        result = scmmgpt.annotate(cells, labels, model=loaded, min_confidence=0, progress=False)
        return result.obs["scmmgpt_cell_type"].astype(str).to_numpy()

    unmarked = activity.copy()
    unmarked.uns = {}
    values, counts = np.unique(truth, return_counts=True)
    yield "the largest type for every cell", everyone, np.full(len(truth), values[counts.argmax()])
    yield "scmmgpt-mini on the RNA of the same cells", everyone, called(rna)
    yield "scmmgpt-mini on gene activities", everyone, called(activity)
    yield "the same, read as if they were RNA", everyone, called(unmarked)
    half = np.random.default_rng(seed).permutation(len(truth)) < len(truth) // 2
    for name, calls in _learnt_from_rna(rna, activity, truth, half, seed):
        yield name, ~half, calls


def _learnt_from_rna(
    rna: AnnData, activity: AnnData, truth: np.ndarray, half: np.ndarray, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    shared = sorted(set(rna.var_names) & set(activity.var_names))
    train = log_expression(rna[half][:, shared])
    test = log_expression(activity[~half][:, shared])
    method = LogisticRegression(C=1.0, max_iter=300).fit(train, truth[half])
    yield "logistic regression learnt on RNA of other cells", method.predict(test)
    scale = [_standardised(each.toarray()) for each in (train, test)]
    method = LogisticRegression(C=0.01, max_iter=300).fit(scale[0], truth[half])
    yield "the same, genes standardised in each modality", method.predict(scale[1])
    space = TruncatedSVD(30, random_state=seed).fit(scale[0])
    near = KNeighborsClassifier(NUM_NEIGHBOURS, metric="cosine").fit(space.transform(scale[0]), truth[half])
    yield "k nearest cells by RNA", near.predict(space.transform(scale[1]))


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)


def matching(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]]:
    """How near the two embeddings of a cell lie among all: as they are, each modality centred, and shuffled.

    Of the cells of the other modality, which share is nearer than the true match (FOSCTTM, .5 by chance), and how often the
    match is among the nearest hundredth (.01 by chance).
    """
    shuffled = np.random.default_rng(seed).permutation(len(second))
    centred = [each - each.mean(axis=0) for each in (first, second)]
    return {
        "as they are": _match(first, second),
        "each modality centred": _match(*centred),
        "centred, cells shuffled": _match(centred[0], centred[1][shuffled]),
    }


def _match(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first, second))
    nearer = []
    for one, other in ((first, second), (second, first)):
        similarity = one @ other.T
        own = np.diagonal(similarity)[:, None]
        nearer.append((similarity > own).mean(axis=1))
    shares = np.concatenate(nearer)
    return {"foscttm": round(float(shares.mean()), 4), "top_1_percent": round(float((shares < TOP_SHARE).mean()), 4)}


def measure(path: Path, loaded: LoadedModel) -> dict[str, Any]:
    """The rows of both tables, and what is known of the cells."""
    import scmmgpt

    rna, activity, truth = study(path)
    rows = []
    for system, asked, calls in systems(rna, activity, truth, loaded):
        metrics = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1}
        values = {name: round(float(metric(truth[asked], calls)), 3) for name, metric in metrics.items()}
        rows.append({"system": system, "cells": int(asked.sum()), **values})
        print(json.dumps(rows[-1]), flush=True)
    embeds = [scmmgpt.embed(each, model=loaded, progress=False).obsm["X_scmmgpt"] for each in (rna, activity)]
    cells = {
        "study": path.stem,
        "cells": len(truth),
        "types": len(set(truth)),
        "median_activity": float(np.median(np.asarray(activity.X.sum(axis=1)))),
        **activity.uns["scmmgpt_gene_activity"],
    }
    return {"cells": cells, "rows": rows, "matching": matching(*embeds)}


def main(path: Path, output: Annotated[Path, typer.Option()]) -> None:
    """Measure gene activities of the cells of an h5mu with RNA and peaks."""
    from scmmgpt.loading import load

    loaded = load(device="cpu")
    run = provenance(seed=0, device="cpu", model=loaded.name)
    output.write_text(json.dumps({"run": run, **measure(path, loaded)}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
