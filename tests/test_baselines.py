"""The baselines learn what there is to learn, name only what they have seen, and gain nothing from the order of cells."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scmmgpt.processing.ontology_scmmgpt import Ontology, Term
from scmmgpt.training.evaluation import baselines, expression, metrics
from scmmgpt.training.evaluation.baseline_generation import NegativeBinomialGenerator
from scmmgpt.training.evaluation.systems import System, checked_scores
from scmmgpt.training.evaluation.type_tree import TypeTree

pytest.importorskip("sklearn")

TREE = TypeTree(
    Ontology(
        {
            term.id: term
            for term in [
                Term("CL:1", "lymphocyte"),
                Term("CL:2", "T cell", parents=("CL:1",)),
                Term("CL:3", "CD4 T cell", parents=("CL:2",)),
                Term("CL:4", "CD8 T cell", parents=("CL:2",)),
                Term("CL:5", "B cell", parents=("CL:1",)),
                Term("CL:6", "neuron"),
            ]
        }
    )
)
PROGRAM = {"B cell": range(0, 8), "CD4 T cell": range(8, 16), "CD8 T cell": range(12, 20), "neuron": range(24, 32)}
LEARNING = [name for name in baselines.METHODS if name != "majority"]


def simulated(types, seed, num_genes=40, log=False):
    """Cells in which each type has eight genes ten times up; a little noise, Poisson counts."""
    generator = np.random.default_rng(seed)
    types = np.asarray(types)
    rate = np.ones((len(types), num_genes)) * generator.lognormal(0, 0.2, size=num_genes)
    for i, name in enumerate(types):
        rate[i, list(PROGRAM[name])] *= 10
    counts = sp.csr_matrix(generator.poisson(rate * generator.lognormal(0, 0.3, (len(types), 1))), dtype=np.float32)
    obs = pd.DataFrame({"cell_type": types}, index=[f"cell{i}" for i in range(len(types))])
    cells = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(num_genes)]))
    if log:
        cells.X = expression.log_normalised(counts)
    return cells


def system(name, training, **options):
    methods = {name: baselines.METHODS[name]}
    return baselines.baseline_systems(training, TREE, methods, **options)[0]


@pytest.fixture(scope="module")
def training():
    types = ["B cell", "CD4 T cell", "CD8 T cell"] * 60
    return baselines.TrainingCells([simulated(types[:90], seed=1), simulated(types[90:], seed=2, log=True)])


@pytest.mark.parametrize("name", LEARNING)
def test_a_baseline_learns_separable_types_from_counts_and_logs_alike(name, training):
    test = simulated(["B cell", "CD4 T cell", "CD8 T cell"] * 20, seed=3)
    labels = ["CD4 T cell", "B cell", "CD8 T cell"]

    scores = checked_scores(system(name, training), test, labels)

    predicted = np.array(labels)[scores.argmax(1)]
    assert metrics.accuracy(test.obs["cell_type"], predicted) > 0.9


@pytest.mark.parametrize("name", LEARNING)
def test_a_candidate_without_training_cells_is_never_named(name, training):
    test = simulated(["neuron"] * 10 + ["B cell"] * 10, seed=4)

    scores = checked_scores(system(name, training), test, ["neuron", "B cell", "CD4 T cell"])

    assert (scores[:, 0] == 0).all()


@pytest.mark.parametrize("name", LEARNING)
def test_finer_training_types_count_for_the_candidate_above_them_unless_labels_must_be_exact(name, training):
    test = simulated(["CD4 T cell", "CD8 T cell", "B cell"] * 10, seed=5)
    labels = ["T cell", "B cell"]
    truth = ["T cell", "T cell", "B cell"] * 10

    rolled_up = np.array(labels)[checked_scores(system(name, training), test, labels).argmax(1)]
    exact = checked_scores(system(name, training, exact_labels=True), test, labels)

    assert metrics.accuracy(truth, rolled_up) > 0.9
    assert (exact[:, 0] == 0).all()


def test_the_majority_is_that_of_the_training_cells():
    training = baselines.TrainingCells([simulated(["B cell"] * 30 + ["neuron"] * 10, seed=0)])

    scores = checked_scores(system("majority", training), simulated(["neuron"] * 5, seed=1), ["neuron", "B cell"])

    assert scores.tolist() == [[0.25, 0.75]] * 5


@pytest.mark.parametrize("name", list(baselines.METHODS))
def test_without_any_training_cell_for_the_candidates_the_answer_is_even(name, training):
    scores = checked_scores(system(name, training), simulated(["neuron"] * 3, seed=0), ["neuron", "no such type"])

    assert (scores == 0.5).all()


@pytest.mark.parametrize("name", ["nearest class mean", "HVG + logistic regression"])
def test_genes_are_matched_by_name_in_any_order_and_case(name, training):
    test = simulated(["B cell", "CD4 T cell", "CD8 T cell"] * 10, seed=6)
    turned = test[:, ::-1].copy()
    turned.var_names = turned.var_names.str.capitalize()
    labels = ["B cell", "CD4 T cell", "CD8 T cell"]

    first = checked_scores(system(name, training), test, labels)
    second = checked_scores(system(name, training), turned, labels)

    np.testing.assert_allclose(first, second, atol=0.01)


def test_linear_values_are_found_again_from_their_logarithm():
    counts = simulated(["B cell"] * 4, seed=0)
    logged = counts.copy()
    logged.X = counts.X.log1p()

    np.testing.assert_allclose(
        expression.linear_expression(logged).toarray(), expression.linear_expression(counts).toarray(), rtol=1e-5
    )
    assert expression.holds_counts(counts)
    assert not expression.holds_counts(logged)


def test_negative_values_are_refused():
    cells = simulated(["B cell"] * 2, seed=0)
    cells.X.data[0] = -1

    with pytest.raises(ValueError, match="negative"):
        expression.linear_expression(cells)


def test_a_gene_that_a_source_lacks_is_zero_and_the_first_of_a_duplicate_counts():
    matrix = sp.csr_matrix([[1.0, 2.0, 3.0]])

    moved = expression.on_genes(matrix, np.array(["A", "B", "A"], object), np.array(["B", "Z", "A"], object))

    assert moved.toarray().tolist() == [[2, 0, 1]]


def test_empty_cells_stay_empty():
    assert expression.log_normalised(sp.csr_matrix((2, 3), dtype=np.float32)).nnz == 0


def test_components_embed_types_apart():
    cells = simulated(["B cell"] * 30 + ["neuron"] * 30, seed=0)

    embedding = baselines.components_system().embed(cells)

    centres = embedding[:30].mean(0), embedding[30:].mean(0)
    nearest = np.array([[np.linalg.norm(row - centre) for centre in centres] for row in embedding]).argmin(1)
    assert (nearest == np.repeat([0, 1], 30)).all()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(np.ones((2, 3)) / 3, id="too few rows"),
        pytest.param(np.full((4, 3), np.nan), id="NaN"),
        pytest.param(np.ones((4, 3)), id="not summing to one"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(answer):
    with pytest.raises(ValueError, match="gave scores"):
        checked_scores(System("odd", predict=lambda *_: answer), simulated(["B cell"] * 4, seed=0), ["a", "b", "c"])


def test_the_generator_keeps_means_dispersions_and_library_sizes():
    generator = np.random.default_rng(0)
    share = generator.dirichlet(np.full(200, 5.0))
    library = np.exp(generator.normal(8, 0.4, size=(3000, 1)))
    counts = generator.poisson(library * share * generator.gamma(2.0, 0.5, size=(3000, 200)))

    fitted = NegativeBinomialGenerator(counts, ["a"] * 3000)
    drawn = fitted.sample("a", 3000, seed=1)

    np.testing.assert_allclose(drawn.mean(0), counts.mean(0), rtol=0.1)
    np.testing.assert_allclose(fitted.fitted["a"].dispersion, np.full(200, 0.5), atol=0.15)
    assert np.log(drawn.sum(1)).std() == pytest.approx(np.log(counts.sum(1)).std(), rel=0.1)


def test_the_generator_repeats_itself_for_a_seed_and_refuses_what_it_cannot_know():
    fitted = NegativeBinomialGenerator(np.array([[1, 2], [3, 1]]), ["a", "a"])

    assert (fitted.sample("a", 5, seed=1) == fitted.sample("a", 5, seed=1)).all()
    with pytest.raises(ValueError, match="'b' has no training cells"):
        fitted.sample("b", 1, seed=0)
    with pytest.raises(ValueError, match="raw counts"):
        NegativeBinomialGenerator(np.array([[0.5]]), ["a"])
