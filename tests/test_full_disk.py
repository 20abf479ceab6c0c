"""A disk that fills up while a verb writes: one sentence, nothing half, the input untouched, and it works once there is room."""

import os
import sys
import warnings
from pathlib import Path

import anndata
import pytest
import small_disk
from apart import failures_of
from tiny_chat import write_llm, write_repository
from tiny_corpus import gene_tokenizer, write_cells
from tiny_models import make_model, make_processor, tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a process disks of its own")
LABELS = ["T cell", "B cell", "monocyte"]
ENOUGH = 64 * 1024**2
SHARES = (0.0, 0.2, 0.5, 0.8, 0.9)  # of the room that the whole work takes


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of inputs: cells, a model, a base LLM and a repository of adapters."""
    folder = tmp_path_factory.mktemp("given")
    cells = tiny_cells(300)
    cells.obsm["spatial"] = cells.obsm["X_umap"]
    cells.obs["cell_type"] = [("B cell", "T cell", "monocyte")[number % 3] for number in range(300)]
    cells.write_h5ad(folder / "cells.h5ad")
    write_tiny_model(folder / "model")
    write_repository(folder / "chat", write_llm(folder / "llm"))
    write_cells(folder / "corpus", one=1)
    return folder


@pytest.fixture(scope="module")
def model(given):
    return scmmgpt.load(given / "model", device="cpu", generative=True)


def annotate(given, model, disk):
    where = {"output": disk / "out.h5ad", "report": disk / "page.html"}
    scmmgpt.annotate(given / "cells.h5ad", LABELS, model=model, progress=False, **where)


def annotate_to_zarr(given, model, disk):
    scmmgpt.annotate(given / "cells.h5ad", LABELS, model=model, output=disk / "out.zarr", progress=False)


def embed(given, model, disk):
    scmmgpt.embed(given / "cells.h5ad", model=model, output=disk / "out.h5ad", progress=False)


def describe(given, model, disk):
    options = {"cluster_key": "leiden", "max_new_tokens": 2, "progress": False}
    scmmgpt.describe(given / "cells.h5ad", model=model, output=disk / "out.h5ad", **options)


def generate(given, model, disk):
    scmmgpt.generate_cells("a B cell", 50, model=model, output=disk / "out.h5ad", progress=False)


def index(given, model, disk):
    from scmmgpt.index import build_index

    build_index(given / "cells.h5ad", disk / "index", model=model, progress=False)


def audit(given, model, disk):
    from scmmgpt.label_audit import audit

    audit(given / "cells.h5ad", "cell_type", model=model, output=disk / "out.h5ad", progress=False)


def niches(given, model, disk):
    from scmmgpt.niche_finding import niches

    where = {"output": disk / "out.h5ad", "report": disk / "page.html"}
    niches(given / "cells.h5ad", cell_type_key="cell_type", model=model, progress=False, **where)


def compare(given, model, disk):
    from scmmgpt.cli_context import compare

    where = {"table": disk / "table.csv", "genes": disk / "genes.csv", "report": disk / "page.html"}
    compare(given / "cells.h5ad", "leiden", "0", cell_type_key="cell_type", model=given / "model", json=True, **where)


def evaluate(given, model, disk):
    pytest.importorskip("sklearn")
    from scmmgpt.training.evaluate import evaluate

    evaluate(given / "cells.h5ad", "cell_type", output=disk / "results", model=model)


def export(given, model, disk):
    from scmmgpt.hub_cards.export import export

    processor = make_processor()
    export(make_model(processor), processor, disk / "repository")


def corpus(given, model, disk):
    from scmmgpt.training.corpus.build import build_corpus

    build_corpus([str(given / "corpus")], disk / "corpus", processor=gene_tokenizer(), say=lambda line: None)


def chat_model(given, model, disk):
    from scmmgpt import chat_model

    chat_model.cache_folder, chat_model._ROOM_NEEDED = (lambda: disk), 0
    chat_model.assembled(given / "chat", base=given / "llm")


FAST, SLOW = (
    {verb.__name__.replace("_", " "): verb for verb in verbs}
    for verbs in (
        (annotate, embed, generate, index, chat_model),
        (annotate_to_zarr, describe, audit, niches, compare, evaluate, export, corpus),
    )
)
VERBS = {**FAST, **SLOW}


@pytest.mark.parametrize("verb", [*FAST, *(pytest.param(verb, marks=pytest.mark.slow) for verb in SLOW)])
def test_a_full_disk_is_said_and_leaves_nothing_half(verb, given, model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    before = files_of(given)

    def work() -> None:
        VERBS[verb](given, model, disk)

    def on_a_disk_of(size: int) -> None:
        small_disk.mount(disk, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if size == ENOUGH:
                work()
            elif is_refused(work):
                nothing_is_half(disk)
                small_disk.enlarge(disk, ENOUGH)
                work()
        (tmp_path / "whole").write_text(f"{used(disk)} {sorted(os.listdir(disk))}")
        assert not [path for path in disk.rglob("*") if "half-written" in path.name]

    def failures(size: int) -> list[str]:
        return failures_of(on_a_disk_of, [size], seconds=120)

    found = failures(ENOUGH)
    if found and "unshare" in found[0]:
        pytest.skip("this machine gives its users no disks of their own")
    assert found == []
    needed, names = (tmp_path / "whole").read_text().split(" ", 1)
    for share in SHARES:
        assert failures(max(4096, int(share * int(needed)))) == []
        assert (tmp_path / "whole").read_text().split(" ", 1)[1] == names
    assert files_of(given) == before


def is_refused(work) -> bool:
    """Whether there was too little room, which is said in a sentence; a disk of whole pages may have just enough."""
    refusal = None
    try:
        work()
    except UserError as error:
        refusal = str(error)
    assert refusal is None or ("no space" in refusal.lower() or "full" in refusal), refusal
    assert refusal is None or "\n" not in refusal
    return refusal is not None


def nothing_is_half(disk: Path) -> None:
    """Of several outputs one may be there, whole; hidden folders keep what another try goes on with."""
    for path in disk.iterdir():
        if path.name.startswith("."):
            continue
        if path.suffix == ".h5ad":
            anndata.read_h5ad(path)
        else:
            assert path.suffix in (".html", ".csv") or path.name in ("models", "corpus"), path
            assert path.is_dir() or path.stat().st_size
    assert not [path for path in disk.glob("models/*") if not path.name.startswith(".")]


def used(disk: Path) -> int:
    usage = os.statvfs(disk)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
