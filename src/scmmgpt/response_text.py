"""The response to a perturbation in words; every number and gene is one of the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .response import MIN_CELLS, SIGNIFICANT

if TYPE_CHECKING:
    import pandas as pd


def response_lines(table: pd.DataFrame, groupby: str, control: str) -> Iterator[str]:
    """For each group which types respond and with which genes, which do not, and which have too few cells."""
    for group, rows in table.groupby("group", sort=True):
        yield f"{group} against {control} ({groupby}):"
        tested = rows[rows.p_value.notna()]
        responding = tested[tested.fdr < SIGNIFICANT]
        for place, row in enumerate(responding.itertuples()):
            first = " responds most" if place == 0 and len(responding) > 1 else " responds"
            yield f"  {row.cell_type}{first}: {_figures(row)}{_genes(row)}."
        for row in tested[tested.fdr >= SIGNIFICANT].itertuples():
            genes = f", but {row.genes_changed} genes change{_genes(row)}" if row.genes_changed else ""
            yield f"  {row.cell_type} does not differ as a whole (p = {row.p_value:.2f}){genes}."
        few = rows[rows.p_value.isna()]
        if len(few):
            cells = ", ".join(
                f"{row.cell_type} ({row.cells}, control {row.control_cells})" for row in few.itertuples()
            )
            yield f"  Too few cells to test, fewer than {MIN_CELLS} in a group: {cells}."


def _figures(row) -> str:
    return f"energy distance {row.energy_distance:.3f} (p = {row.p_value:.3f}), {row.genes_changed} genes change"


def _genes(row) -> str:
    parts = [f"{word} {genes}" for word, genes in (("up", row.up), ("down", row.down)) if genes]
    return "; " + "; ".join(parts) if parts else ""
