"""The account of a call: which matrix and which genes were read, how they were recognised, what was left out."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers.utils import logging

from .cell_matrix_scmmgpt import Cells
from .cell_reading_scmmgpt import ChosenMatrix
from .errors_scmmgpt import UserError
from .gene_identity_scmmgpt import GeneMatch
from .species_scmmgpt import HUMAN, reach

logger = logging.get_logger(__name__)

STRICT_SHARE = 0.5


class InputAccount:
    """Collects what was decided about some cells while they are read.

    `strict` is the share of the counts that the vocabulary must cover; True means one half, False nothing.
    """

    def __init__(self, strict: bool | float = False):
        self.required_share = STRICT_SHARE if strict is True else float(strict)
        self.facts: dict = {}
        self.num_cells = self.empty_cells = self.cells_turned_back_into_counts = 0
        self.covered = self.total = 0.0

    def begin(self, cells: Cells, chosen: ChosenMatrix, match: GeneMatch, panel_share: float) -> None:
        """Note what was decided before reading; of several sources the first speaks for all."""
        self.facts = self.facts or {
            **copy.deepcopy(match.account),
            "matrix": chosen.matrix.name,
            "matrix_state": chosen.state.kind,
            "matrix_detail": chosen.state.detail,
            "looked_at": chosen.looked_at,
            "panel_share": panel_share,
            "duplicate_cell_names": cells.num_repeated_names,
            "set_aside": copy.deepcopy({**chosen.matrix.set_aside, **cells.set_aside}),
            **({"modality": cells.modality, "cells_without_rna": cells.num_without_rna} if cells.modality else {}),
        }

    def add(self, totals, total: float, turned_back: int) -> None:
        """Note a block of cells that was read: what each holds in the vocabulary's genes, and the block in all."""
        self.num_cells += len(totals)
        self.empty_cells += int((totals == 0).sum())
        self.cells_turned_back_into_counts += turned_back
        self.covered += float(totals.sum())
        self.total += total

    @property
    def share_of_counts(self) -> float:
        """Share of all counts that lies in genes of the vocabulary."""
        return _share(self.covered, self.total)

    def check(self) -> None:
        """Refuse cells of which too little is covered, if the caller asked for that."""
        if self.total and self.share_of_counts < self.required_share:
            raise UserError(
                f"The vocabulary covers {self.share_of_counts:.0%} of the counts, less than the {self.required_share:.0%} "
                f"that `strict=` asks for: {self.facts['num_matched']} of {self.facts['num_genes']} genes were matched, "
                f"unmatched are for example {', '.join(self.facts['unmatched_examples'])}. Name the column of `var` "
                "with Ensembl ids or symbols in `gene_column=`, name the species in `species=`, or lower `strict=`."
            )

    def summary(self) -> dict:
        """Everything in plain numbers and words, fit for `adata.uns`."""
        return {
            **self.facts,
            "num_cells": self.num_cells,
            "empty_cells": self.empty_cells,
            "cells_turned_back_into_counts": self.cells_turned_back_into_counts,
            "counts_in_all": self.total,
            "counts_covered": self.covered,
            "share_of_counts": round(self.share_of_counts, 6),
            "reach": reach(self.share_of_counts, self.facts["species"]),
        }

    def log(self) -> None:
        """Say it in one line; loudly where a result may suffer."""
        facts = self.summary()
        may_spoil_results = (
            self.share_of_counts < STRICT_SHARE or self.empty_cells or facts["matrix_state"] != "counts"
        )
        (logger.warning_once if may_spoil_results else logger.info)(account_line(facts))


_SUMS = ("num_cells", "empty_cells", "cells_turned_back_into_counts", "counts_in_all", "counts_covered")


def joined_accounts(first: Mapping[str, Any] | None, second: Mapping[str, Any]) -> dict[str, Any]:
    """The account of two parts of the same cells together; what was decided before reading is the same in both.

    Examples
    --------
    >>> part = {"num_cells": 2, "counts_in_all": 10.0, "counts_covered": 5.0}
    >>> joined_accounts(part, {**part, "counts_covered": 10.0})
    {'num_cells': 4, 'counts_in_all': 20.0, 'counts_covered': 15.0, 'share_of_counts': 0.75, 'reach': 0.75}
    """
    if not first:
        return dict(second)
    sums = {name: first[name] + second[name] for name in _SUMS if name in second}
    share = _share(sums["counts_covered"], sums["counts_in_all"])
    return {**second, **sums, "share_of_counts": round(share, 6), "reach": reach(share, second.get("species", HUMAN))}


def _share(covered: float, total: float) -> float:
    """Rounding may let the genes of the vocabulary hold more than all genes do."""
    return min(covered / total, 1.0) if total else 0.0


def species_lines(account: Mapping[str, Any]) -> list[str]:
    """What the names of the genes leave open about the species, in words.

    Examples
    --------
    >>> species_lines({"species": "mouse", "alternative_species": {"rat": 0.94}})
    ['of the known names 94% are also those of rat: read as mouse, which has more of them; `species=` says otherwise']
    """
    found = account.get("several_species") or {}
    lines = ["several species: " + ", ".join(f"{number} genes of {name}" for name, number in found.items())] * bool(
        found
    )
    if others := account.get("alternative_species"):
        share, names = max(others.values()), ", ".join(others)
        lines.append(
            f"of the known names {share:.0%} are also those of {names}: read as {account['species']}, which has more of "
            "them; `species=` says otherwise"
        )
    return lines


def set_aside_lines(account: Mapping[str, Any]) -> list[str]:
    """What was not read with the genes, each kind in words.

    Examples
    --------
    >>> set_aside_lines({"set_aside": {"a": {"kind": "antibody", "number": 2, "why": "typed", "names": ["CD3"]}}})
    ['set aside: 2 of kind antibody (typed): CD3, ...']
    """
    return [
        f"set aside: {one['number']} of kind {one['kind']} ({one['why']}): {', '.join(map(str, one['names'][:5]))}"
        + (", ..." if one["number"] > len(one["names"][:5]) else "")
        for one in (account.get("set_aside") or {}).values()
    ]


def account_line(account: dict) -> str:
    """The account in one readable line."""
    routes = ", ".join(f"{count} {route}" for route, count in account["matched"].items() if count)
    parts = [
        f"{account['num_cells']} cells",
        f"{account.get('modality', '')} {account['matrix']}: {account['matrix_detail']}".strip(),
        f"{account['num_matched']} of {account['num_genes']} {account['species']} genes ({account['scheme']}) matched"
        + (f" ({routes})" if routes else ""),
        f"{account['share_of_counts']:.1%} of counts covered",
    ]
    parts += species_lines(account) + set_aside_lines(account)
    if account["merged_duplicates"]:
        parts.append(f"{account['merged_duplicates']} duplicates summed")
    if account["cells_turned_back_into_counts"]:
        parts.append(f"{account['cells_turned_back_into_counts']} cells turned back into counts exactly")
    elif account["matrix_state"] == "log1p":
        parts.append("not invertible to counts: used as log1p")
    if account["unmatched_examples"]:
        parts.append(f"unmatched e.g. {', '.join(account['unmatched_examples'][:3])}")
    if account["empty_cells"]:
        parts.append(f"{account['empty_cells']} empty cells kept")
    if account.get("cells_without_rna"):
        parts.append(f"{account['cells_without_rna']} cells of other modalities have no RNA and are left out")
    if account["duplicate_cell_names"]:
        parts.append(f"{account['duplicate_cell_names']} cell names repeated")
    return "; ".join(parts)
