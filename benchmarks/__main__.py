"""Run every benchmark of this folder, one process each; keep what they print and, as JSON, what they measured.

python -m benchmarks                            # all, then one table and one picture of all
python -m benchmarks tokenize_cells embedding   # some
python -m benchmarks embedding --num-cells 8    # one, with its own options

Numbers count from a quiet machine alone: each report says whether it was one.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# Wants a GPU, and says so where there is none.
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
    (FOLDER / "out").mkdir(exist_ok=True)
    failed = []
    for name in names or ALL:
        print(f"\n== {name}", flush=True)
        result = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], capture_output=True, text=True)
        print(result.stdout, flush=True)
        (FOLDER / "out" / f"{name}.txt").write_text(result.stdout)
        if result.returncode:
            print(result.stderr[-2000:], file=sys.stderr)
            failed.append(name)
    from benchmarks._summary import summarise

    summarise()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
