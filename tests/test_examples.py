"""Every example runs, on the embedded model."""

import subprocess
import sys
from pathlib import Path

import pytest

from scmmgpt import EMBEDDED_MODEL

pytest.importorskip("scanpy", reason="the examples' cells come with scanpy: pip install 'scmmgpt[eval]'")

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"grpo": "trl", "dpo": "trl"}
ARGUMENTS = {"transformers_only.py": [str(EMBEDDED_MODEL)]}
SLOW = {path.name for path in EXAMPLES.glob("*.py") if path.name.startswith(tuple(NEEDS))}


def parameter(path: Path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.name in SLOW else [])


@pytest.mark.parametrize("example", [parameter(path) for path in sorted(EXAMPLES.glob("*.py"))])
def test_example_runs(example, tmp_path):
    for prefix, package in NEEDS.items():
        if example.name.startswith(prefix):
            pytest.importorskip(package)

    arguments = ARGUMENTS.get(example.name, [])
    result = subprocess.run(
        [sys.executable, str(example), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )

    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout
