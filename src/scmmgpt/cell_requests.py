"""What a person asks for when cells are generated: texts with their shares, and what of it is extrapolated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .claims import SPECIES_WORDS, ClaimReader
from .errors import UserError
from .processing.asked_cells_scmmgpt import LEFT_OUT, asked_cells, with_names_of_ids
from .processing.author_labels_scmmgpt import are_kin
from .processing.author_words_scmmgpt import ABBREVIATIONS
from .processing.ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, Term, plain_name

SHARE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*%\s*(?:of\s+)?(.+)$", re.DOTALL)
# How far shares may be from one, or from a hundred: percentages that were rounded.
SHARE_TOLERANCE = 0.011
# Where a text says that cells are from: "in the human lymph node of a donor with ...".
PLACE = re.compile(r"\b(?:from|in)\s+(?:the\s+|an?\s+)?(.+?)(?=,|;|\.|\bof an?\b|\bwith\b|\bat\b|$)", re.IGNORECASE)
NO_PLACE = {
    "human",
    "mouse",
    "murine",
    "adult",
    "fetal",
    "embryonic",
    "neonatal",
    "newborn",
    "healthy",
    "donor",
    "patient",
}

HOW_TO_MIX = '"60 % B cell, 40 % monocyte"'
_SHARE_WITHIN = re.compile(r"\d\s*%\s*(?:of\s+)?[^\W\d]")
# What stands between several types, what ends the name of one, and what says that it is not meant.
_BETWEEN = re.compile(r"[,;/&+]|\b(?:and|or|plus|versus|vs|that (?:is|are)|which (?:is|are))\b", re.IGNORECASE)
_AFTER_A_NAME = re.compile(r"\s(?:from|in|of|with|at|by|near|that|which|for)\s|[\d.]+\s*%|[()]", re.IGNORECASE)
MADE_SPECIES = ("human", "mouse")
OTHER_SPECIES = {name: words for name, words in SPECIES_WORDS.items() if name not in MADE_SPECIES} | {
    name: (name,) for name in ("chicken", "cow", "dog", "drosophila", "rabbit", "sheep", "xenopus")
}

Texts = str | Sequence[str] | Mapping[str, float]


@dataclass(frozen=True)
class CellRequest:
    """One text, the cells that it is asked for, the same in `words` of the training, the type that these name, and what
    was done to the cells, of which the training knows nothing: it is no part of the words."""

    text: str
    num_cells: int
    words: str
    term: Term | None
    left_out: str = ""

    @classmethod
    def of(cls, text: str, num_cells: int, ontology: Ontology) -> CellRequest:
        """What a text asks for."""
        return cls(text, num_cells, *asked_cells(text, ontology))


def read_requests(
    text: Texts, num_cells: int, proportions: Sequence[float] | None, ontology: Ontology
) -> list[CellRequest]:
    """Texts and how many cells of each, from what a person gave; ids of the ontology become names.

    Examples
    --------
    >>> from scmmgpt.processing.ontology_scmmgpt import EMPTY
    >>> [(r.text, r.num_cells) for r in read_requests("60 % B cell, 40 % monocyte", 10, None, EMPTY)]
    [('B cell', 6), ('monocyte', 4)]
    """
    texts, shares = _texts_and_shares(text, proportions)
    if not isinstance(num_cells, int | np.integer) or num_cells < 1:
        raise UserError(f"num_cells must be a whole number of at least 1, got {num_cells}.")
    if not texts or any(not isinstance(one, str) or not one.strip() for one in texts):
        raise UserError("The text to generate cells from is empty.")
    merged: dict[str, float] = {}
    for one, share in zip(texts, shares, strict=True):
        named = with_names_of_ids(one.strip(), ontology)
        merged[named] = merged.get(named, 0.0) + share
    numbers = numbers_of(list(merged.values()), num_cells)
    return [CellRequest.of(one, number, ontology) for one, number in zip(merged, numbers, strict=True)]


def _texts_and_shares(text: Texts, proportions: Sequence[float] | None) -> tuple[list[str], list[float]]:
    if isinstance(text, Mapping):
        if proportions is not None:
            raise UserError("Give shares in the mapping of texts or in proportions=, not in both.")
        return list(text), _checked_shares(list(text.values()), len(text))
    if isinstance(text, str):
        parts = [
            SHARE.match(part)
            for part in re.split(r"[,;]\s*(?=\d+(?:\.\d+)?\s*%)|\s+and\s+(?=\d+(?:\.\d+)?\s*%)", text)
        ]
        if all(parts) and proportions is None:
            found = [part for part in parts if part is not None]
            if any(_SHARE_WITHIN.search(part[2]) for part in found):
                raise UserError(f"Separate the parts of {text!r} by commas, as in {HOW_TO_MIX}.")
            return [part[2].strip() for part in found], _checked_shares([float(part[1]) for part in found], len(found))
        if any(parts) and proportions is None:
            raise UserError(f"Some of {text!r} has a share in % and some has none: give each part one.")
        text = [text]
    if proportions is None:
        return list(text), [1 / max(len(text), 1)] * len(text)
    return list(text), _checked_shares(list(proportions), len(text))


def _checked_shares(shares: list[float], number: int) -> list[float]:
    if len(shares) != number:
        raise UserError(f"proportions holds {len(shares)} shares for {number} texts: give one for each.")
    try:
        values = [float(share) for share in shares]
    except (TypeError, ValueError):
        raise UserError(f"proportions must be numbers, got {shares!r}.") from None
    if not values or any(not math.isfinite(value) or value <= 0 for value in values):
        raise UserError(f"proportions must be numbers above 0, got {shares!r}.")
    total = sum(values)
    whole = 100.0 if total > 1.5 else 1.0
    if abs(total / whole - 1) > SHARE_TOLERANCE:
        raise UserError(
            f"The proportions add up to {total:g}, not to 1 or 100 %: {', '.join(map('{:g}'.format, values))}."
        )
    return [value / total for value in values]


def numbers_of(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to the total, as near to the shares as they can be.

    Examples
    --------
    >>> numbers_of([0.5, 0.25, 0.25], 7)
    [3, 2, 2]
    """
    exact = np.array(shares) * total
    numbers = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(-(exact - numbers), kind="stable")
    numbers[order[: total - numbers.sum()]] += 1
    return numbers.tolist()


