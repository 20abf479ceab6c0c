"""The endpoint handler, called as the endpoint toolkit calls it: from a folder, where scmmgpt is not installed."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse
from tiny_models import GENES, as_csr, as_dicts, make_repository, tiny_cells
from transformers import AutoModelForMultimodalLM

import scmmgpt
from scmmgpt.hub_cards.handler import EndpointHandler, _pieces
from scmmgpt.hub_cards.schema_scmmgpt import MAX_CELLS, MAX_TEXT, BadRequest, read_request

LABELS = ["B cell", "monocyte", "T cell"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository") / "model")


@pytest.fixture(scope="module")
def handler(repository):
    return EndpointHandler(str(repository), device="cpu")


def as_h5ad(cells: anndata.AnnData, tmp_path: Path) -> dict:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return {"h5ad": base64.b64encode((tmp_path / "cells.h5ad").read_bytes()).decode()}


def ask(handler, task, **inputs):
    return handler({"inputs": {"task": task, **inputs}})


# Answers


def test_every_task_answers(handler):
    cells = as_dicts(tiny_cells(3))

    assert len(ask(handler, "annotate", cells=cells, labels=LABELS)["calls"]) == 3
    assert np.shape(ask(handler, "embed", cells=cells)["embeddings"]) == (3, 16)
    assert len(ask(handler, "describe", cells=cells, max_new_tokens=4)["descriptions"]) == 3
    assert [hit["cell"] for hit in ask(handler, "search", cells=cells, text="B cells", top=2)["hits"]] != []
    assert ask(handler, "generate", text="a B cell", num_cells=2)["cells"]["genes"] != []


def test_a_cell_is_the_same_cell_as_dict_as_csr_and_as_h5ad(handler, tmp_path):
    cells = tiny_cells(6)

    forms = [as_dicts(cells), as_csr(cells), as_h5ad(cells, tmp_path)]
    first, second, third = (ask(handler, "embed", cells=form)["embeddings"] for form in forms)

    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_allclose(first, third, atol=1e-5)


@pytest.fixture(scope="module")
def embedded():
    """The model that is shipped, which scales values by the panel that was measured."""
    return EndpointHandler(str(scmmgpt.EMBEDDED_MODEL), device="cpu")


def test_a_cell_of_expressed_genes_is_the_same_whatever_else_is_in_the_request(embedded):
    cells = anndata.read_h5ad(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad")[::30]
    listed = [dict(zip(cells.var_names[cell.indices], cell.data.tolist(), strict=True)) for cell in cells.X]

    together = ask(embedded, "embed", cells=listed)["embeddings"]
    alone = [ask(embedded, "embed", cells=[cell])["embeddings"][0] for cell in listed]

    np.testing.assert_allclose(together, alone, atol=1e-5)
    # What was measured is guessed well enough from what is expressed.
    named = ask(embedded, "embed", cells=as_csr(cells))["embeddings"]
    assert (np.array(together) * named).sum(1).min() > 0.97


def test_shares_of_several_texts_are_no_single_request(handler):
    with pytest.raises(BadRequest, match="ask for every text by itself"):
        ask(handler, "generate", text="60 % B cell, 40 % monocyte", num_cells=2)


def test_embeddings_are_those_of_the_package(handler, repository):
    cells = tiny_cells(6)

    mine = ask(handler, "embed", cells=as_csr(cells))["embeddings"]

    with pytest.warns(UserWarning, match="untrained"):
        theirs = scmmgpt.embed(cells, model=repository, device="cpu", progress=False).obsm["X_scmmgpt"]
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("min_confidence", [0, 0.3, 0.45, 0.9])
def test_calls_are_those_of_the_package_without_its_correction_over_the_data(handler, repository, min_confidence):
    cells = tiny_cells(20)
    labels = ["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "B cell", "monocyte"]

    options = {"cells": as_csr(cells), "labels": labels, "min_confidence": min_confidence, "tissue": "blood"}
    calls = ask(handler, "annotate", **options)["calls"]

    options = {"labels": labels, "min_confidence": min_confidence, "tissue": "blood", "prior_share": 0.0}
    with pytest.warns(UserWarning, match="untrained"):
        obs = scmmgpt.annotate(cells, model=repository, device="cpu", progress=False, **options).obs
    assert [call["cell_type"] for call in calls] == obs["scmmgpt_cell_type"].tolist()
    assert [call["second_choice"] for call in calls] == obs["scmmgpt_second_choice"].tolist()
    ids = obs["scmmgpt_cell_type_ontology_term_id"].tolist()
    assert [call["cell_type_ontology_term_id"] for call in calls] == ids
    known = [call["cell_type"] != "unknown" for call in calls]
    np.testing.assert_allclose(
        np.array([call["confidence"] for call in calls])[known], obs["scmmgpt_confidence"].to_numpy()[known], atol=1e-6
    )


def test_a_model_is_loaded_in_the_type_of_its_config_on_every_device(repository, monkeypatch):
    """A GPU gives the answers of a laptop: what is asked of the loader does not depend on the device."""
    asked = []
    load = AutoModelForMultimodalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForMultimodalLM,
        "from_pretrained",
        lambda *args, **kwargs: asked.append(kwargs) or load(*args, **kwargs),
    )

    handler = EndpointHandler(str(repository), device="cpu")

    assert "dtype" not in asked[0]
    assert handler.model.dtype == scmmgpt.load(repository, device="cpu", generative=True).model.dtype


def test_generated_cells_are_those_of_the_package(handler, repository):
    cells = ask(handler, "generate", text="a B cell", num_cells=3, seed=5)["cells"]

    with pytest.warns(UserWarning, match="untrained"):
        theirs = scmmgpt.generate_cells("a B cell", 3, seed=5, model=repository, device="cpu", progress=False)
    matrix = sparse.csr_matrix((cells["data"], cells["indices"], cells["indptr"]), shape=(3, len(cells["genes"])))
    np.testing.assert_array_equal(matrix.toarray(), theirs[:, cells["genes"]].X.toarray())


def test_generated_cells_can_be_sent_back(handler):
    cells = ask(handler, "generate", text="a B cell", num_cells=2)["cells"]

    assert len(ask(handler, "annotate", cells=cells, labels=LABELS)["calls"]) == 2


def test_several_requests_together_get_the_answers_they_get_alone(handler):
    requests = [
        {"task": "embed", "cells": as_dicts(tiny_cells(3, seed=1))},
        {"task": "annotate", "cells": as_csr(tiny_cells(5, seed=2)), "labels": LABELS},
        {"task": "search", "cells": as_dicts(tiny_cells(4, seed=3)), "text": "B cells"},
    ]

    together = handler({"inputs": requests})

    alone = [handler({"inputs": request}) for request in requests]
    np.testing.assert_allclose(together[0]["embeddings"], alone[0]["embeddings"], atol=1e-5)
    assert [call["cell_type"] for call in together[1]["calls"]] == [call["cell_type"] for call in alone[1]["calls"]]
    assert [hit["cell"] for hit in together[2]["hits"]] == [hit["cell"] for hit in alone[2]["hits"]]


def test_parameters_of_the_body_hold_for_every_request(handler):
    request = {"task": "search", "cells": as_dicts(tiny_cells(4)), "text": "B cells"}

    answers = handler({"inputs": [request, request], "parameters": {"top": 1}})

    assert [len(answer["hits"]) for answer in answers] == [1, 1]


def test_a_cell_without_known_counts_is_unknown(handler):
    cells = {"genes": GENES, "indptr": [0, 2, 2], "indices": [0, 1], "data": [3, 4]}

    calls = ask(handler, "annotate", cells=cells, labels=LABELS, min_confidence=0.1)["calls"]

    assert calls[0]["cell_type"] in LABELS
    assert (calls[1]["cell_type"], calls[1]["confidence"]) == ("unknown", 0)


def test_a_streamed_description_is_the_whole_one(handler):
    content = {"task": "describe", "cells": as_dicts(tiny_cells(1)), "max_new_tokens": 12}

    pieces = list(handler.stream_description(read_request(content)))

    assert "".join(pieces).strip() == handler({"inputs": content})["descriptions"][0]


def test_a_stream_that_nobody_reads_ends_the_writing(handler):
    content = {"task": "describe", "cells": as_dicts(tiny_cells(1)), "max_new_tokens": 200}
    num_threads = threading.active_count()
    stream = handler.stream_description(read_request(content))
    next(stream, None)

    stream.close()  # joins the writing thread: hangs when that goes on

    assert threading.active_count() <= num_threads


def test_a_stream_may_be_thrown_away_by_the_thread_that_writes_it():
    refused, may_close = [], threading.Event()

    def write():
        may_close.wait(10)
        try:
            pieces.close()
        except RuntimeError as reason:
            refused.append(reason)

    writer = threading.Thread(target=write)
    pieces = _pieces(writer, iter(["a", "b"]), threading.Event())
    next(pieces)
    may_close.set()
    writer.join(10)

    assert refused == []
    assert not writer.is_alive()


# Without the package


def test_the_repository_answers_where_scmmgpt_is_not_installed(repository, handler, tmp_path):
    body = {"inputs": {"task": "annotate", "cells": as_dicts(tiny_cells(3)), "labels": LABELS}}
    (tmp_path / "body.json").write_text(json.dumps(body))
    script = """
