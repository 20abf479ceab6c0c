"""The verbs take AnnData or a path and give AnnData back, with everything in its place and nothing of yours changed."""

import os
import shutil
import threading

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from input_variants import write_zarr
from scipy import sparse
from tiny_models import GENES, tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt import embedding, storage, text_cache
from scmmgpt.console import named_rows
from scmmgpt.device import Batches, choose_device
from scmmgpt.errors import UserError
from scmmgpt.loading import load
from scmmgpt.processing import encoding_scmmgpt
from scmmgpt.text_generation import (
    answer_probabilities,
    answers_tree,
    embed_prompt,
    mark_genes,
    tokenize_prompt,
)

LABELS = ["T cell", "B cell", "monocyte", "natural killer cell"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory):
    return load(directory, device="cpu")


@pytest.fixture(scope="module")
def writer(directory):
    return load(directory, device="cpu", generative=True)


@pytest.fixture
def cells():
    return tiny_cells()


@pytest.fixture
def file(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def frozen(adata):
    return adata.obs.copy(), list(adata.obsm), list(adata.uns), adata.X.copy()


# ---- results


def test_embed_writes_one_unit_vector_per_cell(cells, model):
    embedded = scmmgpt.embed(cells, model=model)

    assert embedded.obsm["X_scmmgpt"].shape == (60, 16)
    assert np.allclose(np.linalg.norm(embedded.obsm["X_scmmgpt"], axis=1), 1, atol=1e-5)


def test_annotate_writes_the_four_columns_and_a_record(cells, model):
    annotated = scmmgpt.annotate(cells, LABELS, model=model, min_confidence=0)

    assert set(annotated.obs["scmmgpt_cell_type"]) <= set(LABELS)
    assert set(annotated.obs["scmmgpt_cell_type_ontology_term_id"]) <= {
        "CL:0000084",
        "CL:0000236",
        "CL:0000576",
        "CL:0000623",
    }
    assert annotated.obs["scmmgpt_confidence"].between(1 / 4, 1).all()
    assert (annotated.obs["scmmgpt_second_choice"] != annotated.obs["scmmgpt_cell_type"].astype(str)).all()
    record = annotated.uns["scmmgpt"]
    assert record["genes"]["num_matched"] == len(GENES)
    assert record["annotate"]["settings"]["num_candidates"] == 4
    assert len(record["annotate"]["model"]["weights_sha256"]) == 64


def test_the_callers_object_is_not_changed(cells, model):
    obs, obsm, uns, matrix = frozen(cells)

    scmmgpt.annotate(scmmgpt.embed(cells, model=model), LABELS, model=model)

    pd.testing.assert_frame_equal(cells.obs, obs)
    assert (list(cells.obsm), list(cells.uns)) == (obsm, uns)
    assert (matrix != cells.X).nnz == 0


def test_inplace_writes_into_the_object_that_was_given(cells, model):
    assert scmmgpt.embed(cells, model=model, inplace=True) is cells
    assert "X_scmmgpt" in cells.obsm


def test_the_record_of_one_verb_stays_when_another_adds_its_own(cells, model):
    both = scmmgpt.annotate(scmmgpt.embed(cells, model=model), LABELS, model=model)

    assert {"embed", "annotate", "genes"} <= set(both.uns["scmmgpt"])


def test_a_view_is_taken_like_a_copy(cells, model):
    part = scmmgpt.embed(cells[:7], model=model)

    assert np.allclose(part.obsm["X_scmmgpt"], scmmgpt.embed(cells, model=model).obsm["X_scmmgpt"][:7], atol=1e-5)


def test_the_matching_head_gives_a_second_opinion(cells, model):
    plain = scmmgpt.annotate(cells, LABELS, model=model, min_confidence=0)
    judged = scmmgpt.annotate(cells, LABELS, model=model, min_confidence=0, rerank=3)

    assert set(judged.obs["scmmgpt_cell_type"]) <= set(LABELS)
    assert not np.allclose(plain.obs["scmmgpt_confidence"], judged.obs["scmmgpt_confidence"])


def test_a_cluster_gets_one_call(cells, model):
    voted = scmmgpt.annotate(cells, LABELS, model=model, min_confidence=0, cluster_key="leiden")

    assert (voted.obs.groupby("leiden")["scmmgpt_cell_type"].nunique() == 1).all()


@pytest.mark.slow
def test_the_whole_ontology_is_a_label_set(cells, model):
    annotated = scmmgpt.annotate(cells[:5], "cell-ontology", model=model, min_confidence=0)

    assert annotated.uns["scmmgpt"]["annotate"]["settings"]["num_candidates"] > 3000
    assert annotated.obs["scmmgpt_cell_type_ontology_term_id"].str.startswith("CL:").all()


def test_empty_cells_are_unknown(cells, model):
    cells.X = sparse.diags_array(np.arange(cells.n_obs) != 3, dtype=np.float32) @ cells.X

    with pytest.warns(UserWarning, match="no gene of the model.s vocabulary: 1"):
        annotated = scmmgpt.annotate(cells, LABELS, model=model, min_confidence=0.01)

    assert annotated.obs["scmmgpt_cell_type"].iloc[3] == "unknown"
    assert annotated.obs["scmmgpt_confidence"].iloc[3] == 0


def test_one_label_is_no_question(cells, model):
    with pytest.warns(UserWarning, match="With one label every cell is called 'T cell'"):
        scmmgpt.annotate(cells, ["T cell"], model=model)


def test_cells_of_nothing_but_zeros_are_said_to_be_that(cells, model):
    cells.X = cells.X * 0

    with pytest.warns(UserWarning, match="holds nothing but zeros") as warned:
        scmmgpt.annotate(cells, LABELS, model=model)

    assert not any("species" in str(one.message) for one in warned)


def test_results_do_not_depend_on_the_batch_size(cells, model):
    one = scmmgpt.embed(cells, model=model, batch_size=1).obsm["X_scmmgpt"]
    many = scmmgpt.embed(cells, model=model, batch_size=60).obsm["X_scmmgpt"]

    assert np.allclose(one, many, atol=1e-5)


def test_search_lists_the_best_cells_with_their_metadata(cells, model):
    hits = scmmgpt.search(cells, "cells that make antibodies", top=5, model=model)
    all_scores = scmmgpt.search(cells, "cells that make antibodies", top=None, model=model)["score"]

    assert list(hits.columns) == ["score", "leiden"]
    assert list(hits["score"]) == sorted(all_scores, reverse=True)[:5]


def test_search_gives_its_own_scores_and_names_whatever_columns_there_are(cells, model):
    strange = cells.copy()
    strange.obs["score"], strange.obs["cell"] = np.nan, "mine"

    hits = scmmgpt.search(strange, "a T cell", top=3, model=model)
    rows = named_rows(hits)

    expected = scmmgpt.search(cells, "a T cell", top=3, model=model)
    assert hits["score"].tolist() == expected["score"].tolist()
    assert hits["obs_score"].isna().all()
    assert [(row["cell"], row["obs_cell"]) for row in rows] == [(name, "mine") for name in expected.index]


def test_search_looks_only_where_it_is_told(cells, model):
    hits = scmmgpt.search(cells, "a T cell", top=50, where=["leiden=1"], model=model)

    assert len(hits) == 30
    assert set(hits["leiden"]) == {"1"}


def test_generated_cells_are_counts_over_the_vocabulary(directory):
    generated = scmmgpt.generate_cells("a naive B cell from lymph node", 7, seed=3, model=directory)

    assert generated.shape == (7, len(GENES))
    assert list(generated.var_names) == GENES
    assert np.issubdtype(generated.X.dtype, np.integer)
    assert set(generated.uns["scmmgpt"]["generate"]["quality"]) >= {"median_counts", "share_of_zeros"}


def test_the_same_seed_gives_the_same_cells_whatever_the_batch_size(directory):
    first = scmmgpt.generate_cells("a T cell", 5, seed=1, model=directory)
    again = scmmgpt.generate_cells("a T cell", 5, seed=1, model=directory, batch_size=2)
    other = scmmgpt.generate_cells("a T cell", 5, seed=2, model=directory)

    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0


def test_the_report_names_what_was_called(cells, model, tmp_path):
    page = tmp_path / "report.html"

    scmmgpt.annotate(cells, LABELS, model=model, min_confidence=0.99, report=page)

    text = page.read_text()
    assert "obsm[&#39;X_umap&#39;]" in text
    assert "Unknown cells" in text
    assert "untrained" not in text


def test_an_untrained_model_warns_that_its_results_mean_nothing_and_the_report_says_so(cells, tmp_path):
    model = write_tiny_model(tmp_path / "model", is_trained=False)
    page = tmp_path / "report.html"

    with pytest.warns(UserWarning, match="This model is untrained: its results mean nothing"):
        scmmgpt.annotate(cells, LABELS, model=model, report=page)

    assert "untrained" in page.read_text()


# ---- text from cells


def test_a_description_comes_from_the_cells_own_tokens(cells, writer):
    """Swapping two cells under one prompt swaps what is said about them."""
    described = scmmgpt.describe(cells[:8], model=writer, max_new_tokens=8).obs["scmmgpt_description"]
    swapped = scmmgpt.describe(cells[:8][::-1], model=writer, max_new_tokens=8).obs["scmmgpt_description"]

    assert described.nunique() > 1
    assert list(swapped[::-1]) == list(described)


def test_a_description_is_what_generate_writes(cells, writer):
    question = writer.processor.cell_prompt()
    inputs = writer.processor(cells=cells[:4], text=question, return_tensors="pt")
    with torch.inference_mode():
        ids = writer.model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]

    described = scmmgpt.describe(cells[:4], model=writer, max_new_tokens=8)

    assert list(described.obs["scmmgpt_description"]) == [
        text.strip() for text in writer.processor.batch_decode(ids, skip_special_tokens=True)
    ]


