"""Every file that people have gives the same answer for the same cells."""

import base64
import os
import tracemalloc
from pathlib import Path

import anndata as ad
import h5py
import input_variants
import mudata
import numpy as np
import pandas as pd
import pytest
from file_formats import (
    WRITERS,
    as_mudata,
    write_h5_of_version_2,
    write_h5_of_version_3,
    write_h5ad,
    write_h5mu,
    write_lines,
    write_matrix_folder,
)
from scipy import sparse
from transformers import pipeline

import scmmgpt
from scmmgpt import cells as cell_access
from scmmgpt.doctor import examination_lines, examine
from scmmgpt.errors import UserError
from scmmgpt.hub_cards.handler import EndpointHandler
from scmmgpt.loading import load
from scmmgpt.storage import read_cells

ANTIBODIES = ["CD19_TotalSeqB", "CD14_TotalSeqB", "CD4_TotalSeqB"]


@pytest.fixture(scope="module")
def loaded():
    return load(device="cpu")


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Real cells with high counts of three antibodies in rows beside the genes, as `read_10x_h5` gives them."""
    rna = ad.read_h5ad(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad")[:40]
    antibodies = np.random.default_rng(0).poisson(200, (rna.n_obs, len(ANTIBODIES)))
    matrix = sparse.hstack([sparse.csr_matrix(rna.X), sparse.csr_matrix(antibodies)], format="csr")
    names = [*rna.var_names, *ANTIBODIES]
    types = ["Gene Expression"] * rna.n_vars + ["Antibody Capture"] * len(ANTIBODIES)
    var = pd.DataFrame({"gene_ids": names, "feature_types": types}, index=names)
    return ad.AnnData(matrix.astype(np.float32), obs=pd.DataFrame(index=rna.obs_names), var=var)


EVERY_FORMAT = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


# ---- one answer


@pytest.fixture(scope="module")
def of_genes_alone(cells, loaded) -> ad.AnnData:
    genes = cells[:, cells.var["feature_types"] == "Gene Expression"].copy()
    return scmmgpt.annotate(scmmgpt.embed(genes, model=loaded, progress=False), model=loaded, progress=False)


@EVERY_FORMAT
def test_calls_and_embeddings_are_the_same_to_the_bit(cells, loaded, of_genes_alone, tmp_path, write):
    path = write(cells, tmp_path)

    embedded = scmmgpt.embed(path, model=loaded, progress=False)
    annotated = scmmgpt.annotate(path, model=loaded, progress=False)

    np.testing.assert_array_equal(embedded.obsm["X_scmmgpt"], of_genes_alone.obsm["X_scmmgpt"])
    for column in ("scmmgpt_cell_type", "scmmgpt_confidence", "scmmgpt_second_choice"):
        assert annotated.obs[column].tolist() == of_genes_alone.obs[column].tolist()
    (told,) = annotated.uns["scmmgpt"]["genes"]["set_aside"].values()
    assert (told["kind"], told["number"], list(told["names"])) == ("antibody", 3, ANTIBODIES)


@EVERY_FORMAT
def test_the_processor_reads_the_same_tokens(cells, loaded, tmp_path, write):
    path = write(cells, tmp_path)
    genes = cells[:, cells.var["feature_types"] == "Gene Expression"].copy()

    found, expected = (loaded.processor.gene_tokenizer(source) for source in (path, genes))

    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


@EVERY_FORMAT
def test_an_output_holds_the_cells_and_the_results(cells, loaded, tmp_path, write):
    path = write(cells, tmp_path)

    scmmgpt.embed(path, output=tmp_path / "out.h5ad", model=loaded, progress=False)

    written = ad.read_h5ad(tmp_path / "out.h5ad")
    assert written.obs_names.tolist() == cells.obs_names.tolist()
    assert "X_scmmgpt" in written.obsm
    assert written.n_vars in (cells.n_vars, cells.n_vars - len(ANTIBODIES))
    assert (written.X[:, :100] != cells.X[:, :100]).nnz == 0


@pytest.mark.parametrize("write", [write_h5_of_version_3, write_h5mu], ids=["10x h5", "h5mu"])
def test_cells_of_a_file_are_read_row_by_row(cells, tmp_path, write, monkeypatch):
    opened = cell_access.open_cells(write(cells, tmp_path))
    monkeypatch.setattr("scmmgpt.cells.read_cells", lambda *_: pytest.fail("the whole file is read"))

    chosen = opened.rows(np.array([5, 2, 7]))

    assert isinstance(opened, cell_access.CellsInFile)
    assert chosen.obs_names.tolist() == [cells.obs_names[row] for row in (5, 2, 7)]
    assert (chosen.X[:, :100] != cells[[5, 2, 7]].X[:, :100]).nnz == 0


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_mudata_in_a_zarr_becomes_cells_in_another_format(cells, loaded, tmp_path):
    with input_variants.without_pulling():
        as_mudata(cells).write_zarr(tmp_path / "cells.zarr")

    scmmgpt.embed(tmp_path / "cells.zarr", output=tmp_path / "out.h5ad", model=loaded, progress=False)

    written = ad.read_h5ad(tmp_path / "out.h5ad")
    assert written.obs_names.tolist() == cells.obs_names.tolist()
    assert "X_scmmgpt" in written.obsm


@pytest.mark.parametrize("names", [["a", "ü" * 30, ""], [7, 8, 9]], ids=["texts", "numbers"])
def test_obs_of_a_file_is_what_was_written(tmp_path, names):
    obs = pd.DataFrame({"kind": pd.Categorical(["x", "y", "x"])}, index=pd.Index(names, name="barcode"))
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        ad.io.write_elem(file, "obs", obs)
        ad.io.write_elem(file, "var", pd.DataFrame(index=["CD3D"]))

    opened = cell_access.open_cells(path)

    with h5py.File(path) as file:
        pd.testing.assert_frame_equal(opened.obs, ad.io.read_elem(file["obs"]))


def test_obs_that_is_no_table_is_refused_by_the_name_of_the_file(tmp_path):
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        ad.io.write_elem(file, "obs", np.zeros(3))
        ad.io.write_elem(file, "var", pd.DataFrame(index=["CD3D"]))

    with pytest.raises(UserError, match="cells.h5ad.*cannot be read as AnnData"):
        cell_access.open_cells(path)


def test_names_of_the_cells_of_a_file_take_little_memory(tmp_path):
    num_cells = 50_000
    obs = pd.DataFrame(index=[f"AAACCTGAGAAGGCCT-{number}" for number in range(num_cells)])
    ad.AnnData(sparse.csr_matrix((num_cells, 1), dtype=np.float32), obs=obs).write_h5ad(tmp_path / "cells.h5ad")

    tracemalloc.start()
    opened = cell_access.open_cells(tmp_path / "cells.h5ad")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 50 * num_cells  # 79 as texts
    assert opened.obs.index[-1] == obs.index[-1]


def test_doctor_says_what_it_found(cells, tmp_path):
    account = examine(write_matrix_folder(cells, tmp_path))

    lines = examination_lines(account)

    assert account["num_genes"] == cells.n_vars - 3
    assert any(
        line.startswith("set aside: 3 of kind antibody (var['feature_types'] says Antibody Capture): CD19_TotalSeqB")
        for line in lines
    )


def test_pipeline_and_endpoint_set_the_same_features_aside(cells, of_genes_alone, loaded, tmp_path):
    labels = ["B cell", "monocyte", "T cell"]
    expected = scmmgpt.annotate(of_genes_alone, labels, model=loaded, prior_share=0, overwrite=True, progress=False)
    file = base64.b64encode(write_h5ad(cells, tmp_path).read_bytes()).decode()
    request = {"task": "annotate", "cells": {"h5ad": file}, "labels": labels}

    in_pipeline = pipeline("cell-annotation", model=str(scmmgpt.EMBEDDED_MODEL), device="cpu", trust_remote_code=True)
    called = in_pipeline(cells, labels=labels).obs["scmmgpt_cell_type"]
    answered = EndpointHandler(str(scmmgpt.EMBEDDED_MODEL), device="cpu")({"inputs": request})["calls"]

    assert called.tolist() == expected.obs["scmmgpt_cell_type"].tolist()
    assert [call["cell_type"] for call in answered] == expected.obs["scmmgpt_cell_type"].tolist()


FIVE = ("h5ad", "zarr", "h5mu", "10x h5, version 3", "10x folder")


@pytest.mark.parametrize("kind", FIVE)
def test_five_readers_give_one_answer_on_real_antibodies(loaded, tmp_path, kind):
    if not os.environ.get("SCMMGPT_DATA"):
        pytest.skip("SCMMGPT_DATA names no folder of development cells")
    path = Path(os.environ["SCMMGPT_DATA"]).parent / "dev2" / "multiome" / "citeseq_pbmc5k_scvitools200.h5ad"
    if not path.exists():
        pytest.skip(f"there is no {path.name} beside the development cells")
    rna = ad.read_h5ad(path)
    protein = rna.obsm["protein_expression"]
    names = [*rna.var_names, *protein.columns]
    types = ["Gene Expression"] * rna.n_vars + ["Antibody Capture"] * protein.shape[1]
    matrix = sparse.hstack([rna.X, sparse.csr_matrix(protein.to_numpy(np.float32))], format="csr").astype(np.float32)
    var = pd.DataFrame({"gene_ids": names, "feature_types": types}, index=names)
    typed = ad.AnnData(matrix, obs=pd.DataFrame(index=rna.obs_names), var=var)
    labels = sorted(set(rna.obs["cell_type"]) - {"unknown"})

    found = scmmgpt.annotate(WRITERS[kind](typed, tmp_path), labels, model=loaded, progress=False)

    beside = ad.AnnData(rna.X, obs=rna.obs[[]], var=var.iloc[: rna.n_vars, [0]], obsm={"protein_expression": protein})
    expected = scmmgpt.annotate(beside, labels, model=loaded, progress=False)
    for column in ("scmmgpt_cell_type", "scmmgpt_confidence", "scmmgpt_protein_conflict"):
        assert found.obs[column].tolist() == expected.obs[column].tolist()
    assert len(found.uns["scmmgpt"]["annotate"]["proteins"]["antibodies"]) == 29


# ---- MuData


def test_mudata_gives_the_rna_with_the_results(cells, loaded, of_genes_alone):
    given = as_mudata(cells)

    result = scmmgpt.embed(given, model=loaded, progress=False)

    np.testing.assert_array_equal(result.obsm["X_scmmgpt"], of_genes_alone.obsm["X_scmmgpt"])
    assert result.n_vars == given["rna"].n_vars
    assert "X_scmmgpt" not in given["rna"].obsm


def test_mudata_is_changed_in_place_if_asked(cells, loaded):
    given = as_mudata(cells)

    scmmgpt.embed(given, model=loaded, inplace=True, progress=False)

    assert "X_scmmgpt" in given["rna"].obsm


def test_an_h5mu_output_keeps_every_modality(cells, loaded, tmp_path):
    path = write_h5mu(cells, tmp_path)

    scmmgpt.embed(path, output=tmp_path / "out.h5mu", model=loaded, progress=False)

    with input_variants.without_pulling():
        written = mudata.read_h5mu(tmp_path / "out.h5mu")
    assert set(written.mod) == {"prot", "rna"}
    assert "X_scmmgpt" in written["rna"].obsm


def test_only_an_h5mu_input_has_an_h5mu_output(cells, loaded, tmp_path):
    with pytest.raises(UserError, match="must end in"):
        scmmgpt.embed(write_h5ad(cells, tmp_path), output=tmp_path / "out.h5mu", model=loaded, progress=False)


def test_cells_that_have_no_rna_are_counted(cells, loaded):
    given = as_mudata(cells)
    with input_variants.without_pulling():
        given = mudata.MuData({"prot": given["prot"], "rna": given["rna"][:30].copy()})

    result = scmmgpt.embed(given, model=loaded, progress=False)

    assert result.n_obs == 30
    assert result.uns["scmmgpt"]["genes"]["cells_without_rna"] == 10


# ---- what cannot be read


def _folder_without_barcodes(cells, folder):
    folder = write_matrix_folder(cells, folder)
    (folder / "barcodes.tsv.gz").unlink()
    return folder


def _folder_of_too_few_barcodes(cells, folder):
    folder = write_matrix_folder(cells, folder)
    write_lines(folder / "barcodes.tsv.gz", cells.obs_names[:-1])
    return folder


def _folder_of_peaks(cells, folder):
    folder = write_matrix_folder(cells, folder)
    (folder / "features.tsv.gz").rename(folder / "peaks.bed.gz")
    return folder


def _folder_cut_short(cells, folder):
    folder = write_matrix_folder(cells, folder, packed="")
    content = (folder / "matrix.mtx").read_bytes()
    (folder / "matrix.mtx").write_bytes(content[: len(content) // 2])
    return folder


def _h5_of_two_genomes(cells, folder):
    path = write_h5_of_version_2(cells, folder)
    with h5py.File(path, "r+") as file:
        file.copy("GRCh38", "mm10")
    return path


def _h5_that_points_outside(cells, folder):
    path = write_h5_of_version_3(cells, folder)
    with h5py.File(path, "r+") as file:
        file["matrix/indptr"][3] = 10**9
    return path


def _h5_of_something_else(cells, folder):
    with h5py.File(folder / "weights.h5", "w") as file:
        file["weights"] = np.zeros(3)
    return folder / "weights.h5"


REFUSED = {
    "no barcodes": (_folder_without_barcodes, "must hold one barcodes.tsv"),
    "too few barcodes": (_folder_of_too_few_barcodes, "the tables beside it name"),
    "peaks": (_folder_of_peaks, "gene activities first"),
    "cut short": (_folder_cut_short, "cannot be read"),
    "two genomes": (_h5_of_two_genomes, "several genomes"),
    "bounds outside the entries": (_h5_that_points_outside, "damaged"),
    "no cells at all": (_h5_of_something_else, "cannot be read"),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_name(cells, loaded, tmp_path, shape):
    write, reason = REFUSED[shape]
    path = write(cells, tmp_path)

    with pytest.raises(UserError, match=reason) as from_verb:
        scmmgpt.embed(path, model=loaded, progress=False)
    with pytest.raises(UserError, match=reason):
        loaded.processor.gene_tokenizer(path)

    assert path.name in str(from_verb.value)


def test_rows_of_a_10x_file_are_rows_of_its_matrix(cells, tmp_path):
    whole = read_cells(write_h5_of_version_3(cells, tmp_path))

    assert whole.X.dtype == np.float32
    assert (whole.X != cells.X).nnz == 0
    assert whole.var["feature_types"].tolist() == cells.var["feature_types"].tolist()
