"""Pseudo-cells from a text, as AnnData with a summary of how good they look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .cells import CellsInMemory
from .device import Batches
from .embedding import CellRun, embed_batch, embed_texts, tokenize_texts
from .loading import LoadedModel
from .progress import Workspace, progress_bar
from .prompts import generation_text, query_text
from .verb import UNTRAINED, Options, storable, versions

if TYPE_CHECKING:
    from anndata import AnnData

CELLS_PER_BATCH = 64


def make_cells(
    loaded: LoadedModel, text: str, num_cells: int, *, seed: int, guidance_scale: float | None, options: Options
) -> AnnData:
    """Draw cells and look at them through the model's own eyes."""
    import warnings

    notes = [UNTRAINED] if loaded.training_summary is None else []
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    adata = _draw(loaded, text, num_cells, seed, guidance_scale, options)
    settings = {"text": text, "num_cells": num_cells, "seed": seed, "guidance_scale": guidance_scale}
    details = {
        "settings": settings,
        "quality": quality_of(loaded, adata, text, options),
        "model": loaded.describe(),
        "versions": versions(),
        "notes": notes,
    }
    adata.uns[options.key_added] = storable({"generate": details})
    return adata


def _draw(
    loaded: LoadedModel, text: str, num_cells: int, seed: int, guidance_scale: float | None, options: Options
) -> AnnData:
    import anndata
    import torch

    processor = loaded.processor
    gene_ids = torch.arange(loaded.first_gene_id, processor.feature_extractor.vocab_size)
    inputs = tokenize_texts(loaded, [generation_text(text)])
    blocks = []
    with progress_bar("generate", num_cells, shown=options.progress) as advance:
        for output in loaded.model.stream_cells(
            inputs["input_ids"],
            inputs["attention_mask"],
            gene_ids=gene_ids,
            num_cells=num_cells,
            seed=seed,
            guidance_scale=guidance_scale,
            batch_size=options.batch_size or CELLS_PER_BATCH,
        ):
            blocks.append(processor.post_process_cells(output.counts, output.gene_ids, text))
            advance(len(output.counts))
    adata = anndata.concat(blocks, merge="same", index_unique="-")
    adata.obs_names = [f"generated_{number}" for number in range(num_cells)]
    return adata


def quality_of(loaded: LoadedModel, adata: AnnData, text: str, options: Options) -> dict[str, Any]:
    """How the cells look: size, sparsity, spread, leading genes, and how near the model finds them to the text."""
    counts = adata.X
    totals, num_genes = np.asarray(counts.sum(1)).ravel(), np.diff(counts.indptr)
    mean = np.asarray(counts.mean(0)).ravel()
    quality = {
        "median_counts": float(np.median(totals)),
        "median_genes": float(np.median(num_genes)),
        "share_of_zeros": round(1 - counts.nnz / np.prod(counts.shape), 4),
        "distinct_cells": len({row.tobytes() for row in _signatures(counts)}),
        "top_genes": ", ".join(adata.var_names[np.argsort(-mean)[:10]]),
    }
    if totals.any():
        batches = Batches(loaded.device, options.batch_size)
        run = CellRun(loaded, CellsInMemory(adata), batches, Workspace(None), progress=False)
        embeds = run.compute("quality", embed_batch)["embeds"]
        quality["similarity_to_text"] = round(float((embeds @ embed_texts(loaded, [query_text(text)])[0]).mean()), 4)
    return quality


def _signatures(counts: sparse.csr_matrix) -> list[np.ndarray]:
    return [
        np.concatenate([counts.indices[start:stop], counts.data[start:stop]])
        for start, stop in zip(counts.indptr[:-1], counts.indptr[1:], strict=True)
    ]
