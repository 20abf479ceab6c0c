"""Measured numbers for the pages: Markdown from JSON files, or a plain sentence where nothing was measured."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from scmmgpt.hub_cards.render import SECTIONS
from scmmgpt.training.evaluation.results import read_records
from scmmgpt.training.evaluation.results_table import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "hub_cards" / "results"
INDEX = ROOT / "docs" / "measured" / "index.json"
OUT_OF_DISTRIBUTION = ROOT / "docs" / "measured" / "out_of_distribution.json"
SPEED = ROOT / "docs" / "measured" / "speed.json"
NOTHING = "Nothing has been measured yet: there is no file of results."


def render_placeholders(text: str) -> str:
    """A page with each `<!-- measured: NAME -->` replaced by its table."""
    tables = {
        "results": results_tables,
        "index": index_table,
        "out_of_distribution": out_of_distribution_table,
        "speed": speed_table,
    }
    return re.sub(r"<!-- measured: (\w+) -->", lambda found: tables[found[1]](), text)


def results_tables(folder: Path = RESULTS) -> str:
    """One table a task, simulated studies marked, with the command, commit, device and seed of every run."""
    files = [read_records(path) for path in sorted(folder.glob("*.json"))]
    if not files:
        return f"```{{warning}}\n{NOTHING}\n```"
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


def _rendered(path: Path, lines_of: Callable[[dict], list[str]]) -> str:
    """A file of measured numbers as Markdown, or a warning that it does not exist."""
    if not path.exists():
        return f"```{{warning}}\n{NOTHING}\n```"
    return "\n".join(lines_of(json.loads(path.read_text(encoding="utf-8"))))


def index_table(path: Path = INDEX) -> str:
    """Time and memory of building an index, recall and time per query."""
    return _rendered(path, _index_lines)


def _index_lines(report: dict) -> list[str]:
    lines = [
        "| | " + " | ".join(f"{row['cells']:,} cells" for row in report["rows"]) + " |",
        "|---|" + "---:|" * len(report["rows"]),
    ]
    for name, value in _INDEX_ROWS.items():
        lines.append(f"| {name} | " + " | ".join(value(row) for row in report["rows"]) + " |")
    about = f"Measured with `{report['command']}` on {report['date']}: {report['data']}; {report['hardware']}."
    return [*lines, "", about, *([report["note"]] if "note" in report else [])]


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


def speed_table(path: Path = SPEED) -> str:
    """What each benchmark measured, with the machine it ran on."""
    return _rendered(path, _speed_lines)


def _speed_lines(report: dict) -> list[str]:
    lines = [
        "| task | implementation | rate, median (lowest to highest) | speed-up | share of the limit | memory |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['task']} | {row['way']} | {_rate(row)} | {row.get('ratio', '')} | "
        f"{_percent(row.get('share_of_limit'))} | {_megabytes(row.get('peak_mb'))} |"
        for row in report["rows"]
    ]
    quiet = [name for name, machine in report["machines"].items() if machine.get("was_quiet")]
    about = next(iter(report["machines"].values()))
    where = f"{about['processor']}, {about['cores']} cores, torch {about['torch']}, {report['date']}"
    calm = f"The machine was quiet when these began: {', '.join(quiet)}." if quiet else "The machine was never quiet."
    return [*lines, "", f"{where}. {calm} On a busy machine only the ratios are meaningful."]


def _rate(row: dict) -> str:
    has_spread = row.get("low") != row.get("high")
    spread = f" ({_number(row['low'])} to {_number(row['high'])})" if has_spread else ""
    return f"{_number(row['rate'])} {row['unit']}{spread}"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _megabytes(size: float | None) -> str:
    return "" if size is None else f"{size:,.0f} MB"


def out_of_distribution_table(path: Path = OUT_OF_DISTRIBUTION) -> str:
    """What `annotate` does with noise and unknown types: one row per condition and study, with and without the check."""
    return _rendered(path, _out_of_distribution_lines)


def _out_of_distribution_lines(report: dict) -> list[str]:
    lines = [
        "| cells | study | unknown | implausible | mean confidence | unknown without the check | warning |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    conditions = list(dict.fromkeys(row["condition"] for row in report["rows"]))
    for row in sorted(report["rows"], key=lambda row: conditions.index(row["condition"])):
        study = f"{row['study']} (simulated)" if row["simulated"] else row["study"]
        lines.append(f"| {row['condition']} | {study} | {_what_was_said(row['before'], row['after'])} |")
    return [*lines, "", _run(report["run"])]


def _what_was_said(before: dict, after: dict) -> str:
    if "refused" in after:
        return "refused | | | | with the reason"
    shares = [f"{after['unknown']:.1%}", f"{after['implausible']:.1%}", f"{after['mean_confidence']:.2f}"]
    return " | ".join([*shares, f"{before['unknown']:.1%}", "yes" if after["warnings"] else "no"])
