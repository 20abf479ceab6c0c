"""Metrics of labels, confidence and embeddings: against scikit-learn, or against a case worked by hand."""

import numpy as np
import pytest

from scmmgpt.processing.ontology_scmmgpt import Ontology, Term
from scmmgpt.training.evaluation import metrics, metrics_embedding
from scmmgpt.training.evaluation.type_tree import TypeTree

sklearn_metrics = pytest.importorskip("sklearn.metrics")

ROOT = "CL:0000000"
TYPES = np.array(["B cell", "T cell", "monocyte", "neuron"])


@pytest.fixture
def labels():
    generator = np.random.default_rng(0)
    truth = generator.choice(TYPES, size=500, p=[0.6, 0.3, 0.08, 0.02])
    predicted = np.where(generator.random(500) < 0.7, truth, generator.choice([*TYPES, "hepatocyte"], size=500))
    return truth, predicted


@pytest.fixture
def tree():
    terms = [
        Term(ROOT, "cell"),
        Term("CL:2", "lymphocyte", parents=(ROOT,)),
        Term("CL:3", "T cell", "A T cell is no B cell. T-lymphocytes mature.", ("T-lymphocyte", "t cell"), ("CL:2",)),
        Term("CL:4", "B cell", parents=("CL:2",)),
        Term("CL:5", "CD4 T cell", parents=("CL:3",)),
        Term("CL:6", "neuron", parents=(ROOT,)),
    ]
    return TypeTree(Ontology({term.id: term for term in terms}), ["blood"])


def test_accuracy_macro_f1_and_balanced_accuracy_are_those_of_scikit_learn(labels):
    truth, predicted = labels
    occurring = np.unique(truth)

    assert metrics.accuracy(truth, predicted) == pytest.approx(sklearn_metrics.accuracy_score(truth, predicted))
    assert metrics.macro_f1(truth, predicted) == pytest.approx(
        sklearn_metrics.f1_score(truth, predicted, labels=occurring, average="macro")
    )
    assert metrics.balanced_accuracy(truth, predicted) == pytest.approx(
        sklearn_metrics.recall_score(truth, predicted, labels=occurring, average="macro")
    )


def test_a_perfect_predictor_scores_one_and_a_random_one_scores_chance(tree):
    truth = np.repeat(TYPES, 1000)
    random = np.random.default_rng(0).choice(TYPES, size=4000)

    for metric in (metrics.accuracy, metrics.macro_f1, metrics.balanced_accuracy):
        assert metric(truth, truth) == 1
        assert metric(truth, random) == pytest.approx(0.25, abs=0.03)
    assert metrics.ontology_distance(truth, truth, tree) == (0, 1)


def test_calling_everything_the_most_frequent_type_is_seen_by_macro_f1_and_not_by_accuracy():
    truth = np.array(["B cell"] * 90 + ["T cell"] * 10)
    majority = np.array(["B cell"] * 100)

    assert metrics.accuracy(truth, majority) == 0.9
    assert metrics.macro_f1(truth, majority) == pytest.approx((2 * 90 / 190 + 0) / 2)
    assert metrics.balanced_accuracy(truth, majority) == 0.5


def test_the_table_of_types_names_the_commonest_mistake():
    rows = metrics.per_type_table(["B", "B", "B", "T"], ["B", "T", "T", "T"])

    assert rows[0] == {
        "type": "B",
        "cells": 3,
        "precision": 1.0,
        "recall": pytest.approx(1 / 3),
        "f1": pytest.approx(0.5),
        "most_often_taken_for": "T",
    }
    assert rows[1]["most_often_taken_for"] == ""


def test_ontology_distance_counts_steps_and_says_how_many_cells_it_could_place(tree):
    truth = ["CD4 T cell", "CD4 T cell", "T cell", "nonsense"]
    predicted = ["T cell", "B cell", "neuron", "T cell"]

    distance, known = metrics.ontology_distance(truth, predicted, tree)

    assert distance == pytest.approx((1 + 3 + 3) / 3)
    assert known == 0.75


