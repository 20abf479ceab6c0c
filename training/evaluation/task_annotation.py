"""Annotation: which of these types is this cell? Plain, in other words, among more candidates, without the right one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from . import metrics
from .results import Record, record_for
from .study import Study
from .systems import System, checked_scores, needed
from .type_tree import TypeTree

CANDIDATE_NUMBERS = (10, 50, 200)
WORDINGS = ("synonym", "definition without the name", "paraphrase", "other order", "shuffled names")
SHOTS = (1, 5, 10, 50)
SEEDS = range(5)


def annotate_study(
    system: System, study: Study, tree: TypeTree, *, trained_types: Iterable[str] | None = None
) -> Record:
    """Every number about naming the study's own types, which are the candidates.

    With `trained_types`, those that had training cells, cells of other types are reported apart.
    """
    start = time.perf_counter()
    scores = checked_scores(system, study.cells, study.types)
    seconds = time.perf_counter() - start
    values, intervals = label_metrics(study, study.types, scores, tree)
    values["cells_per_second"] = study.cells.n_obs / seconds
    if trained_types is not None:
        values |= _apart_by_training(study, _named(study.types, scores), set(trained_types), tree)
    conditions = {"candidates": len(study.types), "wording": "name"}
    return record_for("annotation", system, study, values, intervals, **conditions)


def label_metrics(
    study: Study, labels: Sequence[str], scores: np.ndarray, tree: TypeTree
) -> tuple[dict[str, float], dict[str, metrics.Interval]]:
    """Accuracy, macro-F1, balanced accuracy, nearness in the tree and calibration of one matrix of scores."""
    truth, named, confidence = study.truth, _named(labels, scores), scores.max(1)
    correct = named == truth
    near = metrics.exact_or_parent_hits(truth, named, tree)
    distance, placed = metrics.ontology_distance(truth, named, tree)
    values = {
        "accuracy": float(correct.mean()),
        "macro_f1": metrics.macro_f1(truth, named),
        "balanced_accuracy": metrics.balanced_accuracy(truth, named),
        "exact_or_parent": float(near.mean()),
        "hierarchical_f1": metrics.hierarchical_f1(truth, named, tree),
        "ontology_distance": distance,
        "share_in_ontology": placed,
        "ece": metrics.expected_calibration_error(confidence, correct),
        "area_under_risk_coverage": metrics.area_under_risk_coverage(confidence, correct),
        "accuracy_at_80_coverage": metrics.accuracy_at_coverage(confidence, correct, 0.8),
        "exact_or_parent_at_80_coverage": metrics.accuracy_at_coverage(confidence, near, 0.8),
        "mean_confidence": float(confidence.mean()),
    }
    intervals = {
        "accuracy": metrics.bootstrap_interval(np.mean, correct, donors=study.donors),
        "macro_f1": metrics.bootstrap_interval(metrics.macro_f1, truth, named, donors=study.donors),
        "balanced_accuracy": metrics.bootstrap_interval(metrics.balanced_accuracy, truth, named, donors=study.donors),
        "exact_or_parent": metrics.bootstrap_interval(np.mean, near, donors=study.donors),
    }
    return values, intervals


def annotate_among_more(system: System, study: Study, tree: TypeTree, *, seed: int = 0) -> list[Record]:
    """The same cells with 10, 50, 200 and all Cell Ontology terms as candidates: own types first, the rest by lot."""
    own = study.types
    others = [label for label in tree.labels if label not in set(own)]
    np.random.default_rng(seed).shuffle(others)
    records = []
    for number in [*(n for n in CANDIDATE_NUMBERS if n > len(own)), len(own) + len(others)]:
        labels = sorted(own + others[: number - len(own)])
        values, intervals = label_metrics(study, labels, checked_scores(system, study.cells, labels), tree)
        is_all = number == len(own) + len(others)
        conditions = {"candidates": len(labels), "wording": "name", "all_of_the_ontology": is_all}
        records.append(record_for("candidates", system, study, values, intervals, **conditions))
    return records


def annotate_reworded(system: System, study: Study, tree: TypeTree) -> list[Record]:
    """The same candidates in other words; shuffled names must fall to chance, the rest should lose little.

    Shuffled names are the mean of five shuffles. A type without a synonym or definition keeps its name;
    `reworded_types` says how many did not.
    """
    plain = study.types
    records = []
    for wording in WORDINGS:
        seeds = SEEDS if wording in ("shuffled names", "other order") else [0]
        runs = [_reworded_run(system, study, plain, wording, seed, tree) for seed in seeds]
        values = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
        records.append(record_for("wording", system, study, values, candidates=len(plain), wording=wording))
    return records


def reword(labels: Sequence[str], wording: str, tree: TypeTree, seed: int = 0) -> list[str]:
    """The labels in another wording; a wording that a label does not have, or that another label has, leaves it."""
    generator = np.random.default_rng(seed)
    if wording == "shuffled names":
        return [labels[i] for i in generator.permutation(len(labels))]
    say: dict[str, Callable[[str], str]] = {
        "name": str,
        "synonym": lambda label: tree.synonym(label) or label,
        "definition without the name": lambda label: tree.definition_without_name(label) or label,
        "paraphrase": lambda label: f"cells of the type {label}",
    }
    said = [say[wording](label) for label in labels]
    return [new if said.count(new) == 1 and new not in labels else old for old, new in zip(labels, said, strict=True)]


def find_unknown(system: System, study: Study) -> Record | None:
    """Half of the types at a time are no candidates: is confidence lower for their cells? Mean AUROC of five draws.

    None for a study of fewer than four types.
    """
    types = study.types
    if len(types) < 4:
        return None
    aurocs = []
    for seed in SEEDS:
        known = sorted(np.random.default_rng(seed).permutation(types)[: len(types) // 2])
        confidence = checked_scores(system, study.cells, known).max(1)
        aurocs.append(metrics.auroc(confidence, np.isin(study.truth, known)))
    values = {"unknown_auroc": float(np.mean(aurocs)), "unknown_auroc_std": float(np.std(aurocs))}
    return record_for("unknown types", system, study, values, candidates=len(types) // 2, draws=len(SEEDS))


def name_untrained(system: System, study: Study, trained_types: Iterable[str], tree: TypeTree) -> list[Record]:
    """Cells of types without training cells, named among such types alone and among all types of the study.

    A type counts as trained when a finer one was. Nothing is measured for a study with fewer than two others.
    """
    untrained = [name for name in study.types if name not in _trained_candidates(study, set(trained_types), tree)]
    if len(untrained) < 2:
        return []
    theirs = np.isin(study.truth, untrained)
    part, truth = study.part(np.flatnonzero(theirs)), study.truth[theirs]
    records = []
    for wording in ("name", "definition without the name"):
        named = {
            "each other": _named(untrained, checked_scores(system, part.cells, reword(untrained, wording, tree))),
            "all types": _named(study.types, checked_scores(system, study.cells, reword(study.types, wording, tree)))[
                theirs
            ],
        }
        for among, names in named.items():
            candidates = len(untrained) if among == "each other" else len(study.types)
            values = {
                "accuracy": metrics.accuracy(truth, names),
                "macro_f1": metrics.macro_f1(truth, names),
                "chance": 1 / candidates,
                "cells_of_untrained_types": float(theirs.sum()),
            }
            asked: dict[str, Any] = {"candidates": candidates, "wording": wording, "among": among}
            records.append(record_for("untrained types", system, study, values, **asked))
    return records


def annotate_ruined(system: System, study: Study, *, seed: int = 0) -> list[Record]:
    """Cells that hold nothing to see: genes shuffled within each cell, and no counts at all.

    Accuracy must fall to chance and confidence well below that on real cells.
    """
    records = []
    for control, cells in (("shuffled genes", shuffled_genes(study.cells, seed)), ("blank", blank(study.cells))):
        scores = checked_scores(system, cells, study.types)
        named = _named(study.types, scores)
        values = {
            "accuracy": metrics.accuracy(study.truth, named),
            "balanced_accuracy": metrics.balanced_accuracy(study.truth, named),
            "mean_confidence": float(scores.max(1).mean()),
            "chance": 1 / len(study.types),
        }
        records.append(record_for("controls", system, study, values, candidates=len(study.types), control=control))
    return records


def learn_from_few(system: System, study: Study) -> list[Record]:
    """Logistic regression on 1, 5, 10 and 50 labelled cells a type in the system's embedding; five seeds.

    The cells that were learnt from are not tested; a number that would use more than half of a type's cells is cut to
    that half.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    frequent = [name for name in study.types if np.sum(study.truth == name) >= 2]
    if len(frequent) < 2:
        return []
    usable = study.part(np.flatnonzero(np.isin(study.truth, frequent)))
    embedding = np.asarray(needed(system.embed)(usable.cells))
    records = []
    for shots in SHOTS:
        accuracies, f1s = [], []
        for seed in SEEDS:
            learnt = _few_of_each(usable.truth, shots, seed)
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
            classifier.fit(embedding[learnt], usable.truth[learnt])
            rest = np.setdiff1d(np.arange(len(usable.truth)), learnt)
            named = classifier.predict(embedding[rest])
            accuracies.append(metrics.accuracy(usable.truth[rest], named))
            f1s.append(metrics.macro_f1(usable.truth[rest], named))
        found = {"accuracy": np.mean(accuracies), "macro_f1": np.mean(f1s), "macro_f1_std": np.std(f1s)}
        values = {name: float(value) for name, value in found.items()}
        records.append(record_for("few-shot", system, study, values, shots=shots, seeds=len(SEEDS)))
    return records


