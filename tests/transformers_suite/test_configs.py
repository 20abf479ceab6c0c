"""Our configs under the tests that transformers has for every config."""

import unittest

import pytest
from transformers_suite.model_testers import CellEncoderTester, JointTester, QFormerTester
from transformers_suite.own_tests import own_tests

from scmmgpt.modeling_scmmgpt import ScMMGPTCellDecoderConfig

ConfigTester = own_tests("test_configuration_common").ConfigTester

CONFIGS = [
    pytest.param(CellEncoderTester, {"hidden_size": 32}, id="ScMMGPTCellConfig"),
    pytest.param(QFormerTester, {"hidden_size": 24}, id="ScMMGPTQFormerConfig"),
    pytest.param(JointTester, {"projection_dim": 16}, id="ScMMGPTConfig"),
]


def config_tester(tester_class, fields):
    case = unittest.TestCase()
    case.model_tester = tester_class(case)
    return ConfigTester(case, config_class=tester_class.config_class, **fields)


@pytest.mark.parametrize(("tester_class", "fields"), CONFIGS)
def test_a_config_does_what_every_config_of_transformers_does(tester_class, fields):
    is_joint = tester_class is JointTester
    tester = config_tester(tester_class, {**fields, "has_text_modality": not is_joint})

    tester.run_common_tests()


def test_the_config_of_the_cell_decoder_does_what_every_config_does():
    # It has no `hidden_size`: it works in the LLM's and the cell encoder's.
    tester = ConfigTester(
        unittest.TestCase(),
        config_class=ScMMGPTCellDecoderConfig,
        has_text_modality=False,
        common_properties=["num_attention_heads", "latent_size"],
        latent_size=8,
    )

    tester.run_common_tests()
