"""Models on the Hub: pulled where scmmgpt is not installed, pushed by transformers, published by earlier versions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, running_hub
from tiny_models import make_repository, tiny_cells, write_tiny_model

from scmmgpt.hub_cards.push import push
from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining, ScMMGPTModel
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.pipeline_scmmgpt import PIPELINES

NAME = "tester/model"
# One folder per published format, written by the version that it is named after and never changed.
PUBLISHED = Path(__file__).parent / "data" / "published"


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch) as hub:
        yield hub


PULL = """
import importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "scmmgpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import torch
from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor

where = {"trust_remote_code": True, "revision": sys.argv[2]}
processor = AutoProcessor.from_pretrained(sys.argv[1], **where)
towers = AutoModel.from_pretrained(sys.argv[1], **where).eval()
model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], **where).eval()
counts, genes = json.load(open(sys.argv[3]))
cells = processor(cells=(counts, genes))
with torch.no_grad():
    embeds = towers.get_cell_features(**cells).pooler_output
    words = model.generate(**processor(cells=(counts, genes), text="Describe this cell."), max_new_tokens=6, do_sample=False)
print(json.dumps({"class": type(towers).__name__, "embeds": embeds.tolist(), "words": words.tolist()}))
"""


def pull(hub: FakeHub, name: str, revision: str, cells_file: Path, home: Path) -> dict:
    """What a model of the Hub says in a fresh process, on a machine that never heard of scmmgpt."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    environment.pop("HF_MODULES_CACHE", None)
    arguments = [sys.executable, "-c", PULL, name, revision, str(cells_file)]
    run = subprocess.run(arguments, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_pulled_model_says_the_same_and_a_revision_keeps_saying_it(hub, tmp_path):
    first, second = make_repository(tmp_path / "first", seed=0), make_repository(tmp_path / "second", seed=1)
    old = push(first, NAME)["commit"]
    push(second, NAME)
    cells = tiny_cells(3)
    (tmp_path / "cells.json").write_text(json.dumps([cells.X.toarray().tolist(), list(cells.var_names)]))

    for directory, revision in ((first, old), (second, "main")):
        pulled = pull(hub, NAME, revision, tmp_path / "cells.json", tmp_path)

        model = ScMMGPTForConditionalGeneration.from_pretrained(directory).eval()
        processor = ScMMGPTProcessor.from_pretrained(directory)
        with torch.no_grad():
            embeds = model.get_cell_features(**processor(cells=cells)).pooler_output
            prompt = processor(cells=cells, text="Describe this cell.")
            words = model.generate(**prompt, max_new_tokens=6, do_sample=False)
        assert pulled["class"] == "ScMMGPTModel"
        assert pulled["embeds"] == embeds.tolist()
        assert pulled["words"] == words.tolist()


PUSH_WITH_TRANSFORMERS = """
import sys
from transformers import Trainer, TrainingArguments
from tiny_models import make_model, make_processor

processor = make_processor()
model = make_model(processor)
model.push_to_hub("tester/parts")
processor.push_to_hub("tester/parts")
arguments = TrainingArguments(sys.argv[1], hub_model_id="tester/trained", use_cpu=True, report_to="none")
Trainer(model, arguments, processing_class=processor).push_to_hub()
"""


@pytest.mark.slow
def test_push_to_hub_of_transformers_publishes_code_and_tables_too(hub, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    environment.pop("HF_HUB_OFFLINE", None)
    arguments = [sys.executable, "-c", PUSH_WITH_TRANSFORMERS, str(tmp_path / "run")]
    run = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    for name in ("tester/parts", "tester/trained"):
        files = hub.files(name)
        assert {"model.safetensors", "modeling_scmmgpt.py", "configuration_scmmgpt.py"} <= files.keys()
        assert {"processor_config.json", "processing_scmmgpt.py", "gene_vocabulary.tsv.gz"} <= files.keys()
        assert json.loads(files["config.json"])["auto_map"]["AutoModel"] == "modeling_scmmgpt.ScMMGPTModel"


# A model that was loaded, saved and pushed again, by the calls of transformers alone

RUN_EVERYTHING = """
import json, sys
sys.modules["scmmgpt"] = None  # a machine where the package is not installed
import torch, transformers
from anndata import read_h5ad
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor, AutoTokenizer, pipeline

name, cells, auto_classes = sys.argv[1], read_h5ad(sys.argv[2]), sys.argv[3].split(",")
trusted = {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(name, **trusted)
words = AutoTokenizer.from_pretrained(name, **trusted)
genes = AutoFeatureExtractor.from_pretrained(name, **trusted)
assert words.get_vocab() == processor.tokenizer.get_vocab() and genes.genes == processor.gene_tokenizer.genes
answers = {}
for auto_class in auto_classes:
    model, loading = getattr(transformers, auto_class).from_pretrained(name, output_loading_info=True, **trusted)
    assert not loading["missing_keys"], (auto_class, loading)
    with torch.no_grad():
        answers[auto_class] = model.eval().get_cell_features(**processor(cells=cells)).pooler_output.tolist()
arguments = {
    "cell-annotation": {"labels": ["T cell", "B cell"], "min_confidence": 0},
    "cell-retrieval": {"query": "a T cell", "top": 2},
    "cell-to-text": {"max_new_tokens": 4},
    "text-to-cell": {"num_cells": 2, "seed": 0},
}
for task in AutoConfig.from_pretrained(name, **trusted).custom_pipelines:
    run = pipeline(task, model=name, device="cpu", **trusted)
    answer = run("a T cell" if task == "text-to-cell" else cells, **arguments[task])
    answers[task] = answer if isinstance(answer, list) else answer.obs.iloc[:, -1].tolist() + [answer.shape]
print(json.dumps(answers, default=str))
"""


def everything_of(hub: FakeHub, name: str, tmp_path: Path, auto_classes: list[str]) -> dict:
    """What every Auto class and every pipeline of a repository answer on a machine that never heard of scmmgpt."""
    tiny_cells(4).write_h5ad(tmp_path / "cells.h5ad")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment["HF_HUB_DISABLE_XET"] = "1"
    environment.pop("HF_HUB_OFFLINE", None)
    arguments = [sys.executable, "-c", RUN_EVERYTHING, name, str(tmp_path / "cells.h5ad"), ",".join(auto_classes)]
    run = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


PUSH_AGAIN = """
import sys
import transformers
from transformers import AutoProcessor, pipeline
from scmmgpt.processing.pipeline_scmmgpt import PIPELINES

source, how = sys.argv[1:]
if how == "pipeline":
    pipeline("cell-to-text", model=source, pipeline_class=PIPELINES["cell-to-text"][0]).save_pretrained("saved")
else:
    getattr(transformers, how).from_pretrained(source).save_pretrained("saved")
    AutoProcessor.from_pretrained(source).save_pretrained("saved")
if how == "pipeline":
    saved = pipeline("cell-to-text", model="saved", pipeline_class=PIPELINES["cell-to-text"][0])
    saved.push_to_hub("tester/again")
else:
    getattr(transformers, how).from_pretrained("saved").push_to_hub("tester/again")
    AutoProcessor.from_pretrained("saved").push_to_hub("tester/again")
"""
TOWERS = ["AutoModel"]
WITH_LLM = ["AutoModel", "AutoModelForMultimodalLM", "AutoModelForImageTextToText"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "auto_classes"),
    [
        pytest.param("AutoModel", TOWERS, id="the towers"),
        pytest.param("AutoModelForPreTraining", ["AutoModel", "AutoModelForPreTraining"], id="stage 1"),
        pytest.param("AutoModelForMultimodalLM", WITH_LLM, id="stage 2"),
        pytest.param("pipeline", WITH_LLM, id="a pipeline"),
    ],
)
def test_what_is_loaded_saved_and_pushed_again_runs_by_every_auto_class_and_pipeline(hub, tmp_path, how, auto_classes):
    source = write_tiny_model(tmp_path / "source")
    if how == "AutoModelForPreTraining":
        ScMMGPTForPreTraining(ScMMGPTForConditionalGeneration.from_pretrained(source).config).save_pretrained(source)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "here")}
    environment["HF_HUB_DISABLE_XET"] = "1"
    environment.pop("HF_HUB_OFFLINE", None)
    arguments = [sys.executable, "-c", "import scmmgpt\n" + PUSH_AGAIN, str(source), how]
    run = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    answers = everything_of(hub, "tester/again", tmp_path, auto_classes)

    processor, model = ScMMGPTProcessor.from_pretrained(source), ScMMGPTModel.from_pretrained(source).eval()
    with torch.no_grad():
        expected = model.get_cell_features(**processor(cells=tiny_cells(4))).pooler_output
    for auto_class in auto_classes:
        torch.testing.assert_close(torch.tensor(answers[auto_class]), expected, atol=1e-6, rtol=1e-5)
    tasks = set(answers) - set(auto_classes)
    assert tasks == set(PIPELINES if auto_classes is WITH_LLM else ["cell-annotation", "cell-retrieval"])


# Earlier versions


@pytest.mark.parametrize("fixture", sorted(PUBLISHED.iterdir()), ids=lambda path: path.name)
def test_what_an_earlier_version_published_still_loads_and_says_the_same(fixture):
    expected = json.loads((fixture / "expected.json").read_text())

    model = ScMMGPTForConditionalGeneration.from_pretrained(fixture).eval()
    processor = ScMMGPTProcessor.from_pretrained(fixture)

    with torch.no_grad():
        embeds = model.get_cell_features(**processor(cells=(expected["counts"], expected["genes"]))).pooler_output
        texts = model.get_text_features(**processor(text=expected["texts"])).pooler_output
    torch.testing.assert_close(embeds, torch.tensor(expected["cell_embeds"]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(texts, torch.tensor(expected["text_embeds"]), atol=1e-5, rtol=1e-4)
