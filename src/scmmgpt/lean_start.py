"""The verbs for a command that only computes, without what others import for compilers, clusters and other models.

It waits until somebody uses it (see `on_first_use`); more than half of what `scmmgpt annotate` of a small file would
cost is spared so. A process that goes on to train need not begin here.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

from .on_first_use import imports

# What torch imports at its own start, in its order; it waits only in versions whose whole import was tried with it.
_TRIED_TORCH = ("2.13.", "2.14.")
_TORCH_ITSELF = (
    "torch.export",
    "torch._export",
    "torch._meta_registrations",
    "torch._decomp",
    "torch._prims",
    "torch._refs",
)
_WAITING = (
    "accelerate",
    "huggingface_hub.hf_api",
    "jinja2",
    "httpcore2",
    "natsort",
    "numpy.f2py",
    "PIL",
    "pyarrow.compute",
    "sympy",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.nn.attention.varlen",
    "transformers.conversion_mapping",
    "transformers.distributed.checkpoint",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.parallel_utils",
    "transformers.distributed.pipeline_parallel",
    "transformers.distributed.sharding_utils",
    "transformers.distributed.tensor_parallel",
    "transformers.generation.continuous_batching.cache",
    "transformers.quantizers",
    "transformers.safetensors_conversion",
)
# These two read every model's source to know what there is.
_HOMES = {
    "AttentionInterface": "modeling_utils",
    "AttentionMaskInterface": "masking_utils",
    "AutoConfig": "models.auto.configuration_auto",
    "AutoFeatureExtractor": "models.auto.feature_extraction_auto",
    "AutoProcessor": "models.auto.processing_auto",
    "AutoTokenizer": "models.auto.tokenization_auto",
    "MistralCommonBackend": "tokenization_mistral_common",
} | dict.fromkeys(
    ["AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForPreTraining"],
    "models.auto.modeling_auto",
)
_HOLLOW = {"transformers": _HOMES, "transformers.models": {}}
_NEEDED = (
    "torch",
    "transformers.modeling_utils",
    "transformers.processing_utils",
    "transformers.loss.loss_utils",
    "scmmgpt.modeling_scmmgpt",
)


@contextmanager
def _fewer_parts_of_transformers() -> Iterator[None]:
    """Spare transformers a second reading of its own models' sources, and solvers for losses of other models."""
    utils = import_module("transformers.utils.import_utils")
    given = {
        "direct_transformers_import": lambda *_, **__: sys.modules["transformers"],
        "is_scipy_available": lambda: False,
        "is_torch_distributed_available": lambda: False,
    }
    places = [utils, import_module("transformers.utils")]
    kept = [(place, name, getattr(place, name)) for place in places for name in given if hasattr(place, name)]
    for place, name, _ in kept:
        setattr(place, name, given[name])
    try:
        yield
    finally:
        for place, name, known in kept:
            setattr(place, name, known)


def _leave_meta_weights_alone() -> None:
    """Spare torch the detour, through sympy, to random values of weights that hold none and are about to be read."""
    from torch.nn import init

    known = init.normal_
    init.normal_ = lambda weight, *given, **options: weight if weight.is_meta else known(weight, *given, **options)


def _know_own_weights_by_name() -> None:
    """Spare models that are ours alone the table of names, a thousand patterns, that weights of others once had."""
    utils: Any = import_module("transformers.modeling_utils")
    known = utils.get_model_conversion_mapping

    def changes_of_names(model, *given, **options):
        parts = (part for part in model.modules() if isinstance(part, utils.PreTrainedModel))
        is_own = all(type(part).__module__.startswith("scmmgpt.") for part in parts)
        return [] if is_own and not any(given) and not options else known(model, *given, **options)

    utils.get_model_conversion_mapping = changes_of_names


def import_lean() -> bool:
    """Import what models are built on, and say whether it was done without what waits."""
    if {"torch", "transformers"} & sys.modules.keys():
        return False
    before = set(sys.modules)
    of_torch = _TORCH_ITSELF if version("torch").startswith(_TRIED_TORCH) else ()
    gc.disable()  # all that is imported stays
    try:
        with imports.on_first_use(_WAITING, of_torch, _HOLLOW):
            import_module("torch")
            with _fewer_parts_of_transformers():
                for name in _NEEDED:
                    import_module(name)
            import_module("scmmgpt.api")
        _leave_meta_weights_alone()
        _know_own_weights_by_name()
        return True
    except Exception:  # whatever another transformers does otherwise
        for name in sys.modules.keys() - before:
            if name.startswith(("transformers", "scmmgpt.")):
                del sys.modules[name]  # half of it would be worse than none
        return False
    finally:
        gc.enable()
        gc.freeze()


import_lean()

from . import api  # noqa: E402

__all__ = ["api", "import_lean"]
