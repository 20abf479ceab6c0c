"""The Python functions: AnnData (or a path) in, AnnData out.

Results are written as scanpy does, to `.obs` and `.obsm`; `.uns["scmmgpt"]` keeps settings, versions, warnings and
which genes were read. The AnnData that was given is not changed unless `inplace=True`, and results that are there are
not replaced unless `overwrite=True`. With a path and an `output`, memory use does not grow with the file, and a call
that was interrupted resumes when it is repeated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .arguments import shared_arguments
from .cells import check_column, column_of
from .embedding import embed_batch
from .errors import UserError
from .loading import LoadedModel, ModelSource, load
from .processing.asked_cells_scmmgpt import searched_words
from .processing.back_off_scmmgpt import check_min_confidence
from .processing.labels_scmmgpt import Labels
from .processing.result_keys_scmmgpt import ResultKeys
from .protein_evidence import StudyProteins, with_proteins
from .scoring import Asked, call_study, label_set_of
from .spatial import COORDINATES, scores_with_neighbours, spatial_reader, split_query
from .storage import Additions, check_input, check_not_input, check_output
from .verb import Destination, Execution, Verb, storable

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData

    from .conversation import Conversation

__all__ = [
    "annotate",
    "chat",
    "describe",
    "embed",
    "generate_cells",
    "load",
    "search",
]


@shared_arguments
def embed(
    adata: AnnData | str | os.PathLike,
    *,
    model: ModelSource = None,
    output: str | os.PathLike | None = None,
    key_added: str = "scmmgpt",
    overwrite: bool = False,
    inplace: bool = False,
    summary_only: bool = False,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
) -> AnnData:
    """Write an embedding of each cell, comparable with embeddings of text, to `.obsm["X_scmmgpt"]`.

    Embeddings have unit length, so that a dot product is a cosine similarity.

    Parameters
    ----------
    adata
        AnnData or MuData, or the path of a file of cells.
    """
    key = ResultKeys(key_added).embedding
    destination = Destination(output, key_added, overwrite, inplace, summary_only)
    execution = Execution(device, batch_size, progress, engine, address, workers)
    verb = Verb.begin("embed", adata, model, execution, destination, keys=Additions(obsm={key: None}))
    run = verb.start_run()
    embeds = run.compute("embed", embed_batch)["embeds"]
    record = verb.record(run.gene_account, dimension=embeds.shape[1])
    return verb.finish(Additions(obsm={key: embeds}, uns={key_added: record}))


@shared_arguments
def annotate(
    adata: AnnData | str | os.PathLike,
    labels: Labels | None = None,
    *,
    tissue: str | None = None,
    min_confidence: float | None = None,
    cluster_key: str | None = None,
    smooth: int = 0,
    rerank: int = 0,
    prior_share: float | None = None,
    consensus: bool | None = None,
    proteins: bool = True,
    spatial: bool = False,
    library_key: str | None = None,
    report: str | os.PathLike | None = None,
    model: ModelSource = None,
    output: str | os.PathLike | None = None,
    key_added: str = "scmmgpt",
    overwrite: bool = False,
    inplace: bool = False,
    summary_only: bool = False,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
) -> AnnData:
    """Annotate each cell with one of the candidate labels and a calibrated confidence.

    Writes `scmmgpt_cell_type`, `scmmgpt_cell_type_ontology_term_id`, `scmmgpt_confidence`, `scmmgpt_second_choice` and
    `scmmgpt_candidates`, the labels that hold the truth for nine of ten cells of a new study, to `.obs`.

    Parameters
    ----------
    adata
        AnnData or MuData, or the path of a file of cells.
    labels
        Names, {name: description}, a file with one name a line, or "cell-ontology" for all of its types. None: the
        types that the model was trained on, and where the study decides together all types that it has a profile of.
    tissue
        The tissue of the cells, added to the text of every label.
    min_confidence
        A cell type below it is replaced by its nearest parent term that reaches it, else by "unknown"; a cell that
        is empty or looks like noise is "unknown" too. 0 switches both off. None: the model's own threshold.
    cluster_key
        A column of `.obs` with clusters: each gets one cell type, from the mean of its cells.
    smooth
        Average each embedding over so many nearest neighbours first; 0 switches it off.
    rerank
        Score so many best labels of each cell again with the matching head; 0 switches it off.
    prior_share
        Share of a label's mean score over all cells to subtract from its scores, against labels that fit every
        cell; 0 scores each cell by itself. None: the model's own, and 0 under 100 cells or when one type dominates.
    consensus
        Decide over the study, from 100 cells on: neighbours speak for one another, and only types that the study
        holds are called. None: unless the labels are a list of one's own, which says what the study holds. False,
        `cluster_key`, `rerank` and `prior_share=0` call each cell without its neighbours; only `prior_share=0` makes it
        independent of the other cells.
    proteins
        Let antibodies that were counted in the same cells (CITE-seq) speak too; `scmmgpt_protein_conflict` in `.obs`
        says how much probability they moved. False: the RNA alone.
    spatial
        Let neighbours in space speak for one another, those that look alike first; it needs coordinates in
        `.obsm["spatial"]`. Off where it was not measured to help: where neighbours in space are hardly more alike than
        any two cells, and where the study decides together (`consensus`).
    library_key
        A column of `.obs` with sections, for `spatial`: cells of different ones are no neighbours.
    report
        The path of an HTML report to write, in one file.
    """
    keys = ResultKeys(key_added)
    names = [keys.cell_type, keys.term_id, keys.confidence, keys.second_choice]
    check_min_confidence(min_confidence)
    page = check_output(report, suffixes=(".html", ".htm")) if report is not None else None
    destination = Destination(output, key_added, overwrite, inplace, summary_only)
    execution = Execution(device, batch_size, progress, engine, address, workers)
    check_column(adata, library_key)
    verb = Verb.begin(
        "annotate", adata, model, execution, destination, keys=Additions(obs=dict.fromkeys([*names, keys.candidates]))
    )
    study = call_study(
        verb,
        labels,
        Asked(
            tissue,
            min_confidence,
            _clusters(verb.cells.obs, cluster_key),
            smooth,
            rerank,
            prior_share,
            consensus,
            StudyProteins.of(verb, one_by_one=prior_share == 0) if proteins else None,
            spatial_reader(verb, library_key) if spatial else None,
        ),
    )
    asked = {"tissue": tissue, "cluster_key": cluster_key, "smooth": smooth, "rerank": rerank}
    asked |= {"spatial": spatial, "library_key": library_key}
    for note in study.notes:
        verb.warn(note)
    record = verb.record(study.run.gene_account, **asked, **study.settings)
    record["annotate"]["evidence"] = study.evidence
    conflict, told = study.protein_results(verb)
    if not conflict and keys.protein_conflict in verb.cells.obs:  # of an earlier call: now they moved nothing
        conflict = {"protein_conflict": np.zeros(verb.cells.num_cells, np.float32)}
    if told:
        record["annotate"]["proteins"] = storable(told)
    if page is not None:
        from .annotation_report import write_report

        write_report(page, verb, record, study, cluster_key)
    obs = {name: _column(values) for name, values in zip(names, study.calls.columns.values(), strict=True)}
    obs |= {keys.candidates: _column(study.sets), **{keys.of(name): values for name, values in conflict.items()}}
    return verb.finish(Additions(obs=obs, uns={key_added: record}))


def _clusters(obs: pd.DataFrame, cluster_key: str | None) -> np.ndarray | None:
    return None if cluster_key is None else column_of(obs, cluster_key).factorize()[0]


def _column(values: np.ndarray) -> Any:
    import pandas as pd

    return pd.Categorical(values) if values.dtype == object else values


@shared_arguments
def search(
    cells: AnnData | str | os.PathLike,
    text: str,
    *,
    top: int | None = 20,
    where: Sequence[str] | None = None,
    model: ModelSource = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The cells that fit a text best, with their scores and `obs`, best first.

    Parameters
    ----------
    cells
        AnnData or MuData, the path of a file of cells, or the folder of an index.
    text
        What to look for, in words; of cells with coordinates also "T cells beside tumour cells".
    top
        How many cells; None returns all.
    where
        Conditions "COLUMN=VALUE" on `obs`, all of which a cell must meet.
    """
    from .index import Index, best_rows, hits, is_index, rows_where

    if not text.strip():
        raise UserError("The text to search for is empty.")
    (own, beside), space = split_query(text), None
    if is_index(cells):
        index = Index.open(cells)
        loaded, obs = load(model, device=device), index.obs
        index.check_model(loaded.weights_hash)
        rows = rows_where(obs, where) if where else None
        if beside is None or (space := index.space()) is None:
            number, score = index.nearest(_query(loaded, text), top or index.num_cells, rows, exact=top is None)
            return hits(obs, number, score)
        embeds = index.vectors
    else:
        verb = Verb.begin("search", cells, model, Execution(device, batch_size, progress))
        loaded, obs = verb.loaded, verb.cells.obs
        embeds = verb.start_run().compute("search", embed_batch)["embeds"]
        rows = rows_where(obs, where) if where else None
        if beside is not None and COORDINATES in verb.cells.present["obsm"]:
            space = spatial_reader(verb, None)
        elif beside is not None:
            verb.warn(f"There are no coordinates (obsm[{COORDINATES!r}]): {text!r} is looked for as a whole.")
    if beside is None or space is None:
        number, score = best_rows(embeds, _query(loaded, text), top or len(embeds), rows)
        return hits(obs, number, score)
    found = scores_with_neighbours(np.asarray(embeds), _query(loaded, own), _query(loaded, beside), space)
    number, score = best_rows(found[:, None], np.ones(1), top or len(embeds), rows)
    return hits(obs, number, score)


