"""What a text says of cells, sentence by sentence, and whether the cells bear it out.

A claim is of one kind: a type, a tissue, a species, a gene that is raised or absent, a state. What names none of these is
general knowledge, which cells cannot check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .processing.ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, Term, plain_name

TYPE, OTHER_TYPE, TISSUE, SPECIES, RAISED, ABSENT, STATE, GENERAL = (
    *("type", "another type", "tissue", "species", "gene up", "gene absent", "state", "general knowledge"),
)
SUPPORTED, CONTRADICTED, UNCHECKED = "supported", "contradicted", "unchecked"
# A raised gene lies above so many of a hundred cells of the study, an absent one below as many.
RAISED_PERCENTILE, ABSENT_PERCENTILE = 60.0, 75.0
STATE_PERCENTILE = 65.0

SPECIES_WORDS = {
    "human": ("human", "humans", "homo sapiens"),
    "mouse": ("mouse", "mice", "murine", "mus musculus"),
    "rat": ("rat", "rats"),
    "zebrafish": ("zebrafish",),
    "monkey": ("monkey", "macaque"),
    "pig": ("pig", "porcine"),
}
TISSUES = (
    *("blood", "bone marrow", "lymph node", "spleen", "thymus", "tonsil", "liver", "pancreas", "islet", "kidney"),
    *("lung", "heart", "brain", "cortex", "cerebellum", "hippocampus", "spinal cord", "retina", "eye", "skin"),
    *("muscle", "adipose", "fat", "intestine", "colon", "ileum", "stomach", "esophagus", "bladder", "prostate"),
    *("testis", "ovary", "uterus", "placenta", "breast", "mammary gland", "trachea", "airway", "nose", "bone"),
    *("cartilage", "tongue", "aorta", "gut", "thyroid", "adrenal gland"),
)
STATES = {
    "proliferating": (r"proliferat\w*|cycling|dividing", ("MKI67", "TOP2A", "STMN1", "TUBB", "PCNA", "TYMS")),
    "interferon-stimulated": (r"interferon\W?(?:stimulated|responsive|activated)", ("ISG15", "IFI6", "MX1", "IFIT3")),
    "exhausted": (r"exhausted", ("PDCD1", "LAG3", "HAVCR2", "TIGIT", "TOX")),
    "activated": (r"activated", ("CD69", "FOS", "JUN", "NR4A1", "DUSP2")),
    "stressed": (r"stressed|dying|apoptotic", ("HSPA1A", "HSPA1B", "DNAJB1", "DDIT3", "ATF3")),
}
_LIST = re.compile(r"\b([\w.-]+(?:, [\w.-]+)*),? and ([\w-]+)")
_SENTENCE = re.compile(r"[^.!?]*(?:\.(?=\S)[^.!?]*)*[.!?]*\s*")
_WORD = re.compile(r"[A-Za-z0-9]+\+?")
_SYMBOL = re.compile(r"(?<![\w-])[A-Z][A-Za-z0-9]*[A-Z0-9](?:-[A-Z0-9]+)*(?![\w+-])")
_NO_GENES = frozenset(
    {"DNA", "RNA", "ATP", "MHC", "TCR", "BCR", "NK", "UMI", "CD", "ER", "II", "III", "AIDS", "HIV", "USA"}
)
_NOT_BEFORE = re.compile(r"(?:\bnot|\bno|rather than|instead of|unlike|other than|never)\s+(?:an?\s+|the\s+)?$", re.I)
_ALTERNATIVE = re.compile(
    r"other type|runner-up|next best|could also|might also|alternative|second choice|rule out", re.I
)
_LACKING = re.compile(r"\b(?:lacks?|lacking|absent|absence|without|no|not|low|lower|negative|missing)\b", re.I)
_ABOUT_ALL = re.compile(r"^\W*(?:an?|the|these|such)?\s*$", re.I)
_VERB_OF_KIND = re.compile(
    r"^s?\s*(?:is|are|was|plays?|helps?|produces?|secretes?|carr|do|does|have|has|act|serve|make|ha|ki|r)", re.I
)
_WHERE = r"(?:from|of|in)\s+(?:the\s+)?(?:adult\s+|fetal\s+|human\s+|mouse\s+)*({})\b"
_TISSUE_CLAIM = re.compile(
    "|".join([_WHERE.format("|".join(TISSUES)), rf"tissue is\s+(?:the\s+)?({'|'.join(TISSUES)})\b"]), re.I
)
SOURCE = "Cell Ontology"
_MARK = re.compile(rf" \[(?:percentile:[^\]]*|general knowledge|{SOURCE})\]")
# What the model is taught to say of a type whose function no source tells.
ONLY_THE_NAME = "I know little about what {type} does beyond its name."
_ONLY_THE_NAME = re.compile(re.escape(ONLY_THE_NAME).replace(r"\{type\}", r".*").replace("does", r"\w+"))
_MAX_WORDS_OF_NAME, _MIN_LETTERS_OF_NAME = 12, 4


@dataclass(frozen=True)
class Claim:
    """One thing that a sentence says, and what the cells say to it; the percentile is NaN where there is none."""

    sentence: int
    kind: str
    subject: str
    verdict: str
    percentile: float = math.nan


@dataclass
class CellFacts:
    """What is known of some cells, for claims about them.

    Attributes
    ----------
    label, second, candidates
        The call, its runner-up, and the labels that cannot be told from it.
    gene_percentile
        Gene -> how many of a hundred cells of the study have less of it; None where it was not measured, NaN where
        there is no study.
    gene_share
        Gene -> the share of these cells in which it was detected.
    type_percentile
        Type -> how many of a hundred cells of the study fit it less.
    """

    label: str
    second: str = ""
    candidates: tuple[str, ...] = ()
    species: str = ""
    tissue: str = ""
    raised: tuple[str, ...] = ()
    gene_percentile: Callable[[str], float | None] = lambda gene: None
    gene_share: Callable[[str], float] = lambda gene: 0.0
    type_percentile: Callable[[str], float] = lambda label: math.nan


@dataclass(frozen=True)
class CheckedText:
    """A text, its claims, and what of it may be printed."""

    raw: str
    printed: str
    claims: tuple[Claim, ...] = field(default=())


class ClaimReader:
    """Reads claims off texts, and checks them.

    Parameters
    ----------
    ontology
        Which names are types.
    genes
        Which words are genes.
    """

    def __init__(self, ontology: Ontology, genes: frozenset[str]):
        self.ontology, self.genes = ontology, genes
        self.names = names_of_types(ontology)

    def check(self, text: str, *facts: CellFacts) -> CheckedText:
        """The text with what each cell says to it; of several cells, "cell 2" says which one is meant."""
        kept: list[str] = []
        claims: list[Claim] = []
        for number, sentence in enumerate(map(each_once, sentences(text))):
            found = [claim for part, about in parts(sentence, facts) for claim in self.claims(number, part, about)]
            if defined := self._defined_instead(sentence, found):
                claims.append(Claim(number, GENERAL, defined, UNCHECKED))
                kept.append(f"{defined} [{SOURCE}]")
                continue
            claims += found or [Claim(number, GENERAL, sentence.strip(), UNCHECKED)]
            if all(claim.verdict != CONTRADICTED for claim in found) and not _ONLY_THE_NAME.search(sentence):
                mark = "" if any(claim.verdict == SUPPORTED for claim in found) else f" [{GENERAL}]"
                kept.append(f"{sentence.strip()}{mark}{percentiles(found)}")
        printed = " ".join(kept) or fallback(facts, was_said=bool(text.strip()))
        return CheckedText(text, printed, tuple(claims))

    def _defined_instead(self, sentence: str, found: list[Claim]) -> str:
        """The ontology's definition of a type of these cells, where the model says that it knows only the name."""
        if not _ONLY_THE_NAME.search(sentence) or not found or found[0].verdict == CONTRADICTED:
            return ""
        term = self.ontology.find(found[0].subject)
        definition = sentences(term.definition or "") if term else []
        return f"{found[0].subject[:1].upper()}{found[0].subject[1:]}: {definition[0].strip()}" if definition else ""

    def claims(self, number: int, sentence: str, facts: tuple[CellFacts, ...]) -> Iterator[Claim]:
        """The claims of one sentence; each is borne out if any of the cells it may be about bears it out."""
        types = list(self.types_in(sentence))
        rest = sentence
        for start, stop, term in types:
            rest = rest[:start] + " " * (stop - start) + rest[stop:]
            judge = self._reading_of_type(sentence, start, stop)
            yield best([judge(number, term, one) for one in facts])
        for gene in dict.fromkeys(_SYMBOL.findall(rest)):
            if gene in self.genes or (gene.upper() == gene and len(gene) > 2 and gene not in _NO_GENES):
                is_lacking = bool(_LACKING.search(clause_of(rest, gene)))
                yield best([self._gene(number, gene, is_lacking, one) for one in facts])
        for species, words in SPECIES_WORDS.items():
            if re.search(rf"\b(?:{'|'.join(words)})\b", rest, re.I):
                yield best([_species(number, species, one) for one in facts])
        for match in _TISSUE_CLAIM.finditer(rest):
            tissue = next(group for group in match.groups() if group)
            yield best([_tissue(number, tissue.lower(), one) for one in facts])
        for state, (pattern, genes) in STATES.items():
            if re.search(rf"\b(?:{pattern})\b", rest, re.I):
                yield best([_state(number, state, genes, one) for one in facts])

    # ---- types

    def types_in(self, sentence: str) -> Iterator[tuple[int, int, Term]]:
        """Names of types, the longest at each place, with their places."""
        words = list(_WORD.finditer(sentence))
        place = 0
        while place < len(words):
            for last in range(min(place + _MAX_WORDS_OF_NAME, len(words)) - 1, place - 1, -1):
                start, stop = words[place].start(), words[last].end()
                name = plain_name(sentence[start:stop])
                if name in self.names:
                    yield start, stop, self.ontology.terms[self.names[name]]
                    place = last
                    break
            place += 1

    def _reading_of_type(self, sentence: str, start: int, stop: int) -> Callable[[int, Term, CellFacts], Claim]:
        """Whether a type is denied, named as another one, spoken of in general, or given to the cell."""
        before, after = sentence[:start], sentence[stop:]
        if _NOT_BEFORE.search(before):
            return self._denied
        if _ALTERNATIVE.search(before):
            return self._alternative
        return self._of_its_kind if _ABOUT_ALL.match(before) and _VERB_OF_KIND.match(after) else self._type

    def _type(self, number: int, term: Term, facts: CellFacts) -> Claim:
        verdict = SUPPORTED if self.agrees(term, facts) else CONTRADICTED
        return Claim(number, TYPE, term.label, verdict, facts.type_percentile(term.label))

    def agrees(self, term: Term, facts: CellFacts) -> bool:
        """Whether cells may be called so: the call itself, what is above it, or what cannot be told from it."""
        called = self.ontology.find(facts.label)
        if called is None:
            return term.label == facts.label
        if term.id == called.id or term.id in self.ontology.ancestors(called.id):
            return True
        return called.id in self.ontology.ancestors(term.id) and term.label in facts.candidates

    def _denied(self, number: int, term: Term, facts: CellFacts) -> Claim:
        return Claim(number, OTHER_TYPE, term.label, CONTRADICTED if self.agrees(term, facts) else SUPPORTED)

    def _alternative(self, number: int, term: Term, facts: CellFacts) -> Claim:
        is_known = term.label in (facts.second, *facts.candidates) and not self.agrees(term, facts)
        return Claim(number, OTHER_TYPE, term.label, SUPPORTED if is_known else CONTRADICTED)

    def _of_its_kind(self, number: int, term: Term, facts: CellFacts) -> Claim:
        """General knowledge of a type is let pass where it is this cell's."""
        return Claim(number, GENERAL, term.label, UNCHECKED if self.agrees(term, facts) else CONTRADICTED)

    # ---- the rest

    def _gene(self, number: int, gene: str, is_lacking: bool, facts: CellFacts) -> Claim:
        kind = ABSENT if is_lacking else RAISED
        percentile = facts.gene_percentile(gene) if gene in self.genes else None
        if percentile is None:
            return Claim(number, kind, gene, CONTRADICTED)
        is_seen = facts.gene_share(gene) > (0.5 if math.isnan(percentile) else 0.05)
        is_raised = is_seen and not percentile < RAISED_PERCENTILE
        is_absent = not is_seen or percentile < ABSENT_PERCENTILE
        return Claim(
            number, kind, gene, SUPPORTED if (is_absent if is_lacking else is_raised) else CONTRADICTED, percentile
        )