def test_a_cluster_is_described_by_its_most_typical_cell(cells, writer):
    described = scmmgpt.describe(cells, model=writer, cluster_key="leiden", max_new_tokens=6)

    assert (described.obs.groupby("leiden")["scmmgpt_description"].nunique() == 1).all()


def test_an_answer_held_to_choices_is_one_of_them_with_probabilities(cells, writer):
    chosen = scmmgpt.describe(cells[:6], model=writer, choices=LABELS)
    probability = chosen.obsm["scmmgpt_choice_probability"]

    assert set(chosen.obs["scmmgpt_description"]) <= set(LABELS)
    assert np.allclose(probability.sum(1), 1, atol=1e-4)


def test_the_probability_of_an_answer_is_that_of_writing_it_token_by_token(cells, writer):
    tree = answers_tree(writer, LABELS)

    def probability_of(answer, vectors):
        words, total = writer.model.get_input_embeddings(), 1.0
        for place, token in enumerate(answer):
            spelt = words(torch.tensor([answer[:place]], dtype=torch.long))
            logits = writer.model(inputs_embeds=torch.cat([vectors, spelt], dim=1)).logits[0, -1].float()
            choices = sorted({other[place] for other in tree.answers if other[:place] == answer[:place]})
            total *= logits[choices].softmax(-1)[choices.index(token)].item()
        return total

    with torch.inference_mode():
        tokens = writer.model.get_cell_tokens(**writer.processor(cells=cells[:1], return_tensors="pt"))
        vectors = embed_prompt(writer, tokenize_prompt(writer, writer.processor.cell_prompt()), tokens)
        probability = answer_probabilities(writer, vectors, tree)[0].numpy()
        expected = [probability_of(answer, vectors) for answer in tree.answers]

    assert np.allclose(probability, expected, atol=1e-5)