@dataclass(frozen=True)
class SeenInTraining:
    """What a cell decoder has seen, as its model's config says."""

    types: frozenset[str]
    counted: frozenset[str]
    tissues: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, summary: Mapping[str, Any] | None) -> SeenInTraining | None:
        """None where a model keeps no such account."""
        seen = (summary or {}).get("cell_decoder") or {}
        if not seen:
            return None
        pairs = frozenset((term, tissue) for term, tissues in seen["tissues_of_types"].items() for tissue in tissues)
        return cls(
            frozenset(seen["tissues_of_types"]),
            frozenset(kind.split(" ", 1)[0] for kind in seen["counted_kinds"]),
            frozenset(tissue for _, tissue in pairs),
            pairs,
        )


def concerns(request: CellRequest, seen: SeenInTraining, ontology: Ontology) -> list[str]:
    """What about a request the model has to extrapolate, each in a sentence."""
    place = named_tissue(_beside_type(request), seen.tissues)
    strange = unknown_place(request.words, seen.tissues)
    found = [*_other_types(request, ontology), *_other_species(request)]
    if request.left_out:
        found.append(LEFT_OUT.format(request.left_out))
    if strange:
        found.append(
            f"The tissue {strange!r} was not seen in training: it changes the cells in ways that mean nothing."
        )
    term = request.term
    if term is None:
        return [*found, f"{request.text!r} names no cell type of the Cell Ontology: the cells are the model's guess."]
    below = {one for one in seen.types if one == term.id or term.id in ontology.ancestors(one)}
    if not below:
        found.append(f"No {term.label} was seen in training: the cells are made from its words and its relatives.")
    elif not below & seen.counted:
        found.append(
            f"Single cells of the type {term.label} were never counted, only their mean is known: how they differ from one "
            "another is taken from related types."
        )
    kin = below or set(ontology.ancestors(term.id)) - set(UNINFORMATIVE_TERMS)
    if place and not any((one, place) in seen.pairs for one in kin):
        found.append(
            f"No {term.label} from {place} was seen in training: such cells are extrapolated, and may not exist."
        )
    return found


def _other_types(request: CellRequest, ontology: Ontology) -> list[str]:
    """That one type is made where a list names several, none of which is above another."""
    if request.term is None:
        return []
    reader = ClaimReader(ontology, frozenset())
    rest = request.words.replace(request.term.label, "", 1)
    named = (_type_named_by(part, reader) for part in _BETWEEN.split(rest))
    others = [term.label for term in named if term and not are_kin(term.id, request.term.id, ontology)]
    if not others:
        return []
    also = " and ".join(dict.fromkeys(others))
    return [
        f"{request.text!r} names {also} beside {request.term.label}: {request.term.label} alone is made; for several types "
        f"give each its share, as in {HOW_TO_MIX}."
    ]


def _type_named_by(part: str, reader: ClaimReader) -> Term | None:
    """The type whose name ends a part of a list, but for its place and the like."""
    name = _AFTER_A_NAME.split(f" {part} ")[0].strip()
    if re.match(r"(?:but\s+)?(?:not|no|without)\b", name, re.IGNORECASE):
        return None
    if (short := ABBREVIATIONS.get(plain_name(name).removesuffix(" cell").replace(" ", ""))) is not None:
        return reader.ontology.find(short)
    return next((term for _, stop, term in reader.types_in(name) if not name[stop:].strip(" .!?")), None)


def _other_species(request: CellRequest) -> list[str]:
    """That human cells are made where only a species is named that cannot be made."""
    beside = _beside_type(request)

    def are_named(words: Iterable[str]) -> bool:
        return any(f" {plain_name(word)} " in beside for word in words)

    if all(are_named(SPECIES_WORDS[species]) for species in MADE_SPECIES):
        return [
            f"{request.text!r} names {' and '.join(MADE_SPECIES)}: name one species, or the cells are between the two."
        ]
    asked = [species for species, words in OTHER_SPECIES.items() if are_named(words)]
    if not asked or any(are_named(SPECIES_WORDS[species]) for species in MADE_SPECIES):
        return []
    return [f"No cells of {asked[0]} can be made, only of {' and '.join(MADE_SPECIES)}: human cells are made."]


def _beside_type(request: CellRequest) -> str:
    """The words of a request but for its type's name: a thymus-derived cell is not said to be from the thymus."""
    words = f" {plain_name(request.words)} "
    for name in () if request.term is None else sorted((request.term.label, *request.term.synonyms), key=len)[::-1]:
        words = words.replace(f" {plain_name(name)} ", " ")
    return words


def named_tissue(text: str, tissues: Iterable[str]) -> str | None:
    """The known tissue with the longest name among the words of a text."""
    words = f" {plain_name(text)} "
    return max((one for one in tissues if f" {plain_name(one)} " in words), key=len, default=None)


def unknown_place(text: str, tissues: Iterable[str]) -> str | None:
    """What a text says that cells come from, if that is no known tissue."""
    known = list(tissues)
    for found in PLACE.finditer(text):
        words = [word for word in found[1].split() if word.lower() not in NO_PLACE]
        place = " ".join(words).strip()
        if place and named_tissue(place, known) is None:
            return place
    return None
