"""Only genes go into the RNA: antibodies, hashtags, guides and peaks are set aside, and the account says so."""

import os
from pathlib import Path

import anndata as ad
import input_variants
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmmgpt.processing.errors_scmmgpt import UserError
from scmmgpt.processing.features_scmmgpt import features_of
from scmmgpt.processing.gene_identity_scmmgpt import GeneNames
from scmmgpt.processing.gene_tokenization_scmmgpt import ScMMGPTGeneTokenizer
from scmmgpt.training.corpus.sources import open_source

MARKERS = ["CD19", "CD14", "CD4", "CD8A", "CD3E", "PTPRC", "FCGR3A", "NCAM1", "PDCD1", "TIGIT"]
NUM_CELLS = 24
TYPED = "feature_types"
# mudata's own, of two modalities that share names.
pytestmark = pytest.mark.filterwarnings("ignore:var_names are not unique:UserWarning")


@pytest.fixture(scope="module")
def gene_names() -> GeneNames:
    return GeneNames.read(input_variants.TABLE)


@pytest.fixture(scope="module")
def tokenizer(gene_names) -> ScMMGPTGeneTokenizer:
    others = sorted({gene.symbol for gene in gene_names.genes("human")} - set(MARKERS))[:40]
    return ScMMGPTGeneTokenizer([*others, *MARKERS], gene_names=gene_names)


@pytest.fixture(scope="module")
def real_tokenizer() -> ScMMGPTGeneTokenizer:
    return ScMMGPTGeneTokenizer.from_pretrained(input_variants.TABLE.parent)


@pytest.fixture(scope="module")
def rna(tokenizer) -> ad.AnnData:
    return input_variants.adata_of(input_variants.counts_of(NUM_CELLS, len(tokenizer.genes)), tokenizer.genes)


def beside(rna, names, kind=None, gene_kind="Gene Expression", first=False) -> ad.AnnData:
    """The cells with high counts of other features in rows beside the genes; typed if `kind` says how."""
    others = sparse.csr_matrix(np.random.default_rng(1).poisson(300, (rna.n_obs, len(names))).astype(np.float32))
    parts = [(others, list(names), [kind] * len(names)), (rna.X, rna.var_names.tolist(), [gene_kind] * rna.n_vars)]
    parts = parts if first else parts[::-1]
    adata = ad.AnnData(sparse.hstack([matrix for matrix, _, _ in parts], format="csr"))
    adata.obs_names = rna.obs_names
    adata.var.index = [name for _, names_of_part, _ in parts for name in names_of_part]
    if kind is not None:
        adata.var[TYPED] = [each for _, _, kinds in parts for each in kinds]
    return adata


def in_obsm(rna) -> ad.AnnData:
    adata = rna.copy()
    values = np.full((rna.n_obs, 2), 300)
    adata.obsm["protein_expression"] = pd.DataFrame(values, columns=["CD19", "CD14"], index=rna.obs_names)
    return adata


def in_mod(rna) -> mudata.MuData:
    protein = beside(rna, ["CD19", "CD14"])[:, -2:].copy()
    with input_variants.without_pulling():
        return mudata.MuData({"prot": protein, "rna": rna.copy()})


def under_ids(rna) -> ad.AnnData:
    adata = beside(rna, ["CD19-1", "CD14-1"])
    adata.var["gene_ids"] = [f"ENSG{place:011d}" for place in range(rna.n_vars)] + ["CD19_TotalSeqB", "CD14_TotalSeqB"]
    return adata


