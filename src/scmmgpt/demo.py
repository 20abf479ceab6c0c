"""A demonstration: real cells, annotated, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import UserError, require
from .loading import LoadedModel, load
from .summary import annotation_summary

STUDY = "pbmc68k"
_NAMES_OF_STUDY = ("pbmc68k", "zheng68k", "pbmc_facs")


def run_demo(folder: Path, *, model: Any = None, device: Any = None) -> tuple[dict[str, Any], list[str]]:
    """Annotate the blood cells that come with scanpy; write the h5ad and the report, and say where they are."""
    from . import api

    scanpy = require("scanpy")
    loaded = load(model, device=device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {str(folder)!r} cannot be made: {error.strerror}.") from error
    adata = scanpy.datasets.pbmc68k_reduced()
    output, report = folder / "pbmc68k_annotated.h5ad", folder / "report.html"
    annotated = api.annotate(adata, tissue="blood", report=report, model=loaded, output=output)
    result, lines = annotation_summary(annotated, "scmmgpt")
    rows = [f"  {row['cells']:4d}  {row['cell_type']}" for row in result["cell_types"][:12]]
    result |= {"output": str(output), "report": str(report), "model": training_status(loaded)}
    where = [f"Annotated cells: {output.resolve()}", f"Report:          {report.resolve()}"]
    return result, [*lines, f"{annotated.n_obs} cells:", *rows, training_status(loaded), *where]


def training_status(loaded: LoadedModel) -> str:
    """Whether the model is trained, and whether it has seen the demo's study."""
    summary = loaded.training_summary
    if summary is None:
        return "The model is untrained: these labels mean nothing and only show that everything runs."
    studies = str(summary.get("studies", summary.get("training_studies", "")))
    if any(name in studies for name in _NAMES_OF_STUDY):
        return "The model is trained. The demo's study was part of its training, so this is no test of it."
    return "The model is trained. The demo's study was not part of its training."
