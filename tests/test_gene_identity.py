"""Genes are recognised under the names people give them, and the account says how."""

import gzip

import numpy as np
import pytest
from input_variants import SPECIES, TABLE, adata_of, counts_of, gene_tokenizer, named

from scmmgpt.processing.gene_identity_scmmgpt import GeneIdentifier, GeneNames, scheme_of
from scmmgpt.processing.input_account_scmmgpt import account_line


@pytest.fixture(scope="module")
def tokenizer():
    return gene_tokenizer(max_genes=None)


@pytest.fixture(scope="module")
def identifier(tokenizer):
    return GeneIdentifier(tokenizer.genes, tokenizer.ensembl_ids, tokenizer.gene_names)


def match(identifier, names, **options):
    return identifier.match({"index": names}, **options)


def test_the_table_records_sources_and_licences():
    sources = GeneNames.read(TABLE).sources

    assert len(sources) >= 4
    assert all("MIT" in source or "Apache" in source for source in sources[:4])


def test_the_table_is_small_and_holds_no_pickle():
    assert TABLE.stat().st_size < 1.5e6
    assert gzip.decompress(TABLE.read_bytes()).startswith(b"# ")


def test_a_name_in_the_table_means_one_gene():
    human = GeneNames.read(TABLE).genes("human")
    symbols = {gene.symbol for gene in human}
    synonyms = [synonym for gene in human for synonym in gene.synonyms]

    assert len(synonyms) == len(set(synonyms))
    assert not symbols.intersection(synonyms)


@pytest.mark.parametrize("species", SPECIES)
def test_every_further_species_maps_one_to_one(species):
    genes = GeneNames.read(TABLE).genes(species)
    targets = [gene.human_gene for gene in genes]

    assert len(genes) > 15_000
    if species not in ("human", "mouse"):
        assert len(targets) == len(set(targets))


@pytest.mark.parametrize(
    ("name", "gene", "route"),
    [
        ("CD3D", "CD3D", "direct"),
        ("ENSG00000167286", "CD3D", "direct"),
        ("ENSG00000167286.12", "CD3D", "version"),
        ("CD3D_ENSG00000167286", "CD3D", "version"),
        ("cd3d", "CD3D", "spelling"),
        ("hg19_CD3D", "CD3D", "spelling"),
        ("HLA.DRA", "HLA-DRA", "spelling"),
        ("c1orf112", "FIRRM", "synonym"),
        ("HIST1H4C", "H4C3", "synonym"),
        ("SEPT7", "SEPTIN7", "synonym"),
        ("NOT_A_GENE", None, None),
        ("", None, None),
    ],
)
def test_a_name_finds_its_gene(name, gene, route):
    genes = ["CD3D", "HLA-DRA", "H4C3", "FIRRM", "SEPTIN7"]
    identifier = GeneIdentifier(genes, ["ENSG00000167286", "", "", "", ""], GeneNames.read(TABLE))

    found = match(identifier, [name, "CD3D", "HLA-DRA"], species="human")

    assert (genes[found.rows[0]] if found.rows[0] >= 0 else None) == gene
    assert found.routes[0] == route


@pytest.mark.parametrize("species", SPECIES)
@pytest.mark.parametrize("scheme", ["symbols", "Ensembl ids", "versioned ids", "mixed"])
def test_genes_of_every_species_find_their_human_genes(tokenizer, identifier, species, scheme):
    found = match(identifier, named(tokenizer, species, scheme), species=species)

    np.testing.assert_array_equal(found.rows, np.arange(len(tokenizer.genes)))
    assert set(found.routes) <= ({"ortholog"} if species != "human" else {"direct", "version"})


@pytest.mark.parametrize("species", SPECIES)
def test_ensembl_ids_tell_the_species(tokenizer, identifier, species):
    assert match(identifier, named(tokenizer, species, "Ensembl ids")).species == species


@pytest.mark.parametrize("species", ["human", "mouse"])
def test_symbols_tell_human_from_mouse(tokenizer, identifier, species):
    assert match(identifier, named(tokenizer, species, "symbols")).species == species


def test_a_species_without_a_table_is_refused_by_name(identifier):
    with pytest.raises(ValueError, match="zebrafish.*Known species: human, mouse, rat"):
        match(identifier, [f"ENSDARG{number:011d}" for number in range(50)])


def test_an_unknown_species_named_by_the_caller_is_refused(identifier):
    with pytest.raises(ValueError, match="those of axolotl"):
        match(identifier, ["CD3D"], species="axolotl")


def test_a_second_column_fills_what_the_first_leaves_unknown(tokenizer, identifier):
    symbols = named(tokenizer, "human", "symbols")
    ids = named(tokenizer, "human", "Ensembl ids")
    half = [symbol if place % 2 else f"clone{place}" for place, symbol in enumerate(symbols)]

    found = identifier.match({"index": half, "feature_id": ids})

    np.testing.assert_array_equal(found.rows, np.arange(len(symbols)))


def test_names_made_unique_are_the_same_gene(identifier, tokenizer):
    gene = tokenizer.genes[5]

    found = match(identifier, [gene, f"{gene}-1", f"{gene}.2"], species="human")

    assert (found.rows == 5).all()
    assert found.account["merged_duplicates"] == 2


def test_a_dash_and_digit_belong_to_the_name_where_the_bare_name_is_absent():
    identifier = GeneIdentifier(["NKX2", "CD3D"], ["", ""], None)

    assert match(identifier, ["NKX2-1", "CD3D"]).rows[0] == -1


def test_the_account_counts_every_route(tokenizer, identifier):
    genes = tokenizer.genes
    former = named(tokenizer, "human", "former symbols")
    names = [genes[0], f"{tokenizer.ensembl_ids[1]}.3", genes[2].lower(), former[3], "nonsense"]

    account = match(identifier, names, species="human").account

    assert account["matched"] == {"direct": 1, "version": 1, "spelling": 1, "synonym": 1, "ortholog": 0}
    assert account["num_matched"] == 4
    assert account["num_unmatched"] == 1
    assert account["unmatched_examples"] == ["nonsense"]


def test_the_account_reads_as_one_line(tokenizer):
    names = [*tokenizer.genes[:50], "nonsense"]
    tokenizer(adata_of(counts_of(3, 51), names))

    line = account_line(tokenizer.account)

    assert "\n" not in line
    assert "3 cells; X: whole numbers; 50 of 51 human genes (symbols) matched (50 direct)" in line
    assert "unmatched e.g. nonsense" in line


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        (["CD3D", "LYZ"], "symbols"),
        (["ENSG00000167286", "ENSMUSG00000032094.5"], "Ensembl ids"),
        (["ENSG00000167286", "LYZ"], "Ensembl ids and symbols"),
        (["0", "1", "2"], "row numbers"),
    ],
)
def test_the_scheme_is_guessed_in_words(names, scheme):
    assert scheme_of(names) == scheme