import importlib.abc, importlib.util, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "scmmgpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
repository, body = sys.argv[1:]
# as huggingface-inference-toolkit does it
spec = importlib.util.spec_from_file_location("handler", repository + "/handler.py")
module = importlib.util.module_from_spec(spec)
sys.modules["handler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(repository)
print(json.dumps(handler(json.load(open(body)))))
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "CUDA_VISIBLE_DEVICES": ""}
    arguments = [sys.executable, "-c", script, str(repository), str(tmp_path / "body.json")]
    run = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == handler(body)


# Bad input


def bad(**changes):
    return {"task": "annotate", "cells": as_dicts(tiny_cells(1)), "labels": LABELS, **changes}


BAD_REQUESTS = [
    pytest.param({}, "Unable to extract tag", id="empty"),
    pytest.param("annotate", "A request is an object", id="no object"),
    pytest.param(bad(task="train"), "does not match any of the expected tags", id="unknown task"),
    pytest.param(bad(lables=["B"]), "lables: Extra inputs are not permitted", id="misspelt field"),
    pytest.param(bad(cells=[]), "cells: List should have at least 1 item", id="no cells"),
    pytest.param(bad(cells=None), "cells", id="cells are null"),
    pytest.param(bad(cells=[{}]), "The cells hold no genes", id="no genes"),
    pytest.param(bad(cells=[{"CD3D": -1}]), "cells.0.CD3D: Input should be greater", id="negative"),
    pytest.param(bad(cells=[{"CD3D": float("nan")}]), "cells.0.CD3D", id="NaN"),
    pytest.param(bad(cells=[{"CD3D": float("inf")}]), "cells.0.CD3D", id="infinite"),
    pytest.param(bad(cells=[{"CD3D": "many"}]), "cells.0.CD3D: Input should be a valid number", id="text as a count"),
    pytest.param(bad(cells=[{f"X{i}": 1 for i in range(99)}]), "None of the 99 genes", id="unknown genes"),
    pytest.param(bad(cells=[{"CD3D": 1}] * (MAX_CELLS + 1)), "at most 1024 items", id="too many cells"),
    pytest.param(bad(labels=[]), "labels: List should have at least 1", id="no labels"),
    pytest.param(bad(labels=["B cell", "B cell"]), "more than once", id="a label twice"),
    pytest.param(bad(labels=[" "]), "labels.0", id="a blank label"),
    pytest.param(bad(min_confidence=2), "min_confidence: Input should be less", id="confidence above 1"),
    pytest.param({"task": "generate", "text": "x" * 1_000_000}, f"at most {MAX_TEXT} characters", id="a megabyte"),
    pytest.param({"task": "generate", "text": "B", "num_cells": 10**9}, "num_cells", id="a billion cells"),
    pytest.param({"task": "search", "cells": [{"CD3D": 1}], "text": "  "}, "text", id="blank text"),
    pytest.param(
        {"task": "describe", "cells": [dict.fromkeys(GENES, 1)], "prompt": "why " * 900},
        "tokens",
        id="long prompt",
    ),
]


