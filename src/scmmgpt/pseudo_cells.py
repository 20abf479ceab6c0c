"""Cells generated from texts, as AnnData, with measures of their quality."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .cell_requests import CellRequest, SeenInTraining, Texts, concerns, read_requests
from .cells import CellsInMemory
from .device import Batches
from .embedding import CellRun, embed_batch
from .errors import UserError
from .generation_quality import Reference, own_quality, quality_beside, read_reference
from .loading import LoadedModel
from .processing.encoding_scmmgpt import tokenize_texts
from .processing.prompting_scmmgpt import generation_text, query_text
from .progress import Workspace, progress_bar
from .storage import check_input, read_cells
from .verb import UNTRAINED, Execution, check_key_added, storable, versions

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

CELLS_PER_BATCH = 64
# The deepest cells that were ever counted have a few million; far above, counts would leave int32.
MOST_COUNTS = 100_000_000
MOST_GUIDANCE = 100
HYPOTHESIS = "Cells between given cells and a text are a hypothesis of the model, not data."


@dataclass(frozen=True)
class Wish:
    """What is asked for beside the words; see `api.generate_cells`."""

    depth: float | None = None
    platform: str | None = None
    cell: AnnData | None = None
    strength: float = 0.5
    reference: AnnData | str | os.PathLike | None = None
    reference_key: str = "cell_type"
    seed: int = 0
    guidance_scale: float | None = None

    def __post_init__(self):
        if self.depth is not None and not 1 <= self.depth <= MOST_COUNTS:
            raise UserError(f"depth must lie between 1 and {MOST_COUNTS:,} counts a cell, got {self.depth}.")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= MOST_GUIDANCE:
            raise UserError(f"guidance_scale must lie between 0 and {MOST_GUIDANCE}, got {self.guidance_scale}.")
        if self.cell is not None and not hasattr(self.cell, "n_obs"):
            raise UserError(f"cell must be an AnnData of the cells to start from, got {type(self.cell).__name__}.")
        if self.cell is not None and not self.cell.n_obs:
            raise UserError("cell holds no cells to start from.")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength must lie between 0 and 1, got {self.strength}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What `uns` records."""
        given = {"depth": self.depth, "platform": self.platform, "seed": self.seed}
        given["guidance_scale"] = self.guidance_scale
        if self.cell is not None:
            given |= {"from_cells": self.cell.n_obs, "strength": self.strength}
        return given


def make_cells(
    loaded: LoadedModel,
    text: Texts,
    num_cells: int,
    proportions: Sequence[float] | None,
    wish: Wish,
    *,
    execution: Execution,
    key_added: str,
) -> AnnData:
    """Draw cells, with a summary of how they look in `.uns[key_added]`."""
    check_key_added(key_added)
    if loaded.reads_contexts:
        raise UserError("scmmgpt-chat was trained from cells to text only: generate with the embedded model.")
    requests = read_requests(text, num_cells, proportions, loaded.ontology)
    wish = replace(wish, platform=_platform(loaded, wish))
    reference = _reference(wish)
    notes = _notes(loaded, requests)
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=4)  # of whoever called `generate_cells`
    adata = _draw(loaded, requests, wish, execution)
    asked = {request.text: request.num_cells for request in requests}
    details = {
        "settings": {"texts": list(asked), "num_cells": list(asked.values()), **wish.settings},
        "quality": _quality(loaded, adata, requests, reference, execution, wish.seed),
        "model": loaded.describe(),
        "versions": versions(),
        "notes": notes if wish.cell is None else [*notes, HYPOTHESIS],
    }
    adata.uns[key_added] = storable({"generate": details})
    return adata


def _platform(loaded: LoadedModel, wish: Wish) -> str | None:
    """The platform as the model spells it."""
    decoder = loaded.config.cell_decoder_config
    if decoder.kind != "factors" and (wish.platform is not None or wish.cell is not None):
        raise UserError("This model generates cells from texts alone: platform= and cell= need one with factors.")
    if wish.platform is None:
        return None
    spelling = {name.lower(): name for name in decoder.platforms}
    if wish.platform.lower() not in spelling:
        raise UserError(f"platform must be one of {', '.join(decoder.platforms)}, got {wish.platform!r}.")
    return spelling[wish.platform.lower()]


