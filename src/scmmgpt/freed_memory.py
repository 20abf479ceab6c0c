"""Freed memory goes back to the system: the C library keeps it, in pieces between what is still in use."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """The C library's own function for it; None where there is none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def give_back() -> None:
    """Give back whole pages that hold nothing any more."""
    if (trim := _trim()) is not None:
        trim(0)
