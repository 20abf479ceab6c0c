"""Measured numbers for the pages: Markdown from JSON files, or a plain sentence where nothing was measured."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from browser_table import browser_tables
from endurance_tables import clients_table, scale_table
from rivals_table import rivals_tables

from scmmgpt.hub_cards.render import SECTIONS
from scmmgpt.training.evaluation.results import read_records
from scmmgpt.training.evaluation.results_table import markdown, markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "hub_cards" / "results"
MEASURED = ROOT / "docs" / "measured"
NO_TABLE = "```{warning}\nNothing has been measured yet: there is no file of results.\n```"


def render_placeholders(text: str) -> str:
    """A page with each `<!-- measured: NAME -->` replaced by its table."""
    return re.sub(r"<!-- measured: (\w+) -->", lambda found: measured_table(found[1]), text)


def measured_table(name: str, folder: Path = MEASURED) -> str:
    """One table of measured numbers as Markdown, or a warning that there are none."""
    path = folder / f"{name}.json"
    if name == "results":
        return results_tables()
    if not path.exists():
        return NO_TABLE
    return TABLES[name](json.loads(path.read_text(encoding="utf-8")))


def results_tables(folder: Path = RESULTS) -> str:
    """One table a task, simulated studies marked, with the command, commit, device and seed of every run."""
    files = [read_records(path) for path in sorted(folder.glob("*.json"))]
    if not files:
        return NO_TABLE
    found = {record.task for _, records in files for record in records}
    parts = []
    for task in [*SECTIONS, *sorted(found - set(SECTIONS))]:
        if task in found:
            records = [record for _, records in files for record in records if record.task == task]
            parts += [f"## {SECTIONS.get(task, task)}", markdown_table(records)]
    runs = {json.dumps(head["run"], sort_keys=True): head["run"] for head, _ in files}
    return "\n\n".join([*parts, "## Runs", *map(_run, runs.values())])


def _run(run: dict) -> str:
    return (
        f"`{run['command']}`: commit `{run['commit']}`, {run['date']}, {run['device']} ({run['processor']}), "
        f"seed {run['seed']}."
    )


def _index_table(report: dict) -> str:
    """Time and memory of building an index, recall and time per query."""
    header = ["", *(f"{row['cells']:,} cells" for row in report["rows"])]
    rows = [[name, *map(value, report["rows"])] for name, value in _INDEX_ROWS.items()]
    about = f"Measured with `{report['command']}` on {report['date']}: {report['data']}; {report['hardware']}."
    return "\n".join([markdown(header, rows, num_left=1), "", about, *([report["note"]] if "note" in report else [])])


_INDEX_ROWS = {
    "atlas on disk": lambda row: f"{row['atlas_megabytes']:,} MB",
    "index on disk": lambda row: f"{row['index_megabytes']:,} MB",
    "time to build, processor": lambda row: f"{row['build']['cpu_seconds']:,.0f} s",
    "memory to build": lambda row: f"{row['build']['megabytes']:,.0f} MB",
    "memory to search": lambda row: f"{row['query']['held']['megabytes']:,.0f} MB",
    "recall of the top 20, mean (lowest)": lambda row: (
        f"{row['query']['recall']['mean']:.3f} ({row['query']['recall']['least']:.2f})"
    ),
    "time of a query, median (95 %)": lambda row: _milliseconds(row["query"]["approximate_ms"]),
    "the same, exact search": lambda row: _milliseconds(row["query"]["exact_ms"]),
}


def _milliseconds(times: dict) -> str:
    return f"{times['p50']:,.1f} ({times['p95']:,.1f}) ms"


def _speed_table(report: dict) -> str:
    """What each benchmark measured, with the machine it ran on."""
    header = ["task", "implementation", "rate, median (lowest to highest)", "speed-up", "share of the limit", "memory"]
    rows = [
        [
            row["task"],
            row["way"],
            _rate(row),
            row.get("ratio", ""),
            f"{row['share_of_limit']:.0%}" if row.get("share_of_limit") is not None else "",
            f"{row['peak_mb']:,.0f} MB" if row.get("peak_mb") is not None else "",
        ]
        for row in report["rows"]
    ]
    quiet = [name for name, machine in report["machines"].items() if machine.get("was_quiet")]
    about = next(iter(report["machines"].values()))
    where = f"{about['processor']}, {about['cores']} cores, torch {about['torch']}, {report['date']}"
    calm = f"The machine was quiet when these began: {', '.join(quiet)}." if quiet else "The machine was never quiet."
    elsewhere = [
        f" {name}: {other['processor']}, threads: {other['threads']}."
        for name, other in report["machines"].items()
        if other["processor"] != about["processor"]
    ]
    note = f"{where}.{''.join(elsewhere)} {calm} On a busy machine only the ratios are meaningful."
    return f"{markdown(header, rows, num_left=2)}\n\n{note}"


def _rate(row: dict) -> str:
    has_spread = row.get("low") != row.get("high")
    spread = f" ({_number(row['low'])} to {_number(row['high'])})" if has_spread else ""
    return f"{_number(row['rate'])} {row['unit']}{spread}"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _out_of_distribution_table(report: dict) -> str:
    """What `annotate` does with noise and unknown types: one row per condition and study, with and without the check."""
    numbers = ["unknown", "implausible", "mean confidence", "unknown without the check"]
    conditions = list(dict.fromkeys(row["condition"] for row in report["rows"]))
    rows = [
        [
            row["condition"],
            f"{row['study']} (simulated)" if row["simulated"] else row["study"],
            *_what_was_said(row["before"], row["after"]),
        ]
        for row in sorted(report["rows"], key=lambda row: conditions.index(row["condition"]))
    ]
    table = markdown(["cells", "study", *numbers, "warning"], rows, num_left=2)
    return f"{table}\n\n{_run(report['run'])}"


def _what_was_said(before: dict, after: dict) -> list[str]:
    if "refused" in after:
        return ["refused", "", "", "", "with the reason"]
    shares = [f"{after['unknown']:.1%}", f"{after['implausible']:.1%}", f"{after['mean_confidence']:.2f}"]
    return [*shares, f"{before['unknown']:.1%}", "yes" if after["warnings"] else "no"]


def _space_table(report: dict) -> str:
    """Layers from each kind of features, and types with and without smoothing over space."""
    layers, niches = report["layers"]["balanced_accuracy"], report["layers"]["nmi_of_niches_with_layers"]
    first = markdown(["layers from", "balanced accuracy"], [[n, f"{v:.2f}"] for n, v in layers.items()], num_left=1)
    second = markdown(
        ["niches", "mutual information with layers"], [[n, f"{v:.2f}"] for n, v in niches.items()], num_left=1
    )
    columns = ("without", "with", "shuffled places")
    rows = [
        [one["study"], row["setting"], *(f"{row[column]:.3f}" for column in columns)]
        for one in report["types"]
        for row in one["accuracy"]
    ]
    third = markdown(["cells", "labels", "accuracy without", "with spatial=True", "shuffled places"], rows, num_left=2)
    return "\n\n".join([first, second, third, _run(report["run"])])


def _perturbation_table(report: dict) -> str:
    """Knockdowns, ranking of types, search across donors, and predictions for types left out."""
    genes = [
        [
            row["perturbation"],
            row["target"],
            f"{row['log2_fold_change']:.2f}",
            f"{row['fdr']:.1g}",
            row["place_among_down"],
            f"{row['e_test_fdr']:.3f}",
        ]
        for row in report["knockdowns"]
    ]
    head = [
        "knockdown",
        "target",
        "log2 fold change",
        "FDR of the target",
        "place among genes that go down",
        "FDR of the E-test",
    ]
    types = [
        [row["cell_type"], f"{row['energy_distance']:.3f}", row["genes_changed"], row["pseudobulk_genes"]]
        for row in report["ranking"]["types"]
    ]
    rho = report["ranking"]["spearman_with_pseudobulk"]["energy_distance"]
    search = "; ".join(
        f"donor {row['donor']}: AUC {row['auc']:.2f}, {row['auc_within_types']:.2f} within types"
        for row in report["search"]
    )
    return "\n\n".join(
        [
            f"Knockdowns, {report['screen']}:",
            markdown(head, genes, num_left=2),
            f"Types by response, {report['stimulated']}, beside genes that change alike in pseudobulk profiles of both of its "
            f"{report['ranking']['donors']} donors (rank correlation {rho}):",
            markdown(["type", "energy distance", "genes changed", "pseudobulk genes"], types, num_left=1),
            f"Cells of a donor that was not compared, by whether they look perturbed: {search}.",
            "Response of a type left out, RMSE of the mean log expression over its tested genes:",
            _left_out(report["left_out_types"], "type"),
            _run(report["run"]),
            *_patients(report["patients"]),
        ]
    )


def _left_out(rows: list[dict], what: str) -> str:
    """The error of each predictor for each type or patient left out."""
    predictors = list(rows[0]["predictors"])
    errors = [
        [row["cell_type"], *(f"{row['predictors'][one]['rmse']:.3f}" for one in predictors), row["lowest_rmse"]]
        for row in rows
    ]
    return markdown([f"{what} left out", *predictors, "lowest"], errors, num_left=1)


def _patients(report: dict) -> list[str]:
    """The response of each patient to a drug, and what the others say of it."""
    rows = [
        [
            row["cell_type"],
            f"{row['energy_distance']:.3f}",
            row["genes_changed"],
            row["up"],
            row["down"],
            f"{report['auc_of_left_out'][row['cell_type']]:.2f}",
        ]
        for row in report["responses"]
    ]
    header = [
        "patient",
        "energy distance",
        "genes changed",
        "up",
        "down",
        "AUC of treated cells, by the other patients",
    ]
    return [
        f"A drug on tissue of five patients, {report['study']} (300 genes), each patient beside itself untreated:",
        markdown(header, rows, num_left=1),
        "Response of a patient left out, RMSE as above:",
        _left_out(report["left_out"], "patient"),
        _run(report["run"]),
    ]


def _renamed_table(report: dict) -> str:
    """Human cells under other animals' gene names: one row for each study and species."""
    header = ["study", "species", "counts covered", "reach", "accuracy", "mean confidence", "names kept", "unknown"]
    rows = [
        [
            row["study"],
            row["species"],
            *(f"{row[name]:.2f}" for name in ("share_of_counts", "reach", "accuracy", "mean_confidence")),
            *(f"{row[name]:.0%}" for name in ("names_kept", "unknown")),
        ]
        for row in report["rows"]
    ]
    note = (
        "Accuracy and confidence: with the study's own labels, never backing off. Names kept, unknown: without labels, "
        "against what the same cells are called under human names."
    )
    return f"{markdown(header, rows, num_left=2)}\n\n{note}\n\n{_run(report['run'])}"


