"""What a text asks for, of cells to make or to look for: in the ontology's words, without what no training knows."""

import re
from typing import NamedTuple

from .author_labels_scmmgpt import in_names_of_types
from .errors_scmmgpt import UserError
from .ontology_scmmgpt import Ontology, Term
from .prompting_scmmgpt import query_text, with_article

LEFT_OUT = "Nothing was learnt of what is done to cells: {!r} is left out, and the cells are as without it."
_TERM_ID = re.compile(r"\bCL:\d+\b", re.IGNORECASE)
# What says of a type that it is not meant.
_DENIED = re.compile(
    r"\b(?:not|no|non|without|except(?:\s+for)?|anything\s+but|other\s+than)[\s-]+(?:(?:an?|the|any)\s+)?$", re.I
)
# What was done to cells: the decoder has seen nothing of the kind, and would take the words for another type.
_DONE = (
    r"(?:stimulated|treated|exposed|challenged|primed|perturbed|transfected|transduced|knock(?:ed)?[\s-]?(?:out|down))"
)
_DOING = r"(?:stimulation|treatment|exposure|challenge|perturbation|transfection|transduction|knock[\s-]?(?:out|down))"
_DONE_BEFORE = re.compile(rf"(?<!\S)(?:\S+-)?{_DONE}\s", re.IGNORECASE)
_DONE_AFTER = re.compile(
    rf"[\s,]*\b(?:(?:(?:that|which)\s+)?(?:is|are|was|were|has\s+been|have\s+been)\s+)?(?:{_DONE}|overexpressing|"
    rf"(?:after|upon|under|following)\s+(?:\S+\s+){{0,3}}?{_DOING}|with\s+\S+\s+knocked\s+(?:out|down))\b"
    r".*?(?=[,;.](?:\s|$)|\s(?:from|in(?!\s+vi[tv]))\s|$)",
    re.IGNORECASE,
)


class AskedCells(NamedTuple):
    """A text in `words` of the training, the type that these name, and what was done to the cells: no part of the words."""

    words: str
    term: Term | None
    left_out: str = ""

    @property
    def notes(self) -> list[str]:
        """What of the text is not heeded, in sentences."""
        return [LEFT_OUT.format(self.left_out)] if self.left_out else []


def asked_cells(text: str, ontology: Ontology) -> AskedCells:
    """What a text asks for, of cells to make.

    Examples
    --------
    >>> ontology = Ontology({"CL:1": Term("CL:1", "natural killer cell", synonyms=("NK cell",))})
    >>> asked_cells("NK cells treated with a drug", ontology)[::2]
    ('natural killer cell', 'treated with a drug')
    """
    words, term = in_names_of_types(with_names_of_ids(text, ontology), ontology)
    left_out = []
    if term is not None:
        before, name, after = words.partition(term.label)
        left_out = [*_DONE_BEFORE.findall(before), *_DONE_AFTER.findall(after)]
    if left_out:
        before = re.sub(r"\ban? $", with_article(name).removesuffix(name), _DONE_BEFORE.sub("", before))
        words = before + name + _DONE_AFTER.sub("", after)
    _refuse_denial(text, words, term, ontology)
    return AskedCells(words, term, ", ".join(one.strip(" ,") for one in left_out))


def searched_words(text: str, ontology: Ontology) -> str:
    """A text to look for cells by, as it is compared with them.

    Examples
    --------
    >>> ontology = Ontology({"CL:1": Term("CL:1", "natural killer cell", synonyms=("NK cell",))})
    >>> searched_words(" NK cells", ontology)
    'natural killer cell'
    """
    return query_text(in_names_of_types(text, ontology)[0])


def with_names_of_ids(text: str, ontology: Ontology) -> str:
    """The text with the names of types in place of their ids; without an ontology they stay as they are."""
    if not ontology.terms:
        return text

    def name_of(found: re.Match) -> str:
        term = ontology.find(found[0].upper())
        if term is None:
            raise UserError(f"{found[0]} is no term of the Cell Ontology {ontology.version}.".replace("  ", " "))
        return term.label

    return _TERM_ID.sub(name_of, text)


def _refuse_denial(text: str, words: str, term: Term | None, ontology: Ontology) -> None:
    if term is None:
        words, term = in_names_of_types(re.sub(r"\b(non)-", r"\1 ", words, flags=re.IGNORECASE), ontology)
    if term is not None and _DENIED.search(words[: words.index(term.label)]):
        raise UserError(f"{text!r} says which cells are not meant: name the type that is to be made.")
