"""`scmmgpt export`: a model in the formats of other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import AsJson, Model
from .console import say

export_app = typer.Typer(help="A model for other runtimes: ONNX, a page for the browser.", no_args_is_help=True)


@export_app.callback()
def export() -> None:
    """A model for other runtimes: ONNX, a page for the browser."""


@export_app.command("onnx", epilog="Example: scmmgpt export onnx my-export --cells my.h5ad")
def export_onnx(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write, which must not exist.")],
    model: Model = None,
    cells: Annotated[
        Path | None, typer.Option(help="Cells on which to check the export; default: those that come with scanpy.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Write the cell tower and the text tower as ONNX files, checked against this model, for runtimes without torch."""
    from .onnx_export import export_onnx

    manifest = export_onnx(directory, model=model, cells=cells)
    lines = [
        f"{what}: lowest cosine {check['lowest_cosine']:.7f}, largest difference {check['largest_difference']:.1e}, "
        f"over {check['number']}"
        for what, check in manifest["checked"].items()
    ]
    size = sum(file["bytes"] for file in manifest["files"].values())
    say(
        {"output": str(directory)} | manifest,
        as_json=json,
        lines=[*lines, f"{size / 1e6:.1f} MB written to {directory}"],
    )


@export_app.command("page", epilog="Example: scmmgpt export page my-page && python -m http.server --directory my-page")
def export_page(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write, which must not exist.")],
    model: Model = None,
    cells: Annotated[
        Path | None, typer.Option(help="Cells on which to check the export; default: those that come with scanpy.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Build the page that names and searches cells in a browser, for any static server. It needs Node and npm."""
    from .hub_cards.static_space import build_page

    built = build_page(directory, model=model, cells=cells)
    lines = [f"{built['bytes'] / 1e6:.1f} MB written to {directory}", "Publish it: scmmgpt push --space static ..."]
    say({"output": str(directory)} | built, as_json=json, lines=lines)
