"""Every example in a docstring is run."""

import doctest
import importlib
import inspect
import pkgutil
from dataclasses import fields

import pytest

from scmmgpt.modeling_scmmgpt import ScMMGPTCellEncoder, ScMMGPTCellEncoderForMaskedValues, ScMMGPTQFormer
from scmmgpt.modeling_scmmgpt.modeling_cell_decoder import ScMMGPTCellDecoderLoss, ScMMGPTCellOutput
from scmmgpt.modeling_scmmgpt.modeling_cell_encoder import ScMMGPTCellEncoderOutput
from scmmgpt.modeling_scmmgpt.modeling_qformer import ScMMGPTQFormerOutput

# An editable install maps these to folders of their own, where a walk from `scmmgpt` does not find them.
PACKAGES = ["scmmgpt", "scmmgpt.modeling_scmmgpt", "scmmgpt.processing"]
# Scripts and scaffolding whose import starts something, or that need an extra, hold no examples.
MODULES = sorted(
    {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        if ".hub_cards.scmmgpt-mini" not in module.name and ".space" not in module.name
    }
)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        pytest.skip(f"needs {missing.name}")
    assert doctest.testmod(module, optionflags=FLAGS).failed == 0


def test_the_examples_of_models_and_processor_are_among_them():
    assert {"scmmgpt.modeling_scmmgpt.modeling_cell_encoder", "scmmgpt.processing.processing_scmmgpt"} <= set(MODULES)


@pytest.mark.parametrize("tower", [ScMMGPTCellEncoder, ScMMGPTCellEncoderForMaskedValues, ScMMGPTQFormer])
def test_a_tower_has_an_example_and_says_what_each_argument_is(tower):
    arguments = inspect.signature(tower.forward).parameters.keys() - {"self", "kwargs"}
    described = tower.forward.__doc__.split("Parameters")[1]

    assert ">>> " in tower.__doc__
    assert [name for name in arguments if name not in described] == []


@pytest.mark.parametrize(
    "output", [ScMMGPTCellEncoderOutput, ScMMGPTQFormerOutput, ScMMGPTCellOutput, ScMMGPTCellDecoderLoss]
)
def test_an_output_says_what_each_field_is(output):
    described = output.__doc__.split("Parameters")[1]

    assert [field.name for field in fields(output) if f"    {field.name}\n" not in described] == []
