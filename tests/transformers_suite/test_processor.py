"""Our processor under the tests that transformers has for every processor."""

import unittest

from tiny_models import make_processor, tiny_cells
from transformers_suite.own_tests import own_tests

from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.processing_scmmgpt import ScMMGPTProcessorKwargs

ProcessorTesterMixin = own_tests("test_processing_common").ProcessorTesterMixin


class OurProcessor:
    """Stands before transformers' mixin in the order of bases."""

    @classmethod
    def _setup_feature_extractor(cls):
        return make_processor().feature_extractor

    @classmethod
    def _setup_tokenizer(cls):
        return make_processor().tokenizer

    @staticmethod
    def prepare_processor_dict():
        return {"num_query_tokens": 4}


class ProcessorTest(OurProcessor, ProcessorTesterMixin, unittest.TestCase):
    processor_class = ScMMGPTProcessor


class CellsAsAudio(ScMMGPTProcessor):
    """Takes cells by the name that those tests give to whatever a feature extractor reads."""

    def __call__(self, text=None, audio=None, **kwargs):
        return super().__call__(cells=audio, text=text, **kwargs)


CellsAsAudioKwargs = ScMMGPTProcessorKwargs  # looked up by its name


class ProcessorWithCellsTest(OurProcessor, ProcessorTesterMixin, unittest.TestCase):
    """The tests about options, with cells beside the text."""

    processor_class = CellsAsAudio
    audio_token = "<cell>"
    audio_input_name = "gene_ids"

    def prepare_audio_inputs(self, batch_size=None):
        return tiny_cells(batch_size or 1)
