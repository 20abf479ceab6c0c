"""Commands for what surrounds a study: `audit` of author labels, `harmonise`, `mcp` for agents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import AsJson, BatchSize, Cells, ClusterKey, Device, Model, Overwrite
from .console import say, say_table


def add_tools(app: typer.Typer) -> None:
    """Add these commands to the `scmmgpt` command."""
    app.command(
        epilog="Examples: scmmgpt audit my.h5ad --label author_type --output audited.h5ad | "
        "scmmgpt audit my.h5ad --label author_type --schema cellxgene --fact tissue_type=tissue --output out.h5ad"
    )(audit)
    app.command(
        epilog="Examples: scmmgpt harmonise a.h5ad b.h5ad --output together | "
        "scmmgpt harmonise all.h5ad --sample-key donor --tissue-key tissue --output together"
    )(harmonise)
    app.command(epilog="Example: scmmgpt mcp --folder data --folder results")(mcp)


def audit(
    cells: Cells,
    label: Annotated[str, typer.Option(help="The column of obs with the author's cell types.")],
    output: Annotated[Path | None, typer.Option(help="A new .h5ad or .zarr with the findings, or the export.")] = None,
    schema: Annotated[str | None, typer.Option(help="Export for an archive instead: cellxgene or cap.")] = None,
    fact: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, what an archive asks; repeat it.")] = None,
    model: Model = None,
    cluster_key: ClusterKey = None,
    overwrite: Overwrite = False,
    device: Device = None,
    batch_size: BatchSize = None,
    json: AsJson = False,
) -> None:
    """Check author labels: terms of the Cell Ontology, cells that contradict them, mixed clusters, missing fields."""
    from . import lean_start  # noqa: F401
    from .archive_export import asked_facts, missing_fields_of, parse_facts, write_export
    from .errors import UserError
    from .label_audit import audit as audit_cells
    from .loading import load
    from .storage import check_output

    facts = parse_facts(fact or [])
    if schema is not None and output is None:
        raise UserError("--schema writes a file: name it with --output.")
    if output is not None and output.exists() and not overwrite:
        raise UserError(f"The output {str(output)!r} exists; choose another name, or --overwrite to replace it.")
    if schema is not None and output is not None:
        asked_facts(cells, facts, schema)  # type: ignore[arg-type] # refused by name where there is no such schema
        check_output(output, cells, suffixes=(".h5ad",))
    loaded = load(model, device=device)
    kept = None if schema else output
    where: dict[str, Any] = {"cluster_key": cluster_key, "overwrite": overwrite, "batch_size": batch_size}
    found = audit_cells(cells, label, model=loaded, output=kept, **where)
    notes = write_export(cells, found, label, loaded, output, schema, facts) if schema and output else []
    missing = {name: missing_fields_of(cells, facts, name) for name in ("cellxgene", "cap")}
    result = found.summary() | {"missing_fields": missing, "notes": notes, "output": output and str(output)}
    if json:
        say(result, as_json=True)
        return
    say_table(result["labels"], as_json=False)
    say({}, as_json=False, lines=[*_lines(result), *notes, *([f"Written to {output}"] if output else [])])


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['doubted']} of {result['cells']} labels are contradicted by the expression of their cells."]
    if result["not_judged"]:
        lines.append(f"{result['not_judged']} cells carry a label that too few cells share to be judged.")
    for row in result["mixed_clusters"][:10]:
        mixed = ", ".join(f"{count} {name}" for name, count in row["labels"].items())
        lines.append(f"Cluster {row['cluster']} mixes types: {mixed}.")
    for schema, fields in result["missing_fields"].items():
        lines.append(f"Missing for {schema}: {', '.join(fields) or 'nothing'}.")
    return lines


def harmonise(
    studies: Annotated[list[Path], typer.Argument(metavar="IN.h5ad...", help="Files of cells.")],
    output: Annotated[Path, typer.Option(help="A folder for the annotated files, which keep their names.")],
    sample_key: Annotated[
        str | None, typer.Option(help="A column of obs with samples, each called by itself.")
    ] = None,
    tissue_key: Annotated[str | None, typer.Option(help="A column of obs with the tissue of each cell.")] = None,
    min_confidence: Annotated[float | None, typer.Option(min=0, max=1, help="As in annotate.")] = None,
    model: Model = None,
    overwrite: Overwrite = False,
    device: Device = None,
    batch_size: BatchSize = None,
    json: AsJson = False,
) -> None:
    """Annotate several files, or the samples of one, with one vocabulary of names."""
    from .one_vocabulary import harmonise as annotate_together

    keys: dict[str, Any] = {"sample_key": sample_key, "tissue_key": tissue_key, "min_confidence": min_confidence}
    how: dict[str, Any] = {"model": model, "overwrite": overwrite, "device": device, "batch_size": batch_size}
    results = annotate_together(studies, output=output, **keys, **how)
    names = [str(name) for name in results[0].uns["scmmgpt"]["harmonise"]["names"]]
    files = [str(output / f"{study.stem}.h5ad") for study in studies]
    lines = [f"{len(names)} names for all: {', '.join(names)}", *(f"Written to {file}" for file in files)]
    say({"names": names, "files": files}, as_json=json, lines=lines)


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
