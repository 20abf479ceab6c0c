"""One call for cells and text; refusals that say what was wrong; the same processor after saving and loading."""

import json
import os
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from input_variants import adata_of, counts_of, gene_tokenizer
from scipy import sparse
from tiny_models import make_text_tokenizer
from transformers import AutoFeatureExtractor, AutoProcessor

from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.prompting_scmmgpt import conversation

NUM_GENES, NUM_QUERIES = 60, 4


@pytest.fixture(scope="module")
def processor():
    return ScMMGPTProcessor(gene_tokenizer(NUM_GENES), make_text_tokenizer(), num_query_tokens=NUM_QUERIES)


@pytest.fixture
def cells(processor):
    return adata_of(counts_of(3, NUM_GENES), processor.feature_extractor.genes)


def placeholders(processor, inputs):
    return (inputs["input_ids"] == processor.cell_token_id).sum(1).tolist()


# ---- the call


def test_cells_alone_give_what_the_cell_encoder_takes(processor, cells):
    inputs = processor(cells=cells)

    assert set(inputs) == {"gene_ids", "gene_values", "gene_mask"}
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())


def test_text_alone_gives_what_the_text_branch_takes(processor):
    inputs = processor(text=["a T cell", "a B cell of a healthy donor"])

    assert set(inputs) == {"input_ids", "attention_mask"}
    assert placeholders(processor, inputs) == [0, 0]


def test_one_text_serves_every_cell(processor, cells):
    inputs = processor(cells=cells, text="What is it?")

    assert placeholders(processor, inputs) == [NUM_QUERIES] * 3
    assert processor.batch_decode(inputs["input_ids"])[0].endswith("<cell>" * NUM_QUERIES + " What is it?")


def test_one_text_for_each_cell(processor, cells):
    assert placeholders(processor, processor(cells=cells, text=["a", "<cell> b", "c <cell>"])) == [NUM_QUERIES] * 3


def test_one_text_about_several_cells(processor, cells):
    assert placeholders(processor, processor(cells=cells, text="<cell><cell> and <cell>")) == [3 * NUM_QUERIES]


def test_texts_may_be_about_different_numbers_of_cells(processor, cells):
    texts = ["no cell here", "<cell><cell> two", "<cell> one"]

    assert placeholders(processor, processor(cells=cells, text=texts)) == [0, 2 * NUM_QUERIES, NUM_QUERIES]


@pytest.mark.parametrize("text", [["a", "b"], "<cell><cell> two", ["<cell>", "<cell>", "<cell><cell>"], []])
def test_texts_and_cells_that_differ_in_number_are_refused_with_both_numbers(processor, cells, text):
    with pytest.raises(ValueError, match="cannot take 3 cells"):
        processor(cells=cells, text=text)


def test_a_placeholder_without_cells_is_refused(processor):
    with pytest.raises(ValueError, match="1 `<cell>` but no `cells=`"):
        processor(text="<cell> What is it?")


def test_nothing_is_refused(processor):
    with pytest.raises(ValueError, match="Nothing to process"):
        processor()


def test_images_are_refused(processor, cells):
    with pytest.raises(ValueError, match="no images"):
        processor(cells=cells, text="a", images=[1])


def test_every_call_returns_fresh_arrays(processor, cells):
    first, second = processor(cells=cells), processor(cells=cells)

    first["gene_values"].zero_()

    assert second["gene_values"].any()


@pytest.mark.parametrize("tensors", ["np", "pt"])
def test_tensors_come_in_the_wanted_kind(processor, cells, tensors):
    kind = {"np": np.ndarray, "pt": torch.Tensor}[tensors]

    assert all(isinstance(value, kind) for value in processor(cells=cells, text="a", return_tensors=tensors).values())


def test_the_callers_cells_are_not_changed(processor, cells):
    cells.raw = cells.copy()
    before = cells.copy()

    processor(cells=cells, text="a")

    assert (cells.X != before.X).nnz == 0
    assert cells.var.equals(before.var)
    assert cells.obs.equals(before.obs)
    assert not cells.uns


