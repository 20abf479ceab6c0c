"""Our processor under the tests that transformers has for every processor."""

import unittest

from tiny_models import make_processor
from transformers_suite.own_tests import own_tests

from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.processing_scmmgpt import ScMMGPTProcessorKwargs  # noqa: F401 - found by its name

ProcessorTesterMixin = own_tests("test_processing_common").ProcessorTesterMixin


class OurProcessor:
    """Stands before transformers' mixin in the order of bases."""

    processor_class = ScMMGPTProcessor

    @classmethod
    def _setup_feature_extractor(cls):
        return make_processor().feature_extractor

    @classmethod
    def _setup_tokenizer(cls):
        return make_processor().tokenizer


class ProcessorTest(OurProcessor, ProcessorTesterMixin, unittest.TestCase):
    pass
