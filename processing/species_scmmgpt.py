"""The species that a matrix is from, told by its genes; how far its genes carry what the model learnt on human cells."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from .errors_scmmgpt import UserError

HUMAN = "human"

# The part of an Ensembl gene id that names the species, for those one meets most.
SPECIES_OF_PREFIX = {
    "ENSG": HUMAN,
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSMMUG": "rhesus macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSSSCG": "pig",
    "ENSDARG": "zebrafish",
    "ENSPTRG": "chimpanzee",
    "ENSCJAG": "marmoset",
    "ENSMICG": "mouse lemur",
    "ENSBTAG": "cow",
    "ENSGALG": "chicken",
    "ENSXETG": "western clawed frog",
    "ENSOCUG": "rabbit",
    "FBgn": "fruit fly",
    "WBGene": "roundworm",
}
ENSEMBL_ID = re.compile(r"(ENS[A-Z]*G)\d{11}|(FBgn)\d{7}|(WBGene)\d{8}")
GENOME_PREFIX = re.compile(r"^(GRCh3[78]|GRCm3[89]|hg19|hg38|mm10|mm39|GRCz11|mRatBN7|Rnor6)_+")
_SPECIES_OF_GENOME = {"GRCh": HUMAN, "hg": HUMAN, "GRCm": "mouse", "mm": "mouse", "GRCz": "zebrafish"}
_SPECIES_OF_GENOME |= {"mRat": "rat", "Rnor": "rat"}
# No animals: their ids are told by their form, so that the refusal can say what they are.
_OTHER_KINGDOMS = {
    "thale cress, a plant": re.compile(r"AT[1-5MC]G\d{5}(\.\d+)?", re.IGNORECASE),
    "rice, a plant": re.compile(r"(LOC_)?Os\d{2}g\d{5,7}", re.IGNORECASE),
    "maize, a plant": re.compile(r"(Zm\d{5}[a-z]+\d{6}|GRMZM\w+)", re.IGNORECASE),
    "baker's yeast, a fungus": re.compile(r"(Y[A-P][LR]\d{3}[WC](-[A-Z])?|Q0\d{3})"),
    "fission yeast, a fungus": re.compile(r"SP[ABC]\w*\d+\.\d+c?"),
}
_LEAST_SHARE_OF_OTHER_KINGDOM = 0.2

# Million years since the last common ancestor with human (medians of timetree.org).
MILLION_YEARS = {
    HUMAN: 0,
    "chimpanzee": 6,
    "rhesus macaque": 29,
    "crab-eating macaque": 29,
    "marmoset": 43,
    "mouse lemur": 74,
    "mouse": 87,
    "rat": 87,
    "rabbit": 87,
    "pig": 94,
    "chicken": 319,
    "zebrafish": 429,
    "fruit fly": 686,
    "roundworm": 686,
}
# A mouse keeps 0.9 of what human cells have, an insect or worm 0.4.
_MILLION_YEARS_TO_HALF = 550

# Of the recognised names so many must be of a second species alone, to be more than names that happen to be alike.
_LEAST_SHARE_OF_SECOND = 0.1
# A species that knows so many of the names might be meant as well.
_SHARE_OF_ALTERNATIVE = 0.9


@dataclass(frozen=True)
class SpeciesFound:
    """The species of a matrix by its genes.

    `species` knows most names. `names` of each species that is there are known to it and to no species before it; more
    than one where a file mixes species. `alternatives` know nearly as many names: the share of them.
    """

    species: str
    names: Mapping[str, frozenset[str]]
    alternatives: Mapping[str, float]

    @property
    def others(self) -> list[str]:
        """Further species in the file."""
        return [species for species in self.names if species != self.species]


def recognise_species(columns: Iterable[Sequence[str]], symbols: Mapping[str, AbstractSet[str]]) -> SpeciesFound:
    """The species that most names belong to: by genome or Ensembl prefix, else by symbols in their exact capitals.

    `symbols` of every known species; on equal numbers the first wins, since many animals share the symbols of human.
    """
    known: dict[str, set[str]] = {species: set() for species in symbols}
    for name in {name for names in columns for name in names}:
        species = species_of_id(name)
        if species:
            known.setdefault(species, set()).add(name)
            continue
        for species in symbols:
            if name in symbols[species]:
                known[species].add(name)
    winner = max(known, key=lambda species: len(known[species]))
    return _found(winner, known)


def _found(winner: str, known: Mapping[str, set[str]]) -> SpeciesFound:
    names, left = {winner: frozenset(known[winner])}, dict(known)
    taken = set(known[winner])
    alternatives = {
        species: round(len(found & taken) / len(taken), 3)
        for species, found in known.items()
        if species != winner and len(found & taken) >= _SHARE_OF_ALTERNATIVE * max(len(taken), 1)
    }
    while True:
        left = {species: found - taken for species, found in left.items()}
        second = max(left, key=lambda species: len(left[species]))
        if len(left[second]) < _LEAST_SHARE_OF_SECOND * len(taken) or not left[second]:
            return SpeciesFound(winner, names, alternatives)
        names[second] = frozenset(left[second])
        taken |= left[second]


def species_of_id(name: str) -> str | None:
    """The species that a genome prefix or an Ensembl id names.

    Examples
    --------
    >>> species_of_id("mm10___Cd3d"), species_of_id("ENSDARG00000017127.4"), species_of_id("CD3D")
    ('mouse', 'zebrafish', None)
    """
    if genome := GENOME_PREFIX.match(name):
        return next(species for start, species in _SPECIES_OF_GENOME.items() if genome[1].startswith(start))
    prefix = ensembl_prefix(name)
    return SPECIES_OF_PREFIX.get(prefix, f"the species with ids {prefix}...") if prefix else None


def ensembl_prefix(name: str) -> str | None:
    """What comes before the number of an Ensembl gene id."""
    ensembl = ENSEMBL_ID.search(name)
    return next(group for group in ensembl.groups() if group) if ensembl else None


def refuse_other_kingdoms(columns: Iterable[Sequence[str]]) -> None:
    """Refuse names that are ids of plants or fungi, with the reason in words."""
    for names in columns:
        found = Counter(
            kingdom for name in names for kingdom, form in _OTHER_KINGDOMS.items() if form.fullmatch(str(name))
        )
        for kingdom, number in found.items():
            if number >= _LEAST_SHARE_OF_OTHER_KINGDOM * len(names):
                raise UserError(
                    f"{number} of {len(names)} genes are those of {kingdom}. The model knows cells of animals, through "
                    "orthologs of human genes; what it would say about these cells means nothing."
                )


def closeness(species: str) -> float:
    """How near a species is to human, from 1 for human down: halved with every 550 million years apart.

    Examples
    --------
    >>> [round(closeness(species), 2) for species in ("human", "mouse", "zebrafish", "roundworm")]
    [1.0, 0.9, 0.58, 0.42]
    """
    return 0.5 ** (MILLION_YEARS.get(species, 0) / _MILLION_YEARS_TO_HALF)


# The studies that confidences were fitted on, of human and mouse, have at least the first; below the second the genes
# say too little: neurons of a worm (0.24) are called neurons, pancreatic cells and B cells.
REACH_OF_CALIBRATION, LEAST_REACH = 0.6, 0.25


def reach(share_of_counts: float, species: str) -> float:
    """How far what was learnt on human cells carries here, from 0 to 1: share of counts covered x closeness to human.

    Examples
    --------
    >>> reach(0.9, "human"), reach(0.9, "mouse"), reach(0.4, "roundworm")
    (0.9, 0.807, 0.168)
    """
    return round(share_of_counts * closeness(species), 3)


def trust(reach: float) -> float:
    """What confidences are multiplied by: 1 where the reach is that of the studies they were fitted on.

    The square root: human cells under the gene names of fish and birds keep nearly all of their accuracy, so that not all
    of the distance counts against a name.
    """
    return min(reach / REACH_OF_CALIBRATION, 1.0) ** 0.5
