"""Run every benchmark of this folder, one process each; keep what they print and, as JSON, what they measured.

python -m benchmarks                            # all but `scale`, then one table and one picture of all
python -m benchmarks tokenize_cells embedding   # some
python -m benchmarks embedding --num-cells 8    # one, with its own options

Numbers count from a quiet machine alone: each report says whether it was one.
"""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

from benchmarks._measuring import OUT, print_rows

FOLDER = Path(__file__).parent
NAMED_ONLY = {"scale"}  # takes hours and a large disk
ALL = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def main(arguments: list[str]) -> int:
    first_option = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    names, options = arguments[:first_option], arguments[first_option:]
    if options and len(names) != 1:
        print("Options go to one benchmark: name it first.", file=sys.stderr)
        return 2
    unknown = set(names) - set(ALL)
    if unknown:
        print(f"No benchmark is called {', '.join(sorted(unknown))}. There are: {', '.join(ALL)}.", file=sys.stderr)
        return 2
    OUT.mkdir(exist_ok=True)
    failed = []
    for name in names or [name for name in ALL if name not in NAMED_ONLY]:
        print(f"\n== {name}", flush=True)
        result = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], capture_output=True, text=True)
        print(result.stdout, flush=True)
        (OUT / f"{name}.txt").write_text(result.stdout)
        if result.returncode:
            print(result.stderr[-2000:], file=sys.stderr)
            failed.append(name)
    summarise()
    return 1 if failed else 0


def summarise() -> None:
    """Print the common table, and draw how many times the rival's rate each of our ways reaches.

    The rows are those that each benchmark wrote, oldest first; cost curves have a picture of their own.
    """
    paths = sorted(OUT.glob("*.json"), key=lambda path: path.stat().st_mtime)
    reports = {path.stem: json.loads(path.read_text()) for path in paths if path.stem not in ("summary", "curves")}
    rows = [line for report in reports.values() for line in report["rows"] if "task" in line]
    if not rows:
        return
    print("\n== all")
    print_rows(rows)
    machines = {name: report.get("machine", {}) for name, report in reports.items()}
    contents = {"date": date.today().isoformat(), "machines": machines, "rows": rows}
    (OUT / "summary.json").write_text(json.dumps(contents, indent=1) + "\n")
    compared = [line for line in rows if line.get("ratio") and line["ratio"] != 1]
    if compared:
        draw(compared, OUT / "summary.svg")
        print(f"Picture: {OUT / 'summary.svg'}")


def draw(rows: list[dict], path: Path) -> None:
    """One bar for each comparison, from 1 = the rival's rate; whiskers show the spread of our runs."""
    from matplotlib.figure import Figure

    low, rate, high, plain = (
        [line.get(name, line["rate"]) for line in rows] for name in ("low", "rate", "high", "plain")
    )
    spread = [[abs(a - b) / c for a, b, c in zip(rate, end, plain, strict=True)] for end in (low, high)]
    figure = Figure(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    names = [f"{line['task']}: {line['way']}" for line in rows]
    axis.barh(names, [line["ratio"] for line in rows], xerr=spread, color="#1f6f8b", ecolor="0.4", capsize=2)
    axis.axvline(1, color="0.5", linewidth=1)
    axis.set(xscale="log", xlabel="times the rate of the rival's way, same cells, same run")
    axis.invert_yaxis()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
