"""The keyword arguments that verbs share: described once here, and a misspelt one refused with the nearest name."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# In the order in which every verb takes them.
SHARED_ARGUMENTS = {
    "model": "A directory, a Hub repository, what `load` returned, or None for the model that comes with the package.",
    "output": "An .h5ad or .zarr file to write (.h5mu of an .h5mu); never the input. With a path as input, memory use does not grow with "
    "the file, and the same call resumes an interrupted one.",
    "key_added": "The name that results are written under.",
    "overwrite": "Replace results of the same name.",
    "inplace": "Write into the object that was given instead of a copy.",
    "summary_only": "Of a file that was written, return only `obs` and `uns`.",
    "device": '"cpu", "cuda", "cuda:1", "mps"; None takes the best there is.',
    "batch_size": "Cells at a time; None chooses. A batch that does not fit into memory is halved.",
    "progress": "Show a progress bar on a terminal.",
    "engine": '"local", or "ray": compute the cells of a file on a Ray cluster. The result is the same.',
    "address": "A running Ray cluster; None starts one on this machine.",
    "workers": "Copies of the model on the Ray cluster; None: as many as it has room for.",
}


def shared_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, with its shared arguments in the docstring, that refuses unknown ones by their nearest name."""
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        unknown = next((name for name in kwargs if name not in names), None)
        if unknown is not None:
            from .errors import UnknownArgumentError

            nearest = get_close_matches(unknown, names, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(names)}."
            raise UnknownArgumentError(f"{function.__name__}() has no argument {unknown!r}; {hint}")
        return function(*args, **kwargs)

    checked.__doc__ = _with_descriptions(inspect.getdoc(function) or "", names)
    return checked


def _with_descriptions(doc: str, names: list[str]) -> str:
    """A docstring that ends in its list of parameters, and at the end of these the shared ones."""
    described = [
        f"{name}\n{textwrap.indent(textwrap.fill(SHARED_ARGUMENTS[name], 110), '    ')}"
        for name in names
        if name in SHARED_ARGUMENTS and not re.search(rf"^{name}$", doc, flags=re.MULTILINE)
    ]
    return "\n".join([doc, *described])