def test_a_second_text_tokenizer_serves_the_qformer(processor):
    both = ScMMGPTProcessor(processor.feature_extractor, make_text_tokenizer(), make_text_tokenizer(), NUM_QUERIES)

    inputs = both(text=["a T cell"])

    assert set(inputs) == {"input_ids", "attention_mask", "qformer_input_ids", "qformer_attention_mask"}
    assert set(both.model_input_names) >= set(inputs)


def test_the_account_is_that_of_the_last_cells(processor, cells):
    processor(cells=cells[:2])

    assert processor.account["num_cells"] == 2
    assert processor.account["matrix"] == "X"
    assert processor.account["share_of_counts"] == 1
    json.dumps(processor.account)


def test_the_account_survives_in_uns(processor, cells, tmp_path):
    processor(cells=cells)
    cells.uns["scmmgpt"] = {"genes": processor.account}

    cells.write_h5ad(tmp_path / "cells.h5ad")

    assert ad.read_h5ad(tmp_path / "cells.h5ad").uns["scmmgpt"]["genes"]["num_matched"] == NUM_GENES


# ---- chat


def test_chat_takes_cells_and_marks_the_answer_alone(processor, cells):
    talk = [conversation("What is it?", "A T cell.", cell=cells[place]) for place in range(2)]

    inputs = processor.apply_chat_template(
        talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )

    answers = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)]
    assert [processor.tokenizer.decode(answer) for answer in answers] == ["A T cell.<eos>"] * 2
    assert placeholders(processor, inputs) == [NUM_QUERIES] * 2
    assert len(inputs["gene_ids"]) == 2


@pytest.mark.parametrize("num_cells", [0, 1, 3])
def test_a_conversation_may_be_about_any_number_of_cells(processor, cells, num_cells):
    talk = conversation("What is it?", num_cells=num_cells)
    options = {"processor_kwargs": {"cells": cells[:num_cells]}} if num_cells else {}

    inputs = processor.apply_chat_template(talk, tokenize=True, return_dict=True, return_tensors="pt", **options)

    assert placeholders(processor, inputs) == [num_cells * NUM_QUERIES]


def test_a_chat_template_of_strings_learns_to_take_cells(processor):
    tokenizer = make_text_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
    )
    taught = ScMMGPTProcessor(processor.feature_extractor, tokenizer, num_query_tokens=NUM_QUERIES)

    assert taught.apply_chat_template(conversation("What?")) == "[user] <cell>What?"


# ---- refusals


def test_no_cells_are_refused(processor, cells):
    for nothing in (cells[:0], [], (np.zeros((0, 3)), ["A", "B", "C"])):
        with pytest.raises(ValueError, match="no cells"):
            processor(cells=nothing)


def test_unknown_genes_are_refused_with_names_scheme_and_remedy(processor, cells):
    cells.var_names = [str(number) for number in range(NUM_GENES)]

    with pytest.raises(ValueError, match=r"None of the 60 genes.*row numbers.*0, 1, 2.*gene_column="):
        processor(cells=cells)


def test_too_few_known_genes_are_refused(processor, cells):
    with pytest.raises(ValueError, match="Only 19 of the 19 genes.*at least 20"):
        processor(cells=cells[:, :19])


@pytest.mark.parametrize(("value", "word"), [(np.nan, "1 NaN"), (np.inf, "1 infinite"), (-1, "1 negative")])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_impossible_values_are_refused_with_count_and_place(processor, cells, value, word, layout):
    matrix = cells.X.toarray()
    matrix[1, 7] = value
    cells.X = sparse.csr_matrix(matrix) if layout == "csr" else matrix

    with pytest.raises(ValueError, match=f"{word} value .*first in cell 1, gene '{cells.var_names[7]}'"):
        processor(cells=cells)


def test_nothing_but_negative_numbers_is_refused(processor, cells):
    matrix = np.zeros(cells.shape)
    matrix[1, 7] = -1

    with pytest.raises(ValueError, match="1 negative value"):
        processor(cells=(matrix, list(cells.var_names)))


def test_impossible_values_elsewhere_do_not_matter(processor, cells):
    cells.layers["broken"] = cells.X * np.nan

    assert len(processor(cells=cells)["gene_ids"]) == 3


