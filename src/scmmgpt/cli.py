"""The `scmmgpt` command: one thin function per verb over `scmmgpt.api`.

Heavy packages are imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .cli_context import add_context
from .cli_export import export_app
from .cli_language import chat, describe
from .cli_options import (
    Address,
    AsJson,
    BatchSize,
    Cells,
    ClusterKey,
    Consensus,
    Device,
    Engine,
    Folder,
    KeyAdded,
    LibraryKey,
    Model,
    Output,
    Overwrite,
    Proteins,
    Seed,
    Workers,
)
from .cli_tools import add_tools
from .console import named_rows, pairs, run_to_exit_code, say, say_outcome, say_table

app = typer.Typer(
    help="Single cells and language: annotate, embed, describe, search, chat about and generate single cells.",
    epilog="Start with: scmmgpt demo. Then: scmmgpt annotate my.h5ad --output annotated.h5ad --report report.html",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
index_app = typer.Typer(help="An index of an atlas, to be searched by text.", no_args_is_help=True)
corpus_app = typer.Typer(help="Training corpora: build and audit.", no_args_is_help=True)
app.add_typer(index_app, name="index")
app.add_typer(corpus_app, name="corpus")
app.add_typer(export_app, name="export")
add_context(app)
add_tools(app)


def main() -> None:
    """The entry point of the console script."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    # Threads that wait for one another must not do so at full speed: on a busy machine that cost more than the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its part is small matrices
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "debug" if debug else "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if debug else "1")
    sys.exit(run_to_exit_code(lambda: app(arguments, prog_name="scmmgpt", standalone_mode=False), debug=debug))


def _show_version(asked: bool) -> None:
    if asked:
        from .version import __version__

        print(__version__)  # noqa: T201
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error happened, after any verb.")] = False,
) -> None:
    """Options of every verb."""


@app.command(epilog="Example: scmmgpt demo")
def demo(output: Folder = Path("demo"), model: Model = None, device: Device = None, json: AsJson = False) -> None:
    """Annotate 700 blood cells that come with scanpy, and write a report."""
    from .demo import run_demo

    result, lines = run_demo(output, model=model, device=device)
    say(result, as_json=json, lines=lines)


@app.command(epilog="Example: scmmgpt info")
def info(
    model: Annotated[str | None, typer.Argument(help="A model directory or repository.")] = None, json: AsJson = False
) -> None:
    """Versions, devices, and what is known about a model."""
    from .doctor import describe_installation

    result = describe_installation(model)
    say(result, as_json=json, lines=pairs(result))


@app.command(epilog="Example: scmmgpt doctor my.h5ad")
def doctor(cells: Cells, model: Model = None, json: AsJson = False) -> None:
    """Show what would be read from a file: matrix, genes, species; with warnings."""
    from .doctor import examination_lines, examine

    result = examine(cells, model=model)
    say(result, as_json=json, lines=examination_lines(result))