def _proteins_table(report: dict) -> str:
    """What antibodies add to the RNA: methods against what is hidden, antibodies dropped one by one, antibodies alone."""
    cases = list(dict.fromkeys((row["study"], row["cells"], row["hidden"]) for row in report["rows"]))
    value = {(row["study"], row["hidden"], row["system"]): row for row in report["rows"]}
    methods = list(dict.fromkeys(row["system"] for row in report["rows"]))
    header = ["method", *(f"{study}, {cells} cells; hidden: {hidden}" for study, cells, hidden in cases)]
    rows = [[method, *(_two(value[study, hidden, method]) for study, _, hidden in cases)] for method in methods]
    parts = [markdown(header, rows, num_left=1)]
    for curve in report["dropped"]:
        steps = curve["steps"]
        shown = [step for at, step in enumerate(steps) if at in (0, len(steps) - 1) or step["left"] % 4 == 0]
        text = ", ".join(f"{step['left']}: {step['accuracy']:.3f} (lowest {step['lowest']:.3f})" for step in shown)
        parts.append(
            f"Antibodies dropped one by one in ten orders, {curve['study']}, hidden: {curve['hidden']}. Accuracy with so "
            f"many left: {text}. None left is the RNA alone."
        )
    alone = [[str(row["antibodies"]), _two(row), str(row["panels"])] for row in report["alone"]["rows"]]
    parts.append(
        f"Antibodies alone, without any RNA, against the authors' four clusters of {report['alone']['study']}; the last "
        "row calls every cell a T cell:"
    )
    parts.append(markdown(["antibodies, at random", "accuracy / macro-F1", "panels"], alone, num_left=0))
    return "\n\n".join([*parts, _run(report["run"]), f"totalVI: {_run(report['run_of_total_vi'])}"])


