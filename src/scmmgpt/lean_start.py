"""The verbs for a command that only computes: imported without torch's compiler and what it brings.

transformers and torch import the compiler to put marks on functions that nothing here compiles, distributed tensors
for clusters, and solvers for other models' losses: a quarter of what `scmmgpt annotate` of a small file costs. A
process that goes on to train must not begin here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER, _INDEXING = "torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable", "disallow_in_graph")
_NEEDED = ("transformers.modeling_utils", "transformers.processing_utils", "scmmgpt.modeling_scmmgpt")
_HIDDEN = ("is_scipy_available", "is_torch_distributed_available")


class _Compiler(ModuleType):
    """Stands in for the compiler: marks leave functions as they are; whoever asks for more gets the real one."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # asked for by an import of anything inside
            return _real(_COMPILER).__path__
        if name.startswith("__"):
            raise AttributeError(name)
        return _unmarked if name in _MARKS else getattr(_real(_COMPILER), name)


class _Indexing(ModuleType):
    """Stands in for what transformers' masks take from the compiler, which is the real one's when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *given: getattr(_real(_INDEXING), name)(*given)


def _unmarked(function: Callable | None = None, *_: Any, **__: Any) -> Callable:
    return function if function is not None else lambda later: later


def _real(name: str) -> ModuleType:
    _take_away()
    return import_module(name)


def _take_away() -> None:
    import torch

    for name in (_COMPILER, _INDEXING):
        if isinstance(sys.modules.get(name), _Compiler | _Indexing):
            del sys.modules[name]
    if isinstance(vars(torch).get("_dynamo"), _Compiler):
        del torch._dynamo  # torch imports the real one when somebody asks


@contextmanager
def _without_solvers() -> Iterator[None]:
    places = [import_module("transformers.utils.import_utils"), import_module("transformers.utils")]
    kept = [(place, name, getattr(place, name)) for place in places for name in _HIDDEN if hasattr(place, name)]
    for place, name, _ in kept:
        setattr(place, name, lambda: False)
    try:
        yield
    finally:
        for place, name, known in kept:
            setattr(place, name, known)


def _leave_meta_weights_alone() -> None:
    """Spare torch the detour, through sympy, to random values of weights that hold none and are about to be read."""
    from torch.nn import init

    known = init.normal_
    init.normal_ = lambda weight, *given, **options: weight if weight.is_meta else known(weight, *given, **options)


def import_lean() -> bool:
    """Import what models are built on, and say whether it was done without the compiler."""
    import torch

    if {"transformers.modeling_utils", _COMPILER} & sys.modules.keys():
        return False
    _leave_meta_weights_alone()
    torch._dynamo = sys.modules[_COMPILER] = _Compiler(_COMPILER)
    sys.modules[_INDEXING] = _Indexing(_INDEXING)
    with suppress(Exception), _without_solvers():  # whatever another transformers does otherwise
        for name in _NEEDED:
            import_module(name)
        return True
    _take_away()
    for name in [name for name in sys.modules if name.startswith(("transformers", _NEEDED[-1]))]:
        del sys.modules[name]  # half of it would be worse than none
    return False


import_lean()

from . import api  # noqa: E402

__all__ = ["api", "import_lean"]
