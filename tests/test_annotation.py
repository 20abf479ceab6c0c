"""Calls follow from similarities by documented steps."""

import json
import os

import numpy as np
import pytest

from scmmgpt.errors import UserError
from scmmgpt.processing.back_off_scmmgpt import BackOff, call_cells
from scmmgpt.processing.calibration_scmmgpt import Calibration
from scmmgpt.processing.calling_scmmgpt import (
    Candidates,
    CellAnnotator,
    CellEvidence,
    Scorer,
    annotation_files,
    rerank,
)
from scmmgpt.processing.labels_scmmgpt import LabelSet, read_labels
from scmmgpt.processing.ontology_scmmgpt import Ontology, Term
from scmmgpt.smoothing import nearest_neighbours, smooth

TREE = Ontology(
    {
        term.id: term
        for term in (
            Term("CL:0000000", "cell"),
            Term("CL:1", "lymphocyte", parents=("CL:0000000",)),
            Term("CL:2", "T cell", parents=("CL:1",)),
            Term("CL:3", "B cell", parents=("CL:1",)),
            Term("CL:4", "CD4 T cell", parents=("CL:2",)),
            Term("CL:5", "CD8 T cell", parents=("CL:2",)),
            Term("CL:6", "neuron", parents=("CL:0000000",)),
        )
    }
)
LABELS = read_labels(["CD4 T cell", "CD8 T cell", "B cell", "neuron"], TREE)


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def evidence(embeds: np.ndarray, **more) -> CellEvidence:
    return CellEvidence(embeds, *np.zeros((2, len(embeds)), dtype=bool), **more)


def candidates(embeds: np.ndarray, labels: LabelSet = LABELS) -> Candidates:
    return Candidates(labels, embeds, labels.term_ids, np.empty(0, dtype=int))


def scorer(num_cells: int = 200, calibration: Calibration | None = None, **kwargs) -> Scorer:
    cells = unit(np.random.default_rng(0).normal(size=(num_cells, 8)))
    labels = unit(np.random.default_rng(1).normal(size=(4, 8)))
    return Scorer(evidence(cells), candidates(labels), calibration or Calibration(), scale=10, **kwargs)


def test_a_confident_cell_gets_its_label_verbatim():
    calls = BackOff(LABELS, TREE, 0.5).calls(np.array([[0.1, 0.1, 0.7, 0.1]]))

    assert (calls.labels[0], calls.term_ids[0], calls.second_choices[0]) == ("B cell", "CL:3", "CD4 T cell")
    assert calls.confidence[0] == pytest.approx(0.7)


def test_an_unsure_cell_gets_the_nearest_parent_that_is_sure():
    calls = BackOff(LABELS, TREE, 0.5).calls(np.array([[0.4, 0.35, 0.2, 0.05]]))

    assert (calls.labels[0], calls.term_ids[0]) == ("T cell", "CL:2")
    assert calls.confidence[0] == pytest.approx(0.75)


def test_a_parent_that_is_unsure_too_gives_way_to_its_own_parent():
    calls = BackOff(LABELS, TREE, 0.6).calls(np.array([[0.35, 0.3, 0.3, 0.05]]))

    assert calls.labels[0] == "lymphocyte"
    assert calls.confidence[0] == pytest.approx(0.95)


def test_a_parent_must_be_surer_than_chance_makes_it():
    calls = BackOff(LABELS, TREE, 0.3).calls(np.full((1, 4), 0.25))

    assert calls.labels[0] == "unknown"


def test_what_all_candidates_have_in_common_is_no_answer():
    labels = read_labels(["CD4 T cell", "CD8 T cell"], TREE)

    assert BackOff(labels, TREE, 0.9).calls(np.array([[0.6, 0.4]])).labels[0] == "unknown"


def test_a_cell_that_could_be_anything_is_unknown():
    calls = BackOff(LABELS, TREE, 0.98).calls(np.array([[0.25, 0.25, 0.25, 0.25]]))

    assert (calls.labels[0], calls.term_ids[0]) == ("unknown", "unknown")
    assert calls.confidence[0] == pytest.approx(0.25)


def test_a_minimum_of_zero_never_backs_off():
    calls = BackOff(LABELS, TREE, 0.0).calls(np.full((3, 4), 0.25))

    assert set(calls.labels) <= set(LABELS.labels)


def test_a_parent_is_called_by_the_name_that_the_person_gave_it():
    labels = read_labels(["CD4 T cell", "CD8 T cell", "t cells", "neuron", "B cell"], TREE)

    calls = BackOff(labels, TREE, 0.6).calls(np.array([[0.4, 0.35, 0.25, 0, 0]]))

    assert calls.labels[0] == "t cells"


def test_free_text_labels_that_are_unsure_are_unknown():
    labels = read_labels(["blue", "green"], TREE)

    assert list(BackOff(labels, TREE, 0.9).calls(np.array([[0.5, 0.5]])).labels) == ["unknown"]


