"""What both trainers do around each loss, log line and evaluation, beyond what Trainer does itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from scmmgpt.training.checkpoints import stop_at_nan
from scmmgpt.training.meter import RunMeter
from scmmgpt.training.settings import RunSettings
from scmmgpt.training.towers import parameter_groups


@dataclass
class RunWatch:
    """Stops at NaN, names the losses, measures on held-out cells.

    Attributes
    ----------
    meter, eval_meter
        Collect training and evaluation batches apart.
    scores
        Name -> number from the model in evaluation mode, on cells that were held out; None measures losses alone.
    """

    settings: RunSettings
    meter: RunMeter
    eval_meter: RunMeter
    scores: Callable[[Any], dict[str, float]] | None = None
    history: list[dict] = field(default_factory=list)

    def observe(self, trainer: Trainer, inputs: dict, outputs: dict, loss: torch.Tensor) -> None:
        """Look at one batch."""
        place = {
            "run": trainer.args.output_dir,
            "step": trainer.state.global_step,
            "process": trainer.args.process_index,
        }
        stop_at_nan(loss.detach(), inputs, **place)
        is_training = trainer.model.training
        (self.meter if is_training else self.eval_meter).observe(inputs, outputs, is_training=is_training)

    def add_to_log(self, trainer: Trainer, logs: dict[str, float]) -> dict[str, float]:
        """A training log line with the losses by name and the rates."""
        if "loss" not in logs:
            return logs
        return logs | self.meter.drain(trainer.accelerator, is_training=True)

    def evaluate(self, trainer: Trainer) -> dict[str, float]:
        """Held-out losses by name, and the scores."""
        report = self.eval_meter.drain(trainer.accelerator, is_training=False)
        if self.scores is not None:
            model = trainer.accelerator.unwrap_model(trainer.model)
            model.eval()
            with torch.no_grad():
                report |= {f"eval_{name}": value for name, value in self.scores(model).items()}
        return report

    def optimizer(self, trainer: Trainer, model: PreTrainedModel) -> torch.optim.Optimizer | None:
        """An optimiser with a learning rate for each tower that asks for its own; None leaves it to Trainer."""
        if not self.settings.learning_rates:
            return None
        kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
        groups = parameter_groups(
            model,
            trainer.get_decay_parameter_names(model),
            self.settings.learning_rates,
            learning_rate=trainer.args.learning_rate,
            weight_decay=trainer.args.weight_decay,
        )
        return kind(groups, **options)
