"""Measured numbers for the pages: Markdown from JSON files, or a plain sentence where nothing was measured."""

import json
import re
from pathlib import Path

from scmmgpt.hub_cards.render import SECTIONS
from scmmgpt.training.results import read_records
from scmmgpt.training.results_table import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "hub_cards" / "results"
INDEX = ROOT / "docs" / "measured" / "index.json"
NOTHING = "Nothing has been measured yet: there is no file of results."


def render_placeholders(text: str) -> str:
    """A page with `<!-- measured: NAME -->` replaced by what was measured."""
    tables = {"results": results_tables, "index": index_table}
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


def index_table(path: Path = INDEX) -> str:
    """Time and memory of building an index, recall and time per query."""
    if not path.exists():
        return f"```{{warning}}\n{NOTHING}\n```"
    report = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "| | " + " | ".join(f"{row['cells']:,} cells" for row in report["rows"]) + " |",
        "|---|" + "---:|" * len(report["rows"]),
    ]
    for name, value in _INDEX_ROWS.items():
        lines.append(f"| {name} | " + " | ".join(value(row) for row in report["rows"]) + " |")
    about = f"Measured with `{report['command']}` on {report['date']}: {report['data']}; {report['hardware']}."
    return "\n".join([*lines, "", about, *([report["note"]] if "note" in report else [])])


_INDEX_ROWS = {
    "atlas on disk": lambda row: f"{row['atlas_megabytes']:,} MB",
    "index on disk": lambda row: f"{row['index_megabytes']:,} MB",
    "time to build, processor": lambda row: f"{row['build']['cpu_seconds']:,.0f} s",
    "memory to build": lambda row: f"{row['build']['megabytes']:,.0f} MB",
    "memory to search": lambda row: f"{row['query']['held']['megabytes']:,.0f} MB",
    "recall of the 20 best, mean (least)": lambda row: (
        f"{row['query']['recall']['mean']:.3f} ({row['query']['recall']['least']:.2f})"
    ),
    "time of a query, median (95 %)": lambda row: _milliseconds(row["query"]["approximate_ms"]),
    "the same, through all vectors": lambda row: _milliseconds(row["query"]["exact_ms"]),
}


def _milliseconds(times: dict) -> str:
    return f"{times['p50']:,.1f} ({times['p95']:,.1f}) ms"