def test_one_label_alone_has_no_second_choice():
    labels = read_labels(["B cell"], TREE)

    assert list(BackOff(labels, TREE, 0.5).calls(np.ones((2, 1))).second_choices) == ["unknown"] * 2


def test_probabilities_sum_to_one():
    assert np.allclose(scorer().probabilities(slice(None)).sum(1), 1)


def test_parts_of_the_data_are_scored_like_the_whole():
    whole = scorer().probabilities(slice(None))

    assert np.allclose(whole[50:60], scorer().probabilities(slice(50, 60)))


def test_prior_correction_is_off_for_few_cells():
    assert scorer(99).prior_share == 0
    assert scorer(100).prior_share == Calibration().prior_share


def test_prior_correction_is_off_when_one_type_dominates():
    labels = unit(np.eye(4, 8))

    one_type = Scorer(evidence(np.repeat(labels[:1], 200, axis=0)), candidates(labels), Calibration(), scale=10)

    assert one_type.prior_share == 0


def test_prior_correction_evens_out_a_label_that_fits_every_cell():
    plain, corrected = scorer(prior_share=0.0), scorer(prior_share=1.0)

    def spread(one):
        return np.ptp(one.logits(slice(None)).mean(0))

    assert spread(corrected) < 1e-4 < spread(plain)


def test_class_bias_is_taken_from_its_candidate_alone():
    biased = scorer(calibration=Calibration(class_bias={"CL:3": 2.0}), prior_share=0.0)

    difference = scorer(prior_share=0.0).logits(slice(None)) - biased.logits(slice(None))

    assert np.allclose(difference, [0, 0, 2, 0], atol=1e-5)


def test_temperature_lies_between_its_neighbours_in_number_of_candidates():
    calibration = Calibration(((10, 1.0), (1000, 3.0)))

    assert calibration.temperature(100) == pytest.approx(2.0)
    assert calibration.temperature(2) == 1.0
    assert calibration.temperature(5000) == 3.0


def test_a_model_without_calibration_has_the_plain_softmax(tmp_path):
    assert CellAnnotator.of_files(annotation_files(tmp_path)).calibration == Calibration()


def test_a_calibration_that_was_fitted_anew_is_read_anew(tmp_path):
    path = tmp_path / "calibration.json"

    for share in (0.1, 0.7):
        path.write_text(json.dumps({"temperature_by_candidates": [[1, 1.0]], "prior_share": share}))
        os.utime(path, ns=(0, int(share * 1e9)))

        assert CellAnnotator.of_files({path.name: path}).calibration.prior_share == share


def test_a_broken_calibration_file_is_named(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps({"temperature_by_candidates": "hot"}))

    with pytest.raises(UserError, match=r"calibration\.json"):
        CellAnnotator.of_files(annotation_files(tmp_path))


def test_cells_that_are_none_are_unknown_unless_every_cell_must_be_named():
    cells = evidence(unit(np.random.default_rng(0).normal(size=(3, 8))))
    cells.is_empty[0] = cells.is_implausible[1] = True
    labels = unit(np.random.default_rng(1).normal(size=(4, 8)))
    scored = Scorer(cells, candidates(labels), Calibration(), scale=10, prior_share=0)

    careful, forced = (CellAnnotator(TREE).call(scored, min_confidence=least) for least in (1e-6, 0))

    assert list(careful.labels[:2]) == list(careful.term_ids[:2]) == ["unknown", "unknown"]
    assert not careful.confidence[:2].any()
    assert careful.labels[2] == forced.labels[2]
    assert set(forced.labels) <= set(LABELS.labels)


def test_clusters_get_one_call_by_the_mean_of_their_cells():
    probabilities = np.array([[0.6, 0.1, 0.2, 0.1], [0.1, 0.0, 0.8, 0.1], [0.0, 0.0, 0.1, 0.9]])

    calls = call_cells(3, lambda rows: probabilities[rows], BackOff(LABELS, TREE, 0.0), np.array([0, 0, 1]))

    assert list(calls.labels) == ["B cell", "B cell", "neuron"]


def test_the_matching_head_reorders_the_best_and_leaves_the_rest():
    probabilities = np.array([[0.4, 0.35, 0.2, 0.05]])

    mixed = rerank(probabilities, np.array([[0.1, 0.9]]), np.array([[0, 1]]), weight=0.5)

    assert mixed[0].argmax() == 1
    assert mixed.sum() == pytest.approx(1)
    assert np.allclose(mixed[0, 2:], probabilities[0, 2:])


def test_smoothing_draws_a_stray_cell_to_its_neighbours():
    embeds = unit([[1, 0.0], [1, 0.01], [1, 0.02], [0, 1.0]])

    smoothed = smooth(embeds, 2)

    assert np.allclose(smoothed[:3], smoothed[0], atol=1e-6)
    assert np.allclose(np.asarray(nearest_neighbours(embeds, 2).sum(1)).ravel(), 1)


def test_smoothing_over_more_neighbours_than_cells_takes_all():
    embeds = unit(np.eye(3))

    assert np.allclose(smooth(embeds, 50), embeds.mean(0))
