"""Find, write and clean up checkpoints so that none is partial; stop at NaN."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from scmmgpt.errors import UserError

STATE_FILE = "trainer_state.json"  # Trainer writes it last: with it, a checkpoint is whole
BAD_BATCH_FILE = "bad_batch.pt"


class TrainingStopped(UserError):
    """A run that cannot go on, with where it can be taken up again."""


def last_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end, None where there is none."""
    folders = [folder for folder in Path(run).glob("checkpoint-*") if folder.name.partition("-")[2].isdigit()]
    return max(filter(is_whole, folders), key=lambda folder: int(folder.name.partition("-")[2]), default=None)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True


def remove_partial_checkpoints(run: str | Path) -> None:
    """Clear what a killed process left half-written."""
    for folder in Path(run).glob("checkpoint-*"):
        if folder.is_dir() and not is_whole(folder):
            shutil.rmtree(folder)


@contextmanager
def whole_or_absent(run: str | Path, step: int) -> Iterator[None]:
    """Around the writing of a checkpoint: when it fails, no half-written one stays, and the reason is said."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(Path(run) / f"checkpoint-{step}", ignore_errors=True)
        last = last_checkpoint(run)
        free = shutil.disk_usage(run).free / 1e9
        raise TrainingStopped(
            f"Checkpoint {step} could not be written to {run} ({error}; {free:.1f} GB free). "
            + (f"{last.name} is whole. " if last else "There is no earlier checkpoint. ")
            + "Make room and run the same command again: it goes on from there."
        ) from error


def stop_at_nan(loss: torch.Tensor, inputs: dict, *, run: str | Path, step: int, process: int = 0) -> None:
    """Stop at a loss that is not finite, with the batch saved for inspection."""
    if torch.isfinite(loss).all():
        return
    path = Path(run) / (BAD_BATCH_FILE if process == 0 else f"bad_batch_{process}.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: value.detach().cpu() if torch.is_tensor(value) else value for name, value in inputs.items()}
    torch.save({"step": step, "loss": float(loss), "inputs": on_cpu}, path)
    last = last_checkpoint(run)
    raise TrainingStopped(
        f"The loss is {float(loss)} at step {step}. Its batch is in {path} (torch.load). "
        + (f"The weights of {last.name} are from before. " if last else "")
        + "Look for extreme values in the batch, or lower `training.learning_rate`."
    )
