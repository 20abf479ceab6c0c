"""Every number of a corpus: what to take from which source, how to cut it and how to split it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from scmmgpt.training.strict_yaml import CHECKED, KeywordsOf, read_settings

from .splits import Scheme, SplitSettings

# The vocabulary and its tables come with the processor that the corpus is made for.
TABLES = ("genes", "ensembl_ids", "medians", "masses", "gene_names")
GeneTokenizerSettings = Annotated[dict[str, Any], KeywordsOf("scmmgpt.processing", "ScMMGPTGeneTokenizer", TABLES)]


@dataclass(config=CHECKED, frozen=True)
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


@dataclass(config=CHECKED, frozen=True)
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
    columns: dict[str, str] = Field(default_factory=dict)
    donor_pattern: str = ""


@dataclass(config=CHECKED, frozen=True)
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

    tokens: GeneTokenizerSettings = Field(default_factory=dict)
    shard_rows: int = Field(default=8192, ge=1)
    chunk_rows: int = Field(default=1024, ge=1)
    quality: Quality = Field(default_factory=Quality)
    splits: SplitSettings = Field(default_factory=SplitSettings)
    families: dict[str, list[str]] = Field(default_factory=dict)
    columns: dict[str, str] = Field(default_factory=dict)
    sources: dict[str, SourceSettings] = Field(default_factory=dict)
    on_error: Literal["stop", "skip"] = "stop"
    labels_at_chance: Literal["refuse", "keep"] = "refuse"
    deduplicate: bool = True
    marker_scheme: Scheme = "study"
    num_markers: int = 20

    @classmethod
    def read(cls, path: str | Path) -> CorpusRecipe:
        """The recipe in a yaml file; a key that is not known is refused."""
        return read_settings(path, cls)

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
