"""What annotation writes for a person: names without labels, label sets, and what the guards turn away."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scmmgpt.training.evaluation import task_calls
from scmmgpt.training.evaluation.baselines import TrainingCells, naming_system
from scmmgpt.training.evaluation.study import open_study
from scmmgpt.training.evaluation.systems import Annotation, System
from scmmgpt.training.evaluation.type_tree import TypeTree

pytest.importorskip("sklearn")

TREE = TypeTree.load()
TRUTH = ["T cell"] * 4 + ["conventional dendritic cell"] * 2 + ["CD14-low, CD16-positive monocyte"] * 2


@pytest.fixture(scope="module")
def study():
    """Cells that each hold five of ten genes, in a pattern of their type."""
    generator = np.random.default_rng(0)
    rate = np.full((len(TRUTH), 200), 0.5)
    for row, name in enumerate(TRUTH):
        rate[row, 60 * sorted(set(TRUTH)).index(name) :][:60] = 20
    obs = pd.DataFrame({"cell_type": TRUTH, "tissue": "blood"}, index=[f"cell{i}" for i in range(len(TRUTH))])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(200)])
    cells = anndata.AnnData(sp.csr_matrix(generator.poisson(rate), dtype=np.float32), obs=obs, var=var)
    return open_study(cells, "cell_type", name="small", tree=TREE)


def saying(*names, **more):
    """A system that gives the cells these names, whatever they are."""
    return System("told", annotate=lambda cells, labels: Annotation(np.array(names), **more))


def whole(records):
    return next(record for record in records if record.task == "without labels").values


def test_names_as_right_as_can_be_score_one(study):
    values = whole(task_calls.name_without_labels(saying(*TRUTH), study, TREE))

    assert values["accuracy"] == values["macro_f1_finer"] == values["hierarchical_f1"] == values["names_per_type"] == 1
    assert values["share_unknown"] == values["share_not_of_blood"] == 0


def test_finer_names_are_right_only_in_the_numbers_that_say_so(study):
    names = ["naive T cell"] * 4 + ["CD1c-positive myeloid dendritic cell"] * 2 + TRUTH[6:]

    values = whole(task_calls.name_without_labels(saying(*names), study, TREE))

    assert (values["accuracy"], values["accuracy_finer"]) == (2 / 8, 1)
    assert values["macro_f1"] == pytest.approx(1 / 3)
    assert 0.8 < values["hierarchical_f1"] < 1


def test_terms_that_studies_use_for_the_same_cells_are_the_same(study):
    names = [*TRUTH[:6], "non-classical monocyte", "non-classical monocyte"]

    assert whole(task_calls.name_without_labels(saying(*names), study, TREE))["accuracy"] == 1


def test_a_systems_own_synonyms_count_where_the_study_has_them(study):
    names = ["blue cell"] * 4 + TRUTH[4:]
    told = saying(*names, synonyms={"blue cell": ("T cell", "hepatocyte")})

    assert whole(task_calls.name_without_labels(told, study, TREE))["hierarchical_f1"] == 1


def test_names_that_no_blood_holds_and_names_beyond_the_types_are_counted(study):
    names = ["neuron", "type B pancreatic cell", "T cell", "unknown", "cell", "leukocyte", "platelet", "T cell"]

    values = whole(task_calls.name_without_labels(saying(*names), study, TREE))

    assert values["share_not_of_blood"] == 2 / 8
    assert values["share_unknown"] == 1 / 8
    assert (values["names"], values["names_per_type"]) == (6, 2)


def test_watched_types_tell_what_they_are_taken_for(study):
    names = [*TRUTH[:4], "dendritic cell", "dendritic cell", TRUTH[6], "monocyte"]

    records = task_calls.name_without_labels(saying(*names), study, TREE)[1:]

    told = {r.conditions["type"]: (r.values["right"], r.conditions["most_often_taken_for"]) for r in records}
    assert told == {
        "conventional dendritic cell": (0, "dendritic cell"),
        "CD14-low, CD16-positive monocyte": (0.5, "monocyte"),
    }


def test_the_likeliest_types_reach_the_mass_and_not_one_more():
    scores = np.array([[0.95, 0.03, 0.02], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6]])

    sets = task_calls.likeliest(scores, ["a", "b", "c"], 0.9)

    assert sets == [{"a"}, {"b", "c"}, {"a", "b", "c"}]


def test_label_sets_stand_beside_those_of_the_softmax(study):
    sets = [frozenset(study.types)] * 8
    certain = np.eye(3)[[study.types.index(name) for name in TRUTH]]
    told = replace(saying(*TRUTH, sets=sets), predict=lambda cells, labels: certain)

    records = task_calls.label_sets(told, study, TREE)

    assert [(r.conditions["sets_by"], r.conditions["labels"]) for r in records] == [
        ("calibration", "own types"),
        ("calibration", "none given"),
        ("softmax", "own types"),
    ]
    assert [r.values["mean_set_size"] for r in records] == [3, 3, 1]
    assert all(r.values["coverage"] == r.values["exact_coverage"] == 1 for r in records)


def test_a_system_without_sets_has_none_to_measure(study):
    assert task_calls.label_sets(saying(*TRUTH), study, TREE) == []


def test_guards_are_measured_on_real_cells_and_on_what_is_none(study):
    def wary(cells, labels):
        """Unknown, unless a cell has its study's cells' names for genes in their places."""
        is_real = cells is study.cells
        names = ["T cell" if is_real else "unknown"] * cells.n_obs
        sets = [frozenset({"T cell", "B cell"} if is_real else {"cell"})] * cells.n_obs
        return Annotation(np.array(names), sets, num_turned_away=1 if is_real else cells.n_obs)

    records = task_calls.turn_away_no_cells(System("wary", annotate=wary), study, TREE)

    found = {r.conditions["control"]: tuple(r.values.values()) for r in records}
    assert found.pop("real cells") == (1 / 8, 0, 0)
    assert set(found) == set(task_calls.NO_CELLS)
    assert set(found.values()) == {(1, 1, 1)}


def test_nearest_class_mean_names_cells_without_labels(study):
    training = TrainingCells([study.cells])

    values = whole(task_calls.name_without_labels(naming_system(training, TREE), study, TREE))

    assert values["accuracy"] == 1
