"""Stage 2 on conversations: any causal LM learns what the assistant says, and nothing else of a row."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
import yaml
from tiny_chat import write_llm
from tiny_models import GENES, write_tiny_model
from transformers import AutoTokenizer

from scmmgpt.modeling_scmmgpt.cell_prompts_scmmgpt import ScMMGPTCellTokenProjector
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.prompting_scmmgpt import reading
from scmmgpt.training import stage2
from scmmgpt.training.chat.instructions import FEATURES
from scmmgpt.training.instruction_tuning import (
    InstructionCollator,
    SimilarLengths,
    answer_loss,
    fit_words,
    instruction_parts,
    retention_loss,
    spelling,
)
from scmmgpt.training.run import training_arguments
from scmmgpt.training.settings import Stage2Settings, read_recipe
from scmmgpt.training.strict_yaml import RecipeError

LABELS = ("T cell", "B cell")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def conversations(tmp_path_factory, start):
    """Two kinds of cells, each with genes of its own, and a row without any."""
    tokenizer = ScMMGPTProcessor.from_pretrained(start).gene_tokenizer
    generator, rows = np.random.default_rng(0), []
    for number in range(24):
        kind = number % 2
        counts = np.where(np.arange(len(GENES)) // 50 == kind, generator.integers(1, 9, len(GENES)), 0)[None]
        features = tokenizer((counts, GENES))
        messages = [
            *reading("What is it?", ["Species: human."]),
            {"role": "assistant", "content": f"A {LABELS[kind]}."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
        rows.append(
            {
                "kind": "name",
                "messages": json.dumps(messages),
                "studies": ["a"],
                "labels": [LABELS[kind]],
                "gene_ids": [np.asarray(features["gene_ids"])[0]],
                "gene_values": [np.asarray(features["gene_values"], np.float32)[0]],
            }
        )
    general = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    rows.append(
        {"kind": "general", "messages": json.dumps(general)}
        | {name: [] for name in ("studies", "labels", "gene_ids", "gene_values")}
    )
    place = tmp_path_factory.mktemp("data") / "conversations"
    datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(place)
    return place


@pytest.fixture
def recipe(tmp_path, start, conversations):
    def write(llm, **training):
        settings = {
            "output": str(tmp_path / "run"),
            "data": {"instructions": str(conversations), "text_to_cells": False},
            "model": {
                "start_from": str(start),
                "language_model": str(llm),
                "config": {"projector_hidden_size": 64, "projector_positions": True},
                "projector_start_steps": 3,
            },
            "towers": {
                **dict.fromkeys(("cell_encoder", "qformer", "cell_decoder"), "freeze"),
                "heads": "full",
                "language_model": "lora",
            },
            "lora": {"rank": 2, "dropout": 0.0, "merge": False},
            "training": {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 0.01,
                "bf16": False,
                "activation_checkpointing": False,
                "logging_steps": 1,
                "eval_strategy": "no",
                "save_steps": 1,
                **training,
            },
        }
        path = tmp_path / "chat.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def parts(path):
    settings = read_recipe(path, Stage2Settings)
    from trl import SFTConfig

    return instruction_parts(settings, training_arguments(settings, SFTConfig, **stage2.LEAVE_TO_US))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_any_causal_lm_trains_by_the_same_recipe(recipe, tmp_path, kind):
    path = recipe(write_llm(tmp_path / "llm", kind))

    stage2.main(["--config", str(path)])

    weights = {path.name for path in (tmp_path / "run" / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= weights


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_losses_of_one_that_was_never_cut(recipe, tmp_path):
    def losses(steps):
        path = recipe(tmp_path / "llm", max_steps=steps)
        stage2.main(["--config", str(path)])
        state = json.loads((tmp_path / "run" / f"checkpoint-{steps}" / "trainer_state.json").read_text())
        return [entry["loss"] for entry in state["log_history"] if "loss" in entry]

    write_llm(tmp_path / "llm")
    whole = losses(3)
    shutil.rmtree(tmp_path / "run")
    losses(3)
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    shutil.rmtree(tmp_path / "run" / "checkpoint-2", ignore_errors=True)

    assert losses(3) == pytest.approx(whole, rel=1e-5)


def test_labels_are_what_the_assistant_says(start, conversations):
    collate = InstructionCollator(ScMMGPTProcessor.from_pretrained(start), max_tokens=500)
    row = datasets.load_from_disk(conversations)[0]

    ids, labels = collate.spell(json.loads(row["messages"]))

    tokenizer = collate.processor.tokenizer
    said = tokenizer.decode([label for label in labels if label != -100], skip_special_tokens=True)
    assert said.split() == ["A", "T", "cell.", "Yes."]
    assert len(ids) == len(labels)


def test_turns_beyond_the_limit_are_left_out_and_the_first_stays_whole(start, conversations):
    messages = json.loads(datasets.load_from_disk(conversations)[0]["messages"])
    whole, short = (
        InstructionCollator(ScMMGPTProcessor.from_pretrained(start), max_tokens=most).spell(messages)
        for most in (500, 10)
    )

    tokenizer = ScMMGPTProcessor.from_pretrained(start).tokenizer
    assert whole[0][: len(short[0])] == short[0]
    said = tokenizer.decode([label for label in short[1] if label != -100], skip_special_tokens=True)
    assert said.split() == ["A", "T", "cell."]


def test_a_conversation_is_tokenised_as_it_is_asked(start, conversations):
    collate = InstructionCollator(ScMMGPTProcessor.from_pretrained(start), max_tokens=500)
    messages = json.loads(datasets.load_from_disk(conversations)[0]["messages"])

    ids, labels = collate.spell(messages)

    first = collate._render(messages[:2], add_generation_prompt=True)
    assert ids[: labels.index(next(label for label in labels if label != -100))] == collate._ids(first)


def test_rows_without_cells_share_a_batch_with_rows_that_have_some(start, conversations):
    collate = InstructionCollator(ScMMGPTProcessor.from_pretrained(start), max_tokens=500)
    rows = datasets.load_from_disk(conversations)

    batch = collate([rows[24], rows[0], rows[1]])

    assert len(batch["input_ids"]) == 3
    assert len(batch["gene_ids"]) == 2


def test_the_loss_of_answers_alone_is_the_model_s_own(recipe, tmp_path):
    _, model, rows = parts(recipe(write_llm(tmp_path / "llm")))
    batch = rows.collate([rows.train[number] for number in range(3)])

    torch.testing.assert_close(answer_loss(model, batch), model(**batch).loss, rtol=1e-4, atol=1e-5)


def test_what_an_llm_says_without_cells_is_held_to_what_it_said_before(recipe, tmp_path):
    from peft import LoraConfig, get_peft_model

    _, model, rows = parts(recipe(write_llm(tmp_path / "llm")))
    tuned = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=True))
    with_cells, without = rows.collate([rows.train[0], rows.train[1]]), rows.collate([rows.train[0], rows.train[24]])

    assert retention_loss(model, with_cells, tuned.disable_adapter) is None
    assert retention_loss(model, without, tuned.disable_adapter).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    moved = retention_loss(model, without, tuned.disable_adapter)
    assert moved.item() > 0.01
    moved.backward()


def test_a_run_that_keeps_its_language_says_how_far_it_moved(recipe, tmp_path):
    path = recipe(write_llm(tmp_path / "llm"), max_steps=7)
    path.write_text(path.read_text() + "language_retention: 1.0\n")

    stage2.main(["--config", str(path)])

    state = json.loads((tmp_path / "run" / "checkpoint-7" / "trainer_state.json").read_text())
    assert any("retention_loss" in entry for entry in state["log_history"])


def test_only_adapters_can_be_held_to_what_was_before_them(recipe, tmp_path):
    path = recipe(write_llm(tmp_path / "llm"))
    text = path.read_text().replace("language_model: lora", "language_model: full")
    path.write_text(text + "language_retention: 1.0\n")

    with pytest.raises(RecipeError, match="needs `towers.language_model: lora`"):
        parts(path)


def test_a_projector_learns_to_say_each_type_s_words_though_all_queries_agree(tiny_config):
    config = tiny_config(projector_hidden_size=64, projector_positions=True)
    queries, width = config.qformer_config.num_query_tokens, config.qformer_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(60) % 3
    states = torch.randn(3, width, generator=generator)[kinds][:, None].expand(-1, queries, -1)
    words = torch.arange(3 * queries).reshape(3, queries)[kinds]
    vectors = torch.randn(40, 16, generator=generator)

    shares = {}
    for has_positions in (True, False):
        config.projector_positions = has_positions
        projector = ScMMGPTCellTokenProjector(config, 16)
        shares[has_positions] = fit_words(projector, states, words, vectors, 150, seed=0)

    assert shares[True] > 0.95
    assert shares[False] < 0.6


def test_a_long_name_is_spelt_by_its_first_and_last_words(start):
    processor = ScMMGPTProcessor.from_pretrained(start)
    words = spelling(processor, "CD4-positive, alpha-beta T cell of a donor")
    whole = AutoTokenizer.from_pretrained(start)(
        " CD4-positive, alpha-beta T cell of a donor", add_special_tokens=False
    )

    assert words[:3] == whole["input_ids"][:3]
    assert words[3:] == whole["input_ids"][3 - processor.num_query_tokens :]


def test_batches_are_of_like_length_and_the_same_for_the_same_seed():
    lengths = np.random.default_rng(0).integers(10, 200, 256)

    order = list(SimilarLengths(lengths, batch_size=8, seed=0))

    assert order == list(SimilarLengths(lengths, batch_size=8, seed=0))
    assert sorted(order) == list(range(256))
    spread = lengths[np.array(order).reshape(-1, 8)]
    assert (spread.max(1) - spread.min(1)).mean() < 20
