"""Every example in a docstring is run."""

import doctest
import importlib
import inspect
import pkgutil
from dataclasses import fields

import pytest

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.modeling_scmmgpt import ScMMGPTCellEncoder, ScMMGPTCellEncoderForMaskedValues, ScMMGPTQFormer
from scmmgpt.modeling_scmmgpt.modeling_cell_decoder import ScMMGPTCellDecoderLoss, ScMMGPTCellOutput
from scmmgpt.modeling_scmmgpt.modeling_cell_encoder import ScMMGPTCellEncoderOutput
from scmmgpt.modeling_scmmgpt.modeling_qformer import ScMMGPTQFormerOutput

# An editable install keeps these outside of the package's own folder.
PACKAGES = ("scmmgpt", *(f"scmmgpt.{name}" for name in ("modeling_scmmgpt", "processing", "training", "hub_cards")))
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
def test_docstring_examples_hold(name, monkeypatch):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        pytest.skip(f"needs {missing.name}")
    monkeypatch.chdir(EMBEDDED_MODEL.parent)  # where "scmmgpt-mini" is the embedded model
    runner, known = doctest.DocTestRunner(optionflags=FLAGS), {}
    for example in doctest.DocTestFinder().find(module, name):
        # What a class's example defined, the examples of its methods go on with.
        owner = example.name.removeprefix(f"{name}.").partition(".")[0]
        example.globs = known.setdefault(owner, example.globs)
        runner.run(example, clear_globs=False)
    assert runner.failures == 0


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
    described = inspect.getdoc(output).split("Parameters")[1]

    assert [field.name for field in fields(output) if f"\n{field.name}\n" not in described] == []
