"""What would be read from a file, and what is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import chat_model
from .cell_variation import UNTOLD, variation
from .cells import open_cells
from .console import pairs
from .embedding import CELLS_PER_CHUNK
from .hashes import hash_of_files
from .hub_cards import EMBEDDED_MODEL
from .input_warnings import cell_warnings, input_warnings
from .loading import damage_refused, find_model
from .processing.input_account_scmmgpt import set_aside_lines
from .spatialdata_tables import table_of
from .verb import UNTRAINED, versions


def examine(cells: Any, *, model: Any = None) -> dict[str, Any]:
    """What the processor would decide about some cells: matrix, genes, species, with warnings."""
    from . import processing

    opened = open_cells(table_of(cells))
    directory = find_model(model)
    with damage_refused(directory):
        gene_tokenizer = processing.ScMMGPTProcessor.from_pretrained(directory).gene_tokenizer
    num_genes: list[int] = []
    num_implausible, found = 0, UNTOLD
    for features in gene_tokenizer.iter_chunks(opened.source, CELLS_PER_CHUNK, return_tensors="np"):
        is_gene = gene_tokenizer.is_gene(features["gene_ids"], features["gene_mask"])
        num_genes += is_gene.sum(axis=1).tolist()
        num_implausible += int(gene_tokenizer.looks_implausible(**features).sum())
        found = variation(gene_tokenizer, features) if found == UNTOLD else found
    account = dict(gene_tokenizer.account)
    account["median_genes_per_cell"] = sorted(num_genes)[len(num_genes) // 2]
    account["embeddings"] = sorted(opened.present["obsm"])
    account["warnings"] = [*input_warnings(account), *cell_warnings(num_implausible, len(num_genes), found, account)]
    return account


def examination_lines(account: dict[str, Any]) -> list[str]:
    """What was found in the cells, for people; features that were set aside in words."""
    plain = {name: value for name, value in account.items() if name != "set_aside"}
    return [line for name, value in plain.items() for line in _lines_of(name, value)] + set_aside_lines(account)


def _lines_of(name: str, value: Any) -> list[str]:
    """One line for a figure, one for each item of several; none for what is empty, or was counted and not found."""
    if isinstance(value, dict):
        return pairs({f"{name}, {item}": figure for item, figure in value.items() if figure})
    if isinstance(value, list):
        return [f"{name}: {item}" for item in value]
    return pairs({name: value})


def describe_installation(model: Any = None) -> dict[str, Any]:
    """Versions, devices, and what the model's directory says about it."""
    import torch

    from .modeling_scmmgpt import ScMMGPTConfig
    from .training.parameters import paper_config

    directory = find_model(model)
    with damage_refused(directory):
        config = ScMMGPTConfig.from_pretrained(directory)
    files = [path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    summary = getattr(config, "training_summary", None)
    return {
        **versions(),
        "devices": ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]),
        "threads": torch.get_num_threads(),
        "model": f"{EMBEDDED_MODEL.name} (embedded)" if directory == EMBEDDED_MODEL else str(directory),
        "parameters": _counts(config),
        "parameters_at_paper_size": _counts(paper_config()),
        "model_size_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "weights_sha256": hash_of_files(sorted(directory.glob("*.safetensors"))),
        "trained": summary is not None,
        "training": UNTRAINED if summary is None else _without_long_lists(summary),
        "offline": os.environ.get("HF_HUB_OFFLINE", "0") == "1",
        "directory": str(Path(directory)),
        **chat_model.about(),
    }


def _counts(config: Any) -> dict[str, str]:
    """Parameters of each part, counted without building one."""
    from .training.parameters import count_parameters, readable

    return {part: readable(count) for part, count in count_parameters(config).items() if count > 1}


def _without_long_lists(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary with the lengths of its lists in their place."""
    return {name: len(value) if isinstance(value, list) else value for name, value in summary.items()}
