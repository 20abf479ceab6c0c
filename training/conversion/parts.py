"""A causal LM, a cell encoder and a Q-Former joined into one model, each with the weights that it brings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from scmmgpt.errors import UserError
from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForConditionalGeneration, ScMMGPTQFormer
from scmmgpt.processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor


def from_parts(
    text: str | Path,
    cell: str | Path | None = None,
    qformer: str | Path | None = None,
    config: ScMMGPTConfig | None = None,
    **kwargs: Any,
) -> tuple[ScMMGPTForConditionalGeneration, ScMMGPTProcessor | None]:
    """A generative model of a causal LM, a cell encoder and a Q-Former, each from its folder or Hub name.

    Parameters
    ----------
    text
        Any causal LM of transformers, with its tokenizer; `<cell>` is added to it.
    cell, qformer
        What `convert_checkpoint` wrote; None leaves that part new.
    config
        Sizes of the parts that are new.
    **kwargs
        To the LLM's `from_pretrained`: dtype, quantization_config, device_map, ...

    Returns
    -------
    The model, and its processor where `cell` came with a gene tokenizer.
    """
    config = config or ScMMGPTConfig()
    encoder = AutoModel.from_pretrained(cell) if cell is not None else None
    if encoder is not None:
        config.cell_config = encoder.config
    width = config.cell_config.hidden_size
    if qformer is not None:
        # A Q-Former that comes from a BERT has never seen a cell: its cross-attention fits itself to the encoder.
        reader = ScMMGPTQFormer.from_pretrained(qformer, encoder_hidden_size=width, ignore_mismatched_sizes=True)
        config.qformer_config = reader.config
    else:
        reader, config.qformer_config.encoder_hidden_size = None, width
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.add_tokens(["<cell>"], special_tokens=True)
    config.cell_token_id = tokenizer.get_vocab()["<cell>"]
    model = join_language_model(config, str(text), **kwargs)
    for part, trained in ((model.model.cell_encoder, encoder), (model.model.qformer, reader)):
        if trained is not None:
            take_weights(part, trained)
    if len(tokenizer) > cast(nn.Embedding, model.get_input_embeddings()).num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if cell is None:
        return model, None
    words = AutoTokenizer.from_pretrained(qformer) if qformer is not None else None
    genes = ScMMGPTGeneTokenizer.from_pretrained(cell)
    return model, ScMMGPTProcessor(genes, tokenizer, words, num_query_tokens=config.num_query_tokens)


def join_language_model(
    config: ScMMGPTConfig, text: str | PreTrainedModel, **kwargs: Any
) -> ScMMGPTForConditionalGeneration:
    """New towers around a causal LM that keeps its weights.

    The LLM is loaded by its own class, so that every causal LM of transformers will do, and quantisation touches
    nothing else.

    Parameters
    ----------
    config
        The joint configuration; its `text_config` gives way to the causal LM's.
    text
        Where the causal LM lies: a folder or a Hub name; or the model itself.
    **kwargs
        To its `from_pretrained`: dtype, quantization_config, device_map, ...
    """
    llm = AutoModelForCausalLM.from_pretrained(text, **kwargs) if isinstance(text, str) else text
    head = llm.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise UserError(
            f"{llm.config.model_type} has a bias in its `lm_head`, which is not supported: choose another language model."
        )
    config = copy.deepcopy(config)
    config.take_llm(llm.config)
    # transformers calls the base a Module
    model = ScMMGPTForConditionalGeneration(config, cast(PreTrainedModel, llm.base_model))
    model.hf_quantizer = getattr(llm, "hf_quantizer", None)  # type: ignore[assignment] # which knows how to save what it made
    for name, part in [*model.model.named_children(), ("cell_decoder", model.cell_decoder)]:
        if name != "language_model":
            part.to(head.weight.device, llm.dtype)
    model.lm_head.weight = head.weight
    model.generation_config = llm.generation_config
    model.never_write_placeholders()
    _compare_logits(model.eval(), llm)
    return model


@torch.no_grad()
def _compare_logits(model: ScMMGPTForConditionalGeneration, llm: PreTrainedModel) -> None:
    """Refuse an LLM that does to its logits what a plain matrix does not, such as Gemma 2's soft cap."""
    words = [token for token in range(4) if token != model.config.cell_token_id]
    input_ids = torch.tensor([words], device=model.lm_head.weight.device)
    ours, theirs = model(input_ids=input_ids).logits, llm(input_ids=input_ids).logits
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2 * theirs.abs().max().item()):
        raise UserError(
            f"{llm.config.model_type} applies a function to its logits after `lm_head` (such as a soft cap), which "
            "is not supported: choose another language model."
        )


def take_weights(part: nn.Module, trained: PreTrainedModel) -> None:
    """Give a part of the model the weights of the same part elsewhere; a BERT's pooler is nobody's input."""
    weights = {name: weight for name, weight in trained.state_dict().items() if not name.startswith("pooler.")}
    part.load_state_dict(weights)
