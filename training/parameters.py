"""How many parameters a model of any size has, counted without allocating one."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForConditionalGeneration


def count_parameters(
    config: PreTrainedConfig, model_class: type[PreTrainedModel] = ScMMGPTForConditionalGeneration
) -> dict[str, int]:
    """Parameters by part, then "total"; tied weights count once.

    Examples
    --------
    >>> count_parameters(ScMMGPTConfig())["cell_encoder"]
    50278400
    """
    with torch.device("meta"):
        model = model_class(config)
    model.tie_weights()
    counts: dict[str, int] = {}
    for name, weight in model.named_parameters():
        part = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
        counts[part] = counts.get(part, 0) + weight.numel()
    return {**counts, "total": sum(counts.values())}


def paper_config(text_model: str = "llama") -> ScMMGPTConfig:
    """The size of the paper: scGPT's whole-human encoder, a BERT-base Q-Former with 32 queries, Llama 2 7B."""
    return ScMMGPTConfig(text_config={"model_type": text_model, "vocab_size": 32_001}, cell_token_id=32_000)


def readable(count: int) -> str:
    """
    Examples
    --------
    >>> readable(51_330_049)
    '51.3 M'
    """
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return str(count)
