"""The door: a public checkpoint -> a folder that `AutoModel.from_pretrained` loads, every number kept.

The gene tokenizer or the text tokenizer lies beside the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from scmmgpt.atomic_files import whole_or_removed
from scmmgpt.errors import UserError
from scmmgpt.training.conversion.bert import convert_bert, convert_geneformer
from scmmgpt.training.conversion.foreign_files import find
from scmmgpt.training.conversion.parts import from_parts
from scmmgpt.training.conversion.scgpt import convert_scgpt


def convert_checkpoint(kind: str, source: str | Path, output: str | Path) -> dict[str, Any]:
    """Write a public checkpoint as one of ours; return what it holds.

    Parameters
    ----------
    kind
        "scgpt" (`best_model.pt`, `args.json`, `vocab.json`), "geneformer" or "langcell" (a BERT of ranked genes and
        its `token_dictionary`), "bert" (the start of a Q-Former), or "parts" (folders `cell`, `qformer` and `text`).
    source, output
        Folders.
    """
    converters: dict[str, Callable[[Path, Path], PreTrainedModel]] = {
        "scgpt": convert_scgpt,
        "geneformer": convert_geneformer,
        "langcell": convert_geneformer,
        "bert": convert_bert,
        "parts": _convert_parts,
    }
    if kind not in converters:
        raise UserError(f"`{kind}` cannot be converted. Kinds: {', '.join(converters)}.")
    source, output = Path(source), Path(output)
    if not source.is_dir():
        raise UserError(f"There is no folder {str(source)!r}.")
    with whole_or_removed(output):
        model = converters[kind](source, output)
    return {"class": type(model).__name__, "parameters": sum(weight.numel() for weight in model.parameters())}


def _convert_parts(source: Path, output: Path) -> PreTrainedModel:
    cell, qformer = source / "cell", source / "qformer"
    model, processor = from_parts(
        text=find(source, "text"),
        cell=cell if cell.exists() else None,
        qformer=qformer if qformer.exists() else None,
    )
    model.save_pretrained(output)
    if processor is not None:
        processor.save_pretrained(output)
    return model
