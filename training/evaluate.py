"""Measure a model on labelled cells: every task, beside simple baselines, with one JSON, table and picture a task.

A user's own cells:        scmmgpt eval my.h5ad --label cell_type --output results
Whole suites: `eval_suite`. Tasks that need an extra which is not installed, or a function that the model does not have,
are left out and said so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from scmmgpt.arguments import shared_arguments
from scmmgpt.atomic_files import whole_or_removed
from scmmgpt.errors import UserError, require
from scmmgpt.loading import ModelSource
from scmmgpt.training.corpus.checks import DuplicateSettings, near_duplicates
from scmmgpt.training.evaluation.baselines import TrainingCells, baseline_systems, components_system
from scmmgpt.training.evaluation.expression import holds_counts, linear_expression, upper_symbols
from scmmgpt.training.evaluation.model_system import model_system
from scmmgpt.training.evaluation.report import write_report
from scmmgpt.training.evaluation.results import Record, file_name, provenance, read_records, record_for, write_results
from scmmgpt.training.evaluation.results_table import draw, page
from scmmgpt.training.evaluation.study import Study, open_study
from scmmgpt.training.evaluation.systems import System, checked_scores
from scmmgpt.training.evaluation.task_annotation import (
    annotate_among_more,
    annotate_reworded,
    annotate_ruined,
    annotate_study,
    find_unknown,
    learn_from_few,
    name_untrained,
)
from scmmgpt.training.evaluation.task_calls import label_sets, name_without_labels, turn_away_no_cells
from scmmgpt.training.evaluation.task_embedding import cluster_study, retrieve
from scmmgpt.training.evaluation.task_generation import generate_study
from scmmgpt.training.evaluation.task_text import describe_study
from scmmgpt.training.evaluation.type_tree import TypeTree

if TYPE_CHECKING:
    from anndata import AnnData

QuickTask = Literal["annotation", "candidates", "wording", "unknown types", "controls", "clustering", "retrieval"]
Task = (
    QuickTask
    | Literal["without labels", "label sets", "guards", "untrained types", "few-shot", "description", "generation"]
)
QUICK_TASKS: tuple[QuickTask, ...] = get_args(QuickTask)
ALL_TASKS: tuple[Task, ...] = tuple(task for tasks in get_args(Task) for task in get_args(tasks))
# Baselines that are worth their time in tasks beyond plain annotation.
IN_MORE_TASKS = {
    "candidates": {"nearest class mean"},
    "unknown types": {"HVG + logistic regression", "nearest class mean"},
    "retrieval": {"HVG + logistic regression", "nearest class mean"},
}


@shared_arguments
def evaluate(
    adata: AnnData | str | os.PathLike,
    label: str,
    *,
    model: ModelSource | System = None,
    output: str | os.PathLike,
    donor: str | None = None,
    tasks: Sequence[str] = QUICK_TASKS,
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
        Some of annotation, candidates, wording, unknown types, controls, clustering, retrieval, without labels, label
        sets, guards, untrained types, few-shot, description, generation.
    most_cells
        Larger data are cut to so many cells, drawn at random.
    seed
        Of every random draw.
    """
    require("sklearn")
    if unknown := sorted(set(tasks) - set(ALL_TASKS)):
        raise UserError(f"There is no task {unknown[0]!r}; there are: {', '.join(ALL_TASKS)}.")
    tree = TypeTree.load()
    study = _at_most(open_study(adata, label, donor=donor, tree=tree), most_cells, seed)
    system = model if isinstance(model, System) else model_system(model)
    learning, tested = _halve(study, seed)
    baselines = _own_baselines(learning, tested, label, tree)
    records = study_records([system, *baselines], tested, tree, tasks=tasks, seed=seed)
    run = provenance(seed=seed, device=device_kind(), model=system.name)
    folder, named = Path(output), {}
    if system.predict:
        best = checked_scores(system, tested.cells, tested.types).argmax(1)
        named[system.name] = np.asarray(tested.types, object)[best]
    with whole_or_removed(folder):
        write_results(records, [tested], folder, run)
        pictures = _render(folder, list(dict.fromkeys(record.task for record in records)))
        write_report(folder / "report.html", tested, records, named, run=run, picture=pictures.get("annotation"))
    return _summary(records, tested, folder)


