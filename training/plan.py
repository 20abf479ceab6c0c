"""What a run will take before it takes it: parameters, memory, tokens, operations, hours and money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from scmmgpt.training.flops import BatchShape
from scmmgpt.training.meter import device_tflops, shape_of
from scmmgpt.training.settings import RunSettings
from scmmgpt.training.towers import prepare_towers, tower_of
from scmmgpt.training.trainer import Rows

# Bytes kept for the backward pass per token and hidden unit of a transformer layer, with flash or fused attention and
# 16-bit activations (Korthikanti et al. 2022, equation 2 without the attention scores).
ACTIVATION_BYTES = 34


@dataclass(frozen=True)
class Plan:
    """The numbers of a run; memory is per device, without sharding."""

    parameters: dict[str, int]
    trained: dict[str, int]
    num_steps: int
    cells: int
    tokens: float
    flops: float
    weight_bytes: float
    optimizer_bytes: float
    activation_bytes: float
    hours: float | None
    cost: float | None

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        towers = [
            f"  {tower:<15} {count / 1e6:>10.2f} M, {self.trained.get(tower, 0) / 1e6:.2f} M trained"
            for tower, count in self.parameters.items()
        ]
        total, trained = sum(self.parameters.values()), sum(self.trained.values())
        time = "unknown: give hardware.peak_tflops" if self.hours is None else f"{self.hours:.2f} h per run"
        return [
            f"parameters        {total / 1e6:.2f} M, {trained / 1e6:.2f} M trained ({trained / max(total, 1):.1%})",
            *towers,
            f"steps             {self.num_steps:,}",
            f"cells             {self.cells:,}",
            f"tokens            {self.tokens:,.0f}",
            f"operations        {self.flops:.3g} FLOP",
            f"memory per device {(self.weight_bytes + self.optimizer_bytes + self.activation_bytes) / 1e9:.2f} GB: weights "
            f"{self.weight_bytes / 1e9:.2f}, gradients and optimiser {self.optimizer_bytes / 1e9:.2f}, activations about "
            f"{self.activation_bytes / 1e9:.2f}",
            f"time              {time}",
            f"cost              {'unknown: give hardware.price_per_hour' if self.cost is None else f'{self.cost:,.2f}'}",
        ]


def make_plan(
    settings: RunSettings,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    rows: Rows,
    flops_of: Callable[[Any, BatchShape, Any], float],
) -> Plan:
    """The plan of a run on `hardware.num_devices` devices, judged by its first batch."""
    assert rows.order is not None
    first = [rows.train[index] for index in islice(rows.order, arguments.per_device_train_batch_size)]
    config, shape = model.config, shape_of(rows.collate(first))
    prepared = prepare_towers(model, settings.towers, settings.lora)
    devices = max(settings.hardware.num_devices, arguments.world_size)
    per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * devices
    steps = arguments.max_steps
    if steps <= 0:
        steps = int(arguments.num_train_epochs * len(rows.order) / per_step)
    num_batches = steps * arguments.gradient_accumulation_steps * devices
    flops = num_batches * flops_of(config, shape, settings.towers)
    peak = settings.hardware.peak_tflops or device_tflops(arguments.device)
    hours = flops / (peak * 1e12 * settings.hardware.utilisation * devices) / 3600 if peak else None
    price = settings.hardware.price_per_hour
    parameters, trained = _count(prepared)
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in prepared.parameters())
    # A gradient beside each trained weight, and Adam's two moments in 32 bits.
    optimizer_bytes = sum(w.numel() * (w.element_size() + 8) for w in prepared.parameters() if w.requires_grad)
    return Plan(
        parameters=parameters,
        trained=trained,
        num_steps=steps,
        cells=steps * per_step,
        tokens=num_batches * shape.num_tokens,
        flops=flops,
        weight_bytes=weight_bytes,
        optimizer_bytes=optimizer_bytes,
        activation_bytes=_activation_bytes(config, shape, checkpointed=bool(arguments.activation_checkpointing)),
        hours=hours,
        cost=None if hours is None or price is None else hours * price * devices,
    )


def _count(model: torch.nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    parameters: dict[str, int] = {}
    trained: dict[str, int] = {}
    for name, weight in model.named_parameters():
        tower = tower_of(name)
        parameters[tower] = parameters.get(tower, 0) + weight.numel()
        trained[tower] = trained.get(tower, 0) + weight.numel() * weight.requires_grad
    return parameters, trained


def _activation_bytes(config: Any, shape: BatchShape, *, checkpointed: bool) -> float:
    towers = [(config.cell_config, shape.num_genes), (config.qformer_config, shape.num_text_tokens)]
    if shape.num_prompt_tokens:
        towers.append((config.text_config, shape.num_prompt_tokens))
    per_layer = 2 if checkpointed else ACTIVATION_BYTES
    return sum(
        shape.num_cells * length * tower.hidden_size * tower.num_hidden_layers * per_layer for tower, length in towers
    )
