"""Cards and exported repositories: valid for the Hub, complete, and without a number that nobody measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from jinja2 import UndefinedError
from tiny_models import make_model, make_processor, make_repository

from scmmgpt.errors import UserError
from scmmgpt.hub_cards import EMBEDDED_MODEL, render
from scmmgpt.hub_cards.export import code_files, export, refresh_code
from scmmgpt.hub_cards.render import Measured, Unmeasured, render_model_card
from scmmgpt.hub_cards.repository_check import check_repository
from scmmgpt.training.evaluation.metrics import Interval
from scmmgpt.training.evaluation.results import Record, write_results

SUMMARY = {
    "date": "2026-01-01",
    "num_profiles": 12,
    "studies": ["a", "b"],
    "sources": {"real.h5ad": "CC BY 4.0", "sim.h5ad": "CC BY 4.0"},
    "simulated_sources": ["sim.h5ad"],
    "cell_types": ["B cell", "monocyte"],
    "recipe_sha256": "ab" * 32,
}
RUN = {"command": "eval", "commit": "abc", "date": "2026-01-02", "device": "cpu", "processor": "x86", "seed": 0}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository") / "tiny-model")


@pytest.fixture
def results(tmp_path):
    values = {"accuracy": 0.8125, "macro_f1": 0.7321}
    ours = Record(
        "annotation", "tiny-model", "pbmc", values, {"accuracy": Interval(0.75, 0.875, "cells")}, {"cells": 32}
    )
    baseline = Record("annotation", "majority", "pbmc", {"accuracy": 0.5, "macro_f1": 0.11}, {}, {"cells": 32}, True)
    write_results([ours, baseline], [], tmp_path / "results", RUN)
    return tmp_path / "results"


def numbers_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.:-])\d+\.\d+(?![\w.-])", text))


# Valid for the Hub


def hub_faults(card: ModelCard) -> list[str]:
    """What the Hub's validation asks of metadata, as far as it can be asked without the Hub."""
    data, faults = card.data.to_dict(), []
    if not data.get("license"):
        faults.append("no licence")
    for entry in data.get("model-index", []):
        for result in entry["results"]:
            for metric in result["metrics"]:
                if not isinstance(metric["value"], (int, float)):
                    faults.append(f"{metric} is no number")
    return faults


def test_the_model_card_is_valid_with_and_without_results(repository, results):
    for folder in (None, results):
        card = ModelCard(render_model_card(repository, folder))

        assert hub_faults(card) == []
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "any-to-any"
        assert bool(card.data.eval_results) == (folder is not None)


def test_measured_numbers_reach_the_metadata_and_the_text(repository, results):
    card = ModelCard(render_model_card(repository, results))

    index = {row.metric_type: row.metric_value for row in card.data.eval_results}
    assert index == {"accuracy": 0.8125, "macro_f1": 0.7321}
    assert "majority" in card.text, "the baseline stands beside it"
    assert "at commit `abc`" in card.text


def test_every_fraction_in_a_card_comes_from_the_results(repository, results):
    without = numbers_of(ModelCard(render_model_card(repository, None)).text)
    with_results = numbers_of(ModelCard(render_model_card(repository, results)).text)

    measured = {value for path in results.glob("*.json") for value in re.findall(r"\d+\.\d+", path.read_text())}
    assert with_results - without <= {f"{float(value):.3f}" for value in measured} | measured


def test_a_number_that_was_not_measured_cannot_be_rendered(results):
    measured = Measured.read(results, "tiny-model")

    assert "0.812" in measured.table("annotation")
    with pytest.raises(Unmeasured):
        measured.table("generation")


def test_a_template_that_asks_for_what_is_not_there_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "card.jinja").write_text("accuracy {{ accuracy }}")
    monkeypatch.setattr(render, "__file__", str(tmp_path / "render.py"))

    with pytest.raises(UndefinedError):
        render._render("card.jinja", ModelCard("---\nlicense: mit\n---\n").data)


def test_results_of_another_model_do_not_reach_the_card(repository, results):
    assert not Measured.read(results, "other-model")
    assert "Nothing was measured" in render_model_card(repository, None)


def test_an_untrained_model_is_called_untrained(repository):
    assert "untrained" in render_model_card(repository)


def test_simulated_sources_are_called_simulated(tmp_path, repository):
    directory = copy_with_summary(repository, tmp_path, SUMMARY)

    text = render_model_card(directory)

    assert "sim.h5ad (simulated" in text
    assert "untrained" not in text
    assert SUMMARY["recipe_sha256"] in text


def copy_with_summary(repository: Path, tmp_path: Path, summary: dict) -> Path:
    directory = tmp_path / "tiny-model"
    directory.mkdir()
    config = json.loads((repository / "config.json").read_text()) | {"training_summary": summary}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").symlink_to(repository / "model.safetensors")
    return directory


def test_widget_examples_carry_their_outputs(repository):
    card = ModelCard(render_model_card(repository, examples=[{"text": "a B cell", "output": "CD79A: MS4A1"}]))

    assert card.data.to_dict()["widget"] == [{"text": "a B cell", "output": {"text": "CD79A: MS4A1"}}]


