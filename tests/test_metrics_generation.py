"""Metrics of pseudo-cells: against POT and scikit-learn, or against cases whose answer is known."""

import numpy as np
import pytest

from scmmgpt.training.evaluation import metrics_generation as generation


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_neighbour_accuracy_is_that_of_a_k_nearest_neighbour_classifier(generator):
    neighbors = pytest.importorskip("sklearn.neighbors")
    real, types = generator.normal(size=(200, 5)), generator.choice(["a", "b"], size=200)
    real[types == "a", 0] += 1.5
    cells, asked = generator.normal(size=(1500, 5)), generator.choice(["a", "b"], size=1500)

    for k in (3, 5, 25):  # odd, so that two types never tie
        reference = neighbors.KNeighborsClassifier(k).fit(real, types)
        ours = generation.neighbour_accuracy(real, types, cells, asked, k)
        assert ours == pytest.approx(reference.score(cells, asked))


def test_a_tie_between_types_goes_to_the_nearest():
    real, types = np.array([[0.0], [1.0], [2.0], [3.0]]), ["a", "b", "b", "a"]

    assert generation.neighbour_accuracy(real, types, np.array([[-1.0]]), ["a"], k=4) == 1
    assert generation.neighbour_accuracy(real, types, np.array([[1.4]]), ["b"], k=4) == 1


def test_more_neighbours_than_cells_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="k = 25 neighbours .* 3 cells"):
        generation.neighbour_accuracy(np.zeros((3, 2)), ["a"] * 3, np.zeros((1, 2)), ["a"], k=25)


def test_the_discrepancy_is_zero_on_average_for_one_distribution_and_grows_with_the_shift(generator):
    def discrepancy(shift):
        first, second = generator.normal(size=(200, 4)) + shift, generator.normal(size=(200, 4))
        return generation.maximum_mean_discrepancy(first, second)

    assert np.mean([discrepancy(0) for _ in range(20)]) == pytest.approx(0, abs=0.002)
    assert 0.01 < discrepancy(0.5) < discrepancy(1) < discrepancy(3)


def test_the_discrepancy_of_a_hand_worked_case():
    first, second = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])  # median squared distance of the second: 4

    e = np.exp
    expected = e(-1 / 4) + e(-4 / 4) - 2 * (e(0) + e(-4 / 4) + e(-1 / 4) + e(-1 / 4)) / 4

    assert generation.maximum_mean_discrepancy(first, second) == pytest.approx(expected)


def test_sliced_wasserstein_agrees_with_pot(generator):
    ot = pytest.importorskip("ot")
    first, second = generator.normal(size=(300, 6)), generator.normal(size=(300, 6)) * 1.5 + 0.7

    ours = generation.sliced_wasserstein(first, second, num_directions=2000)

    assert ours == pytest.approx(ot.sliced_wasserstein_distance(first, second, n_projections=2000, seed=0), rel=0.05)


def test_sliced_wasserstein_of_a_shift_is_its_length_in_one_dimension():
    cells = np.arange(10.0)[:, None]

    assert generation.sliced_wasserstein(cells + 3, cells) == pytest.approx(3)


def test_gromov_wasserstein_ignores_place_and_sees_shape(generator):
    pytest.importorskip("ot")
    cloud = generator.normal(size=(60, 4))
    ring = np.column_stack([np.cos(np.arange(60)), np.sin(np.arange(60)), np.zeros(60), np.zeros(60)])

    assert generation.gromov_wasserstein(cloud + 100, cloud) == pytest.approx(0, abs=1e-6)
    assert generation.gromov_wasserstein(ring, cloud) > 0.02


def test_distribution_distance_is_in_standard_deviations_of_the_real_cells():
    real = np.array([0.0, 2.0] * 50)

    assert generation.distribution_distance(real + 3, real) == pytest.approx(3 / real.std())
    assert generation.distribution_distance(real, real) == 0


def test_a_classifier_cannot_tell_one_distribution_apart_and_can_tell_two(generator):
    real, same = generator.normal(size=(150, 10)), generator.normal(size=(150, 10))

    forgery = generation.real_or_generated_auc(real, same)
    obvious = generation.real_or_generated_auc(real, same + 2)

    assert all(abs(auc - 0.5) < 0.12 for auc in forgery.values())
    assert all(auc > 0.95 for auc in obvious.values())


def test_only_the_forest_sees_a_difference_in_spread(generator):
    auc = generation.real_or_generated_auc(generator.normal(size=(200, 10)), generator.normal(size=(200, 10)) * 0.3)

    assert auc["linear"] < 0.65 < 0.95 < auc["forest"]


def test_copies_of_training_cells_are_at_distance_zero_and_fresh_cells_at_ratio_one(generator):
    training, held_out, fresh = generator.normal(size=(3, 400, 6))

    assert generation.nearest_training_ratio(training[:50] + 1e-9, held_out, training) < 1e-6
    assert generation.nearest_training_ratio(fresh, held_out, training) == pytest.approx(1, abs=0.15)


def test_variance_ratios_are_one_for_the_same_cells_and_the_square_of_a_stretch(generator):
    real = generator.normal(size=(100, 8)) * np.arange(1, 9)

    assert generation.component_variance_ratios(real, real, ruler=real) == pytest.approx(np.ones(8))
    assert generation.component_variance_ratios(real, real * 2, ruler=real) == pytest.approx(np.full(8, 4))
    assert generation.share_within_factor(np.array([0.2, 0.34, 1.0, 2.9])) == 0.75


def test_components_of_other_real_cells_do_not_flatter_the_reference(generator):
    ruler, real, same = generator.normal(size=(3, 60, 500))

    fair = generation.component_variance_ratios(real, same, ruler)
    fitted_on_itself = generation.component_variance_ratios(real, same, real)

    assert np.median(fair) == pytest.approx(1, abs=0.25)
    assert np.median(fitted_on_itself) < 0.3


def test_covariance_agreement_sees_dependence_between_genes(generator):
    mixing = generator.normal(size=(30, 30))
    real, same = (generator.normal(size=(2000, 30)) @ mixing for _ in range(2))
    independent = generator.normal(size=(2000, 30)) * real.std(0)

    assert generation.covariance_agreement(real, same) > 0.95
    assert abs(generation.covariance_agreement(real, independent)) < 0.15
    assert generation.covariance_agreement(real, np.zeros_like(real)) == 0


def test_duplicates_are_counted_beyond_the_first():
    assert generation.num_duplicates(np.array([[1, 2], [1, 2], [3, 4], [1, 2]])) == 2
