"""What `benchmarks/rivals.py` measured, as the table of a page and as the sentence of the README.

python docs/rivals_table.py    # writes that sentence into README.md
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "measured" / "rivals.json"
MARKS = re.compile(r"(<!-- rivals -->\n).*?(<!-- end of rivals -->)", re.DOTALL)


def rivals_tables(report: dict) -> str:
    """Accuracy, macro-F1 and speed of each system on each study, and what could not be had."""
    header = ["study", "", "system", "accuracy", "macro-F1", "cells per CPU-second", "learning, CPU-seconds"]
    rows = [
        [row["study"], row["setting"], _name(row["system"]), *map(str, _figures(row))]
        for row in report["rows"]
        if "left_out" not in row
    ]
    tokens = [[row["way"], f"{row['cells_per_cpu_second']:,.0f}"] for row in report["tokens"]]
    left_out = {row["system"]: row["left_out"] for row in report["rows"] if "left_out" in row}
    about, run = report["machine"], report["run"]
    where = f"{about['processor']}, one thread, load {about['load_at_start']} at the start, {run['date']}."
    notes = [f"Left out: {system}: {reason}" for system, reason in left_out.items()]
    first = _markdown(header, rows, num_left=3)
    second = _markdown(["cells to tokens", "cells per CPU-second"], tokens, num_left=1)
    return "\n\n".join([first, second, where, *notes])


def _figures(row: dict) -> Iterator[str]:
    yield f"{row['accuracy']:.3f}"
    yield f"{row['macro_f1']:.3f}"
    yield f"{row['cells_per_cpu_second']:,.0f}"
    learning = row.get("learning_cpu_seconds")
    yield "" if learning is None else f"{learning:,.0f}"


def _markdown(header: list[str], rows: list[list[str]], num_left: int) -> str:
    from scmmgpt.training.evaluation.results_table import markdown

    return markdown(header, rows, num_left=num_left)


def sentence(report: dict) -> str:
    """Mean accuracies beside the rivals, setting by setting, in one sentence."""
    means: dict[str, list[str]] = {}
    for (system, setting), rows in _by_system(report).items():
        means.setdefault(setting, []).append(f"{_name(system)} {sum(row['accuracy'] for row in rows) / len(rows):.2f}")
    parts = [f"{', '.join(each)} where {setting}" for setting, each in means.items()]
    number = len({row["study"] for row in report["rows"]})
    return (
        f"Mean accuracy on {number} studies that trained none of these: {'; '.join(parts)} "
        "([all figures and speeds](docs/performance.md#beside-other-methods))."
    )


def _by_system(report: dict) -> dict[tuple[str, str], list[dict]]:
    found: dict[tuple[str, str], list[dict]] = {}
    for row in report["rows"]:
        if "left_out" not in row:
            found.setdefault((row["system"], row["setting"]), []).append(row)
    return found


def _name(system: str) -> str:
    return system.replace("==", " ").replace("celltypist", "CellTypist").replace("cellconsensus", "CellConsensus")


def with_sentence(readme: str, report: dict) -> str:
    """The README with the sentence between its marks."""
    return MARKS.sub(lambda found: f"{found[1]}{sentence(report)}\n{found[2]}", readme)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_sentence(page.read_text(encoding="utf-8"), json.loads(REPORT.read_text())), encoding="utf-8")
