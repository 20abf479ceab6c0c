"""`scmmgpt mcp`: the verbs as tools for agents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Model


def mcp(
    folder: Annotated[
        list[Path] | None, typer.Option(help="A folder that may be read and written; repeat it. Default: this one.")
    ] = None,
    model: Model = None,
    max_gb: Annotated[float, typer.Option(min=0.001, help="The largest file that is read, in gigabytes.")] = 4,
    max_cells: Annotated[int, typer.Option(min=1, help="The most cells of one call.")] = 200_000,
) -> None:
    """Serve the verbs to an agent over the Model Context Protocol, on stdin and stdout (extra `mcp`)."""
    from .errors import require
    from .loading import find_model

    require("mcp")
    from .mcp_server import make_server

    find_model(model)
    make_server(folder or [Path()], model=model, most_gigabytes=max_gb, most_cells=max_cells).run("stdio")
