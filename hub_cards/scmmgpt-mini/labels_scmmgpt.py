"""Label sets: a list, a file with one label a line, {label: description}, or the whole Cell Ontology."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .author_labels_scmmgpt import named_terms
from .errors_scmmgpt import UserError
from .ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, Term
from .prompting_scmmgpt import cell_text

CELL_ONTOLOGY = "cell-ontology"
FINETUNED_LABELS = "labels of the fine-tuning"
TRAINED_TYPES = "trained types"  # the source of the labels where nobody gave any
UNKNOWN = "unknown"
# Spelling suggestions cost a search over all names each; nobody reads hundreds of them.
_MAX_SUGGESTIONS = 20
_ONTOLOGY_ID = re.compile(r"CL:\d+|[A-Z]+:\d{7,8}", re.IGNORECASE)

Labels = str | os.PathLike | Iterable[str] | Mapping[str, str]


@dataclass(frozen=True)
class LabelSet:
    """Candidate cell types, verbatim as given, with what the ontology knows about each.

    Term ids are None for free text. A description is the caller's, else the ontology's definition, else "". `names` are
    the labels in words of the training: of an abbreviation its term. `notes` are what a person should know: how
    abbreviations were read, free text labels, nearest names, synonyms given twice.
    """

    labels: tuple[str, ...]
    term_ids: tuple[str | None, ...]
    descriptions: tuple[str, ...]
    names: tuple[str, ...]
    source: str = "list"
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, places: Iterable[int]) -> "LabelSet":
        """Some of the labels, by index."""
        places = list(places)
        return replace(
            self,
            labels=tuple(self.labels[place] for place in places),
            term_ids=tuple(self.term_ids[place] for place in places),
            descriptions=tuple(self.descriptions[place] for place in places),
            names=tuple(self.names[place] for place in places),
        )

    def texts(self, tissue: str | None = None) -> list[str]:
        """What each label says about itself, in the words of the training: the text that cells are compared with."""
        where = {"tissue": tissue} if tissue else {}
        pairs = zip(self.names, self.descriptions, strict=True)
        return [cell_text({"cell_type": name, **where}, description) for name, description in pairs]


def read_labels(labels: Labels, ontology: Ontology) -> LabelSet:
    """The label set that a caller named; ids, definitions and nearest names come from the ontology.

    Labels are names, {name: description}, the path of a text file with one label a line (or of a JSON file with {name:
    description}), or "cell-ontology".
    """
    if isinstance(labels, str) and labels == CELL_ONTOLOGY:
        return ontology_labels(ontology)
    if isinstance(labels, (str, os.PathLike)):
        return _read_file(Path(labels), ontology)
    if isinstance(labels, Mapping):
        return _label_set(list(labels), dict(labels), ontology, "dict")
    return _label_set(list(labels), {}, ontology, "list")


def ontology_labels(ontology: Ontology) -> LabelSet:
    """Every informative cell type of the ontology."""
    terms = [term for term in ontology.terms.values() if term.id not in UNINFORMATIVE_TERMS]
    if not terms:
        raise UserError("This model directory holds no Cell Ontology; give a list of labels instead.")
    return LabelSet(
        tuple(term.label for term in terms),
        tuple(term.id for term in terms),
        tuple(term.definition for term in terms),
        tuple(term.label for term in terms),
        CELL_ONTOLOGY,
    )


def _read_file(path: Path, ontology: Ontology) -> LabelSet:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        hint = f"give a file with one label a line, or {CELL_ONTOLOGY!r}"
        raise UserError(f"There is no label file {str(path)!r}; {hint}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The label file {str(path)!r} cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".json":
        return _label_set(*_parse_json(text, path), ontology, str(path))
    return _label_set([line.strip() for line in text.splitlines() if line.strip()], {}, ontology, str(path))


def _parse_json(text: str, path: Path) -> tuple[list[str], dict[str, str]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, and lists nested as deep
        raise UserError(f"The label file {str(path)!r} is not JSON: {error}") from error
    if isinstance(content, dict):
        return list(content), content
    if isinstance(content, list):
        return content, {}
    raise UserError(f"The label file {str(path)!r} must hold a list of labels or {{label: description}}.")


def _label_set(labels: list[str], descriptions: Mapping[str, str], ontology: Ontology, source: str) -> LabelSet:
    _check(labels, source, ontology)
    given, labels = labels, _without_unknown(labels, source)
    terms, names = _terms_and_names(labels, ontology)
    definitions = [term.definition if term else "" for term in terms]
    said = [str(descriptions.get(label) or text) for label, text in zip(labels, definitions, strict=True)]
    return LabelSet(
        tuple(labels),
        tuple(term.id if term else None for term in terms),
        tuple(said),
        tuple(names),
        source,
        (*_left_out(given, labels), *_notes(labels, terms, names, ontology)),
    )


def is_unknown(label: str) -> bool:
    """Whether a label is the name of cells without a call, which no cell can be called."""
    return label.strip().lower() == UNKNOWN


def is_unknown_id(label: str, ontology: Ontology) -> bool:
    """Whether a label looks like the id of a term that the ontology does not have."""
    is_id = _ONTOLOGY_ID.fullmatch(label.strip()) is not None
    return is_id and bool(ontology.terms) and ontology.find(label.upper()) is None


def _without_unknown(labels: list[str], source: str) -> list[str]:
    kept = [label for label in labels if not is_unknown(label)]
    if not kept:
        where = "" if source in ("list", "dict") else f" in {source!r}"
        raise UserError(f"No label but {labels[0]!r} was given{where}, which names cells without a call: give a type.")
    return kept


def _left_out(given: list[str], kept: list[str]) -> Iterable[str]:
    for label in given:
        if label not in kept:
            yield f"{label!r} was left out of the labels: it names cells without a call"


def _terms_and_names(labels: list[str], ontology: Ontology) -> tuple[list[Term | None], list[str]]:
    """The term of each label, and its name in words of the training; what has a name of its own goes before abbreviations.

    Abbreviations of one term keep their words: they may say what parts them.
    """
    read = named_terms(labels, ontology)
    is_own = [named.how in ("name", "synonym") for named in read]
    taken = {"", *(named.term_id for named, own in zip(read, is_own, strict=True) if own)}
    terms = [
        ontology.terms.get(named.term_id) if own or named.term_id not in taken else ontology.find(named.label)
        for named, own in zip(read, is_own, strict=True)
    ]
    times = Counter(term.id for term in terms if term)
    names = [
        label if own or term is None or times[term.id] > 1 else term.label
        for label, own, term in zip(labels, is_own, terms, strict=True)
    ]
    return terms, names


def _check(labels: list[str], source: str, ontology: Ontology) -> None:
    where = "" if source in ("list", "dict") else f" in {source!r}"
    if not labels:
        raise UserError(f"No labels were given{where}: give at least one.")
    for number, label in enumerate(labels, start=1):
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"Label {number}{where} is {label!r}; every label must be a text.")
        if not _can_be_stored(label):
            raise UserError(
                f"Label {number}{where}, {label[:60]!r}, contains characters that cannot be written to a file (a zero byte, or half of a surrogate pair)."
            )
        if is_unknown_id(label, ontology):
            release = f" {ontology.version}" if ontology.version else ""
            raise UserError(
                f"Label {number}{where}, {label.strip()}, is no term of the Cell Ontology{release}: give an id of it, or a name."
            )
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        places = [number for number, label in enumerate(labels, start=1) if label == repeated[0]]
        raise UserError(f"The label {repeated[0]!r} is given {len(places)} times{where}: entries {places[:5]}.")


def _can_be_stored(label: str) -> bool:
    """HDF5 ends a text at its first zero byte, and half a character has no UTF-8."""
    return "\0" not in label and not any("\ud800" <= letter <= "\udfff" for letter in label)


def _notes(labels: list[str], terms: list[Term | None], names: list[str], ontology: Ontology) -> Iterable[str]:
    read = [f"{label!r} as {name!r}" for label, name in zip(labels, names, strict=True) if label != name]
    if read:
        more = f" and {len(read) - _MAX_SUGGESTIONS} more" if len(read) > _MAX_SUGGESTIONS else ""
        yield f"read as types of the Cell Ontology: {', '.join(read[:_MAX_SUGGESTIONS])}{more}"
    free = [label for label, term in zip(labels, terms, strict=True) if term is None]
    for label in free[:_MAX_SUGGESTIONS] if ontology.terms else []:
        nearest = ontology.suggest(label)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        yield f"{label!r} is not in the Cell Ontology and is used as free text{hint}"
    if len(free) > _MAX_SUGGESTIONS:
        yield f"{len(free) - _MAX_SUGGESTIONS} more labels are not in the Cell Ontology and are used as free text"
    by_term: dict[str, list[str]] = {}
    for label, term in zip(labels, terms, strict=True):
        by_term.setdefault(term.id if term else label, []).append(label)
    for term_id, names in by_term.items():
        if len(names) > 1:
            yield f"{' and '.join(map(repr, names))} are the same Cell Ontology term ({term_id})"