def test_exact_or_parent_takes_the_direct_parent_but_neither_grandparent_nor_child(tree):
    truth = ["CD4 T cell"] * 3 + ["T cell", "no such type"]
    predicted = ["CD4 T cell", "T-lymphocyte", "lymphocyte", "CD4 T cell", "no such type"]

    hits = metrics.exact_or_parent_hits(truth, predicted, tree)

    assert hits.tolist() == [True, True, False, False, True]


def test_hierarchical_f1_of_a_hand_worked_case(tree):
    truth = ["CD4 T cell", "CD4 T cell", "CD4 T cell", "neuron"]
    predicted = ["CD4 T cell", "lymphocyte", "B cell", "unknown"]

    score = metrics.hierarchical_f1(truth, predicted, tree)

    # Without the root: {CD4 T, T, lymphocyte} against itself, against {lymphocyte}, against {B, lymphocyte}.
    of_cd4 = np.mean([1, 2 * 1 / (3 + 1), 2 * 1 / (3 + 2)])
    assert score == pytest.approx((of_cd4 + 0) / 2)


@pytest.mark.parametrize(
    ("called", "score"),
    [
        pytest.param("T-lymphocyte", 1, id="a synonym is the type"),
        pytest.param("cell", 0, id="the root does not count"),
        pytest.param("neuron", 0, id="strangers share nothing"),
        pytest.param("unknown", 0, id="no call"),
        pytest.param("cluster 7", 0, id="a name outside the ontology"),
    ],
)
def test_hierarchical_f1_of_one_call_for_a_t_cell(tree, called, score):
    assert metrics.hierarchical_f1(["T cell"], [called], tree) == score


def test_hierarchical_f1_of_a_type_outside_the_ontology_asks_for_its_very_name(tree):
    assert metrics.hierarchical_f1(["cluster 7", "cluster 7"], ["cluster 7", "T cell"], tree) == 0.5


def test_finer_names_mean_the_nearest_type_of_the_study_only_where_they_count(tree):
    names = ["CD4 T cell", "t cell", "B cell", "neuron", "unknown", "lymphocyte"]
    types = ["T cell", "lymphocyte"]

    same = metrics.meant_types(names, types, tree, finer_counts=False)
    finer = metrics.meant_types(names, types, tree, finer_counts=True)

    assert same.tolist() == ["CD4 T cell", "T cell", "B cell", "neuron", "unknown", "lymphocyte"]
    assert finer.tolist() == ["T cell", "T cell", "lymphocyte", "neuron", "unknown", "lymphocyte"]


def test_label_sets_of_a_hand_worked_case(tree):
    truth = ["CD4 T cell", "CD4 T cell", "CD4 T cell", "CD4 T cell", "neuron"]
    sets = [{"CD4 T cell", "B cell"}, {"T-lymphocyte"}, {"B cell", "neuron"}, {"cell"}, {"unknown"}]

    values = metrics.set_metrics(truth, [frozenset(names) for names in sets], tree)

    assert values == {"coverage": 3 / 5, "exact_coverage": 1 / 5, "mean_set_size": 7 / 5, "share_of_root": 2 / 5}


def test_the_nearest_candidate_is_the_type_itself_or_its_nearest_ancestor(tree):
    assert tree.nearest_of("CD4 T cell", ["lymphocyte", "T cell"]) == "T cell"
    assert tree.nearest_of("T-lymphocyte", ["T cell", "lymphocyte"]) == "T cell"
    assert tree.nearest_of("lymphocyte", ["T cell"]) is None
    assert tree.nearest_of("neuron", ["no such type", "lymphocyte"]) is None


def test_a_definition_without_the_name_holds_neither_label_nor_synonym(tree):
    assert tree.definition_without_name("T cell") == "A this cell is no B cell. this cell mature."
    assert tree.synonym("T cell") == "T-lymphocyte"
    assert tree.synonym("neuron") is None
    assert tree.definition_without_name("neuron") is None


