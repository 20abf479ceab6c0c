"""Training steps of both stages on one device: time, tokens a second, utilisation, peak memory.

    python -m benchmarks.train_step             # paper size on a GPU; a few layers where there is none
    python -m benchmarks.train_step --full      # paper size on a CPU too: hours

Rows: packed against padded cells, flash kernels (`torch_varlen`) against sdpa, random cells of the lengths of real
ones. Weights are random: they do not change the speed.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import scmmgpt  # noqa: F401 - registers the classes and the attention functions
from benchmarks._measuring import OUT, machine, options, write_report
from benchmarks.embedding import random_cells
from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining
from scmmgpt.training.flops import stage_1_flops, stage_2_flops
from scmmgpt.training.meter import device_tflops, shape_of
from scmmgpt.training.settings import LoraSettings, Stage2Towers, TowerSettings
from scmmgpt.training.towers import prepare_towers

CELL_TOKEN = 7
STAGE_2_TOWERS = Stage2Towers(cell_encoder="freeze", language_model="lora")
QWEN3_1B7 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
TINY_LAYERS = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


def config_of(*, tiny: bool) -> ScMMGPTConfig:
    """scGPT whole-human, a BERT-base Q-Former and Qwen3-1.7B; or two layers of each."""
    text = (
        {**QWEN3_1B7, **TINY_LAYERS, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000}
        if tiny
        else QWEN3_1B7
    )
    cell = {**TINY_LAYERS, "vocab_size": 2000, "pad_token_id": 0, "cls_token_id": 1} if tiny else {}
    qformer = {**TINY_LAYERS, "vocab_size": 1000, "num_query_tokens": 8} if tiny else {}
    return ScMMGPTConfig(cell_config=cell, qformer_config=qformer, text_config=text, cell_token_id=CELL_TOKEN)


def random_batch(config: ScMMGPTConfig, stage: int, *, size: int, longest: int, packed: bool) -> dict:
    """Cells of lognormal length around 60 % of `longest`, with texts; for stage 2 prompts, answers and targets."""
    cells = {
        name: torch.from_numpy(values) for name, values in random_cells(config.cell_config, size, longest).items()
    }
    mask = cells["gene_mask"].bool()
    if packed:
        starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        real = {name: cells[name][mask][None] for name in ("gene_ids", "gene_values")}
        cells = {**real, "cell_cu_seqlens": starts}
    words = min(config.qformer_config.vocab_size, config.text_config.vocab_size)
    text = torch.randint(10, words, (size, 64))
    if stage == 1:
        return {**cells, "input_ids": text, "attention_mask": torch.ones_like(text), "text_groups": torch.arange(size)}
    prompt = torch.cat([torch.full((size, config.num_query_tokens), CELL_TOKEN), text], dim=1)
    targets = torch.arange(10, min(4106, config.cell_config.vocab_size))
    return {
        **cells,
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "labels": prompt.masked_fill(prompt == CELL_TOKEN, -100),
        "cell_prompt_ids": text[:, :32],
        "cell_prompt_mask": torch.ones_like(text[:, :32]),
        "target_gene_ids": targets,
        "target_counts": torch.poisson(torch.full((size, len(targets)), 0.3)),
    }


def measure(stage: int, *, attention: str, packed: bool, arguments: argparse.Namespace) -> dict:
    """One row of the table."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = config_of(tiny=arguments.tiny)
    towers = TowerSettings() if stage == 1 else STAGE_2_TOWERS
    kind = ScMMGPTForPreTraining if stage == 1 else ScMMGPTForConditionalGeneration
    model = kind._from_config(config, attn_implementation={"cell_config": attention, "": "sdpa"}).to(device)
    model = prepare_towers(model, towers, LoraSettings()).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=device.type == "cuda")
    longest = 64 if arguments.tiny else 2048
    batch = random_batch(config, stage, size=arguments.batch_size, longest=longest, packed=packed)
    batch = {name: value.to(device) for name, value in batch.items()}

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype == torch.bfloat16):
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times, peak = timed(step, device, arguments.steps)
    seconds = float(np.median(times))
    shape = shape_of(batch)
    flops = (
        stage_1_flops(config, shape, TowerSettings()) if stage == 1 else stage_2_flops(config, shape, STAGE_2_TOWERS)
    )
    tflops = device_tflops(device)
    tokens = shape.num_cells * (shape.num_genes + shape.num_text_tokens + shape.num_prompt_tokens)
    return {
        "task": f"train {stage}",
        "way": f"{attention}, {'packed' if packed else 'padded'}" + (", tiny" if arguments.tiny else ""),
        "unit": "cells/s",
        "rate": round(shape.num_cells / seconds, 1),
        "low": round(shape.num_cells / max(times), 1),
        "high": round(shape.num_cells / min(times), 1),
        "batch_size": arguments.batch_size,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds),
        **({"share_of_limit": round(flops / seconds / (tflops * 1e12), 4)} if tflops else {}),
        **({"peak_mb": round(peak / 1e6)} if peak else {}),
    }


def timed(step, device: torch.device, steps: int) -> tuple[list[float], int]:
    """Seconds of each step, and the peak of a GPU's memory, after a warm-up."""
    for _ in range(3):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = options(__doc__, device=device, batch_size=32, steps=10, full=False)
    is_gpu = arguments.device.startswith("cuda")
    arguments.tiny = not (is_gpu or arguments.full)
    ways = [("sdpa", False), *([("torch_varlen", False), ("torch_varlen", True)] if is_gpu else [("sdpa", True)])]
    rows = []
    for stage in (1, 2):
        for attention, packed in ways:
            rows.append(measure(stage, attention=attention, packed=packed, arguments=arguments))
    write_report(OUT / "train_step.json", rows, machine=machine(arguments.device), settings=vars(arguments))
    if not is_gpu:
        print("Paper size, flash kernels (`torch_varlen`): not run, there is no GPU here.")


if __name__ == "__main__":
    main()
