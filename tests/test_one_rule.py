"""One rule from scores to names: whoever asks about the same cells gets the same calls, wherever they ask."""

import base64
import importlib.util
import sys
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from transformers import pipeline

import scmmgpt
from scmmgpt.hub_cards.handler import EndpointHandler
from scmmgpt.hub_cards.schema_scmmgpt import AnnotateResponse
from scmmgpt.loading import load
from scmmgpt.training.evaluation.model_system import model_system
from scmmgpt.training.evaluation.renamed_species import renamed

LABELS = ["B cell", "natural killer cell", "CD14-positive monocyte", "T cell", "dendritic cell", "cells that clot"]
COLUMNS = ("cell_type", "cell_type_ontology_term_id", "confidence", "second_choice")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def sorted_blood_cells() -> anndata.AnnData:
    return anndata.read_h5ad(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad")


def blood_cells_on_a_panel() -> anndata.AnnData:
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scanpy.datasets.pbmc68k_reduced()


@pytest.fixture(scope="module", params=[sorted_blood_cells, blood_cells_on_a_panel], ids=lambda read: read.__name__)
def cells(request) -> anndata.AnnData:
    cells = request.param()[:200].copy()
    cells.uns = {}  # the endpoint takes no tables of results
    return cells


@pytest.fixture(scope="module")
def loaded():
    return load(device="cpu")


@pytest.fixture(scope="module")
def annotated(cells, loaded):
    """By whether calls may back off: what `annotate` says of each cell by itself."""
    return {
        least: scmmgpt.annotate(cells, LABELS, model=loaded, prior_share=0, min_confidence=least, progress=False).obs
        for least in (None, 0)
    }


def assert_same_calls(found: dict[str, list], obs) -> None:
    for column in COLUMNS:
        expected = obs[f"scmmgpt_{column}"]
        if column == "confidence":
            np.testing.assert_allclose(found[column], expected.to_numpy(), atol=1e-6)
        else:
            assert list(found[column]) == expected.astype(str).tolist()


def test_the_pipeline_calls_cells_as_annotate_does(cells, annotated):
    pipe = pipeline("cell-annotation", model=str(scmmgpt.EMBEDDED_MODEL), device="cpu", trust_remote_code=True)

    obs = pipe(cells, labels=LABELS).obs

    assert_same_calls({column: obs[f"scmmgpt_{column}"] for column in COLUMNS}, annotated[None])


def test_the_pipeline_compares_the_cells_of_a_study_when_asked_to(cells, loaded):
    pipe = pipeline("cell-annotation", model=str(scmmgpt.EMBEDDED_MODEL), device="cpu", trust_remote_code=True)

    obs = pipe(cells, labels=LABELS, prior_share=None).obs

    expected = scmmgpt.annotate(cells, LABELS, model=loaded, progress=False)
    assert expected.uns["scmmgpt"]["annotate"]["settings"]["profile_weight"] > 0
    assert_same_calls({column: obs[f"scmmgpt_{column}"] for column in COLUMNS}, expected.obs)


def test_the_endpoint_calls_cells_as_annotate_does(cells, annotated, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    file = base64.b64encode((tmp_path / "cells.h5ad").read_bytes()).decode()
    request = {"task": "annotate", "cells": {"h5ad": file}, "labels": LABELS}

    calls = EndpointHandler(str(scmmgpt.EMBEDDED_MODEL), device="cpu")({"inputs": request})["calls"]

    assert_same_calls({column: [call[column] for call in calls] for column in COLUMNS}, annotated[None])


def test_the_endpoint_says_which_genes_it_read_and_how_far_they_carry(loaded, tmp_path):
    human = sorted_blood_cells()[:20]
    names = loaded.processor.gene_tokenizer.gene_names
    lost = anndata.AnnData(np.full((20, 1), 400, np.float32), pd.DataFrame(index=human.obs_names), uns={})
    lost.var_names = ["lost-too"]
    tags = anndata.AnnData(np.ones((20, 1), np.float32), pd.DataFrame(index=human.obs_names))
    tags.var_names = ["CD3_TotalSeqB"]
    fish = anndata.concat([renamed(human, names, "zebrafish"), lost, tags], axis=1)
    fish.write_h5ad(tmp_path / "fish.h5ad")
    file = base64.b64encode((tmp_path / "fish.h5ad").read_bytes()).decode()
    handler = EndpointHandler(str(scmmgpt.EMBEDDED_MODEL), device="cpu")

    answer = handler({"inputs": {"task": "annotate", "cells": {"h5ad": file}, "labels": LABELS}})

    expected = scmmgpt.annotate(fish, LABELS, model=loaded, prior_share=0, progress=False)
    assert_same_calls({column: [call[column] for call in answer["calls"]] for column in COLUMNS}, expected.obs)
    account = expected.uns["scmmgpt"]["genes"]
    assert (answer["genes"]["species"], answer["genes"]["set_aside"]) == ("zebrafish", {"antibody": 1})
    assert answer["genes"]["reach"] == pytest.approx(account["reach"], abs=1e-3)
    assert account["reach"] < 0.6
    AnnotateResponse.model_validate(answer)


def test_the_space_calls_cells_as_annotate_does(cells, annotated, loaded):
    place = Path(scmmgpt.EMBEDDED_MODEL).parent / "space" / "session.py"
    spec = importlib.util.spec_from_file_location("session", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules["session"] = module
    spec.loader.exec_module(module)
    session = module.Session(loaded)
    try:
        session._take(cells.copy())
        session.annotate("\n".join(LABELS), prior_share=0)
        obs = session.cells.obs
    finally:
        session.close()

    assert_same_calls({column: obs[f"scmmgpt_{column}"] for column in COLUMNS}, annotated[None])


def test_the_evaluation_measures_what_annotate_says(cells, annotated, loaded):
    probabilities = model_system(loaded, prior_share=0).predict(cells, LABELS)

    obs = annotated[0]
    assert np.array(LABELS)[probabilities.argmax(1)].tolist() == obs["scmmgpt_cell_type"].astype(str).tolist()
    np.testing.assert_allclose(probabilities.max(1), obs["scmmgpt_confidence"].to_numpy(), atol=1e-6)