@app.command(
    epilog="Examples: scmmgpt annotate my.h5ad --output out.h5ad --report report.html | "
    "scmmgpt annotate my.h5ad --output out.h5ad --labels types.txt --min-confidence 0"
)
def annotate(
    cells: Cells,
    output: Output,
    model: Model = None,
    labels: Annotated[str | None, typer.Option(help='A file with one label a line, or "cell-ontology".')] = None,
    tissue: Annotated[str | None, typer.Option(help="The tissue of the cells.")] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Below it: the parent term, else unknown. 0: never.")
    ] = None,
    cluster_key: ClusterKey = None,
    smooth: Annotated[int, typer.Option(min=0, help="Average over so many nearest neighbours first.")] = 0,
    rerank: Annotated[int, typer.Option(min=0, help="Score so many best labels again with the matching head.")] = 0,
    consensus: Consensus = None,
    proteins: Proteins = True,
    spatial: Annotated[bool, typer.Option("--spatial", help="Let neighbours in space speak for one another.")] = False,
    library_key: LibraryKey = None,
    report: Annotated[Path | None, typer.Option(help="An HTML report to write, in one file.")] = None,
    key_added: KeyAdded = "scmmgpt",
    overwrite: Overwrite = False,
    device: Device = None,
    batch_size: BatchSize = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    json: AsJson = False,
) -> None:
    """Annotate each cell with a cell-type label and a calibrated confidence."""
    from .lean_start import api
    from .summary import annotation_summary

    how: dict[str, Any] = {"tissue": tissue, "min_confidence": min_confidence, "cluster_key": cluster_key}
    how |= {"smooth": smooth, "rerank": rerank, "consensus": consensus, "proteins": proteins}
    how |= {"spatial": spatial, "library_key": library_key}
    where: dict[str, Any] = {"device": device, "engine": engine, "address": address, "workers": workers}
    what: dict[str, Any] = {"output": output, "report": report, "key_added": key_added, "overwrite": overwrite}
    adata = api.annotate(cells, labels, model=model, batch_size=batch_size, summary_only=True, **how, **where, **what)
    result, lines = annotation_summary(adata, key_added)
    say(result | {"output": str(output), "report": report and str(report)}, as_json=json, lines=lines)
    if not json:
        say_table(result["cell_types"], as_json=False, most=20)
        say({}, as_json=False, lines=[f"Written to {output}"] + [f"Report: {report}"] * (report is not None))


@app.command(epilog="Example: scmmgpt embed my.h5ad --output out.h5ad")
def embed(
    cells: Cells,
    output: Output,
    model: Model = None,
    key_added: KeyAdded = "scmmgpt",
    overwrite: Overwrite = False,
    device: Device = None,
    batch_size: BatchSize = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    json: AsJson = False,
) -> None:
    """Write an embedding of each cell, comparable with embeddings of text, to obsm."""
    from .lean_start import api
    from .processing.result_keys_scmmgpt import ResultKeys

    where: dict[str, Any] = {"device": device, "engine": engine, "address": address, "workers": workers}
    how: dict[str, Any] = {"batch_size": batch_size, "key_added": key_added, "overwrite": overwrite}
    adata = api.embed(cells, model=model, output=output, summary_only=True, **where, **how)
    shape = [adata.n_obs, int(adata.uns[key_added]["embed"]["settings"]["dimension"])]
    key = ResultKeys(key_added).embedding
    result = {"output": str(output), "key": key, "shape": shape}
    say(result, as_json=json, lines=[f"obsm[{key!r}], {shape[0]} x {shape[1]}, written to {output}"])


app.command(epilog="Example: scmmgpt describe my.h5ad --output out.h5ad --cluster-key leiden")(describe)
app.command(epilog='Example: scmmgpt chat my.h5ad --cluster-key leiden --ask "What is different between 0 and 1?"')(
    chat
)


@app.command(epilog='Example: scmmgpt search my.h5ad "exhausted CD8 T cells" --top 20')
def search(
    cells: Annotated[Path, typer.Argument(metavar="IN.h5ad|INDEX", help="Cells, or the folder of an index.")],
    text: Annotated[str, typer.Argument(help="What to look for, in words.")],
    top: Annotated[int, typer.Option(min=1, help="How many cells to list.")] = 20,
    where: Annotated[list[str] | None, typer.Option(help="Only cells with COLUMN=VALUE in obs; repeat it.")] = None,
    model: Model = None,
    device: Device = None,
    batch_size: BatchSize = None,
    json: AsJson = False,
) -> None:
    """List the cells that fit a text best."""
    from . import api

    table = api.search(cells, text, top=top, where=where, model=model, device=device, batch_size=batch_size)
    say_table(named_rows(table), as_json=json)


@index_app.command("build", epilog="Example: scmmgpt index build atlas.h5ad --output atlas-index")
def index_build(
    atlas: Cells,
    output: Folder,
    model: Model = None,
    device: Device = None,
    batch_size: BatchSize = None,
    json: AsJson = False,
) -> None:
    """Embed an atlas once, so that every later search is fast. The atlas may be larger than memory."""
    from .index import build_index

    index = build_index(atlas, output, model=model, device=device, batch_size=batch_size)
    say(index.describe(), as_json=json, lines=[f"{index.num_cells} cells indexed in {output}"])


