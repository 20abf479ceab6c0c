"""The whole run where things are odd: homes, networks, locales, paths, line ends, memory and disks."""

import os
import resource
import shutil
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import anndata
import pandas as pd
import pytest
import torch
from tiny_models import tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.loading import load
from scmmgpt.processing.labels_scmmgpt import read_labels
from scmmgpt.storage import check_tables, write_cells

LABELS = ["T cell", "B cell", "monocyte"]
GIBIBYTE = 1024**3


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory):
    return load(directory, device="cpu")


# ---- a whole run in a process of its own


def without(name):
    return {key: value for key, value in os.environ.items() if key != name}


def nothing_special(folder):
    return [], dict(os.environ), folder


def read_only_home(folder):
    home = folder / "home"
    home.mkdir()
    home.chmod(0o500)
    # Nobody may write for root either where the home is no folder at all.
    return [], {**os.environ, "HOME": "/proc/1/nowhere" if os.geteuid() == 0 else str(home)}, folder


def no_home(folder):
    return [], without("HOME"), folder


def no_network(folder):
    isolated = ["unshare", "--net", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("this machine isolates no network for its users")
    return isolated, dict(os.environ), folder


def plain_locale(folder):
    return [], {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, folder


def another_locale(folder):
    return [], {**os.environ, "LC_ALL": "de_DE.ISO-8859-1", "PYTHONIOENCODING": "latin-1"}, folder


def odd_path(folder):
    odd = folder / "zwei Wörter 細胞 [1]"
    odd.mkdir()
    return [], dict(os.environ), odd


def limited_memory(folder):
    return ["prlimit", f"--as={6 * GIBIBYTE}"], dict(os.environ), folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "surroundings",
    [read_only_home, no_home, no_network, plain_locale, another_locale, odd_path, limited_memory],
    ids=lambda surroundings: surroundings.__name__.replace("_", " "),
)
def test_the_embedded_model_annotates_with_a_report(surroundings, tmp_path):
    before, environment, folder = surroundings(tmp_path)
    if before and not shutil.which(before[0]):
        pytest.skip(f"this machine has no {before[0]}")
    shutil.copy(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad", folder / "cells.h5ad")
    (folder / "labels.txt").write_bytes("T cell\r\nB cell\r\nmonocyte\r\nZelle Ä 細胞\r\n".encode())
    program = "from scmmgpt.cli import main; main()"
    verb = ["annotate", "cells.h5ad", "--output", "out.h5ad", "--report", "report.html", "--labels", "labels.txt"]

    command = [*before, sys.executable, "-c", program, *verb]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)

    assert result.returncode == 0, result.stderr.decode(errors="replace")
    named = set(anndata.read_h5ad(folder / "out.h5ad").obs["scmmgpt_second_choice"])
    assert named
    assert named <= {"T cell", "B cell", "monocyte", "Zelle Ä 細胞"}
    assert "B cell" in (folder / "report.html").read_text(encoding="utf-8")
    assert b"Traceback" not in result.stderr


# ---- labels


def test_line_ends_of_other_systems_are_no_part_of_a_label(model, tmp_path):
    path = tmp_path / "labels.txt"

    for end in ("\r\n", "\r", "\n"):
        path.write_bytes(("\ufeff" + end.join(LABELS) + end).encode("utf-8"))
        assert list(read_labels(path, model.ontology).labels) == LABELS


def test_a_label_of_ten_thousand_characters_comes_back_verbatim(model, tmp_path):
    long = "a very " * 1428 + "rare cell"
    cells = tiny_cells(20)
    page, output = tmp_path / "report.html", tmp_path / "out.h5ad"

    options = {"model": model, "min_confidence": 0, "report": page, "output": output, "progress": False}
    with pytest.warns(UserWarning, match="not in the Cell Ontology"):
        scmmgpt.annotate(cells, [long, "<script>alert(1)</script>"], **options)

    assert set(anndata.read_h5ad(output).obs["scmmgpt_cell_type"]) <= {long, "<script>alert(1)</script>"}
    assert "<script>alert" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("label", ["T\0cell", "T\ud800cell"], ids=["zero byte", "half a character"])
def test_a_label_that_no_file_can_keep_is_refused(label, model):
    with pytest.raises(UserError, match="cannot be written to a file"):
        read_labels([label, "B cell"], model.ontology)


def test_a_json_label_file_nested_too_deep_is_refused(model, tmp_path):
    (tmp_path / "labels.json").write_text("[" * 100_000)

    with pytest.raises(UserError, match="not JSON"):
        read_labels(tmp_path / "labels.json", model.ontology)


# ---- disks


def test_a_disk_that_fills_while_results_are_written_leaves_nothing_half(model, tmp_path):
    tiny_cells(400).write_h5ad(tmp_path / "cells.h5ad")
    before = (tmp_path / "cells.h5ad").read_bytes()

    def annotate():
        torch.set_num_threads(1)  # a forked process has none of its parent's threads and would wait for them
        room = len(before) - 10  # less than the copy of the input takes
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            options = {"model": model, "output": tmp_path / "out.h5ad", "progress": False}
            scmmgpt.annotate(tmp_path / "cells.h5ad", LABELS, **options)
        except UserError as error:
            os._exit(7 if "could not be written" in str(error) else 8)

    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    process = get_context("fork").Process(target=annotate)
    process.start()
    process.join()

    assert process.exitcode == 7
    assert (tmp_path / "cells.h5ad").read_bytes() == before
    assert not (tmp_path / "out.h5ad").exists()
    assert not [path for path in tmp_path.iterdir() if "half-written" in path.name]


def test_half_written_files_of_killed_processes_are_cleared_and_those_of_others_kept(model, tmp_path):
    for process in (os.getpid(), 2**22 + 1, 1):
        (tmp_path / f".out.{process}.half-written.h5ad").write_bytes(b"half")
    (tmp_path / ".out.2024.h5ad").write_bytes(b"somebody's own")

    scmmgpt.embed(tiny_cells(5), model=model, output=tmp_path / "out.h5ad", progress=False)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".out.1.half-written.h5ad",
        ".out.2024.h5ad",
        "out.h5ad",
    ]


