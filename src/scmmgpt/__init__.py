"""A model of single-cell RNA-seq and text for Hugging Face transformers.

Importing the package makes its classes known to the Auto classes, which load them on first use, as everything else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .auto_on_demand import register_on_demand
from .version import __version__

if TYPE_CHECKING:  # for editors and type checkers, which do not look into `_HOME`
    from .api import annotate, chat, describe, embed, generate_cells, load, search
    from .chromatin import gene_activity
    from .comparison import compare
    from .hub_cards import EMBEDDED_MODEL
    from .label_audit import audit
    from .modeling_scmmgpt import (
        ScMMGPTConfig,
        ScMMGPTForConditionalGeneration,
        ScMMGPTForPreTraining,
        ScMMGPTModel,
    )
    from .niche_finding import niches
    from .one_vocabulary import harmonise
    from .processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor
    from .spatial import surroundings
    from .training.evaluate import evaluate
    from .training.finetune import finetune

_HOME = {
    "annotate": "api",
    "audit": "label_audit",
    "chat": "api",
    "compare": "comparison",
    "describe": "api",
    "embed": "api",
    "EMBEDDED_MODEL": "hub_cards",
    "evaluate": "training.evaluate",
    "finetune": "training.finetune",
    "gene_activity": "chromatin",
    "generate_cells": "api",
    "harmonise": "one_vocabulary",
    "load": "api",
    "niches": "niche_finding",
    "search": "api",
    "surroundings": "spatial",
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


register_on_demand()