def _two(row: dict) -> str:
    return f"{row['accuracy']:.3f} / {row['macro_f1']:.3f}"


def _chromatin_table(report: dict) -> str:
    """Calls by gene activities next to others, and how near both embeddings of a cell lie."""
    cells = report["cells"]
    about = (
        f"{cells['study']}: {cells['cells']:,} cells of {cells['types']} types, median activity "
        f"{cells['median_activity']:.0f} fifths of a cut, {cells['genome']} (peaks at starts of genes "
        f"{cells['enrichment_at_starts']} times as often as beside them)."
    )
    rows = [
        [row["system"], f"{row['cells']:,}", *(f"{row[name]:.3f}" for name in _CHROMATIN_METRICS)]
        for row in report["rows"]
    ]
    header = ["", "cells", "accuracy", "balanced accuracy", "macro-F1"]
    near = [[name, f"{row['foscttm']:.3f}", f"{row['top_1_percent']:.1%}"] for name, row in report["matching"].items()]
    matching = markdown(["embeddings of RNA and chromatin", "FOSCTTM", "match in the nearest 1 %"], near, num_left=1)
    return "\n\n".join([about, markdown(header, rows, num_left=1), matching, _run(report["run"])])


_CHROMATIN_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def _planted_swaps_table(report: dict) -> str:
    """How many planted label swaps are found, study by study, beside a baseline."""
    methods = [name for name in next(iter(report["studies"].values())) if name != "cells"]
    rows = [
        [
            study,
            f"{found['cells']['number']:,}",
            str(found["cells"]["labels"]),
            *(_three(found[name]) for name in methods),
        ]
        for study, found in report["studies"].items()
    ]
    means = [
        {key: sum(one[name][key] for one in report["studies"].values()) / len(rows) for key in _SWAPS}
        for name in methods
    ]
    rows.append(["mean", "", "", *map(_three, means)])
    table = markdown(["study", "cells", "labels", *methods], rows, num_left=1)
    return f"{table}\n\n`{report['command']}`, {report['date']}, {report['seeds']} draws of swaps a study."


