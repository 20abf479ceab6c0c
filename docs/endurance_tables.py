"""What `benchmarks/scale.py` and `benchmarks/mixed_clients.py` measured, as tables.

python docs/endurance_tables.py    # gathers benchmarks/out/scale_*.json as docs/measured/scale.json
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks" / "out"
GATHERED = ROOT / "docs" / "measured" / "scale.json"


def scale_table(report: dict) -> str:
    """Time, memory and kills of each run, whether the bytes were the same, and what 100 million cells would take."""
    from scmmgpt.training.evaluation.results_table import markdown

    header = ["run", "cells", "cells/s", "seconds", "peak, MB", "killed after cells", "workers killed"]
    rows, notes = [], []
    for run in report["runs"]:
        settings, (*_, large) = run["settings"], run["rows"]
        name = f"{settings['verb']}, {settings['format']}, {settings['engine']}"
        for row in run["rows"]:
            kills = ", ".join(f"{cells:,}" for cells in row["killed_after"])
            size = settings["num_cells" if row is large else "compared"]
            figures = f"{size:,}", f"{row['rate']:,.0f}", f"{row['seconds']:,}", f"{row['peak_mb']:,}"
            rows.append([name, *figures, kills, str(row["workers_killed"] or "")])
        about = run["machine"]
        hours = 1e8 / large["rate"] / 3600
        same = "the same bytes" if run["are_equal"] else "not the same bytes"
        notes.append(
            f"{name}: {same}. 100 million cells at this rate: {hours:,.0f} hours. {about['processor']}, "
            f"{about['threads']} thread, load {about['load_at_start']} at the start."
        )
    return "\n\n".join([markdown(header, rows, num_left=1), *notes])


def clients_table(report: dict) -> str:
    """Visits, latencies and refusals of each kind of client, and memory by the minute."""
    from scmmgpt.training.evaluation.results_table import markdown

    rows = [
        [row["way"], f"{row['rate']:.2f}", f"{row['p50_ms']:,.0f}", f"{row['p99_ms']:,.0f}", str(row["busy"])]
        for row in report["rows"]
    ]
    about, memory = report["machine"], ", ".join(map(str, report["memory_mb"]))
    faults = "; ".join(report["faults"]) or "no answer was lost"
    return "\n\n".join(
        [
            markdown(
                ["client", "visits a second", "median, ms", "99th percentile, ms", "told to wait"], rows, num_left=1
            ),
            f"Memory by the minute: {memory} MB. Faults: {faults}. {about['processor']}, {about['cores']} cores that the "
            f"clients share, load {about['load_at_start']} at the start.",
        ]
    )


def gather() -> None:
    runs = [json.loads(path.read_text()) for path in sorted(RUNS.glob("scale_*.json"))]
    for run in runs:
        run["settings"].pop("folder")
    GATHERED.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    gather()
