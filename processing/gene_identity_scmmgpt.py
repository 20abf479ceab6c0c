"""Match the columns of a matrix to genes of the vocabulary, and record how each was matched."""

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors_scmmgpt import UserError
from .species_scmmgpt import (
    ENSEMBL_ID,
    GENOME_PREFIX,
    HUMAN,
    SpeciesFound,
    recognise_species,
    refuse_other_kingdoms,
)

GENE_NAMES_FILE = "gene_names.tsv.gz"
NAME_COLUMNS = (
    "feature_name",
    "gene_symbols",
    "gene_symbol",
    "symbol",
    "gene_name",
    "gene_names",
    "gene_short_name",
    "feature_id",
    "gene_ids",
    "gene_id",
    "ensembl_id",
    "ensembl",
)
# Of the table: species, Ensembl id, symbol, human gene, synonyms.
_NUM_COLUMNS = 5
ROUTES = ("direct", "version", "spelling", "synonym", "ortholog")

_MADE_UNIQUE = re.compile(r"[-.]\d{1,2}$")
# Of genes that only a mouse has: 0610005C13Rik, Gm1992.
_MOUSE_IN_CAPITALS = re.compile(r"\d{7}[A-Z]\d\dRIK|GM\d{4,5}")


class NamedGene(NamedTuple):
    """A gene of some species and the human gene it stands for."""

    species: str
    ensembl_id: str
    symbol: str
    human_gene: str
    synonyms: tuple[str, ...]


class GeneNames:
    """The offline table of gene names: Ensembl ids, symbols, synonyms, and the human gene that each stands for.

    `packed` is what `training/mini/gene_tables.py` writes, gzip: lines of comment that name the sources, a head line,
    then one line per gene, species by species.
    """

    def __init__(self, packed: bytes):
        self._packed = packed
        comments, _, table = f"\n{gzip.decompress(packed).decode()}".partition("\nspecies\t")
        self.sources = [line.removeprefix("# ") for line in comments.splitlines() if line]
        self._lines_of = dict(_species_by_species(table.partition("\n")[2]))
        self._genes_of: dict[str, list[NamedGene]] = {}
        self._symbols_of: dict[str, set[str]] = {}

    def __deepcopy__(self, memo: dict) -> "GeneNames":
        return self  # never changed, so every copy of a tokenizer may share it

    @property
    def species(self) -> list[str]:
        """Species that have a table, human first."""
        return list(self._lines_of)

    def genes(self, species: str) -> list[NamedGene]:
        """Every named gene of one species."""
        if species not in self._genes_of:
            rows = (line.split("\t") for line in self._lines_of.get(species, "").splitlines())
            own = str if species == HUMAN else str.upper  # the human gene that a symbol names by itself
            self._genes_of[species] = [
                NamedGene(
                    species, ensembl_id, symbol, human_gene or own(symbol), tuple(filter(None, synonyms.split("|")))
                )
                for _, ensembl_id, symbol, human_gene, synonyms in rows
            ]
        return self._genes_of[species]

    def symbols(self, species: str) -> set[str]:
        """Every symbol of one species; of animals also those of earlier releases."""
        if species not in self._symbols_of:
            fields = self._lines_of.get(species, "").replace("\n", "\t").split("\t")
            names = set(fields[2::_NUM_COLUMNS])
            if species != HUMAN:
                names.update(fields[4::_NUM_COLUMNS])
            self._symbols_of[species] = names - {""}
        return self._symbols_of[species]

    @classmethod
    def read(cls, path: str | Path) -> "GeneNames":
        """Read the table from its file."""
        return cls(Path(path).read_bytes())

    def write(self, path: str | Path) -> None:
        """Write the table as it was read."""
        Path(path).write_bytes(self._packed)


def _species_by_species(table: str) -> Iterator[tuple[str, str]]:
    """Each species and its lines, which follow one another: no line is looked at that nobody asks for."""
    start = 0
    while start < len(table):
        species = table[start : table.index("\t", start)]
        last = max(table.rfind(f"\n{species}\t", start) + 1, start)
        end = table.find("\n", last) + 1 or len(table)
        yield species, table[start:end]
        start = end


