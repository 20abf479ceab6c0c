# /// script
# requires-python = ">=3.11"
# dependencies = ["scmmgpt[train,eval]"]
# ///
"""Stage 1: align cells and text with contrastive, matching, captioning and masked-value losses.

    accelerate launch training/stage1.py --config training/recipes/tiny_stage1.yaml
    accelerate launch training/stage1.py --config training/recipes/tiny_stage1.yaml --dry-run
    accelerate launch --config_file training/recipes/accelerate/ddp.yaml training/stage1.py --config ...
    torchrun --nproc_per_node 2 training/stage1.py --config ...     # on a CPU, where accelerate starts one process

The same command again goes on from the last whole checkpoint. Every checkpoint is a loadable Hub repository.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainingArguments

from scmmgpt.training.assembly import (
    CellWriter,
    CorpusRows,
    assemble_config,
    assemble_pretraining_model,
    assemble_processor,
    cell_collator,
    made_from_recipe,
    row_order,
    text_encoder,
)
from scmmgpt.training.collators import CellTextCollator
from scmmgpt.training.corpus.reading import Corpus, Selection
from scmmgpt.training.curves import draw_curves
from scmmgpt.training.flops import stage_1_flops
from scmmgpt.training.held_out import held_out_cells, nearest_class_mean
from scmmgpt.training.plan import make_plan
from scmmgpt.training.run import (
    begin,
    plain_errors,
    read_command,
    seed_everything,
    train_to_the_end,
    training_arguments,
)
from scmmgpt.training.settings import Stage1Settings
from scmmgpt.training.strict_yaml import RecipeError
from scmmgpt.training.towers import prepare_towers
from scmmgpt.training.trainer import Rows, RunTrainer


class Stage1Trainer(RunTrainer):
    """The trainer of stage 1, which hides values where the model learns to fill them in."""

    settings: Stage1Settings
    losses = ("contrast_loss", "match_loss", "caption_loss", "value_loss")
    flops_of = staticmethod(stage_1_flops)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.model.config.value_weight:
            config = self.model.config.cell_config
            inputs = inputs | hide_values(inputs, self.settings.mask_share, config.mask_value)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


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
        "target_values": torch.where(hidden, values, -100.0),
    }


def train(
    settings: Stage1Settings,
    model: PreTrainedModel,
    processor,
    rows: Rows,
    *,
    fresh: bool = False,
    make_trainer: Callable[..., Stage1Trainer] = Stage1Trainer,
) -> Stage1Trainer:
    """Train a model, from its last checkpoint if there is one; the result lies in `settings.output`.

    `make_trainer` is for a loss beyond those of the stage.
    """
    arguments = training_arguments(settings, TrainingArguments)
    checkpoint = begin(settings, arguments, fresh=fresh)
    prepared = prepare_towers(model, settings.towers, settings.lora)
    trainer = make_trainer(prepared, arguments, settings=settings, rows=rows, processing_class=processor)
    train_to_the_end(trainer, checkpoint, trainer.save_model)
    return trainer


def rows_of(settings: Stage1Settings, corpus: Corpus, processor, arguments: TrainingArguments) -> Rows:
    """The corpus's training rows with their texts, and its validation rows to be measured on."""
    data = settings.data
    train_rows = Selection("train", data.scheme, is_labelled=True, sources=tuple(data.sources))
    held_out_rows = replace(train_rows, split="validation")
    genes, encode = cell_collator(settings, corpus, processor), text_encoder(processor, data.max_text_tokens)
    collate = CellTextCollator(genes, CellWriter(corpus.ontology), encode, corpus.ontology, seed=arguments.seed)
    held_out = held_out_cells(corpus, held_out_rows, settings.evaluation.max_cells, genes, encode)
    return Rows(
        train=CorpusRows(corpus),
        eval=None if held_out is None else CorpusRows(corpus, held_out.rows),
        collate=collate,
        order=row_order(settings, corpus, train_rows, arguments),
        scores=held_out,
        baseline={} if held_out is None else nearest_class_mean(corpus, train_rows, held_out),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or print the plan."""
    command = read_command("Stage 1: align cells with texts.", Stage1Settings, arguments)
    settings = command.settings
    training = training_arguments(settings, TrainingArguments)
    seed_everything(training)
    corpus = Corpus.open(settings.data.corpus)
    with made_from_recipe():
        processor = assemble_processor(settings, corpus)
        model = assemble_pretraining_model(settings, assemble_config(settings, processor))
    rows = rows_of(settings, corpus, processor, training)
    if command.dry_run:
        print(*make_plan(settings, training, model, rows, stage_1_flops).lines(), sep="\n")
        return
    trainer = train(settings, model, processor, rows, fresh=command.fresh)
    if training.process_index == 0:
        draw_curves(trainer.state.log_history, Path(settings.output) / "curves.png", rows.baseline)
        print(f"Stage 1 is in {settings.output}")


if __name__ == "__main__":
    with plain_errors():
        main()
