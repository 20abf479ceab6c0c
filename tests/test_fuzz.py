"""What a fuzzer once broke stays mended: every kept input ends in an answer or a reason."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from harnesses import SEEDS, TARGETS, seeds

KEPT = sorted(path for path in SEEDS.glob("*/*") if path.parent.name in TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_well_formed_inputs_pass(target):
    for content in seeds(target):
        TARGETS[target](content)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_failed_is_answered_or_refused(path):
    TARGETS[path.parent.name](path.read_bytes())
