"""Where cells live: neighbours, niches, evidence over space, and coordinates that cannot be used as they are."""

import json
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem
from scipy import sparse
from typer.testing import CliRunner

import scmmgpt
from scmmgpt.cells import open_cells
from scmmgpt.errors import UserError
from scmmgpt.index import build_index
from scmmgpt.loading import load
from scmmgpt.niche_finding import NO_NICHE, niches
from scmmgpt.processing.calling_scmmgpt import CellEvidence
from scmmgpt.spatial import likeness, nearest_in_space, on_a_grid, over_space, read_space, split_query, surroundings
from scmmgpt.spatialdata_tables import table_of

DATA = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture
def tissue() -> anndata.AnnData:
    """Real blood cells laid out by type: each of four types has a corner of its own."""
    cells = anndata.read_h5ad(DATA)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    names = cells.obs["cell_type"].value_counts().index[:4]
    cells = cells[cells.obs["cell_type"].isin(names)].copy()
    corner = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])[
        [list(names).index(name) for name in cells.obs["cell_type"]]
    ]
    cells.obsm["spatial"] = corner + np.random.default_rng(0).uniform(0, 6, size=(cells.n_obs, 2))
    return cells


def evidence(embeds):
    return CellEvidence(embeds, np.zeros(len(embeds), bool), np.zeros(len(embeds), bool))


# ---- neighbours


def test_a_cell_is_no_neighbour_of_itself_even_where_cells_share_a_place():
    graph = nearest_in_space(np.array([[0.0, 0], [0, 0], [0, 0], [5, 5]]), np.zeros(4), 2)

    assert not graph.diagonal().any()
    assert (np.diff(graph.indptr) == 2).all()


def test_sections_have_no_neighbours_in_each_other(tissue):
    tissue.obs["slide"] = np.where(np.arange(tissue.n_obs) % 2, "a", "b")

    space = read_space(open_cells(tissue), "slide")

    rows, columns = space.graph.nonzero()
    assert (tissue.obs["slide"].to_numpy()[rows] == tissue.obs["slide"].to_numpy()[columns]).all()


def test_the_weights_of_neighbours_sum_to_one(tissue):
    np.testing.assert_allclose(read_space(open_cells(tissue)).graph.sum(axis=1), 1)


def test_a_graph_that_squidpy_wrote_is_used(tissue, tmp_path):
    chain = sparse.diags_array([np.ones(tissue.n_obs - 1)], offsets=[1], shape=(tissue.n_obs, tissue.n_obs))
    tissue.obsp["spatial_connectivities"] = sparse.csr_matrix(chain + chain.T)
    tissue.write_h5ad(tmp_path / "tissue.h5ad")

    for cells in (tissue, tmp_path / "tissue.h5ad"):
        assert read_space(open_cells(cells)).graph[[1]].nonzero()[1].tolist() in ([0, 2], [2, 0])


def test_sections_in_one_file_are_noticed_where_nobody_names_them(tissue):
    tissue.obs["section"] = np.where(np.arange(tissue.n_obs) % 2, "a", "b")

    assert "library_key" in read_space(open_cells(tissue)).notes[0]
    assert read_space(open_cells(tissue), "section").notes == []


def test_missing_coordinates_leave_a_cell_without_neighbours(tissue):
    tissue.obsm["spatial"][3] = np.nan

    space = read_space(open_cells(tissue))

    assert "1 of" in space.notes[0]
    assert space.graph[[3]].nnz == space.graph[:, [3]].nnz == 0


def test_no_coordinates_are_refused(tissue):
    del tissue.obsm["spatial"]
    with pytest.raises(UserError, match=r"obsm\['spatial'\] is missing"):
        read_space(open_cells(tissue))

    tissue.obsm["spatial"] = np.full((tissue.n_obs, 2), np.nan)
    with pytest.raises(UserError, match="all are missing"):
        read_space(open_cells(tissue))


def test_spots_on_a_grid_are_told_from_cells(tissue):
    row, column = np.divmod(np.arange(400), 20)
    spots = np.stack([column * 2 + row % 2, row * np.sqrt(3)], axis=1)

    assert on_a_grid(spots, np.zeros(400))
    assert not on_a_grid(np.random.default_rng(0).uniform(size=(400, 2)), np.zeros(400))


# ---- evidence


