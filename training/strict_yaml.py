"""Recipes: yaml files read into typed settings. What does not belong there is refused with file, key and nearest name.

Every yaml of the training code is read here: runs, corpora, evaluation suites, the embedded model.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator, core_schema

from scmmgpt.errors import UserError

CHECKED = ConfigDict(extra="forbid", strict=False)
MOST_PROBLEMS = 5  # shown of one file
MISSING = ("missing", "missing_argument")
Settings = TypeVar("Settings")


class RecipeError(UserError):
    """A recipe that cannot be used: the file, the key, what was wrong and what to write instead."""


def read_settings(
    path: str | Path, kind: type[Settings], *, changes: Iterable[str] = (), others: Mapping[str, type] | None = None
) -> Settings:
    """The settings in a yaml file; `${NAME}` in it stands for a variable of the environment.

    Parameters
    ----------
    path
        Of the file.
    kind
        A pydantic dataclass with every key and its type.
    changes
        What differs from the file, such as `training.max_steps=20`.
    others
        {owner: settings}: a key that is not of `kind` but of one of these is refused with the owner's name.
    """
    content = read_yaml(path)
    for change in changes:
        _apply(content, change)
    return check_settings(content, kind, where=str(path), others=others)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a yaml file, or the reason why it has none."""
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"There is no recipe at {path}. Recipes lie in training/recipes.")
    try:
        content = yaml.safe_load(_fill_in_environment(path.read_text(encoding="utf-8"), path)) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as UTF-8 text: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise RecipeError(f"{path} is not a recipe: expected `name: value` lines.")
    return content


def check_settings(
    content: dict, kind: type[Settings], where: str, others: Mapping[str, type] | None = None
) -> Settings:
    """Typed settings from nested dicts; arguments as of `read_settings`."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        # What is missing comes last: it may be there, misspelt.
        found = sorted(error.errors(), key=lambda problem: problem["type"] in MISSING)
        problems = [_problem(problem, kind, others or {}) for problem in found]
        raise RecipeError("\n  ".join([f"{where} cannot be used:", *problems[:MOST_PROBLEMS]])) from None


def check_names(given: Iterable[str], allowed: list[str], where: str) -> None:
    """Refuse a key that `allowed` does not hold, naming the nearest that it does."""
    for name in given:
        if name not in allowed:
            raise RecipeError(f"{where}: `{name}` does not exist.{_did_you_mean(name, allowed)}")


@dataclass(frozen=True)
class KeywordsOf:
    """Marks a dict that is handed to a class as keywords: names that the class does not take are refused.

    The class is imported only when there is such a dict to check. `Annotated[dict[str, Any], KeywordsOf(...)]`.

    Attributes
    ----------
    module, name
        Where the class is.
    without
        Keywords that no recipe gives.
    only_names
        Do not hold the values against the class's types.
    """

    module: str
    name: str
    without: tuple[str, ...] = ()
    only_names: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def check(self, given: dict[str, Any]) -> dict[str, Any]:
        """The keywords, with numbers that yaml takes for text, such as 1e-3, as numbers."""
        if not given or not self.hints:
            return given
        read = self._validator.validate_python(given)
        return {name: read[name] if isinstance(value, str) else value for name, value in given.items()}

    @cached_property
    def hints(self) -> dict[str, Any]:
        """Each keyword with its type; `Any` where only the class itself can check the value."""
        try:
            kind = getattr(importlib.import_module(self.module), self.name)
        except ModuleNotFoundError:  # an extra that is not installed: whoever needs the class will say so
            return {}
        if is_dataclass(kind):
            takes, names = kind, [field.name for field in fields(kind) if field.init]
        else:
            takes = kind.__init__
            names = [name for name, one in signature(kind).parameters.items() if one.kind is not one.VAR_KEYWORD]
        try:
            hints = get_type_hints(takes)
        except NameError:  # types that only a type checker imports
            hints = {}
        known = {name: hints.get(name, Any) for name in names if name not in self.without}
        return {name: hint if _is_plain(hint) and not self.only_names else Any for name, hint in known.items()}

    @cached_property
    def _validator(self) -> SchemaValidator:
        keywords = {
            name: core_schema.typed_dict_field(TypeAdapter(hint).core_schema, required=False)
            for name, hint in self.hints.items()
        }
        return SchemaValidator(core_schema.typed_dict_schema(keywords, extra_behavior="forbid"))


def _is_plain(hint: Any) -> bool:
    is_choice = get_origin(hint) is Literal
    return (
        is_choice
        or hint in (bool, int, float, str, NoneType)
        or bool(args := get_args(hint))
        and all(map(_is_plain, args))
    )


def _problem(problem: Any, kind: type, others: Mapping[str, type]) -> str:
    *parents, name = problem["loc"] or ("",)
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        for owner, other in others.items():
            if name in _names_inside(other, parents):
                return f"`{place}` is a key of {owner}, not of this recipe."
        return f"`{place}` does not exist.{_did_you_mean(str(name), _names_inside(kind, parents))}"
    if problem["type"] in MISSING:
        return f"`{place}` is missing."
    if problem["type"] == "value_error":
        return f"`{place}`: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"])
    nearest = ""
    if problem["type"] == "literal_error":
        choices = re.findall("'([^']*)'", problem["ctx"]["expected"])
        nearest = _nearest(str(problem["input"]), choices)
    return f"`{place}`: {problem['msg']}, got {problem['input']!r}.{nearest}"


def _names_inside(hint: Any, parents: list) -> list[str]:
    """The keys below a place in settings."""
    for parent in parents:
        hint = _opened(hint)
        if is_dataclass(hint):
            hint = get_type_hints(hint, include_extras=True).get(parent)
        else:
            hint = (
                next(reversed(get_args(hint)), None) if get_origin(hint) is dict else next(iter(get_args(hint)), None)
            )
    hint = _opened(hint)
    if isinstance(hint, KeywordsOf):
        return list(hint.hints)
    return [field.name for field in fields(hint)] if is_dataclass(hint) else []


def _opened(hint: Any) -> Any:
    """What stands inside `Annotated` and `... | None`."""
    for marker in getattr(hint, "__metadata__", ()):
        if isinstance(marker, KeywordsOf):
            return marker
    if hasattr(hint, "__metadata__"):
        return _opened(hint.__origin__)
    options = [option for option in get_args(hint) if option is not NoneType]
    return _opened(options[0]) if NoneType in get_args(hint) and options else hint


def _did_you_mean(name: str, allowed: list[str]) -> str:
    return _nearest(name, allowed) or f" There is: {', '.join(allowed[:20])}."


def _nearest(name: str, allowed: list[str]) -> str:
    nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f" Did you mean `{nearest[0]}`?" if nearest else ""


def _fill_in_environment(text: str, path: Path) -> str:
    def value(match: re.Match) -> str:
        if match[1] not in os.environ:
            raise RecipeError(
                f"{path} needs the environment variable {match[1]}: export {match[1]}=... and run again."
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


def _apply(content: dict, change: str) -> None:
    place, is_change, value = change.partition("=")
    if not is_change:
        raise RecipeError(f"A change is written section.key=value, got {change!r}.")
    *parents, name = place.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[name] = yaml.safe_load(value)
