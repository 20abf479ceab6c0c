"""Types that were trained on speak for candidates: by how their genes differ, to the cells of a whole study."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import GENES, tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.loading import load
from scmmgpt.processing.calibration_scmmgpt import Calibration
from scmmgpt.processing.calling_scmmgpt import (
    Candidates,
    CellAnnotator,
    CellEvidence,
    Scorer,
    TokenEvidence,
    annotation_files,
)
from scmmgpt.processing.labels_scmmgpt import read_labels
from scmmgpt.processing.ontology_scmmgpt import Ontology, Term
from scmmgpt.processing.type_profiles_scmmgpt import FILE_NAME, SHORT, STEP, Agreement, TypeProfiles, candidate_of_type

TREE = Ontology(
    {
        term.id: term
        for term in (
            Term("CL:0000001", "lymphocyte"),
            Term("CL:0000002", "T cell", parents=("CL:0000001",)),
            Term("CL:0000003", "B cell", parents=("CL:0000001",)),
            Term("CL:0000004", "CD4 T cell", parents=("CL:0000002",)),
        )
    }
)


@pytest.fixture
def profiles() -> TypeProfiles:
    differences = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    return TypeProfiles(("CL:0000002", "CL:0000003", "CL:0000004"), np.arange(0, 40, 2), differences)


@pytest.fixture
def agreement() -> Agreement:
    values = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    return Agreement(values, np.array([1.0, 2.0, 1.0, 1.0], np.float32), np.array([0, 1, 1, 3]))


def test_profiles_come_back_to_half_a_step(profiles, tmp_path):
    profiles.write(tmp_path)
    read = TypeProfiles.read(tmp_path / FILE_NAME)

    assert read.term_ids == profiles.term_ids
    assert np.array_equal(read.gene_rows, profiles.gene_rows)
    assert np.abs(read.differences - profiles.differences).max() <= STEP / 2 + 1e-6


def test_profiles_written_twice_are_the_same_file(profiles, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        profiles.write(tmp_path / name)

    assert (tmp_path / "one" / FILE_NAME).read_bytes() == (tmp_path / "two" / FILE_NAME).read_bytes()


def test_a_directory_without_profiles_has_none(tmp_path):
    assert CellAnnotator.of_files(annotation_files(tmp_path)).type_profiles is None


@pytest.mark.parametrize("content", [b"", b"not packed", b"\x1f\x8b cut short"])
def test_a_damaged_file_of_profiles_is_named(content, tmp_path):
    (tmp_path / FILE_NAME).write_bytes(content)

    with pytest.raises(UserError, match=FILE_NAME):
        CellAnnotator.of_files(annotation_files(tmp_path))


def test_a_type_speaks_for_itself_or_for_the_nearest_above_it(profiles):
    def candidates(*term_ids):
        return candidate_of_type(profiles, term_ids, TREE).tolist()

    assert candidates("CL:0000003", "CL:0000002", "CL:0000004") == [1, 0, 2]
    assert candidates("CL:0000001", "CL:0000002") == [1, 0, 1]
    assert candidates("CL:0000004", None) == [-1, -1, 0]


def test_what_all_cells_of_a_study_share_says_nothing(agreement):
    shifted = replace(agreement, values=agreement.values + np.array([3, -1, 0, 7], np.float32))

    assert np.allclose(shifted.evidence(slice(None), 4), agreement.evidence(slice(None), 4), atol=1e-5)


def test_a_candidate_has_the_best_of_its_types_and_one_without_types_has_nothing(agreement):
    evidence = agreement.evidence(slice(None), 5)
    cosines = (agreement.values - agreement.mean) / agreement.norms
    best = np.column_stack([cosines[:, 0], cosines[:, 1:3].max(1), cosines[:, 3]])

    assert np.allclose(evidence[:, [0, 1, 3]], best - best.mean(1, keepdims=True), atol=1e-6)
    assert not evidence[:, [2, 4]].any()


def test_one_candidate_that_is_spoken_for_has_no_lead_over_the_others(agreement):
    alone = replace(agreement, candidates=np.zeros(4, int))

    assert not alone.evidence(slice(None), 3).any()


def test_parts_of_a_study_are_judged_like_the_whole(agreement):
    assert np.array_equal(agreement.evidence(slice(10, 20), 4), agreement.evidence(slice(None), 4)[10:20])


def test_only_measured_genes_count_for_the_length_of_a_profile(profiles):
    some = np.array([0, 2, 4, 5])

    short = np.linalg.norm(profiles.differences[:, :3], axis=1)
    assert np.allclose(profiles.norms(some), np.hypot(short, SHORT))


# ---- in the scorer


ALONE = Calibration(temperature_by_candidates=((1.0, 0.5),), class_bias={"CL:0000003": -2.0}, min_confidence=0.9)


def scorer(agreement, num_cells=200, **arguments) -> Scorer:
    generator = np.random.default_rng(0)
    cells, labels = generator.normal(size=(num_cells, 8)), generator.normal(size=(4, 8))
    unit = [(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (cells, labels)]
    calibration = Calibration(profile_weight=30.0, alone=ALONE)
    cells = CellEvidence(unit[0], *np.zeros((2, num_cells), dtype=bool))
    labels = read_labels(["lymphocyte", "T cell", "B cell", "CD4 T cell"], TREE)
    candidates = Candidates(labels, unit[1], labels.term_ids, np.empty(0, dtype=int))
    return Scorer(cells, candidates, calibration, scale=10, agreement=agreement, **arguments)


def test_profiles_decide_where_the_text_does_not():
    sides = np.repeat([[1.0, 0.0], [0.0, 1.0]], 100, axis=0).astype(np.float32)
    agreement = Agreement(sides, np.ones(2, np.float32), np.array([1, 2]))

    named = scorer(agreement).logits(slice(None)).argmax(1)

    assert (named[:100] == 1).mean() > 0.9
    assert (named[100:] == 2).mean() > 0.9


@pytest.mark.parametrize(("num_cells", "arguments"), [(99, {}), (200, {"prior_share": 0.0})])
def test_few_cells_and_cells_judged_by_themselves_are_named_by_text_alone(num_cells, arguments):
    values = np.random.default_rng(1).normal(size=(num_cells, 4)).astype(np.float32)
    with_profiles = scorer(Agreement(values, np.ones(4, np.float32), np.arange(4)), num_cells, **arguments)

    assert with_profiles.profile_weight == 0
    assert np.array_equal(with_profiles.logits(slice(None)), scorer(None, num_cells, **arguments).logits(slice(None)))


def test_cells_that_are_not_compared_are_read_by_numbers_of_their_own():
    agreement = Agreement(np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32), np.ones(4), np.arange(4))
    compared, alone = scorer(agreement), scorer(agreement, prior_share=0.0)

    assert (compared.temperature, alone.temperature) == (1.0, 0.5)
    assert alone.bias.tolist() == [0, 0, -2, 0]
    assert alone.calibration.min_confidence == 0.9


def test_a_calibration_file_keeps_the_numbers_for_single_cells(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(
        '{"temperature_by_candidates": [[1, 2.0]], "class_bias": {"T cell": 1},'
        ' "alone": {"temperature_by_candidates": [[1, 0.5]]}, "consensus": {"temperature_by_candidates": [[1, 3.0]]}}'
    )

    found = Calibration.read(path)

    assert found.of_single_cells.temperature(5) == 0.5
    assert found.of_study.of_single_cells.temperature(5) == 3.0
    assert Calibration().of_single_cells == Calibration()


# ---- from cells


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = write_tiny_model(tmp_path_factory.mktemp("model"))
    generator = np.random.default_rng(0)
    types = ("CL:0000084", "CL:0000236", "CL:0000576")
    TypeProfiles(types, np.arange(len(GENES)), generator.normal(size=(3, len(GENES)))).write(directory)
    (directory / "calibration.json").write_text('{"temperature_by_candidates": [[1, 1.0]], "profile_weight": 30}')
    return directory


def test_agreement_is_the_weighted_sum_of_a_cells_values_whatever_lies_beside_it(directory):
    loaded = load(directory, device="cpu")
    genes, profiles = loaded.processor.gene_tokenizer, loaded.annotator.type_profiles
    tokens = genes(tiny_cells(6), return_tensors="np")
    read_tokens = TokenEvidence(genes, profiles, [2, 0])

    together = read_tokens(tokens)["agreement"]

    for i in range(6):
        alone = {name: values[i : i + 1] for name, values in tokens.items()}
        assert np.allclose(read_tokens(alone)["agreement"], together[i], atol=1e-5)
        rows = genes.gene_rows(tokens["gene_ids"][i])
        is_gene = (rows >= 0) & (tokens["gene_mask"][i] > 0)
        values = tokens["gene_values"][i][is_gene]
        expected = profiles.differences[[2, 0]][:, rows[is_gene]] @ values / np.linalg.norm(values)
        assert np.allclose(together[i], expected, atol=1e-4)


def test_annotation_of_a_study_is_the_same_in_any_order_and_any_batches(directory):
    cells, order = tiny_cells(150), np.random.default_rng(0).permutation(150)
    options = {"labels": ["T cell", "B cell", "monocyte"], "model": directory, "device": "cpu", "progress": False}
    options["prior_share"] = 0.5  # a model that learnt nothing may prefer one label for most cells

    plain = scmmgpt.annotate(cells, **options)
    turned = scmmgpt.annotate(cells[order].copy(), batch_size=7, **options)

    assert plain.uns["scmmgpt"]["annotate"]["settings"]["profile_weight"] == 30
    assert np.array_equal(plain.obs["scmmgpt_cell_type"].to_numpy()[order], turned.obs["scmmgpt_cell_type"])
    confidence = [one.obs["scmmgpt_confidence"].to_numpy() for one in (plain, turned)]
    assert np.allclose(confidence[0][order], confidence[1], atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_profiles_of_another_vocabulary_are_refused(tmp_path):
    directory = write_tiny_model(tmp_path)
    TypeProfiles(("CL:0000084", "CL:0000236"), np.array([len(GENES)]), np.ones((2, 1))).write(directory)
    (directory / "calibration.json").write_text('{"temperature_by_candidates": [[1, 1.0]], "profile_weight": 30}')

    with pytest.raises(UserError, match="other genes"):
        scmmgpt.annotate(tiny_cells(3), ["T cell", "B cell"], model=directory, device="cpu", progress=False)


# ---- free text


@pytest.fixture(scope="module")
def mini():
    return load(device="cpu")


def meant(loaded, *names):
    annotator = loaded.annotator
    return annotator.candidates(annotator.label_set(list(names)), loaded.embed_texts).term_ids


def test_free_text_is_understood_where_a_trained_type_says_the_same(mini):
    assert meant(mini, "cells that secrete insulin", "something blue") == ("CL:0000169", None)


def test_no_type_is_meant_twice(mini):
    assert meant(mini, "type B pancreatic cell", "cells that secrete insulin")[1] != "CL:0000169"