PANEL = ["CD3", "CD4-1", "CD8a", "CD14-1", "CD16", "CD19-1", "CD56", "CD45RA", "PD-1", "TIGIT-1", "CD127", "IgG1"]
SHAPES = {
    "rows that have names of proteins": (lambda rna: beside(rna, PANEL), "antibody", 12),
    "rows that have names of proteins, first": (lambda rna: beside(rna, PANEL, first=True), "antibody", 12),
    "typed, named like genes": (lambda rna: beside(rna, ["CD19-1", "CD14-1"], "Antibody Capture"), "antibody", 2),
    "typed, of the very same names": (lambda rna: beside(rna, ["CD19", "CD14"], "Antibody Capture"), "antibody", 2),
    "typed in small letters": (
        lambda rna: beside(rna, ["CD19-1"], "antibody_capture", "gene expression"),
        "antibody",
        1,
    ),
    "typed in Seurat's way": (lambda rna: beside(rna, ["CD19-1"], "ADT", "RNA"), "antibody", 1),
    "typed as proteins": (lambda rna: beside(rna, ["CD19-1"], "Protein", "Gene"), "antibody", 1),
    "typed as something else": (lambda rna: beside(rna, ["CD19-1"], "Lipid"), "custom feature", 1),
    "suffixed": (lambda rna: beside(rna, ["CD19_TotalSeqB", "CD14_TotalC"]), "antibody", 2),
    "suffixed, typed as genes": (lambda rna: beside(rna, ["CD19_TotalSeqB"], "Gene Expression"), "antibody", 1),
    "prefixed": (lambda rna: beside(rna, ["adt_CD19", "ADT_CD14", "anti-CD4", "prot_CD8A"]), "antibody", 4),
    "with their barcodes": (lambda rna: beside(rna, ["CD19-CTGGGCAATTACTCG"]), "antibody", 1),
    "marked in the column of ids": (under_ids, "antibody", 2),
    "in obsm": (in_obsm, "antibody", 2),
    "in another modality": (in_mod, "antibody", 2),
    "hashtags": (lambda rna: beside(rna, ["Hash1", "Hashtag_2", "HTO_A", "HTO3"]), "hashtag", 4),
    "hashtags, typed as antibodies": (
        lambda rna: beside(rna, ["Hashtag1_TotalSeqB", "HTO2"], "Antibody Capture"),
        "hashtag",
        2,
    ),
    "hashtags, typed": (lambda rna: beside(rna, ["CD19-1"], "Multiplexing Capture"), "hashtag", 1),
    "guides": (lambda rna: beside(rna, ["CD19_sgRNA_1", "sgCD14_2", "Non-Targeting"]), "guide", 3),
    "guides, typed": (lambda rna: beside(rna, ["CD19-1", "CD14-2"], "CRISPR Guide Capture"), "guide", 2),
    "custom": (lambda rna: beside(rna, ["CD19-1"], "Custom"), "custom feature", 1),
    "peaks": (lambda rna: beside(rna, ["chr1:100-200", "chr1-300-400", "chrX_5_60"]), "peak", 3),
    "peaks, typed": (lambda rna: beside(rna, ["CD19-1"], "Peaks"), "peak", 1),
}
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES)


def assert_same_cells(found, expected):
    for name in ("gene_ids", "gene_values", "gene_mask"):
        np.testing.assert_array_equal(found[name], expected[name])


def entry(account: dict) -> dict:
    (only,) = account["set_aside"].values()
    return only


@ALL_SHAPES
def test_only_genes_are_read_and_the_account_names_the_others(tokenizer, rna, shape):
    make, kind, number = SHAPES[shape]

    found = tokenizer(make(rna))

    told = entry(tokenizer.account)
    assert (told["kind"], told["number"], len(told["names"])) == (kind, number, number)
    assert told["why"]
    assert_same_cells(found, tokenizer(rna))


@pytest.mark.parametrize("shape", ["rows that have names of proteins", "typed, named like genes", "suffixed"])
@pytest.mark.parametrize(
    "container", ["view", "backed h5ad", "path to h5ad", "path to column-wise h5ad", "path to zarr"]
)
def test_every_container_sets_the_same_features_aside(tokenizer, rna, tmp_path, shape, container):
    make, _, number = SHAPES[shape]

    chunks = list(tokenizer.iter_chunks(input_variants.CONTAINERS[container](make(rna), tmp_path), 7))

    assert sum(len(chunk["gene_ids"]) for chunk in chunks) == NUM_CELLS
    assert tokenizer.account["set_aside"]["antibody"]["number"] == number
    assert_same_cells(chunks[0], next(tokenizer.iter_chunks(rna, 7)))