def test_evidence_is_averaged_with_neighbours_that_look_alike(tissue):
    random = np.random.default_rng(0)
    embeds = np.eye(4)[tissue.obs["cell_type"].astype("category").cat.codes] + random.normal(0, 0.3, (tissue.n_obs, 4))
    embeds = (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float32)
    space = read_space(open_cells(tissue))

    smoothed, found = over_space(evidence(embeds), space)

    truth = tissue.obs["cell_type"].astype("category").cat.codes.to_numpy()
    assert found > 0.1
    assert (smoothed.embeds.argmax(1) == truth).mean() > (embeds.argmax(1) == truth).mean()


def test_places_that_say_nothing_change_nothing(tissue):
    embeds = np.random.default_rng(0).normal(size=(tissue.n_obs, 8)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    cells = evidence(embeds)

    smoothed, found = over_space(cells, read_space(open_cells(tissue)))

    assert found < 0.02
    assert smoothed is cells


def test_likeness_of_no_neighbours_is_zero():
    assert likeness(np.eye(3), sparse.csr_array((3, 3))) == 0


def test_spatial_is_off_and_said_where_the_study_decides_together(tissue, model):
    with pytest.warns(UserWarning, match="spatial=True changes nothing: the study decides together"):
        on = scmmgpt.annotate(tissue, model=model, spatial=True, progress=False)
    off = scmmgpt.annotate(tissue, model=model, progress=False)

    assert (on.obs["scmmgpt_cell_type"] == off.obs["scmmgpt_cell_type"]).all()


def test_spatial_helps_labels_of_ones_own(tissue, model):
    names = sorted(tissue.obs["cell_type"].unique())
    right = {
        spatial: (
            scmmgpt.annotate(tissue, names, model=model, spatial=spatial, min_confidence=0, progress=False)
            .obs["scmmgpt_cell_type"]
            .astype(str)
            == tissue.obs["cell_type"]
        ).mean()
        for spatial in (False, True)
    }

    assert right[True] > right[False] + 0.05


# ---- niches


def test_niches_are_where_the_types_are(tissue, model):
    found = niches(tissue, num_niches=4, num_neighbours=6, model=model, progress=False)

    own = found.obs["scmmgpt_niche"].astype(str).str.split(": ").str[1]
    first = own.str.split(" and ").str[0]
    assert (first == found.obs["cell_type"]).mean() > 0.9
    assert found.obsm["X_scmmgpt_niche"].shape == (tissue.n_obs, 2 * 256 + 4)
    composition = found.uns["scmmgpt"]["niches"]["composition"]
    assert composition["cells"].sum() == tissue.n_obs


def test_the_order_of_cells_does_not_change_their_niches(tissue, model):
    order = np.random.default_rng(0).permutation(tissue.n_obs)

    one = niches(tissue, num_niches=4, model=model, progress=False).obs["scmmgpt_niche"].astype(str)
    other = niches(tissue[order].copy(), num_niches=4, model=model, progress=False).obs["scmmgpt_niche"].astype(str)

    assert (one[other.index] == other).all()


def test_a_cell_without_a_place_has_no_niche(tissue, model):
    tissue.obsm["spatial"][3] = np.nan

    found = niches(tissue, model=model, progress=False)

    assert found.obs["scmmgpt_niche"].iloc[3] == NO_NICHE
    assert np.isnan(found.obsm["X_scmmgpt_niche"][3]).all()
    assert np.isfinite(np.delete(found.obsm["X_scmmgpt_niche"], 3, axis=0)).all()


def test_types_that_are_all_unknown_are_no_types(tissue, model):
    tissue.obs["cell_type"] = "unknown"

    with pytest.warns(UserWarning, match="annotated first"):
        found = niches(tissue, num_niches=3, model=model, progress=False)

    assert found.obs["scmmgpt_cell_type"].nunique() > 1
    assert found.obsm["X_scmmgpt_niche"].shape[1] > 2 * 256 + 1


def test_surroundings_are_the_nearest_cells(tissue):
    tissue.obsm["spatial"] = np.stack([np.arange(tissue.n_obs), np.zeros(tissue.n_obs)], axis=1)

    names = surroundings(tissue, tissue.obs_names[5], 2)

    assert names[0] == tissue.obs_names[5]
    assert set(names[1:]) == {tissue.obs_names[4], tissue.obs_names[6]}
    with pytest.raises(UserError, match="There is no cell 'nobody'"):
        surroundings(tissue, "nobody")


def test_the_command_says_which_cells_surround_one(tissue, tmp_path):
    from scmmgpt.cli import app

    tissue.write_h5ad(tmp_path / "tissue.h5ad")
    words = ["niches", str(tmp_path / "tissue.h5ad"), "--num-niches", "4", "--around", tissue.obs_names[0], "--json"]

    result = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "niches.html")])

    content = json.loads(result.stdout)
    assert len(content["around"]) == 7
    assert sum(row["cells"] for row in content["niches"]) == tissue.n_obs
    assert "7 nearest cells are" in content["text"]
    page = (tmp_path / "niches.html").read_text()
    assert "Map of the tissue, by niche" in page
    assert "http" not in page.replace("http-equiv", "")


