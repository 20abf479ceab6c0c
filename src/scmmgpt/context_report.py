"""Pages about where cells live and what was done to them: maps of tissues, niches, responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError
from .report import drawn_cells, points_of
from .spatial import COORDINATES, Space, read_space
from .storage import written_by_rename

if TYPE_CHECKING:
    from .comparison import Comparison
    from .verb import Verb

_GAP = 0.06  # between sections that are drawn side by side


def space_points(space: Space, names: np.ndarray, title: str) -> dict[str, Any]:
    """The drawn cells of a tissue map, sections side by side; cells without coordinates are left out."""
    rows = drawn_cells(len(names))
    rows = rows[space.is_placed[rows]]
    places = _side_by_side(space.coordinates[rows, :2], space.libraries[rows])
    source = f"obsm[{COORDINATES!r}]"
    drawn = points_of(places, source, names[rows], np.zeros(len(rows)))
    del drawn["confidence"]
    return {**drawn, "title": title, "sections": len(np.unique(space.libraries[rows]))}


def _side_by_side(places: np.ndarray, libraries: np.ndarray) -> np.ndarray:
    """Each section moved to the right of the one before it."""
    moved, start = places.copy(), 0.0
    for library in np.unique(libraries):
        own = libraries == library
        low, high = places[own].min(axis=0), places[own].max(axis=0)
        moved[own] = places[own] - low + [start, 0]
        start += float(high[0] - low[0]) * (1 + _GAP) or 1.0
    return moved


def map_of_labels(verb: Verb, labels: np.ndarray, library_key: str | None = None) -> list[dict[str, Any]]:
    """The map of the tissue by label for the report of `annotate`; none where the cells have no coordinates."""
    if COORDINATES not in verb.cells.present["obsm"]:
        return []
    try:
        space = read_space(verb.cells, library_key)
    except UserError:
        return []
    return [space_points(space, labels.astype(str), "Map of the tissue, by label")]


def write_niche_page(
    page: Path, verb: Verb, space: Space, labels: np.ndarray, types: np.ndarray, table: Mapping[str, np.ndarray]
) -> None:
    """Maps by niche and by type, and what surrounds the cells of each niche."""
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    _write(
        page,
        title=f"Niches: {verb.cells.path.name}" if verb.cells.path else "Niches",
        warnings=verb.warnings,
        maps=[
            space_points(space, labels.astype(str), "Map of the tissue, by niche"),
            space_points(space, types.astype(str), "Map of the tissue, by type"),
        ],
        table_title="Niches",
        about="Neighbours: the mean share of each type among the neighbours of the niche's cells, and how many times as "
        "frequent it is there as anywhere.",
        rows=rows,
        numbers=("cells",),
    )


def write_comparison_page(page: Path, found: Comparison) -> None:
    """The responses of all types, the strongest first, and the same in words."""
    rows = []
    for row in found.table.astype(object).where(found.table.notna(), None).to_dict("records"):
        rows.append({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})
    _write(
        page,
        title=f"Response to {found.groupby}, against {found.control}",
        warnings=found.notes,
        text=found.text,
        table_title="Types, the strongest response first",
        about="Energy distance: how far the embeddings of perturbed and control cells lie apart; p-value: by permutation; "
        "genes changed: with a false discovery rate under 5 %.",
        rows=rows,
        numbers=tuple(name for name in found.table if name not in ("group", "cell_type", "up", "down")),
        bar="energy_distance",
    )


def _write(
    page: Path,
    *,
    rows: Sequence[Mapping[str, Any]],
    maps: Sequence[Mapping[str, Any]] = (),
    text: str = "",
    bar: str = "",
    **content: Any,
) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("scmmgpt"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    largest = max([row[bar] or 0 for row in rows] + [1e-9]) if bar else 1
    template = environment.get_template("context.html.jinja")
    columns = list(rows[0]) if rows else []
    html = template.render(rows=rows, maps=maps, text=text, bar=bar, largest=largest, columns=columns, **content)
    with written_by_rename(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