@index_app.command("push", epilog="Example: scmmgpt index push atlas-index my-name/my-atlas")
def index_push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An index.")],
    repository: Annotated[str, typer.Argument(metavar="org/name", help="The data set on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
    json: AsJson = False,
) -> None:
    """Publish an index as a data set of the Hugging Face Hub."""
    from .index import push_index

    say({"url": push_index(directory, repository, private=private)}, as_json=json, lines=[f"Published: {repository}"])


@app.command(epilog='Example: scmmgpt generate "60 % B cell, 40 % monocyte" --num-cells 500 --output out.h5ad')
def generate(
    text: Annotated[str, typer.Argument(help='The cells in words, or "60 % one, 40 % another".')],
    output: Output,
    num_cells: Annotated[int, typer.Option(min=1)] = 100,
    depth: Annotated[float | None, typer.Option(min=1, help="Median total count of a cell.")] = None,
    platform: Annotated[str | None, typer.Option(help='"10x", "Smart-seq2", "inDrop", ...')] = None,
    reference: Annotated[Path | None, typer.Option(help="Real cells to hold the new ones against.")] = None,
    reference_key: Annotated[str, typer.Option(help="Their obs column of types.")] = "cell_type",
    seed: Seed = 0,
    model: Model = None,
    device: Device = None,
    batch_size: BatchSize = None,
    json: AsJson = False,
) -> None:
    """Generate cells, as integer counts, from a text."""
    from . import api

    where: dict[str, Any] = {"output": output, "model": model, "device": device, "batch_size": batch_size}
    beside: dict[str, Any] = {"reference": reference, "reference_key": reference_key}
    adata = api.generate_cells(text, num_cells, depth=depth, platform=platform, seed=seed, **beside, **where)
    quality = adata.uns["scmmgpt"]["generate"]["quality"]
    figures = {**quality, **quality.get("beside_reference", {})}
    figures.pop("beside_reference", None)
    lines = [f"{adata.n_obs} cells x {adata.n_vars} genes written to {output}", *pairs(figures)]
    say({"output": str(output), "shape": list(adata.shape), "quality": quality}, as_json=json, lines=lines)


@corpus_app.command("build", epilog="Example: scmmgpt corpus build a.h5ad b.h5ad --output corpus")
def corpus_build(
    sources: Annotated[
        list[str], typer.Argument(help="h5ad, zarr, SOMA, folders of those, or census:VERSION:ORGANISM.")
    ],
    output: Folder,
    recipe: Annotated[Path | None, typer.Option(help="A YAML file with the settings of the corpus.")] = None,
    processor: Annotated[
        str | None, typer.Option(help="A folder or repository with a gene tokenizer; default: the embedded model's.")
    ] = None,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes that build shards side by side.")] = 1,
    on_error: Annotated[
        Literal["stop", "skip"] | None,
        typer.Option(help="What to do with an unusable source; default: as in the recipe."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Build a training corpus: tokenise, split by group, index. Run the same command again to resume."""
    from .training.corpus.build import build_corpus

    how: dict[str, Any] = {"num_processes": num_processes, "on_error": on_error}
    corpus = build_corpus(
        sources, output, recipe=recipe, processor=processor, say=lambda line: typer.echo(line, err=True), **how
    )
    card = (corpus.path / "README.md").read_text(encoding="utf-8")
    say({"output": str(output), "cells": len(corpus)}, as_json=json, lines=[card, f"Done: {output}"])


@corpus_app.command("audit", epilog="Example: scmmgpt corpus audit corpus --test-set other.h5ad")
def corpus_audit(
    corpus: Annotated[Path, typer.Argument(help="A corpus.")],
    test_set: Annotated[str | None, typer.Option(help="A file or folder of cells that it must not hold.")] = None,
    scheme: Annotated[str, typer.Option(help="The split scheme to check.")] = "study",
    json: AsJson = False,
) -> None:
    """Check a corpus: label quality, and duplicate cells across splits or in a test set."""
    from .errors import UserError
    from .training.corpus.audit import audit_corpus

    report = audit_corpus(corpus, test_set=test_set, scheme=scheme)
    say(report, as_json=json, lines=pairs(report))
    if not report["passed"]:
        raise UserError(f"{corpus} fails the audit: mend its labels or splits, or drop the cells named above.")


@app.command(epilog="Example: scmmgpt convert scgpt scgpt-whole-human --output scgpt-hf")
def convert(
    kind: Annotated[str, typer.Argument(help="Where the checkpoint comes from, such as scgpt.")],
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The public checkpoint.")],
    output: Folder,
    json: AsJson = False,
) -> None:
    """Convert a public checkpoint to a model of this package."""
    from .training.conversion.checkpoints import convert_checkpoint

    say_outcome(convert_checkpoint(kind, source, output), output, json)


@app.command(epilog="Example: scmmgpt finetune my.h5ad --label cell_type --output my-model")
def finetune(
    cells: Cells,
    label: Annotated[str, typer.Option(help="The column of obs to learn.")],
    output: Folder,
    model: Model = None,
    lora: Annotated[bool, typer.Option(help="Train small adapters, or all weights.")] = True,
    shots: Annotated[int | None, typer.Option(min=1, help="Train on this many cells of each label.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="The column of obs that names donors or batches.")] = None,
    text: Annotated[str | None, typer.Option(help="The column of obs with descriptions to learn to write.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML file with the settings of the run.")] = None,
    json: AsJson = False,
) -> None:
    """Fine-tune a model on your own labels."""
    from .training.finetune import finetune as finetune_model

    figures = finetune_model(
        cells, label, model=model, output=output, lora=lora, shots=shots, batch_key=batch_key, text=text, recipe=recipe
    )
    say_outcome(figures, output, json)


@app.command(
    "eval",
    epilog="Examples: scmmgpt eval my.h5ad --label cell_type --output results | "
    "scmmgpt eval my.h5ad --label cell_type --output results --task description",
)
def evaluate(
    cells: Cells,
    label: Annotated[str, typer.Option(help="The column of obs with the true labels.")],
    output: Folder,
    model: Model = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="What to measure, such as description; repeat it. Default: the quick ones."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure a model on labelled cells, beside simple baselines."""
    from .training import evaluate as evaluation

    tasks = task or evaluation.QUICK_TASKS
    say_outcome(evaluation.evaluate(cells, label, model=model, output=output, tasks=tasks), output, json)


@app.command(
    epilog="Examples: scmmgpt push my-model my-name/my-model --dry-run | scmmgpt push my-model my-name/my-model | "
    "scmmgpt push --space static my-name/my-page"
)
def push(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR org/name", help="A model directory and its repository; of a Space the name is enough."
        ),
    ],
    space: Annotated[
        Literal["static"] | None,
        typer.Option(help="Publish the page for the browser, built before unless DIR is given."),
    ] = None,
    model: Model = None,
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch; created when it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Publish a model, with its card, to the Hugging Face Hub: in one commit, or not at all."""
    from .errors import UserError
    from .hub_cards.push import lines_of
    from .hub_cards.push import push as push_to_hub
    from .hub_cards.push_space import push_page

    if len(what) != 2 and not (space and len(what) == 1):
        raise UserError("Give a directory and org/name, or --space static and org/name.")
    if space:
        directory = what[0] if len(what) == 2 else None
        outcome = push_page(what[-1], directory, model=model, private=private, create_pr=create_pr, dry_run=dry_run)
    else:
        outcome = push_to_hub(what[0], what[1], private, revision, create_pr, dry_run)
    say(outcome, as_json=json, lines=lines_of(outcome))


@app.command(epilog="Example: scmmgpt serve --port 8000")
def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    device: Device = None,
) -> None:
    """Answer requests over HTTP."""
    from .hub_cards.serve import serve as serve_over_http

    serve_over_http(model=model, host=host, port=port, device=device)