def study_records(
    systems: Sequence[System],
    study: Study,
    tree: TypeTree,
    *,
    tasks: Sequence[str] = QUICK_TASKS,
    training: TrainingCells | None = None,
    seed: int = 0,
) -> list[Record]:
    """The records of every task and system on one study, in the order in which systems and tasks are given.

    A task that a system has no function for is left out for it. `training` holds the baselines' training cells, where
    they are not the study's own.
    """
    trained = training.types if training is not None else None
    run: dict[str, Callable[[System], Record | list[Record] | None]] = {
        "annotation": lambda s: annotate_study(s, study, tree, trained_types=trained),
        "without labels": lambda s: name_without_labels(s, study, tree),
        "label sets": lambda s: label_sets(s, study, tree),
        "guards": lambda s: turn_away_no_cells(s, study, tree, seed=seed),
        "candidates": lambda s: annotate_among_more(s, study, tree, seed=seed),
        "wording": lambda s: annotate_reworded(s, study, tree),
        "unknown types": lambda s: find_unknown(s, study),
        "untrained types": lambda s: name_untrained(s, study, trained, tree) if trained else None,
        "controls": lambda s: annotate_ruined(s, study, seed=seed),
        "retrieval": lambda s: retrieve(s, study, tree),
        "clustering": lambda s: cluster_study(s, study, seed=seed),
        "few-shot": lambda s: learn_from_few(s, study),
        "description": lambda s: describe_study(s, study, tree, seed=seed),
    }
    records: list[Record] = []
    for task in tasks:
        if task == "generation":
            generators = [s for s in systems if s.generate is not None]
            records += generate_study(generators, study, training=training, tree=tree, seed=seed)
            continue
        for system in systems:
            if _takes_part(system, task, study):
                outcome = run[task](system)
                records += outcome if isinstance(outcome, list) else [outcome] if outcome else []
    return records


def leakage_record(training: TrainingCells, study: Study) -> Record:
    """How many test cells are nearly the same as a training cell, by the genes that they express."""
    settings = DuplicateSettings()
    cells = linear_expression(study.cells)
    pairs = near_duplicates(cells, training.on_genes_of(upper_symbols(study.cells)), settings)
    judged = int(np.sum(np.diff(cells.indptr) >= settings.min_genes))
    values = {"test_cells_in_training": float(len(set(pairs[:, 0]))), "test_cells_judged": float(judged)}
    return record_for(
        "leakage", System("training cells", is_baseline=True), study, values, overlap=settings.min_overlap
    )


def _takes_part(system: System, task: str, study: Study) -> bool:
    if system.needs_counts and not holds_counts(study.cells):
        return False
    if task in ("clustering", "few-shot"):
        return system.embed is not None
    if task == "description":
        return system.describe is not None
    if task in ("without labels", "guards"):
        # Variants of a model, which do nothing else, share its guards.
        return system.annotate is not None and (task == "without labels" or system.predict is not None)
    if system.predict is None:
        return False
    method, _, variant = system.name.partition(", ")
    is_chosen = method in IN_MORE_TASKS.get(task, ()) and variant != "exact labels"
    return task == "annotation" or not system.is_baseline or is_chosen


def _own_baselines(learning: Study | None, tested: Study, label: str, tree: TypeTree) -> list[System]:
    if learning is None:
        return [components_system()]
    cells = learning.cells.copy()
    cells.obs[label] = learning.truth
    training = TrainingCells([cells], label)
    where = f", trained on {learning.cells.n_obs:,} of these cells"
    return [*(s.renamed(s.name + where) for s in baseline_systems(training, tree)), components_system()]


def _halve(study: Study, seed: int) -> tuple[Study | None, Study]:
    """A half to learn from and a half to test, whole donors in one of them; no learning half for too few cells."""
    generator = np.random.default_rng(seed)
    donors = study.donors if study.donors is not None and len(set(study.donors)) > 1 else None
    units = np.arange(study.cells.n_obs) if donors is None else donors
    order = generator.permutation(np.unique(units))
    learns = np.isin(units, order[: len(order) // 2])
    if len(set(study.truth[~learns])) < 2 or not learns.any():
        return None, study
    return study.part(np.flatnonzero(learns)), study.part(np.flatnonzero(~learns))


def _at_most(study: Study, most: int, seed: int) -> Study:
    if study.cells.n_obs <= most:
        return study
    rows = np.sort(np.random.default_rng(seed).choice(study.cells.n_obs, most, replace=False))
    cut = study.part(rows)
    note = f"{most:,} of {study.cells.n_obs:,} cells were drawn at random for the test."
    return replace(cut, notes=(*cut.notes, note))


def _render(folder: Path, tasks: Iterable[str]) -> dict[str, Path]:
    """The Markdown page of each task, and its picture where matplotlib is installed."""
    pictures = {}
    for task in tasks:
        path = folder / f"{file_name(task)}.json"
        path.with_suffix(".md").write_text(page(path), encoding="utf-8")
        try:
            pictures[task] = draw(read_records(path)[1], path.with_suffix(".png"))
        except ModuleNotFoundError:
            continue
    return pictures


def _summary(records: Sequence[Record], study: Study, folder: Path) -> dict[str, Any]:
    scores = {
        metric: {r.system: round(r.values[metric], 4) for r in records if r.task == "annotation"}
        for metric in ("accuracy", "macro_f1")
    }
    return {
        "cells_tested": study.cells.n_obs,
        "types": len(study.types),
        **scores,
        "notes": list(study.notes),
        "report": str(folder / "report.html"),
    }


def device_kind() -> str:
    """The kind of device that torch computes on, without loading torch for systems that do not need it."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