def test_the_interval_over_cells_is_the_textbook_one():
    generator = np.random.default_rng(1)
    truth = np.zeros(400, int)
    predicted = (generator.random(400) < 0.2).astype(int)

    low, high, unit = metrics.bootstrap_interval(metrics.accuracy, truth, predicted)

    share = metrics.accuracy(truth, predicted)
    margin = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert unit == "cells"
    assert (low, high) == (pytest.approx(share - margin, abs=0.008), pytest.approx(share + margin, abs=0.008))


def test_the_interval_over_donors_is_wider_when_donors_differ():
    donors = np.repeat([f"donor{i}" for i in range(8)], 100)
    right_share = np.repeat([0.1, 0.2, 0.9, 0.95, 0.5, 0.99, 0.3, 0.6], 100)
    predicted = np.where(np.random.default_rng(0).random(800) < right_share, "B cell", "T cell")
    truth = np.repeat("B cell", 800)

    over_cells = metrics.bootstrap_interval(metrics.accuracy, truth, predicted)
    over_donors = metrics.bootstrap_interval(metrics.accuracy, truth, predicted, donors=donors)

    assert over_donors.unit == "donors"
    assert over_donors.high - over_donors.low > 3 * (over_cells.high - over_cells.low)


def test_three_donors_are_too_few_and_the_interval_says_that_it_is_over_cells():
    interval = metrics.bootstrap_interval(metrics.accuracy, ["B"] * 9, ["B"] * 9, donors=["a", "b", "c"] * 3)

    assert interval == (1, 1, "cells")


def test_the_calibration_error_of_a_hand_worked_case():
    confidence = [0.95, 0.95, 0.95, 0.95, 0.55, 0.55]
    correct = [True, True, True, False, True, False]

    error = metrics.expected_calibration_error(confidence, correct, num_bins=10)

    assert error == pytest.approx(4 / 6 * abs(0.95 - 0.75) + 2 / 6 * abs(0.55 - 0.5))


def test_confidence_that_is_the_chance_of_being_right_is_calibrated():
    generator = np.random.default_rng(0)
    confidence = generator.random(20_000)

    honest = metrics.expected_calibration_error(confidence, generator.random(20_000) < confidence)
    boastful = metrics.expected_calibration_error(np.ones(20_000), generator.random(20_000) < 0.5)

    assert honest < 0.02
    assert boastful == pytest.approx(0.5, abs=0.02)


def test_risk_and_coverage_of_a_hand_worked_case():
    coverage, risk = metrics.risk_coverage([0.9, 0.8, 0.7, 0.6], [True, True, False, True])

    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [0, 0, pytest.approx(1 / 3), 0.25]
    assert metrics.area_under_risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1]) == pytest.approx((1 / 3 + 0.25) / 4)
    assert metrics.accuracy_at_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], coverage=0.5) == 1


def test_confidence_that_never_varies_leaves_the_plain_error_rate():
    correct = np.random.default_rng(0).random(100) < 0.7

    area = metrics.area_under_risk_coverage(np.full(100, 0.4), correct)

    assert area == pytest.approx(1 - correct.mean())


def test_auroc_is_that_of_scikit_learn_with_ties_and_nan_when_one_kind_is_absent():
    generator = np.random.default_rng(0)
    positive = generator.random(300) < 0.3
    score = np.round(generator.normal(size=300) + positive, 1)

    assert metrics.auroc(score, positive) == pytest.approx(sklearn_metrics.roc_auc_score(positive, score))
    assert np.isnan(metrics.auroc([0.1, 0.2], [True, True]))


def test_metrics_refuse_columns_of_different_length():
    with pytest.raises(ValueError, match="3 labels and prediction 2"):
        metrics.accuracy(["a", "b", "c"], ["a", "b"])


def clouds(distance, num_types=3, cells=60, seed=0):
    """Cells of `num_types` types around centres `distance` apart, with two batches that do not matter."""
    generator = np.random.default_rng(seed)
    types = np.repeat([f"type{i}" for i in range(num_types)], cells)
    centres = distance * np.eye(num_types, 8)
    embedding = generator.normal(size=(num_types * cells, 8)) + np.repeat(centres, cells, axis=0)
    return embedding, types, generator.choice(["batch1", "batch2"], size=len(types))


