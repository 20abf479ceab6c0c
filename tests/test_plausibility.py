"""What is no cell gets no name: noise and counts under wrong names are unknown, empty droplets are warned of."""

import os
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

import scmmgpt
from scmmgpt.cell_variation import NOISE_DISPERSION, NOISE_SPREAD, UNTOLD, variation
from scmmgpt.hub_cards.handler import EndpointHandler
from scmmgpt.processing.calling_scmmgpt import TokenEvidence
from scmmgpt.processing.plausibility_scmmgpt import MIN_GENES, resembles_a_type, saturated
from scmmgpt.training.evaluation.out_of_distribution import (
    noise_of_the_mean,
    noise_over_all_genes,
    shuffled_gene_names,
    yeast,
    yeast_with_symbols,
)

REAL_CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"


@pytest.fixture(scope="module")
def model():
    return scmmgpt.load(device="cpu")


@pytest.fixture(scope="module")
def cells():
    return anndata.read_h5ad(REAL_CELLS)[:150].copy()


def changed(cells, change):
    return change(cells, np.random.default_rng(0))


def share_of_unknown(cells, model, **options):
    annotated = scmmgpt.annotate(cells, model=model, progress=False, **options)
    return (annotated.obs["scmmgpt_cell_type"] == "unknown").mean()


def test_real_cells_keep_their_names(cells, model):
    annotated = scmmgpt.annotate(cells, model=model, progress=False)

    assert annotated.uns["scmmgpt"]["annotate"]["settings"]["implausible_cells"] <= 0.02 * cells.n_obs
    assert (annotated.obs["scmmgpt_cell_type"] == "unknown").mean() < 0.1


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (shuffled_gene_names, ["cells are implausible", "under shuffled gene names"]),
        (noise_over_all_genes, ["cells are implausible", "empty droplets", "than random counts"]),
    ],
)
def test_noise_and_wrong_gene_names_are_unknown_and_warned_of(change, advice, cells, model):
    with pytest.warns(UserWarning, match="cells are implausible|empty droplets|All cells") as given:
        assert share_of_unknown(changed(cells, change), model) > 0.95

    assert len(given) == len(advice)
    assert all(words in str(warning.message) for words, warning in zip(advice, given, strict=True))


def test_whoever_asks_for_a_name_at_any_confidence_gets_one(cells, model):
    implausible, anything = (
        pytest.warns(UserWarning, match=said) for said in ("cells are implausible", "nearly anything")
    )
    with implausible, anything:
        assert share_of_unknown(changed(cells, shuffled_gene_names), model, min_confidence=0) == 0


def test_the_endpoint_knows_no_cell_too(cells, model):
    handler = EndpointHandler(str(model.directory), device="cpu")
    noise = changed(cells[:3], noise_over_all_genes)
    matrix = {"indptr": noise.X.indptr, "indices": noise.X.indices, "data": noise.X.data}
    csr = {"genes": noise.var_names.tolist(), **{name: part.tolist() for name, part in matrix.items()}}

    calls = handler({"inputs": {"task": "annotate", "cells": csr}})["calls"]

    assert [(call["cell_type"], call["confidence"]) for call in calls] == [("unknown", 0)] * 3


def test_droplets_that_hold_one_profile_are_unknown_and_warned_of_and_the_report_says_so(cells, model, tmp_path):
    droplets = changed(cells, noise_of_the_mean)
    droplets.obsm["X_umap"] = np.zeros((droplets.n_obs, 2))

    with pytest.warns(UserWarning, match="empty droplets|than random counts"):
        called = scmmgpt.annotate(droplets, model=model, report=tmp_path / "report.html", progress=False)

    assert (called.obs["scmmgpt_cell_type"] == "unknown").all()
    assert (called.obs["scmmgpt_candidates"] == "cell").all()
    assert "empty droplets" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("change", [yeast, yeast_with_symbols])
def test_another_kingdom_is_refused(change, cells, model):
    with pytest.raises(ValueError, match="baker's yeast"):
        scmmgpt.annotate(changed(cells, change), model=model, progress=False)


def test_counts_of_one_profile_have_the_dispersion_of_chance_and_real_ones_more(cells, model):
    tokenizer = model.processor.feature_extractor
    noise = tokenizer(changed(cells, noise_of_the_mean), return_tensors="np")

    assert variation(tokenizer, noise).dispersion == pytest.approx(1, abs=NOISE_DISPERSION - 1)
    assert variation(tokenizer, tokenizer(cells, return_tensors="np")).dispersion > 1.3
    assert variation(tokenizer, tokenizer(cells[:50], return_tensors="np")) == UNTOLD


