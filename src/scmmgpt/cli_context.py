"""`scmmgpt compare` and `scmmgpt niches`: what was done to cells, and where they live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import AsJson, BatchSize, Cells, Device, KeyAdded, LibraryKey, Model, Overwrite, Seed
from .console import named_rows, say, say_table


def compare(
    cells: Cells,
    groupby: Annotated[str, typer.Option(help="The column of obs that says how each cell was treated.")],
    control: Annotated[str, typer.Option(help="Its value for untreated cells.")],
    group: Annotated[list[str] | None, typer.Option(help="A treatment to compare; repeat it. Default: all.")] = None,
    cell_type_key: Annotated[
        str | None, typer.Option(help="The column of obs with cell types; default: found, else annotated first.")
    ] = None,
    donor_key: Annotated[str | None, typer.Option(help="The column of obs with donors: compare within each.")] = None,
    table: Annotated[Path | None, typer.Option(help="Write the table of responses here, as CSV.")] = None,
    genes: Annotated[Path | None, typer.Option(help="Write every tested gene here, as CSV.")] = None,
    report: Annotated[Path | None, typer.Option(help="An HTML page to write, in one file.")] = None,
    search: Annotated[
        Path | None, typer.Option(help="List the cells of this file that look most like perturbed ones.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many cells to list.")] = 20,
    seed: Seed = 0,
    model: Model = None,
    device: Device = None,
    batch_size: BatchSize = None,
    json: AsJson = False,
) -> None:
    """Compare perturbed cells with a control, type by type: who responds, how much, with which genes."""
    from .comparison import compare
    from .storage import check_output, written_by_rename

    wanted = {path: check_output(path, suffixes=(".csv",)) for path in (table, genes) if path is not None}
    page = check_output(report, suffixes=(".html", ".htm")) if report is not None else None
    how: dict[str, Any] = {"model": model, "device": device, "batch_size": batch_size}
    keys: dict[str, Any] = {"groups": group, "cell_type_key": cell_type_key, "donor_key": donor_key}
    found = compare(cells, groupby=groupby, control=control, seed=seed, **keys, **how)
    for path, rows in ((table, found.table), (genes, found.genes)):
        if path is not None:
            with written_by_rename(wanted[path]) as temporary:
                rows.to_csv(temporary, index=False)
    if page is not None:
        from .context_report import write_comparison_page

        write_comparison_page(page, found)
    hits = None
    if search is not None:
        hits = named_rows(found.search(search, group=group[0] if group else None, top=top))
    rows = found.table.astype(object)
    responses = rows.where(rows.notna(), None).to_dict("records")  # JSON knows no NaN
    if json:
        content = {"groupby": groupby, "control": control, "responses": responses, "text": found.text}
        say(content | ({} if hits is None else {"hits": hits}), as_json=True)
        return
    say_table(responses, as_json=False)
    say({}, as_json=False, lines=found.text.splitlines())
    if hits is not None:
        say_table(hits, as_json=False)


def niches(
    cells: Cells,
    output: Annotated[Path | None, typer.Option(help="Where to write: a new .h5ad or .zarr.")] = None,
    cell_type_key: Annotated[
        str | None, typer.Option(help="The column of obs with cell types; default: found, else annotated first.")
    ] = None,
    library_key: LibraryKey = None,
    num_neighbours: Annotated[int, typer.Option(min=1, help="Nearest cells that are neighbours.")] = 15,
    num_niches: Annotated[int, typer.Option(min=1, help="How many niches at most.")] = 8,
    around: Annotated[str | None, typer.Option(help="Also say which cells surround this one.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="An HTML page with the map of the niches.")] = None,
    key_added: KeyAdded = "scmmgpt",
    overwrite: Overwrite = False,
    model: Model = None,
    device: Device = None,
    batch_size: BatchSize = None,
    json: AsJson = False,
) -> None:
    """Find the niches of a tissue, by what surrounds each cell, and name them by their cell types."""
    from .niche_finding import niches, said_surroundings

    keys: dict[str, Any] = {
        "cell_type_key": cell_type_key,
        "library_key": library_key,
        "key_added": key_added,
        "report": page,
    }
    numbers: dict[str, Any] = {"num_neighbours": num_neighbours, "num_niches": num_niches, "batch_size": batch_size}
    adata = niches(cells, output=output, overwrite=overwrite, model=model, device=device, **keys, **numbers)
    table = adata.uns[key_added]["niches"]["composition"]
    names = ("niche", "cells", "neighbours")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(table[name].tolist() for name in names), strict=True)]
    said = None if around is None else said_surroundings(adata, around, cell_type_key, library_key, key_added)
    if json:
        say({"output": output and str(output), "niches": rows} | ({} if said is None else said), as_json=True)
        return
    say_table(rows, as_json=False)
    lines = ([] if said is None else [said["text"]]) + [f"Written to {output}"] * (output is not None)
    say({}, as_json=False, lines=lines + [f"Report: {page}"] * (page is not None))


def add_context(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command(epilog="Example: scmmgpt compare my.h5ad --groupby stim --control ctrl")(compare)
    app.command(epilog="Example: scmmgpt niches tissue.h5ad --output out.h5ad --library-key section")(niches)