def test_z_scores_without_counts_are_refused_naming_what_was_looked_at(processor):
    random = np.random.default_rng(0)
    cells = ad.AnnData(random.normal(size=(30, NUM_GENES)))
    cells.var_names = processor.feature_extractor.genes
    cells.layers["scaled"] = cells.X.copy()

    with pytest.raises(ValueError, match=r"`X`: scaled.*`layers\['scaled'\]`: scaled.*layer="):
        processor(cells=cells)


def test_a_layer_that_is_not_there_is_refused(processor, cells):
    with pytest.raises(ValueError, match="no layer 'counts'; found X"):
        processor(cells=cells, layer="counts")


def test_low_coverage_is_refused_when_strict(processor, cells):
    wider = ad.concat([cells, adata_of(counts_of(3, 200, seed=5) * 9, [f"odd{n}" for n in range(200)])], axis=1)

    assert len(processor(cells=wider)["gene_ids"]) == 3
    with pytest.raises(ValueError, match=r"covers \d+% of the counts.*gene_column="):
        processor(cells=wider, strict=True)


def test_a_file_cut_short_is_refused_by_name(processor, cells, tmp_path):
    cells.write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "half.h5ad").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ValueError, match="half.h5ad cannot be read"):
        processor(cells=tmp_path / "half.h5ad")


def test_a_file_that_is_not_there_is_refused_by_name(processor):
    with pytest.raises(FileNotFoundError, match="nowhere.h5ad"):
        processor(cells="nowhere.h5ad")


def test_cells_of_no_known_kind_are_refused(processor):
    with pytest.raises(TypeError, match="got dict"):
        processor(cells={"X": 1})


def test_names_that_do_not_fit_the_matrix_are_refused(processor):
    with pytest.raises(ValueError, match="3 columns, but there are 2 gene names"):
        processor(cells=(np.ones((2, 3)), ["A", "B"]))


def test_cells_named_twice_are_kept_and_counted(processor, cells):
    cells.obs_names = ["same"] * 3

    assert len(processor(cells=cells)["gene_ids"]) == 3
    assert processor.account["duplicate_cell_names"] == 2


def test_empty_cells_are_kept_and_counted_and_never_nan(processor, cells):
    matrix = cells.X.toarray()
    matrix[1] = 0

    inputs = processor(cells=(matrix, list(cells.var_names)))

    assert processor.account["empty_cells"] == 1
    assert inputs["gene_mask"].sum(1)[1] == 1
    assert not inputs["gene_values"].isnan().any()


def test_logarithms_that_hide_no_counts_are_used_as_such_and_said_so(processor, caplog):
    random = np.random.default_rng(0)
    cells = adata_of(random.gamma(1, 1, (5, NUM_GENES)), processor.feature_extractor.genes)

    processor(cells=cells)

    assert processor.account["matrix_state"] == "log1p"
    assert processor.account["cells_turned_back_into_counts"] == 0


def test_a_count_beyond_all_integers_is_a_large_value_like_any_other(processor, cells):
    matrix = cells.X.toarray()
    matrix[1, 7] = 1e30

    inputs = processor(cells=(matrix, list(cells.var_names)))

    assert inputs["gene_ids"][1, 1] == processor.feature_extractor.vocabulary[cells.var_names[7]]
    assert inputs["gene_values"].isfinite().all()


def test_counts_of_the_callers_say_so_are_taken_as_they_are(processor):
    random = np.random.default_rng(0)
    fractions = adata_of(random.gamma(1, 1, (5, NUM_GENES)), processor.feature_extractor.genes)

    processor(cells=fractions, counts=True)

    assert processor.account["matrix_state"] == "counts"


# ---- output side


def test_annotation_gives_the_best_labels_verbatim(processor):
    labels = ["CD4-positive, alpha-beta T cell", "B cell", "monocyte"]

    choices = processor.post_process_annotation(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]), labels)

    assert [choice["labels"] for choice in choices] == [["B cell", "monocyte"], [labels[0], "B cell"]]
    assert choices[0]["confidences"][0] == pytest.approx(np.exp(2) / (1 + np.e + np.exp(2)))


