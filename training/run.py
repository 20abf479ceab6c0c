"""What every recipe script does alike: read its command line, keep the recipe beside the run, find where to go on."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from transformers import Trainer, TrainerState, TrainingArguments, enable_full_determinism, set_seed

from scmmgpt.errors import UserError, require
from scmmgpt.training.checkpoints import (
    STATE_FILE,
    TrainingStopped,
    last_checkpoint,
    remove_partial_checkpoints,
    whole_or_absent,
)
from scmmgpt.training.data import CorpusBatchSampler, RowSampler
from scmmgpt.training.settings import RunSettings, read_recipe
from scmmgpt.training.strict_yaml import RecipeError

RECIPE_FILE = "recipe.yaml"
# What may differ between a run and its continuation: it changes what is seen, not what is learnt.
FREE_TO_CHANGE = (
    "hardware.",
    "evaluation.",
    "training.logging",
    "training.save",
    "training.eval",
    "training.report_to",
)
Arguments = TypeVar("Arguments", bound=TrainingArguments)
Settings = TypeVar("Settings", bound=RunSettings)


@dataclass(frozen=True)
class Command(Generic[Settings]):
    """What was asked for on the command line."""

    settings: Settings
    dry_run: bool
    fresh: bool


def read_command(description: str, kind: type[Settings], arguments: Sequence[str] | None = None) -> Command[Settings]:
    """`--config RECIPE [--dry-run] [--fresh] [section.key=value ...]`"""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="a recipe: training/recipes/*.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan of the run and stop")
    parser.add_argument("--fresh", action="store_true", help="start from scratch where a run of this output exists")
    parser.add_argument("changes", nargs="*", metavar="section.key=value", help="numbers that differ from the recipe")
    given = parser.parse_args(arguments)
    return Command(read_recipe(given.config, kind, given.changes), given.dry_run, given.fresh)


def training_arguments(settings: RunSettings, kind: type[Arguments], **always: Any) -> Arguments:
    """The section `training` as the trainer's own arguments."""
    defaults: dict[str, Any] = {
        "output_dir": settings.output,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "logging_nan_inf_filter": False,  # a NaN is to be seen, not averaged away
        "prediction_loss_only": True,
        "remove_unused_columns": False,  # the columns of a corpus are not the arguments of `forward`
        "label_names": ["gene_ids"],  # always there, so that evaluation always computes the loss
        "dataloader_drop_last": True,  # contrast over ever the same number of pairs
    }
    if "gradient_checkpointing" not in settings.training:
        defaults["activation_checkpointing"] = kind.gradient_checkpointing  # where TRL keeps its default
    check_trackers(settings.training.get("report_to") or [])
    given = {
        name: "no" if value is False and name.endswith("_strategy") else value  # YAML reads a bare `no` as false
        for name, value in settings.training.items()
    }
    try:
        return kind(**{**defaults, **given, **always})
    except ValueError as error:
        raise RecipeError(f"`training` of the recipe: {str(error).splitlines()[0]}") from error


def check_trackers(names: str | Sequence[str]) -> None:
    """Refuse, before any work, a tracker that transformers does not know or that is not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in [names] if isinstance(names, str) else names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            nearest = get_close_matches(str(name), INTEGRATION_TO_CALLBACK, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(INTEGRATION_TO_CALLBACK)}."
            raise RecipeError(f"`training.report_to` of the recipe: there is no tracker {str(name)[:80]!r}; {hint}")
        if name in ("tensorboard", "trackio", "wandb", "mlflow"):
            require(name)


def seed_everything(arguments: TrainingArguments) -> None:
    """Before the model is made: new weights depend on the seed too."""
    if arguments.full_determinism:
        enable_full_determinism(arguments.seed)
    else:
        set_seed(arguments.seed)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print a user's mistake without a traceback, and end with 2."""
    try:
        yield
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def begin(settings: RunSettings, arguments: TrainingArguments, *, fresh: bool = False) -> str | None:
    """Prepare the output folder; the checkpoint to go on from, None for a new run."""
    run = Path(settings.output)
    with arguments.main_process_first(local=False, desc="output folder"):
        if arguments.process_index == 0:
            if fresh:
                shutil.rmtree(run, ignore_errors=True)
            run.mkdir(parents=True, exist_ok=True)
            remove_partial_checkpoints(run)
            _keep_recipe(settings, run)
    checkpoint = last_checkpoint(run)
    return None if checkpoint is None else str(checkpoint)


def train_to_the_end(trainer: Trainer, checkpoint: str | None, save: Callable[[], None]) -> None:
    """Train, from a checkpoint if there is one, and save.

    A finished run is only loaded: Trainer would take one more step.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE)) if checkpoint else TrainerState()
    if checkpoint and _is_finished(state, trainer.args):
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = state
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    with whole_or_absent(str(trainer.args.output_dir), trainer.state.global_step):
        save()
    trainer.save_state()


def _is_finished(state: TrainerState, arguments: TrainingArguments) -> bool:
    if arguments.max_steps > 0:
        return state.global_step >= arguments.max_steps
    return (state.epoch or 0) >= arguments.num_train_epochs


def _keep_recipe(settings: RunSettings, run: Path) -> None:
    """A run is continued with the recipe it was begun with, or not at all."""
    # Through yaml and back, so that a stored recipe compares with a new one.
    recipe, path = yaml.safe_load(yaml.safe_dump(asdict(settings))), run / RECIPE_FILE
    if path.is_file() and last_checkpoint(run) is not None:
        before, now = _flat(yaml.safe_load(path.read_text())), _flat(recipe)
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        changed = [key for key in changed if not key.startswith(FREE_TO_CHANGE)]
        if changed:
            differences = ", ".join(f"{key} ({before.get(key)} -> {now.get(key)})" for key in changed)
            raise TrainingStopped(
                f"{run} holds a run with other settings: {differences}. Choose another `output`, or start from scratch "
                "with --fresh."
            )
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))


class RowOrder(RowSampler):
    """The rows of `CorpusBatchSampler` one by one, for a trainer that cuts and divides batches itself.

    Trainer knows how to skip rows on resuming and how to share them among processes; which rows follow each other is
    a function of seed and epoch alone.
    """

    def __init__(self, batches: CorpusBatchSampler):
        self.batches = batches

    def __iter__(self):
        return chain.from_iterable(self.batches)

    def __len__(self) -> int:
        return self.batches.num_rows

    def set_epoch(self, epoch: int) -> None:
        self.batches.epoch = epoch


def _flat(nested: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
