"""Stage 2 from its recipe: both directions in one run, adapters that load onto their base, cells without text."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_corpus import TYPES
from tiny_models import LANGUAGE_MODEL, make_text_tokenizer
from tiny_run import (
    CONFIG,
    build_tiny_corpus,
    run_in_processes,
    without_dropout,
    write_recipe,
    write_stage_2_recipe,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

pytest.importorskip("trl", reason="stage 2 trains with TRL and PEFT: pip install 'scmmgpt[train]'")

from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from trl import SFTConfig

from scmmgpt.modeling_scmmgpt import (
    ScMMGPTCellConfig,
    ScMMGPTCellEncoder,
    ScMMGPTForConditionalGeneration,
    ScMMGPTQFormer,
)
from scmmgpt.training import stage1, stage2
from scmmgpt.training.assembly import CorpusRows, assemble_config, assemble_processor, cell_collator
from scmmgpt.training.collators import row_generator
from scmmgpt.training.conversations import ConversationCollator, MixedOrder, ShuffledRows, flatten_prompts
from scmmgpt.training.corpus.reading import Selection
from scmmgpt.training.decoder_start import corpus_shares
from scmmgpt.training.run import training_arguments
from scmmgpt.training.settings import LoraSettings, Stage2Settings, Stage2Towers, read_recipe
from scmmgpt.training.stage2 import LEAVE_TO_US, main, parts_of
from scmmgpt.training.strict_yaml import RecipeError
from scmmgpt.training.towers import lora_config, tower_of

QUICK = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 2}
LORA = {
    "cell_encoder": "freeze",
    "qformer": "freeze",
    "heads": "freeze",
    "language_model": "lora",
    "cell_decoder": "freeze",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_tiny_corpus(tmp_path_factory.mktemp("stage2"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The output of a run over both directions, unlabelled cells mixed in."""
    folder = tmp_path_factory.mktemp("finished")
    main(["--config", str(write_stage_2_recipe(folder, corpus, data={"unlabelled_share": 0.25}))])
    return folder / "run"


@pytest.fixture
def collate(corpus, finished):
    processor = AutoProcessor.from_pretrained(finished)
    settings = read_recipe(finished / "recipe.yaml", Stage2Settings)
    return ConversationCollator(
        cell_collator(settings, corpus, processor), processor, corpus.ontology, max_tokens=64, num_target_genes=50
    )


def history(run):
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


def test_both_directions_train_in_one_run_and_trl_leaves_neither_out(finished):
    first = history(finished)[0]

    assert first["loss"] == pytest.approx(first["language_loss"] + first["cell_generation_loss"], rel=1e-4)


def test_names_and_made_cells_are_scored_beside_their_controls(finished):
    scores = next(entry for entry in history(finished) if "eval_loss" in entry)

    assert {"eval_language_loss", "eval_named_types", "eval_named_types_blind"} <= set(scores)
    assert {"eval_made_as_asked", "eval_made_as_asked_shuffled"} <= set(scores)
    said = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert said[0]["type"] in TYPES


def test_the_output_loads_as_the_generator_and_as_the_towers(finished, make_cells):
    generator = AutoModelForMultimodalLM.from_pretrained(finished).eval()
    towers, report = AutoModel.from_pretrained(finished, output_loading_info=True)

    assert not report["missing_keys"]
    cells = make_cells()
    torch.testing.assert_close(
        towers.eval().get_cell_features(**cells).pooler_output, generator.get_cell_features(**cells).pooler_output
    )


def test_stage_2_takes_up_the_towers_of_stage_1(corpus, tmp_path):
    stage1.main(["--config", str(write_recipe(tmp_path, corpus, "one", training=QUICK))])
    frozen = {"cell_encoder": "freeze", "qformer": "freeze", "heads": "freeze"}
    config = {"cell_decoder_config": {"num_text_tokens": 2, "num_attention_heads": 4}}
    recipe = write_stage_2_recipe(tmp_path, corpus, "two", training=QUICK, towers=frozen)
    main(["--config", str(recipe), f"model.start_from={tmp_path / 'one'}", f"model.config={json.dumps(config)}"])

    before = AutoModel.from_pretrained(tmp_path / "one").state_dict()
    after = AutoModel.from_pretrained(tmp_path / "two").state_dict()

    assert all(torch.equal(before[name], after[name]) for name in before)
    assert AutoModelForMultimodalLM.from_pretrained(tmp_path / "two").config.cell_decoder_config.num_text_tokens == 2


