"""Atlases and an ontology in, a tokenised, split, audited corpus out.

A build can be stopped at any moment, even killed, and run again: finished shards are kept, the rest is made, and the
result is the same to the byte. A second run over the same sources with the same recipe does nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME

from .finishing import finish_corpus
from .reading import MANIFEST, TABLES_FOLDER, Corpus
from .recipe import CorpusRecipe
from .shard_building import (
    BuildJob,
    SourcePlan,
    build_shard,
    leave_with_parent,
    plan_source,
    settings_hash,
)
from .shards import (
    RECEIPT_FOLDER,
    CorpusError,
    Receipt,
    Shard,
    clear_when_disk_is_full,
    finished_receipt,
    plan_shards,
    remove_partial_files,
    remove_shard,
    write_json,
)
from .sources import CellSource, SourceError, find_sources

_PLAN_FOLDER = "plans"
_SETTINGS_FILE = "settings.json"


def build_corpus(
    sources: list[str],
    output: str | Path,
    *,
    recipe: CorpusRecipe | str | Path | None = None,
    processor: str | Path | ScMMGPTGeneTokenizer | None = None,
    num_processes: int = 1,
    on_error: Literal["stop", "skip"] | None = None,
    say: Callable[[str], None] = print,
) -> Corpus:
    """Build a corpus, or finish one that was interrupted.

    Parameters
    ----------
    sources
        h5ad or zarr files, folders of them, SOMA experiments, or `census:VERSION:ORGANISM`.
    output
        Folder of the corpus. Holding a corpus made with other settings, it is refused.
    recipe
        A recipe or its yaml file.
    processor
        A gene tokenizer, or a folder or repository that has one; the embedded model's by default.
    num_processes
        Processes that build shards side by side.
    on_error
        "stop" or "skip" at a source that cannot be used; takes the recipe's place.
    say
        Takes lines of progress.
    """
    recipe = recipe if isinstance(recipe, CorpusRecipe) else CorpusRecipe.read(recipe) if recipe else CorpusRecipe()
    if on_error is not None:
        recipe = replace(recipe, on_error=on_error)
    found = find_sources([str(place) for place in sources])
    output = Path(output)
    with clear_when_disk_is_full(output):
        job = _prepare(output, recipe, processor)
        if _is_complete(job, found):
            say(f"{output} is complete and up to date: nothing to do.")
            return Corpus.open(output)
        remove_partial_files(output)
        (output / MANIFEST).unlink(missing_ok=True)
        plans, skipped = _plan_sources(job, found, say)
        receipts = _build_shards(job, plans, skipped, num_processes, say)
        if not any(receipt.num_rows for _, receipt in receipts):
            raise CorpusError(
                f"No cell of {', '.join(map(str, sources))} could be used: {_reasons(receipts, skipped)}."
            )
        finish_corpus(job, [plan for plan in plans if plan.name not in skipped], receipts, skipped)
    return Corpus.open(output)


def _prepare(output: Path, recipe: CorpusRecipe, processor) -> BuildJob:
    """Put gene tokenizer and ontology into the corpus; refuse a folder that was started with other settings."""
    if output.is_file():
        raise CorpusError(f"{output} is a file; --output names a folder.")
    staged = output / f"{TABLES_FOLDER}.{os.getpid()}.partial"
    try:
        _gene_tokenizer(processor, recipe.tokens).save_pretrained(staged)
        for code in staged.glob("*.py"):  # the tables of a corpus are data; code comes with the package
            code.unlink()
        shutil.copyfile(EMBEDDED_MODEL / FILE_NAME, staged / FILE_NAME)
        settings = {"hash": settings_hash(recipe, staged), "shards": recipe.shard_settings()}
        _refuse_other_settings(output / _SETTINGS_FILE, settings)
        shutil.rmtree(output / TABLES_FOLDER, ignore_errors=True)
        staged.rename(output / TABLES_FOLDER)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    write_json(output / _SETTINGS_FILE, settings)
    return BuildJob(output, recipe)


def _gene_tokenizer(processor, settings: dict) -> ScMMGPTGeneTokenizer:
    """The tokenizer that was named, with the recipe's settings."""
    if not isinstance(processor, ScMMGPTGeneTokenizer):
        try:
            processor = ScMMGPTGeneTokenizer.from_pretrained(processor or EMBEDDED_MODEL)
        except OSError as error:
            raise CorpusError(
                f"{str(processor)!r} is no folder or Hub repository with a gene tokenizer: --processor names a model of "
                "scmmgpt, or what `scmmgpt convert` made."
            ) from error
    return processor.with_settings(**settings)


def _refuse_other_settings(path: Path, settings: dict) -> None:
    if not path.is_file():
        return
    old = json.loads(path.read_text())
    if old["hash"] == settings["hash"]:
        return
    new_shards, old_shards = (json.loads(json.dumps(part["shards"])) for part in (settings, old))
    differing = [name for name, value in new_shards.items() if old_shards.get(name) != value]
    what = ", ".join(differing) or "gene tokenizer or ontology"
    raise CorpusError(
        f"{path.parent} was started with other settings ({what}): choose another --output, or delete it."
    )


def _is_complete(job: BuildJob, found: list[CellSource]) -> bool:
    """Whether the corpus holds exactly these sources, unchanged, and every file of it is there."""
    if not (job.corpus / MANIFEST).is_file():
        return False
    manifest = json.loads((job.corpus / MANIFEST).read_text())
    names = {source["name"] for source in manifest["sources"]} | set(manifest["skipped"])
    if names != {source.name for source in found} or manifest["recipe"] != json.loads(json.dumps(asdict(job.recipe))):
        return False
    if any(_known_plan(job, source) is None for source in found if source.name not in manifest["skipped"]):
        return False
    try:
        Corpus.open(job.corpus)
    except CorpusError:
        return False
    return not manifest["skipped"]


