"""Options that several verbs of the command share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Cells = Annotated[
    Path, typer.Argument(metavar="IN.h5ad", help="Cells: .h5ad, .zarr, .h5mu, 10x .h5 or a folder with matrix.mtx.")
]
Output = Annotated[
    Path, typer.Option(help="Where to write: a new .h5ad or .zarr (.h5mu of an .h5mu); never the input.")
]
Folder = Annotated[Path, typer.Option(help="The folder to write to.")]
Model = Annotated[str | None, typer.Option(help="A model directory or Hub repository; default: the embedded model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the best there is.")]
BatchSize = Annotated[int | None, typer.Option(help="Cells at a time; halved when memory runs out.")]
KeyAdded = Annotated[str, typer.Option(help="The name that results are written under.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results of the same name in the output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
ClusterKey = Annotated[str | None, typer.Option(help="A column of obs: one result per cluster instead of per cell.")]
Consensus = Annotated[
    bool | None, typer.Option(help="Decide over the study; default: from 100 cells on, unless labels are given.")
]
Proteins = Annotated[bool, typer.Option("--proteins/--no-proteins", help="Let antibodies of the same cells speak.")]
LibraryKey = Annotated[
    str | None, typer.Option(help="A column of obs with sections, which are no neighbours in space.")
]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="Run in this process, or on a Ray cluster (extra `ray`).")
]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster; default: start one on this machine.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Copies of the model; default: one per GPU, else one per CPU.")
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
