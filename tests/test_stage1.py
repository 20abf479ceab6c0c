"""Stage 1 from its recipe: what it learns, what it leaves behind, and what happens when something goes wrong."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_corpus import gene_tokenizer
from tiny_models import QFORMER
from tiny_run import CONFIG, build_tiny_corpus, run_in_processes, without_dropout, write_recipe
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, Trainer

pytest.importorskip("datasets", reason="training reads its corpus with datasets: pip install 'scmmgpt[train]'")

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.training import stage1
from scmmgpt.training.assembly import CorpusRows, assemble_processor, cell_collator, check_vocabulary
from scmmgpt.training.checkpoints import TrainingStopped, last_checkpoint
from scmmgpt.training.corpus.build import build_corpus
from scmmgpt.training.settings import Stage1Settings, read_recipe
from scmmgpt.training.stage1 import hide_values, main
from scmmgpt.training.strict_yaml import RecipeError

SCRIPT = Path(stage1.__file__)
QUICK = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_tiny_corpus(tmp_path_factory.mktemp("stage1"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The output of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    main(["--config", str(write_recipe(folder, corpus))])
    return folder / "run"


def history(run):
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


def losses(run):
    return [entry["loss"] for entry in history(run) if "loss" in entry]


def test_a_run_logs_every_loss_by_name_and_its_speed(finished):
    first = history(finished)[0]

    assert {"loss", "contrast_loss", "match_loss", "caption_loss", "cells_per_second", "tokens_per_second"} <= set(
        first
    )
    weighted = first["contrast_loss"] + first["match_loss"] + first["caption_loss"]
    assert first["loss"] == pytest.approx(weighted, rel=1e-4)


def test_held_out_cells_are_named_and_found_while_training(finished):
    scores = next(entry for entry in history(finished) if "eval_loss" in entry)

    assert {"eval_caption_loss", "eval_zero_shot_accuracy", "eval_zero_shot_macro_f1"} <= set(scores)
    assert 0 <= scores["eval_cell_to_text_recall_1"] <= 1
    assert (finished / "curves.png").is_file()


def test_every_checkpoint_is_a_repository_that_the_auto_classes_load(finished, make_cells):
    checkpoint = last_checkpoint(finished)

    model = AutoModelForPreTraining.from_pretrained(checkpoint).eval()
    towers = AutoModel.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)

    assert (checkpoint / "modeling_scmmgpt.py").is_file()
    assert len(processor.gene_tokenizer.genes) == len(gene_tokenizer().genes)
    cells = make_cells()
    torch.testing.assert_close(
        towers.get_cell_features(**cells).pooler_output, model.get_cell_features(**cells).pooler_output
    )


def test_every_checkpoint_knows_the_ontology_of_its_corpus(finished, corpus):
    processor = AutoProcessor.from_pretrained(last_checkpoint(finished))

    assert list(processor.annotation_files) == ["cell_ontology.json.gz"]
    assert processor.annotator().ontology.version == corpus.ontology.version


def test_a_checkpoint_leaves_behind_what_was_fitted_to_the_weights_it_started_from(tmp_path):
    processor = AutoProcessor.from_pretrained(EMBEDDED_MODEL)
    cells = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
    build_corpus([str(cells)], tmp_path / "corpus", processor=processor.gene_tokenizer, say=lambda line: None)
    recipe = {
        "output": str(tmp_path / "run"),
        "data": {"corpus": str(tmp_path / "corpus")},
        "model": {"start_from": str(EMBEDDED_MODEL)},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2, "save_steps": 1, "disable_tqdm": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    main(["--config", str(tmp_path / "recipe.yaml")])

    checkpoint = AutoProcessor.from_pretrained(last_checkpoint(tmp_path / "run"))
    assert set(processor.annotation_files) > set(checkpoint.annotation_files) == {"cell_ontology.json.gz"}


def test_training_names_the_types_of_a_study_it_never_saw(corpus, tmp_path):
    training = {
        "max_steps": 120,
        "eval_steps": 120,
        "save_strategy": "no",
        "logging_steps": 20,
        "per_device_train_batch_size": 16,
    }
    recipe = write_recipe(tmp_path, corpus, training=training, config={"match_weight": 0, "caption_weight": 0})

    main(["--config", str(recipe)])

    scores = next(entry for entry in history(tmp_path / "run") if "eval_loss" in entry)
    assert scores["eval_zero_shot_accuracy"] > 0.8


def test_a_dry_run_prints_the_plan_and_writes_nothing(corpus, tmp_path, capsys):
    main(["--config", str(write_recipe(tmp_path, corpus, hardware={"price_per_hour": 2.0})), "--dry-run"])

    plan = capsys.readouterr().out
    assert all(word in plan for word in ("parameters", "memory per device", "tokens", "steps             6", "cost"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_trained_on(corpus, tmp_path):
    recipe = write_recipe(tmp_path, corpus)
    main(["--config", str(recipe)])
    before = losses(tmp_path / "run"), (tmp_path / "run" / "model.safetensors").read_bytes()

    main(["--config", str(recipe)])

    assert (losses(tmp_path / "run"), (tmp_path / "run" / "model.safetensors").read_bytes()) == before


def test_a_run_killed_in_mid_step_goes_on_with_the_same_losses(finished, corpus, tmp_path):
    recipe = write_recipe(tmp_path, corpus)
    kill_in_step_5 = (
        "import os, signal, sys\n"
        "from scmmgpt.training import stage1\n"
        "compute = stage1.Stage1Trainer.compute_loss\n"
        "def compute_loss(self, *args, **kwargs):\n"
        "    if self.state.global_step == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return compute(self, *args, **kwargs)\n"
        "stage1.Stage1Trainer.compute_loss = compute_loss\n"
        "stage1.main(['--config', sys.argv[1]])\n"
    )
    killed = subprocess.run([sys.executable, "-c", kill_in_step_5, recipe], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    (tmp_path / "run" / "checkpoint-5").mkdir()  # as if it had died while writing

    main(["--config", str(recipe)])

    assert losses(tmp_path / "run") == pytest.approx(losses(finished), rel=1e-6)
    assert not (tmp_path / "run" / "checkpoint-5").exists()


def test_a_run_is_not_continued_with_another_recipe(finished, corpus, tmp_path):
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    recipe["training"]["learning_rate"] = 1.0
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(recipe))

    with pytest.raises(TrainingStopped, match=r"training\.learning_rate \(0\.002 -> 1\.0\).*--fresh"):
        main(["--config", str(path)])


@pytest.mark.slow
def test_two_processes_train_to_the_losses_of_one_with_the_same_global_batch(corpus, tmp_path):
    config = without_dropout(CONFIG) | {"match_weight": 0, "caption_weight": 0}  # matching stays within a process
    runs = {}
    for processes, batch in ((1, 8), (2, 4)):
        training = {**QUICK, "max_steps": 4, "per_device_train_batch_size": batch}
        recipe = write_recipe(tmp_path, corpus, f"run{processes}", config=config, training=training)
        run_in_processes(processes, SCRIPT, recipe)
        runs[processes] = losses(tmp_path / f"run{processes}")

    assert runs[2] == pytest.approx(runs[1], rel=1e-5)


def test_a_loss_that_is_not_a_number_stops_the_run_with_its_batch_saved(corpus, tmp_path, monkeypatch):
    forward = Trainer.compute_loss

    def poisoned(self, *args, **kwargs):
        loss, outputs = forward(self, *args, **kwargs)
        return loss * (float("nan") if self.state.global_step == 1 else 1.0), outputs

    monkeypatch.setattr(Trainer, "compute_loss", poisoned)
    recipe = write_recipe(tmp_path, corpus, training=QUICK)

    with pytest.raises(TrainingStopped, match=r"loss is nan at step 1.*bad_batch\.pt"):
        main(["--config", str(recipe)])

    bad = torch.load(tmp_path / "run" / "bad_batch.pt")
    assert bad["inputs"]["gene_ids"].shape[0] == 8


def test_a_full_disk_leaves_the_checkpoint_before_whole(corpus, tmp_path, monkeypatch):
    write = Trainer._save_optimizer_and_scheduler

    def full(self, output_dir):
        if output_dir.endswith("checkpoint-6"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)

    with pytest.raises(TrainingStopped, match=r"No space left.*checkpoint-3 is whole.*run the same command again"):
        main(["--config", str(write_recipe(tmp_path, corpus, training={"eval_strategy": "no"}))])

    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


def test_only_the_towers_of_the_recipe_learn_each_at_its_rate(corpus, tmp_path, monkeypatch):
    towers = {"cell_encoder": "freeze", "qformer": "full", "heads": "full"}
    recipe = write_recipe(tmp_path, corpus, training=QUICK, towers=towers, learning_rates={"qformer": 1e-5})
    trainers = []
    monkeypatch.setattr(stage1.Stage1Trainer, "save_model", lambda self, *args: trainers.append(self))

    main(["--config", str(recipe)])

    model, optimizer = trainers[0].model, trainers[0].optimizer
    assert not any(weight.requires_grad for weight in model.model.cell_encoder.parameters())
    rate_of = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rate_of[id(model.model.qformer.embeddings.query_tokens)] == 1e-5
    assert rate_of[id(model.model.cell_projection.weight)] == 2e-3


@pytest.mark.slow
def test_trackio_keeps_every_loss_on_this_machine(corpus, tmp_path):
    pytest.importorskip("trackio", reason="pip install 'scmmgpt[track]'")
    recipe = write_recipe(tmp_path, corpus, training=QUICK | {"report_to": ["trackio"]})
    place = tmp_path / "trackio"  # which trackio reads when it is imported

    command = [sys.executable, stage1.__file__, "--config", str(recipe)]
    subprocess.run(command, env={**os.environ, "TRACKIO_DIR": str(place)}, check=True, capture_output=True)

    (database,) = place.glob("*.db")
    with sqlite3.connect(database) as connection:
        logged = [json.loads(row) for (row,) in connection.execute("select metrics from metrics")]
    assert {"train/contrast_loss", "train/match_loss", "train/caption_loss"} <= set(logged[0])


def test_hidden_values_are_predicted_and_cls_never_hidden(corpus, tmp_path, make_cells):
    cells = make_cells()

    hidden = hide_values(cells, share=0.5, mask_value=-1)

    is_hidden = hidden["target_values"] != -100
    assert (hidden["gene_values"][is_hidden] == -1).all()
    torch.testing.assert_close(hidden["target_values"][is_hidden], cells["gene_values"][is_hidden])
    assert not is_hidden[:, 0].any()
    assert not (is_hidden & (cells["gene_mask"] == 0)).any()


def test_masked_values_train_beside_the_other_losses(corpus, tmp_path):
    main(["--config", str(write_recipe(tmp_path, corpus, training=QUICK, config={"value_weight": 1.0}))])

    assert "value_loss" in history(tmp_path / "run")[0]


def test_packed_cells_give_the_losses_of_padded_ones(corpus, tmp_path):
    runs = []
    for packed in (False, True):
        recipe = write_recipe(tmp_path, corpus, f"packed{packed}", training=QUICK, data={"packed": packed})
        main(["--config", str(recipe)])
        runs.append(losses(tmp_path / f"packed{packed}"))

    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_a_corpus_made_with_another_vocabulary_is_refused(corpus):
    genes = gene_tokenizer().genes
    other = ScMMGPTGeneTokenizer(genes=["FOXP3", *genes[1:]], min_matched_genes=1)

    with pytest.raises(RecipeError, match=r"another vocabulary.*'GENE0'.*--processor my-model"):
        check_vocabulary(other, corpus, "my-model")


@pytest.mark.parametrize(("name", "value"), [("include_zero_genes", True), ("target_sum", 1000.0)])
def test_a_corpus_of_other_tokens_than_the_model_reads_is_refused(tmp_path, name, value):
    corpus = build_tiny_corpus(tmp_path, value_mode="log1p")
    settings = read_recipe(write_recipe(tmp_path, corpus), Stage1Settings)
    processor = assemble_processor(settings, corpus)
    processor.feature_extractor = processor.gene_tokenizer.with_settings(**{name: value})

    with pytest.raises(RecipeError, match=f"tokens made with {name}.*reads cells with {value!r}"):
        cell_collator(settings, corpus, processor)


@pytest.mark.parametrize(
    "model",
    [
        {"start_from": "/no/such/folder"},
        {"tokenizer": "/no/such/folder"},
        {"attention": "foo"},
        {"config": {**CONFIG, "qformer_config": {**QFORMER, "num_attention_heads": 7}}},
    ],
)
def test_a_model_that_cannot_be_made_is_refused_in_a_sentence(corpus, tmp_path, model):
    recipe = yaml.safe_load(write_recipe(tmp_path, corpus).read_text())
    recipe["model"] |= model
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(recipe))

    with pytest.raises(RecipeError, match=r"cannot be made: |`model.config`: "):
        main(["--config", str(tmp_path / "wrong.yaml")])


def test_evaluating_changes_nothing_of_what_is_learnt(finished, corpus, tmp_path):
    main(["--config", str(write_recipe(tmp_path, corpus, training={"eval_steps": 2}))])

    assert losses(tmp_path / "run") == losses(finished)


def test_too_few_rows_for_a_step_are_counted(corpus, tmp_path):
    recipe = write_recipe(tmp_path, corpus, training={"per_device_train_batch_size": 500})

    with pytest.raises(RecipeError, match="96 rows to train on, one step of all processes takes 500"):
        main(["--config", str(recipe)])


def test_a_source_that_is_not_there_is_named(corpus, tmp_path):
    with pytest.raises(RecipeError, match=r"no sources \['nope'\]; it has "):
        main(["--config", str(write_recipe(tmp_path, corpus, data={"sources": ["nope"]}))])


def test_a_training_argument_that_does_not_exist_is_refused_with_the_nearest(corpus, tmp_path):
    recipe = write_recipe(tmp_path, corpus, training={"learning_rat": 1})

    with pytest.raises(RecipeError, match="Did you mean `learning_rate`"):
        main(["--config", str(recipe)])


def test_the_gene_tokenizer_of_a_recipe_is_whole_in_itself(corpus, tmp_path):
    recipe = write_recipe(tmp_path, corpus, model={"gene_tokenizer": {"value_mode": "rank", "min_matched_genes": 1}})

    genes = assemble_processor(read_recipe(recipe, Stage1Settings), corpus).gene_tokenizer

    assert genes.value_mode == "rank"
    assert genes.gene_order == "median_ratio"


def test_a_model_trains_on_as_many_genes_as_its_processor_reads(corpus, tmp_path):
    settings = read_recipe(write_recipe(tmp_path, corpus, data={"max_genes": 9}), Stage1Settings)
    processor = assemble_processor(settings, corpus)

    batch = cell_collator(settings, corpus, processor)([CorpusRows(corpus)[0]])

    assert batch["gene_ids"].shape == (1, 10)  # <cls> comes on top
    assert processor.gene_tokenizer.max_genes == 9


def test_a_model_is_saved_with_the_number_of_genes_that_it_was_trained_on(corpus, tmp_path):
    main(["--config", str(write_recipe(tmp_path, corpus, training=QUICK, data={"max_genes": 9}))])

    assert AutoProcessor.from_pretrained(tmp_path / "run").gene_tokenizer.max_genes == 9


def test_a_misspelt_field_inside_a_part_of_the_model_is_refused(corpus, tmp_path):
    recipe = write_recipe(tmp_path, corpus, config={"qformer_config": {"num_query_token": 4}})

    with pytest.raises(
        RecipeError, match=r"`model\.config`: `num_query_token` is not a field.*Did you mean `num_query_tokens`"
    ):
        main(["--config", str(recipe)])


def test_a_run_with_nothing_to_be_measured_on_is_refused_before_it_begins(corpus, tmp_path):
    with pytest.raises(RecipeError, match=r"`training\.eval_strategy: no`.*validation split"):
        main(["--config", str(write_recipe(tmp_path, corpus, data={"scheme": "donor"}))])


def test_patience_is_refused_where_no_figure_is_named_that_could_grow_better(corpus, tmp_path):
    with pytest.raises(RecipeError, match=r"`evaluation\.patience` is 2.*metric_for_best_model"):
        main(["--config", str(write_recipe(tmp_path, corpus, evaluation={"patience": 2}))])
