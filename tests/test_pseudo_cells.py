"""`generate_cells` with the embedded model: cells of the type, the platform and the place that were asked for."""

from pathlib import Path

import numpy as np
import pytest
from anndata import read_h5ad

import scmmgpt
from scmmgpt.errors import UserError

CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
MARKERS = {
    "B cell": ("MS4A1", "CD79A"),
    "CD14-positive monocyte": ("LYZ", "S100A8"),
    "natural killer cell": ("NKG7", "GNLY"),
}


def made(text, number=30, **wish):
    return scmmgpt.generate_cells(text, number, seed=0, progress=False, **wish)


def shares(cells, genes):
    """Mean share of some genes in the cells, per 10,000."""
    counts = cells[:, list(genes)].X.sum(1) / cells.X.sum(1)
    return 1e4 * float(np.asarray(counts).mean())


@pytest.fixture(scope="module")
def blood():
    return {name: made(f"a {name} from human blood") for name in MARKERS}


@pytest.mark.parametrize("name", MARKERS)
def test_a_type_shows_its_own_markers(blood, name):
    own = shares(blood[name], MARKERS[name])

    others = [shares(cells, MARKERS[name]) for other, cells in blood.items() if other != name]
    assert own > 5 * max(others)


def test_a_marker_of_one_type_alone_is_not_lost(blood):
    alpha = made("a pancreatic A cell from human pancreas")

    assert shares(alpha, ["GCG"]) > 30
    assert shares(alpha, ["GCG"]) > 20 * shares(blood["B cell"], ["GCG"])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("text", "genes"),
    [
        ("a pancreatic A cell from human heart", ["GCG"]),
        ("a platelet of the mouse stomach", ["PF4", "PPBP"]),
        ("an oligodendrocyte from human blood", ["PLP1", "MBP"]),
        ("a B cell from mouse tongue", ["CD79A", "CD79B"]),
    ],
)
def test_a_type_stays_what_it_is_in_a_place_where_none_was_seen(blood, text, genes):
    elsewhere = made(text)

    assert any("was seen in training" in note for note in elsewhere.uns["scmmgpt"]["generate"]["notes"])
    assert shares(elsewhere, genes) > 5
    assert shares(elsewhere, genes) > 5 * shares(blood["CD14-positive monocyte"], genes)


def test_words_of_a_person_name_the_type_too(blood):
    cells = made("CD14+ monocytes, human blood")

    assert shares(cells, MARKERS["CD14-positive monocyte"]) > 5 * shares(
        blood["B cell"], MARKERS["CD14-positive monocyte"]
    )


def test_of_two_types_one_is_made_and_the_cells_keep_that_it_was_said():
    with pytest.warns(UserWarning, match="B cell alone is made"):
        cells = made("B cell, monocyte", 2)

    assert "B cell alone is made" in str(cells.uns["scmmgpt"]["generate"]["notes"])


def test_a_platform_has_a_depth_and_genes_of_its_own():
    smart, droplets = (made("a B cell from mouse spleen", platform=name) for name in ("Smart-seq2", "10x"))

    depth_of_reads, depth_of_molecules = (np.median(np.asarray(cells.X.sum(1))) for cells in (smart, droplets))
    assert depth_of_reads > 20 * depth_of_molecules
    with pytest.raises(UserError, match="platform must be one of 10x, Smart-seq2"):
        made("a B cell", platform="Smartseq")


def test_a_platform_may_be_spelt_in_capitals_or_without():
    capitals, as_it_is = (made("a B cell", number=2, platform=name) for name in ("SMART-SEQ2", "Smart-seq2"))

    assert (capitals.X != as_it_is.X).nnz == 0
    assert capitals.uns["scmmgpt"]["generate"]["settings"]["platform"] == "Smart-seq2"


def test_cells_lie_between_given_cells_and_a_text(blood):
    start = read_h5ad(CELLS)
    start = start[(start.obs.cell_type == "B cell").to_numpy()][:20]
    towards = "a CD14-positive monocyte from human blood"

    near, far = (made(towards, cell=start, strength=strength, depth=3000) for strength in (0.1, 0.9))

    assert shares(near, MARKERS["B cell"]) > 2 * shares(far, MARKERS["B cell"])
    assert shares(far, ("LYZ",)) > 2 * shares(near, ("LYZ",))
    assert any("hypothesis" in note for note in near.uns["scmmgpt"]["generate"]["notes"])


def test_what_was_never_seen_is_said():
    with pytest.warns(UserWarning, match="from blood was seen in training: such cells are extrapolated"):
        made("an astrocyte from blood", number=2)


def test_the_reference_is_never_written_over(tmp_path):
    reference = tmp_path / "reference.h5ad"
    reference.write_bytes(CELLS.read_bytes())

    with pytest.raises(UserError, match="The output is the input"):
        made("a B cell", number=2, reference=reference, output=reference)

    assert reference.read_bytes() == CELLS.read_bytes()


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"depth": float("inf")}, "depth must lie between 1 and"),
        ({"depth": 1e12}, "depth must lie between 1 and"),
        ({"guidance_scale": float("nan")}, "guidance_scale must lie between"),
        ({"cell": "cells.h5ad"}, "cell must be an AnnData"),
        ({"cell": read_h5ad(CELLS)[:0]}, "no cells to start from"),
        ({"number": 1.5}, "whole number"),
    ],
)
def test_wishes_that_nobody_can_grant_are_refused_in_words(wish, reason):
    with pytest.raises(UserError, match=reason):
        made("a B cell", **{"number": 2, **wish})


@pytest.mark.parametrize(
    ("text", "said"),
    [("a B cell that is a neuron", "names neuron beside B cell"), ("a human mouse B cell", "human and mouse")],
)
def test_what_contradicts_itself_is_said(text, said):
    with pytest.warns(UserWarning, match=said):
        made(text, number=2)
