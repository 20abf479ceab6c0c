"""Pairs of type and tissue are taken out of training whole, and made cells are judged by both means."""

import json

import numpy as np
import pandas as pd
import pytest
from tiny_run import build_tiny_corpus, write_stage_2_recipe

pytest.importorskip("trl", reason="stage 2 trains with TRL and PEFT: pip install 'scmmgpt[train]'")

from scmmgpt.training import unseen_pairs
from scmmgpt.training.corpus.reading import Selection
from scmmgpt.training.unseen_pairs import Pair, PartOfCorpus, choose_pairs, left_out_rows, summary


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_tiny_corpus(tmp_path_factory.mktemp("pairs"))


def test_one_tissue_is_chosen_of_each_type_that_several_hold():
    tissues = ["lung", "liver", "blood", "skin", "spleen"]
    kinds = pd.DataFrame(
        [("B cell", tissue, "human") for tissue in tissues for _ in range(30)] + [("T cell", "blood", "human")] * 90,
        columns=["cell_type", "tissue", "organism"],
    )

    pairs = choose_pairs(kinds, seed=0)

    assert len(pairs) == 1
    assert pairs[0].cell_type == "B cell"
    assert pairs[0].tissue in tissues


def test_no_selection_holds_a_row_that_was_left_out(corpus):
    everything = Selection("train", "study", is_labelled=True)
    rows = corpus.rows(everything)
    kinds = corpus.table(rows, ["cell_type", "tissue", "organism"]).to_pandas().astype(str).set_index(rows)
    pair = Pair(*kinds.iloc[0])

    left_out = left_out_rows(kinds, [pair], len(corpus))
    part = PartOfCorpus(corpus.path, corpus.manifest, corpus.splits, left_out)

    assert left_out.any()
    assert set(part.rows(everything)) == set(rows[~left_out[rows]])
    assert (
        not (kinds.loc[part.rows(everything), ["cell_type", "tissue"]] == [pair.cell_type, pair.tissue])
        .all(axis=1)
        .any()
    )


def test_shares_count_the_pairs_that_lie_nearer_to_their_own_mean():
    rows = [
        {"asked_with_tissue": [1.0, 2.0], "asked_without": [2.0, 1.0]},
        {"asked_with_tissue": [3.0, 2.0], "asked_without": [4.0, 1.0]},
    ]

    found = summary(rows)

    assert found["nearer_own_mean_asked_with_tissue"] == 0.5
    assert found["nearer_own_mean_asked_without"] == 0.0
    assert found["tissue_brings_closer"] == 1.0


def test_the_whole_experiment_runs_and_keeps_its_numbers(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(unseen_pairs, "MIN_CELLS", 1)
    monkeypatch.setattr(unseen_pairs, "MIN_TISSUES", 1)
    monkeypatch.setattr(unseen_pairs, "MOST_PAIRS", 1)
    quick = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 1}
    recipe = write_stage_2_recipe(tmp_path, corpus, training=quick, data={"cells_to_text": False})

    unseen_pairs.main(["--config", str(recipe)])

    found = json.loads((tmp_path / "run" / "unseen_pairs.json").read_text())
    assert found["summary"]["pairs"] == 1
    assert np.isfinite(found["pairs"][0]["asked_with_tissue"]).all()
    assert (tmp_path / "run" / "unseen_pairs.svg").stat().st_size > 0
