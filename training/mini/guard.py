"""Three numbers on 300 known cells that say whether the embedded model's weights are still whole.

    python -m scmmgpt.training.mini.guard hub_cards/scmmgpt-mini --write

writes them into the model's `training_summary`; `tests/test_mini.py` fails when one falls 5 points. The model has seen
profiles of this study: the numbers guard, they do not judge.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import anndata
import numpy as np
import typer

from scmmgpt.api import generate_cells
from scmmgpt.loading import LoadedModel, load
from scmmgpt.processing.prompting_scmmgpt import query_text
from scmmgpt.training.evaluation.expression import log_expression, on_genes, upper_symbols
from scmmgpt.training.evaluation.metrics import accuracy
from scmmgpt.training.mini.development import EmbeddedStudy, embed_studies, probabilities

NUM_GENERATED, NUM_NEIGHBOURS, NUM_GENES = 8, 5, 1_000


def guard_numbers(loaded: LoadedModel, cells: anndata.AnnData) -> dict[str, float]:
    """Accuracy among the cells' types; precision of a search for each type; k-NN accuracy of generated cells."""
    (study,) = embed_studies(loaded, [("guard", cells)])
    named = np.array(study.types, object)[probabilities(study, study.types, prior_share=0.0).argmax(1)]
    return {
        "accuracy": accuracy(study.truth, named),
        "retrieval": search_precision(loaded, study),
        "generation_knn": generated_accuracy(loaded, study),
    }


def search_precision(loaded: LoadedModel, study: EmbeddedStudy) -> float:
    """Of the cells nearest to a type's name, as many as there are of the type, the share that are of the type."""
    similarity = loaded.embed_texts([query_text(name) for name in study.types]) @ study.scores.cells.embeds.T
    shares = []
    for name, row in zip(study.types, similarity, strict=True):
        nearest = np.argsort(-row)[: (study.truth == name).sum()]
        shares.append(np.mean(study.truth[nearest] == name))
    return float(np.mean(shares))


def generated_accuracy(loaded: LoadedModel, study: EmbeddedStudy) -> float:
    """Share of cells generated from a type's name whose nearest real cells are mostly of that type."""
    from sklearn.neighbors import KNeighborsClassifier

    made = [generate_cells(name, NUM_GENERATED, seed=0, model=loaded, progress=False) for name in study.types]
    generated = anndata.concat(made, index_unique="-")
    genes = np.intersect1d(upper_symbols(study.cells), upper_symbols(generated))
    real = on_genes(log_expression(study.cells), upper_symbols(study.cells), genes).toarray()
    fake = on_genes(log_expression(generated), upper_symbols(generated), genes).toarray()
    variable = np.argsort(-real.var(0))[:NUM_GENES]
    neighbours = KNeighborsClassifier(NUM_NEIGHBOURS, metric="cosine").fit(real[:, variable], study.truth)
    return accuracy(np.repeat(study.types, NUM_GENERATED), neighbours.predict(fake[:, variable]))


def main(
    model: Path,
    cells: Path = Path("tests/data/pbmc_facs_300.h5ad"),
    write: Annotated[bool, typer.Option(help="Write the numbers into the model's config.")] = False,
) -> None:
    """Three numbers on known cells that say whether a model's weights are still whole."""
    found = guard_numbers(load(model, generative=True), anndata.read_h5ad(cells))
    numbers = {name: round(value, 4) for name, value in found.items()}
    print(json.dumps(numbers))
    if write:
        path = model / "config.json"
        config = json.loads(path.read_text())
        config["training_summary"]["guard"] = numbers
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    typer.run(main)