def _species(number: int, species: str, facts: CellFacts) -> Claim:
    return Claim(number, SPECIES, species, SUPPORTED if species == facts.species else CONTRADICTED)


def _tissue(number: int, tissue: str, facts: CellFacts) -> Claim:
    """A tissue that nobody gave cannot be known."""
    known = facts.tissue.lower()
    return Claim(number, TISSUE, tissue, SUPPORTED if known and (tissue in known or known in tissue) else CONTRADICTED)


def _state(number: int, state: str, genes: tuple[str, ...], facts: CellFacts) -> Claim:
    found = [value for gene in genes if (value := facts.gene_percentile(gene)) is not None and not math.isnan(value)]
    if not found:
        return Claim(number, STATE, state, CONTRADICTED)
    mean = sum(found) / len(found)
    return Claim(number, STATE, state, SUPPORTED if mean >= STATE_PERCENTILE else CONTRADICTED, mean)


def best(claims: list[Claim]) -> Claim:
    """Of the same claim about several cells, the one that holds best."""
    order = (SUPPORTED, UNCHECKED, CONTRADICTED)
    return min(claims, key=lambda claim: order.index(claim.verdict))


def sentences(text: str) -> list[str]:
    """The sentences of a text, with their full stops; a full stop inside of a name ends none.

    Examples
    --------
    >>> sentences("This is a B cell. It is not empty!")
    ['This is a B cell. ', 'It is not empty!']
    """
    return [found for found in _SENTENCE.findall(text.strip()) if found.strip()]