def test_a_recipe_that_reads_cells_otherwise_than_its_start_is_refused(corpus, tmp_path):
    stage1.main(["--config", str(write_recipe(tmp_path, corpus, "one", training=QUICK))])
    recipe = write_stage_2_recipe(tmp_path, corpus, "two", training=QUICK)
    changes = [f"model.start_from={tmp_path / 'one'}", "model.gene_tokenizer.value_mode=bins"]

    with pytest.raises(RecipeError, match=r"model\.gene_tokenizer\.value_mode.*'bins'.*'log1p'"):
        main(["--config", str(recipe), *changes])


@pytest.fixture
def pretrained_parts(corpus, tmp_path):
    """Folders of a cell encoder, a Q-Former and a causal LM, and the weights in the first two."""
    recipe = read_recipe(write_stage_2_recipe(tmp_path, corpus, "source"), Stage2Settings)
    processor = assemble_processor(recipe, corpus)
    config = assemble_config(recipe, processor)
    torch.manual_seed(7)
    towers = {"cell_encoder": ScMMGPTCellEncoder(config.cell_config), "qformer": ScMMGPTQFormer(config.qformer_config)}
    for name, part in towers.items():
        part.save_pretrained(tmp_path / name)
    AutoModelForCausalLM.from_config(config.text_config).save_pretrained(tmp_path / "language_model")
    processor.tokenizer.save_pretrained(tmp_path / "language_model")
    return tmp_path, {name: part.state_dict() for name, part in towers.items()}


@pytest.mark.parametrize("with_language_model", [False, True], ids=["new-llm", "pretrained-llm"])
def test_pretrained_towers_that_a_recipe_names_are_where_stage_2_begins(corpus, pretrained_parts, with_language_model):
    folder, weights = pretrained_parts
    named = ["cell_encoder", "qformer"] + (["language_model"] if with_language_model else [])
    recipe = write_stage_2_recipe(folder, corpus, model={name: str(folder / name) for name in named}, training=QUICK)
    settings = read_recipe(recipe, Stage2Settings)

    _, model, _ = parts_of(settings, training_arguments(settings, SFTConfig, **LEAVE_TO_US), corpus)

    for tower, expected in weights.items():
        begun = getattr(model.model, tower).state_dict()
        assert all(torch.equal(begun[name], weight) for name, weight in expected.items()), tower


def test_a_new_language_model_reads_its_own_tokens_and_the_qformer_those_that_it_learnt(corpus, finished, tmp_path):
    start, theirs = AutoProcessor.from_pretrained(finished), make_text_tokenizer()
    llm = {**LANGUAGE_MODEL, "vocab_size": len(theirs), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**llm, max_position_embeddings=512)).save_pretrained(tmp_path / "llm")
    theirs.save_pretrained(tmp_path / "llm")
    model = {"start_from": str(finished), "language_model": str(tmp_path / "llm")}
    settings = read_recipe(write_stage_2_recipe(tmp_path, corpus, model=model, training=QUICK), Stage2Settings)

    processor, model, rows = parts_of(settings, training_arguments(settings, SFTConfig, **LEAVE_TO_US), corpus)

    assert processor.tokenizer.get_vocab() == theirs.get_vocab() != start.tokenizer.get_vocab()
    assert processor.qformer_tokenizer.get_vocab() == start.tokenizer.get_vocab()
    assert model.config.cell_token_id == theirs.convert_tokens_to_ids("<cell>")
    row = next(row for row in CorpusRows(corpus) if row["cell_type"] in TYPES)
    assert model(**rows.collate([row])).loss.isfinite()


@pytest.mark.parametrize("tower", ["cell_encoder", "qformer"])
def test_a_tower_is_named_once_beside_a_checkpoint_or_in_it(corpus, tmp_path, tower):
    recipe = write_stage_2_recipe(tmp_path, corpus, model={"start_from": "a", tower: "b"})

    with pytest.raises(RecipeError, match=f"give {tower} or start_from, not both"):
        read_recipe(recipe, Stage2Settings)


