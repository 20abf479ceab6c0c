"""Outputs in zarr open lazily: many files as one, of which only what is asked for is read."""

import anndata as ad
import numpy as np
import pytest
from tiny_models import tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt.storage import save_cells

pytest.importorskip("dask", reason='pip install "anndata[lazy]"')
pytest.importorskip("xarray", reason='pip install "anndata[lazy]"')
LABELS = ["T cell", "B cell", "monocyte"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    model = scmmgpt.load(write_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")
    for number in range(3):
        save_cells(tiny_cells(20 + number, seed=number), folder / f"part{number}.zarr")
        where = {"model": model, "output": folder / f"annotated{number}.zarr", "progress": False}
        scmmgpt.annotate(folder / f"part{number}.zarr", LABELS, **where)
    return sorted(folder.glob("annotated*.zarr"))


@pytest.mark.filterwarnings("ignore")
def test_several_outputs_open_as_one_without_reading_their_matrices(parts):
    atlas = ad.concat([ad.experimental.read_lazy(part) for part in parts])

    assert atlas.shape == (63, 100)
    assert hasattr(atlas.X, "compute")
    rows = np.r_[0:2, 60:63]
    expected = ad.concat([ad.read_zarr(part) for part in parts])[rows]
    found = atlas[rows].to_memory()
    assert found.obs["scmmgpt_cell_type"].tolist() == expected.obs["scmmgpt_cell_type"].tolist()
    assert (found.X != expected.X).nnz == 0
    b_cells = atlas[(atlas.obs["scmmgpt_cell_type"] == "B cell").to_numpy()].to_memory()
    assert set(b_cells.obs["scmmgpt_cell_type"]) <= {"B cell"}