def _reference(wish: Wish) -> Reference | None:
    if wish.reference is None:
        return None
    given = wish.reference
    cells = read_cells(check_input(given)) if isinstance(given, str | os.PathLike) else given
    return read_reference(cells, wish.reference_key)


def _notes(loaded: LoadedModel, requests: list[CellRequest]) -> list[str]:
    """What the reader of the cells must know: an untrained model, and whatever is extrapolated."""
    if loaded.training_summary is None:
        return [UNTRAINED]
    seen = SeenInTraining.of(loaded.training_summary)
    found = [] if seen is None else [note for one in requests for note in concerns(one, seen, loaded.ontology)]
    if any(request.num_cells == 0 for request in requests):
        found.append("Some texts have too small a share for a single cell of so few.")
    return list(dict.fromkeys(found))


def _draw(loaded: LoadedModel, requests: list[CellRequest], wish: Wish, execution: Execution) -> AnnData:
    import anndata
    import torch

    processor = loaded.processor
    total = sum(request.num_cells for request in requests)
    blocks = []
    with progress_bar("generate", total, shown=execution.progress) as advance:
        for request in requests:
            if not request.num_cells:
                continue
            inputs = tokenize_texts(loaded.model, processor, [generation_text(request.words)])
            for output in loaded.model.stream_cells(
                inputs["input_ids"],
                inputs["attention_mask"],
                gene_ids=torch.from_numpy(processor.gene_tokenizer.gene_ids),
                num_cells=request.num_cells,
                seed=wish.seed,
                guidance_scale=wish.guidance_scale,
                batch_size=execution.batch_size or CELLS_PER_BATCH,
                depth=wish.depth,
                platform=wish.platform,
                states=_states(loaded, inputs, wish),
            ):
                blocks.append(processor.post_process_cells(output.counts, output.gene_ids, request.text))
                advance(len(output.counts))
    adata = anndata.concat(blocks, merge="same", index_unique="-")
    adata.obs_names = [f"generated_{number}" for number in range(total)]
    return adata


def _states(loaded: LoadedModel, inputs: Any, wish: Wish) -> torch.Tensor | None:
    """The state between given cells and a text; None where there are no cells."""
    import torch

    if wish.cell is None:
        return None
    values, gene_ids = loaded.processor.gene_tokenizer.linear_values(wish.cell)
    counts = torch.from_numpy(values.toarray().mean(0, keepdims=True)).to(loaded.device)
    of_cell = loaded.model.cell_states(counts, torch.from_numpy(gene_ids).to(loaded.device), wish.platform)
    of_text = loaded.model.text_states(inputs["input_ids"], inputs["attention_mask"], wish.guidance_scale or 1.0)
    return torch.lerp(of_cell, of_text, wish.strength)


def _quality(
    loaded: LoadedModel,
    adata: AnnData,
    requests: list[CellRequest],
    reference: Reference | None,
    execution: Execution,
    seed: int,
) -> dict[str, Any]:
    """Size, sparsity, variety, similarity to the texts in the embedding space; and beside real cells, if some are given."""
    quality = own_quality(adata.X, adata.var_names)
    if adata.X.nnz:
        batches = Batches(loaded.device, execution.batch_size)
        run = CellRun(loaded, CellsInMemory(adata), batches, Workspace(None), progress=False)
        embeds = run.compute("quality", embed_batch)["embeds"]
        texts = loaded.embed_texts([query_text(request.words) for request in requests])
        own = np.repeat(texts, [request.num_cells for request in requests], axis=0)
        quality["similarity_to_text"] = round(float((embeds * own).sum(1).mean()), 4)
    if reference is not None:
        asked = [request.term for request in requests for _ in range(request.num_cells)]
        beside = quality_beside(reference, adata.X, adata.var["feature_name"], asked, loaded.ontology, seed)
        quality["beside_reference"] = beside
    return quality
