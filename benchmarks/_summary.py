"""Every benchmark's rows together: one table, one JSON, one picture."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

from benchmarks._measuring import OUT, print_rows

SUMMARY = "summary"


def all_reports(folder: Path = OUT) -> dict[str, dict]:
    """What each benchmark wrote, oldest first; cost curves have a picture of their own."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return {path.stem: json.loads(path.read_text()) for path in paths if path.stem not in (SUMMARY, "curves")}


def summarise(folder: Path = OUT) -> None:
    """Print the common table, and draw how many times the rival's rate each of our ways reaches."""
    reports = all_reports(folder)
    rows = [line for report in reports.values() for line in report["rows"] if "task" in line]
    if not rows:
        return
    print("\n== all")
    print_rows(rows)
    machines = {name: report.get("machine", {}) for name, report in reports.items()}
    contents = {"date": date.today().isoformat(), "machines": machines, "rows": rows}
    (folder / f"{SUMMARY}.json").write_text(json.dumps(contents, indent=1) + "\n")
    compared = [line for line in rows if line.get("ratio") and line["ratio"] != 1]
    if compared:
        draw(compared, folder / f"{SUMMARY}.svg")
        print(f"Picture: {folder / SUMMARY}.svg")


def _whiskers(line: dict) -> tuple[float, float]:
    low, high = line.get("low", line["rate"]), line.get("high", line["rate"])
    return (line["rate"] - low) / line["plain"], (high - line["rate"]) / line["plain"]


def draw(rows: list[dict], path: Path) -> None:
    """One bar for each comparison, from 1 = the rival's rate; whiskers show the spread of our runs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = [f"{line['task']}: {line['way']}" for line in rows]
    ratios = [line["ratio"] for line in rows]
    spread = [_whiskers(line) for line in rows]
    figure, axis = pyplot.subplots(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
    axis.barh(names, ratios, xerr=list(zip(*spread, strict=True)), color="#1f6f8b", ecolor="0.4", capsize=2)
    axis.axvline(1, color="0.5", linewidth=1)
    axis.set(xscale="log", xlabel="times the rate of the rival's way, same cells, same run")
    axis.invert_yaxis()
    figure.savefig(path)
    pyplot.close(figure)
