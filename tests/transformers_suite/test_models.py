"""Our model classes under the tests that transformers has for every model."""

import unittest

from transformers_suite.model_testers import (
    CellEncoderTester,
    GenerationTester,
    MaskedValuesTester,
    ModelOfTowersTester,
    OurModel,
    PreTrainingTester,
    QFormerTester,
)
from transformers_suite.own_tests import own_tests

common = own_tests("test_modeling_common")
ModelTesterMixin = common.ModelTesterMixin
TrainingTesterMixin = own_tests("test_training_mixin").TrainingTesterMixin
TensorParallelTesterMixin = own_tests("test_tensor_parallel_mixin").TensorParallelTesterMixin


def set_config_for_less_flaky_test(config):
    """Theirs sets the epsilon by every name that any model has for it; our configs refuse what is not a field."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        for name in ("layer_norm_eps", "rms_norm_eps"):
            if hasattr(part, name):
                setattr(part, name, 1.0)


common.set_config_for_less_flaky_test = set_config_for_less_flaky_test


class CellEncoderTest(OurModel, ModelTesterMixin, unittest.TestCase):
    model_tester_class = CellEncoderTester


class CellEncoderForMaskedValuesTest(OurModel, ModelTesterMixin, unittest.TestCase):
    model_tester_class = MaskedValuesTester


class QFormerTest(OurModel, ModelTesterMixin, unittest.TestCase):
    model_tester_class = QFormerTester


class ModelTest(OurModel, ModelTesterMixin, unittest.TestCase):
    model_tester_class = ModelOfTowersTester
    _is_composite = True


class ForPreTrainingTest(OurModel, ModelTesterMixin, unittest.TestCase):
    model_tester_class = PreTrainingTester
    _is_composite = True


class ForConditionalGenerationTest(
    OurModel, ModelTesterMixin, TrainingTesterMixin, TensorParallelTesterMixin, unittest.TestCase
):
    model_tester_class = GenerationTester
    _is_composite = True
    test_all_params_have_gradient = False  # stage 2 leaves the heads of stage 1 alone