def test_a_tower_that_does_not_fit_the_corpus_is_refused_by_its_key(corpus, pretrained_parts):
    folder, _ = pretrained_parts
    small = {"vocab_size": 40, "hidden_size": 32, "pad_token_id": 0, "cls_token_id": 1, "mask_token_id": 2}
    ScMMGPTCellEncoder(ScMMGPTCellConfig(**small)).save_pretrained(folder / "other")

    with pytest.raises(RecipeError, match=r"`model\.cell_encoder`.*does not fit"):
        main(["--config", str(write_stage_2_recipe(folder, corpus, model={"cell_encoder": str(folder / "other")}))])


@pytest.fixture(scope="module")
def adapted(corpus, tmp_path_factory):
    """The output of a LoRA run."""
    folder = tmp_path_factory.mktemp("adapted")
    wide = {
        "text_config": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    }
    recipe = write_stage_2_recipe(
        folder, corpus, towers=LORA, lora={"rank": 2}, config=wide, training={**QUICK, "learning_rate": 0.05}
    )
    main(["--config", str(recipe)])
    return folder / "run"


def test_adapters_are_small_and_give_the_same_answers_on_their_base(adapted, corpus):
    exact = {"dtype": torch.float64}  # the sums of large, fast-trained adapters differ in single precision
    base = AutoModelForMultimodalLM.from_pretrained(adapted / "base", **exact).eval()
    merged = AutoModelForMultimodalLM.from_pretrained(adapted, **exact).eval()
    processor = AutoProcessor.from_pretrained(adapted)
    row = next(row for row in CorpusRows(corpus) if row["cell_type"] in TYPES)
    collate = ConversationCollator(
        cell_collator(read_recipe(adapted / "recipe.yaml", Stage2Settings), corpus, processor),
        processor,
        corpus.ontology,
        64,
    )
    batch = {name: value for name, value in collate([row]).items() if not name.startswith(("target", "cell_prompt"))}

    plain = base(**batch).logits
    loaded = PeftModel.from_pretrained(base, adapted / "adapter").eval()(**batch).logits

    assert (loaded - plain).abs().max() > 1e-3
    torch.testing.assert_close(loaded, merged(**batch).logits, rtol=1e-5, atol=1e-5)
    size = {
        place: sum(file.stat().st_size for file in place.glob("*.safetensors"))
        for place in (adapted / "base", adapted / "adapter")
    }
    assert size[adapted / "adapter"] < 0.05 * size[adapted / "base"]


def test_adapters_alone_load_through_the_auto_class(adapted):
    model = AutoModelForMultimodalLM.from_pretrained(adapted / "adapter")

    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_new_token_rows_are_learnt_and_saved_with_the_adapters(tiny_config, tmp_path):
    model = ScMMGPTForConditionalGeneration(tiny_config())
    model.save_pretrained(tmp_path / "base")
    config = lora_config(model, Stage2Towers(**LORA), LoraSettings(rank=2), new_token_ids=[38, 39])
    wrapped = get_peft_model(model, config)
    words = torch.tensor([[38, 39, 7]])
    for name, weight in wrapped.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(weight)
    expected = wrapped.eval()(input_ids=words).logits

    wrapped.save_pretrained(tmp_path / "adapter")
    base = ScMMGPTForConditionalGeneration.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()

    torch.testing.assert_close(loaded(input_ids=words).logits, expected)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Position ids are not supported")
