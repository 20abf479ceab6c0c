"""What a run says of itself between two log lines: each loss by its name, cells and tokens a second, utilisation."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import TrainerCallback

from scmmgpt.training.flops import BatchShape

# bf16 dense peak of one device, TFLOP/s, from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "H800": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "V100": 125}


@dataclass
class RunMeter(TrainerCallback):
    """Collects what each batch tells; `drain` gives the means since the last call.

    Attributes
    ----------
    losses
        Names of the model's losses, the same in every process.
    step_flops
        Operations of one training step on a batch of this shape.
    """

    losses: tuple[str, ...]
    step_flops: Callable[[BatchShape], float]
    peak_tflops: float | None = None
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)
    _times: dict[str, int] = field(default_factory=dict)
    _work: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("cells", "tokens", "flops"), 0.0))
    _seconds: float = 0.0
    _last: float = 0.0

    def observe(self, inputs: dict, outputs: dict, *, is_training: bool) -> None:
        """Take note of a batch and of the losses it gave."""
        for name in self.losses:
            value = outputs.get(name)
            if value is not None:
                self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
                self._times[name] = self._times.get(name, 0) + 1
        if is_training and "gene_ids" in inputs:
            shape = shape_of(inputs)
            self._work["cells"] += shape.num_cells
            self._work["tokens"] += shape.num_tokens
            self._work["flops"] += self.step_flops(shape)

    def drain(self, accelerator, *, is_training: bool) -> dict[str, float]:
        """Mean losses of all processes, and the rates of a training interval; then begin anew."""
        device = accelerator.device
        sums = torch.stack([torch.as_tensor(self._sums.get(n, 0.0), device=device).float() for n in self.losses])
        times = torch.tensor([self._times.get(name, 0) for name in self.losses], device=device, dtype=torch.float32)
        sums, times = (accelerator.reduce(tensor, reduction="sum") for tensor in (sums, times))
        prefix = "" if is_training else "eval_"
        report = {
            f"{prefix}{name}": float(total / count)
            for name, total, count in zip(self.losses, sums, times, strict=True)
            if count
        }
        self._sums, self._times = {}, {}
        if is_training and self._work["cells"] and self._seconds:
            work = torch.tensor(
                [*self._work.values()], device=device, dtype=torch.float64 if device.type != "mps" else torch.float32
            )
            cells, tokens, flops = (accelerator.reduce(work, reduction="sum") / self._seconds).tolist()
            report |= {"cells_per_second": cells, "tokens_per_second": tokens}
            peak = self.peak_tflops or device_tflops(device)
            if peak:
                report["mfu"] = flops / (peak * 1e12 * accelerator.num_processes)
            self._work, self._seconds = dict.fromkeys(self._work, 0.0), 0.0
        return report

    # Only steps are timed, with the wait for their data; evaluations and checkpoints are not.

    def on_train_begin(self, args, state, control, **kwargs):
        self._last = time.perf_counter()

    on_evaluate = on_save = on_train_begin

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self._seconds, self._last = self._seconds + now - self._last, now


def shape_of(inputs: dict) -> BatchShape:
    """Cells and mean lengths of a batch of either stage."""
    starts, gene_mask, targets = (inputs.get(name) for name in ("cell_cu_seqlens", "gene_mask", "target_gene_ids"))
    if starts is not None:
        num_cells, num_genes = len(starts) - 1, starts[-1]
    else:
        num_cells = len(inputs["gene_ids"])
        num_genes = inputs["gene_ids"].numel() if gene_mask is None else gene_mask.sum()
    prompt, text = inputs.get("attention_mask"), inputs.get("cell_prompt_mask")
    if "labels" not in inputs:
        prompt, text = None, inputs.get("qformer_attention_mask", prompt)
    return BatchShape(
        num_cells=num_cells,
        num_genes=float(num_genes) / num_cells,
        num_text_tokens=0.0 if text is None else float(text.sum()) / num_cells,
        num_prompt_tokens=0.0 if prompt is None else float(prompt.sum()) / num_cells,
        num_target_genes=0 if targets is None else len(targets),
    )


def device_tflops(device: torch.device) -> float | None:
    """The peak of a device: looked up for a GPU, measured by one product of matrices on a CPU."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((float(peak) for key, peak in PEAK_TFLOPS.items() if key in name), None)
    return measured_tflops() if device.type == "cpu" else None


def measured_tflops(size: int = 1024) -> float:
    """What this process's threads reach in a float32 product of matrices. Draws no random number: it runs in training."""
    matrix = torch.ones(size, size)
    best = min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=4))
    return 2 * size**3 / best / 1e12
