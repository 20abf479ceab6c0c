"""The towers of a model as ONNX files, for runtimes without torch: browsers, other languages, small servers.

The folder holds all that such a runtime needs, and a manifest that says what each file is. Weights are stored in 16 bits
and computed with in 32. Nothing is written unless onnxruntime gives what `embed` gives.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from .cells import open_cells
from .device import Batches
from .embedding import Arrays, embed_batch, run_chunk
from .errors import UserError, require
from .hashes import hash_of_files
from .loading import LoadedModel, ModelSource, load
from .modeling_scmmgpt import ScMMGPTModel
from .modeling_scmmgpt.modeling_cell_encoder import ScMMGPTGeneTable
from .processing.encoding_scmmgpt import similarity_scale, tokenize_texts
from .processing.labels_scmmgpt import ontology_labels
from .storage import check_output, written_by_rename

if TYPE_CHECKING:
    from anndata import AnnData

MANIFEST = "manifest.json"
CELL_TOWER, TEXT_TOWER = "cell_tower.onnx", "text_tower.onnx"
OPSET = 20  # the first with an exact GELU
MIN_COSINE = 0.999
_NUM_CELLS, _NUM_TEXTS = 512, 128
_CHECKED_BATCH = 7  # an export that only works for the batch that it was traced with does not pass
_EXAMPLE_LENGTH = 40
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")

# Inputs of one tower by name -> one unit vector for each row.
Tower = Callable[[Arrays], np.ndarray]


def export_onnx(
    directory: str | os.PathLike,
    *,
    model: ModelSource = None,
    cells: AnnData | str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Write the cell tower and the text tower of a model as ONNX files; return the manifest.

    Parameters
    ----------
    directory
        A folder to write, which must not exist.
    model
        A directory, a Hub repository ("org/name"), a loaded model, or None for the model that comes with the package.
    cells
        Cells on which onnxruntime is compared with `embed`: AnnData or a path, of which the first 512 are read. None: the
        700 blood cells that come with scanpy.
    """
    for package in _PACKAGES[1:]:
        require(package)
    directory = Path(directory)
    if directory.exists():
        raise UserError(f"{str(directory)!r} exists: name a new folder, nothing is ever written over.")
    check_output(directory, suffixes=(directory.suffix,))
    loaded = load(model)
    tokens, source = _tokens_of_real_cells(loaded, cells)
    towers = _plain_towers(loaded)
    with written_by_rename(directory) as folder:
        folder.mkdir()
        _write_processor(loaded.processor, folder)
        _write_cell_tower(towers, folder / CELL_TOWER)
        _write_text_tower(towers, folder / TEXT_TOWER)
        sessions = {name: _session(folder / name) for name in (CELL_TOWER, TEXT_TOWER)}
        checked = {
            "cells": {"source": source, **_check_cells(loaded, _tower(sessions[CELL_TOWER]), tokens)},
            "texts": _check_texts(loaded, _tower(sessions[TEXT_TOWER])),
        }
        manifest = _manifest(loaded, sessions, checked, folder)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _write_processor(processor: Any, folder: Path) -> None:
    """Settings, vocabularies and tables, without the code."""
    for tokenizer in (processor.tokenizer, processor.qformer_tokenizer):
        words = getattr(tokenizer, "backend_tokenizer", None)
        if words is not None:  # what the last call cut and padded is no property of the tokenizer
            words.no_truncation()
            words.no_padding()
    processor.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()


# ---- from torch to ONNX