@pytest.mark.parametrize(("request_content", "reason"), BAD_REQUESTS)
def test_a_bad_request_is_refused_with_its_reason(handler, request_content, reason):
    with pytest.raises(BadRequest, match=reason) as caught:
        handler({"inputs": request_content})

    assert len(str(caught.value)) < 1200


CSR = {"genes": GENES, "indptr": [0, 2], "indices": [0, 1], "data": [1.0, 2.0]}
BAD_CSR = [
    pytest.param({"indptr": [0, 3]}, "from 0 to 2", id="indptr beyond the data"),
    pytest.param({"indptr": [1, 2]}, "from 0 to 2", id="indptr not from 0"),
    pytest.param({"indptr": [0, 2, 1, 2]}, "must not fall", id="indptr falls"),
    pytest.param({"indptr": [0, -1, 2]}, "greater than or equal to 0", id="indptr negative"),
    pytest.param({"indices": [0, 10**6]}, "names gene 1000000", id="index beyond the genes"),
    pytest.param({"indices": [0, -1]}, "greater than or equal to 0", id="negative index"),
    pytest.param({"indices": [0]}, "`indices` has 1 entries", id="fewer indices"),
    pytest.param({"data": [1.0, float("nan")]}, "finite number", id="NaN"),
    pytest.param({"shape": [10**9, 10**9]}, "Extra inputs", id="a shape of one's own"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_CSR)
def test_a_csr_that_does_not_fit_together_is_refused(handler, change, reason):
    with pytest.raises(BadRequest, match=reason):
        ask(handler, "embed", cells={**CSR, **change})


def h5ad(fill) -> dict:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name in ("obs", "var"):
            file.create_group(name)
        fill(file)
    return {"h5ad": base64.b64encode(buffer.getvalue()).decode()}


def declared(shape):
    return lambda file: file.create_dataset("X", shape=shape, dtype="f4", chunks=True, compression="gzip")


def sparse_bomb(file):
    group = file.create_group("X")
    group.attrs["shape"] = [10, 100]
    for name in ("data", "indices"):
        group.create_dataset(name, shape=(10**9,), dtype="f4", chunks=(2**20,), compression="gzip")


def text_bomb(file):
    """Fifty thousand names that all point to one stored copy of a long text: 5 GB when read, 1 MB on disk."""
    declared((4, 4))(file)
    texts = file["var"].create_dataset("_index", shape=(50_000,), dtype=h5py.string_dtype(), chunks=(1000,))
    texts[0] = "x" * 100_000
    file.flush()
    _, chunk = texts.id.read_direct_chunk((0,))
    pointer = chunk[: len(chunk) // 1000]
    for start in range(0, 50_000, 1000):
        texts.id.write_direct_chunk((start,), pointer * 1000)


def reaches_outside(file):
    declared((4, 4))(file)
    file["obs"]["secret"] = h5py.ExternalLink("/etc/hostname", "/")


def keeps_data_outside(file):
    file.create_dataset("X", shape=(4, 4), dtype="f4", external=[("/etc/hostname", 0, 64)])


BAD_FILES = [
    pytest.param({"h5ad": "not base64!"}, "not base64", id="not base64"),
    pytest.param({"h5ad": base64.b64encode(b"not a file at all").decode()}, "cannot be read", id="not HDF5"),
    pytest.param(h5ad(lambda file: None), "needs X, obs and var", id="no X"),
    pytest.param(h5ad(declared((10**6, 30_000))), "declares 1000000 cells x 30000 genes", id="a million cells"),
    pytest.param(h5ad(declared((1000, 10**7))), "declares 1000 cells x 10000000 genes", id="ten million genes"),
    pytest.param(h5ad(declared((1024, 65_536))), "bytes of content", id="a gigabyte within the limits"),
    pytest.param(h5ad(sparse_bomb), "bytes of content", id="a billion values in ten cells"),
    pytest.param(h5ad(text_bomb), "bytes of content", id="five gigabytes of text"),
    pytest.param(h5ad(reaches_outside), "links 'secret' to somewhere else", id="a link to another file"),
    pytest.param(h5ad(keeps_data_outside), "keeps 'X' outside itself", id="values in another file"),
]


@pytest.mark.parametrize(("cells", "reason"), BAD_FILES)
def test_a_hostile_file_is_refused_before_it_is_read(handler, cells, reason):
    with pytest.raises(BadRequest, match=reason):
        ask(handler, "embed", cells=cells)


def test_a_file_that_hangs_or_crashes_the_library_is_refused(handler, monkeypatch):
    def hangs(*arguments, **options):
        raise subprocess.TimeoutExpired(arguments, options["timeout"])

    cells = h5ad(declared((4, 4)))
    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(BadRequest, match="takes more than"):
        ask(handler, "embed", cells=cells)

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -11, "", ""))
    with pytest.raises(BadRequest, match="is damaged"):
        ask(handler, "embed", cells=cells)