def test_genes_that_the_cell_does_not_express_are_marked():
    vocabulary = {"CD3D": 5, "MS4A1": 6, "CD4": 7}

    text = mark_genes("A CD4-positive cell with CD3D and MS4A1.", vocabulary, expressed={5})

    assert text == "A CD4-positive cell with CD3D and MS4A1 [not detected]."


def test_a_conversation_keeps_its_turns_and_forgets_the_oldest_when_full(cells, writer):
    conversation = scmmgpt.chat(cells, model=writer, cluster_key="leiden")

    first = conversation.ask("What is the difference?", max_new_tokens=6)
    streamed = "".join(conversation.stream("Why is that so?", max_new_tokens=6)).strip()

    assert conversation.names == ["0", "1"]
    assert [message["content"][-1]["text"] for message in conversation.messages[1::2]] == [first, streamed]
    for _ in range(12):
        conversation.ask("And what else can be said about these two?", max_new_tokens=6)
    assert len(conversation.messages) < 28
    assert sum(block["type"] == "cell" for block in conversation.messages[0]["content"]) == 2


# ---- files


def test_a_file_becomes_a_file_with_the_same_results(file, cells, model, tmp_path):
    output = tmp_path / "out.h5ad"

    scmmgpt.annotate(file, LABELS, model=model, output=output, min_confidence=0)

    written, expected = anndata.read_h5ad(output), scmmgpt.annotate(cells, LABELS, model=model, min_confidence=0)
    pd.testing.assert_frame_equal(written.obs, expected.obs, check_dtype=False, atol=1e-5)
    assert (written.X != cells.X).nnz == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad"]