def each_once(sentence: str) -> str:
    """A sentence whose lists name nothing twice.

    Examples
    --------
    >>> each_once("Its raised genes include LYZ, CST3 and LYZ.")
    'Its raised genes include LYZ and CST3.'
    """

    def once(found: re.Match) -> str:
        named = [*found[1].split(", "), found[2]]
        *others, last = dict.fromkeys(named)
        if len(others) + 1 == len(named):
            return found[0]
        return f"{', '.join(others)} and {last}" if others else last

    return _LIST.sub(once, sentence)


def parts(sentence: str, facts: tuple[CellFacts, ...]) -> list[tuple[str, tuple[CellFacts, ...]]]:
    """A sentence about several cells, cut where it comes to speak of the next one."""
    if len(facts) < 2:
        return [(sentence, facts)]
    pieces = re.split(r"(?i)(?=\bcell \d\b)", sentence)
    found = []
    for piece in pieces:
        match = re.match(r"(?i)cell (\d)\b", piece)
        number = int(match.group(1)) if match else 0
        about = (facts[number - 1],) if 1 <= number <= len(facts) else facts
        found.append((piece[match.end() :] if match else piece, about))
    return [(piece, about) for piece, about in found if piece.strip()]


def clause_of(sentence: str, word: str) -> str:
    """The part between commas, semicolons and "but" that holds a word."""
    clauses = re.split(r";|\bbut\b|\bwhile\b|\bwhereas\b", sentence)
    return next((clause for clause in clauses if word in clause), sentence)


