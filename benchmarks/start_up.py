"""What a process pays before it works: `import scmmgpt`, and `scmmgpt annotate` of 700 cells, beside `import torch`.

    python -m benchmarks.start_up [--repeats 3]

CPU time over that of `import torch`, in processes of their own that take turns; the lowest of the rounds counts. Above a
budget by a fifth it warns, in words that a workflow of GitHub shows beside the commit, and ends well: a busy machine is
no fault of a change. The slow test in `tests/test_start_up.py` fails there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._measuring import OUT, machine, options, row, write_report

TORCH_ALONE = "import torch"
# What each may cost, in times of `import torch`.
BUDGETS = {"import scmmgpt": 0.1, "annotate of 700 cells, shell command": 2.7}
WARNS_AT = 1.2
_TIMED = "\nimport resource\nprint(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))"
_ANNOTATE = """
import sys
from scmmgpt.cli import app
app(["annotate", *sys.argv[1:], "--json", "--overwrite"], standalone_mode=False)
print(" ".join({name.partition(".")[0] for name in sys.modules}))
"""


def cpu_seconds(code: str, *arguments: str) -> tuple[float, list[str]]:
    """Seconds of the processor of a Python process, and the lines that it printed before."""
    own = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code + _TIMED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=own, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1000:])
    *lines, seconds = done.stdout.splitlines()
    return float(seconds), lines


def annotate(folder: Path) -> tuple[float, list[str]]:
    """`scmmgpt annotate` of the cells in a folder: its seconds, and the packages that it imported."""
    seconds, lines = cpu_seconds(_ANNOTATE, str(folder / "cells.h5ad"), "--output", str(folder / "out.h5ad"))
    return seconds, lines[-1].split()


def ratios(folder: Path, repeats: int) -> dict[str, float]:
    """Of each the lowest ratio to `import torch` in the same round: both feel what else a machine does."""
    found: dict[str, list[float]] = {name: [] for name in ("torch", *BUDGETS)}
    for _ in range(repeats):
        for name, seconds in zip(
            found, (cpu_seconds(TORCH_ALONE)[0], cpu_seconds("import scmmgpt")[0], annotate(folder)[0]), strict=True
        ):
            found[name].append(seconds)
    return {name: min(own / torch for own, torch in zip(found[name], found["torch"], strict=True)) for name in BUDGETS}


def write_cells(folder: Path) -> None:
    """The blood cells that come with scanpy."""
    import scanpy

    scanpy.datasets.pbmc68k_reduced().write_h5ad(folder / "cells.h5ad")


def warnings_of(found: dict[str, float]) -> list[str]:
    """One sentence for each budget that is exceeded by a fifth."""
    return [
        f"{name} costs {ratio:.2f} times `import torch`; its budget is {BUDGETS[name]:.2f}."
        for name, ratio in found.items()
        if ratio > WARNS_AT * BUDGETS[name]
    ]


def main() -> int:
    given = options(__doc__, repeats=3)
    with tempfile.TemporaryDirectory() as folder:
        write_cells(Path(folder))
        found = ratios(Path(folder), given.repeats)
    rows = [
        row("start-up", name, {"rate": round(ratio, 3)}, "x torch", goal=BUDGETS[name])
        for name, ratio in found.items()
    ]
    write_report(OUT / "start_up.json", rows, machine=machine())
    for sentence in warnings_of(found):
        print(f"::warning title=start-up::{sentence}" if "GITHUB_ACTIONS" in os.environ else f"Warning: {sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
