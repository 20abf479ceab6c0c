"""Genes are recognised under the names people give them, and the account says how."""

import gzip

import numpy as np
import pytest
from input_variants import SPECIES, TABLE, adata_of, counts_of, gene_tokenizer, named

from scmmgpt.processing.gene_identity_scmmgpt import GeneIdentifier, GeneNames, scheme_of
from scmmgpt.processing.input_account_scmmgpt import account_line, species_lines


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
    assert TABLE.stat().st_size < 150e3 * len(GeneNames.read(TABLE).species)
    assert gzip.decompress(TABLE.read_bytes()).startswith(b"# ")


def test_a_name_in_the_table_means_one_gene():
    human = GeneNames.read(TABLE).genes("human")
    symbols = {gene.symbol for gene in human}
    synonyms = [synonym for gene in human for synonym in gene.synonyms]

    assert len(synonyms) == len(set(synonyms))
    assert not symbols.intersection(synonyms)


@pytest.mark.parametrize("species", SPECIES)
def test_a_gene_of_a_mammal_stands_for_one_human_gene(species):
    genes = GeneNames.read(TABLE).genes(species)
    human_of = {}
    for gene in genes:
        human_of.setdefault(gene.symbol or gene.ensembl_id, set()).add(gene.human_gene)

    assert len(genes) > 15_000
    assert all(len(human) == 1 for human in human_of.values())


@pytest.mark.parametrize(
    ("species", "least"), [("chicken", 12_000), ("zebrafish", 13_000), ("fruit fly", 6_000), ("roundworm", 5_000)]
)
def test_far_species_reach_human_genes_in_families(species, least):
    genes = GeneNames.read(TABLE).genes(species)

    assert len({gene.human_gene for gene in genes}) > least
    assert len({gene.human_gene for gene in genes}) < len(genes)  # several of the animal's genes for one of human


@pytest.mark.parametrize(
    ("species", "name", "human_gene"),
    [
        ("zebrafish", "cd74a", "CD74"),
        ("zebrafish", "ENSDARG00000009087", "CD74"),
        ("fruit fly", "FBgn0260400", "ELAVL2"),
        ("roundworm", "exc-7", "ELAVL4"),
        ("chicken", "CD3D", "CD3D"),
        ("rat", "RT1-Da", "HLA-DRA"),
    ],
)
def test_a_gene_of_another_animal_finds_its_human_gene(species, name, human_gene):
    found = {gene.symbol: gene for gene in GeneNames.read(TABLE).genes(species)}
    found |= {gene.ensembl_id: gene for gene in GeneNames.read(TABLE).genes(species)}

    assert found[name].human_gene == human_gene


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
    with pytest.raises(ValueError, match="cow.*Known species: human, mouse, rat"):
        match(identifier, [f"ENSBTAG{number:011d}" for number in range(50)])


@pytest.mark.parametrize("species", ["zebrafish", "fruit fly", "roundworm", "rat", "mouse"])
def test_symbols_tell_species_apart(tokenizer, identifier, species):
    genes = [gene.symbol for gene in tokenizer.gene_names.genes(species) if gene.symbol]

    assert match(identifier, genes[::5]).species == species


def test_symbols_that_two_species_share_are_said(tokenizer, identifier):
    shared = tokenizer.gene_names.symbols("mouse") & tokenizer.gene_names.symbols("rat")

    found = match(identifier, [*sorted(shared)[:2000], "RT1-Da", "RT1-Ba"])

    assert found.species == "rat"
    assert found.account["alternative_species"]["mouse"] > 0.99
    assert "mouse: read as rat" in species_lines(found.account)[0]


@pytest.mark.parametrize("scheme", ["symbols", "Ensembl ids"])
def test_each_gene_of_a_mixed_file_is_read_by_its_own_species(tokenizer, identifier, scheme):
    both = {species: named(tokenizer, species, scheme) for species in ("human", "mouse")}

    found = match(identifier, [*both["human"], *both["mouse"][:300]])

    assert found.account["several_species"].keys() == {"human", "mouse"}
    assert "several species" in species_lines(found.account)[0]
    np.testing.assert_array_equal(found.rows, [*range(len(tokenizer.genes)), *range(300)])


def test_genome_prefixes_tell_the_species_of_each_gene(tokenizer, identifier):
    human = [f"GRCh38_{name}" for name in named(tokenizer, "human", "symbols")]
    mouse = [f"mm10___{name}" for name in named(tokenizer, "mouse", "symbols")]

    found = match(identifier, [*human, *mouse])

    assert found.account["several_species"] == {"human": 400, "mouse": 400}
    np.testing.assert_array_equal(found.rows, [*range(400), *range(400)])


@pytest.mark.parametrize("name", ["AT1G{:05d}", "Os01g{:07d}", "YAL{:03d}W"])
def test_ids_of_plants_and_fungi_are_refused_in_words(identifier, name):
    with pytest.raises(ValueError, match=r"genes are those of .*, a (plant|fungus)"):
        match(identifier, [name.format(number) for number in range(50)])


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