def percentiles(claims: list[Claim]) -> str:
    """What a sentence claims of a study's cells, each with how many of a hundred cells lie below it."""
    shown = [
        f"{'type' if claim.kind == TYPE else claim.subject} {claim.percentile:.0f}"
        for claim in dict.fromkeys(claims)
        if not math.isnan(claim.percentile)
    ]
    return f" [percentile: {', '.join(dict.fromkeys(shown))}]" if shown else ""


def without_marks(text: str) -> str:
    """A printed text as the language model may read it again."""
    return _MARK.sub("", text)


def fallback(facts: tuple[CellFacts, ...], *, was_said: bool = True) -> str:
    """What is known without the language model, where nothing that it said bears the check."""
    known = []
    for number, one in enumerate(facts, 1):
        name = f"Cell {number} is" if len(facts) > 1 else "This is"
        genes = f"; raised genes: {', '.join(one.raised[:3])}" if one.raised else ""
        known.append(f"{name} called {one.label}{genes}.")
    why = "withheld, as the cells contradict it" if was_said else "empty"
    return f"{' '.join(known)} [The language model's text was {why}.]"


def names_of_types(ontology: Ontology) -> dict[str, str]:
    """Plain names and unambiguous synonyms of types that say something, and their ids."""
    terms = [term for term in ontology.terms.values() if term.id not in UNINFORMATIVE_TERMS]
    names: dict[str, str] = {}
    shared = set()
    for term in terms:
        for name in set(map(plain_name, term.synonyms)):
            if names.setdefault(name, term.id) != term.id:
                shared.add(name)
    for name in shared:
        del names[name]
    names |= {plain_name(term.label): term.id for term in terms}
    return {name: term_id for name, term_id in names.items() if len(name) >= _MIN_LETTERS_OF_NAME}
