"""Cells generated from a text, as AnnData, with measures of their quality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .cells import CellsInMemory
from .device import Batches
from .embedding import CellRun, embed_batch
from .errors import UserError
from .loading import LoadedModel
from .processing.encoding_scmmgpt import tokenize_texts
from .processing.prompting_scmmgpt import generation_text, query_text
from .progress import Workspace, progress_bar
from .verb import UNTRAINED, Execution, storable, versions

if TYPE_CHECKING:
    from anndata import AnnData

CELLS_PER_BATCH = 64


def make_cells(
    loaded: LoadedModel,
    text: str,
    num_cells: int,
    *,
    seed: int,
    guidance_scale: float | None,
    execution: Execution,
    key_added: str,
) -> AnnData:
    """Draw cells, with a summary of how they look to the model in `.uns[key_added]`."""
    import warnings

    if loaded.reads_contexts:
        raise UserError("scmmgpt-chat was trained from cells to text only: generate with the embedded model.")
    is_trained = loaded.training_summary is not None
    if not is_trained:
        warnings.warn(UNTRAINED, UserWarning, stacklevel=4)  # of whoever called `generate_cells`
    adata = _draw(loaded, text, num_cells, seed, guidance_scale, execution)
    settings = {"text": text, "num_cells": num_cells, "seed": seed, "guidance_scale": guidance_scale}
    details = {
        "settings": settings,
        "quality": quality_of(loaded, adata, text, execution.batch_size),
        "model": loaded.describe(),
        "versions": versions(),
        "notes": [] if is_trained else [UNTRAINED],
    }
    adata.uns[key_added] = storable({"generate": details})
    return adata


def _draw(
    loaded: LoadedModel, text: str, num_cells: int, seed: int, guidance_scale: float | None, execution: Execution
) -> AnnData:
    import anndata
    import torch

    processor = loaded.processor
    inputs = tokenize_texts(loaded.model, processor, [generation_text(text)])
    blocks = []
    with progress_bar("generate", num_cells, shown=execution.progress) as advance:
        for output in loaded.model.stream_cells(
            inputs["input_ids"],
            inputs["attention_mask"],
            gene_ids=torch.from_numpy(processor.gene_tokenizer.gene_ids),
            num_cells=num_cells,
            seed=seed,
            guidance_scale=guidance_scale,
            batch_size=execution.batch_size or CELLS_PER_BATCH,
        ):
            blocks.append(processor.post_process_cells(output.counts, output.gene_ids, text))
            advance(len(output.counts))
    adata = anndata.concat(blocks, merge="same", index_unique="-")
    adata.obs_names = [f"generated_{number}" for number in range(num_cells)]
    return adata


def quality_of(loaded: LoadedModel, adata: AnnData, text: str, batch_size: int | None) -> dict[str, Any]:
    """Size, sparsity, variety, top genes, and similarity to the text in the embedding space."""
    counts = adata.X
    totals, num_genes = np.asarray(counts.sum(1)).ravel(), np.diff(counts.indptr)
    mean = np.asarray(counts.mean(0)).ravel()
    quality = {
        "median_counts": float(np.median(totals)),
        "median_genes": float(np.median(num_genes)),
        "share_of_zeros": round(1 - counts.nnz / np.prod(counts.shape), 4),
        "distinct_cells": len({row.tobytes() for row in _contents(counts)}),
        "top_genes": ", ".join(adata.var_names[np.argsort(-mean)[:10]]),
    }
    if totals.any():
        batches = Batches(loaded.device, batch_size)
        run = CellRun(loaded, CellsInMemory(adata), batches, Workspace(None), progress=False)
        embeds = run.compute("quality", embed_batch)["embeds"]
        quality["similarity_to_text"] = round(float((embeds @ loaded.embed_texts([query_text(text)])[0]).mean()), 4)
    return quality


def _contents(counts: sparse.csr_matrix) -> list[np.ndarray]:
    return [
        np.concatenate([counts.indices[start:stop], counts.data[start:stop]])
        for start, stop in zip(counts.indptr[:-1], counts.indptr[1:], strict=True)
    ]
