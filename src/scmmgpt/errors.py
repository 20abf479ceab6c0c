"""The ways in which a request can fail before any work is done."""

from importlib import import_module
from types import ModuleType

from .processing.errors_scmmgpt import UserError

# Which optional set of packages brings the module that a verb needs.
_EXTRA_OF_MODULE = {
    "cellxgene_census": "census",
    "datasets": "train",
    "faiss": "search",
    "fastapi": "serve",
    "gguf": "chat",
    "gradio": "app",
    "matplotlib": "eval",
    "mcp": "mcp",
    "mudata": "eval",
    "nltk": "eval",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "ot": "eval",
    "peft": "train",
    "pyarrow": "train",
    "ray": "ray",
    "rouge_score": "eval",
    "sacrebleu": "eval",
    "scanpy": "eval",
    "scib_metrics": "scib",
    "scvi": "scvi",
    "sklearn": "eval",
    "tensorboard": "train",
    "tiledbsoma": "census",
    "trackio": "track",
    "trl": "train",
    "uvicorn": "serve",
}


class UnknownArgumentError(UserError, TypeError):
    """A keyword argument that a verb does not take; the message names the nearest one that it takes."""


class MissingExtraError(UserError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""

    def __init__(self, module: str):
        root = module.partition(".")[0]
        extra = _EXTRA_OF_MODULE.get(root)
        remedy = f'pip install "scmmgpt[{extra}]"' if extra else f"pip install {root}"
        super().__init__(f"This needs the package `{root}`: {remedy}")


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def require(module: str) -> ModuleType:
    """The module of an optional package, or one line that says how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(module) from error