def test_cells_come_back_as_an_anndata_complete_with_names(processor):
    genes = processor.feature_extractor
    wanted = torch.tensor([genes.vocabulary[name] for name in genes.genes[5:8]])

    cells = processor.post_process_cells(torch.tensor([[1, 0, 2], [0, 0, 0]]), wanted, text="a T cell")

    assert list(cells.var_names) == genes.genes[5:8]
    assert cells.var["feature_id"].tolist() == genes.ensembl_ids[5:8]
    assert cells.obs["total_counts"].tolist() == [3, 0]
    assert cells.obs["text"].tolist() == ["a T cell"] * 2
    assert np.issubdtype(cells.X.dtype, np.integer)


def test_generated_cells_can_be_read_again(processor):
    counts = counts_of(2, NUM_GENES)

    again = processor(cells=processor.post_process_cells(counts))

    assert torch.equal(again["gene_ids"], processor(cells=(counts, processor.feature_extractor.genes))["gene_ids"])


# ---- save, load


@pytest.fixture(params=[False, True], ids=["one text tokenizer", "two text tokenizers"])
def saved(request, processor, tmp_path):
    second = make_text_tokenizer() if request.param else None
    both = ScMMGPTProcessor(processor.feature_extractor, make_text_tokenizer(), second, NUM_QUERIES)
    both.save_pretrained(tmp_path / "saved")
    return both, tmp_path / "saved"


def test_a_loaded_processor_is_the_saved_one(saved, cells):
    processor, folder = saved
    loaded = ScMMGPTProcessor.from_pretrained(folder)

    assert (loaded.qformer_tokenizer is None) == (processor.qformer_tokenizer is None)
    assert loaded.chat_template == processor.chat_template
    assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    for name, numbers in processor.feature_extractor.gene_statistics.items():
        np.testing.assert_array_equal(loaded.feature_extractor.gene_statistics[name], numbers)
    for inputs in ({"cells": cells, "text": "What is it?"}, {"text": "a T cell"}):
        expected = processor(**inputs)
        found = loaded(**inputs)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_saved_twice_is_the_same(saved, tmp_path):
    _, folder = saved
    ScMMGPTProcessor.from_pretrained(folder).save_pretrained(tmp_path / "again")

    for name in ("gene_vocabulary.tsv.gz", "gene_names.tsv.gz", "chat_template.jinja", "processor_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_gene_tokenizer_loads_alone(processor, tmp_path, cells):
    processor.feature_extractor.save_pretrained(tmp_path)

    loaded = type(processor.feature_extractor).from_pretrained(tmp_path)

    np.testing.assert_array_equal(loaded(cells)["gene_values"], processor.feature_extractor(cells)["gene_values"])


REMOTE = """
import sys
sys.modules["scmmgpt"] = None
import json
import anndata
from transformers import AutoFeatureExtractor, AutoProcessor
folder = sys.argv[1]
cells = anndata.read_h5ad(folder + "/cells.h5ad")
found = {}
for kind in (AutoProcessor, AutoFeatureExtractor):
    loaded = kind.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules")
    inputs = loaded(cells=cells, text="What is it?") if kind is AutoProcessor else loaded(cells)
    found[kind.__name__] = {name: values.tolist() for name, values in inputs.items()}
    found["account"] = loaded.account
    loaded.save_pretrained(folder + "/again")
print(json.dumps(found))
"""


def test_remote_code_gives_the_same_where_the_package_cannot_be_imported(saved, cells, tmp_path):
    processor, folder = saved
    cells.write_h5ad(folder / "cells.h5ad")
    (folder / "config.json").write_text(json.dumps({"model_type": "scmmgpt"}))
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)

    run = subprocess.run(
        [sys.executable, "-c", REMOTE, str(folder)], capture_output=True, text=True, cwd="/", env=environment
    )

    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    expected = processor(cells=cells, text="What is it?")
    assert found["AutoProcessor"] == {name: values.tolist() for name, values in expected.items()}
    genes = processor.feature_extractor(cells)
    assert found["AutoFeatureExtractor"] == {name: values.tolist() for name, values in genes.items()}
    assert (folder / "again" / "gene_vocabulary.tsv.gz").read_bytes() == (
        folder / "gene_vocabulary.tsv.gz"
    ).read_bytes()


