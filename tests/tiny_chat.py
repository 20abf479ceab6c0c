"""A chat model of tiny parts: any causal LM as base, adapters with random numbers, and the embedded towers."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_models import make_text_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from scmmgpt.base_llm import BaseLLM, sample_of

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}
RANK, PROJECTOR_WIDTH, QUERY_WIDTH = 2, 24, 192


def write_llm(directory: Path, kind: str = "llama", seed: int = 0) -> Path:
    """A causal LM with random weights, its tokenizer without a word for cells."""
    torch.manual_seed(seed)
    tokenizer = make_text_tokenizer()
    tokenizer.padding_side = "right"  # as most language models are saved
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = CONFIGS[kind](vocab_size=len(tokenizer), **SIZES, **special)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def base_of(llm: Path) -> BaseLLM:
    model = AutoModelForCausalLM.from_pretrained(llm)
    names = ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight")
    return BaseLLM(
        repository="tiny/llm",
        revision="0" * 40,
        weights_sha256="",
        package="no-such-package-of-ours",
        package_version="1.0",
        package_file="tiny.gguf",
        package_sha256="",
        sizes={name: getattr(model.config, name) for name in ("model_type", "hidden_size", "num_hidden_layers")},
        sample=sample_of(model, names),
    )


def write_repository(directory: Path, llm: Path, seed: int = 0) -> Path:
    """What `hub_cards/scmmgpt-chat` holds, for a tiny base LLM."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    attention = "base_model.model.model.language_model.layers.{}.self_attn.{}_proj.lora_{}.weight"
    width = SIZES["hidden_size"]
    weights = {
        "base_model.model.model.cell_token_projector.0.weight": random(PROJECTOR_WIDTH, QUERY_WIDTH),
        "base_model.model.model.cell_token_projector.0.bias": random(PROJECTOR_WIDTH),
        "base_model.model.model.cell_token_projector.positions": random(8, QUERY_WIDTH),
        "base_model.model.model.cell_token_projector.2.weight": random(width, PROJECTOR_WIDTH),
        "base_model.model.model.cell_token_projector.2.bias": random(width),
    }
    for layer in range(SIZES["num_hidden_layers"]):
        for name, out in (("q", width), ("v", SIZES["num_key_value_heads"] * SIZES["head_dim"])):
            weights[attention.format(layer, name, "A")] = random(RANK, width)
            weights[attention.format(layer, name, "B")] = random(out, RANK)
    directory.mkdir(parents=True)
    save_file(weights, directory / "adapter_model.safetensors")
    settings = {
        "base": asdict(base_of(llm)),
        "projector_hidden_size": PROJECTOR_WIDTH,
        "projector_positions": True,
        "lora": {"rank": RANK, "alpha": 2 * RANK},
        "training": {"steps": 1, "directions": ["cells to text"]},
    }
    (directory / "chat.json").write_text(json.dumps(settings))
    return directory
