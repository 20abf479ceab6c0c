"""Exported towers give what the model gives, for any number of cells and genes; what is not the same is not written."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from tiny_models import CELL_ENCODER, tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt import onnx_export
from scmmgpt.cli import app
from scmmgpt.errors import UserError
from scmmgpt.hashes import hash_of_files
from scmmgpt.modeling_scmmgpt import ScMMGPTCellConfig
from scmmgpt.processing.encoding_scmmgpt import embed_texts

onnx = pytest.importorskip("onnx", reason="pip install 'scmmgpt[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'scmmgpt[onnx]'")
pytest.importorskip("onnxscript", reason="pip install 'scmmgpt[onnx]'")

REAL_CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
TEXTS = ["a B cell", "T cell", "a neuron of the cerebral cortex", "monocyte", "x"]


@pytest.fixture(scope="module")
def loaded():
    return scmmgpt.load(device="cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, loaded):
    folder = tmp_path_factory.mktemp("place") / "export"
    onnx_export.export_onnx(folder, model=loaded, cells=REAL_CELLS)
    return folder


@pytest.fixture(scope="module")
def cells():
    return anndata.read_h5ad(REAL_CELLS)


def run(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(values) for name, values in inputs.items()})[0]


# ---- the embedded model


@pytest.mark.slow
@pytest.mark.parametrize("num_cells", [1, 7, 300])
def test_cells_are_embedded_as_embed_does(num_cells, exported, loaded, cells):
    chosen = cells[:num_cells].copy()
    expected = scmmgpt.embed(chosen, model=loaded, progress=False).obsm["X_scmmgpt"]

    found = run(exported / "cell_tower.onnx", loaded.processor(cells=chosen, return_tensors="np"))

    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_a_cell_with_fewer_genes_than_attention_looks_at_is_embedded_too(exported, loaded, cells):
    tokens = {name: values[:, :6] for name, values in loaded.processor(cells=cells[:3], return_tensors="pt").items()}
    with torch.inference_mode():
        expected = loaded.model.get_cell_features(**tokens).pooler_output

    np.testing.assert_allclose(run(exported / "cell_tower.onnx", tokens), expected, atol=2e-6)


@pytest.mark.slow
def test_padding_does_not_change_an_exported_embedding(exported, loaded, cells):
    tokens = loaded.processor(cells=cells[:1].copy(), return_tensors="np")
    padded = {name: np.pad(values, [(0, 0), (0, 100)]) for name, values in tokens.items()}

    path = exported / "cell_tower.onnx"
    np.testing.assert_allclose(run(path, padded), run(path, tokens), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS, ["cell " * 600]], ids=["one", "five", "one too long"])
def test_texts_are_embedded_as_the_model_does(texts, exported, loaded):
    longest = json.loads((exported / "manifest.json").read_text())["longest_text"]
    inputs = loaded.processor(text=texts, return_tensors="np", padding=True, truncation=True, max_length=longest)

    expected = embed_texts(loaded.model, loaded.processor, texts)

    np.testing.assert_allclose(run(exported / "text_tower.onnx", inputs), expected, atol=2e-6)


@pytest.mark.slow
def test_the_manifest_knows_every_file_by_its_hash(exported):
    files = json.loads((exported / "manifest.json").read_text())["files"]

    assert files.keys() == {path.name for path in exported.iterdir()} - {"manifest.json"}
    assert {name: hash_of_files([exported / name]) for name in files} == {
        name: file["sha256"] for name, file in files.items()
    }
    assert {"gene_vocabulary.tsv.gz", "tokenizer.json", "processor_config.json"} <= files.keys()


@pytest.mark.slow
def test_the_manifest_says_how_near_the_export_is(exported, loaded):
    manifest = json.loads((exported / "manifest.json").read_text())

    assert manifest["model"]["weights_sha256"] == loaded.weights_hash
    assert manifest["checked"]["cells"]["source"] == "pbmc_facs_300.h5ad"
    assert all(check["lowest_cosine"] > 0.99999 for check in manifest["checked"].values())
    assert all(check["number"] > 100 for check in manifest["checked"].values())
    assert manifest["towers"]["cell_tower.onnx"]["inputs"]["gene_ids"]["shape"] == ["cells", "genes"]
    assert str(Path.cwd()) not in json.dumps(manifest)


@pytest.mark.slow
def test_matrices_are_stored_in_16_bits(exported):
    stored = [
        weight
        for name in ("cell_tower.onnx", "text_tower.onnx")
        for weight in onnx.load(exported / name).graph.initializer
        if len(weight.dims) >= 2
    ]

    floats = {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
    assert {weight.data_type for weight in stored} & floats == {onnx.TensorProto.FLOAT16}
    assert sum(path.stat().st_size for path in exported.iterdir()) < 30e6


@pytest.mark.slow
def test_nothing_half_written_is_left(exported):
    assert [path.name for path in exported.parent.iterdir()] == ["export"]


# ---- another architecture: no pooled tokens, weights in 32 bits, texts padded on the left


@pytest.mark.slow
def test_the_command_exports_an_encoder_without_pooled_tokens(tmp_path, capsys):
    directory = write_tiny_model(tmp_path / "model")
    tiny_cells(20).write_h5ad(tmp_path / "cells.h5ad")
    options = ["--model", str(directory), "--cells", str(tmp_path / "cells.h5ad"), "--json"]

    app(["export", "onnx", str(tmp_path / "export"), *options], standalone_mode=False)

    manifest = json.loads((tmp_path / "export" / "manifest.json").read_text())
    assert json.loads(capsys.readouterr().out) == {"output": str(tmp_path / "export")} | manifest
    assert manifest["model"]["name"] == "model"
    loaded = scmmgpt.load(directory, device="cpu")
    tokens = loaded.processor(cells=tiny_cells(3, seed=1), return_tensors="pt")
    with torch.inference_mode():
        expected = loaded.model.get_cell_features(**tokens).pooler_output.numpy()
    assert (run(tmp_path / "export" / "cell_tower.onnx", tokens) * expected).sum(1).min() > 0.9999


# ---- refusals


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return scmmgpt.load(write_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


def test_an_existing_folder_is_refused_and_kept(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(UserError, match="exists: name a new folder"):
        onnx_export.export_onnx(tmp_path, model=tiny, cells=tiny_cells(3))

    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_in_no_folder_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="does not exist; create it first"):
        onnx_export.export_onnx(tmp_path / "no" / "export", model=tiny, cells=tiny_cells(3))


def test_a_model_without_towers_is_refused(tmp_path):
    ScMMGPTCellConfig(**CELL_ENCODER, vocab_size=60, pad_token_id=0, cls_token_id=1).save_pretrained(
        tmp_path / "model"
    )

    with pytest.raises(UserError, match="holds a model of type 'scmmgpt_cell'; expected 'scmmgpt'"):
        onnx_export.export_onnx(tmp_path / "export", model=tmp_path / "model", cells=tiny_cells(3))

    assert not (tmp_path / "export").exists()


def test_no_cells_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="There are no cells"):
        onnx_export.export_onnx(tmp_path / "export", model=tiny, cells=tiny_cells(3)[:0].copy())


@pytest.mark.parametrize("wrong", [0.0, np.nan], ids=["other direction", "not a number"])
def test_an_export_that_differs_is_not_written(wrong, tiny, tmp_path, monkeypatch):
    width = tiny.config.projection_dim
    for name in ("_write_cell_tower", "_write_text_tower", "_session"):
        monkeypatch.setattr(onnx_export, name, lambda *given: None)
    broken = np.full((1, width), wrong, dtype=np.float32)
    monkeypatch.setattr(
        onnx_export, "_tower", lambda session: lambda inputs: np.repeat(broken, len(inputs["gene_ids"]), axis=0)
    )

    with pytest.raises(RuntimeError, match="other embeddings than this model does"):
        onnx_export.export_onnx(tmp_path / "export", model=tiny, cells=tiny_cells(9))

    assert list(tmp_path.iterdir()) == []
