"""The verbs for labelled cells: measure a model on them, or teach it their labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .arguments import shared_arguments
from .loading import ModelSource

if TYPE_CHECKING:
    from anndata import AnnData

    from .training.evaluation.systems import System

__all__ = ["evaluate", "finetune"]


@shared_arguments
def evaluate(
    adata: AnnData | str | os.PathLike,
    label: str,
    *,
    model: ModelSource | System = None,
    output: str | os.PathLike,
    donor: str | None = None,
    tasks: Sequence[str] | None = None,
    most_cells: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a model on labelled cells, beside simple baselines; returns the scores and writes a report.

    The model sees no label. The baselines learn from half of the cells (whole donors where there are two or more),
    and everything is tested on the other half.

    Parameters
    ----------
    adata
        Cells with counts or log1p values in X, or the path of an h5ad.
    label
        The column of `obs` with the true types.
    model
        What `load` takes or returned, or a `System` of `scmmgpt.training.evaluation.systems`.
    output
        The folder for the page `report.html` and a JSON, a Markdown table and a PNG of each task.
    donor
        The column of `obs` with donors; None looks for a usual name.
    tasks
        Some of annotation, candidates, wording, unknown types, controls, clustering, retrieval, untrained types,
        few-shot, description, generation. None: the quick ones.
    most_cells
        Larger data are cut to so many cells, drawn at random.
    seed
        Of every random draw.
    """
    from .training import evaluate as evaluation

    chosen = evaluation.QUICK_TASKS if tasks is None else tasks
    return evaluation.evaluate(
        adata, label, output=output, model=model, donor=donor, tasks=chosen, most_cells=most_cells, seed=seed
    )


@shared_arguments
def finetune(
    adata: AnnData | str | os.PathLike,
    label: str,
    *,
    model: str | os.PathLike | None = None,
    output: str | os.PathLike,
    lora: bool = True,
    shots: int | None = None,
    batch_key: str | None = None,
    text: str | None = None,
    recipe: str | os.PathLike | None = None,
    training: Mapping[str, Any] | None = None,
) -> dict[str, float | int | str]:
    """Write a model that knows your labels; return how well it names cells it was not shown, before and after.

    Parameters
    ----------
    adata
        Labelled cells, or the path of an h5ad. Not changed. Cells without a label are left out.
    label
        The column of `obs` with the label of each cell; labels need not be in any ontology.
    model
        Where to start: a directory, a Hub repository, or None for the model that comes with the package.
    output
        The folder of the new model.
    lora
        Train small adapters and merge them into the result; False trains both towers in full.
    shots
        Cells of each label to learn from; all others are held out. None: nine in ten.
    batch_key
        The column of `obs` with donors or batches: every label is shown equally often from each.
    text
        The column of `obs` with a description of each cell: the language model learns to write it as well.
    recipe
        A YAML file with the settings of the run in place of `training/recipes/finetune.yaml`.
    training
        Settings of the recipe's section `training` to change, such as {"max_steps": 50}.
    """
    from . import auto  # noqa: F401 - the package's own classes, not the repository's copies
    from .training.finetune import finetune as finetune_model

    where: dict[str, Any] = {"output": output, "model": model}
    columns: dict[str, Any] = {"label": label, "batch_key": batch_key, "text": text}
    return finetune_model(adata, **where, **columns, lora=lora, shots=shots, recipe=recipe, **(training or {}))
