"""Text -> cell begins from what the corpus says of each gene before a single step."""

import numpy as np
import pytest
import torch

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.training.decoder_start import PSEUDO_SHARE, begin_with, is_new, leading_components

NUM_GENES = 40


@pytest.fixture
def shares():
    """Three kinds of profile, ten of each: what sets them apart is two-dimensional."""
    generator = np.random.default_rng(0)
    kinds = generator.normal(size=(3, NUM_GENES))
    logs = kinds[np.repeat(np.arange(3), 10)] - 4
    shares = np.exp(logs)
    return shares / shares.sum(1, keepdims=True)


@pytest.fixture
def decoder(tiny_config):
    def build(num_gene_loadings):
        config = tiny_config(decoder={"num_gene_loadings": num_gene_loadings})
        return ScMMGPTForConditionalGeneration(config).cell_decoder

    return build


def test_the_leading_components_tell_the_profiles(shares):
    everything = np.ones_like(shares, bool)
    loadings = leading_components(shares, everything, 2)
    logs = np.log(shares + PSEUDO_SHARE)
    deviations = logs - logs.mean(0)

    scores = np.linalg.lstsq(loadings, deviations.T, rcond=None)[0]

    np.testing.assert_allclose(loadings @ scores, deviations.T, atol=1e-4)


def test_a_gene_that_a_profile_did_not_measure_says_nothing_about_it(shares):
    measured = np.ones_like(shares, bool)
    measured[:10, 0] = False
    spoilt = np.where(measured, shares, 0.9)

    np.testing.assert_allclose(
        np.abs(leading_components(spoilt, measured, 2)[1:]),
        np.abs(leading_components(shares, measured, 2)[1:]),
        atol=0.2,
    )


def test_a_new_decoder_begins_with_the_mean_cell(decoder, shares):
    new, gene_ids = decoder(2), np.arange(NUM_GENES) + 2
    assert is_new(new)

    begin_with(new, shares, np.ones_like(shares, bool), gene_ids)

    assert not is_new(new)
    torch.testing.assert_close(
        new.gene_head.gene_bias[2 : 2 + NUM_GENES].exp(), torch.from_numpy(shares.mean(0)).float()
    )
    assert (new.gene_head.gene_loadings[2 : 2 + NUM_GENES].abs().max(0).values > 0.1).all()
    assert (new.gene_head.gene_loadings[:2] == 0).all()


def test_more_loadings_than_the_profiles_have_components_are_left_at_nothing(decoder, shares):
    new = decoder(8)

    begin_with(new, shares, np.ones_like(shares, bool), np.arange(NUM_GENES) + 2)

    assert (new.gene_head.gene_loadings[:, 2:] == 0).all()


def test_a_decoder_may_have_no_loadings(decoder, shares):
    new = decoder(0)

    begin_with(new, shares, np.ones_like(shares, bool), np.arange(NUM_GENES) + 2)

    torch.testing.assert_close(
        new.gene_head.gene_bias[2 : 2 + NUM_GENES].exp(), torch.from_numpy(shares.mean(0)).float()
    )
