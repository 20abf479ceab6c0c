"""Every number of a corpus: what to take from which source, how to cut it and how to split it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from scmmgpt.errors import UserError
from scmmgpt.training.settings import parse_yaml, read_text

from .splits import SCHEMES, SplitSettings


@dataclass(frozen=True)
class Quality:
    """Which cells are left out.

    Attributes
    ----------
    min_genes
        Expressed genes that a cell must have.
    suspension_types, organisms
        Keep only these, by the words of the source; empty keeps all, and "unknown" always stays.
    """

    min_genes: int = 1
    drop_doublets: bool = True
    primary_data_only: bool = True
    suspension_types: tuple[str, ...] = ()
    organisms: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceSettings:
    """What a recipe says about one source beyond what the source says itself.

    Attributes
    ----------
    weight
        How often its cells should appear in training; a loader may use it (`BatchSettings.source_weights`).
    columns
        {fact: obs column}, before the recipe's general ones.
    donor_pattern
        The part of a donor's name that names the person, where the same person has several names.
    """

    weight: float = 1.0
    licence: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    donor_pattern: str = ""


@dataclass(frozen=True)
class CorpusRecipe:
    """How a corpus is made.

    Attributes
    ----------
    tokens
        Settings of the gene tokenizer to change: `value_mode`, `max_genes`, `target_sum`, ...
    shard_rows, chunk_rows
        Cells in a shard, and cells tokenised at a time.
    families
        {study: files}: files that hold cells of one study and so never face each other across a split.
    columns
        {fact: obs column} where a source's own word differs from those known.
    sources
        Settings of single sources by name.
    on_error
        "stop" at a source that cannot be used, or "skip" it and say so.
    labels_at_chance
        "refuse": the labels of a source that does not beat shuffled labels are dropped. "keep" them.
    marker_scheme
        The split scheme whose training cells marker genes are computed from.
    """

    tokens: dict[str, Any] = field(default_factory=dict)
    shard_rows: int = 8192
    chunk_rows: int = 1024
    quality: Quality = field(default_factory=Quality)
    splits: SplitSettings = field(default_factory=SplitSettings)
    families: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    sources: dict[str, SourceSettings] = field(default_factory=dict)
    on_error: Literal["stop", "skip"] = "stop"
    labels_at_chance: Literal["refuse", "keep"] = "refuse"
    deduplicate: bool = True
    marker_scheme: str = "study"
    num_markers: int = 20

    def __post_init__(self):
        _check(self.on_error in ("stop", "skip"), f"on_error must be stop or skip, got {self.on_error!r}.")
        _check(
            self.labels_at_chance in ("refuse", "keep"),
            f"labels_at_chance must be refuse or keep, got {self.labels_at_chance!r}.",
        )
        _check(self.marker_scheme in SCHEMES, f"marker_scheme must be one of {SCHEMES}, got {self.marker_scheme!r}.")
        _check(self.shard_rows >= 1 and self.chunk_rows >= 1, "shard_rows and chunk_rows must be at least 1.")

    @classmethod
    def read(cls, path: str | Path) -> CorpusRecipe:
        """The recipe in a yaml file; a key that is not known is refused."""
        content = parse_yaml(read_text(Path(path)), Path(path))
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: dict, where: str = "the recipe") -> CorpusRecipe:
        """The recipe in a nested dict."""
        parts = dict(content)
        parts["quality"] = _build(Quality, parts.get("quality", {}), f"{where}, quality")
        parts["splits"] = _build(SplitSettings, parts.get("splits", {}), f"{where}, splits")
        parts["sources"] = {
            name: _build(SourceSettings, settings, f"{where}, sources, {name}")
            for name, settings in _checked_mapping(parts.get("sources"), f"{where}, sources").items()
        }
        return _build(cls, parts, where)

    def of_source(self, name: str) -> SourceSettings:
        """What the recipe says about one source."""
        return self.sources.get(name, SourceSettings())

    def columns_of(self, name: str) -> dict[str, str]:
        """Which obs columns to read for a source: its own settings before the general ones."""
        return {**self.columns, **self.of_source(name).columns}

    def shard_settings(self) -> dict:
        """The part of the recipe that decides what is written in shards; the rest can change without a new build."""
        kept = ("tokens", "shard_rows", "chunk_rows", "quality", "families", "columns", "labels_at_chance")
        settings = {name: value for name, value in asdict(self).items() if name in kept}
        by_source = {name: [source.columns, source.donor_pattern] for name, source in self.sources.items()}
        return {**settings, "by_source": by_source}


def fingerprint(content: object) -> str:
    """A short hash of anything JSON can write."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _build(kind: type, values: dict, where: str):
    values = _checked_mapping(values, where)
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    _check(not unknown, f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError, AttributeError) as error:  # a value of another kind fails in the check of its rule
        raise UserError(f"{where}: {error}") from error


def _checked_mapping(values: Any, where: str) -> dict[str, Any]:
    values = {} if values is None else values
    is_mapping = isinstance(values, dict) and all(isinstance(key, str) for key in values)
    _check(is_mapping, f"{where} must hold `name: value` lines.")
    return values


def _check(is_fine: bool, message: str) -> None:
    if not is_fine:
        raise UserError(message)