def outside(place):
    """A csr that names a gene, or ends a row, far outside of it."""

    def fill(file):
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [2, 40]})
        indptr, indices = [0, 1, 2], [0, 1]
        if place == "indices":
            indices[1] = 10**8
        else:
            indptr[1] = 10**8
        for name, values in {"data": [1.0, 2.0], "indices": indices, "indptr": indptr}.items():
            matrix[name] = np.array(values)
        for name, size, word in (("obs", 2, "cell"), ("var", 40, "GENE")):
            frame = file[name]
            frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
            frame.attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
            frame["_index"] = np.array([f"{word}{number}" for number in range(size)], dtype=h5py.string_dtype())
            frame["_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})

    return h5ad(fill)


@pytest.mark.parametrize("place", ["indices", "indptr"])
def test_a_matrix_that_points_outside_of_itself_is_refused(handler, place):
    with pytest.raises(BadRequest, match=f"damaged: its `{place}`"):
        ask(handler, "embed", cells=outside(place))


def test_one_bad_request_of_several_does_not_spoil_the_others(handler):
    good = read_request({"task": "embed", "cells": as_dicts(tiny_cells(2))})
    unknown_genes = read_request({"task": "embed", "cells": [{"X1": 1}]})

    answers = handler.answer([good, unknown_genes, good])

    assert isinstance(answers[1], BadRequest)
    assert answers[0] == answers[2]
