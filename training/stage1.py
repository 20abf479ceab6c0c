"""Stage 1, discriminative: cells and texts meet in one space, matching pairs are told from near misses, cells described.

    accelerate launch training/stage1.py --config training/recipes/tiny_stage1.yaml
    accelerate launch training/stage1.py --config training/recipes/tiny_stage1.yaml --dry-run
    accelerate launch --config_file training/recipes/accelerate/ddp.yaml training/stage1.py --config ...

The same command again goes on from the last whole checkpoint. Every checkpoint is a loadable Hub repository.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments

from scmmgpt.training.checkpoints import whole_or_absent
from scmmgpt.training.flops import stage_1_flops
from scmmgpt.training.meter import RunMeter
from scmmgpt.training.run import begin, callbacks_of, training_arguments
from scmmgpt.training.settings import RecipeError, RunSettings
from scmmgpt.training.towers import prepare_towers
from scmmgpt.training.watch import RunWatch

LOSSES = ("contrast_loss", "match_loss", "caption_loss", "value_loss")


class Stage1Trainer(Trainer):
    """Trainer with the losses by name, hidden values, and a stop at NaN."""

    def __init__(self, *args, watch: RunWatch, row_order: Sampler | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.watch, self.row_order = watch, row_order
        self.add_callback(watch.meter)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.model.config.value_weight:
            config = self.model.config.cell_config
            inputs = inputs | hide_values(inputs, self.watch.settings.mask_share, config.mask_value)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self.watch.observe(self, inputs, outputs, loss)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        super().log(self.watch.add_to_log(self, logs), start_time)

    def evaluation_loop(self, *args, **kwargs):
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update(self.watch.evaluate(self))
        return output

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = self.watch.optimizer(self, self.model if model is None else model)
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.row_order is None else self.row_order

    def _save_checkpoint(self, model, trial):
        with whole_or_absent(self.args.output_dir, self.state.global_step):
            super()._save_checkpoint(model, trial)


def hide_values(inputs: dict, share: float, mask_value: float) -> dict[str, torch.Tensor]:
    """Some values of every cell behind `mask_value`, and what stood there as labels.

    The draw comes from the process's own generator, which checkpoints keep: a resumed run hides the same values.
    """
    values, mask = inputs["gene_values"], inputs.get("gene_mask")
    if mask is None:
        raise RecipeError(
            "Masked values need padded cells: set `data.packed: false`, or `model.config.value_weight: 0`."
        )
    hidden = (torch.rand(values.shape, device=values.device) < share) & mask.bool()
    hidden[:, 0] = False  # <cls> has no value
    return {
        "gene_values": values.masked_fill(hidden, mask_value),
        "value_labels": torch.where(hidden, values, -100.0),
    }


def train(
    settings: RunSettings,
    model: torch.nn.Module,
    processor,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    collate: Callable[[list], dict],
    *,
    row_order: Callable[[TrainingArguments], Sampler] | None = None,
    scores: Callable | None = None,
    fresh: bool = False,
) -> Stage1Trainer:
    """Train a model on rows that `collate` turns into batches; the result lies in `settings.output`."""
    arguments = training_arguments(settings, TrainingArguments)
    checkpoint = begin(settings, arguments, fresh=fresh)
    flops = partial(stage_1_flops, model.config, towers=settings.towers)
    meters = [RunMeter(LOSSES, lambda shape: flops(shape=shape), settings.hardware.peak_tflops) for _ in range(2)]
    trainer = Stage1Trainer(
        model=prepare_towers(model, settings.towers, settings.lora),
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        processing_class=processor,
        callbacks=callbacks_of(settings),
        watch=RunWatch(settings, *meters, scores=scores),
        row_order=None if row_order is None else row_order(arguments),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    return trainer
