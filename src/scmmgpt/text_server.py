"""The text part, for servers of language models: the LLM as a checkpoint of its own, and prompts with cells as vectors.

A server such as vLLM batches many readers continuously, but knows nothing of cells. It takes prompts as vectors: the
cells are encoded here, once, and only the LLM runs there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic_files import whole_or_removed
from .errors import UserError
from .processing.prompting_scmmgpt import description_question
from .text_generation import checked_question, embed_prompt, tokenize_prompt

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    from .loading import LoadedModel


def save_language_model(loaded: LoadedModel, folder: str | os.PathLike) -> Path:
    """Write the LLM of a `generative` model, with its tokenizer, as any causal LM of transformers is written."""
    from transformers import AutoModelForCausalLM

    _check_generative(loaded)
    model = loaded.model
    llm = AutoModelForCausalLM.from_config(model.config.text_config, dtype=model.lm_head.weight.dtype)
    llm.base_model.load_state_dict(model.model.language_model.state_dict())
    llm.get_output_embeddings().weight = model.lm_head.weight
    with whole_or_removed(Path(folder)):
        llm.save_pretrained(folder)
        loaded.processor.tokenizer.save_pretrained(folder)
    return Path(folder)


def prompt_vectors(loaded: LoadedModel, cells: AnnData, question: str) -> torch.Tensor:
    """One prompt for each cell, (cells, tokens, width): the question in the chat template, the cell in its place."""
    import torch

    _check_generative(loaded)
    inputs = loaded.processor(cells=cells, return_tensors="pt").to(loaded.device)
    question = checked_question(loaded, question or description_question())
    prompt = tokenize_prompt(loaded, loaded.processor.cell_prompt(question))
    with torch.inference_mode():
        cell_tokens = loaded.model.model.get_cell_tokens(**inputs)
        return embed_prompt(loaded, prompt.expand(len(cell_tokens), -1), cell_tokens)


def _check_generative(loaded: LoadedModel) -> None:
    if not hasattr(loaded.model, "lm_head"):
        raise UserError("The language model was not loaded: scmmgpt.load(..., generative=True).")
