"""The closed forms behind the cell decoder, on counts whose truth is known."""

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgpt.training.mini.factor_fit import (
    Counted,
    choose_cells,
    fit_factors,
    library_sizes,
    log_shares,
    molecules_of_reads,
    numbered,
    platform_shifts,
    state_space,
    truly_measured,
)

NUM_GENES, NUM_FACTORS = 120, 2


@pytest.fixture(scope="module")
def truth():
    """Cells of two kinds: the factors of the second vary twice as much, and the first factor alone does in the first."""
    random = np.random.default_rng(0)
    loadings = random.normal(size=(NUM_GENES, NUM_FACTORS)) * 0.25
    spreads = np.array([[1.0, 0.1], [1.5, 1.5]])
    kind = np.repeat([0, 1], 500)
    factors = random.normal(size=(1000, NUM_FACTORS)) * spreads[kind]
    share = np.exp(random.normal(size=NUM_GENES))
    share /= share.sum()
    library = np.exp(random.normal(7, 0.3, size=(1000, 1)))
    base = np.log(share) + np.log(library)
    rate = np.exp(base + factors @ loadings.T - (spreads[kind] ** 2) @ (loadings**2).T / 2)
    counts = random.poisson(rate * random.gamma(5, 1 / 5, rate.shape))
    measured = np.ones((1000, NUM_GENES), bool)
    # What a profile says of its cells: their own mean.
    profile = counts / library
    base = np.log(np.array([profile[kind == k].mean(0) for k in (0, 1)]))[kind] + np.log(library)
    cells = Counted(sp.csr_matrix(counts), base, measured, kind, kind, np.zeros(1000, int))
    return cells, [loadings @ np.diag(s**2) @ loadings.T for s in spreads]


@pytest.fixture(scope="module")
def fit(truth):
    return fit_factors(truth[0], NUM_FACTORS, steps=10, leading=100)


def test_the_covariance_of_each_kind_is_found(truth, fit):
    pairs = np.triu_indices(NUM_GENES, 1)
    for expected, found in zip(truth[1], fit.covariances, strict=True):
        covariance = fit.loadings @ found @ fit.loadings.T
        assert np.corrcoef(covariance[pairs], expected[pairs])[0, 1] > 0.95
        assert covariance[pairs].std() == pytest.approx(expected[pairs].std(), rel=0.3)


def test_what_factors_explain_is_no_dispersion(truth, fit):
    assert np.median(fit.dispersions) == pytest.approx(0.2, abs=0.08)


def test_independent_genes_have_next_to_no_factors(truth):
    cells = truth[0]
    random = np.random.default_rng(1)
    alone = Counted(
        sp.csr_matrix(random.poisson(np.exp(cells.base))), *(getattr(cells, n) for n in list(vars(cells))[1:])
    )

    found = fit_factors(alone, NUM_FACTORS, steps=6, leading=100)

    assert (found.loadings**2).sum(1).mean() < 0.05


def test_a_platform_is_told_from_the_kinds_that_it_measured():
    random = np.random.default_rng(0)
    kinds = random.normal(size=(6, NUM_GENES))
    shift = random.normal(size=NUM_GENES)
    kind, platform = np.repeat(np.arange(6), 4), np.tile([0, 0, 1, 1], 6)
    logs = kinds[kind] + shift * platform[:, None] + 0.1 * random.normal(size=(24, NUM_GENES))

    found = platform_shifts(logs, kind, platform, 3)

    assert np.corrcoef(found[1], shift)[0, 1] > 0.98
    assert not found[0].any()
    assert not found[2].any()  # a platform without profiles shifts nothing


def test_what_was_not_measured_is_taken_from_the_kind():
    share = np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.1, 0.8, 0.1]])
    measured = np.array([[True, True, False], [True, False, True], [True, True, True]])

    logs = log_shares(share, measured, np.array([0, 0, 1]))

    assert logs[0, 2] == pytest.approx(np.log(0.5), abs=0.4)
    assert logs[2, 1] == pytest.approx(np.log(0.8), abs=1e-3)


def test_states_give_the_profiles_back():
    random = np.random.default_rng(0)
    logs = random.normal(size=(30, 4)) @ random.normal(size=(4, NUM_GENES)) - 5

    space = state_space(logs, np.arange(30), 4)

    np.testing.assert_allclose(space.mean + space.states @ space.loadings.T, logs, atol=0.05)


def test_what_parts_two_studies_of_the_same_cells_is_no_state():
    random = np.random.default_rng(0)
    kinds, studies = random.normal(size=(15, NUM_GENES)), 3 * random.normal(size=(2, NUM_GENES))
    logs = np.repeat(kinds, 2, axis=0) + np.tile(studies, (15, 1)) - 5

    space = state_space(logs, np.repeat(np.arange(15), 2), 14)

    means = space.mean + space.states.reshape(15, 2, -1).mean(1) @ space.loadings.T
    np.testing.assert_allclose(means, kinds + studies.mean(0) - 5, atol=0.1)


def test_a_gene_that_a_study_never_shows_was_not_measured_there():
    share = np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.1, 0.9, 0.0]])

    seen = truly_measured(share, np.ones((3, 3), bool), ["a", "a", "b"])

    assert seen.tolist() == [[True, True, True], [True, True, True], [True, True, False]]


def test_molecules_are_told_by_the_genes_that_are_seen():
    random = np.random.default_rng(0)
    share = random.dirichlet(np.full(2000, 0.3), size=2)
    profile = np.repeat([0, 1], 40)
    molecules = random.poisson(8000 * share[profile] * random.gamma(4, 1 / 4, (80, 2000)))
    reads = sp.csr_matrix(molecules * 70)

    assert np.exp(molecules_of_reads(reads, share, profile)) == pytest.approx(8000, rel=0.1)


def test_library_sizes_are_of_platforms_and_kinds():
    random = np.random.default_rng(0)
    kind, platform = np.tile([0, 1], 400), np.repeat([0, 1], 400)
    totals = np.exp(6 + 2 * platform + 0.5 * kind + 0.2 * random.normal(size=800))

    centers, spreads, added = library_sizes(totals, kind, platform.astype(str), platform, 3)

    np.testing.assert_allclose(centers, [6.25, 8.25, 6.25], atol=0.05)  # the third was never counted
    np.testing.assert_allclose(spreads, [0.2, 0.2, 0.2], atol=0.02)
    assert added[1] - added[0] == pytest.approx(0.5 * 2 / 3, abs=0.05)  # shrunk: two families say it


def test_cells_are_chosen_from_each_profile_alike():
    profile = np.array([0] * 50 + [1] * 3)

    chosen = choose_cells(profile, 5, seed=0)

    assert np.bincount(profile[chosen]).tolist() == [5, 3]
    assert (np.diff(chosen) > 0).all()


def test_rows_are_numbered_in_order():
    names, number = numbered(["b", "a", "b"], [1, 2, 1])

    assert names == [("a", 2), ("b", 1)]
    assert number.tolist() == [1, 0, 1]
