"""Results on disk: one JSON a task in the Hub's `EvalResult` form, with all that is needed to run it again."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .metrics import Interval
from .study import Study

PACKAGES = ("scmmgpt", "torch", "transformers", "anndata", "numpy", "scipy", "scikit-learn", "scib-metrics")
# The Hub's names of tasks, where it has one.
HUB_TASK = {
    "annotation": "zero-shot-classification",
    "description": "image-to-text",
    "generation": "other",
    "clustering": "feature-extraction",
    "retrieval": "sentence-similarity",
}


@dataclass
class Record:
    """The numbers of one system on one study under one set of conditions.

    Attributes
    ----------
    values
        Metric -> number.
    intervals
        Metric -> its interval, for those that have one.
    conditions
        What was different from the plain run: wording, number of candidates, shots, ...
    """

    task: str
    system: str
    study: str
    values: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    conditions: dict[str, str | int | float | bool] = field(default_factory=dict)
    is_baseline: bool = False


def record_for(task: str, system, study: Study, values: dict, intervals: dict | None = None, **conditions) -> Record:
    """A record that knows how large the study is and whether its cells are simulated."""
    conditions = {"cells": study.cells.n_obs, "simulated": study.is_simulated, **conditions}
    return Record(task, system.name, study.name, values, intervals or {}, conditions, system.is_baseline)


def eval_results(record: Record, data_hash: str = "") -> list[dict]:
    """The record as keyword arguments of `huggingface_hub.EvalResult`, one a metric; NaN is left out."""
    rows = []
    for metric, value in record.values.items():
        if math.isnan(value):
            continue
        metric_args: dict = {"system": record.system, "is_baseline": record.is_baseline}
        if metric in record.intervals:
            low, high, unit = record.intervals[metric]
            metric_args |= {"low": _short(low), "high": _short(high), "interval_over": unit}
        rows.append(
            {
                "task_type": HUB_TASK.get(record.task, "other"),
                "task_name": record.task,
                "dataset_type": "scmmgpt-study",
                "dataset_name": record.study,
                "dataset_revision": data_hash,
                "dataset_args": record.conditions,
                "metric_type": metric,
                "metric_name": metric.replace("_", " "),
                "metric_value": _short(value),
                "metric_args": metric_args,
            }
        )
    return rows


def provenance(*, seed: int, device: str, command: str | None = None, **more) -> dict:
    """Command, commit, device, seed, versions, memory and date of this run."""
    return {
        "command": command or shlex.join(_without_folders(argument) for argument in sys.orig_argv),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device,
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: v for name in PACKAGES if (v := _version(name))},
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **more,
    }


def write_results(
    records: Sequence[Record], studies: Sequence[Study], folder: Path, run: dict, prefix: str = ""
) -> dict[str, Path]:
    """Write `PREFIX_TASK.json` for each task; returns task -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {study.name: study.sha256 for study in studies}
    notes = {study.name: list(study.notes) for study in studies}
    written = {}
    for task in dict.fromkeys(record.task for record in records):
        rows = [row for r in records if r.task == task for row in eval_results(r, hashes.get(r.study, ""))]
        written[task] = folder / f"{file_name(task, prefix)}.json"
        lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
        head = json.dumps({"task": task, "run": run, "notes": notes}, indent=1, ensure_ascii=False).removesuffix("\n}")
        written[task].write_text(f'{head},\n "results": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    return written


def file_name(task: str, prefix: str = "") -> str:
    """The stem of a task's files, such as dev_unknown_types."""
    return "_".join([*prefix.split(), *task.split()])


def read_records(path: Path) -> tuple[dict, list[Record]]:
    """What `write_results` wrote: everything but the results, and the records."""
    content = json.loads(path.read_text(encoding="utf-8"))
    records: dict[tuple, Record] = {}
    for row in content.pop("results"):
        key = (row["dataset_name"], row["metric_args"]["system"], json.dumps(row["dataset_args"], sort_keys=True))
        record = records.setdefault(
            key,
            Record(row["task_name"], key[1], key[0], {}, {}, row["dataset_args"], row["metric_args"]["is_baseline"]),
        )
        record.values[row["metric_type"]] = row["metric_value"]
        if "low" in row["metric_args"]:
            parts = (row["metric_args"][name] for name in ("low", "high", "interval_over"))
            record.intervals[row["metric_type"]] = Interval(*parts)
    return content, list(records.values())


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Commit of the source tree, with "+" when something was changed since; "" outside of one."""
    describe = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        said = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.stdout.strip()


def _without_folders(argument: str) -> str:
    """Paths of one machine mean nothing on another: only the last part is kept."""
    option, equals, value = argument.rpartition("=")
    return option + equals + Path(value).name if os.path.isabs(value) else argument