def test_the_auto_classes_find_the_installed_package(saved):
    _, folder = saved
    (folder / "config.json").write_text(json.dumps({"model_type": "scmmgpt"}))

    assert type(AutoProcessor.from_pretrained(folder)) is ScMMGPTProcessor
    assert AutoFeatureExtractor.from_pretrained(folder).genes


def test_push_while_saving_uploads_every_file(processor, tmp_path, monkeypatch):
    """What was written before `save_pretrained` listed the folder would not be uploaded."""
    uploaded = []
    monkeypatch.setattr(
        "transformers.utils.hub.PushToHubMixin._upload_modified_files",
        lambda self, folder, repo_id, files_timestamps, **kwargs: uploaded.extend(
            name for name in os.listdir(folder) if name not in files_timestamps
        ),
    )
    monkeypatch.setattr("transformers.processing_utils.hf_api", lambda: _NoHub())

    processor.save_pretrained(str(tmp_path / "repo"), push_to_hub=True)

    assert {"gene_vocabulary.tsv.gz", "gene_names.tsv.gz", "processor_config.json"} <= set(uploaded)


class _NoHub:
    def create_repo(self, repo_id, **kwargs):
        return type("Repo", (), {"repo_id": repo_id})()


# ---- size


class LargeDense:
    """A dense matrix too large to be read at once, which remembers how much was."""

    def __init__(self, num_cells, num_genes):
        self.shape, self.ndim = (num_cells, num_genes), 2
        self.most_bytes = 0

    def __getitem__(self, rows):
        block = np.ones((len(range(*rows.indices(self.shape[0]))), self.shape[1]), np.float32)
        self.most_bytes = max(self.most_bytes, block.nbytes)
        return block


def test_a_large_dense_matrix_is_read_in_pieces(processor):
    genes = processor.feature_extractor.genes
    names = [*genes, *(f"other{number}" for number in range(100_000))]
    matrix = LargeDense(500, len(names))

    tokens = processor.feature_extractor((matrix, names))

    assert len(tokens["gene_ids"]) == 500
    assert matrix.most_bytes < 128 * 1024**2


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_half_precision_is_read_as_what_it_holds(processor, kind, tmp_path):
    genes = processor.feature_extractor.genes
    counts = np.random.default_rng(0).poisson(2, (5, len(genes))).astype(np.float32)
    matrix = counts if kind == "dense" else sparse.csr_matrix(counts).asformat(kind)
    cells = ad.AnnData(matrix, var=pd.DataFrame(index=genes))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        name = "X" if kind == "dense" else "X/data"
        values, attributes = file[name][:], dict(file[name].attrs)
        del file[name]
        file[name] = values.astype(np.float16)
        file[name].attrs.update(attributes)

    half, single = (processor.feature_extractor(one) for one in (tmp_path / "cells.h5ad", cells))

    np.testing.assert_array_equal(half["gene_ids"], single["gene_ids"])
    np.testing.assert_array_equal(half["gene_values"], single["gene_values"])


def test_prompts_of_unequal_length_end_where_the_answer_begins_and_leave_no_trace(processor, cells, tmp_path):
    prompts = processor(cells=cells[:2], text=["What?", "What is it, and where from?"], padding=True)

    assert [row[-1] for row in prompts["attention_mask"]] == [1, 1]
    processor.save_pretrained(tmp_path)
    assert ScMMGPTProcessor.from_pretrained(tmp_path).tokenizer.padding_side == processor.tokenizer.padding_side


@pytest.mark.parametrize("texts", [np.array(["a", "b"]), pd.Series(["a", "b"]), ("a", "b")])
def test_texts_may_come_in_any_sequence(processor, texts):
    assert len(processor(text=texts)["input_ids"]) == 2


@pytest.mark.parametrize("texts", [5, [5], [], ()])
def test_what_is_no_text_is_refused_in_words(processor, texts):
    with pytest.raises(ValueError, match="text"):
        processor(text=texts)
