"""Embedding at paper size (scGPT's 12 layers of 512, random weights): ours beside scGPT's own way, on the same cells.

    python -m benchmarks.embedding                        # a CPU, or a GPU where there is one
    python -m benchmarks.embedding --num-cells 8 --longest 300 --repeats 1     # does it run?
    python -m benchmarks.embedding --device cuda --num-cells 20000 --longest 2048 --batch-size 512

scGPT's way is its published path: batches in file order padded to their longest cell, `torch.nn.TransformerEncoder`
(whose layers hold our weights: both ways must give the same `<cls>` states, or the run stops). The share of the limit
counts only operations on real genes, against the largest product of matrices that this machine manages. `--bf16` also
measures it on a processor without bf16 units.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks._measuring import (
    OUT,
    interleaved,
    machine,
    matmul_peak,
    options,
    row,
    write_report,
)
from scmmgpt.bf16 import LEAST_COSINE, has_units
from scmmgpt.device import Batches
from scmmgpt.embedding import run_chunk
from scmmgpt.modeling_scmmgpt import ScMMGPTCellConfig
from scmmgpt.modeling_scmmgpt.modeling_cell_encoder import ScMMGPTCellEncoder
from scmmgpt.packed_linears import pack_linears
from scmmgpt.training.flops import BatchShape, cell_encoder_flops

Way = Callable[[], int]
GOALS = {"float32": 2.0, "bf16": 2.5}


def random_cells(config: ScMMGPTCellConfig, num_cells: int, longest: int) -> dict[str, np.ndarray]:
    """Tokens of cells as long as real ones are: lognormal around 60 % of the longest."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(0.6 * longest), 0.4, num_cells), 8, longest).astype(int)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = generator.integers(10, config.vocab_size - 10, mask.shape)
    if config.cls_token_id is not None:
        ids[:, 0] = config.cls_token_id
    values = generator.random(mask.shape, dtype=np.float32) * 5
    values[:, 0] = 0
    return {"gene_ids": ids * mask, "gene_values": values * mask, "gene_mask": mask.astype(np.int64)}


# ---- scGPT's way


class PlainEncoder(nn.Module):
    """scGPT's encoder as its authors wrote it: torch's own transformer layers behind the sum of two embeddings."""

    def __init__(self, encoder: ScMMGPTCellEncoder):
        super().__init__()
        config = encoder.config
        self.embeddings = encoder.embeddings
        layer = nn.TransformerEncoderLayer(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.num_hidden_layers)
        for theirs, ours in zip(self.layers.layers, encoder.layers, strict=True):
            theirs.load_state_dict(_their_names(ours.state_dict()))

    def forward(self, gene_ids: torch.Tensor, gene_values: torch.Tensor, gene_mask: torch.Tensor) -> torch.Tensor:
        states = self.layers(self.embeddings(gene_ids, gene_values), src_key_padding_mask=~gene_mask.bool())
        return states[:, 0]


