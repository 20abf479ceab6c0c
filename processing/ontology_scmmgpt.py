"""The Cell Ontology as a tree of names: find a term, walk to its ancestors, suggest the nearest name."""

import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path

FILE_NAME = "cell_ontology.json.gz"

# Terms that describe nearly any cell: "unknown" says more than these do.
UNINFORMATIVE_TERMS = frozenset(
    {
        "CL:0000000",  # cell
        "CL:0000003",  # native cell
        "CL:0000211",  # electrically active cell
        "CL:0000219",  # motile cell
        "CL:0000225",  # anucleate cell
        "CL:0000226",  # single nucleate cell
        "CL:0000255",  # eukaryotic cell
        "CL:0000325",  # stuff accumulating cell
        "CL:0000393",  # electrically responsive cell
        "CL:0000404",  # electrically signaling cell
        "CL:0000548",  # animal cell
        "CL:0002242",  # nucleate cell
        "CL:0002371",  # somatic cell
    }
)


def plain_name(name: str) -> str:
    """A name without the spellings that do not matter: case, punctuation, plural.

    Examples
    --------
    >>> plain_name("CD4+ T-cells")
    'cd4 positive t cell'
    """
    name = re.sub(r"\+", " positive ", name.lower())
    name = re.sub(r"(?<=\d)-(?=\W|$)", " negative ", name)
    words = re.sub(r"[^a-z0-9]+", " ", name).split()
    return " ".join(word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word for word in words)


def _numbers(name: str) -> list[str]:
    return re.findall(r"[0-9]+", name)


@dataclass(frozen=True)
class Term:
    """One cell type of the ontology."""

    id: str
    label: str
    definition: str = ""
    synonyms: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ontology:
    """Terms by id, with the searches that annotation needs."""

    terms: dict[str, Term]
    version: str = ""
    replaced: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Ontology":
        """The ontology in a gzipped JSON table: {"version": ..., "terms": {id: {label, synonyms, definition, parents}}}."""
        with gzip.open(path, "rt", encoding="utf-8") as file:
            table = json.load(file)
        terms = {
            term_id: Term(
                term_id,
                entry["label"],
                entry.get("definition") or "",
                tuple(entry.get("synonyms", ())),
                tuple(entry.get("parents", ())),
            )
            for term_id, entry in table["terms"].items()
        }
        return cls(terms, table.get("version", ""), table.get("replaced", {}))

    @cached_property
    def _term_of_name(self) -> dict[str, str]:
        names: dict[str, str] = {}
        ambiguous = set()
        for term in self.terms.values():
            for synonym in map(plain_name, term.synonyms):
                if names.setdefault(synonym, term.id) != term.id:
                    ambiguous.add(synonym)
        for name in ambiguous:
            del names[name]
        return names | {plain_name(term.label): term.id for term in self.terms.values()}

    @cached_property
    def _spelling_of_name(self) -> dict[str, str]:
        return {plain_name(term.label): term.label for term in self.terms.values()}

    def find(self, name: str) -> Term | None:
        """The term with this id, label or (unambiguous) synonym."""
        term_id = self.replaced.get(name.strip(), name.strip())
        return self.terms.get(term_id) or self.terms.get(self._term_of_name.get(plain_name(name), ""))

    @cached_property
    def _term_of_words(self) -> dict[frozenset[str], str]:
        found: dict[frozenset[str], set[str]] = {}
        for name, term_id in self._term_of_name.items():
            found.setdefault(frozenset(name.split()) - {"cell"}, set()).add(term_id)
        return {words: term_ids.pop() for words, term_ids in found.items() if len(words) > 1 and len(term_ids) == 1}

    def of_words(self, name: str) -> Term | None:
        """The term whose name has the same words in another order."""
        return self.terms.get(self._term_of_words.get(frozenset(plain_name(name).split()) - {"cell"}, ""))

    def suggest(self, name: str, num: int = 1) -> list[str]:
        """Labels that say all words of this name, shortest first; else those that are spelt nearly like it.

        The numbers of a name mean something: CD4 is no misspelt CD25.
        """
        words = set(plain_name(name).split())
        saying = [plain for plain in self._spelling_of_name if words <= set(plain.split())] if len(words) > 1 else []
        matches = sorted(saying, key=lambda plain: (len(plain), plain))[:num]
        if not matches:
            numbers = _numbers(name)
            alike = [plain for plain in self._spelling_of_name if _numbers(plain) == numbers]
            matches = get_close_matches(plain_name(name), alike, n=num, cutoff=0.75)
        return [self._spelling_of_name[match] for match in matches]

    def ancestors(self, term_id: str) -> list[str]:
        """Ids above a term, nearest first, without the term itself."""
        if term_id not in self._ancestors_of:
            found: dict[str, None] = {}
            level = self._parents([term_id])
            while level:
                level = [parent for parent in level if parent not in found]
                found.update(dict.fromkeys(level))
                level = self._parents(level)
            self._ancestors_of[term_id] = list(found)
        return list(self._ancestors_of[term_id])

    @cached_property
    def _ancestors_of(self) -> dict[str, list[str]]:
        """What was asked before: an annotation asks for the same few thousands of times."""
        return {}

    def _parents(self, term_ids: Iterable[str]) -> list[str]:
        known = (self.terms[term_id] for term_id in term_ids if term_id in self.terms)
        return list(dict.fromkeys(parent for term in known for parent in term.parents))


EMPTY = Ontology({})


@lru_cache(maxsize=4)
def read_ontology(*directories: Path) -> Ontology:
    """The ontology of the first directory that holds one; an empty one when none does."""
    for directory in directories:
        if (directory / FILE_NAME).is_file():
            return Ontology.read(directory / FILE_NAME)
    return EMPTY