def test_zarr_is_read_and_written(cells, model, tmp_path):
    write_zarr(cells, tmp_path / "cells.zarr")

    scmmgpt.embed(tmp_path / "cells.zarr", model=model, output=tmp_path / "out.zarr")

    expected = scmmgpt.embed(cells, model=model).obsm["X_scmmgpt"]
    assert np.allclose(anndata.read_zarr(tmp_path / "out.zarr").obsm["X_scmmgpt"], expected, atol=1e-5)


def test_one_format_becomes_the_other(file, model, tmp_path):
    scmmgpt.embed(file, model=model, output=tmp_path / "out.zarr")

    assert "X_scmmgpt" in anndata.read_zarr(tmp_path / "out.zarr").obsm


@pytest.mark.parametrize("table", ["obs", "var"])
def test_backed_cells_that_were_changed_in_memory_are_refused(file, model, table):
    backed = anndata.read_h5ad(file, backed="r")
    getattr(backed, table)["more"] = 1

    with pytest.raises(UserError, match=f"`{table}` of the backed AnnData was changed"):
        scmmgpt.embed(backed, model=model)


def test_backed_cells_give_the_same_as_cells_in_memory(file, cells, model):
    backed = scmmgpt.embed(anndata.read_h5ad(file, backed="r"), model=model)

    expected = scmmgpt.embed(cells, model=model).obsm["X_scmmgpt"]
    assert np.allclose(backed.obsm["X_scmmgpt"], expected, atol=1e-5)