# The exported repository


def test_an_exported_repository_is_fit_to_be_published(repository):
    files = check_repository(repository)

    assert {"config.json", "model.safetensors", "README.md", "handler.py", "requirements.txt"} <= files.keys()
    assert {
        "processor_config.json",
        "gene_vocabulary.tsv.gz",
        "tokenizer.json",
        "cell_ontology.json.gz",
    } <= files.keys()


def test_every_class_of_the_contract_is_in_the_auto_map(repository):
    auto_map = json.loads((repository / "config.json").read_text())["auto_map"]

    assert auto_map == {
        "AutoConfig": "configuration_scmmgpt.ScMMGPTConfig",
        "AutoModel": "modeling_scmmgpt.ScMMGPTModel",
        "AutoModelForPreTraining": "modeling_scmmgpt.ScMMGPTForPreTraining",
        "AutoModelForMultimodalLM": "modeling_scmmgpt.ScMMGPTForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_scmmgpt.ScMMGPTForConditionalGeneration",
        "AutoProcessor": "processing_scmmgpt.ScMMGPTProcessor",
        "AutoFeatureExtractor": "gene_tokenization_scmmgpt.ScMMGPTGeneTokenizer",
    }


def test_weights_in_16_bits_are_loaded_as_they_were(tmp_path):
    processor = make_processor()
    model = make_model(processor)

    export(model, processor, tmp_path / "half", dtype=torch.float16)

    loaded = type(model).from_pretrained(tmp_path / "half")
    assert loaded.dtype == torch.float32
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 3 * sum(p.numel() for p in model.parameters())
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.half().float())


def test_large_weights_are_split_and_load_alike(tmp_path):
    processor = make_processor()
    model = make_model(processor)

    directory = export(model, processor, tmp_path / "sharded", max_shard_size="40KB")

    assert len(list(directory.glob("model-*.safetensors"))) > 1
    check_repository(directory)
    loaded = type(model).from_pretrained(directory)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_exporting_again_leaves_no_old_shards(tmp_path):
    processor = make_processor()
    model = make_model(processor)
    export(model, processor, tmp_path / "model", max_shard_size="40KB")

    export(model, processor, tmp_path / "model")

    assert [path.name for path in (tmp_path / "model").glob("*.safetensors*")] == ["model.safetensors"]


def test_what_the_last_call_cut_and_padded_is_not_written(tmp_path):
    processor = make_processor()
    model = make_model(processor)
    processor.tokenizer(["a B cell", "T"], padding=True, truncation=True, max_length=2)

    written = json.loads((export(model, processor, tmp_path) / "tokenizer.json").read_text())

    assert written["truncation"] is None
    assert written["padding"] is None


def test_another_architecture_is_not_exported(tmp_path):
    with pytest.raises(UserError, match="Only scmmgpt models"):
        export(_Foreign(), None, tmp_path)


class _Foreign:
    config = type("config", (), {"model_type": "llama"})


def test_the_snippet_of_the_card_runs_where_scmmgpt_is_not_installed(repository, tmp_path):
    snippet = re.search(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)[1]
    snippet = re.sub(r'repository = ".*"', f"repository = {str(repository)!r}", snippet)
    block = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "scmmgpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    script = f"{block}{snippet}\nassert similarity.shape == (2, 3), similarity.shape\n"
    arguments = [sys.executable, "-c", script]
    run = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr


# The embedded model


needs_embedded = pytest.mark.skipif(
    not (EMBEDDED_MODEL / "config.json").is_file(), reason="the embedded model is not in this checkout"
)


@needs_embedded
def test_the_embedded_models_code_is_that_of_the_islands():
    stale = [
        name
        for name, source in code_files().items()
        if not (EMBEDDED_MODEL / name).is_file() or (EMBEDDED_MODEL / name).read_bytes() != source.read_bytes()
    ]

    assert stale == [], "run: python -m scmmgpt.hub_cards.export --refresh-code"
    assert {path.name for path in EMBEDDED_MODEL.glob("*.py")} == set(code_files())


@needs_embedded
def test_the_embedded_model_is_fit_to_be_published_and_small():
    files = check_repository(EMBEDDED_MODEL)

    assert sum(path.stat().st_size for path in files.values()) <= 40e6


@needs_embedded
def test_the_embedded_models_card_is_rendered_from_the_committed_results():
    card = ModelCard.load(EMBEDDED_MODEL / "README.md")
    examples = [
        {"text": one["text"], "output": one["output"]["text"]} for one in card.data.to_dict().get("widget", [])
    ]

    fresh = render_model_card(EMBEDDED_MODEL, examples=examples)

    assert (EMBEDDED_MODEL / "README.md").read_text() == fresh, (
        "run: python -m scmmgpt.hub_cards.export --refresh-card"
    )
    assert hub_faults(card) == []


def test_refreshing_code_mends_what_was_changed_and_says_so(repository):
    (repository / "configuration_scmmgpt.py").write_text("broken")
    (repository / "old_scmmgpt.py").write_text("gone")

    assert refresh_code(repository) == ["configuration_scmmgpt.py", "old_scmmgpt.py"]
    assert refresh_code(repository) == []