_SWAPS = ("precision", "recall", "average_precision")


def _three(found: dict) -> str:
    return " / ".join(f"{found[name]:.2f}" for name in _SWAPS)


def _time_table(report: dict) -> str:
    """Where the time of `annotate` goes."""
    rows = [[row["way"], f"{row['rate']:.1f}"] for row in report["rows"]]
    load = report["machine"]["load_at_start"]
    told = f"{report['num_cells']:,} cells, {report['machine']['processor']}, load {load} at the start."
    return f"{markdown(['what', '% of the samples'], rows, num_left=1)}\n\n{told}"


def _author_words_table(report: dict) -> str:
    """Accuracy and macro-F1 with the ontology's names of a study's types, and with its authors' words for them."""
    header = [
        "study",
        "cells",
        "names of the ontology",
        "accuracy",
        "macro-F1",
        "authors' words",
        "accuracy",
        "macro-F1",
    ]
    rows = [
        [row["study"], str(row["cells"])]
        + [text for one in (row["names"], row["words"]) for text in _author_scores(one)]
        for row in report["rows"]
    ]
    return f"{markdown(header, rows, num_left=1)}\n\n{_run(report['run'])}"


def _author_scores(found: dict) -> tuple[str, str, str]:
    return str(found["types"]), f"{found['accuracy']:.3f}", f"{found['macro_f1']:.3f}"


def _calibration_table(report: dict) -> str:
    """Accuracy and confidence of studies of one species, as they are and with a factor fitted on the others."""
    header = ["study", "cells", "reach", "accuracy", "mean confidence", "calibration error", "factor", "error with it"]
    names = (
        "reach",
        "accuracy",
        "mean_confidence",
        "calibration_error",
        "factor_of_the_others",
        "calibration_error_after",
    )
    rows = [[row["study"], str(row["cells"]), *(f"{row[name]:.2f}" for name in names)] for row in report["rows"]]
    return f"{markdown(header, rows, num_left=1)}\n\n{_run(report['run'])}"


