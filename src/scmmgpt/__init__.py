"""A model of single-cell RNA-seq and text for Hugging Face transformers.

Importing the package registers its classes with the Auto classes. Everything else loads on first use.
"""

import sys
from importlib import import_module
from pathlib import Path

from .version import __version__

_HOME = {
    "annotate": "api",
    "chat": "api",
    "describe": "api",
    "embed": "api",
    "EMBEDDED_MODEL": "hub_cards",
    "evaluate": "training.evaluate",
    "finetune": "training.finetune",
    "generate_cells": "api",
    "load": "api",
    "search": "api",
    "ScMMGPTConfig": "modeling_scmmgpt",
    "ScMMGPTForConditionalGeneration": "modeling_scmmgpt",
    "ScMMGPTForPreTraining": "modeling_scmmgpt",
    "ScMMGPTModel": "modeling_scmmgpt",
    "ScMMGPTGeneTokenizer": "processing",
    "ScMMGPTProcessor": "processing",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'scmmgpt' has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:  # what trains and evaluates comes with extras
        from .errors import MissingExtraError

        raise MissingExtraError(error.name or name) from error


def __dir__() -> list[str]:
    return sorted(__all__)


# The shell command must answer `--help` at once: its verbs load the model classes when they need them.
if Path(sys.argv[0]).stem != "scmmgpt":
    from . import auto
