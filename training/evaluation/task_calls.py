"""What a person gets who types `annotate`: names without labels given, label sets, cells that a guard turns away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from scmmgpt.processing.labels_scmmgpt import UNKNOWN

from . import metrics
from .expression import linear_expression
from .out_of_distribution import CHANGES
from .results import Record, record_for
from .study import Study
from .systems import System, checked_scores, needed
from .type_tree import TypeTree

BLOOD_CELL = "hematopoietic cell"
# Types that annotation without labels was seen to miss: called by their parent, or never right at all.
WATCHED_TYPES = (
    "fibroblast",
    "conventional dendritic cell",
    "CD14-low, CD16-positive monocyte",
    "non-classical monocyte",
    "CD4-positive, alpha-beta T cell",
    "CD8-positive, alpha-beta T cell",
    "neutrophil",
    "paneth cell",
    "intestinal tuft cell",
    "myofibroblast cell",
)
NO_CELLS = ("gene names shuffled", "noise, all genes alike", "noise, mean of the cells")
NUM_NO_CELLS = 400
SET_ALPHA = 0.1


def name_without_labels(system: System, study: Study, tree: TypeTree) -> list[Record]:
    """Names that nobody gave candidates for: how often right, how near, how many; and what watched types are called.

    `accuracy` and `macro_f1` want the very term of the true type; in `..._finer` a term below it in the Cell Ontology
    is right too, where the study has no type in between.
    """
    names = needed(system.annotate)(study.cells, None).names_for(study.types)
    exact, finer = (metrics.meant_types(names, study.types, tree, finer_counts=counts) for counts in (False, True))
    distance, _ = metrics.ontology_distance(study.truth, names, tree)
    num_names = len(set(names) - {UNKNOWN})
    values = {
        "accuracy": metrics.accuracy(study.truth, exact),
        "macro_f1": metrics.macro_f1(study.truth, exact),
        "accuracy_finer": metrics.accuracy(study.truth, finer),
        "macro_f1_finer": metrics.macro_f1(study.truth, finer),
        "hierarchical_f1": metrics.hierarchical_f1(study.truth, names, tree),
        "ontology_distance": distance,
        "share_unknown": float(np.mean(names == UNKNOWN)),
        "names": float(num_names),
        "names_per_type": num_names / len(study.types),
    }
    if study.tissues is not None and set(study.tissues) == {"blood"}:
        values["share_not_of_blood"] = float(np.mean([_is_not_of_blood(name, tree) for name in names]))
    intervals = {
        "accuracy": metrics.bootstrap_interval(metrics.accuracy, study.truth, exact, donors=study.donors),
        "macro_f1": metrics.bootstrap_interval(metrics.macro_f1, study.truth, exact, donors=study.donors),
    }
    whole = record_for("without labels", system, study, values, intervals, types=len(study.types))
    return [whole, *_watched(system, study, names, finer)]


def _is_not_of_blood(name: str, tree: TypeTree) -> bool:
    """Whether a name is of a type that no blood sample holds: neither a blood cell nor anything above one."""
    blood = tree.find(BLOOD_CELL)
    found = tree.find(name)
    return found is not None and blood not in tree.lineage(name) and found not in tree.ancestors(BLOOD_CELL)


def _watched(system: System, study: Study, names: np.ndarray, meant: np.ndarray) -> list[Record]:
    """Of each watched type that the study holds, the share of its cells named right, and their commonest other name."""
    records = []
    for name in sorted(set(WATCHED_TYPES) & set(study.types)):
        mine = study.truth == name
        wrong = Counter(sorted(names[mine & (meant != name)])).most_common(1)
        other, times = wrong[0] if wrong else ("", 0)
        values = {"right": float(np.mean(meant[mine] == name)), "taken_for_it": times / int(mine.sum())}
        conditions: dict[str, Any] = {"type": name, "of_type": int(mine.sum()), "most_often_taken_for": other}
        records.append(record_for("watched types", system, study, values, **conditions))
    return records


def label_sets(system: System, study: Study, tree: TypeTree) -> list[Record]:
    """How often a label set holds the true type, and how large it is: among the study's own types, and without labels.

    Beside the sets that a system gives stand those of its probabilities: the likeliest types that hold 90 % of them.
    """
    records = []
    for kind, labels in (("own types", study.types), ("none given", None)):
        if system.annotate is not None and not (labels and system.is_baseline):
            sets = system.annotate(study.cells, labels).sets
            if sets is not None:
                records.append(_record_of_sets(system, study, sets, tree, labels=kind, sets_by="calibration"))
    if system.predict is not None:
        sets = likeliest(checked_scores(system, study.cells, study.types), study.types, 1 - SET_ALPHA)
        records.append(_record_of_sets(system, study, sets, tree, labels="own types", sets_by="softmax"))
    return records


def likeliest(scores: np.ndarray, labels: Sequence[str], mass: float) -> list[frozenset[str]]:
    """The fewest labels whose probabilities reach `mass`, for each row of scores."""
    order = np.argsort(-scores, axis=1, kind="stable")
    before = np.cumsum(np.take_along_axis(scores, order, axis=1), axis=1) - np.take_along_axis(scores, order, axis=1)
    return [frozenset(labels[i] for i in row[kept]) for row, kept in zip(order, before < mass, strict=True)]


def _record_of_sets(
    system: System, study: Study, sets: Sequence[frozenset[str]], tree: TypeTree, **conditions: Any
) -> Record:
    return record_for("label sets", system, study, metrics.set_metrics(study.truth, sets, tree), **conditions)


def turn_away_no_cells(system: System, study: Study, tree: TypeTree, *, seed: int = 0) -> list[Record]:
    """Real cells lost to the guards, and what is no cell that they catch, without labels given.

    `caught` are cells that end as "unknown" or as a term that describes nearly any cell; `share_of_root` are those whose
    set of labels names nothing better.
    """
    annotate = needed(system.annotate)
    cells = study.cells.copy()
    cells.X = linear_expression(cells)
    few = cells[np.sort(np.random.default_rng(seed).permutation(cells.n_obs)[:NUM_NO_CELLS])].copy()
    ruined = {name: CHANGES[name](few, np.random.default_rng(seed)) for name in NO_CELLS}
    records = []
    for control, tested in {"real cells": study.cells, **ruined}.items():
        said = annotate(tested, None)
        values = {
            "turned_away": said.num_turned_away / tested.n_obs,
            "caught": float(np.mean([not tree.lineage(name) - {UNKNOWN} for name in said.names])),
        }
        if said.sets is not None:
            values["share_of_root"] = float(np.mean([metrics.is_root(names, tree) for names in said.sets]))
        records.append(record_for("guards", system, study, values, control=control, genes=tested.n_vars))
    return records
