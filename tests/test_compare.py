"""What a perturbation does to each type: energy distance, genes, words, and cells that look perturbed."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from scmmgpt.comparison import compare
from scmmgpt.errors import UserError
from scmmgpt.loading import load
from scmmgpt.response import energy_test, false_discovery_rates, gene_changes, sample

DATA = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
RAISED = ["ISG15", "IFI6", "MX1", "LY6E", "IFITM1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture
def treated() -> anndata.AnnData:
    """Real blood cells of two types; half of them treated, which raises five genes in one of them."""
    cells = anndata.read_h5ad(DATA)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    types = cells.obs["cell_type"].value_counts().index[:2]
    cells = cells[cells.obs["cell_type"].isin(types)].copy()
    cells.obs["stim"] = np.where(np.arange(cells.n_obs) % 2, "treated", "control")
    cells.obs["donor"] = [f"d{number // 2 % 3}" for number in range(cells.n_obs)]
    responds = ((cells.obs["stim"] == "treated") & (cells.obs["cell_type"] == types[0])).to_numpy()
    counts = cells.X.toarray()
    for gene in RAISED:
        counts[responds, list(cells.var_names).index(gene)] += 100
    cells.X = sparse.csr_matrix(counts)
    cells.uns["responding"] = types[0]
    return cells


# ---- numbers


def test_the_energy_distance_of_one_distribution_is_about_zero_and_of_two_is_not():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(60, 4)), random.normal(1, size=(60, 4))
    side = np.repeat([True, False], 60)

    same = energy_test(np.concatenate([one, random.normal(size=(60, 4))]), side, num_permutations=199)
    different = energy_test(np.concatenate([one, other]), side, num_permutations=199)

    assert abs(same.distance) < 0.1
    assert same.p_value > 0.05
    assert different.distance > 0.3
    assert different.p_value == 1 / 200


def test_the_energy_distance_is_that_of_its_definition():
    vectors = np.array([[0.0], [1.0], [5.0], [7.0]])
    side = np.array([True, True, False, False])

    found = energy_test(vectors, side, num_permutations=3)

    assert found.distance == pytest.approx(2 * (5 + 7 + 4 + 6) / 4 - 1 - 2)


def test_a_difference_between_donors_is_none_between_treatments():
    random = np.random.default_rng(0)
    donor = np.repeat([0, 1], 50)
    side = np.concatenate([np.arange(50) < 40, np.arange(50) < 10])
    vectors = random.normal(size=(100, 3)) + 3 * donor[:, None]

    assert energy_test(vectors, side, num_permutations=199).p_value < 0.01
    assert energy_test(vectors, side, donor, num_permutations=199).p_value > 0.05


def test_a_sample_holds_at_most_as_many_of_each_side():
    side = np.arange(100) < 10

    chosen = sample(side, most=20)

    assert side[chosen].sum() == 10
    assert (~side[chosen]).sum() == 20


def test_rates_follow_benjamini_and_hochberg():
    np.testing.assert_allclose(false_discovery_rates(np.array([0.01, 0.04, 0.03])), [0.03, 0.04, 0.04])
    assert len(false_discovery_rates(np.empty(0))) == 0


def test_genes_are_paired_by_donors_where_three_have_both():
    random = np.random.default_rng(0)
    donors = np.tile(np.repeat(["a", "b", "c", "d"], 20), 2)
    side = np.repeat([True, False], 80)
    level = {"a": 1.0, "b": 3.0, "c": 6.0, "d": 9.0}
    base = np.array([level[name] for name in donors])
    counts = np.stack([random.poisson(base * np.where(side, 2, 1)), random.poisson(base)], axis=1)

    found = gene_changes(sparse.csr_array(np.log1p(counts)), side, donors)

    assert found.is_changed.tolist() == [True, False]
    assert found.log2_fold_change[0] == pytest.approx(1, abs=0.3)


# ---- cells


def test_the_type_that_responds_comes_first_with_its_genes(treated, model):
    found = compare(treated, groupby="stim", control="control", model=model, progress=False)

    first, second = found.table.iloc[0], found.table.iloc[1]
    assert first.cell_type == treated.uns["responding"]
    assert first.p_value < 0.01
    assert set(first.up.split(", ")) == set(RAISED)
    assert second.p_value > 0.01
    assert f"{first.cell_type} responds: energy distance" in found.text
    assert f"{second.cell_type} does not differ as a whole" in found.text


def test_the_order_of_cells_changes_nothing(treated, model, monkeypatch):
    monkeypatch.setattr("scmmgpt.comparison.MOST_CELLS", 12)  # of more cells some are chosen
    once = compare(treated, groupby="stim", control="control", model=model, progress=False).table
    again = compare(treated[::-1].copy(), groupby="stim", control="control", model=model, progress=False).table

    pd.testing.assert_frame_equal(once, again)


def test_treatments_may_be_numbers(treated, model):
    treated.obs["dose"] = (treated.obs["stim"] == "treated").astype(int)

    found = compare(treated, groupby="dose", control=0, groups=[1], model=model, progress=False)

    assert found.table.iloc[0].cell_type == treated.uns["responding"]


def test_search_finds_cells_that_look_perturbed(treated, model):
    half = np.arange(treated.n_obs) // 2 % 2 == 0
    found = compare(treated[half].copy(), groupby="stim", control="control", model=model, progress=False)

    hits = found.search(treated[~half].copy(), top=5)

    assert (hits.stim == "treated").mean() >= 0.8
    assert (hits.cell_type == treated.uns["responding"]).mean() >= 0.8
    assert hits.score.is_monotonic_decreasing


def test_cells_without_types_are_annotated_first(treated, model):
    del treated.obs["cell_type"]

    with pytest.warns(UserWarning, match="annotated first"):
        found = compare(treated, groupby="stim", control="control", model=model, progress=False)

    assert len(found.table) >= 1


# ---- input that cannot be compared


def test_a_control_that_does_not_exist_is_refused_with_the_nearest(treated, model):
    with pytest.raises(UserError, match="obs\\['stim'\\] has no 'contrl'; did you mean 'control'"):
        compare(treated, groupby="stim", control="contrl", model=model)


def test_a_column_that_does_not_exist_is_refused(treated, model):
    with pytest.raises(UserError, match="obs has no column 'stimulus'"):
        compare(treated, groupby="stimulus", control="control", model=model)


def test_one_perturbed_cell_is_listed_and_not_tested(treated, model):
    name = treated.obs_names[(treated.obs.stim == "control").to_numpy()][0]
    treated.obs["stim"] = treated.obs["stim"].astype(str)
    treated.obs.loc[name, "stim"] = "rare"

    found = compare(treated, groupby="stim", control="control", model=model, progress=False)

    row = found.table[found.table.group == "rare"].iloc[0]
    assert row.cells == 1
    assert np.isnan(row.p_value)
    assert "Too few cells to test" in found.text


def test_controls_alone_are_refused(treated, model):
    with pytest.raises(UserError, match="nothing but the control"):
        compare(treated[treated.obs.stim == "control"].copy(), groupby="stim", control="control", model=model)


def test_donors_of_one_treatment_each_are_refused(treated, model):
    treated.obs["donor"] = treated.obs["stim"] + treated.obs["donor"]

    with pytest.raises(UserError, match="No value of obs\\['donor'\\] has both 'control' and 'treated' cells"):
        compare(treated, groupby="stim", control="control", donor_key="donor", model=model)


def test_which_of_several_groups_to_search_must_be_said(treated, model):
    treated.obs["stim"] = ["abc"[number % 3] for number in range(treated.n_obs)]
    found = compare(treated, groupby="stim", control="a", model=model, progress=False)

    with pytest.raises(UserError, match="say which one to look for, of b, c"):
        found.search(treated)


# ---- the command


def test_the_command_writes_tables_and_json(treated, tmp_path):
    from scmmgpt.cli import app

    treated.write_h5ad(tmp_path / "cells.h5ad")
    words = ["compare", str(tmp_path / "cells.h5ad"), "--groupby", "stim", "--control", "control", "--json"]
    words += ["--table", str(tmp_path / "t.csv"), "--genes", str(tmp_path / "g.csv")]

    result = CliRunner().invoke(app, words)

    content = json.loads(result.stdout)
    assert content["responses"][0]["cell_type"] == treated.uns["responding"]
    assert pd.read_csv(tmp_path / "t.csv").cell_type[0] == treated.uns["responding"]
    assert set(RAISED) <= set(pd.read_csv(tmp_path / "g.csv").query("fdr < 0.05").gene)