def test_packed_and_padded_cells_vary_alike(cells, model):
    tokenizer = model.processor.feature_extractor
    (packed,) = tokenizer.iter_chunks(cells, cells.n_obs, packed=True)

    assert variation(tokenizer, packed) == variation(tokenizer, tokenizer(cells, return_tensors="np"))


def deep(cells):
    """The highest genes, as if each molecule had been read hundreds of times: no value says what one count is."""
    counts = cells.X.toarray()
    highest = np.argsort(-counts.sum(axis=0))[:300]
    own = cells[:, highest].copy()
    own.X = sparse.csr_matrix(counts[:, highest] * np.random.default_rng(0).lognormal(6, 0.1, own.shape))
    return own


def test_where_counts_cannot_be_told_noise_is_known_by_its_small_spread(cells, model):
    tokenizer = model.processor.feature_extractor
    real, noise = deep(cells), changed(deep(cells), noise_of_the_mean)

    of_real, of_noise = (variation(tokenizer, tokenizer(one, return_tensors="np")) for one in (real, noise))

    assert of_real.dispersion is of_noise.dispersion is None
    assert of_real.spread > 5 * NOISE_SPREAD > 5 * of_noise.spread
    with pytest.warns(UserWarning, match="empty droplets|than random counts"):
        called = scmmgpt.annotate(noise, model=model, progress=False)
    assert (called.obs["scmmgpt_cell_type"] == "unknown").all()


def test_padding_and_the_other_cells_do_not_change_whether_a_cell_is_plausible(cells, model):
    tokenizer = model.processor.feature_extractor
    both = anndata.concat([cells[:20], changed(cells[:20], shuffled_gene_names)], index_unique="-")
    together = tokenizer.looks_implausible(**tokenizer(both, return_tensors="np"))

    alone = [tokenizer.looks_implausible(**tokenizer(both[i], return_tensors="np"))[0] for i in range(both.n_obs)]

    assert together.tolist() == alone


def test_a_panel_of_few_genes_is_never_judged(cells, model):
    tokenizer = model.processor.feature_extractor
    panel = changed(cells, shuffled_gene_names)[:, :MIN_GENES].copy()

    assert not tokenizer.looks_implausible(**tokenizer(panel, return_tensors="np")).any()


def test_a_cell_whose_genes_are_as_high_as_some_type_says_resembles_it_and_others_do_not():
    generator = np.random.default_rng(0)
    differences = generator.normal(0, 0.3, (3_000, 40)).astype(np.float32)
    gene_ids = np.tile(np.arange(3_000), (3, 1))
    like_a_type = 1 + differences[:, 7] + generator.normal(0, 1, 3_000)
    values = np.stack([like_a_type, generator.permutation(like_a_type), np.ones(3_000)]).astype(np.float32)

    found = resembles_a_type(values, gene_ids, np.ones_like(gene_ids, bool), saturated(torch.from_numpy(differences)))

    assert found.tolist() == [True, False, False]


def test_one_marker_alone_is_no_resemblance():
    """Of hundreds of types one always has a large difference in the gene that a noisy cell happens to show."""
    differences = np.random.default_rng(0).normal(0, 0.5, (1_000, 40)).astype(np.float32)
    differences[5, 7] = 20.0
    values = np.ones((1, 1_000), np.float32)
    values[0, 5] = 2.0

    found = resembles_a_type(
        values, np.arange(1_000)[None], np.ones((1, 1_000), bool), saturated(torch.from_numpy(differences))
    )

    assert not found.any()


def test_padding_and_the_other_cells_do_not_change_what_a_cell_resembles(cells, model):
    tokenizer, profiles = model.processor.feature_extractor, model.annotator.type_profiles
    evidence = TokenEvidence(tokenizer, profiles)
    both = anndata.concat([cells[:20], changed(cells[:20], shuffled_gene_names)], index_unique="-")
    together = evidence(tokenizer(both, return_tensors="np"))["is_implausible"]

    alone = [evidence(tokenizer(both[i], return_tensors="np"))["is_implausible"][0] for i in range(both.n_obs)]

    assert together.tolist() == alone


@pytest.mark.skipif("SCMMGPT_DATA" not in os.environ, reason="SCMMGPT_DATA names no cells")
@pytest.mark.parametrize("organ", ["brain (cortex, hippocampus, striatum, cerebellum)", "kidney"])
def test_cells_of_a_full_length_protocol_keep_their_names(organ, model):
    path = Path(os.environ["SCMMGPT_DATA"]) / "../dev2/real/mouse_tabula_muris_facs_18organs.h5ad"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside SCMMGPT_DATA")
    atlas = anndata.read_h5ad(path)
    tokens = model.processor.feature_extractor(atlas[atlas.obs.tissue == organ], return_tensors="np")

    lost = TokenEvidence(model.processor.feature_extractor, model.annotator.type_profiles)(tokens)["is_implausible"]

    assert lost.mean() <= 0.02