def _plan_sources(job: BuildJob, found: list[CellSource], say) -> tuple[list[SourcePlan], dict[str, str]]:
    """Look at every source before the first shard is built; sources that cannot be used stop the build or are skipped."""
    stray = {path.stem.rpartition("-")[0] for path in (job.corpus / RECEIPT_FOLDER).glob("*.json")}
    stray -= {source.name for source in found}
    if stray:
        names = ", ".join(sorted(stray))
        raise CorpusError(
            f"{job.corpus} holds shards of {names} as well: name those sources too, or another --output."
        )
    plans, skipped = [], {}
    for source in found:
        try:
            plans.append(_known_plan(job, source) or _new_plan(job, source))
        except (OSError, KeyError, ValueError) as error:
            skipped[source.name] = _refusal(job, source.name, f"{source.uri} cannot be used: {error}", error, say)
    return plans, skipped


def _known_plan(job: BuildJob, source: CellSource) -> SourcePlan | None:
    """What an earlier run found out about a source that has not changed since."""
    path = job.corpus / _PLAN_FOLDER / f"{source.name}.json"
    if not path.is_file():
        return None
    plan = SourcePlan(**json.loads(path.read_text()))
    return plan if plan.stamp == source.size_stamp() and plan.uri == source.uri else None


def _new_plan(job: BuildJob, source: CellSource) -> SourcePlan:
    plan = plan_source(job, source, source.size_stamp(), source.content_hash())
    write_json(job.corpus / _PLAN_FOLDER / f"{source.name}.json", asdict(plan))
    return plan


def _build_shards(
    job: BuildJob, plans: list[SourcePlan], skipped: dict[str, str], num_processes: int, say
) -> list[tuple[Shard, Receipt]]:
    """Build what is missing. A source that turns out unreadable halfway leaves no shard behind."""
    tasks = [
        (plan, shard) for plan in plans for shard in plan_shards(plan.name, plan.num_cells, job.recipe.shard_rows)
    ]
    _remove_surplus_shards(job, {shard.name for _, shard in tasks})
    missing = [task for task in tasks if finished_receipt(job.corpus, task[1], job.made_from(task[0])) is None]
    if len(missing) < len(tasks):
        say(f"{len(tasks) - len(missing)} of {len(tasks)} shards are there already.")
    for number, (plan, shard, outcome) in enumerate(_outcomes(job, missing, num_processes), start=1):
        if isinstance(outcome, SourceError):
            if plan.name not in skipped:
                skipped[plan.name] = _refusal(job, plan.name, str(outcome), outcome, say)
        else:
            say(f"[{number}/{len(missing)}] {shard.name}: {outcome.num_rows:,} cells")
    for plan, shard in tasks:
        if plan.name in skipped:
            remove_shard(job.corpus, shard)
    return [(shard, build_shard(job, plan, shard)) for plan, shard in tasks if plan.name not in skipped]


def _outcomes(
    job: BuildJob, tasks: list, num_processes: int
) -> Iterator[tuple[SourcePlan, Shard, Receipt | SourceError]]:
    """The receipt of every shard, or why its source cannot be read."""
    if num_processes == 1 or len(tasks) < 2:
        for plan, shard in tasks:
            yield plan, shard, _try_shard(job, plan, shard)
        return
    # Spawned, not forked: neither TileDB nor numba's threads survive a fork.
    with ProcessPoolExecutor(
        num_processes, mp_context=get_context("spawn"), initializer=leave_with_parent, initargs=(os.getpid(),)
    ) as pool:
        futures = {pool.submit(_try_shard, job, plan, shard): (plan, shard) for plan, shard in tasks}
        try:
            for future in as_completed(futures):
                yield *futures[future], future.result()
        except BrokenProcessPool as error:
            message = (
                "A worker process died, perhaps for want of memory: run again with fewer processes or chunk_rows."
            )
            raise CorpusError(message) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _try_shard(job: BuildJob, plan: SourcePlan, shard: Shard) -> Receipt | SourceError:
    try:
        return build_shard(job, plan, shard)
    except SourceError as error:
        return error


def _refusal(job: BuildJob, name: str, message: str, error: Exception, say) -> str:
    """The reason for skipping a source, or the end of the build."""
    if job.recipe.on_error == "stop":
        raise SourceError(
            f"{message} (leave this source out, fix it, or skip unusable sources with --on-error skip)"
        ) from error
    say(f"skipped {name}: {message}")
    return message


def _remove_surplus_shards(job: BuildJob, wanted: set[str]) -> None:
    """Shards of a source that has become shorter since."""
    for path in (job.corpus / RECEIPT_FOLDER).glob("*.json"):
        if path.stem not in wanted:
            source, _, number = path.stem.rpartition("-")
            remove_shard(job.corpus, Shard(source, int(number), 0, 0))


def _reasons(receipts: list[tuple[Shard, Receipt]], skipped: dict[str, str]) -> str:
    left_out = sum((Counter(receipt.left_out) for _, receipt in receipts), Counter())
    reasons = [f"{number:,} left out ({why})" for why, number in sorted(left_out.items())]
    return "; ".join([*reasons, *skipped.values()]) or "the sources are empty"
