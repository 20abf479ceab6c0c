"""Run every benchmark of this folder, one process each, and keep what they print.

python -m benchmarks            # all
python -m benchmarks tokenize   # one
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# Wants a GPU, and says so where there is none.
ALL = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def main(names: list[str]) -> int:
    unknown = set(names) - set(ALL)
    if unknown:
        print(f"No benchmark is called {', '.join(sorted(unknown))}. There are: {', '.join(ALL)}.", file=sys.stderr)
        return 2
    (FOLDER / "out").mkdir(exist_ok=True)
    failed = []
    for name in names or ALL:
        print(f"\n== {name}", flush=True)
        result = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], capture_output=True, text=True)
        print(result.stdout, flush=True)
        (FOLDER / "out" / f"{name}.txt").write_text(result.stdout)
        if result.returncode:
            print(result.stderr[-2000:], file=sys.stderr)
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
