"""Whatever is done to a file, to an agent's arguments or to a request ends in a right answer or in one sentence."""

import json
import random
import shutil
import sys
import warnings
from pathlib import Path
from threading import Thread

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from apart import failures_of
from file_formats import WRITERS
from scipy import sparse
from tiny_models import GENES, as_dicts, make_repository, tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt.cells import CellsInFile
from scmmgpt.errors import UserError
from scmmgpt.storage import read_cells, read_summary

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from damage import EVIL, ODD_VALUES, damage_hdf5, damaged_bytes, damaged_json, damaged_table

FEW, MANY = range(12), range(12, 200)
LABELS = ["T cell", "B cell", "monocyte"]
FORMATS = ("h5ad", "zarr", "h5mu", "10x h5, version 3", "10x h5, version 2", "10x folder", "10x folder of version 2")
HOW_MANY = pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return scmmgpt.load(write_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


def is_one_sentence(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text and len(text) < 2000 and "Traceback" not in text


# ---- files


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    rna = tiny_cells(24)
    antibodies = np.random.default_rng(0).poisson(20, (24, 3))
    names = [*GENES, "CD19_TotalSeqB", "CD14_TotalSeqB", "CD4_TotalSeqB"]
    types = ["Gene Expression"] * len(GENES) + ["Antibody Capture"] * 3
    var = pd.DataFrame({"gene_ids": names, "feature_types": types}, index=names)
    matrix = sparse.hstack([rna.X, sparse.csr_matrix(antibodies)], format="csr").astype(np.float32)
    return ad.AnnData(matrix, obs=pd.DataFrame(index=rna.obs_names), var=var)


def damage(path: Path, generator: random.Random) -> None:
    """Damage a file, or one file of a folder.

    Bytes changed inside of an HDF5 file keep that library itself busy for ever in one of a hundred cases, so such a file
    is cut short or gets other objects; uploads are checked in a process of their own (`test_a_file_that_hangs_or_crashes_the_library_is_refused`).
    """
    inside = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    chosen = generator.choice(inside)
    if chosen.suffix in (".h5", ".h5ad", ".h5mu"):
        content = chosen.read_bytes()
        if generator.random() < 0.9:
            damage_hdf5(chosen, generator)
        else:
            chosen.write_bytes(content[: generator.randrange(len(content))])
    elif chosen.suffix in (".tsv", ".mtx") and generator.random() < 0.7:
        chosen.write_bytes(damaged_table(chosen.read_bytes(), generator))
    elif path.is_dir() and generator.random() < 0.1:
        chosen.unlink()
    else:
        chosen.write_bytes(damaged_bytes(chosen.read_bytes(), generator))


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return {str(one): one.read_bytes() for one in files}


@HOW_MANY
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_answered_or_refused(kind, seeds, cells, model, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = WRITERS[kind](cells, tmp_path / "whole")

    def check(seed: int) -> None:
        folder = tmp_path / str(seed)
        shutil.copytree(whole.parent, folder)
        path = folder / whole.name
        damage(path, random.Random(seed))
        before = contents(path)

        for read in (read_tokens, annotate_to_file):
            answered_or_refused(lambda read=read: read(path, model), path)

        assert contents(path) == before
        # What was computed before cells were refused is kept for another try.
        assert {one.name for one in folder.iterdir()} <= {whole.name, ".out.h5ad.unfinished"}
        shutil.rmtree(folder)

    assert failures_of(check, seeds) == []


def answered_or_refused(answer, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusal = refusal_of(answer)
    if refusal is not None:
        assert is_one_sentence(refusal), repr(refusal)
        assert not (path.parent / "out.h5ad").exists()


def refusal_of(answer) -> str | None:
    try:
        answer()
    except UserError as reason:
        return str(reason)
    return None


def read_tokens(path: Path, model) -> None:
    tokens = model.processor.gene_tokenizer(path)
    assert np.isfinite(tokens["gene_values"]).all()
    assert tokens["gene_ids"].max() < model.processor.gene_tokenizer.vocab_size


def annotate_to_file(path: Path, model) -> None:
    output = path.parent / "out.h5ad"
    scmmgpt.annotate(path, LABELS, model=model, output=output, progress=False)
    named = read_summary(output)  # what was damaged and not needed is copied as it was
    assert set(named.obs["scmmgpt_cell_type"]) <= {*LABELS, "unknown"}
    assert np.isfinite(named.obs["scmmgpt_confidence"]).all()
    output.unlink()


def _led_back(file: h5py.File) -> None:
    file["var/feature_types/again"] = h5py.SoftLink("/var")


def _in_itself(file: h5py.File) -> None:
    file["uns/again"] = file["uns"]


def _too_deep(file: h5py.File) -> None:
    file.create_group("uns/" + "/".join(["level"] * 1_000))


@pytest.mark.parametrize("twist", [_led_back, _in_itself, _too_deep])
@pytest.mark.parametrize("read", ["tokens", "cells", "summary", "table"])
def test_groups_without_an_end_are_refused_and_no_thread_waits_for_them(twist, read, cells, model, tmp_path):
    path = tmp_path / "cells.h5ad"
    categories = cells.copy()
    categories.strings_to_categoricals()
    categories.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        twist(file)

    reads = {"tokens": model.processor.gene_tokenizer, "cells": read_cells, "summary": read_summary}
    with pytest.raises(UserError, match=r"cells\.h5ad.*(lies in itself|groups deep)") as refused:
        reads.get(read, CellsInFile)(path)
    # The reason is still at hand, as in a notebook, and with it whatever its frames hold.
    elsewhere = Thread(target=lambda: h5py.File(path).close(), daemon=True)
    elsewhere.start()
    elsewhere.join(timeout=20)
    assert not elsewhere.is_alive()
    assert is_one_sentence(str(refused.value))


def test_a_group_that_many_links_lead_to_is_followed_once(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        inner = file.create_group("aside/last")
        for level in range(40):  # twice as many ways at each: 2 ** 40 in all
            outer = file.create_group(f"aside/{level}")
            outer["left"] = outer["right"] = inner
            inner = outer

    assert read_summary(path).n_obs == cells.n_obs


# ---- arguments of an agent


TOOLS = {
    "doctor": {"path": "cells.h5ad"},
    "annotate": {
        "path": "cells.h5ad",
        "output": "new.h5ad",
        "report": "new.html",
        "labels": LABELS,
        "tissue": "blood",
        "min_confidence": 0.5,
        "cluster_key": "leiden",
    },
    "compare": {"path": "cells.h5ad", "groupby": "leiden", "control": "0", "group": "1"},
    "describe": {"path": "cells.h5ad", "output": "told.h5ad", "cluster_key": "leiden"},
    "search": {"path": "cells.h5ad", "text": "B cells", "top": 5},
    "generate": {"text": "a B cell", "output": "made.h5ad", "num_cells": 3, "seed": 1},
    "eval": {"path": "cells.h5ad", "label": "no such column", "output": "results"},
}


@HOW_MANY
@pytest.mark.parametrize("tool", TOOLS)
def test_odd_arguments_of_an_agent_are_answered_or_refused(tool, seeds, model, tmp_path):
    pytest.importorskip("mcp")
    import anyio
    from mcp import Client

    from scmmgpt.mcp_server import make_server

    allowed = tmp_path / "allowed"
    allowed.mkdir()
    tiny_cells(20).write_h5ad(allowed / "cells.h5ad")
    before, beside = (allowed / "cells.h5ad").read_bytes(), sorted(tmp_path.iterdir())

    def check(seed: int) -> None:
        arguments = odd_arguments(TOOLS[tool], random.Random(seed))

        async def call():
            async with Client(make_server([allowed], model=str(model.directory), most_cells=100)) as client:
                return await client.call_tool(tool, arguments)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = anyio.run(call)

        text = result.content[0].text
        if result.is_error:
            assert is_one_sentence(text), repr(text)
            assert not text.startswith("Error executing tool"), f"{text}: {arguments!r:.2000}"
        else:
            json.dumps(result.structured_content, allow_nan=False)
        assert (allowed / "cells.h5ad").read_bytes() == before
        assert sorted(tmp_path.iterdir()) == beside
        for new in set(allowed.iterdir()) - {allowed / "cells.h5ad"}:
            shutil.rmtree(new) if new.is_dir() else new.unlink()

    assert failures_of(check, seeds) == []


def odd_arguments(valid: dict, generator: random.Random) -> dict:
    arguments = dict(valid)
    for _ in range(generator.choice([1, 1, 2, 3])):
        name = generator.choice(sorted(valid))
        kind = generator.randrange(6)
        if kind == 0:
            arguments.pop(name, None)
        elif kind == 1:
            arguments[generator.choice(["", "Path", "tisue", EVIL, "__class__", "self", "x" * 999])] = 1
        elif kind == 2:
            arguments[name] = [generator.choice(ODD_VALUES)] * generator.choice([1, 3])
        else:
            arguments[name] = generator.choice([value for value in ODD_VALUES if encodes(value)])
    return {name: value for name, value in arguments.items() if encodes(value)}


def encodes(value) -> bool:
    """Whether JSON can carry it: what cannot be sent need not be refused."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except ValueError:
        return False
    return True


# ---- requests to a server


def requests_to(path: str) -> dict:
    cells = as_dicts(tiny_cells(2))
    csr = {"genes": GENES, "indptr": [0, 30, 60], "indices": [*range(30), *range(30)], "data": [1.0] * 60}
    return {
        "/annotate": {"cells": cells, "labels": LABELS, "tissue": "blood", "min_confidence": 0.5},
        "/embed": {"cells": csr},
        "/describe": {"cells": cells, "max_new_tokens": 2, "prompt": "What is it?"},
        "/search": {"cells": cells, "text": "B cells", "top": 2},
        "/generate": {"text": "a B cell", "num_cells": 2, "seed": 3},
        "/": {"inputs": [{"task": "embed", "cells": cells}, {"task": "annotate", "cells": csr}], "parameters": {}},
    }[path]


@pytest.fixture(scope="module")
def handler(tmp_path_factory):
    from scmmgpt.hub_cards.handler import EndpointHandler

    return EndpointHandler(str(make_repository(tmp_path_factory.mktemp("repository") / "model")), device="cpu")


@HOW_MANY
@pytest.mark.parametrize("path", ["/annotate", "/embed", "/describe", "/search", "/generate", "/"])
def test_a_damaged_request_is_answered_or_refused(path, seeds, handler):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from scmmgpt.hub_cards.serve import create_app

    valid = requests_to(path)

    def check_all(_: int) -> None:
        with TestClient(create_app(handler, "tiny"), raise_server_exceptions=False) as client:
            for seed in seeds:
                generator = random.Random(seed)
                content = json.dumps(damaged_json(valid, generator)).encode()
                if generator.random() < 0.25:
                    content = damaged_bytes(content, generator)
                answer = client.post(path, content=content, headers={"content-type": "application/json"})
                assert answer.status_code in (200, 400, 413, 422), f"{seed}: {answer.text}: {content[:2000]!r}"
                if answer.status_code in (400, 422):
                    assert is_one_sentence(answer.json()["error"]), f"{seed}: {answer.text}"
            assert client.get("/health").json()["status"] == "ok"

    assert failures_of(check_all, [0]) == []
