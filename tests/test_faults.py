"""What other people, other processes, clocks and disks do to what we keep: right results, or a sentence."""

import json
import os
import random
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from apart import failures_of
from tiny_chat import write_llm, write_repository
from tiny_models import tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt import atomic_files, base_llm, chat_model, embedding, text_cache
from scmmgpt.errors import UserError
from scmmgpt.index import Index, build_index
from scmmgpt.loading import load
from scmmgpt.storage import write_cells
from scmmgpt.text_cache import MIN_TEXTS, remembered

TEXTS = [f"text {number}" for number in range(MIN_TEXTS)]
NOBODY = 65534


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


def unit_vectors() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(MIN_TEXTS, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# ---- vectors of labels that are kept


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The file in which vectors are kept."""
    monkeypatch.setattr(text_cache, "cache_folder", lambda: tmp_path / "cache")
    np.testing.assert_array_equal(remembered("model", TEXTS, unit_vectors), unit_vectors())
    (path,) = (tmp_path / "cache").iterdir()
    return path


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"", id="nothing left"),
        pytest.param(lambda whole: whole[:40], id="cut in the header"),
        pytest.param(lambda whole: whole[:-9], id="cut short"),
        pytest.param(lambda whole: b"PK\x03\x04" + whole[4:], id="a zip by its first bytes"),
        pytest.param(lambda whole: whole[:200] + b"\x7f" * 64 + whole[264:], id="other numbers"),
        pytest.param(lambda whole: whole.replace(b"<f4", b"|O8"), id="objects"),
    ],
)
def test_vectors_that_were_damaged_are_computed_anew(kept, damage):
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))

    np.testing.assert_array_equal(remembered("model", TEXTS, unit_vectors), unit_vectors())

    assert kept.read_bytes() == whole


def test_threads_that_keep_the_same_vectors_do_not_meet(kept):
    kept.unlink()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(remembered("model", TEXTS, unit_vectors))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert all((one == unit_vectors()).all() for one in found)
    assert len(found) == 8


# ---- two users of one cache


def as_nobody(work) -> list[str]:
    """Run it as a user who owns nothing, in a process of its own."""

    def become_nobody(_: int) -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        work()

    return failures_of(become_nobody, [0])


@pytest.fixture
def shared(tmp_path_factory):
    """A folder that everybody can enter, and nobody but its owner can write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    folder = tmp_path_factory.mktemp("shared")
    for one in (folder, *folder.parents):
        if not one.stat().st_mode & 0o001:
            one.chmod(one.stat().st_mode | 0o011)
        if one == Path("/tmp"):
            break
    return folder


def test_another_user_reads_what_is_kept_and_does_without_what_cannot_be_written(shared, monkeypatch):
    monkeypatch.setattr(text_cache, "cache_folder", lambda: shared / "cache")
    remembered("model", TEXTS, unit_vectors)

    def use():
        remembered("model", TEXTS, lambda: pytest.fail("they are there"))
        assert len(remembered("another model", TEXTS, unit_vectors)) == MIN_TEXTS

    assert as_nobody(use) == []
    assert len(list((shared / "cache").iterdir())) == 1


def test_another_user_uses_the_assembled_chat_model_and_is_told_where_none_can_be_put(shared, monkeypatch):
    monkeypatch.setattr(chat_model, "cache_folder", lambda: shared / "cache")
    monkeypatch.delenv(base_llm.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(base_llm.BaseLLM, "_snapshot", lambda self, **how: None)
    llm = write_llm(shared / "llm")
    ours, other = (write_repository(shared / name, llm, seed) for seed, name in enumerate(("ours", "other")))
    place = chat_model.assembled(ours, base=llm)
    before = sorted(path.name for path in place.parent.iterdir())
    for path in [*shared.glob("o*/*.safetensors"), *shared.glob("llm/*.safetensors")]:  # as a package installs them
        path.chmod(0o644)

    def use():
        assert chat_model.assembled(ours) == place
        assert all(path.read_bytes() for path in place.iterdir() if path.is_file())
        with pytest.raises(UserError, match="could not be assembled.*HF_HOME moves that folder") as refusal:
            chat_model.assembled(other, base=llm)
        assert "\n" not in str(refusal.value)

    assert as_nobody(use) == []
    assert sorted(path.name for path in place.parent.iterdir()) == before


def test_two_processes_that_assemble_at_the_same_time_both_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_model, "cache_folder", lambda: tmp_path / "cache")
    llm = write_llm(tmp_path / "llm")
    repository = write_repository(tmp_path / "chat", llm)
    write, seen = chat_model._write, []

    def beside_another(model, processor, place):
        write(model, processor, place)
        monkeypatch.setattr(chat_model, "_write", write)
        own_number = os.getpid()
        with monkeypatch.context() as another_process:
            another_process.setattr(os, "getpid", lambda: own_number + 1)
            another_process.setattr("scmmgpt.storage._is_running", lambda process: True)
            seen.append(chat_model.assembled(repository, base=llm))

    monkeypatch.setattr(chat_model, "_write", beside_another)

    assert chat_model.assembled(repository, base=llm) == seen[0]
    assert [path.name for path in seen[0].parent.iterdir()] == [seen[0].name]
    assert chat_model.is_whole(seen[0])


# ---- an index


@pytest.fixture(scope="module")
def whole_index(tmp_path_factory, model):
    return build_index(tiny_cells(), tmp_path_factory.mktemp("index") / "index", model=model, progress=False).folder


@pytest.mark.parametrize("name", ["vectors.npy", "cells.h5ad", "index.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut short", "of another atlas", "nonsense"])
def test_a_damaged_index_is_refused_by_its_folder(name, damage, whole_index, model, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(whole_index, folder)
    path = folder / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "of another atlas":
        other = build_index(tiny_cells(7), tmp_path / "other", model=model, progress=False)
        shutil.copy(other.folder / name, path)
    else:
        path.write_bytes({"empty": b"", "cut short": content[: len(content) // 2], "nonsense": b"PK\x03\x04x"}[damage])

    with pytest.raises(UserError, match=f"{folder}.*(damaged|is not a file|no index|not an index)") as refusal:
        scmmgpt.search(folder, "a T cell", model=model, progress=False)

    assert "\n" not in str(refusal.value)


def test_a_folder_that_may_not_be_written_to_is_removed_by_its_owner_all_the_same(shared):
    copy = shared / "copy"
    (copy / "obs").mkdir(parents=True)
    (copy / "obs" / "index").write_bytes(b"x")
    (copy / "obs").chmod(0o555)
    for path in (shared, copy, copy / "obs", copy / "obs" / "index"):
        os.chown(path, NOBODY, NOBODY)

    assert as_nobody(lambda: atomic_files.remove(copy)) == []

    assert not copy.exists()


# ---- a run that was interrupted


@pytest.fixture
def interrupted(tmp_path, model, monkeypatch):
    """The folder beside an output in which half of a run is kept."""
    tiny_cells(64).write_h5ad(tmp_path / "cells.h5ad")
    interrupt_after_half(monkeypatch, lambda: embed(tmp_path, model))
    return tmp_path / ".out.h5ad.unfinished"


def interrupt_after_half(monkeypatch, run) -> None:
    """Of a run over 64 cells."""
    monkeypatch.setattr(embedding, "CELLS_PER_CHUNK", 16)
    finish = embedding.Workspace.finish

    def interrupt(self, name, num_rows):
        finish(self, name, num_rows)
        if num_rows == 32:
            raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(embedding.Workspace, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()


def embed(folder: Path, model, name: str = "cells.h5ad"):
    output = folder / f"out{Path(name).suffix}"
    return scmmgpt.embed(folder / name, model=model, output=output, progress=False)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"run": 1}', '{"run": "x", "done": [], "notes": {}}'])
def test_a_state_that_says_nothing_starts_the_run_anew(content, interrupted, model):
    (interrupted / "state.json").write_text(content)

    embedded = embed(interrupted.parent, model)

    np.testing.assert_array_equal(
        embedded.obsm["X_scmmgpt"], scmmgpt.embed(tiny_cells(64), model=model).obsm["X_scmmgpt"]
    )


@pytest.mark.parametrize("damage", ["gone", "empty", "cut short", "another shape"])
def test_finished_arrays_that_were_damaged_are_said(damage, interrupted, model):
    (array,) = interrupted.glob("*.npy")
    content = array.read_bytes()
    if damage == "gone":
        array.unlink()
    elif damage == "another shape":
        np.save(array, np.zeros((3, 3), np.float32))
    else:
        array.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])

    with pytest.raises(UserError, match="interrupted run left.*is damaged.*remove that folder") as refusal:
        embed(interrupted.parent, model)
    assert "\n" not in str(refusal.value)
    shutil.rmtree(interrupted)
    embed(interrupted.parent, model)


def test_a_run_begun_on_one_zarr_is_not_taken_up_on_another(tmp_path, model, monkeypatch):
    first, second = tiny_cells(64), tiny_cells(64, seed=1)
    write_cells(first, tmp_path / "cells.zarr")
    interrupt_after_half(monkeypatch, lambda: embed(tmp_path, model, "cells.zarr"))
    shutil.rmtree(tmp_path / "cells.zarr")
    write_cells(second, tmp_path / "cells.zarr")

    embedded = embed(tmp_path, model, "cells.zarr")

    expected = scmmgpt.embed(second, model=model, progress=False).obsm["X_scmmgpt"]
    np.testing.assert_allclose(embedded.obsm["X_scmmgpt"], expected, atol=1e-6)


# ---- clocks


def test_a_clock_that_jumps_changes_nothing(tmp_path, model, monkeypatch):
    tiny_cells(40).write_h5ad(tmp_path / "cells.h5ad")
    expected = scmmgpt.annotate(tmp_path / "cells.h5ad", ["T cell", "B cell"], model=model, progress=False).obs
    generator = random.Random(0)
    jumping = lambda: generator.uniform(-1e9, 1e10)  # noqa: E731
    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * jumping()))

    for number, moment in enumerate((0, 1e9, 7e9)):
        os.utime(tmp_path / "cells.h5ad", (moment, moment))
        output = tmp_path / f"out{number}.h5ad"
        found = scmmgpt.annotate(
            tmp_path / "cells.h5ad", ["T cell", "B cell"], model=model, output=output, progress=False
        )
        pd.testing.assert_frame_equal(found.obs, expected, check_categorical=False)
    assert not list(tmp_path.glob(".*"))


def test_an_input_that_is_older_by_the_clock_than_a_run_begun_on_it_starts_that_run_anew(interrupted, model):
    os.utime(interrupted.parent / "cells.h5ad", (1, 1))
    state = json.loads((interrupted / "state.json").read_text())

    embed(interrupted.parent, model)

    assert state["done"] == {"embed": 32}
    assert not interrupted.exists()


def test_an_index_opens_whatever_the_clock_says(whole_index, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(whole_index, folder)
    for path in folder.iterdir():
        os.utime(path, (7e9, 7e9))

    assert len(Index.open(folder).obs) == 60


# ---- memory


@pytest.fixture
def little_memory(monkeypatch):
    """Room for the tokens of ten cells at a time, once the first forty were read."""
    from scmmgpt.processing import gene_tokenization_scmmgpt as tokenization

    lay_out, read = tokenization.lay_out, []

    def with_little_room(blocks, layout):
        found = lay_out(blocks, layout)
        number = sum(len(totals) for totals in found[1])
        if sum(read) >= 40 and number > 10:
            raise MemoryError("Unable to allocate 1. TiB for an array")
        read.append(number)
        return found

    monkeypatch.setattr(tokenization, "lay_out", with_little_room)
    monkeypatch.setattr(embedding, "CELLS_PER_CHUNK", 40)


def test_a_block_that_does_not_fit_into_memory_is_halved_and_that_is_said(model, little_memory, monkeypatch):
    with pytest.warns(UserWarning, match="continuing with") as said:
        found = scmmgpt.embed(tiny_cells(97), model=model, progress=False)

    monkeypatch.undo()
    expected = scmmgpt.embed(tiny_cells(97), model=model, progress=False)
    np.testing.assert_allclose(found.obsm["X_scmmgpt"], expected.obsm["X_scmmgpt"], atol=1e-5)
    assert found.uns["scmmgpt"]["genes"] == expected.uns["scmmgpt"]["genes"]
    assert [str(one.message) for one in said] == [
        f"Out of memory: continuing with {number} cells at a time." for number in (20, 10)
    ]


def test_memory_that_is_too_small_for_one_cell_is_said_in_a_sentence(model, monkeypatch, tmp_path, capsys):
    from scmmgpt.console import run_to_exit_code

    def no_room(*_):
        raise MemoryError("Unable to allocate 1. TiB for an array")

    monkeypatch.setattr("scmmgpt.processing.gene_tokenization_scmmgpt.lay_out", no_room)
    tiny_cells(5).write_h5ad(tmp_path / "cells.h5ad")

    code = run_to_exit_code(lambda: embed(tmp_path, model))

    assert code == 2
    assert capsys.readouterr().err.startswith("scmmgpt: There is not enough memory (Unable to allocate 1. TiB")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]
