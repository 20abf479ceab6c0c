"""Models on the Hub: pulled where scmmgpt is not installed, pushed by transformers, published by earlier versions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, running_hub
from tiny_models import make_repository, tiny_cells

from scmmgpt.hub_cards.push import push
from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTProcessor

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
