"""What may be published: a complete repository of our architecture, in safe formats, and nothing besides."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scmmgpt.errors import UserError

# Loading one of these can run code.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5")
SUFFIXES = (".safetensors", ".json", ".txt", ".md", ".jinja", ".py", ".gz", ".tsv", ".model", ".png", ".svg")
PLAIN_NAMES = ("LICENSE", "NOTICE", ".gitattributes")
# Beside the islands: what an inference endpoint runs, and what sentence-transformers does.
ENDPOINT_FILES = ("handler.py", "request_cells_scmmgpt.py", "schema_scmmgpt.py", "sentence_transformer_scmmgpt.py")
# Made by Python and by downloads, in any folder that was used.
IGNORED_FOLDERS = ("__pycache__", ".cache", ".git")


def check_repository(directory: Path) -> dict[str, Path]:
    """{name on the Hub: local file} of a directory that is fit to be published.

    Raises
    ------
    UserError
        The first thing that is wrong: a file missing or broken, a pickle, a stray file, another architecture.
    """
    if not directory.is_dir():
        raise UserError(f"There is no directory {str(directory)!r}.")
    files = {path.relative_to(directory).as_posix(): path for path in sorted(_files_of(directory))}
    _refuse_pickles(files)
    config = _check_config(files, directory)
    _check_weights(files, directory)
    _check_card(files, directory)
    _refuse_stray_files(files, config)
    for name, path in files.items():
        _check_content(name, path)
    return files


def _files_of(directory: Path) -> Iterable[Path]:
    for path in directory.rglob("*"):
        folders = path.relative_to(directory).parts[:-1]
        if path.is_file() and not set(folders) & set(IGNORED_FOLDERS):
            yield path


def _refuse_pickles(files: dict[str, Path]) -> None:
    pickles = [name for name in files if name.endswith(PICKLES)]
    if pickles:
        raise UserError(
            f"{_listed(pickles)} can run code when loaded (pickle), so the Hub warns users of such files. "
            "Export the model into a fresh directory: weights go into .safetensors."
        )


def _check_config(files: dict[str, Path], directory: Path) -> dict[str, Any]:
    name = "adapter_config.json" if "adapter_config.json" in files else "config.json"
    if name not in files:
        raise UserError(f"{str(directory)!r} is not a model directory: it has no config.json.")
    config = _parse_json(name, files[name])
    if name == "config.json" and config.get("model_type") != "scmmgpt":
        raise UserError(f"{str(directory)!r} holds a model of type {config.get('model_type')!r}, not 'scmmgpt'.")
    return config


def _check_weights(files: dict[str, Path], directory: Path) -> None:
    if not any(name in files for name in ("model.safetensors", "adapter_model.safetensors")):
        index = "model.safetensors.index.json"
        if index not in files:
            raise UserError(f"{str(directory)!r} holds no weights: model.safetensors is missing.")
        shards = set(_parse_json(index, files[index]).get("weight_map", {}).values())
        if missing := sorted(shards - files.keys()):
            raise UserError(f"{index} names {_listed(missing)}, which {'is' if len(missing) == 1 else 'are'} missing.")


def _check_card(files: dict[str, Path], directory: Path) -> None:
    import yaml
    from huggingface_hub import ModelCard

    if "README.md" not in files:
        raise UserError(f"{str(directory)!r} has no model card: README.md is missing. `export` writes one.")
    try:
        card = ModelCard.load(files["README.md"])
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"The metadata of README.md cannot be read: {_first_line(error)}") from error
    if not card.data.license:
        raise UserError("README.md names no licence: add `license:` to its metadata.")


def _refuse_stray_files(files: dict[str, Path], config: dict[str, Any]) -> None:
    wanted_code = _code_files(files, config)
    stray = [
        name
        for name in files
        if not (name.endswith(SUFFIXES) or name in PLAIN_NAMES) or (name.endswith(".py") and name not in wanted_code)
    ]
    if stray:
        raise UserError(f"{_listed(stray)} does not belong to a model repository; move it away and push again.")


def _code_files(files: dict[str, Path], config: dict[str, Any]) -> set[str]:
    """The code that the Auto classes, the pipelines and the endpoint load, with everything these import."""
    from transformers.dynamic_module_utils import get_relative_imports

    name = "processor_config.json"
    processor_config = _parse_json(name, files[name]) if name in files else {}
    entries = [*_references(config), *_references(processor_config)]
    waiting = [f"{reference.rpartition('--')[2].partition('.')[0]}.py" for reference in entries]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found and name in files:
            found.add(name)
            waiting += [f"{module}.py" for module in get_relative_imports(files[name])]
    return found | set(ENDPOINT_FILES)


def _references(node: Any) -> Iterable[str]:
    """Every "module.Class" under `auto_map` and `custom_pipelines`, however deep."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "auto_map":
            for reference in value.values():
                yield from filter(None, reference if isinstance(reference, list) else [reference])
        elif key == "custom_pipelines":
            yield from (task["impl"] for task in value.values())
        else:
            yield from _references(value)


def _check_content(name: str, path: Path) -> None:
    """A file is what its name says: no pickle travels under another one."""
    try:
        if name.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(path, "np"):
                pass
        elif name.endswith(".json"):
            _parse_json(name, path)
        elif name.endswith(".gz"):
            with gzip.open(path) as file:
                file.read(1)
        elif name.endswith((".txt", ".md", ".jinja", ".py", ".tsv")) or name in PLAIN_NAMES:
            path.read_text(encoding="utf-8")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} is damaged or not what its name says: {_first_line(error)}") from error


def _parse_json(name: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON: {_first_line(error)}") from error


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
