"""What others wrote, read without running any of it: their tensors, their dictionaries, and the names in both."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from scmmgpt.errors import UserError

Weights = dict[str, torch.Tensor]


def read_weights(path: Path) -> Weights:
    """Tensors of a safetensors or a torch file. A pickle that holds anything else is refused, unread."""
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{str(path)!r} holds more than tensors or is damaged, and what is not tensors could run code: not loaded. "
            "Ask its authors for a safetensors file, or for its `state_dict()` alone."
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise UserError(f"{str(path)!r} is not a state_dict. Save only the model's `state_dict()`.")
    return dict(weights)


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries of strings and numbers, nothing that could run."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def read_dictionary(path: Path) -> dict[str, float]:
    """A dictionary of names and numbers, as json or as a pickle of nothing else."""
    try:
        with path.open("rb") as file:
            return json.load(file) if path.suffix == ".json" else _PlainUnpickler(file).load()
    except (pickle.UnpicklingError, UnicodeDecodeError, json.JSONDecodeError, EOFError) as error:
        raise UserError(
            f"{str(path)!r} holds more than names and numbers ({error}), which could run code: not loaded. Save it as "
            "json: {name: number, ...}."
        ) from error


def find(folder: Path, *patterns: str) -> Path:
    """The one file of a folder that fits, the first pattern first."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    present = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"{str(folder)!r} lacks {' or '.join(patterns)}; it holds {present}.")


def renamed(weights: Weights, names: Sequence[tuple[str, str]]) -> Weights:
    """The same tensors under other names; every rule is tried in order."""
    other = {}
    for name, weight in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        other[name] = weight
    return other


def load_all(model: PreTrainedModel, weights: Weights, source: Path, may_lack: str = r"$^") -> None:
    """Load the weights; any name that lacks or is too many, and any size that differs, means another architecture."""
    expected = model.state_dict()
    lacking = [name for name in expected if name not in weights and not re.search(may_lack, name)]
    unknown = [name for name in weights if name not in expected]
    unlike = [name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape]
    reasons = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])})"
        for what, names in (("weights lack", lacking), ("are unknown", unknown), ("have another size", unlike))
        if names
    ]
    if reasons:
        raise UserError(
            f"{str(source)!r} holds another architecture than {type(model).__name__}: {'; '.join(reasons)}."
        )
    model.load_state_dict(weights, strict=False)
