"""Tables and pictures from results/*.json: the only way in which a number reaches a README, a page or a card.

python -m scmmgpt.training.evaluation.results_table hub_cards/results/dev_annotation.json [--metrics accuracy macro_f1]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .results import Record, read_records

# Metric shown first for each task: the picture shows it, the table starts with these.
LEADING = {
    "annotation": ["accuracy", "macro_f1", "hierarchical_f1", "balanced_accuracy", "exact_or_parent", "ece"],
    "without labels": [
        "accuracy_finer",
        "macro_f1_finer",
        "hierarchical_f1",
        "accuracy",
        "macro_f1",
        "share_unknown",
        "names_per_type",
        "share_not_of_blood",
    ],
    "watched types": ["right", "taken_for_it"],
    "label sets": ["coverage", "exact_coverage", "mean_set_size", "share_of_root"],
    "guards": ["turned_away", "caught", "share_of_root"],
    "candidates": [
        "accuracy",
        "macro_f1",
        "hierarchical_f1",
        "exact_or_parent",
        "exact_or_parent_at_80_coverage",
        "ece",
    ],
    "wording": ["accuracy", "macro_f1", "chance", "reworded_types"],
    "unknown types": ["unknown_auroc", "unknown_auroc_std"],
    "untrained types": ["accuracy", "macro_f1", "chance", "cells_of_untrained_types"],
    "controls": ["accuracy", "balanced_accuracy", "mean_confidence", "chance"],
    "few-shot": ["macro_f1", "macro_f1_std", "accuracy"],
    "clustering": ["avg_bio", "ari", "nmi", "asw", "avg_batch", "scib_asw_batch", "scib_ilisi"],
    "retrieval": ["cell_to_text_r@1", "text_to_cell_r@1", "text_to_cell_precision@20", "text_to_cell_r@1_blind"],
    "description": ["fact_precision", "type_precision", "tissue_precision", "gene_precision", "bleu_4", "rougeL"],
    "leakage": ["test_cells_in_training", "test_cells_judged"],
    "generation": [
        "knn_5",
        "mmd",
        "sliced_wasserstein",
        "real_or_generated_auc_forest",
        "covariance_agreement",
        "components_within_factor_3",
        "nearest_training_ratio",
    ],
}
ANSWER = "most_often_taken_for"  # a result in words
# Conditions that tell rows of one task apart, and so become columns.
SHOWN_CONDITIONS = (
    "candidates",
    "wording",
    "among",
    "control",
    "shots",
    "labels",
    "sets_by",
    "type",
    "most_often_taken_for",
)


def markdown_table(records: Sequence[Record], metrics: Sequence[str] | None = None) -> str:
    """One row a system and study, with intervals; the best system of each study and metric is bold.

    The records are of one task, whose leading metrics are the columns unless others are named. Simulated studies carry
    the word; a cell without a number is a dash.
    """
    shown = [m for m in metrics or LEADING.get(records[0].task, []) if any(m in r.values for r in records)]
    conditions = [c for c in SHOWN_CONDITIONS if len({r.conditions.get(c) for r in records}) > 1]
    rows = []
    for record in records:
        asked = [c for c in conditions if c != ANSWER]
        rivals = [r for r in records if r.study == record.study and _setting(r, asked) == _setting(record, asked)]
        rows.append(
            [
                record.study + (" (simulated)" if record.conditions.get("simulated") else ""),
                *(record.conditions.get(condition, "") for condition in ("cells", *conditions)),
                record.system,
                *(_number(record, metric, rivals) for metric in shown),
            ]
        )
    return markdown(["study", "cells", *conditions, "system", *(m.replace("_", " ") for m in shown)], rows)


def mean_table(records: Sequence[Record], metrics: Sequence[str] | None = None) -> str:
    """One row a system: the mean over the studies that every system has, real and simulated studies apart."""
    shown = [m for m in metrics or LEADING.get(records[0].task, [])[:4] if any(m in r.values for r in records)]
    systems = list(dict.fromkeys(r.system for r in records))
    lines = []
    for kind, is_simulated in (("real", False), ("simulated", True)):
        rows = [r for r in records if bool(r.conditions.get("simulated")) == is_simulated]
        shared = set.intersection(*({r.study for r in rows if r.system == s} for s in systems)) if rows else set()
        for system in systems if shared else []:
            mine = [r for r in rows if r.system == system and r.study in shared]
            means = (np.mean([r.values.get(m, np.nan) for r in mine]) for m in shown)
            lines.append([kind, len(shared), system, *(f"{mean:.3f}" for mean in means)])
    return markdown(["cells", "studies", "system", *(m.replace("_", " ") for m in shown)], lines)


def markdown(header: Sequence[str], rows: Iterable[Sequence], num_left: int | None = None) -> str:
    """A Markdown table; columns after the first `num_left` are aligned to the right."""
    num_left = len(header) if num_left is None else num_left
    rule = "|" + "---|" * num_left + "---:|" * (len(header) - num_left)
    first, *others = ("| " + " | ".join(map(str, row)) + " |" for row in (header, *rows))
    return "\n".join([first, rule, *others])


def page(path: Path, metrics: Sequence[str] | None = None) -> str:
    """The Markdown page of one results file: what was run, the notes, the means and the whole table."""
    content, records = read_records(path)
    run = content["run"]
    parts = [
        f"# {content['task'].capitalize()}",
        f"`{run['command']}` · commit {run['commit'][:12] or 'unknown'} · {run['device']} · seed {run['seed']} "
        f"· {run['date']} · peak memory {run['peak_memory_mb']} MB",
    ]
    notes = dict.fromkeys(f"- {study}: {note}" for study, lines in content["notes"].items() for note in lines)
    one_row_each = len({(r.study, r.system) for r in records}) == len(records)
    if len({r.study for r in records}) > 1 and one_row_each:
        parts.append(mean_table(records, metrics))
    return "\n\n".join([*parts, markdown_table(records, metrics), "\n".join(notes)]).rstrip() + "\n"


def draw(records: Sequence[Record], path: Path, metric: str | None = None) -> Path:
    """One picture of one metric: a group of bars a study, a bar a system, whiskers for intervals.

    The records are of one task, whose first leading metric is shown unless another is named. The suffix of `path`
    chooses the format (.png, .svg).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    leading = LEADING.get(records[0].task, list(records[0].values))
    metric = metric or next((m for m in leading if any(m in r.values for r in records)), leading[0])
    groups = list(dict.fromkeys(map(_group, records)))
    bars = list(dict.fromkeys(r.system for r in records))
    figure = Figure(figsize=(max(6, 1.3 + 0.35 * len(groups) * max(len(bars), 2)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.85 / len(bars)
    for name in bars:
        mine = [r for r in records if r.system == name and metric in r.values]
        place = [groups.index(_group(r)) + (bars.index(name) - (len(bars) - 1) / 2) * width for r in mine]
        height = [r.values[metric] for r in mine]
        whiskers = [r.intervals.get(metric, (r.values[metric],) * 2)[:2] for r in mine]
        error = np.abs(np.array(whiskers).reshape(-1, 2).T - height)
        axes.bar(place, height, width, label=name, yerr=error, error_kw={"elinewidth": 0.8})
    axes.set_xticks(
        range(len(groups)), groups, rotation=30 if len(groups) > 2 else 0, ha="right" if len(groups) > 2 else "center"
    )
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _number(record: Record, metric: str, rivals: Sequence[Record]) -> str:
    if metric not in record.values:
        return "–"
    value = record.values[metric]
    text = f"{value:.3f}"
    if len(rivals) > 1 and value == _best(metric, rivals):
        text = f"**{text}**"
    if metric in record.intervals:
        low, high, _ = record.intervals[metric]
        text += f" ({low:.3f}–{high:.3f})"
    return text


# The smaller the better; nothing is best of chance, counts and confidence.
_SMALLER = ("ontology_distance", "ece", "mmd", "sliced_wasserstein", "gromov_wasserstein", "area_under", "_distance")
_NEITHER = (
    "chance",
    "share_",
    "names",
    "turned_away",
    "taken_for_it",
    "set_size",
    "_blind",
    "mean_confidence",
    "reworded_types",
    "_std",
    "nearest_training_ratio",
    "duplicates",
)


def _best(metric: str, rivals: Sequence[Record]) -> float:
    values = [r.values[metric] for r in rivals if metric in r.values]
    if any(part in metric for part in _NEITHER):
        return float("nan")
    if "real_or_generated_auc" in metric or any(part in metric for part in _SMALLER):
        return min(values)
    return max(values)


def _setting(record: Record, conditions: Sequence[str]) -> tuple:
    return tuple(record.conditions.get(condition) for condition in conditions)


def _group(record: Record) -> str:
    extra = [str(record.conditions[c]) for c in ("wording", "control", "shots") if c in record.conditions]
    if record.task == "candidates":
        extra = [f"{record.conditions['candidates']} candidates"]
    if record.task == "annotation":
        extra = []
    return "\n".join([record.study.replace("_", " "), *extra])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--metrics", nargs="*")
    arguments = parser.parse_args()
    for path in arguments.results:
        print(page(path, arguments.metrics))


if __name__ == "__main__":
    main()