def _their_names(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {"self_attn_norm": "norm1", "final_norm": "norm2"}
    theirs = {}
    for kind in ("weight", "bias"):
        theirs[f"self_attn.in_proj_{kind}"] = torch.cat([ours[f"self_attn.{part}_proj.{kind}"] for part in "qkv"])
    for name, value in ours.items():
        if not any(f".{part}_proj." in name for part in "qkv"):
            head, _, kind = name.rpartition(".")
            theirs[f"{renamed.get(head, head)}.{kind}"] = value
    return theirs


def in_file_order(encoder: nn.Module, cells: dict[str, np.ndarray], batch_size: int, device: str) -> np.ndarray:
    """Batches as they come, each padded to its longest cell."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(cells["gene_ids"]), batch_size):
            longest = cells["gene_mask"][start : start + batch_size].sum(1).max()
            batch = {name: values[start : start + batch_size, :longest] for name, values in cells.items()}
            found.append(encoder(**_to(batch, device)).float().cpu().numpy())
    return np.concatenate(found)


def _to(batch: dict[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
        for name, values in batch.items()
    }


# ---- ours


def sorted_by_length(
    encoder: nn.Module, cells: dict[str, np.ndarray], batch_size: int, device: str, bf16: bool = False
) -> np.ndarray:
    """The package's own way through a chunk of cells."""

    def compute(inputs: dict[str, torch.Tensor], tokens: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.autocast(inputs["gene_ids"].device.type, dtype=torch.bfloat16, enabled=bf16):
            return {"states": encoder(**inputs).pooler_output.float().cpu().numpy()}

    where = torch.device(device)
    return run_chunk(cells, compute, Batches(where, batch_size), where)["states"]


def packed(encoder: nn.Module, cells: dict[str, np.ndarray], batch_size: int, device: str) -> np.ndarray:
    """Cells end to end, without any padding, through the variable-length flash kernel."""
    lengths, found = cells["gene_mask"].sum(1), []
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        for start in range(0, len(lengths), batch_size):
            part = slice(start, start + batch_size)
            real = cells["gene_mask"][part].astype(bool)
            bounds = np.concatenate([[0], np.cumsum(lengths[part])]).astype(np.int32)
            inputs = {name: cells[name][part][real][None] for name in ("gene_ids", "gene_values")}
            outputs = encoder(**_to({**inputs, "cell_cu_seqlens": bounds}, device))
            found.append(outputs.pooler_output.float().cpu().numpy())
    return np.concatenate(found)


# ---- the table


def ways_of(
    encoder: ScMMGPTCellEncoder, cells: dict[str, np.ndarray], arguments: argparse.Namespace
) -> dict[str, Callable[[], np.ndarray]]:
    """Every way to the same `<cls>` states; scGPT's own comes first."""
    there = {"cells": cells, "batch_size": arguments.batch_size, "device": arguments.device}
    ways: dict[str, Callable[[], np.ndarray]] = {
        "scGPT's way, float32": partial(in_file_order, PlainEncoder(encoder).eval().to(arguments.device), **there),
        "sorted by length, float32": partial(sorted_by_length, encoder, **there),
    }
    if arguments.device.startswith("cuda"):
        half = copy.deepcopy(encoder).bfloat16()
        ways["sorted by length, bf16"] = partial(sorted_by_length, half, bf16=True, **there)
        varlen = copy.deepcopy(half)
        varlen.set_attn_implementation("torch_varlen")
        ways["packed, flash kernel, bf16"] = partial(packed, varlen, **there)
        compiled = copy.deepcopy(half)
        compiled.compile(dynamic=True)
        ways["sorted by length, bf16, compiled"] = partial(sorted_by_length, compiled, bf16=True, **there)
        return ways
    if torch.backends.mkldnn.is_available():
        quick = copy.deepcopy(encoder)
        pack_linears(quick)
        ways["sorted by length, float32, oneDNN linears"] = partial(sorted_by_length, quick, **there)
        if has_units() or arguments.bf16:
            ways["sorted by length, bf16, oneDNN linears"] = partial(sorted_by_length, quick, bf16=True, **there)
    return ways


def num_states(way: Callable[[], np.ndarray]) -> int:
    return len(way())


def cosines(found: np.ndarray, expected: np.ndarray) -> float:
    """The lowest cosine between two vectors of one cell."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(1) / lengths).min())


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = options(__doc__, device=device, num_cells=48, longest=1_200, batch_size=16, repeats=3, bf16=False)
    about = machine(arguments.device)
    torch.manual_seed(0)
    config = ScMMGPTCellConfig(cls_value=-2)
    encoder = ScMMGPTCellEncoder(config).eval().to(arguments.device)
    cells = random_cells(config, arguments.num_cells, arguments.longest)
    ways = ways_of(encoder, cells, arguments)
    states = {name: way() for name, way in ways.items()}
    expected = next(iter(states.values()))
    agreement = {name: cosines(found, expected) for name, found in states.items()}
    if min(value for name, value in agreement.items() if "bf16" not in name) < 1 - 1e-5:
        raise SystemExit(f"The ways do not give the same states: {agreement}")
    rates = interleaved({name: partial(num_states, way) for name, way in ways.items()}, arguments.repeats)
    lengths = cells["gene_mask"].sum(1)
    flops = sum(cell_encoder_flops(config, BatchShape(1, float(length))) for length in lengths) / len(lengths)
    kind_of = {name: "bf16" if "bf16" in name else "float32" for name in rates}
    dtypes = {"float32": torch.float32, "bf16": torch.bfloat16}
    peaks = {kind: matmul_peak(arguments.device, dtypes[kind]) for kind in sorted(set(kind_of.values()))}
    plain = next(iter(rates.values()))["rate"]
    rows = []
    for number, (name, found) in enumerate(rates.items()):
        kind = kind_of[name]
        line = row("embedding", name, found, "cells/s", plain=plain)
        line["share_of_limit"] = round(found["rate"] * flops / peaks[kind], 3)
        line["lowest_cosine"] = round(agreement[name], 6)
        line["accurate_enough"] = agreement[name] > LEAST_COSINE
        rows.append(line | ({"goal": f"{GOALS[kind]}x"} if number else {}))
    figures = {"mean_length": float(lengths.mean()), "gflop_per_cell": flops / 1e9}
    limits = {f"matmul_gflops_{kind}": round(peak / 1e9, 1) for kind, peak in peaks.items()}
    write_report(OUT / "embedding.json", rows, machine=about, settings=vars(arguments), limits=limits, **figures)
    if not arguments.device.startswith("cuda"):
        print("GPU rows (bf16, packed flash kernel, torch.compile): not run, there is no GPU here.")


if __name__ == "__main__":
    main()
