"""One text asks for the same cells wherever it is read: package, pipelines, endpoint."""

import numpy as np
import pytest
from scipy import sparse
from tiny_models import as_csr
from transformers import pipeline

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.hub_cards.handler import EndpointHandler
from scmmgpt.hub_cards.schema_scmmgpt import BadRequest
from scmmgpt.processing.pipeline_scmmgpt import PIPELINES

TREATED = "NK cells treated with a drug, from human blood"


@pytest.fixture(scope="module")
def endpoint():
    return EndpointHandler(str(EMBEDDED_MODEL), device="cpu")


@pytest.fixture(scope="module")
def made():
    return scmmgpt.generate_cells(["NK cell", "B cell"], 6, seed=1, progress=False)


def pipe(task):
    return pipeline(task, model=str(EMBEDDED_MODEL), device="cpu", pipeline_class=PIPELINES[task][0])


def ask(endpoint, task, **inputs):
    return endpoint({"inputs": {"task": task, **inputs}})


@pytest.mark.parametrize("text", ["NK cells", "CL:0000623", " Tregs of a human "])
def test_a_text_finds_the_same_cells_with_the_same_scores_everywhere(endpoint, made, text):
    expected = scmmgpt.search(made, text, progress=False)

    hits = ask(endpoint, "search", cells=as_csr(made), text=text)["hits"]
    rows = pipe("cell-retrieval")(made, query=text, top=made.n_obs)

    assert [made.obs_names[hit["cell"]] for hit in hits] == expected.index.tolist()
    np.testing.assert_allclose([hit["score"] for hit in hits], expected["score"], atol=1e-5)
    assert [row["cell"] for row in rows] == expected.index.tolist()
    np.testing.assert_allclose([row["score"] for row in rows], expected["score"], atol=1e-5)


def test_a_text_makes_the_same_cells_everywhere_and_what_is_left_out_is_said(endpoint):
    with pytest.warns(UserWarning, match="'treated with a drug' is left out"):
        expected = scmmgpt.generate_cells(TREATED, 2, seed=3, progress=False)
    with pytest.warns(UserWarning, match="'treated with a drug' is left out"):
        piped = pipe("text-to-cell")(TREATED, num_cells=2, seed=3)
    answer = ask(endpoint, "generate", text=TREATED, num_cells=2, seed=3)
    cells = answer["cells"]
    sent = sparse.csr_matrix((cells["data"], cells["indices"], cells["indptr"]), shape=(2, len(cells["genes"])))

    np.testing.assert_array_equal(piped.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(sent.toarray(), expected[:, cells["genes"]].X.toarray())
    assert ["'treated with a drug' is left out" in note for note in answer["notes"]] == [True]


def test_a_plain_text_has_nothing_left_out(endpoint):
    assert ask(endpoint, "generate", text="a B cell")["notes"] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [("not a stimulated B cell", "which cells are not meant"), ("CL:9999999", "is no term of the Cell Ontology")],
)
def test_what_makes_no_cells_is_refused_in_the_same_words(endpoint, text, reason):
    with pytest.raises(BadRequest, match=reason):
        ask(endpoint, "generate", text=text)
    with pytest.raises(UserError, match=reason):
        scmmgpt.generate_cells(text, 1, progress=False)
    with pytest.raises(ValueError, match=reason):
        pipe("text-to-cell")(text)
