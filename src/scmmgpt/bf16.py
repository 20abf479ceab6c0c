"""bf16 for embeddings, on processors with units for it, where a probe on the first cells says that it is faster and as good.

Names of cells are decided in float32 everywhere: rounding moves one call of a hundred over a threshold
(docs/performance.md), and a name must not depend on the processor. Without such units nothing is tried: bf16 is emulated
there and several times slower. Nor on few cells, which have the same vectors whatever else a machine does meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from .loading import LoadedModel

Arrays = dict[str, np.ndarray]
Compute = Callable[[dict[str, "torch.Tensor"], Arrays], Arrays]

NOTE = "bf16"  # where a run keeps the outcome, and `uns` shows it
FEWEST_CELLS, LEAST_SPEEDUP, LEAST_COSINE = 20_000, 1.2, 0.999
_UNITS = {"avx512_bf16", "amx_bf16"}
_CELLS_TO_TIME = 16
_SECONDS_TO_TIME, _SECONDS_TO_COMPARE = 0.1, 0.3


def has_units() -> bool:
    """Whether this processor multiplies bf16 by itself."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return not _UNITS.isdisjoint(flags.split())


def in_bf16_where_it_pays(
    make: Callable[[LoadedModel], Compute], loaded: LoadedModel, notes: dict, num_cells: int
) -> Compute:
    """The computation that `make` makes, in bf16 if that pays; `notes` of the run remember what was decided."""
    compute = make(loaded)
    if hasattr(make, "candidates") or num_cells < FEWEST_CELLS or loaded.device.type != "cpu" or not has_units():
        return compute
    return _Probed(compute, notes)


@dataclass
class _Probed:
    """A computation that decides at its first batch."""

    compute: Compute
    notes: dict[str, Any]

    def __call__(self, inputs: dict[str, torch.Tensor], tokens: Arrays) -> Arrays:
        if NOTE not in self.notes:
            self.notes[NOTE] = self._probe(inputs, tokens)
        return self._run(inputs, tokens, self.notes[NOTE]["used"])

    def _run(self, inputs: dict[str, torch.Tensor], tokens: Arrays, half: bool) -> Arrays:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return self.compute(inputs, tokens)

    def _probe(self, inputs: dict[str, torch.Tensor], tokens: Arrays) -> dict[str, Any]:
        """Speed on a few cells; where bf16 is faster, what it changes on more of them."""
        few = _first(inputs, tokens, _CELLS_TO_TIME)
        seconds = {half: self._seconds(*few, half) for half in (False, True)}
        found: dict[str, Any] = {"used": False, "speedup": round(seconds[False] / seconds[True], 2)}
        if found["speedup"] < LEAST_SPEEDUP:
            return found
        number = max(_CELLS_TO_TIME, int(_CELLS_TO_TIME * _SECONDS_TO_COMPARE / seconds[False]))
        more = _first(inputs, tokens, number)
        plain, other = (self._run(*more, half).get("embeds") for half in (False, True))
        if plain is None or other is None:
            return found
        found["lowest_cosine"] = round(float((plain * other).sum(axis=1).min()), 6)
        found["used"] = found["lowest_cosine"] > LEAST_COSINE
        return found

    def _seconds(self, inputs: dict[str, torch.Tensor], tokens: Arrays, half: bool) -> float:
        """The lowest of several runs after one to warm up: what else a machine does must not decide."""
        self._run(inputs, tokens, half)
        lowest, spent = float("inf"), 0.0
        while spent < _SECONDS_TO_TIME:
            start = time.perf_counter()
            self._run(inputs, tokens, half)
            took = time.perf_counter() - start
            lowest, spent = min(lowest, took), spent + took
        return lowest


def _first(inputs: dict[str, torch.Tensor], tokens: Arrays, number: int) -> tuple[dict[str, torch.Tensor], Arrays]:
    return {name: part[:number] for name, part in inputs.items()}, {
        name: part[:number] for name, part in tokens.items()
    }