@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_a_prompt_can_be_tuned_in_front_of_cells(tiny_config, make_cells, kind):
    base = ScMMGPTForConditionalGeneration(tiny_config())  # whose Q-Former has as many words as the LLM
    tuned = get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    words = torch.tensor([[6, 5, 5, 5, 5, 7, 8]] * 3)
    prompt = {"input_ids": words, "attention_mask": torch.ones_like(words)}

    output = tuned(**prompt, **make_cells(), labels=words)
    output.loss.backward()

    learnt = {name for name, weight in tuned.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert learnt == {"prompt_encoder.default.embedding.weight"}
    assert not torch.allclose(output.loss, tuned(**prompt, **make_cells(seed=1), labels=words).loss)
    assert tuned.generate(**prompt, **make_cells(), max_new_tokens=2, do_sample=False).shape == (3, 9)


def test_lora_stays_in_the_tower_that_asked_for_it(tiny_config):
    config = lora_config(ScMMGPTForConditionalGeneration(tiny_config()), Stage2Towers(**LORA), LoraSettings())
    wrapped = get_peft_model(ScMMGPTForConditionalGeneration(tiny_config()), config)

    assert {tower_of(name) for name, weight in wrapped.named_parameters() if weight.requires_grad} == {
        "language_model"
    }


def test_labels_stand_on_the_answer_alone(collate):
    prompt = collate.render([{"role": "user", "content": "<cell> What?"}], add_generation_prompt=True)

    batch = collate.tokenize_prompts([prompt, prompt], ["B cell", "T cell."])

    tokenizer = collate.processor.tokenizer
    for row, answer in zip(batch["labels"], ("B cell", "T cell."), strict=True):
        assert tokenizer.decode(row[row != -100]).strip() == answer.strip()
    assert (batch["input_ids"] == collate.processor.cell_token_id).sum() == 2 * collate.processor.num_query_tokens


def test_an_unlabelled_cell_has_no_answer_and_the_empty_request(collate, corpus):
    rows = list(CorpusRows(corpus))
    bare = next(row for row in rows if row["cell_type"] == "unknown")
    known = next(row for row in rows if row["cell_type"] in TYPES)

    batch = collate([bare, known])

    assert (batch["labels"][0] == -100).all()
    assert (batch["labels"][1] != -100).any()
    assert batch["cell_prompt_mask"].sum(1)[0] == 0
    assert batch["cell_prompt_mask"].sum(1)[1] > 0


def test_requests_aim_at_the_counts_of_their_cells(collate, corpus):
    row = CorpusRows(corpus)[0]

    batch = collate([row])

    counts = dict(zip(row["gene_ids"], row["gene_values"], strict=True))
    expected = [counts.get(gene, 0) for gene in batch["target_gene_ids"].tolist()]
    assert batch["target_counts"][0].tolist() == expected
    assert batch["target_library_size"].item() == sum(value for gene, value in counts.items() if gene > 2)


def test_a_rerun_writes_the_same_words(collate, corpus):
    row = CorpusRows(corpus)[0]

    assert torch.equal(collate([row])["input_ids"], collate([row])["input_ids"])
    assert row_generator(row, 0).random() == row_generator(row, 0).random()


def test_flat_prompts_give_the_loss_of_padded_ones(collate, corpus, finished):
    model = AutoModelForMultimodalLM.from_pretrained(finished).eval()
    rows = [row for row in CorpusRows(corpus) if row["cell_type"] in TYPES][:4]
    prompts = collate([*rows])
    padded = {name: value for name, value in prompts.items() if not name.startswith(("target", "cell_prompt"))}
    texts = {name: padded.pop(name) for name in ("input_ids", "attention_mask", "labels")}

    flat = model(**padded, **flatten_prompts(texts)).language_loss

    torch.testing.assert_close(flat, model(**padded, **texts).language_loss, rtol=1e-4, atol=1e-5)


STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def test_accumulated_batches_give_the_step_of_the_large_one_when_answers_differ_in_length(
    tiny_config, make_cells, tmp_path
):
    lengths = (1, 9, 2, 4)
    labels = torch.full((4, 15), -100)
    for row, length in zip(labels, lengths, strict=True):
        row[5 : 5 + length] = torch.arange(10, 10 + length)
    words = labels.clamp(min=6)
    words[:, :4] = 5
    batch = {**make_cells((12, 7, 9, 5)), "input_ids": words, "labels": labels}
    rows = [{name: value[i] for name, value in batch.items()} for i in range(4)]
    config = tiny_config(cell={"hidden_dropout": 0.0}, qformer=STILL)
    start = ScMMGPTForConditionalGeneration(config).state_dict()
    found = {}
    for size in (1, 2, 4):
        model = ScMMGPTForConditionalGeneration(config)
        model.load_state_dict(start)
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 1}
        arguments = TrainingArguments(
            tmp_path, **steps, optim="sgd", learning_rate=0.1, logging_steps=1, use_cpu=True, report_to=[]
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        found[size] = trainer.state.log_history[0]["loss"], model.lm_head.weight.detach()

    for size in (1, 2):
        assert found[size][0] == pytest.approx(found[4][0], abs=1e-5)
        torch.testing.assert_close(found[size][1], found[4][1], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_step_is_the_same_however_it_is_divided_among_processes_and_accumulation(corpus, tmp_path):
    losses = {}
    for name, processes, batch, accumulated in (("whole", 1, 8, 1), ("parts", 1, 2, 4), ("processes", 2, 2, 2)):
        training = {**QUICK, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        data = {"text_to_cells": False}  # which draws noise
        recipe = write_stage_2_recipe(
            tmp_path, corpus, name, config=without_dropout(CONFIG), data=data, training=training
        )
        run_in_processes(processes, Path(stage2.__file__), recipe)
        losses[name] = [entry[key] for entry in history(tmp_path / name)[:2] for key in ("loss", "language_loss")]

    assert losses["parts"] == pytest.approx(losses["whole"], rel=1e-5)
    assert losses["processes"] == pytest.approx(losses["whole"], rel=1e-5)


def test_text_to_cell_counts_by_the_batchs_share_of_a_steps_answers(collate, corpus, finished):
    model = AutoModelForMultimodalLM.from_pretrained(finished)
    batch = collate([row for row in CorpusRows(corpus) if row["cell_type"] in TYPES][:4])
    answers = (batch["labels"] != -100).sum()

    alone, half = model(**batch), model(**batch, num_items_in_batch=2 * answers)

    torch.testing.assert_close(half.language_loss, alone.language_loss / 2)
    torch.testing.assert_close(half.loss, half.language_loss + half.cell_generation_loss / 2)


def test_the_share_of_unlabelled_rows_is_kept_and_they_begin_again():
    order = MixedOrder(
        ShuffledRows(torch.arange(90).numpy(), 0), ShuffledRows(torch.arange(100, 104).numpy(), 0), 0.25
    )

    rows = list(order)

    assert len(rows) == len(order) == 120
    assert sum(row >= 100 for row in rows) == 30
    assert set(rows) == {*range(90), *range(100, 104)}


def test_a_run_killed_in_mid_step_goes_on_with_the_same_losses(finished, corpus, tmp_path):
    recipe = write_stage_2_recipe(tmp_path, corpus, data={"unlabelled_share": 0.25})
    kill_in_step_5 = (
        "import os, signal, sys\n"
        "from scmmgpt.training import stage2\n"
        "compute = stage2.Stage2Trainer.compute_loss\n"
        "def compute_loss(self, *args, **kwargs):\n"
        "    if self.state.global_step == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return compute(self, *args, **kwargs)\n"
        "stage2.Stage2Trainer.compute_loss = compute_loss\n"
        "stage2.main(['--config', sys.argv[1]])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", kill_in_step_5, recipe], capture_output=True, env=os.environ, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]

    main(["--config", str(recipe)])

    expected = [entry["loss"] for entry in history(finished) if "loss" in entry]
    assert [entry["loss"] for entry in history(tmp_path / "run") if "loss" in entry] == pytest.approx(
        expected, rel=1e-6
    )


def test_text_to_cell_begins_with_the_counts_of_the_training_cells(corpus):
    rows = corpus.rows(Selection("train", "study", True))

    shares, seen = corpus_shares(corpus, Selection("train", "study", True))

    kinds = corpus.table(rows, ["study", "cell_type_ontology_term_id"]).to_pandas().drop_duplicates()
    assert len(shares) == len(kinds)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_array_equal(seen.any(0), np.asarray(corpus.matrix(rows).sum(0)).ravel() > 0)


def test_a_dry_run_counts_what_lora_trains(corpus, tmp_path, capsys):
    main(["--config", str(write_stage_2_recipe(tmp_path, corpus, towers=LORA)), "--dry-run"])

    plan = capsys.readouterr().out
    assert "language_model" in plan
    assert not (tmp_path / "run").exists()


def test_text_to_cell_refuses_a_corpus_without_counts(tmp_path):
    corpus = build_tiny_corpus(tmp_path, value_mode="log1p")

    with pytest.raises(RecipeError, match="value_mode: counts"):
        main(["--config", str(write_stage_2_recipe(tmp_path, corpus))])


def test_stage_2_trainer_keeps_trls_place():
    assert issubclass(stage2.Stage2Trainer, __import__("trl").SFTTrainer)
