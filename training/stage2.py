# /// script
# requires-python = ">=3.11"
# dependencies = ["scmmgpt[train,eval]"]
# ///
"""Stage 2: train a causal LM on cell to text and text to cell in one run.

    accelerate launch training/stage2.py --config training/recipes/tiny_stage2.yaml
    accelerate launch training/stage2.py --config training/recipes/tiny_stage2.yaml --dry-run
    accelerate launch --config_file training/recipes/accelerate/fsdp2.yaml training/stage2.py --config ...
    torchrun --nproc_per_node 2 training/stage2.py --config ...     # on a CPU, where accelerate starts one process

The same command again goes on from the last whole checkpoint. With LoRA, `adapter/` in the output holds a few MB that
load onto the base, and the output itself is the merged model; without, it is the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.training.assembly import (
    assemble_config,
    assemble_generative_model,
    assemble_processor,
    cell_collator,
    made_from_recipe,
    new_token_ids,
    row_order,
)
from scmmgpt.training.conversations import ConversationCollator, MixedOrder, ShuffledRows
from scmmgpt.training.corpus.reading import Corpus, Selection
from scmmgpt.training.curves import draw_curves
from scmmgpt.training.data import RowSampler
from scmmgpt.training.decoder_start import begin_with, corpus_shares, is_new
from scmmgpt.training.flops import stage_2_flops
from scmmgpt.training.held_out import spread_over
from scmmgpt.training.held_out_generation import HeldOutGeneration, held_out_generation
from scmmgpt.training.instruction_tuning import (
    answer_loss,
    instruction_parts,
    retention_loss,
    without_cells,
)
from scmmgpt.training.plan import make_plan
from scmmgpt.training.run import (
    begin,
    plain_errors,
    read_command,
    seed_everything,
    train_to_the_end,
    training_arguments,
)
from scmmgpt.training.settings import Stage2Settings
from scmmgpt.training.strict_yaml import RecipeError
from scmmgpt.training.towers import freeze_towers, lora_config
from scmmgpt.training.trainer import Rows, RunTrainer

ADAPTER, BASE, SAMPLES = "adapter", "base", "samples.jsonl"
# What TRL must leave alone: batches come from our collator, whole.
LEAVE_TO_US = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}


class Stage2Trainer(RunTrainer, SFTTrainer):  # type: ignore[misc] # TRL gives `loss_is_scaled_for_ga` the type of None
    """The trainer of stage 2, in TRL's place."""

    data_collator: ConversationCollator
    losses: tuple[str, ...] = ("language_loss", "cell_generation_loss")
    flops_of = staticmethod(stage_2_flops)

    def losses_of(self, model, inputs):
        """With every answer token of a step weighing the same in one direction, and every cell in the other."""
        loss, outputs = super().losses_of(model, inputs)
        language, cells = outputs.get("language_loss"), outputs.get("cell_generation_loss")
        if language is not None and cells is not None:
            loss = language + self.model.config.cell_generation_weight * cells
        return loss, outputs


class InstructionTrainer(Stage2Trainer):
    """The trainer of stage 2 for conversations."""

    losses = ("language_loss", "retention_loss")
    settings: Stage2Settings

    def losses_of(self, model, inputs):
        """With logits of the answers alone; several processes need the wrapped model's own loss."""
        if self.args.world_size > 1:
            return super().losses_of(model, inputs)
        # Without its adapter's wrapper.
        tuned: Any = self.model
        whole = getattr(tuned, "get_base_model", lambda: tuned)()
        if not self.settings.language_retention:
            loss = answer_loss(whole, inputs)
            return loss, {"language_loss": loss}
        # What is said without cells is not learnt: it is kept as it was.
        labels = inputs["labels"].masked_fill(without_cells(whole, inputs)[:, None], -100)
        losses = {"language_loss": answer_loss(whole, inputs | {"labels": labels})}
        retention = retention_loss(whole, inputs, tuned.disable_adapter)
        if retention is not None:
            losses["retention_loss"] = retention
        return losses["language_loss"] + self.settings.language_retention * losses.get("retention_loss", 0.0), losses


