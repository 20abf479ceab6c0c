"""A corpus of two studies, labelled, and one without labels, and recipes small enough to train in seconds."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import yaml
from tiny_corpus import gene_tokenizer, make_cells
from tiny_models import CELL_DECODER, CELL_ENCODER, LANGUAGE_MODEL, PROJECTIONS, QFORMER

from scmmgpt.training.corpus.build import build_corpus
from scmmgpt.training.corpus.reading import Corpus
from scmmgpt.training.corpus.recipe import CorpusRecipe
from scmmgpt.training.corpus.splits import SplitSettings

CONFIG = {
    **PROJECTIONS,
    "cell_config": {
        **CELL_ENCODER,
        "num_hidden_layers": 1,
        "hidden_dropout": 0.1,
        "num_pooled_tokens": 2,
        "num_attended_genes": 16,
    },
    "qformer_config": QFORMER,
    "text_config": LANGUAGE_MODEL,
    "cell_decoder_config": CELL_DECODER,
}
TRAINING = {
    "max_steps": 6,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 6,
    "disable_tqdm": True,
    "bf16": False,
    "activation_checkpointing": False,
}


def build_tiny_corpus(folder: Path, **tokens) -> Corpus:
    """Counts by default: study `known` trains, study `new` is held out, study `bare` has no labels."""
    cells = folder / "cells"
    cells.mkdir(parents=True)
    make_cells(num_cells=96, seed=0, donor="k").write_h5ad(cells / "known.h5ad")
    make_cells(num_cells=36, seed=1, donor="n").write_h5ad(cells / "new.h5ad")
    unlabelled = make_cells(num_cells=48, seed=2, donor="b")
    unlabelled.obs = unlabelled.obs.drop(columns=["cell_type", "cell_type_ontology_term_id"])
    unlabelled.write_h5ad(cells / "bare.h5ad")
    splits = SplitSettings(validation=0.0, test=0.0, held_out={"study": {"validation": ["new"]}})
    recipe = CorpusRecipe(tokens={"value_mode": "counts", **tokens}, splits=splits, labels_at_chance="keep")
    return build_corpus(
        [str(cells)], folder / "corpus", recipe=recipe, processor=gene_tokenizer(), say=lambda line: None
    )


def write_recipe(folder: Path, corpus: Corpus, name: str = "run", *, training: dict | None = None, **sections) -> Path:
    """A recipe of either stage; sections are laid over the usual ones."""
    content = {
        "output": str(folder / name),
        "data": {"corpus": str(corpus.path), "max_text_tokens": 48, **sections.pop("data", {})},
        "model": {
            "tokenizer_size": 400,
            "gene_tokenizer": {"value_mode": "log1p", "min_matched_genes": 1},
            "config": {**CONFIG, **sections.pop("config", {})},
            **sections.pop("model", {}),
        },
        "evaluation": {"max_cells": 24, **sections.pop("evaluation", {})},
        "training": {**TRAINING, **(training or {})},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


write_stage_2_recipe = partial(write_recipe, evaluation={"num_generated_texts": 4, "num_generated_cells": 2})


def without_dropout(config: dict) -> dict:
    """Processes and accumulated batches would draw other masks than one large batch."""
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    return {
        **config,
        "cell_config": {**config["cell_config"], "hidden_dropout": 0.0},
        "qformer_config": {**config["qformer_config"], **still},
    }


def run_in_processes(num_processes: int, script: Path, recipe: Path) -> None:
    """A stage's script under torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
    done = subprocess.run(
        [*launch, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", script, "--config", recipe],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
