"""`niches`: the neighbourhoods of a tissue, named by the cell types that make them up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .arguments import shared_arguments
from .comparison import annotated_types, types_column
from .consensus import divided
from .embedding import embed_batch
from .errors import UserError
from .loading import ModelSource
from .processing.labels_scmmgpt import UNKNOWN
from .processing.result_keys_scmmgpt import ResultKeys
from .spatial import NUM_NEIGHBOURS, Space, read_space, surroundings
from .storage import Additions, check_output
from .verb import Destination, Execution, Verb

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

NO_NICHE = "no coordinates"
_LEAST_SHARE, _NAMED_TYPES = 0.1, 2


@shared_arguments
def niches(
    adata: AnnData | str | os.PathLike,
    *,
    cell_type_key: str | None = None,
    library_key: str | None = None,
    num_neighbours: int = NUM_NEIGHBOURS,
    num_niches: int = 8,
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
) -> AnnData:
    """Find the niches of a tissue: cells whose neighbours are of like types and look alike.

    Writes `.obsm["X_scmmgpt_niche"]` (own embedding, that of the neighbours, and the share of each type among them),
    `.obs["scmmgpt_niche"]`, and the composition of every niche to `.uns["scmmgpt"]["niches"]`.

    Parameters
    ----------
    adata
        AnnData, SpatialData or the path of a file of cells, with coordinates in `.obsm["spatial"]`.
    cell_type_key
        The column of `.obs` with cell types; None: `scmmgpt_cell_type` or `cell_type`, else they are annotated first.
    library_key
        The column of `.obs` with sections, which have no neighbours in each other; None: `library_id` where it is.
    num_neighbours
        How many nearest cells are the neighbours of a cell, where the file brings no `spatial_connectivities`.
    num_niches
        How many niches at most.
    report
        The path of an HTML page to write, with the map of the niches and their composition.
    """
    if num_niches < 1 or num_neighbours < 1:
        raise UserError(f"num_niches and num_neighbours must be at least 1, got {num_niches} and {num_neighbours}.")
    keys = ResultKeys(key_added)
    names = {"obs": keys.of("niche"), "obsm": f"{keys.embedding}_niche"}
    added = Additions(obs={names["obs"]: None}, obsm={names["obsm"]: None})
    page = check_output(report, suffixes=(".html", ".htm")) if report is not None else None
    destination = Destination(output, key_added, overwrite, inplace, summary_only)
    verb = Verb.begin("niches", adata, model, Execution(device, batch_size, progress), destination, keys=added)
    space = read_space(verb.cells, library_key, num_neighbours)
    for note in space.notes:
        verb.warn(note)
    types = annotated_types(verb, cell_type_key, adata)
    run = verb.start_run()
    embeds = np.asarray(run.compute("embed", embed_batch)["embeds"])
    type_names, composition = compositions(types, space)
    vectors = niche_vectors(embeds, composition, space)
    numbers = niche_numbers(vectors, embeds.shape[1], space, num_niches)
    niche_names, table = named_niches(numbers, composition, type_names)
    labels = np.array([niche_names[number] if number >= 0 else NO_NICHE for number in numbers], dtype=object)
    settings = {"num_neighbours": num_neighbours, "num_niches": len(niche_names), "is_spots": space.is_spots}
    record = verb.record(run.gene_account, library_key=library_key, cell_type_key=cell_type_key, **settings)
    record["niches"]["composition"] = table
    types_key = cell_type_key or types_column(verb.cells.obs) or keys.cell_type
    obs: dict[str, Any] = {names["obs"]: pd.Categorical(labels)}
    if types_key not in verb.cells.obs:  # annotated for this
        obs[types_key] = pd.Categorical(types)
    if page is not None:
        from .context_report import write_niche_page

        write_niche_page(page, verb, space, labels, types, table)
    return verb.finish(Additions(obs=obs, obsm={names["obsm"]: vectors}, uns={key_added: record}))


def compositions(types: np.ndarray, space: Space) -> tuple[list[str], np.ndarray]:
    """The types, and for each cell the share of its neighbours that is of each type."""
    names, numbers = np.unique(types, return_inverse=True)
    one_hot = np.eye(len(names), dtype=np.float32)[numbers]
    return [str(name) for name in names], np.asarray(space.graph @ one_hot, dtype=np.float32)


def niche_vectors(embeds: np.ndarray, composition: np.ndarray, space: Space) -> np.ndarray:
    """Own embedding, mean embedding of the neighbours, composition, side by side; NaN for cells without a place."""
    around = space.graph @ embeds
    vectors = np.hstack([embeds, around, composition]).astype(np.float32)
    vectors[~space.is_placed] = np.nan
    return vectors


def niche_numbers(vectors: np.ndarray, dimension: int, space: Space, most: int) -> np.ndarray:
    """The niche of each cell, by what surrounds it; -1 without a place. The order of the cells changes nothing."""
    placed = np.flatnonzero(space.is_placed)
    around = vectors[placed, dimension:].astype(np.float64)
    numbers = np.full(len(vectors), -1)
    groups = divided(around, most)
    for number, rows in enumerate(sorted(groups, key=lambda rows: (-len(rows), tuple(around[rows].mean(axis=0)[:3])))):
        numbers[placed[rows]] = number
    return numbers


def named_niches(
    numbers: np.ndarray, composition: np.ndarray, type_names: list[str]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """A name for each niche, by the types that are more frequent in it than elsewhere; and a table of all of them."""
    everywhere = composition[numbers >= 0].mean(axis=0)
    names, rows = [], []
    for number in range(numbers.max() + 1):
        share = composition[numbers == number].mean(axis=0)
        lift = share / np.maximum(everywhere, 1e-9)
        typical = [place for place in np.argsort(-lift, kind="stable") if share[place] >= _LEAST_SHARE]
        known = [place for place in typical if type_names[place] != UNKNOWN] or typical or [int(share.argmax())]
        names.append(f"{number + 1}: {' and '.join(type_names[place] for place in known[:_NAMED_TYPES])}")
        most = [place for place in np.argsort(-share, kind="stable") if share[place] >= 0.02][:6]
        shares = ", ".join(f"{type_names[place]} {share[place]:.0%} (x{lift[place]:.1f})" for place in most)
        rows.append((names[-1], int((numbers == number).sum()), shares))
    columns: list[Any] = list(zip(*rows, strict=True))
    return names, {
        "niche": np.array(columns[0], dtype=object),
        "cells": np.array(columns[1]),
        "neighbours": np.array(columns[2], dtype=object),
    }


def said_surroundings(
    adata: AnnData, cell: str, cell_type_key: str | None, library_key: str | None, key_added: str, number: int = 7
) -> dict[str, Any]:
    """Which cells surround one, with their types, and the same in a sentence; of the result of `niches`."""
    names = surroundings(adata, cell, number, library_key=library_key)
    column = cell_type_key or types_column(adata.obs) or ResultKeys(key_added).cell_type
    types = adata.obs[column].astype(str)
    counted = types[names[1:]].value_counts()
    around = ", ".join(f"{count} {name}" for name, count in counted.items())
    niche = adata.obs[ResultKeys(key_added).of("niche")].astype(str)[cell]
    text = f"{cell} ({types[cell]}) lies in niche {niche}; its {len(names) - 1} nearest cells are: {around or 'none'}."
    return {"around": [{"cell": name, "cell_type": types[name]} for name in names[1:]], "text": text}