def _generation_table(report: dict) -> str:
    """Types as asked, test studies beside simple generators, pairs never seen, speed, and the rare class."""
    asked = [
        [
            one["tissue"],
            f"{one['classifier']}{' (in training)' if one['in_training'] else ''}",
            name,
            f"{share:.2f}",
            f"{one['real']['shares'][name]:.2f} ({one['real']['study']})" if name in _real_shares(one) else "",
        ]
        for one in report.get("asked", [])
        for name, share in one["shares"].items()
    ]
    columns = {
        "nearest type as asked": "knn_5",
        "MMD": "mmd",
        "sliced Wasserstein": "sliced_wasserstein",
        "covariance agreement": "covariance_agreement",
        "real or made, linear AUC": "real_or_generated_auc_linear",
        "nearest training cell, ratio": "nearest_training_ratio",
    }
    studies = [
        [study, system, *(f"{values[key]:.3f}" if key in values else "" for key in columns.values())]
        for study, table in report.get("studies", {}).items()
        for system, values in table.items()
    ]
    rare = [
        [f"{one['rare']}, {one['cells']} cells", way, *("{:.3f} +- {:.3f}".format(*one[key][way]) for key in _RARE)]
        for one in report.get("rare", [])
        for way in one["f1"]
    ]
    parts = [
        "Share that a logistic regression on real cells of a study names as asked, and what it names right of the real cells "
        "of yet another study; the means of some of these studies taught the decoder:",
        markdown(
            ["tissue", "classifier learnt on", "asked for", "named so", "real cells named right"], asked, num_left=3
        ),
        "Beside real cells of the test studies, none of which taught the model:",
        markdown(["study", "cells of", *columns], studies, num_left=2),
    ]
    if copies := report.get("copies"):
        parts.append(
            "Distance to the nearest of the cells that taught the decoder, over that of these cells from one another (means over "
            "types; copies lie at 0):"
        )
        rows = [[one["study"], *(f"{ratio:.2f}" for ratio in one["mean"])] for one in copies]
        parts.append(markdown(["study", *copies[0]["systems"]], rows))
    if draws := report.get("unseen_pairs"):
        parts.append(
            "Pairs of type and tissue left out of training, whole, in several draws: how many means asked for in words are "
            "nearer to the pair's own mean than to the type's elsewhere (in brackets: the same without the tissue in the "
            "text), and how many the tissue brings closer."
        )
        heads = ["draw", "distances on", "pairs", "nearer to their own", "p", "closer by the tissue"]
        parts.append(markdown(heads, [row for draw in draws for row in _pairs_of(draw)], num_left=2))
    if speed := report.get("speed"):
        parts.append(
            f"{speed['cells']:,} cells with their quality summary: {speed['processor_seconds']:.1f} s of one processor."
        )
    head = ["rare class of 100 a type", "padded with", "F1 of the rare class", "balanced accuracy"]
    return "\n\n".join([*parts, markdown(head, rare, num_left=2), _run(report["provenance"])])


def _pairs_of(draw: dict) -> list[list[str]]:
    """The rows of one draw of pairs that were left out."""
    return [
        [
            str(draw["seed"]),
            {"components": "30 components", "genes": "the 2,000 most different genes"}[space],
            str(found["pairs"]),
            f"{found['nearer_own_mean']} ({found['nearer_own_mean_without_tissue']})",
            f"{found['p_value']:g}",
            str(found["tissue_brings_closer"]),
        ]
        for space, found in draw["summary"].items()
    ]


def _real_shares(asked: dict) -> dict[str, float]:
    return asked.get("real", {}).get("shares", {})


_RARE = ("f1", "balanced_accuracy")

TABLES: dict[str, Callable[[dict], str]] = {
    "author_words": _author_words_table,
    "browser": browser_tables,
    "chromatin": _chromatin_table,
    "generation": _generation_table,
    "index": _index_table,
    "mixed_clients": clients_table,
    "mouse_calibration": _calibration_table,
    "mouse_held_out": _calibration_table,
    "perturbation": _perturbation_table,
    "renamed_species": _renamed_table,
    "rivals": rivals_tables,
    "scale": scale_table,
    "space": _space_table,
    "out_of_distribution": _out_of_distribution_table,
    "planted_swaps": _planted_swaps_table,
    "proteins": _proteins_table,
    "speed": _speed_table,
    "time_of_annotate": _time_table,
}