def test_an_h5mu_file_tells_of_its_other_modalities(tokenizer, rna, tmp_path):
    found = tokenizer(input_variants.CONTAINERS["path to h5mu"](rna, tmp_path))

    assert entry(tokenizer.account)["names"] == ["CD3", "CD4", "CD8"]
    assert_same_cells(found, tokenizer(rna))


def test_a_table_and_a_matrix_with_names_are_held_to_the_same_rule(tokenizer, rna):
    cells = beside(rna, ["CD19_TotalSeqB", "CD14_TotalSeqB"])

    table = tokenizer(cells.to_df())
    pair = tokenizer((cells.X, cells.var_names.tolist()))

    for found in (table, pair):
        assert_same_cells(found, tokenizer(rna))


def test_raw_counts_believe_the_types_of_x(tokenizer, rna):
    cells = beside(rna, ["CD19-1", "CD14-1"], "Antibody Capture")
    cells.raw = ad.AnnData(cells.X, var=cells.var[[]])
    cells.X = sparse.csr_matrix(np.log1p(cells.X.toarray() / 7))

    assert_same_cells(tokenizer(cells, layer="raw"), tokenizer(rna))


def test_proteins_with_negative_values_do_not_make_the_rna_look_scaled(tokenizer, rna):
    cells = beside(rna, ["CD19-1", "CD14-1"], "Antibody Capture")
    cells.X = cells.X.toarray()
    cells.X[:, -2:] -= 299.5

    assert_same_cells(tokenizer(cells), tokenizer(rna))


def test_a_corpus_is_built_of_genes_alone(rna, tmp_path):
    cells = beside(rna, ["CD19-1", "CD14-1"], "Antibody Capture")
    path = input_variants.CONTAINERS["path to h5ad"](cells, tmp_path)

    rows = open_source(path, "cells").rows(0, 5)

    assert rows.var_names.tolist() == rna.var_names.tolist()
    np.testing.assert_array_equal(rows.X.toarray(), rna.X[:5].toarray())


WITHOUT_GENES = {
    "antibodies, typed": (["CD19", "CD14"] * 20, "Antibody Capture", "Give the RNA of the same cells"),
    "antibodies by name": ([*PANEL, *PANEL], None, "antibodies alone cannot be read"),
    "isotype controls": (["IgG1_control", "IgG2a-control", "isotype 3"], None, "antibodies alone cannot be read"),
    "hashtags": (["HTO1", "HTO2", "Hashtag3"], None, "tell samples apart"),
    "guides": (["CD19-1", "CD19-2"], "CRISPR Guide Capture", "tell perturbations apart"),
    "peaks": ([f"chr1:{start}-{start + 500}" for start in range(1000, 90_000, 1000)], None, "gene activities first"),
    "peaks with lines below": (
        [f"chr1_{start}_{start + 500}" for start in range(1000, 90_000, 1000)],
        None,
        r"scmmgpt\.gene_activity\(peaks\)",
    ),
}


@pytest.mark.parametrize("shape", WITHOUT_GENES)
def test_cells_without_genes_are_refused_with_a_remedy(tokenizer, shape):
    names, kind, remedy = WITHOUT_GENES[shape]
    cells = ad.AnnData(np.ones((5, len(names)), dtype=np.float32))
    cells.var.index = names
    if kind is not None:
        cells.var[TYPED] = kind

    with pytest.raises(UserError, match=remedy) as refusal:
        tokenizer(cells)

    assert f"only {len(names)} of kind" in str(refusal.value)


def test_mudata_without_rna_is_refused_by_its_modalities(tokenizer, rna):
    with input_variants.without_pulling():
        cells = mudata.MuData({"prot": rna.copy(), "atac": rna.copy()})

    with pytest.raises(UserError, match="None of the modalities"):
        tokenizer(cells)


def test_antibodies_scattered_among_genes_of_the_same_names_are_refused(tokenizer, rna):
    cells = beside(rna, ["CD3", "CD16", "CD45RA", "CD19-1", "CD14-1"])
    order = np.random.default_rng(3).permutation(cells.n_vars)

    with pytest.raises(UserError, match="feature_types"):
        tokenizer(cells[:, order].copy())


