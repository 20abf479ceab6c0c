"""The custom pipelines: AnnData in, AnnData out, on a tiny untrained model."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import GENES, tiny_cells, write_tiny_model
from transformers import pipeline

import scmmgpt  # noqa: F401 - registers the tasks
from scmmgpt.modeling_scmmgpt import ScMMGPTModel
from scmmgpt.modeling_scmmgpt.auto_classes_scmmgpt import custom_pipelines
from scmmgpt.processing.pipeline_scmmgpt import PIPELINES

LABELS = {"T cell": "A lymphocyte that matures in the thymus.", "B cell": None, "monocyte": None}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pipe(directory):
    made = {}

    def make(task):
        if task not in made:
            made[task] = pipeline(task, model=directory, device="cpu", pipeline_class=PIPELINES[task][0])
        return made[task]

    return make


def test_annotation_returns_a_copy_with_labels_in_obs(pipe):
    cells = tiny_cells(20)
    columns = list(cells.obs)

    annotated = pipe("cell-annotation")(cells, labels=LABELS, min_confidence=0)

    assert set(annotated.obs["scmmgpt_cell_type"]) <= set(LABELS)
    assert (annotated.obs["scmmgpt_cell_type"] != annotated.obs["scmmgpt_second_choice"]).all()
    assert annotated.obs["scmmgpt_confidence"].between(1 / 3, 1).all()
    assert annotated.uns["scmmgpt"]["genes"]["num_matched"] == len(GENES)
    assert list(cells.obs) == columns


def test_annotation_does_not_depend_on_the_chunk_size(pipe):
    whole = pipe("cell-annotation")(tiny_cells(20), labels=list(LABELS))

    pieces = pipe("cell-annotation")(tiny_cells(20), labels=list(LABELS), chunk_size=7)

    assert (whole.obs["scmmgpt_cell_type"] == pieces.obs["scmmgpt_cell_type"]).all()
    np.testing.assert_allclose(whole.obs["scmmgpt_confidence"], pieces.obs["scmmgpt_confidence"], atol=1e-5)


def test_annotation_of_a_matrix_returns_rows(pipe):
    cells = tiny_cells(3)

    rows = pipe("cell-annotation")((cells.X, list(cells.var_names)), labels=["T cell", "B cell"])

    columns = ["cell_type", "cell_type_ontology_term_id", "confidence", "second_choice"]
    assert [sorted(row) for row in rows] == [columns] * 3


def test_options_may_be_given_when_the_pipeline_is_made(directory):
    annotate = pipeline(
        "cell-annotation",
        model=directory,
        pipeline_class=PIPELINES["cell-annotation"][0],
        labels=["T cell", "B cell"],
        min_confidence=0,
    )

    assert set(annotate(tiny_cells(4)).obs["scmmgpt_cell_type"]) <= {"T cell", "B cell"}


def test_retrieval_returns_the_best_cells_first(pipe):
    found = pipe("cell-retrieval")(tiny_cells(20), query="a T cell", top=5)

    scores = [row["score"] for row in found]
    assert len(found) == 5
    assert scores == sorted(scores, reverse=True)
    assert all(row["cell"] == f"cell{row['place']}" for row in found)


def test_retrieval_takes_several_queries(pipe):
    assert [len(rows) for rows in pipe("cell-retrieval")(tiny_cells(9), query=["a T cell", "a B cell"], top=3)] == [
        3,
        3,
    ]


def test_cell_to_text_writes_about_every_cell(pipe):
    described = pipe("cell-to-text")(tiny_cells(5), max_new_tokens=4, chunk_size=2)

    assert described.obs["scmmgpt_description"].map(type).eq(str).all()
    assert len(described) == 5


def test_text_to_cell_gives_counts_with_names_and_text(pipe):
    cells = pipe("text-to-cell")(["T cell", "B cell"], num_cells=3, seed=0)

    assert cells.shape == (6, len(GENES))
    assert cells.obs["text"].tolist() == ["T cell"] * 3 + ["B cell"] * 3
    assert list(cells.var["feature_name"]) == list(cells.var_names)
    assert cells.var["feature_id"].str.startswith("ENSG").all()
    assert np.issubdtype(cells.X.dtype, np.integer)


def test_the_same_seed_gives_the_same_cells(pipe):
    first, second = (pipe("text-to-cell")("T cell", num_cells=2, seed=3) for _ in range(2))

    assert (first.X != second.X).nnz == 0


@pytest.mark.parametrize(
    ("task", "given", "options", "reason"),
    [
        (
            "cell-annotation",
            None,
            {"labels": ["a", "b"], "min_confidence": 7},
            "min_confidence must lie between 0 and 1",
        ),
        ("cell-annotation", None, {"labels": ["a", "b"], "chunk_size": 0}, "chunk_size must be at least 1"),
        ("cell-retrieval", None, {}, "The text to look for is empty"),
        ("cell-retrieval", None, {"query": "a B cell", "top": 0}, "top must be at least 1"),
        ("text-to-cell", "50 % B cell, 50 % monocyte", {}, "ask for each text by itself"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(pipe, task, given, options, reason):
    with pytest.raises(ValueError, match=reason):
        pipe(task)(tiny_cells(3) if given is None else given, **options)


def test_every_task_has_a_pipeline():
    assert set(PIPELINES) == {"cell-annotation", "cell-retrieval", "cell-to-text", "text-to-cell"}


def test_a_saved_config_names_each_pipeline_by_its_class_and_its_model():
    named = {task: (kind["impl"], kind["pt"]) for task, kind in custom_pipelines(can_generate=True).items()}

    assert named == {
        task: (f"pipeline_scmmgpt.{pipeline_class.__name__}", [auto_class])
        for task, (pipeline_class, auto_class) in PIPELINES.items()
    }


def test_a_model_without_an_llm_offers_no_pipeline_that_needs_one(tmp_path, directory):
    ScMMGPTModel.from_pretrained(directory).save_pretrained(tmp_path)

    offered = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]

    assert {auto_class for kind in offered.values() for auto_class in kind["pt"]} == {"AutoModel"}


def test_a_saved_pipeline_is_the_whole_repository(tmp_path, pipe, directory):
    pipe("cell-to-text").save_pretrained(tmp_path)

    assert {path.name for path in Path(directory).iterdir()} <= {path.name for path in tmp_path.iterdir()}
    for setting in ("auto_map", "custom_pipelines"):
        saved, whole = (json.loads((Path(d) / "config.json").read_text()) for d in (tmp_path, directory))
        assert saved[setting] == whole[setting]
