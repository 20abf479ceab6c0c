"""One account of the genes over several parts of the same cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SUMS = ("num_cells", "empty_cells", "cells_turned_back_into_counts", "counts_in_all", "counts_covered")


def joined_accounts(first: Mapping[str, Any] | None, second: Mapping[str, Any]) -> dict[str, Any]:
    """The account of two parts together; what was decided before reading is the same in both.

    Examples
    --------
    >>> part = {"num_cells": 2, "counts_in_all": 10.0, "counts_covered": 5.0}
    >>> joined_accounts(part, {**part, "counts_covered": 10.0})
    {'num_cells': 4, 'counts_in_all': 20.0, 'counts_covered': 15.0, 'share_of_counts': 0.75}
    """
    if not first:
        return dict(second)
    sums = {name: first[name] + second[name] for name in _SUMS if name in second}
    total = sums["counts_in_all"]
    share = min(sums["counts_covered"] / total, 1.0) if total else 0.0
    return {**second, **sums, "share_of_counts": round(share, 6)}
