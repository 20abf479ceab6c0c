"""The verbs: AnnData (or a path) in, AnnData out.

Results follow scanpy's conventions: `.obs`, `.obsm`, and `.uns["scmmgpt"]` with settings, versions, hashes and the
account of the genes. The caller's object is not changed unless `inplace=True`; what is already there is not replaced
unless `overwrite=True`. With a path and an `output`, files of any size go through in flat memory, and a run that was
interrupted goes on where it stopped when it is called again.

Arguments that every verb takes
-------------------------------
model
    A directory, a Hub repository, what `load` returned, or None for the model that comes with the package.
output
    An .h5ad or .zarr to write; never the input.
key_added
    The name results are written under.
overwrite, inplace
    Replace results of the same name; write into the object that was given.
device, batch_size
    None chooses; a batch that does not fit into memory is halved.
progress
    Show a bar where a person watches.
engine, address, workers
    "local", or "ray": the cells of a file go through a Ray cluster, here or at `address`, with so many copies of the
    model (None: as many as the cluster has room for). The result is the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .embedding import EvidenceBatch, embed_batch
from .errors import UserError
from .input_warnings import cell_warnings
from .loading import LoadedModel, load
from .processing.calling_scmmgpt import CellEvidence
from .processing.encoding_scmmgpt import similarity_scale
from .processing.labels_scmmgpt import Labels, LabelSet
from .processing.prompting_scmmgpt import query_text
from .smoothing import smooth as smooth_embeds
from .storage import Additions, check_output
from .text_cache import remembered
from .verb import Options, Verb

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from .conversation import Conversation

__all__ = [
    "annotate",
    "chat",
    "describe",
    "embed",
    "evaluate",
    "finetune",
    "generate_cells",
    "load",
    "search",
]


def embed(adata: AnnData | str | os.PathLike, *, model: Any = None, **options: Any) -> AnnData:
    """Write one unit vector per cell, in the space that text shares, to `.obsm["X_scmmgpt"]`.

    Parameters
    ----------
    adata
        Cells, or the path of an h5ad or zarr.
    model
        A directory, a Hub repository, what `load` returned, or None for the embedded model.
    **options
        output, key_added, overwrite, inplace, device, batch_size, progress, engine, address, workers: see the module.
    """
    chosen = Options(**options)
    key = f"X_{chosen.key_added}"
    verb = Verb.begin("embed", adata, model, chosen, keys=Additions(obsm={key: None}))
    run = verb.start_run()
    embeds = run.compute("embed", embed_batch)["embeds"]
    record = verb.record(run.gene_account, dimension=embeds.shape[1])
    return verb.finish(Additions(obsm={key: embeds}, uns={chosen.key_added: record}))


def annotate(  # noqa: PLR0913 - one argument per choice that a person may want to make
    adata: AnnData | str | os.PathLike,
    labels: Labels | None = None,
    *,
    tissue: str | None = None,
    min_confidence: float | None = None,
    cluster_key: str | None = None,
    smooth: int = 0,
    rerank: int = 0,
    prior_share: float | None = None,
    report: str | os.PathLike | None = None,
    model: Any = None,
    **options: Any,
) -> AnnData:
    """Name the type of each cell, from any list of labels, with a calibrated confidence.

    Writes `scmmgpt_cell_type`, `scmmgpt_cell_type_ontology_term_id`, `scmmgpt_confidence` and
    `scmmgpt_second_choice` to `.obs`.

    Parameters
    ----------
    adata
        Cells, or the path of an h5ad or zarr.
    labels
        Names, {name: description}, a file with one name a line, or "cell-ontology"; None: the types that the model
        was trained on. Their text is embedded once, so any number of labels costs one matrix product.
    tissue
        Where the cells come from, as a hint in the labels' text.
    min_confidence
        Below it a call backs off to the nearest parent term that reaches it, then to "unknown", and what looks like
        no cell is unknown. 0 never does either. None takes the model's own.
    cluster_key
        A column of `.obs`: each cluster gets one call, by the mean of its cells.
    smooth
        Average over this many nearest cells first; 0 is off.
    rerank
        Let the matching head judge this many best labels of each cell; 0 is off.
    prior_share
        Share of a label's mean score over the data that is taken away from it; 0 judges each cell by itself. None:
        the model's own, and off under 100 cells or when one type dominates.
    report
        Write a self-contained HTML page there.
    model
        A directory, a Hub repository, what `load` returned, or None for the embedded model.
    **options
        output, key_added, overwrite, inplace, device, batch_size, progress, engine, address, workers: see the module.
    """
    chosen = Options(**options)
    key = chosen.key_added
    names = [f"{key}_cell_type", f"{key}_cell_type_ontology_term_id", f"{key}_confidence", f"{key}_second_choice"]
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise UserError(f"min_confidence must lie between 0 and 1, got {min_confidence}.")
    page = check_output(report, suffixes=(".html", ".htm")) if report is not None else None
    verb = Verb.begin("annotate", adata, model, chosen, keys=Additions(obs=dict.fromkeys(names)))
    clusters = _clusters(verb.cells.obs, cluster_key)
    label_set = _label_set(verb, labels)
    annotator, loaded = verb.loaded.annotator, verb.loaded
    least = annotator.calibration.min_confidence if min_confidence is None else min_confidence
    candidates = annotator.candidates(
        label_set,
        lambda texts: remembered(loaded.weights_hash, texts, lambda: loaded.embed_texts(texts)),
        tissue=tissue,
        with_profiles=prior_share != 0,
    )
    texts = label_set.texts(tissue) if rerank else []
    run = verb.start_run(texts=texts or None, rerank=rerank, types=candidates.profiles)
    cells = CellEvidence(**run.compute("annotate", EvidenceBatch(candidates, texts, rerank)))
    scorer = annotator.scorer(
        replace(cells, embeds=smooth_embeds(cells.embeds, smooth)) if smooth else cells,
        candidates,
        scale=similarity_scale(loaded.model),
        measured_genes=run.gene_tokenizer.measured_genes(run.source) if candidates.profiles else None,
        prior_share=prior_share,
    )
    calls = annotator.call(scorer, min_confidence=least, clusters=clusters)
    num_implausible = int(cells.is_implausible.sum())
    for warning in cell_warnings(num_implausible, len(cells), run.dispersion(), run.gene_account):
        verb.note(warning)

    record = verb.record(
        run.gene_account,
        labels=label_set.source,
        num_candidates=len(label_set),
        tissue=tissue,
        min_confidence=least,
        cluster_key=cluster_key,
        smooth=smooth,
        rerank=rerank,
        prior_share=scorer.prior_share,
        profile_weight=scorer.profile_weight,
        temperature=scorer.temperature,
        implausible_cells=num_implausible,
    )
    if page is not None:
        from .annotation_report import write_report

        write_report(page, verb, record, calls, cells.embeds, scorer, cluster_key)
    obs = {name: _column(values) for name, values in zip(names, calls.columns.values(), strict=True)}
    return verb.finish(Additions(obs=obs, uns={key: record}))


def _label_set(verb: Verb, labels: Labels | None) -> LabelSet:
    label_set = verb.loaded.annotator.label_set(labels)
    for note in label_set.notes:
        verb.note(note)
    return label_set


def _clusters(obs: pd.DataFrame, cluster_key: str | None) -> np.ndarray | None:
    if cluster_key is None:
        return None
    if cluster_key not in obs:
        raise UserError(f"obs has no column {cluster_key!r}; there are: {', '.join(map(str, obs.columns[:20]))}.")
    return obs[cluster_key].astype(str).factorize()[0]


def _column(values: np.ndarray) -> Any:
    import pandas as pd

    return pd.Categorical(values) if values.dtype == object else values


def search(
    cells: AnnData | str | os.PathLike,
    text: str,
    *,
    top: int | None = 20,
    where: Sequence[str] | None = None,
    model: Any = None,
    **options: Any,
) -> pd.DataFrame:
    """The cells that fit a text best: their scores and metadata, best first.

    Parameters
    ----------
    cells
        Cells, the path of an h5ad or zarr, or the folder of an index.
    text
        What to look for, in words.
    top
        How many cells; None gives every cell's score.
    where
        Conditions "COLUMN=VALUE" on `obs` that must all hold.
    model
        A directory, a Hub repository, what `load` returned, or None for the embedded model.
    **options
        device, batch_size, progress: see the module.
    """
    from .index import Index, best_rows, is_index, rows_where

    if not text.strip():
        raise UserError("The text to search for is empty.")
    if is_index(cells):
        index = Index.open(cells)
        loaded = load(model, device=options.get("device"))
        index.check_model(loaded.weights_hash)
        rows = rows_where(index.obs, where) if where else None
        number, score = index.nearest(_query(loaded, text), top or index.num_cells, rows, exact=top is None)
        return _hits(index.obs, number, score)
    verb = Verb.begin("search", cells, model, Options(**options), keys=Additions())
    embeds = verb.start_run().compute("search", embed_batch)["embeds"]
    rows = rows_where(verb.cells.obs, where) if where else None
    number, score = best_rows(embeds, _query(verb.loaded, text), top or len(embeds), rows)
    return _hits(verb.cells.obs, number, score)


def _query(loaded: LoadedModel, text: str) -> np.ndarray:
    return loaded.embed_texts([query_text(text)])[0]


def _hits(obs: pd.DataFrame, number: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    hits = obs.iloc[number].copy()
    hits.insert(0, "score", score.astype(float), allow_duplicates=True)
    return hits


def describe(
    adata: AnnData | str | os.PathLike,
    *,
    prompt: str | None = None,
    cluster_key: str | None = None,
    choices: Labels | None = None,
    max_new_tokens: int = 64,
    model: Any = None,
    **options: Any,
) -> AnnData:
    """Let the language model describe each cell, from the cell's own tokens, in `.obs["scmmgpt_description"]`.

    Genes that a description names are looked up in the cell; those that it does not express are marked
    "[not detected]".

    Parameters
    ----------
    adata
        Cells, or the path of an h5ad or zarr.
    prompt
        What to ask about each cell; None asks as in training.
    cluster_key
        A column of `.obs`: the cell nearest to a cluster's mean speaks for the cluster.
    choices
        Labels, as in `annotate`: the answer is held to one of them, and `.obsm["scmmgpt_choice_probability"]` gets
        the probability of each.
    max_new_tokens
        The longest description.
    model
        A directory, a Hub repository, what `load` returned, or None for the embedded model.
    **options
        output, key_added, overwrite, inplace, device, batch_size, progress: see the module.
    """
    from .description import describe_cells

    chosen = Options(**options)
    key = chosen.key_added
    text_key, probability_key = f"{key}_description", f"{key}_choice_probability"
    keys = Additions(obs={text_key: None}, obsm={} if choices is None else {probability_key: None})
    verb = Verb.begin("describe", adata, model, chosen, keys=keys, generative=True)
    clusters = _clusters(verb.cells.obs, cluster_key)
    candidates = None if choices is None else _label_set(verb, choices)
    result = describe_cells(verb, clusters, prompt=prompt, choices=candidates, max_new_tokens=max_new_tokens)
    additions = Additions(
        obs={text_key: np.array(result.texts, dtype=object)},
        uns={key: verb.record(result.gene_account, prompt=result.prompt, cluster_key=cluster_key)},
    )
    if candidates is not None:
        additions.obsm[probability_key] = result.probabilities
        additions.uns[key]["describe"]["choices"] = np.array(candidates.labels, dtype=object)
    return verb.finish(additions)


def generate_cells(
    text: str,
    num_cells: int = 100,
    *,
    seed: int = 0,
    guidance_scale: float | None = None,
    model: Any = None,
    **options: Any,
) -> AnnData:
    """Pseudo-cells with whole counts over the vocabulary's genes, made from a text.

    Parameters
    ----------
    text
        What cells to make: "a naive B cell from lymph node".
    num_cells
        How many.
    seed
        The same seed gives the same matrix.
    guidance_scale
        Above 1: further away from what no text would give. None: as the model was configured.
    model
        A directory, a Hub repository, what `load` returned, or None for the embedded model.
    **options
        output, device, batch_size, progress: see the module.
    """
    from .pseudo_cells import make_cells
    from .storage import save_cells

    chosen = Options(**options)
    if not text.strip():
        raise UserError("The text to make cells from is empty.")
    if num_cells < 1:
        raise UserError(f"num_cells must be at least 1, got {num_cells}.")
    output = check_output(chosen.output) if chosen.output is not None else None
    loaded = load(model, device=chosen.device, generative=True)
    adata = make_cells(loaded, text, num_cells, seed=seed, guidance_scale=guidance_scale, options=chosen)
    if output is not None:
        save_cells(adata, output)
    return adata


def chat(
    adata: AnnData | str | os.PathLike,
    *,
    cluster_key: str | None = None,
    select: Sequence[str] | None = None,
    model: Any = None,
    **options: Any,
) -> Conversation:
    """A conversation about cells or clusters: `.ask("what is this?")`, `.stream(...)`; earlier turns are kept.

    Parameters
    ----------
    adata
        Cells, or the path of an h5ad or zarr.
    cluster_key
        A column of `.obs`: talk about clusters instead of cells.
    select
        Names of cells (or clusters), at most 8; None takes the first ones.
    model
        A directory, a Hub repository, what `load` returned, or None for the embedded model.
    **options
        device, batch_size: see the module.
    """
    from .conversation import begin_conversation

    verb = Verb.begin("chat", adata, model, Options(**options), keys=Additions(), generative=True)
    return begin_conversation(verb, cluster_key, select)


def evaluate(
    adata: AnnData | str | os.PathLike, label: str, *, output: str | os.PathLike, model: Any = None, **settings: Any
) -> Any:
    """Measure a model on labelled cells beside simple baselines; see `scmmgpt.training.evaluate`."""
    from .training.evaluate import evaluate as evaluate_model

    return evaluate_model(adata, label=label, output=Path(output), model=model, **settings)


def finetune(
    adata: AnnData | str | os.PathLike, label: str, *, output: str | os.PathLike, model: Any = None, **settings: Any
) -> Any:
    """Teach a model the labels in a column of `obs`; see `scmmgpt.training.finetune`."""
    from . import auto  # noqa: F401 - the package's own classes, not the repository's copies
    from .training.finetune import finetune as finetune_model

    return finetune_model(adata, label=label, output=Path(output), model=model, **settings)


def embed_for_index(atlas: Any, folder: Path, *, model: Any, **options: Any):
    """Vectors, obs, model and workspace for `index.build_index`; the workspace lies beside the folder."""
    verb = Verb.begin("index", atlas, model, Options(**options), keys=Additions())
    verb.output = folder
    run = verb.start_run()
    return run.compute("embed", embed_batch)["embeds"], verb.cells.obs, verb.loaded, verb.workspace
