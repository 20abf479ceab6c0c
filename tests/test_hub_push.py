"""`scmmgpt push` against a local server that speaks the Hub's API: one commit, or nothing at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_hub import OWNER, READER, STRANGER, FakeHub, running_hub
from safetensors.numpy import save_file

from scmmgpt.errors import UserError
from scmmgpt.hub_cards import push as push_module
from scmmgpt.hub_cards.push import lines_of, push

NAME = "tester/model"
CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n# A model\n"


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch) as hub:
        monkeypatch.setattr(push_module, "FIRST_WAIT", 0.01)
        yield hub


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    auto_map = {"AutoConfig": "configuration_scmmgpt.ScMMGPTConfig"}
    (directory / "config.json").write_text(json.dumps({"model_type": "scmmgpt", "auto_map": auto_map}))
    (directory / "configuration_scmmgpt.py").write_text("from .genes_scmmgpt import GENES\n")
    (directory / "genes_scmmgpt.py").write_text("GENES = 3\n")
    (directory / "README.md").write_text(CARD)
    write_weights(directory, seed=0)
    return directory


def write_weights(directory: Path, seed: int) -> None:
    weights = np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)
    save_file({"weight": weights}, directory / "model.safetensors")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def published(hub: FakeHub, name: str = NAME, revision: str = "main") -> dict[str, bytes]:
    return {path: content for path, content in hub.files(name, revision).items() if path != ".gitattributes"}


# What is published


def test_a_push_makes_the_repository_and_publishes_every_file_in_one_commit(hub, directory):
    outcome = push(directory, NAME)

    assert published(hub) == contents(directory)
    assert len(hub.titles(NAME)) == 2, "the empty first commit and ours"
    assert outcome["added"] == sorted(contents(directory))
    assert outcome["commit"] == hub.repositories[NAME].find("main").oid


def test_a_second_push_sends_only_what_changed(hub, directory):
    push(directory, NAME)
    write_weights(directory, seed=1)

    outcome = push(directory, NAME)

    assert published(hub) == contents(directory)
    assert (outcome["added"], outcome["changed"]) == ([], ["model.safetensors"])
    assert outcome["unchanged"] == 4


def test_a_push_without_changes_makes_no_commit(hub, directory):
    push(directory, NAME)

    outcome = push(directory, NAME)

    assert len(hub.titles(NAME)) == 2
    assert "already" in outcome["note"]


def test_weights_and_code_that_are_gone_here_vanish_from_the_hub_and_other_files_stay(hub, directory):
    push(directory, NAME)
    hub.files(NAME)["model-00002-of-00002.safetensors"] = b"old shard"
    hub.files(NAME)["picture.png"] = b"somebody's picture"

    outcome = push(directory, NAME)

    assert outcome["deleted"] == ["model-00002-of-00002.safetensors"]
    assert "picture.png" in hub.files(NAME)
    assert "model-00002-of-00002.safetensors" not in hub.files(NAME)


def test_a_dry_run_shows_the_diff_and_changes_nothing(hub, directory):
    push(directory, NAME)
    before = dict(hub.files(NAME))
    (directory / "README.md").write_text(CARD + "Now with genes.\n")

    outcome = push(directory, NAME, dry_run=True)

    assert outcome["changed"] == ["README.md"]
    assert "+Now with genes." in outcome["diff"]
    assert hub.files(NAME) == before


def test_a_dry_run_for_a_new_name_does_not_create_it(hub, directory):
    assert push(directory, NAME, dry_run=True)["added"] == sorted(contents(directory))
    assert NAME not in hub.repositories


def test_an_outcome_reads_like_a_diff(hub, directory):
    push(directory, NAME)
    (directory / "README.md").write_text(CARD + "Now with genes.\n")

    lines = lines_of(push(directory, NAME, dry_run=True))

    assert lines[0] == "~ README.md"
    assert "+Now with genes." in lines
    assert lines[-1] == "Nothing was published: this was a dry run."
    assert lines_of(push(directory, NAME))[-1].startswith("Published: http")


def test_private_is_private(hub, directory):
    push(directory, NAME, private=True)

    assert hub.repositories[NAME].private


def test_a_private_push_never_fills_a_public_repository(hub, directory):
    push(directory, NAME)

    with pytest.raises(UserError, match="exists and is public"):
        push(directory, NAME, private=True)


def test_a_revision_gets_its_own_branch_and_leaves_main_alone(hub, directory):
    push(directory, NAME)
    before = dict(hub.files(NAME))
    write_weights(directory, seed=1)

    push(directory, NAME, revision="v2")

    assert published(hub, revision="v2") == contents(directory)
    assert hub.files(NAME) == before


def test_a_pull_request_leaves_main_alone(hub, directory):
    push(directory, NAME)
    before = dict(hub.files(NAME))
    write_weights(directory, seed=1)

    outcome = push(directory, NAME, create_pr=True)

    assert outcome["url"].endswith("/discussions/1")
    assert published(hub, revision="refs/pr/1") == contents(directory)
    assert hub.files(NAME) == before


# What goes wrong at the Hub


@pytest.mark.parametrize("status", [pytest.param(503, id="the Hub stumbles"), pytest.param(0, id="the line is cut")])
@pytest.mark.parametrize("place", ["/preupload/", "/info/lfs/", "/lfs-upload/", "/commit/"])
def test_a_passing_failure_is_tried_again(hub, directory, place, status):
    hub.fail("PUT" if place == "/lfs-upload/" else "POST", place, status=status)

    push(directory, NAME)

    assert published(hub) == contents(directory)


def test_a_lost_answer_does_not_make_a_second_commit(hub, directory):
    hub.fail("POST", "/commit/", after_answering=True)

    push(directory, NAME)

    assert published(hub) == contents(directory)
    assert len(hub.titles(NAME)) == 2


@pytest.mark.parametrize("place", ["/preupload/", "/info/lfs/", "/lfs-upload/", "/commit/"])
def test_a_network_lost_in_the_middle_leaves_the_old_revision_whole(hub, directory, place):
    push(directory, NAME)
    before = dict(hub.files(NAME))
    write_weights(directory, seed=1)
    (directory / "README.md").write_text(CARD + "New.\n")
    hub.fail("PUT" if place == "/lfs-upload/" else "POST", place, times=100)

    with pytest.raises(UserError, match="connection to the Hub was lost.*Nothing was published") as caught:
        push(directory, NAME)

    assert hub.files(NAME) == before
    assert "\n" not in str(caught.value)


def test_somebody_elses_commit_is_not_overwritten(hub, directory, monkeypatch):
    push(directory, NAME)
    write_weights(directory, seed=1)
    create_commit = push_module._commit

    def commit_late(*arguments):
        hub.repositories[NAME].branches["main"].append(other)
        return create_commit(*arguments)

    other = type(hub.repositories[NAME].find("main"))("f" * 40, {**hub.files(NAME), "README.md": b"theirs"})
    monkeypatch.setattr(push_module, "_commit", commit_late)

    with pytest.raises(UserError, match="changed by somebody else"):
        push(directory, NAME)

    assert hub.files(NAME)["README.md"] == b"theirs"


def test_without_a_token_the_way_to_one_is_named(hub, directory, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)

    with pytest.raises(UserError, match="hf auth login"):
        push(directory, NAME)


REFUSALS = [
    pytest.param("hf_wrong", NAME, "does not accept this token", id="an unknown token"),
    pytest.param(READER, NAME, "may not write to 'tester/model'", id="a token that only reads"),
    pytest.param(STRANGER, NAME, "may not write to 'tester/model'", id="another owner's name"),
    pytest.param(OWNER, "nobody/model", "may not write to 'nobody/model'", id="a namespace of others"),
    pytest.param(OWNER, "model", "give it as org/name", id="no namespace"),
    pytest.param(OWNER, "tester/mo del", "give it as org/name", id="a space in the name"),
]


@pytest.mark.parametrize(("token", "name", "reason"), REFUSALS)
def test_who_may_not_write_is_told_so_in_one_line(hub, directory, token, name, reason):
    with pytest.raises(UserError, match=reason) as caught:
        push(directory, name, token=token)

    assert "\n" not in str(caught.value)
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        pytest.param(403, "Private repository storage limit reached", "no room left", id="storage limit"),
        pytest.param(413, "Payload too large", "no room left", id="too large"),
        pytest.param(402, "Payment required", "no room left", id="payment required"),
        pytest.param(400, "Bad thing", "status 400: Bad thing", id="anything else"),
    ],
)
def test_what_the_hub_objects_is_passed_on_in_one_line(hub, directory, status, message, reason):
    hub.fail("POST", "/info/lfs/", status=status, message=message)

    with pytest.raises(UserError, match=reason) as caught:
        push(directory, NAME)

    assert "\n" not in str(caught.value)
    assert published(hub) == {}


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"config.json": b'{"model_type": "llama"}'}, id="another architecture"),
        pytest.param({"data.parquet": b"PAR1"}, id="no model at all"),
    ],
)
def test_a_name_taken_by_something_else_is_left_alone(hub, directory, files):
    push(directory, NAME)
    hub.files(NAME).clear()
    hub.files(NAME).update(files)

    with pytest.raises(UserError, match="choose another name"):
        push(directory, NAME)

    assert hub.files(NAME) == files


def test_offline_mode_is_named(hub, directory, monkeypatch):
    def refuse(*arguments, **options):
        from huggingface_hub.errors import OfflineModeIsEnabled

        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)

    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push(directory, NAME)


# What is wrong with the directory


def spoil(name: str, content: bytes):
    return lambda directory: (directory / name).write_bytes(content)


def remove(name: str):
    return lambda directory: (directory / name).unlink()


BAD_DIRECTORIES = [
    pytest.param(spoil("pytorch_model.bin", b"\x80"), "pytorch_model.bin can run code", id="a pickle"),
    pytest.param(spoil("training_args.bin", b"\x80"), "training_args.bin can run code", id="Trainer's own pickle"),
    pytest.param(spoil("tokenizer.json", b"\x80\x04"), "tokenizer.json is", id="a pickle called JSON"),
    pytest.param(spoil("model.safetensors", b"\x80\x04"), "model.safetensors is damaged", id="a pickle as weights"),
    pytest.param(spoil("notes.docx", b"x"), "notes.docx does not belong", id="a stray file"),
    pytest.param(spoil("setup.py", b""), "setup.py does not belong", id="code that nothing loads"),
    pytest.param(spoil(".env", b"HF_TOKEN=x"), ".env does not belong", id="a hidden file"),
    pytest.param(spoil("config.json", b"{"), "config.json is not valid JSON", id="broken JSON"),
    pytest.param(spoil("config.json", b'{"model_type": "bert"}'), "of type 'bert'", id="another architecture"),
    pytest.param(spoil("README.md", b"# no metadata"), "names no licence", id="a card without a licence"),
    pytest.param(spoil("README.md", b"---\na: [\n---\n"), "metadata of README.md", id="a card with broken metadata"),
    pytest.param(remove("README.md"), "no model card", id="no card"),
    pytest.param(remove("config.json"), "no config.json", id="no config"),
    pytest.param(remove("model.safetensors"), "no weights", id="no weights"),
    pytest.param(shutil.rmtree, "There is no directory", id="no directory"),
]


@pytest.mark.parametrize(("break_it", "reason"), BAD_DIRECTORIES)
def test_an_unfit_directory_is_refused_before_anything_is_sent(hub, directory, break_it, reason):
    break_it(directory)

    with pytest.raises(UserError, match=reason) as caught:
        push(directory, NAME)

    assert "\n" not in str(caught.value)
    assert hub.requests == []


def test_a_missing_shard_is_named(hub, directory):
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors").rename(directory / shards["a"])
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    with pytest.raises(UserError, match="model-00002-of-00002.safetensors, which is missing"):
        push(directory, NAME)


def test_a_folder_that_was_used_is_fit_to_be_pushed(hub, directory):
    (directory / "__pycache__").mkdir()
    (directory / "__pycache__" / "genes.cpython-311.pyc").write_bytes(b"x")

    push(directory, NAME)

    assert published(hub) == contents(directory)