def _query(loaded: LoadedModel, text: str) -> np.ndarray:
    return loaded.embed_texts([searched_words(text, loaded.ontology)])[0]


@shared_arguments
def describe(
    adata: AnnData | str | os.PathLike,
    *,
    prompt: str | None = None,
    cluster_key: str | None = None,
    choices: Labels | None = None,
    max_new_tokens: int = 64,
    checked: bool = True,
    model: ModelSource = None,
    output: str | os.PathLike | None = None,
    key_added: str = "scmmgpt",
    overwrite: bool = False,
    inplace: bool = False,
    summary_only: bool = False,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> AnnData:
    """Write a description of each cell by the language model to `.obs["scmmgpt_description"]`.

    scmmgpt-chat describes where it can be had: each claim is checked against the cells beside their study, what they
    contradict is withheld, and `.uns["scmmgpt"]["describe"]["claims"]` lists all. Of more than 50 cells it describes the
    types. The embedded model's small decoder marks genes that a cell does not express "[not detected]". Where antibodies
    were counted in the same cells, a sentence names the proteins that they found.

    Parameters
    ----------
    adata
        AnnData or MuData, or the path of a file of cells.
    prompt
        The question about each cell; None: the description prompt of training.
    cluster_key
        A column of `.obs` with clusters: the cell nearest to a cluster's mean is described, for all of its cells.
    choices
        Labels, as in `annotate`: the description is the most probable of them, and
        `.obsm["scmmgpt_choice_probability"]` holds the probability of each.
    max_new_tokens
        The greatest length of a description.
    checked
        Withhold what the cells contradict; False gives the raw text.
    """
    from .chat_model import language_source
    from .description import describe_cells

    keys = ResultKeys(key_added)
    added = Additions(obs={keys.description: None}, obsm={} if choices is None else {keys.choice_probability: None})
    destination = Destination(output, key_added, overwrite, inplace, summary_only)
    execution = Execution(device, batch_size, progress)
    check_column(adata, cluster_key)
    model = language_source(model)
    verb = Verb.begin("describe", adata, model, execution, destination, keys=added, generative=True)
    clusters = _clusters(verb.cells.obs, cluster_key)
    candidates = None if choices is None else label_set_of(verb, choices)
    asked: dict[str, Any] = {"prompt": prompt, "choices": candidates, "max_new_tokens": max_new_tokens}
    result = describe_cells(verb, clusters, checked=checked, **asked)
    texts = with_proteins(verb, result.texts, clusters) if candidates is None else result.texts
    additions = Additions(
        obs={keys.description: np.array(texts, dtype=object)},
        uns={key_added: verb.record(result.gene_account, prompt=result.prompt, cluster_key=cluster_key)},
    )
    if result.claims is not None:
        additions.uns[key_added]["describe"]["claims"] = result.claims
    if candidates is not None:
        additions.obsm[keys.choice_probability] = result.probabilities
        additions.uns[key_added]["describe"]["choices"] = np.array(candidates.labels, dtype=object)
    return verb.finish(additions)


@shared_arguments
def generate_cells(
    text: str | Sequence[str] | Mapping[str, float],
    num_cells: int = 100,
    *,
    proportions: Sequence[float] | None = None,
    depth: float | None = None,
    platform: str | None = None,
    cell: AnnData | None = None,
    strength: float = 0.5,
    reference: AnnData | str | os.PathLike | None = None,
    reference_key: str = "cell_type",
    seed: int = 0,
    guidance_scale: float | None = None,
    model: ModelSource = None,
    output: str | os.PathLike | None = None,
    key_added: str = "scmmgpt",
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> AnnData:
    """Generate cells from texts: integer counts of every gene of the vocabulary.

    Parameters
    ----------
    text
        The cells to generate, such as "a naive B cell from lymph node"; an id of the Cell Ontology; several of these in a
        list; with their shares, {"B cell": .6, "monocyte": .4} or "60 % B cell, 40 % monocyte".
    num_cells
        How many in all.
    proportions
        The share of each text of a list; they add up to 1 or 100. None: alike.
    depth
        Median total count of a cell. None: as in the cells that were counted on the platform.
    platform
        One of the model's: "10x" (which None means), "Smart-seq2", "inDrop", "Microwell-seq", "STRT", "sci-RNA-seq".
    cell
        Real cells of one kind to start from, in the place of nothing. What comes out is a hypothesis, not data.
    strength
        How far to go from the mean of `cell` towards the text: 0 stays, 1 arrives.
    reference
        Real cells, or their file, that the quality summary holds the new ones against.
    reference_key
        Their column of types.
    seed
        The same seed gives the same matrix, whatever `batch_size`.
    guidance_scale
        Above 1: cells follow the text more closely, and differ as much from one another. None: as in the model's config.
    """
    from .pseudo_cells import Wish, make_cells
    from .storage import save_cells

    target = check_output(output) if output is not None else None
    if target is not None and isinstance(reference, str | os.PathLike):
        check_not_input(target, check_input(reference))
    wish = Wish(depth, platform, cell, strength, reference, reference_key, seed, guidance_scale)
    loaded = load(model, device=device, generative=True)
    execution = Execution(device, batch_size, progress)
    adata = make_cells(loaded, text, num_cells, proportions, wish, execution=execution, key_added=key_added)
    if target is not None:
        save_cells(adata, target)
    return adata


@shared_arguments
def chat(
    adata: AnnData | str | os.PathLike,
    *,
    cluster_key: str | None = None,
    select: Sequence[str] | None = None,
    checked: bool = True,
    model: ModelSource = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
) -> Conversation:
    """A conversation about cells or clusters, with `.ask("what is this?")` and `.stream(...)`; turns are kept.

    Parameters
    ----------
    adata
        AnnData or MuData, or the path of a file of cells.
    cluster_key
        A column of `.obs` with clusters to talk about instead of cells.
    select
        Names of cells (or clusters), at most 8; None takes the first ones.
    checked
        Withhold what the cells contradict, where scmmgpt-chat speaks; False gives the raw text.
    """
    from .chat_model import language_source
    from .conversation import begin_conversation, check_chosen

    check_chosen(adata, cluster_key, select)
    verb = Verb.begin("chat", adata, language_source(model), Execution(device, batch_size), generative=True)
    return begin_conversation(verb, cluster_key, select, checked=checked)