# ---- search, report, SpatialData


@pytest.mark.parametrize("word", ["beside", "next to", "surrounded by", "near"])
def test_a_query_may_name_the_neighbours(word):
    assert split_query(f"T cells {word} tumour cells") == ("T cells", "tumour cells")


def test_search_finds_cells_beside_others_in_a_file_and_in_an_index(tissue, model, tmp_path):
    names = tissue.obs["cell_type"].unique()
    is_first = (tissue.obs["cell_type"] == names[0]).to_numpy()
    tissue.obsm["spatial"][is_first] += 100  # away from all others ...
    friends = np.flatnonzero(tissue.obs["cell_type"] == names[1])[:5]
    chosen = np.flatnonzero(is_first)[:5]
    tissue.obsm["spatial"][chosen] = tissue.obsm["spatial"][friends] + 0.01  # ... but for five

    query = f"{names[0]} beside {names[1]}"
    hits = scmmgpt.search(tissue, query, top=5, model=model, progress=False)

    assert len(set(hits.index) & set(tissue.obs_names[chosen])) >= 3
    build_index(tissue, tmp_path / "index", model=model, progress=False)
    assert scmmgpt.search(tmp_path / "index", query, top=5, model=model).score.to_dict() == hits.score.to_dict()


def test_without_coordinates_a_query_with_neighbours_is_one_text_and_that_is_said(tissue, model):
    del tissue.obsm["spatial"]

    with pytest.warns(UserWarning, match="no coordinates .*'B cells beside T cells' is looked for as a whole"):
        scmmgpt.search(tissue, "B cells beside T cells", top=5, model=model, progress=False)


def test_coordinates_may_be_a_table(tissue, tmp_path):
    expected = read_space(open_cells(tissue))
    tissue.obsm["spatial"] = pd.DataFrame(tissue.obsm["spatial"], tissue.obs_names, ["x", "y"])
    tissue.write_h5ad(tmp_path / "tissue.h5ad")

    for cells in (tissue, tmp_path / "tissue.h5ad"):
        assert (read_space(open_cells(cells)).graph != expected.graph).nnz == 0


def test_the_report_has_a_map_of_the_tissue(tissue, model, tmp_path):
    tissue.obsm["X_umap"] = np.random.default_rng(0).normal(size=(tissue.n_obs, 2))

    scmmgpt.annotate(tissue, model=model, report=tmp_path / "report.html", progress=False)

    assert "Map of the tissue, by label" in (tmp_path / "report.html").read_text()


def test_spatialdata_stores_are_read_by_their_table(tissue, model, tmp_path):
    import zarr

    with anndata.settings.override(auto_shard_zarr_v3=False):
        group = zarr.open_group(tmp_path / "tissue.zarr", mode="w", zarr_format=2)
        write_elem(group.create_group("tables"), "table", tissue)

    found = niches(tmp_path / "tissue.zarr", num_niches=4, model=model, progress=False)
    as_object = niches(SimpleNamespace(tables={"table": tissue}, shapes={}), num_niches=4, model=model, progress=False)

    assert (found.obs["scmmgpt_niche"].astype(str) == as_object.obs["scmmgpt_niche"].astype(str)).all()
    assert "scmmgpt_niche" not in tissue.obs


def test_which_of_several_tables_must_be_said():
    with pytest.raises(UserError, match="2 tables .*cells, nuclei"):
        table_of(SimpleNamespace(tables={"nuclei": 1, "cells": 2}, shapes={}))
