"""Every example in a docstring is run."""

import doctest
import importlib
import pkgutil

import pytest

from scmmgpt.hub_cards import EMBEDDED_MODEL

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