@dataclass
class SampleWriter(TrainerCallback):
    """After each evaluation: what the model said of held-out cells, one line of JSON each."""

    scores: HeldOutGeneration

    def on_evaluate(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.scores.samples:
            with (Path(args.output_dir) / SAMPLES).open("a") as file:
                file.writelines(json.dumps({"step": state.global_step, **said}) + "\n" for said in self.scores.samples)


def train(
    settings: Stage2Settings,
    model: PreTrainedModel,
    processor,
    rows: Rows,
    *,
    new_tokens: Sequence[int] = (),
    fresh: bool = False,
    make_trainer: Callable[..., Stage2Trainer] = Stage2Trainer,
) -> Stage2Trainer:
    """Train a model, from its last checkpoint if there is one; the result lies in `settings.output`.

    `make_trainer` is for a loss beyond those of the stage.
    """
    arguments = training_arguments(settings, SFTConfig, **LEAVE_TO_US)
    checkpoint = begin(settings, arguments, fresh=fresh)
    adapters = lora_config(model, settings.towers, settings.lora, new_tokens)
    if adapters is None:
        freeze_towers(model, settings.towers)
    elif settings.model.start_from is None or settings.model.language_model is not None:
        keep_base(model, processor, Path(settings.output) / BASE, arguments)
    samples = [SampleWriter(rows.scores)] if isinstance(rows.scores, HeldOutGeneration) else []
    about = {"settings": settings, "rows": rows, "processing_class": processor}
    trainer = make_trainer(model, arguments, peft_config=adapters, callbacks=samples, **about)
    train_to_the_end(
        trainer, checkpoint, lambda: save(trainer, processor, settings, has_adapters=adapters is not None)
    )
    return trainer


def keep_base(model: PreTrainedModel, processor, place: Path, arguments: SFTConfig) -> None:
    """Adapters load onto a base: a model joined from parts is written once, and they will name it."""
    with arguments.main_process_first(local=False, desc="base model"):
        if arguments.process_index == 0 and not (place / "config.json").is_file():
            model.save_pretrained(place)
            processor.save_pretrained(place)
    model.name_or_path = model.config._name_or_path = str(place)


def save(trainer: Stage2Trainer, processor, settings: Stage2Settings, *, has_adapters: bool) -> None:
    """The whole model; with LoRA its adapters too. Sharded models are left as adapters."""
    output = Path(settings.output)
    if not has_adapters:
        trainer.save_model()
        return
    trainer.save_model(str(output / ADAPTER))
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if settings.lora.merge and not is_sharded and trainer.args.process_index == 0:
        trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(output)
        processor.save_pretrained(output)


def rows_of(settings: Stage2Settings, corpus: Corpus, processor, arguments: SFTConfig) -> Rows:
    """The corpus's training rows as conversations and requests, and its validation rows to be measured on."""
    data, evaluation = settings.data, settings.evaluation
    if data.text_to_cells and corpus.manifest["value_mode"] != "counts":
        raise RecipeError(
            f"{corpus.path} holds {corpus.manifest['value_mode']} values: text -> cell learns counts. Build it with "
            "`tokens: {value_mode: counts}`, or set `data.text_to_cells: false`."
        )
    train_rows = Selection("train", data.scheme, is_labelled=True, sources=tuple(data.sources))
    held_out = replace(train_rows, split="validation")
    collate = ConversationCollator(
        cell_collator(settings, corpus, processor),
        processor,
        corpus.ontology,
        max_tokens=data.max_text_tokens,
        cells_to_text=data.cells_to_text,
        text_to_cells=data.text_to_cells,
        num_target_genes=data.num_target_genes,
        packed=data.packed,
        seed=arguments.seed,
    )
    order: RowSampler = row_order(settings, corpus, train_rows, arguments)
    if data.unlabelled_share:
        others = np.setdiff1d(corpus.rows(replace(train_rows, is_labelled=False)), corpus.rows(train_rows))
        if not len(others):
            raise RecipeError(f"{corpus.path} has no unlabelled rows: set `data.unlabelled_share: 0`.")
        order = MixedOrder(order, ShuffledRows(others, arguments.seed), data.unlabelled_share)
    dataset = corpus.dataset.with_format("numpy")
    eval_rows = spread_over(corpus, corpus.rows(held_out), "study", evaluation.max_cells)
    scores = held_out_generation(
        corpus, held_out, collate, num_texts=evaluation.num_generated_texts, num_cells=evaluation.num_generated_cells
    )
    return Rows(dataset, dataset.select(eval_rows) if len(eval_rows) else None, collate, order, scores)


def run(settings: Stage2Settings, arguments: SFTConfig, corpus: Corpus, *, fresh: bool = False) -> Stage2Trainer:
    """Train what the recipe describes on a corpus."""
    processor, model, rows = parts_of(settings, arguments, corpus)
    if settings.data.text_to_cells and is_new(model.cell_decoder):
        chosen = Selection("train", settings.data.scheme, True, tuple(settings.data.sources))
        shares, seen = corpus_shares(corpus, chosen)
        begin_with(model.cell_decoder, shares, seen, np.arange(shares.shape[1]))
    return train(settings, model, processor, rows, new_tokens=new_token_ids(settings, processor), fresh=fresh)


def parts_of(
    settings: Stage2Settings, arguments: SFTConfig, corpus: Corpus
) -> tuple[ScMMGPTProcessor, ScMMGPTForConditionalGeneration, Rows]:
    """What a run is made of: the processor, the model as it begins, and its rows."""
    seed_everything(arguments)
    with made_from_recipe():
        processor = assemble_processor(settings, corpus)
        model = assemble_generative_model(settings, assemble_config(settings, processor), processor)
    return processor, model, rows_of(settings, corpus, processor, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or print the plan."""
    command = read_command("Stage 2: cells to text and text to cells.", Stage2Settings, arguments)
    settings = command.settings
    training = training_arguments(settings, SFTConfig, **LEAVE_TO_US)
    is_corpus = settings.data.instructions is None
    if is_corpus == (not settings.data.corpus):
        raise RecipeError("Give `data.corpus` or `data.instructions`, one of the two.")
    if command.dry_run:
        _, model, rows = (
            parts_of(settings, training, Corpus.open(settings.data.corpus))
            if is_corpus
            else instruction_parts(settings, training)
        )
        print(*make_plan(settings, training, model, rows, stage_2_flops).lines(), sep="\n")
        return
    if is_corpus:
        trainer = run(settings, training, Corpus.open(settings.data.corpus), fresh=command.fresh)
    else:
        if command.fresh:  # before the projector's beginning is written there
            shutil.rmtree(settings.output, ignore_errors=True)
        processor, model, rows = instruction_parts(settings, training)
        trainer = train(settings, model, processor, rows, make_trainer=InstructionTrainer)
    if training.process_index == 0:
        draw_curves(trainer.state.log_history, Path(settings.output) / "curves.png")
        print(f"Stage 2 is in {settings.output}")


if __name__ == "__main__":
    with plain_errors():
        main()
