"""Every example in a docstring is run."""

import doctest
import importlib
import pkgutil

import pytest

import scmmgpt

# Scripts and scaffolding whose import starts something, or that need an extra, hold no examples.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(scmmgpt.__path__, "scmmgpt.")
    if ".hub_cards.scmmgpt-mini" not in module.name and ".space" not in module.name
]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        pytest.skip(f"needs {missing.name}")
    assert doctest.testmod(module, optionflags=FLAGS).failed == 0
