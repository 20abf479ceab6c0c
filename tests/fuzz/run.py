"""A coverage-guided fuzzer on everything that reads what strangers wrote.

    pip install atheris
    python tests/fuzz/run.py h5ad 120        # one target for so many seconds; without arguments each for a minute

What makes a target fail is kept in `tests/fuzz/seeds/TARGET/` and run by `tests/test_fuzz.py` from then on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
INSTRUMENTED = ["scmmgpt", "yaml", "h5py", "json"]
LIMITS = ["-max_len=65536", "-timeout=60", "-rss_limit_mb=4096"]
COMPILED = ["scmmgpt.processing.compiled_kernels_scmmgpt"]  # numba knows no probes


def fuzz(target: str, seconds: int) -> None:
    """Run one target in this process until the time is over; print how many inputs it took."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED, exclude=COMPILED):
        from harnesses import SEEDS, TARGETS, seeds, small_h5ad

        run = TARGETS[target]
        corpus = Path(tempfile.mkdtemp())
        for number, content in enumerate(seeds(target)):
            (corpus / str(number)).write_bytes(content)
            run(content)  # imports now what is imported late
    logging.disable()
    warnings.simplefilter("ignore")
    counts = {"inputs": 0, "failures": 0}
    whole, end = small_h5ad(), time.monotonic() + seconds
    last = Path(tempfile.gettempdir()) / f"last-input-of-{target}"

    def one_input(content: bytes) -> None:
        counts["inputs"] += 1
        # A few bytes changed in a whole file get further into it than anything invented.
        content = damaged(whole, content) if target == "h5ad" and len(content) < len(whole) // 2 else content
        last.write_bytes(content)  # all that is left to look at when the process itself dies
        try:
            run(content)
        except Exception as error:
            counts["failures"] += 1
            keep(SEEDS / target, content, error)
        if time.monotonic() > end:
            print(f"{target}: {counts['inputs']} inputs, {counts['failures']} failures", flush=True)
            os._exit(0)

    atheris.Setup([sys.argv[0], str(corpus), f"-artifact_prefix={corpus.parent}/", *LIMITS], one_input)
    atheris.Fuzz()


def damaged(whole: bytes, changes: bytes) -> bytes:
    """A file with bytes changed at the places that the fuzzer names."""
    result, generator = bytearray(whole), random.Random(changes[:4])
    for value in changes[4:36]:
        result[generator.randrange(len(result))] = value
    return bytes(result)


def keep(folder: Path, content: bytes, error: Exception) -> None:
    """One input for each kind of failure."""
    place = error.__traceback__
    while place.tb_next is not None:
        place = place.tb_next
    kind = f"{type(error).__name__}:{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
    path = folder / hashlib.sha256(kind.encode()).hexdigest()[:12]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"{folder.name}: {kind}: {str(error)[:200]}", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        fuzz(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60)
        return
    from harnesses import TARGETS

    for target in TARGETS:
        subprocess.run([sys.executable, __file__, target, "60"], check=False)


if __name__ == "__main__":
    main()
