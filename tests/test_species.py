"""Cells of other animals keep their names where orthologs carry them, and lose confidence where they do not."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import scmmgpt
from scmmgpt.input_warnings import input_warnings, organism_warnings
from scmmgpt.loading import load
from scmmgpt.processing.species_scmmgpt import MILLION_YEARS, closeness, reach, recognise_species, trust
from scmmgpt.training.evaluation.renamed_species import renamed

DATA = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
LABELS = ["B cell", "monocyte", "natural killer cell", "CD4-positive, alpha-beta T cell"]


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def names(model):
    return model.processor.gene_tokenizer.gene_names


@pytest.fixture(scope="module")
def cells():
    return anndata.read_h5ad(DATA)[::3].copy()


def called(cells, model, **how):
    found = scmmgpt.annotate(cells, LABELS, model=model, progress=False, **how)
    return found.obs["scmmgpt_cell_type"].astype(str).to_numpy(), found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("species", ["mouse", "pig", "chicken", "zebrafish"])
def test_human_cells_under_the_names_of_an_animal_keep_their_own(cells, model, names, species):
    human, _ = called(cells, model, min_confidence=0)

    other, found = called(renamed(cells, names, species), model, min_confidence=0)

    genes = found.uns["scmmgpt"]["genes"]
    assert genes["species"] == species
    assert genes["reach"] == reach(genes["share_of_counts"], species)
    assert (other == human).mean() > 0.85


@pytest.mark.filterwarnings("ignore:Only .* of the counts:UserWarning")
def test_a_species_out_of_reach_has_no_names_and_the_reason(cells, model, names):
    worm = renamed(cells, names, "roundworm")
    lost = anndata.AnnData(np.full((worm.n_obs, 1), round(worm.X.sum() / worm.n_obs), np.float32), obs=worm.obs)
    lost.var_names = ["lost-too"]

    with pytest.warns(UserWarning, match="686 million years from human, .* every cell is called unknown"):
        found, result = called(anndata.concat([worm, lost], axis=1, merge="first"), model)

    assert (found == "unknown").all()
    assert (result.obs["scmmgpt_confidence"] == 0).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_confidence_is_lowered_by_the_reach(cells, model, names):
    fish = renamed(cells, names, "zebrafish")

    _, lowered = called(fish, model, min_confidence=0)

    genes = lowered.uns["scmmgpt"]["genes"]
    assert lowered.obs["scmmgpt_confidence"].max() <= trust(float(genes["reach"])) + 1e-6
    assert "confidences are multiplied by" in " ".join(input_warnings(genes))


def test_reach_falls_with_distance_and_with_lost_counts():
    by_distance = [closeness(species) for species in sorted(MILLION_YEARS, key=MILLION_YEARS.__getitem__)]

    assert by_distance == sorted(by_distance, reverse=True)
    assert reach(0.5, "mouse") < reach(0.9, "mouse") < reach(0.9, "human")
    assert trust(0.7) == 1 > trust(0.4) > trust(0.3)


def test_human_and_mouse_studies_keep_their_confidences():
    assert input_warnings({"species": "mouse", "share_of_counts": 0.76, "reach": 0.68, "matrix_state": "counts"}) == []


def test_names_of_a_mouse_in_capitals_are_said(cells, model):
    number = cells.n_vars // 10
    names = [*(f"{gene:07}C13RIK" for gene in range(number)), *cells.var_names[number:]]
    tokenizer = model.processor.gene_tokenizer

    tokenizer((cells.X, names))

    assert tokenizer.account["species"] == "human"
    assert f"{number} gene names are a mouse's in capitals" in " ".join(input_warnings(tokenizer.account))


def test_several_species_in_obs_are_said():
    obs = pd.DataFrame({"organism": ["Homo sapiens", "Mus musculus", None]})

    assert "names several species (Homo sapiens, Mus musculus)" in organism_warnings(obs)[0]
    assert organism_warnings(obs[:1]) == organism_warnings(obs[[]]) == []


def test_shared_symbols_and_mixed_files_are_said():
    symbols = {"mouse": {"Cd3d", "Cd4", "Lyz2"}, "rat": {"Cd3d", "Cd4", "RT1-Da"}}

    shared = recognise_species([["Cd3d", "Cd4", "Lyz2"]], symbols)
    mixed = recognise_species([["ENSG00000000003", "ENSG00000000005", "ENSMUSG00000000001"]], symbols)

    assert shared.species == "mouse"
    assert shared.others == []
    assert mixed.species == "human"
    assert mixed.others == ["mouse"]
    account = {"species": "human", "several_species": {"human": 2, "mouse": 1}, "matrix_state": "counts"}
    assert "genes of several species: human (2 genes), mouse (1 genes)" in input_warnings(account)[0]