def shuffled_genes(cells, seed: int = 0):
    """A copy in which each cell's values stand at random genes."""
    generator = np.random.default_rng(seed)
    matrix = sp.csr_matrix(cells.X, copy=True)
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        matrix.indices[start:stop] = generator.choice(matrix.shape[1], stop - start, replace=False)
    matrix.has_sorted_indices = False
    matrix.sort_indices()
    return _with_matrix(cells, matrix)


def blank(cells):
    """A copy without any counts."""
    return _with_matrix(cells, sp.csr_matrix(cells.shape, dtype=np.float32))


def _with_matrix(cells, matrix: sp.csr_matrix):
    """A copy of the cells in which this matrix is the only one."""
    copied = cells.copy()
    copied.X, copied.raw = matrix, None
    for name in [name for name in copied.layers if name is not None]:  # to anndata 0.13, None is X
        del copied.layers[name]
    return copied


def _named(labels: Sequence[str], scores: np.ndarray) -> np.ndarray:
    return np.asarray(labels, object)[scores.argmax(1)].astype(str)


def _reworded_run(
    system: System, study: Study, plain: Sequence[str], wording: str, seed: int, tree: TypeTree
) -> dict[str, float]:
    if wording == "other order":
        order = np.random.default_rng(seed).permutation(len(plain))
        scores = checked_scores(system, study.cells, [plain[i] for i in order])
        named = _named([plain[i] for i in order], scores)
        changed = 0
    else:
        words = reword(plain, wording, tree, seed)
        named = _named(plain, checked_scores(system, study.cells, words))
        changed = sum(old != new for old, new in zip(plain, words, strict=True))
    return {
        "accuracy": metrics.accuracy(study.truth, named),
        "macro_f1": metrics.macro_f1(study.truth, named),
        "reworded_types": float(changed),
        "chance": 1 / len(plain),
    }


def _apart_by_training(study: Study, named: np.ndarray, trained: set[str], tree: TypeTree) -> dict[str, float]:
    """Accuracy on cells whose type, or a finer one, had training cells, and on the others."""
    seen = np.isin(study.truth, sorted(_trained_candidates(study, trained, tree)))
    values = {"share_of_unseen_types": float((~seen).mean())}
    for name, rows in (("accuracy_seen_types", seen), ("accuracy_unseen_types", ~seen)):
        values[name] = float(np.mean(named[rows] == study.truth[rows])) if rows.any() else float("nan")
    return values


def _trained_candidates(study: Study, trained: set[str], tree: TypeTree) -> set[str]:
    """The study's types that had training cells themselves or through finer types."""
    return {found for name in trained if (found := tree.nearest_of(name, study.types))}


def _few_of_each(truth: np.ndarray, shots: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    chosen = []
    for name in np.unique(truth):
        rows = np.flatnonzero(truth == name)
        chosen.append(generator.choice(rows, min(shots, len(rows) // 2), replace=False))
    return np.concatenate(chosen)