# ---- genes are never mistaken


@pytest.mark.parametrize("species", input_variants.SPECIES)
def test_no_gene_of_the_table_is_set_aside(gene_names, species):
    genes = gene_names.genes(species)
    listed = [gene.symbol for gene in genes]

    assert features_of(None, listed).is_gene.all()
    assert features_of(None, sorted(listed)).is_gene.all()
    assert features_of(None, [gene.ensembl_id for gene in genes]).is_gene.all()


def test_biotypes_are_no_feature_types(rna):
    var = rna.var.assign(feature_type=(["protein_coding", "lncRNA", "IG_C_gene", ""] * rna.n_vars)[: rna.n_vars])

    assert features_of(var, rna.var_names).is_gene.all()


def test_genes_with_names_near_those_of_marks_stay_genes():
    names = ["HTOR", "HASH1", "ADTRP", "ABCA1", "AB-DIP", "SGK1", "Sgk1", "IGHG1", "Ighg2b", "PROTC", "HTO", "adt-2"]
    names += [
        "TOTALX",
        "CD3E",
        "CD8A",
        "CD79A",
        "CD300LF",
        "CD99L2",
        "CD2AP",
        "HLA-DRA",
        "AK4_1",
        "MT-ND1",
        "mir-16-1",
    ]

    assert features_of(None, names).is_gene.all()


# ---- real files


def real_files(pattern: str) -> list[Path]:
    """Development files, of both years, that match a pattern."""
    if not os.environ.get("SCMMGPT_DATA"):
        pytest.skip("SCMMGPT_DATA names no folder of development cells")
    first = Path(os.environ["SCMMGPT_DATA"])
    found = sorted([*first.glob(pattern), *(first.parent / "dev2").glob(pattern)])
    if not found:
        pytest.skip(f"there is no {pattern} beside the development cells")
    return found


def test_real_gene_files_keep_exactly_their_genes():
    for path in real_files("real/*.h5ad"):
        var = ad.read_h5ad(path, backed="r").var

        assert features_of(var, var.index).is_gene.all(), path.name
        assert features_of(None, var.index).is_gene.all(), path.name


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "untyped"])
def test_real_antibodies_beside_genes_change_no_token(real_tokenizer, typed):
    for path in real_files("multiome/citeseq_*.h5ad"):
        rna = ad.read_h5ad(path)[:100].copy()
        protein = rna.obsm["protein_expression"]
        names = [name.removesuffix("_TotalSeqB") for name in protein.columns]
        rna = ad.AnnData(rna.X, var=rna.var[[]])
        both = ad.AnnData(sparse.hstack([rna.X, sparse.csr_matrix(protein.to_numpy(np.float32))], format="csr"))
        both.var.index = [*rna.var_names, *names]
        both.var_names_make_unique()
        if typed:
            both.var[TYPED] = ["Gene Expression"] * rna.n_vars + ["Antibody Capture"] * len(names)

        found = real_tokenizer(both)

        assert entry(real_tokenizer.account)["number"] == len(names), path.name
        assert_same_cells(found, real_tokenizer(rna))


def test_real_antibodies_alone_are_refused(real_tokenizer):
    (path,) = real_files("multiome/adt_pbmc_mimitou2021.h5ad")
    cells = ad.read_h5ad(path)

    for var in (cells.var, cells.var[[]]):
        with pytest.raises(UserError, match="216 of kind antibody"):
            real_tokenizer(ad.AnnData(cells.X, var=var))


def test_real_peaks_are_told_from_genes(real_tokenizer):
    (path,) = real_files("multiome/snareseq_mouse_cortex_chen2019.h5mu")
    peaks = mudata.read(f"{path}/atac")

    real_tokenizer(str(path))

    assert entry(real_tokenizer.account)["number"] == peaks.n_vars
    with pytest.raises(UserError, match="gene activities first"):
        real_tokenizer(peaks)