@dataclass(frozen=True)
class GeneMatch:
    """Vocabulary row of each column (-1 = none) and how each was found."""

    rows: np.ndarray
    routes: list[str | None]
    species: str
    scheme: str
    names: Sequence[str]
    found: SpeciesFound | None = None

    @cached_property
    def num_distinct(self) -> int:
        """Genes of the vocabulary that were found."""
        return len(np.unique(self.rows[self.rows >= 0]))

    @property
    def has_duplicates(self) -> bool:
        """Whether several columns are one gene."""
        return self.num_distinct < int(np.count_nonzero(self.rows >= 0))

    @cached_property
    def account(self) -> dict:
        """What became of the genes, in plain numbers and examples."""
        by_route = Counter(self.routes)
        num_matched = int(np.count_nonzero(self.rows >= 0))
        found = self.found
        return {
            "species": self.species,
            "several_species": {name: len(names) for name, names in found.names.items()}
            if found and found.others
            else {},
            "alternative_species": dict(found.alternatives) if found else {},
            "scheme": self.scheme,
            "num_genes": len(self.rows),
            "num_matched": num_matched,
            "matched": {route: by_route.get(route, 0) for route in ROUTES},
            "merged_duplicates": num_matched - self.num_distinct,
            "num_unmatched": len(self.rows) - num_matched,
            "unmatched_examples": [str(self.names[gene]) for gene in np.flatnonzero(self.rows < 0)[:5]],
            "mouse_names_in_capitals": self._mouse_names_in_capitals(),
        }

    def _mouse_names_in_capitals(self) -> int:
        """Of names read as human, those that only a mouse's genes have."""
        unmatched = np.flatnonzero(self.rows < 0).tolist() if self.species == HUMAN else []
        return sum(bool(_MOUSE_IN_CAPITALS.fullmatch(str(self.names[gene]))) for gene in unmatched)


class GeneIdentifier:
    """Finds genes of one vocabulary under the names that people give them.

    Ensembl ids are "" where unknown. Without the table `gene_names` only the vocabulary's own names and ids are known.
    """

    def __init__(self, genes: Sequence[str], ensembl_ids: Sequence[str], gene_names: GeneNames | None = None):
        self.gene_names = gene_names
        self._row_of = {name: row for row, name in enumerate(genes)}
        self._row_of_id = {gene_id: row for row, gene_id in enumerate(ensembl_ids) if gene_id}
        self._row_of_id.update({name: row for name, row in self._row_of.items() if ENSEMBL_ID.fullmatch(name)})
        self._lookups: dict[str, dict[str, tuple[int, str]]] = {}

    def __deepcopy__(self, memo: dict) -> "GeneIdentifier":
        return self  # as for `GeneNames`

    def match(
        self, names_by_column: Mapping[str, Sequence[str]], species: str | None = None, first_column: str | None = None
    ) -> GeneMatch:
        """Vocabulary row of every gene.

        All columns of names are used, the index and those of `var`: a gene that one leaves unknown is looked up in the
        next. `first_column` is trusted before the others, by default the one with the most known names. The species is
        recognised from the names if None.
        """
        columns = {column: [str(name) for name in names] for column, names in names_by_column.items()}
        if species is None:
            refuse_other_kingdoms(columns.values())
            found = recognise_species(columns.values(), self._symbols)
        else:
            found = SpeciesFound(species, {species: frozenset()}, {})
        self._check_species(found.species)
        matches = {column: self._match_names(names, found) for column, names in columns.items()}
        order = sorted(
            matches, key=lambda column: (column != first_column, -np.count_nonzero(matches[column][0] >= 0))
        )
        rows, routes = matches[order[0]]
        rows, routes = rows.copy(), list(routes)
        for column in order[1:]:
            for gene in np.flatnonzero((rows < 0) & (matches[column][0] >= 0)):
                rows[gene], routes[gene] = matches[column][0][gene], matches[column][1][gene]
        names = next(iter(columns.values()))
        return GeneMatch(rows, routes, found.species, scheme_of(columns[order[0]]), names, found)

    def _match_names(self, names: list[str], found: SpeciesFound) -> tuple[np.ndarray, list[str | None]]:
        """Each name among the genes of the species that alone has it, else of the one that has most."""
        present, first = set(names), self._lookup(found.species)
        known = [other for other in found.others if other in self._species]
        lookup_of = {name: self._lookup(other) for other in known for name in found.names[other]}
        places = [_find(name, lookup_of.get(name, first), present) for name in names]
        return np.array([row for row, _ in places], dtype=np.int64), [route for _, route in places]

    @property
    def _species(self) -> list[str]:
        return self.gene_names.species if self.gene_names is not None else [HUMAN]

    @property
    def _symbols(self) -> dict[str, set[str]]:
        return {species: self.gene_names.symbols(species) if self.gene_names else set() for species in self._species}

    def _lookup(self, species: str) -> dict[str, tuple[int, str]]:
        """Every known name of the species' genes -> (vocabulary row, route); the surer route wins."""
        if species not in self._lookups:
            lookup: dict[str, tuple[int, str]] = {}
            if species == HUMAN or self.gene_names is None:
                lookup.update({name: (row, "direct") for name, row in self._row_of.items()})
                lookup.update({gene_id: (row, "direct") for gene_id, row in self._row_of_id.items()})
            known = self.gene_names.genes(species) if self.gene_names is not None else []
            self._add_known_genes(lookup, known, "direct" if species == HUMAN else "ortholog")
            # Last and least sure: the same name in other capitals.
            for name, (row, route) in list(lookup.items()):
                lookup.setdefault(name.upper(), (row, "spelling" if route == "direct" else route))
            self._lookups[species] = lookup
        return self._lookups[species]

    def _add_known_genes(self, lookup: dict, known: Iterable[NamedGene], route: str) -> None:
        human_id: dict[str, str] = {}
        if self.gene_names is not None:
            for gene in self.gene_names.genes(HUMAN):
                human_id.setdefault(gene.symbol, gene.ensembl_id)
        rows = [(gene, row) for gene in known if (row := self._row(gene, human_id)) is not None]
        for gene, row in rows:
            for name in filter(None, (gene.ensembl_id, gene.symbol)):
                lookup.setdefault(name, (row, route))
        for gene, row in rows:
            for synonym in gene.synonyms:
                lookup.setdefault(synonym, (row, "synonym"))

    def _row(self, gene: NamedGene, human_id: Mapping[str, str]) -> int | None:
        """Vocabulary row of a gene; a vocabulary may use today's symbol, an id, or a former symbol."""
        if gene.human_gene in self._row_of:
            return self._row_of[gene.human_gene]
        own_id = gene.ensembl_id if gene.species == HUMAN else ""
        for gene_id in (own_id, human_id.get(gene.human_gene, "")):
            if gene_id in self._row_of_id:
                return self._row_of_id[gene_id]
        synonyms = gene.synonyms if gene.species == HUMAN else ()
        return next((self._row_of[name] for name in synonyms if name in self._row_of), None)

    def _check_species(self, species: str) -> None:
        known = self._species
        if species not in known and self.gene_names is not None:
            raise UserError(
                f"The genes are those of {species}, for which there is no table of orthologs. Known species: "
                f"{', '.join(known)}. Map the genes to human Ensembl ids or symbols first, or pass `species=`."
            )