def test_what_others_write_under_a_longer_name_is_kept(model, tmp_path):
    others = tmp_path / f".out.annotated.{2**22 + 1}.half-written.h5ad"
    others.write_bytes(b"half")

    scmmgpt.embed(tiny_cells(5), model=model, output=tmp_path / "out.h5ad", progress=False)

    assert others.exists()


def test_the_copy_of_a_zarr_that_nobody_may_write_to_can_be_written(model, tmp_path):
    write_cells(tiny_cells(5), tmp_path / "cells.zarr")
    for path in (tmp_path / "cells.zarr").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)

    scmmgpt.embed(tmp_path / "cells.zarr", model=model, output=tmp_path / "out.zarr", progress=False)

    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "out.zarr").rglob("*"))


def test_an_output_through_a_link_to_a_zarr_is_written_again_and_again(model, tmp_path):
    write_cells(tiny_cells(5), tmp_path / "old.zarr")
    (tmp_path / "out.zarr").symlink_to(tmp_path / "old.zarr")

    for _ in range(2):
        with pytest.warns(UserWarning, match="existed and was replaced"):
            scmmgpt.embed(tiny_cells(5), model=model, output=tmp_path / "out.zarr", progress=False)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.zarr", "out.zarr"]
    assert "X_scmmgpt" in anndata.read_zarr(tmp_path / "out.zarr").obsm


def test_columns_that_no_file_holds_are_said_before_any_work(model, tmp_path, monkeypatch):
    cells = tiny_cells(5)
    cells.obs["taken"] = pd.Timestamp("2026-01-01")
    monkeypatch.setattr("scmmgpt.verb.load", lambda *_, **__: pytest.fail("a model is loaded"))

    with pytest.raises(UserError, match="cannot be written to a file.*taken"):
        scmmgpt.embed(cells, model=model, output=tmp_path / "out.h5ad", progress=False)


