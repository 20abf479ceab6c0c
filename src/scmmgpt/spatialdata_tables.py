"""The table of cells in SpatialData, which every verb reads as AnnData in memory; `spatialdata` is not needed for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import UserError


def table_of(data: Any) -> Any:
    """The only table of a SpatialData object or store; anything else as it is."""
    if isinstance(data, str | os.PathLike):
        tables = Path(data) / "tables"
        names = sorted(path.name for path in tables.iterdir() if path.is_dir()) if tables.is_dir() else []
        is_one_store = (Path(data) / "obs").exists() or not names
        return data if is_one_store else _read(tables / _only(names))
    if hasattr(data, "tables") and hasattr(data, "shapes"):
        return data.tables[_only(sorted(data.tables))]
    return data


def _read(path: Path) -> Any:
    import zarr
    from anndata.io import read_elem

    return read_elem(zarr.open_group(path, mode="r"))


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise UserError(
            f"SpatialData with {len(names)} tables ({', '.join(names)}): give one of them, such as sdata.tables[NAME] or "
            "the folder tables/NAME of the store."
        )
    return names[0]