class _SumOverVocabulary(nn.Embedding):
    """A gene table whose weighted sums are one matrix product with the cells' values over the whole vocabulary.

    ONNX has no `embedding_bag`. To look up the vector of every gene of a batch takes a hundred times the memory.
    """

    def forward(self, gene_ids: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        if weights is None:
            return super().forward(gene_ids)
        values = weights.new_zeros(gene_ids.shape[0], self.num_embeddings)
        return values.scatter_add(1, gene_ids, weights) @ self.weight


class _CellTower(nn.Module):
    def __init__(self, towers: ScMMGPTModel):
        super().__init__()
        self.towers = towers

    def forward(self, gene_ids, gene_values, gene_mask):
        return self.towers.get_cell_features(gene_ids, gene_values, gene_mask).pooler_output


class _TextTower(nn.Module):
    def __init__(self, towers: ScMMGPTModel):
        super().__init__()
        self.towers = towers

    def forward(self, input_ids, attention_mask):
        return self.towers.get_text_features(input_ids, attention_mask).pooler_output


def _plain_towers(loaded: LoadedModel) -> ScMMGPTModel:
    """The towers read anew: on the CPU, in float32, without the layers that oneDNN packs."""
    towers = ScMMGPTModel.from_pretrained(loaded.directory, attn_implementation="eager", dtype=torch.float32).eval()
    table = towers.cell_encoder.get_input_embeddings()
    if isinstance(table, ScMMGPTGeneTable):
        plain = _SumOverVocabulary(table.num_embeddings, table.embedding_dim, table.padding_idx, _weight=table.weight)
        towers.cell_encoder.set_input_embeddings(plain)
    return towers


def _write_cell_tower(towers: ScMMGPTModel, path: Path) -> None:
    ids = torch.arange(2 * _EXAMPLE_LENGTH).view(2, -1) % towers.config.cell_config.vocab_size
    example = {"gene_ids": ids, "gene_values": torch.ones(ids.shape), "gene_mask": torch.ones_like(ids)}
    _write_tower(_CellTower(towers), example, {0: Dim("cells"), 1: Dim("genes")}, "cell_embeds", path)


def _write_text_tower(towers: ScMMGPTModel, path: Path) -> None:
    config = towers.config.qformer_config
    ids = torch.arange(2 * _EXAMPLE_LENGTH).view(2, -1) % config.vocab_size
    axes = {0: Dim("texts"), 1: Dim("tokens", max=config.max_position_embeddings)}
    _write_tower(
        _TextTower(towers), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, axes, "text_embeds", path
    )


def _write_tower(tower: nn.Module, example: dict[str, torch.Tensor], axes: dict, output: str, path: Path) -> None:
    import onnx

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            tower.eval(),
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            output_names=[output],
            dynamic_shapes=dict.fromkeys(example, axes),
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    _store_in_16_bits(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _store_in_16_bits(model: Any) -> None:
    """Store matrices at half of their size, cast where they are read. Weights that 16 bits cannot hold stay."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        name = weight.name
        with np.errstate(over="ignore"):
            halves = numpy_helper.to_array(weight).astype(np.float16)
        if np.isfinite(halves).all():
            weight.CopyFrom(numpy_helper.from_array(halves, f"{name}.float16"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's words for its own developers stay unsaid, whatever warnings are to the caller."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---- is it the same?


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _tower(session: Any) -> Tower:
    names = [given.name for given in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})[0]


def _tokens_of_real_cells(loaded: LoadedModel, cells: Any) -> tuple[Arrays, str]:
    """Tokens of the first cells, and where those are from."""
    name = Path(cells).name if isinstance(cells, str | os.PathLike) else "cells that were given"
    if cells is None:
        name, cells = "pbmc68k_reduced of scanpy", require("scanpy").datasets.pbmc68k_reduced()
    opened = open_cells(cells)
    if opened.num_cells == 0:
        raise UserError("There are no cells.")
    chunks = loaded.processor.gene_tokenizer.iter_chunks(opened.source, _NUM_CELLS, return_tensors="np")
    return dict(next(chunks)), name


def _check_cells(loaded: LoadedModel, tower: Tower, tokens: Arrays) -> dict[str, float]:
    expected = run_chunk(tokens, embed_batch(loaded), Batches(loaded.device), loaded.device)
    batches = Batches(torch.device("cpu"), _CHECKED_BATCH)
    found = run_chunk(tokens, lambda _, batch: {"embeds": tower(batch)}, batches, torch.device("cpu"))
    return _agreement("cell", expected["embeds"], found["embeds"])


def _check_texts(loaded: LoadedModel, tower: Tower) -> dict[str, float]:
    names = ontology_labels(loaded.ontology).labels
    texts = list(islice(names, 0, None, max(1, len(names) // _NUM_TEXTS)))
    texts.append(" ".join(texts))  # one that is cut at the last position
    expected, found = [], []
    for start in range(0, len(texts), _CHECKED_BATCH):
        inputs = tokenize_texts(loaded.model, loaded.processor, texts[start : start + _CHECKED_BATCH])
        with torch.inference_mode():
            expected.append(loaded.model.get_text_features(**inputs).pooler_output.cpu().numpy())
        found.append(tower({name: _words(inputs, name).cpu().numpy() for name in ("input_ids", "attention_mask")}))
    return _agreement("text", np.concatenate(expected), np.concatenate(found))


def _words(inputs: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Those for the Q-Former, where the processor has a tokenizer for the LLM beside it."""
    return inputs.get(f"qformer_{name}", inputs[name])


def _agreement(what: str, expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How near two engines are; refused where they are not."""
    cosine = float((expected * found).sum(axis=1).min())
    if not cosine >= MIN_COSINE:
        raise RuntimeError(
            f"The exported {what} tower gives other embeddings than this model does: the lowest cosine is {cosine:.6f}, "
            f"at least {MIN_COSINE} is wanted. Nothing was written."
        )
    return {
        "number": len(expected),
        "lowest_cosine": round(cosine, 7),
        "largest_difference": float(np.abs(expected - found).max()),
    }


# ---- the manifest


def _manifest(loaded: LoadedModel, sessions: dict[str, Any], checked: dict[str, Any], folder: Path) -> dict[str, Any]:
    is_local = Path(loaded.name).exists()
    vocabulary, words = loaded.config.cell_config, loaded.config.qformer_config
    return {
        "format": "scmmgpt-onnx",
        "format_version": 1,
        "model": {
            **loaded.describe(),
            "name": loaded.directory.resolve().name if is_local else loaded.name,
            "revision": getattr(loaded.config, "_commit_hash", None),
        },
        "opset": OPSET,
        "towers": {name: _signature(session) for name, session in sessions.items()},
        "similarity_scale": similarity_scale(loaded.model),
        "cls_gene_id": vocabulary.cls_token_id,
        "pad_gene_id": vocabulary.pad_token_id,
        "pad_token_id": words.pad_token_id,
        "longest_text": words.max_position_embeddings,
        "checked": checked,
        "versions": {name: version(name) for name in ("scmmgpt", *_PACKAGES)},
        "files": _files(sorted(path for path in folder.rglob("*") if path.is_file()), folder),
    }


def _signature(session: Any) -> dict[str, Any]:
    return {
        side: {value.name: {"type": value.type, "shape": value.shape} for value in values}
        for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
    }


def _files(paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_of_files([path])}
        for path in paths
    }