def test_columns_are_looked_at_by_two_threads_at_once(monkeypatch):
    write, inner = anndata.io.write_elem, []

    def write_while_another_looks(store, name, table):
        if not inner:
            inner.append(name)
            check_tables(tiny_cells(5))
        write(store, name, table)

    monkeypatch.setattr("anndata.io.write_elem", write_while_another_looks)

    check_tables(tiny_cells(5))

    assert inner == ["obs"]


def test_an_output_within_the_input_or_with_too_long_a_name_is_refused(model, tmp_path):
    write_cells(tiny_cells(5), tmp_path / "cells.zarr")

    with pytest.raises(UserError, match="lies in the input"):
        scmmgpt.embed(tmp_path / "cells.zarr", model=model, output=tmp_path / "cells.zarr" / "out.zarr")
    with pytest.raises(UserError, match="too long"):
        scmmgpt.embed(tmp_path / "cells.zarr", model=model, output=tmp_path / f"{'o' * 235}.zarr")


@pytest.mark.slow
def test_a_zarr_that_is_replaced_is_never_half_there(model, tmp_path, monkeypatch):
    output = tmp_path / "out.zarr"
    scmmgpt.embed(tiny_cells(5), model=model, output=output, progress=False)
    seen = []
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (seen.append(anndata.read_zarr(self).n_obs), rename(self, to))
    )

    with pytest.warns(UserWarning, match="existed and was replaced"):
        scmmgpt.embed(tiny_cells(7), model=model, output=output, progress=False)

    assert seen == [5, 7]
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_whoever_turns_warnings_into_errors_keeps_the_result(model, tmp_path):
    output = tmp_path / "out.h5ad"
    scmmgpt.embed(tiny_cells(5), model=model, output=output, progress=False)

    with pytest.raises(UserWarning, match="existed and was replaced"):  # warnings are errors in these tests
        scmmgpt.embed(tiny_cells(7), model=model, output=output, progress=False)

    assert anndata.read_h5ad(output).n_obs == 7


# ---- models


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "processor_config.json", "gene_vocabulary.tsv.gz"]
)
def test_a_model_whose_file_was_cut_short_is_refused_by_name(name, directory, tmp_path):
    shutil.copytree(directory, tmp_path / "model")
    whole = (directory / name).read_bytes()
    (tmp_path / "model" / name).write_bytes(whole[: len(whole) // 2])

    with pytest.raises(UserError, match=str(tmp_path / "model")):
        load(tmp_path / "model")


# ---- threads


def test_the_number_of_threads_changes_embeddings_by_rounding_alone(model):
    before, cells = torch.get_num_threads(), tiny_cells(30)
    embeds = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            embeds.append(scmmgpt.embed(cells, model=model, progress=False).obsm["X_scmmgpt"])
    finally:
        torch.set_num_threads(before)

    assert abs(embeds[0] - embeds[1]).max() < 1e-5


def test_the_order_of_the_cells_changes_embeddings_by_rounding_alone(model):
    cells = tiny_cells(30)
    forwards = scmmgpt.embed(cells, model=model, progress=False).obsm["X_scmmgpt"]
    backwards = scmmgpt.embed(cells[::-1].copy(), model=model, progress=False).obsm["X_scmmgpt"]

    assert abs(forwards - backwards[::-1]).max() < 1e-5


def test_the_same_call_gives_the_same_bytes(model):
    first, second = (scmmgpt.annotate(tiny_cells(30), LABELS, model=model, progress=False) for _ in range(2))

    assert first.obs.equals(second.obs)
    tokens = [model.processor.feature_extractor(tiny_cells(30))["gene_values"].tobytes() for _ in range(2)]
    assert tokens[0] == tokens[1]