def test_separate_types_are_found_again_and_mixed_ones_are_not():
    apart, types, _ = clouds(distance=30)
    mixed, _, _ = clouds(distance=0)

    good, bad = metrics_embedding.bio_conservation(apart, types), metrics_embedding.bio_conservation(mixed, types)

    assert good["ari"] > 0.95
    assert good["nmi"] > 0.95
    assert bad["ari"] < 0.1
    assert bad["asw"] == pytest.approx(0.5, abs=0.03)
    assert good["avg_bio"] == pytest.approx(np.mean([good["ari"], good["nmi"], good["asw"]]))


def test_silhouettes_are_those_of_scikit_learn_scaled_as_scib_scales_them():
    embedding, types, batches = clouds(distance=4)

    asw = metrics_embedding.bio_conservation(embedding, types)["asw"]
    asw_batch = metrics_embedding.batch_mixing(embedding, types, batches)["asw_batch"]

    assert asw == pytest.approx((sklearn_metrics.silhouette_score(embedding, types) + 1) / 2)
    by_type = [
        1 - np.abs(sklearn_metrics.silhouette_samples(embedding[types == t], batches[types == t])).mean()
        for t in np.unique(types)
    ]
    assert asw_batch == pytest.approx(np.mean(by_type))


def test_batches_that_lie_apart_score_below_batches_that_mix():
    embedding, types, batches = clouds(distance=10)
    shifted = embedding + 25 * (batches == "batch1")[:, None]

    mixed = metrics_embedding.batch_mixing(embedding, types, batches)
    apart = metrics_embedding.batch_mixing(shifted, types, batches)

    assert mixed["avg_batch"] > 0.95
    assert apart["asw_batch"] < 0.4
    assert apart["graph_connectivity"] < 0.8


def test_graph_connectivity_of_a_hand_worked_case():
    embedding = np.array([[0.0], [0.1], [0.2], [10.0], [10.1], [10.2], [10.3], [10.4]])
    types = ["a", "a", "a", "a", "b", "b", "b", "b"]

    assert metrics_embedding.graph_connectivity(embedding, types, num_neighbours=2) == (3 / 4 + 1) / 2


def test_retrieval_of_a_hand_worked_case():
    similarity = np.array([[0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.7, 0.1]])
    queries, gallery = ["a", "b"], ["a", "a", "b", "c"]

    at_1, blind_1 = metrics_embedding.recall_at(similarity, queries, gallery, k=1)
    at_3, blind_3 = metrics_embedding.recall_at(similarity, queries, gallery, k=3)

    assert (at_1, at_3) == (0.5, 1.0)
    assert blind_1 == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert blind_3 == pytest.approx((1 + 3 / 4) / 2)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_a_similarity_that_says_nothing_scores_exactly_the_blind_chance(k):
    types = np.random.default_rng(0).choice(TYPES, size=50)

    found, blind = metrics_embedding.recall_at(np.ones((50, 50)), types, types, k)

    assert found == pytest.approx(blind)


def test_queries_without_an_answer_in_the_gallery_are_not_counted():
    assert metrics_embedding.recall_at(np.array([[1.0], [1.0]]), ["a", "z"], ["a"], k=1) == (1, 1)
    assert np.isnan(metrics_embedding.recall_at(np.array([[1.0]]), ["z"], ["a"], k=1)).all()


def test_our_clustering_scores_agree_with_scib_metrics():
    pytest.importorskip("scib_metrics", reason="the extra `scib` is not installed")
    embedding, types, batches = clouds(distance=4)

    ours = {**metrics_embedding.bio_conservation(embedding, types)}
    ours |= metrics_embedding.batch_mixing(embedding, types, batches)
    theirs = metrics_embedding.scib_scores(embedding, types, batches)

    for name in ("asw", "asw_batch", "graph_connectivity"):
        assert ours[name] == pytest.approx(theirs[f"scib_{name}"], abs=0.02)
    assert ours["nmi"] == pytest.approx(theirs["scib_nmi"], abs=0.15)
