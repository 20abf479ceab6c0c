"""`harmonise`: the same cells get the same name in every file and every sample."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.one_vocabulary import vocabulary

CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"


@pytest.fixture(scope="module")
def model():
    return scmmgpt.load()


@pytest.fixture
def halves(tmp_path):
    cells = anndata.read_h5ad(CELLS)
    for number, name in enumerate("ab"):
        cells[number::2].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    return [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]


def test_files_get_names_of_one_vocabulary(halves, model, tmp_path):
    results = scmmgpt.harmonise(halves, output=tmp_path / "out", model=model, min_confidence=0, progress=False)

    names = set(results[0].uns["scmmgpt"]["harmonise"]["names"])
    for path, result in zip(halves, results, strict=True):
        written = anndata.read_h5ad(tmp_path / "out" / path.name)
        assert set(written.obs["scmmgpt_cell_type"]) <= names
        assert (written.obs["scmmgpt_cell_type"] == result.obs["scmmgpt_cell_type"]).all()
        assert list(written.obs_names) == list(anndata.read_h5ad(path).obs_names)


def test_samples_and_tissues_of_one_file_come_from_columns(model):
    cells = anndata.read_h5ad(CELLS)
    cells.obs["donor"] = ["one", "two", "two"] * 100
    cells.obs["organ"] = "blood"

    (result,) = scmmgpt.harmonise([cells], sample_key="donor", tissue_key="organ", model=model, progress=False)

    assert result.uns["scmmgpt"]["harmonise"]["samples"] == 2
    assert result.obs["scmmgpt_confidence"].between(0, 1).all()
    assert "scmmgpt_cell_type" not in cells.obs


def test_samples_with_antibodies_and_without_them_stand_in_one_table(model):
    cells = anndata.read_h5ad(CELLS)
    cells.obs["donor"] = ["one"] * 250 + ["two"] * 50  # too few to show the two levels of an antibody
    cells.obs["scmmgpt_own_number"] = np.arange(300)
    is_b = (cells.obs["cell_type"] == "B cell").to_numpy()
    cells.obsm["protein_expression"] = pd.DataFrame({"CD19": np.where(is_b, 300, 3)}, cells.obs_names)

    (result,) = scmmgpt.harmonise([cells], sample_key="donor", model=model, progress=False)

    conflict = result.obs["scmmgpt_protein_conflict"]
    assert conflict.dtype == np.float32
    assert conflict[:250].max() > 0
    assert not conflict[250:].any()
    assert result.obs["scmmgpt_own_number"].tolist() == list(range(300))


def test_names_of_a_few_stray_cells_are_no_vocabulary():
    assert vocabulary([["B cell"] * 50 + ["astrocyte"] * 2, ["T cell"] * 20 + ["unknown"] * 30]) == [
        "B cell",
        "T cell",
    ]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"sample_key": "nowhere"}, "no column 'nowhere'"),
        ({"tissue_key": "nowhere"}, "no column 'nowhere'"),
        ({"sampel_key": "donor"}, "did you mean 'sample_key'"),
        ({"output": "out"}, "must then be paths"),
    ],
)
def test_what_cannot_be_is_refused(asked, reason, model):
    with pytest.raises(UserError, match=reason):
        scmmgpt.harmonise([anndata.read_h5ad(CELLS)], model=model, progress=False, **asked)


def test_nothing_is_refused(model):
    with pytest.raises(UserError, match="no studies"):
        scmmgpt.harmonise([], model=model)
