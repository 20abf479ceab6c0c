"""What authors call cell types, read as terms of the ontology: whole names, abbreviations, and parts of a name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations, pairwise
from typing import Any

from .author_words_scmmgpt import (
    ABBREVIATIONS,
    ALONE,
    BETWEEN_TYPES,
    DENIAL,
    GENERIC,
    SAME_WORDS,
    T_CELL_STATES,
    TISSUES,
    UNASSIGNED,
)
from .ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, Term, plain_name

# How often each way found the right lineage, on labels of 20 development studies, before words of tissues came in.
_BY_NAME, _BY_SYNONYM, _BY_ABBREVIATION, _BY_PART = 1.0, 0.97, 0.93, 0.9
_LONGEST_NAME, _LONGEST_TEXT = 12, 100  # words
# A part of a label of more words than this names the whole only if it has its share of them.
_WORDS_OF_A_SENTENCE, _LEAST_SHARE = 6, 1 / 3
_BEFORE_A_PLACE = frozenset(["at", "from", "in", "of", "with"])
_BETWEEN_NAMES = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "in", "not", "of", "on", "or", "the", "to", "with", "without"]
)


@dataclass(frozen=True)
class NamedTerm:
    """What a label means: a term, how it was found, and how sure that is."""

    label: str
    term: str = ""
    confidence: float = 0.0
    term_id: str = ""
    how: str = "not found"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"confidence": round(self.confidence, 3)}


def named_terms(labels: Sequence[str], ontology: Ontology) -> list[NamedTerm]:
    """The term that each label of one study names, in their order: labels say of each other which tissue they are from."""
    of_tissue = short_words(word for label in labels for word in words_of(label))
    return [by_name(label, ontology, of_tissue) for label in labels]


def short_words(words: Iterable[str]) -> dict[str, str]:
    """What short words mean in the tissue that these words are about."""
    said = set(words)
    short: dict[str, str] = {}
    for tissue in TISSUES:
        if tissue.places & said or len(tissue.signs & said) > 1:
            short |= tissue.names
    return short


def in_names_of_types(text: str, ontology: Ontology) -> tuple[str, Term | None]:
    """A text with its longest name or abbreviation of a type written as the ontology's label; and that term.

    Examples
    --------
    >>> from .ontology_scmmgpt import Ontology, Term
    >>> ontology = Ontology({"CL:1": Term("CL:1", "natural killer cell", synonyms=("NK cell",))})
    >>> in_names_of_types("NK cells from human blood", ontology)[0]
    'natural killer cell from human blood'
    """
    pieces = re.findall(r"[^\s,;.()]+|[,;.()]|\s+", text)
    words = [place for place, piece in enumerate(pieces) if re.search(r"\w", piece)][:_LONGEST_TEXT]
    of_tissue = short_words(words_of(text))
    for length in range(min(_LONGEST_NAME, len(words)), 0, -1):
        for read in (partial(_own, ontology=ontology), partial(_abbreviated, ontology=ontology, of_tissue=of_tissue)):
            for first in range(len(words) - length + 1):
                start, end = words[first], words[first + length - 1] + 1
                term = read("".join(pieces[start:end]))
                if term is not None and term.id not in UNINFORMATIVE_TERMS:
                    return "".join([*pieces[:start], term.label, *pieces[end:]]), term
    return text, None


def _own(name: str, ontology: Ontology) -> Term | None:
    """The term of a name or synonym; an abbreviation goes before the synonym of a cell of one species ("... (Mmus)")."""
    term = ontology.find(name)
    is_rare = term is not None and term.label.endswith(")") and plain_name(name) != plain_name(term.label)
    return None if is_rare and _in_short(plain_name(name), ABBREVIATIONS) else term


def _abbreviated(phrase: str, ontology: Ontology, of_tissue: Mapping[str, str]) -> Term | None:
    """A single letter is no type by itself in the middle of a text, and no abbreviation holds a preposition."""
    if len(_squeezed(plain_name(phrase))) < 2 or _BETWEEN_NAMES & set(phrase.lower().split()):
        return None
    words = words_of(phrase)
    if not words or UNASSIGNED & set(words) or GENERIC.issuperset(words):
        return None
    return _whole(phrase, words, ABBREVIATIONS | dict(of_tissue), ontology)


def by_name(label: str, ontology: Ontology, of_tissue: Mapping[str, str] | None = None) -> NamedTerm:
    """The term that a label names: whole, abbreviated, by a state of T cells, its words in any order, or in part."""
    words, of_tissue = words_of(label), of_tissue or {}
    term = _own(label, ontology)
    is_name = term is not None and (label.strip() == term.id or plain_name(label) == plain_name(term.label))
    if term is not None and is_name and term.id not in UNINFORMATIVE_TERMS:
        return _named(label, term, "name", _BY_NAME)
    if not words or UNASSIGNED & set(words) or denies(label):
        return NamedTerm(label, how="no type")
    if _squeezed(plain_name(label)) not in of_tissue:
        if GENERIC.issuperset(words):
            return NamedTerm(label, how="no type")
        if term is not None:
            return _named(label, term, "synonym", _BY_SYNONYM)
    if len(words) > _LONGEST_NAME:  # a description, which may be as long as it likes
        return NamedTerm(label)
    short = ABBREVIATIONS | dict(of_tissue or ALONE)
    if (term := _whole(label, words, short, ontology)) is not None:
        return _named(label, term, "abbreviation", _BY_ABBREVIATION)
    if _names_several(label, ontology, of_tissue):
        return NamedTerm(label)
    for phrase in _phrases(words):
        if (term := _part(phrase, short, ontology)) is not None:
            return _named(label, term, "part", _BY_PART)
    return NamedTerm(label)


def denies(label: str) -> bool:
    """Whether a label says what cells are not."""
    return re.search(DENIAL, plain_name(re.sub(r"[_./|:]", " ", label))) is not None


def _names_several(label: str, ontology: Ontology, of_tissue: Mapping[str, str]) -> bool:
    """Whether the sides of a slash or an "and" are types of which neither is above the other."""
    *sides, last = re.split(BETWEEN_TYPES, label)
    if not sides:
        return False
    noun = re.findall(r"\w+(?:\W+cells?)?$", last, re.IGNORECASE)
    found = [by_name(last, ontology, of_tissue).term_id]
    for side in sides:
        written_out = by_name(f"{side} {noun[0]}" if noun else side, ontology, of_tissue)
        is_whole = written_out.how in ("name", "synonym", "abbreviation")
        found.append((written_out if is_whole else by_name(side, ontology, of_tissue)).term_id)
    pairs = combinations(filter(None, found), 2)
    return not all(are_kin(one, other, ontology) for one, other in pairs)


def are_kin(one: str, other: str, ontology: Ontology) -> bool:
    """Whether of two types one is the other, or above it."""
    return one == other or one in ontology.ancestors(other) or other in ontology.ancestors(one)


def _whole(label: str, words: Sequence[str], short: Mapping[str, str], ontology: Ontology) -> Term | None:
    """The term that all words of a label name together."""
    said = " ".join(words)
    written_out = " ".join(plain_name(short.get(word, word)) for word in words)
    for phrase in (plain_name(label), said, written_out):
        if (name := _in_short(phrase, short)) is not None:
            return ontology.find(name)
    if (name := _state_of_t_cell(words)) is not None:
        return ontology.find(name)
    for phrase in (said, written_out):
        for name in (phrase, f"{phrase} cell"):
            if len(phrase) > 3 and (term := ontology.find(name)) is not None:
                return term
    return ontology.of_words(written_out) if len(set(words)) == len(words) else None


def _part(phrase: str, short: Mapping[str, str], ontology: Ontology) -> Term | None:
    if (name := _in_short(phrase, short)) is not None and phrase not in ALONE:
        return ontology.find(name)
    names = (phrase, f"{phrase} cell") if len(phrase) > 3 else (f"{phrase} cell",) if len(phrase) > 1 else ()
    return next((term for name in names if (term := ontology.find(name)) is not None), None)


def _state_of_t_cell(words: Sequence[str]) -> str | None:
    said = {word for before, word in pairwise(["", *words]) if before != "non"}
    lineages = [number for number in ("4", "8") if f"cd{number}" in said]
    if len(lineages) != 1 or said & {"nk", "nkt", "monocyte", "dc"}:
        return None
    if "effector" in said and "memory" in said:
        said = said - {"memory"} | {"tem"}
    states = [name for signs, name in T_CELL_STATES if signs & said]
    return states[0].format(lineages[0]) if states else None


def _named(label: str, term: Term, how: str, confidence: float) -> NamedTerm:
    return NamedTerm(label, term.label, confidence, term.id, how)


def _in_short(phrase: str, short: Mapping[str, str]) -> str | None:
    return short.get(_squeezed(phrase)) or short.get(phrase.replace(" ", ""))


def _squeezed(name: str) -> str:
    return name.removesuffix(" cell").replace(" ", "")


def words_of(label: str) -> list[str]:
    """Words of a label, without cluster numbers, marker genes ("Stromal cell Acta2 high") and camel case."""
    label = re.sub(r"\b[A-Za-z0-9]+ (high|low|hi|lo)\b", " ", label)
    label = re.sub(r"(?<=[a-z]{3})(?=[A-Z][a-z]{2})", " ", label)
    label = re.sub(r"(?<=\d)-(?=CD\d+[+-])", "- ", label)
    words = plain_name(re.sub(r"[_./|:]", " ", label)).split()
    words = [re.sub(r"(?<=[a-z]{3})\d+$", "", word) for word in words]
    lacking = {at for at, word in enumerate(words) if word == "negative"}
    lacking |= {at - 1 for at in lacking}
    kept = [word for at, word in enumerate(words) if at not in lacking]
    return [SAME_WORDS.get(word, word) for word in kept if not word.isdigit() and word not in ("cluster", "like")]


def _phrases(words: Sequence[str]) -> Iterable[str]:
    """Runs of words, those that end last first, for the noun stands last; among these the longest first.

    No run begins with what "non" denies, and in a sentence none is short.
    """
    places = [at for at, word in enumerate(words) if word in _BEFORE_A_PLACE]
    num_words = min([*places, len(words)])
    shortest = num_words * _LEAST_SHARE if num_words > _WORDS_OF_A_SENTENCE else 1
    for end in range(len(words), 0, -1):
        for start in range(end):
            is_denied = start > 0 and words[start - 1] == "non"
            if not is_denied and end - start >= shortest and not GENERIC.issuperset(words[start:end]):
                yield " ".join(words[start:end])
