"""The trainer of both stages: what it does around each loss, log line, evaluation and checkpoint beyond Trainer itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from scmmgpt.training.checkpoints import stop_at_nan, whole_or_absent
from scmmgpt.training.data import RowSampler
from scmmgpt.training.meter import RunMeter
from scmmgpt.training.settings import RunSettings
from scmmgpt.training.strict_yaml import RecipeError
from scmmgpt.training.towers import parameter_groups


@dataclass(frozen=True)
class Rows:
    """What a run trains on and is measured with.

    Attributes
    ----------
    train
        Rows, or a stream of whole batches.
    collate
        Rows -> the arguments of `forward`; not asked by a stream.
    order
        The order of the training rows; None leaves it to Trainer.
    scores
        Model -> numbers by name, on held-out cells; None measures losses alone.
    baseline
        What nearest-class-mean reaches on the same cells, by the names of `scores`.
    """

    train: Any
    eval: Any
    collate: Callable[[Any], dict]
    order: RowSampler | None = None
    scores: Callable[[Any], dict[str, float]] | None = None
    baseline: dict[str, float] = field(default_factory=dict)


class RunTrainer(Trainer):
    """Trainer that logs each loss by name, scores held-out cells, stops at NaN and leaves whole checkpoints only.

    A stage names the `losses` in its model's outputs, and `flops_of` its configuration, a batch's shape and its towers.
    """

    model: PreTrainedModel
    losses: tuple[str, ...]
    flops_of: Callable[..., float]
    loss_is_scaled_for_ga = False  # `losses_of` gives parts of a mean over the batches of a step

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        settings: RunSettings,
        rows: Rows,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ):
        _check_evaluation(args, settings, rows)
        step_flops = partial(self.flops_of, model.config, towers=settings.towers)
        data = {"train_dataset": rows.train, "eval_dataset": rows.eval, "data_collator": rows.collate}
        super().__init__(model, args, callbacks=[*callbacks], **data, **kwargs)
        self.settings, self.rows = settings, rows
        self.meter, self.eval_meter = (
            RunMeter(self.losses, step_flops, settings.hardware.peak_tflops) for _ in ("training", "evaluation")
        )
        self.add_callback(self.meter)
        if settings.evaluation.patience is not None:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience=settings.evaluation.patience))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if num_items_in_batch is not None:
            inputs = inputs | {"num_items_in_batch": num_items_in_batch / self._num_counted_batches()}
        loss, outputs = self.losses_of(model, inputs)
        place = {"run": self.args.output_dir, "step": self.state.global_step, "process": self.args.process_index}
        stop_at_nan(loss.detach(), inputs, **place)
        is_training = self.model.training
        (self.meter if is_training else self.eval_meter).observe(inputs, outputs, is_training=is_training)
        return (loss, outputs) if return_outputs else loss

    def losses_of(self, model, inputs: dict) -> tuple[torch.Tensor, Any]:
        """The loss of a batch, and its parts by name. Always the model's own: TRL's would leave out text -> cell."""
        loss, outputs = Trainer.compute_loss(self, model, inputs, return_outputs=True)
        return loss, outputs

    def _num_counted_batches(self) -> int:
        """Batches over which Trainer has counted what is to be learnt: those of a step, of all devices."""
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        devices = self.args.world_size * max(self.args.n_gpu, 1) if self.args.average_tokens_across_devices else 1
        return accumulated * devices

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs = logs | self.meter.drain(self.accelerator, is_training=True)
        super().log(logs, start_time)

    def evaluation_loop(self, *args, **kwargs):
        # What is drawn to evaluate must not change what is drawn to train on.
        with torch.random.fork_rng(self._devices_that_draw):
            output = super().evaluation_loop(*args, **kwargs)
        metrics = (output.metrics or {}) | self.eval_meter.drain(self.accelerator, is_training=False)
        if self.rows.scores is not None:
            model = self.accelerator.unwrap_model(self.model).eval()
            with torch.no_grad():
                metrics |= {f"eval_{name}": value for name, value in self.rows.scores(model).items()}
        return output._replace(metrics=metrics)

    @property
    def _devices_that_draw(self) -> list[torch.device]:
        return [self.args.device] if self.args.device.type == "cuda" else []

    def create_optimizer(self, model=None):
        """With a learning rate for each tower that asks for its own."""
        trained = self.model if model is None else model
        if self.optimizer is None and self.settings.learning_rates:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            groups = parameter_groups(
                trained,
                self.get_decay_parameter_names(trained),
                self.settings.learning_rates,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
            )
            self.optimizer = kind(groups, **options)
        return super().create_optimizer(model)

    def get_train_dataloader(self):
        if isinstance(self.train_dataset, IterableDataset):  # a stream of whole batches
            return DataLoader(self.train_dataset, batch_size=None, num_workers=self.args.dataloader_num_workers)
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.rows.order is None else self.rows.order

    def _save_checkpoint(self, model, trial):
        with whole_or_absent(str(self.args.output_dir), self.state.global_step):
            super()._save_checkpoint(model, trial)


def _check_evaluation(args: TrainingArguments, settings: RunSettings, rows: Rows) -> None:
    """What Trainer would find out later, in the words of a recipe."""
    measures, patience = args.eval_strategy != "no", settings.evaluation.patience
    if measures and rows.eval is None:
        raise RecipeError(
            "No labelled row of the corpus is held out to be measured on: set `training.eval_strategy: no`, or build the "
            "corpus with a validation split of `data.scheme`."
        )
    if patience is not None and not (measures and args.metric_for_best_model):
        raise RecipeError(
            f"`evaluation.patience` is {patience}, and nothing says of what: set `training.eval_strategy` and "
            "`training.metric_for_best_model`, such as eval_loss, or leave the patience out."
        )