def test_an_interrupted_run_goes_on_where_it_stopped(file, model, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CELLS_PER_CHUNK", 16)
    output, computed = tmp_path / "out.h5ad", []
    run_chunk = embedding.run_chunk

    def interrupted_once(features, *args):
        computed.append(len(features["cell_cu_seqlens"]) - 1)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return run_chunk(features, *args)

    monkeypatch.setattr(embedding, "run_chunk", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        scmmgpt.embed(file, model=model, output=output)
    assert not output.exists()

    scmmgpt.embed(file, model=model, output=output)

    assert computed == [16, 16, 16, 16, 12]
    expected = scmmgpt.embed(file, model=model).obsm["X_scmmgpt"]
    assert np.allclose(anndata.read_h5ad(output).obsm["X_scmmgpt"], expected, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad"]


def test_an_unfinished_run_of_another_input_is_not_taken_up(file, cells, model, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CELLS_PER_CHUNK", 16)
    run_chunk, calls = embedding.run_chunk, []

    def stop_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_chunk(*args)

    monkeypatch.setattr(embedding, "run_chunk", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        scmmgpt.embed(file, model=model, output=tmp_path / "out.h5ad")
    cells[::-1].copy().write_h5ad(file)

    scmmgpt.embed(file, model=model, output=tmp_path / "out.h5ad")

    expected = scmmgpt.embed(cells, model=model).obsm["X_scmmgpt"][::-1]
    assert np.allclose(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_scmmgpt"], expected, atol=1e-5)


# ---- refusals


def test_results_that_are_there_are_not_replaced_unasked(cells, model):
    embedded = scmmgpt.embed(cells, model=model)

    with pytest.raises(UserError, match="overwrite=True"):
        scmmgpt.embed(embedded, model=model)

    assert "X_mine" in scmmgpt.embed(embedded, model=model, key_added="mine").obsm
    assert "X_scmmgpt" in scmmgpt.embed(embedded, model=model, overwrite=True).obsm


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param({"output": "cells.h5ad"}, "never overwritten", id="output is input"),
        pytest.param({"output": "out.csv"}, "must end in", id="unknown format"),
        pytest.param({"output": "missing/out.h5ad"}, "does not exist", id="no such folder"),
        pytest.param({"report": "report.pdf"}, "must end in", id="report format"),
        pytest.param({"cluster_key": "louvain"}, "leiden", id="no such column"),
        pytest.param({"min_confidence": 2.0}, "between 0 and 1", id="confidence above one"),
        pytest.param({"labels": []}, "No labels", id="no labels"),
        pytest.param({"device": "gpu"}, "give cpu, cuda, cuda:N", id="no such kind of device"),
        pytest.param({"device": "cuda:99"}, "cannot be used", id="no such device"),
        pytest.param({"batch_size": 0}, "at least 1", id="empty batches"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(file, directory, arguments, reason, monkeypatch):
    monkeypatch.chdir(file.parent)
    before = file.read_bytes()

    with pytest.raises(UserError, match=reason):
        scmmgpt.annotate("cells.h5ad", **{"labels": LABELS, "model": str(directory), **arguments})

    assert [path.name for path in file.parent.iterdir()] == ["cells.h5ad"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        pytest.param("cells.h5ad", b"not a file of cells", "cannot be read", id="broken"),
        pytest.param("cells.txt", b"", "expected a name", id="other format"),
        pytest.param("cells.h5mu", b"", "cannot be read", id="several modalities"),
    ],
)
def test_a_file_that_is_not_cells_is_refused_by_name(tmp_path, model, name, content, reason):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UserError, match=reason) as refusal:
        scmmgpt.embed(tmp_path / name, model=model)

    assert name in str(refusal.value)


def test_a_directory_that_is_no_model_is_refused(cells, tmp_path, directory):
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert'"):
        load(tmp_path)
    shutil.copy(directory / "config.json", tmp_path)
    with pytest.raises(UserError, match="incomplete"):
        load(tmp_path)
    with pytest.raises(UserError, match="no model directory"):
        scmmgpt.embed(cells, model="no/such/place")


def test_something_else_than_cells_is_refused(model):
    with pytest.raises(UserError, match="got list"):
        scmmgpt.embed([[1, 2]], model=model)


# ---- memory


def test_a_batch_that_does_not_fit_is_halved_and_stays_so():
    seen = []

    def compute(rows):
        if rows.stop - rows.start > 3:
            raise torch.OutOfMemoryError
        seen.append(rows.stop - rows.start)
        return rows

    with pytest.warns(UserWarning, match="Out of memory: continuing with a batch size of"):
        results = list(Batches(choose_device("cpu"), 12).run(10, compute))

    assert seen == [3, 3, 3, 1]
    assert [rows for rows, _ in results] == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]


def test_an_error_that_is_not_about_memory_is_not_hidden():
    def compute(rows):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Batches(choose_device("cpu"), 12).run(10, compute))


# ---- many labels


def test_a_long_list_of_labels_is_embedded_once_per_model(cells, model, tmp_path, monkeypatch):
    monkeypatch.setattr(text_cache, "cache_folder", lambda: tmp_path / "cache")
    labels = [f"type {number}" for number in range(text_cache.MIN_TEXTS)]
    with pytest.warns(UserWarning, match="not in the Cell Ontology and (is|are) used as free text"):
        first = scmmgpt.annotate(cells[:3], labels, model=model)
    monkeypatch.setattr(encoding_scmmgpt, "TEXTS_PER_BATCH", 0)  # embedding again would fail

    with pytest.warns(UserWarning, match="not in the Cell Ontology and (is|are) used as free text"):
        again = scmmgpt.annotate(cells[:3], labels, model=model)

    pd.testing.assert_frame_equal(first.obs, again.obs)


def test_a_cache_that_cannot_be_used_costs_nothing_but_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(text_cache, "cache_folder", lambda: tmp_path / "file" / "cache")
    texts = ["a"] * text_cache.MIN_TEXTS

    assert (text_cache.remembered("hash", texts, lambda: np.ones(3)) == 1).all()


def test_a_file_without_empty_groups_is_copied_and_not_read(file, tmp_path, monkeypatch):
    with h5py.File(file, "r+") as store:
        for name in {"obsm", "uns", "varm", "obsp", "varp"} & set(store):
            del store[name]
    monkeypatch.setattr(storage, "write_cells", lambda *_: pytest.fail("the whole file was read and written anew"))

    storage.write_with_additions(file, tmp_path / "out.h5ad", storage.Additions(uns={"scmmgpt": {"a": 1}}))

    assert anndata.read_h5ad(tmp_path / "out.h5ad").uns["scmmgpt"]["a"] == 1


@pytest.fixture
def at_work(tmp_path):
    """Another process at work on an output: it holds the folder of what is unfinished."""
    fcntl = pytest.importorskip("fcntl")
    handles = []

    def hold(name):
        folder = tmp_path / f".{name}.unfinished"
        folder.mkdir(exist_ok=True)
        handles.append(os.open(folder, os.O_RDONLY))
        fcntl.flock(handles[-1], fcntl.LOCK_EX)

    yield hold
    for handle in handles:
        os.close(handle)


def test_an_output_that_another_process_is_writing_is_refused(file, model, tmp_path, at_work):
    at_work("out.h5ad")

    with pytest.raises(UserError, match=r"Another process or thread is writing .*out\.h5ad"):
        scmmgpt.embed(file, model=model, output=tmp_path / "out.h5ad")

    assert (tmp_path / ".out.h5ad.unfinished").is_dir()


def test_two_threads_do_not_write_one_output(file, model, tmp_path, monkeypatch):
    refused, run_chunk = [], embedding.run_chunk

    def second():
        try:
            scmmgpt.embed(file, model=model, output=tmp_path / "out.h5ad")
        except UserError as error:
            refused.append(str(error))

    def with_another(*given):
        monkeypatch.setattr(embedding, "run_chunk", run_chunk)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        return run_chunk(*given)

    monkeypatch.setattr(embedding, "run_chunk", with_another)

    scmmgpt.embed(file, model=model, output=tmp_path / "out.h5ad")

    assert len(refused) == 1
    assert "Another process or thread is writing" in refused[0]
    expected = scmmgpt.embed(file, model=model).obsm["X_scmmgpt"]
    assert np.allclose(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_scmmgpt"], expected, atol=1e-5)