def _find(name: str, lookup: Mapping[str, tuple[int, str]], present: set[str]) -> tuple[int, str | None]:
    """Vocabulary row and route of one name."""
    if name in lookup:
        return lookup[name]
    ensembl = ENSEMBL_ID.search(name)
    if ensembl and ensembl.group() in lookup:  # ENSG00000141510.18, ENSG00000141510_TP53, GRCh38_ENSG00000141510
        row, route = lookup[ensembl.group()]
        return row, "version" if route == "direct" else route
    bare = GENOME_PREFIX.sub("", name)
    made_unique = _MADE_UNIQUE.sub("", bare)
    spellings = [bare, bare.upper(), bare.replace(".", "-"), bare.upper().replace(".", "-")]
    if made_unique in present:  # TP53-1 beside TP53: AnnData's or R's way to make a repeated name unique
        spellings.append(made_unique)
    for spelling in spellings:
        if spelling in lookup:
            row, route = lookup[spelling]
            return row, "spelling" if route == "direct" else route
    return -1, None


def scheme_of(names: Sequence[str]) -> str:
    """What kind of names these are, in words."""
    share = sum(bool(ENSEMBL_ID.search(name)) for name in names) / max(len(names), 1)
    if share > 0.9:
        return "Ensembl ids"
    if share > 0.1:
        return "Ensembl ids and symbols"
    return "row numbers" if all(name.isdigit() for name in names) else "symbols"


def gene_name_columns(var, var_names: Sequence[str], gene_column: str | None = None) -> dict[str, Sequence[str]]:
    """The index of `var` and those of its columns that hold gene names."""
    if gene_column is not None and gene_column not in var:
        raise UserError(f"`gene_column={gene_column!r}` is no column of `var`; it has {list(var)}.")
    columns: dict[str, Any] = {"index": var_names}
    for column in ([gene_column] if gene_column is not None else []) + list(NAME_COLUMNS):
        if var is not None and column in var:
            columns[column] = np.asarray(var[column]).astype(str)
    return columns
