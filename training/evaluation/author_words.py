"""Labels as authors write them ("T_CD4", "alpha", "Oligo_MF") beside the Cell Ontology's names of the same types.

    python -m scmmgpt.training.evaluation.author_words STUDY.h5ad ... --output docs/measured/author_words.json

Both lists name the types of the study, and the same cells are annotated with each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from scmmgpt.api import annotate
from scmmgpt.loading import LoadedModel, load

from .results import provenance


def row_of(path: Path, names: str, words: str, loaded: LoadedModel) -> dict[str, Any]:
    """Accuracy and macro-F1 of one study with each list of labels."""
    import anndata

    adata = anndata.read_h5ad(path)
    known = ~adata.obs[[names, words]].astype(str).isin(["unknown", "nan"]).any(axis=1).to_numpy()
    adata = adata[known].copy()
    row: dict[str, Any] = {"study": path.stem, "cells": adata.n_obs}
    for column, what in ((names, "names"), (words, "words")):
        truth = adata.obs[column].astype(str).to_numpy()
        row[what] = _scores(adata, truth, loaded)
    return row


def _scores(adata: Any, truth: np.ndarray, loaded: LoadedModel) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    types = sorted(set(truth))
    called = annotate(adata, types, model=loaded, progress=False).obs["scmmgpt_cell_type"].astype(str).to_numpy()
    f1 = f1_score(truth, called, labels=types, average="macro", zero_division=0)
    return {
        "types": len(types),
        "accuracy": round(float((called == truth).mean()), 3),
        "macro_f1": round(float(f1), 3),
    }


def main(
    files: Annotated[list[Path], typer.Argument(help="Studies with both columns.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    names: Annotated[str, typer.Option(help="The column of obs with the ontology's names.")] = "cell_type",
    words: Annotated[str, typer.Option(help="The column of obs with the authors' words.")] = "cell_type_original",
) -> None:
    """Print one row for each study, and write them."""
    loaded = load()
    rows = []
    for path in files:
        rows.append(row_of(path, names, words, loaded))
        print(rows[-1], flush=True)
    content = {"run": provenance(seed=0, device=str(loaded.device)), "model": loaded.name, "rows": rows}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
