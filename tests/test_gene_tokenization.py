"""Same cell, same tokens: in any container, with counts or normalised values, under any gene names."""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from input_variants import (
    CONTAINERS,
    DTYPES,
    HUMAN_NAMES,
    NAMES,
    SPECIES,
    TABLE,
    VALUES,
    adata_of,
    counts_of,
    gene_tokenizer,
    named,
)
from scipy import sparse

from scmmgpt.processing import ScMMGPTGeneTokenizer, gene_kernels_scmmgpt
from scmmgpt.processing.cell_matrix_scmmgpt import in_memory
from scmmgpt.processing.gene_identity_scmmgpt import GeneNames
from scmmgpt.processing.gene_kernels_scmmgpt import order_genes_with_numpy
from scmmgpt.processing.gene_layout_scmmgpt import CELLS_AT_ONCE, padded_cells
from scmmgpt.processing.gene_vocabulary_scmmgpt import SPECIAL_TOKENS

NUM_GENES = 400
MODES = {
    "log1p by median ratio": {"value_mode": "log1p", "gene_order": "median_ratio", "max_genes": None},
    "log1p of a panel": {"value_mode": "log1p", "panel_scaling": True, "max_genes": 64},
    "bins": {"value_mode": "bins", "max_genes": 100},
    "rank": {"value_mode": "rank", "max_genes": 100, "add_cls": False},
    "counts": {"value_mode": "counts", "include_zero_genes": True},
}


@pytest.fixture(scope="module")
def tokenizers():
    base = gene_tokenizer(NUM_GENES)
    return {name: base.with_settings(**mode) for name, mode in MODES.items()}


@pytest.fixture(scope="module")
def tokenizer(tokenizers):
    return tokenizers["log1p by median ratio"]


@pytest.fixture(scope="module")
def counts():
    return counts_of(12, NUM_GENES)


def assert_same_tokens(found, expected, rtol=0.0):
    assert set(found) == set(expected)
    np.testing.assert_array_equal(found["gene_ids"], expected["gene_ids"])
    np.testing.assert_allclose(found["gene_values"], expected["gene_values"], rtol=rtol)
    np.testing.assert_array_equal(found["gene_mask"], expected["gene_mask"])


# ---- the matrix of input kinds


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_container_and_values_do_not_change_the_tokens(container, values, tokenizers, counts, tmp_path):
    turn = list(CONTAINERS).index(container) + list(VALUES).index(values)
    tokenizer = tokenizers[list(MODES)[turn % len(MODES)]]
    expected = tokenizer(adata_of(counts, tokenizer.genes))

    cells = CONTAINERS[container](VALUES[values](counts, tokenizer.genes), tmp_path)

    assert_same_tokens(tokenizer(cells), expected)


@pytest.mark.parametrize("species", SPECIES)
@pytest.mark.parametrize("scheme", [*NAMES, *HUMAN_NAMES])
def test_names_and_species_do_not_change_the_tokens(scheme, species, tokenizer, counts):
    if scheme in HUMAN_NAMES and species != "human":
        pytest.skip("small letters, former symbols and R's dots are human ways")
    names = named(tokenizer, species, scheme)

    found = tokenizer(adata_of(counts, names), species=species)

    assert_same_tokens(found, tokenizer(adata_of(counts, tokenizer.genes)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_dtype_does_not_change_the_tokens(dtype, layout, tokenizer, counts):
    matrix = counts.astype(dtype) if layout == "dense" else sparse.csr_matrix(counts.astype(dtype)).asformat(layout)

    assert_same_tokens(tokenizer((matrix, tokenizer.genes)), tokenizer((counts, tokenizer.genes)))


@pytest.mark.parametrize("column", ["feature_name", "feature_id", "gene_symbols", "my_genes"])
def test_names_may_stand_in_a_column_of_var(column, tokenizer, counts):
    adata = adata_of(counts, range(NUM_GENES))
    adata.var[column] = tokenizer.ensembl_ids if column == "feature_id" else tokenizer.genes

    found = tokenizer(adata, gene_column=column if column == "my_genes" else None)

    assert_same_tokens(found, tokenizer(adata_of(counts, tokenizer.genes)))


@pytest.mark.parametrize("name", ["cells", "cells, duplicated gene names"])
def test_a_gene_in_two_columns_is_summed(name, tokenizer, counts):
    half = counts // 2
    adata = adata_of(np.hstack([half, counts - half]), [*tokenizer.genes, *tokenizer.genes])
    if name == "cells":
        adata.var_names_make_unique()

    found = tokenizer(adata)

    assert tokenizer.account["merged_duplicates"] == NUM_GENES
    assert_same_tokens(found, tokenizer(adata_of(counts, tokenizer.genes)))


def test_an_entry_stored_twice_is_summed(tokenizer, counts):
    csr = sparse.csr_matrix(counts)
    doubled = sparse.csr_matrix(
        (np.repeat(csr.data, 2), np.repeat(csr.indices, 2), csr.indptr * 2), shape=csr.shape, dtype=np.float32
    )

    assert_same_tokens(tokenizer((doubled, tokenizer.genes)), tokenizer((counts * 2, tokenizer.genes)))


# ---- laws


@st.composite
def cells_in_another_order(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return (
        counts_of(draw(st.integers(1, 5)), NUM_GENES, draw(st.integers(0, 10_000))),
        random.permutation(NUM_GENES),
        draw(st.integers(0, 30)),
        draw(st.sampled_from(["csr", "csc", "dense"])),
        draw(st.sampled_from(DTYPES)),
    )


@pytest.mark.parametrize("mode", MODES)
@given(cells_in_another_order())
@settings(max_examples=12, deadline=None)
def test_permuted_genes_zero_genes_layout_and_dtype_give_the_same_tokens(tokenizers, mode, drawn):
    counts, order, num_zero_genes, layout, dtype = drawn
    tokenizer = tokenizers[mode]
    names = np.array([*tokenizer.genes, *(f"ZERO{number}" for number in range(num_zero_genes))])
    wider = np.hstack([counts, np.zeros((len(counts), num_zero_genes), np.int64)])
    order = np.random.default_rng(order[0]).permutation(len(names))
    matrix = wider[:, order].astype(dtype)
    matrix = matrix if layout == "dense" else sparse.csr_matrix(matrix).asformat(layout)

    found = tokenizer((matrix, names[order].tolist()))

    assert_same_tokens(found, tokenizer((counts, tokenizer.genes)))


@pytest.mark.parametrize("mode", MODES)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_a_cell_has_the_same_tokens_alone_and_among_others(tokenizers, mode, seed, order_seed):
    tokenizer = tokenizers[mode]
    counts = counts_of(6, NUM_GENES, seed)
    order = np.random.default_rng(order_seed).permutation(6)

    together = tokenizer((counts[order], tokenizer.genes))

    for place, cell in enumerate(order):
        alone = tokenizer((counts[cell : cell + 1], tokenizer.genes))
        length = int(alone["gene_mask"].sum())
        assert int(together["gene_mask"][place].sum()) == length
        np.testing.assert_array_equal(together["gene_ids"][place, :length], alone["gene_ids"][0])
        np.testing.assert_array_equal(together["gene_values"][place, :length], alone["gene_values"][0])


@given(st.integers(0, 10_000), st.integers(1, 60))
@settings(max_examples=8, deadline=None)
def test_unexpressed_vocabulary_genes_change_nothing(tokenizers, seed, num_absent):
    """Without zero genes and panel scaling a gene that is not expressed might as well not have been measured."""
    tokenizer = tokenizers["bins"]
    counts = counts_of(4, NUM_GENES, seed)
    absent = np.random.default_rng(seed).choice(NUM_GENES, num_absent, replace=False)
    counts[:, absent] = 0
    kept = np.setdiff1d(np.arange(NUM_GENES), absent)

    found = tokenizer((counts[:, kept], [tokenizer.genes[gene] for gene in kept]))

    assert_same_tokens(found, tokenizer((counts, tokenizer.genes)))


@pytest.mark.parametrize("mode", MODES)
@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_numba_and_numpy_give_the_same_arrays(tokenizers, mode, seed):
    tokenizer = tokenizers[mode]
    cells = counts_of(5, NUM_GENES, seed) * np.random.default_rng(seed).choice([1.0, 0.37, 1e-3, 1e4])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gene_kernels_scmmgpt, "ENTRIES_WITHOUT_NUMBA", -1)
        fast = tokenizer((cells, tokenizer.genes))
        assert gene_kernels_scmmgpt._compiled()
        patch.setattr(gene_kernels_scmmgpt, "ENTRIES_WITHOUT_NUMBA", float("inf"))
        plain = tokenizer((cells, tokenizer.genes))

    assert_same_tokens(plain, fast)


# ---- order, length and values


def test_every_cell_begins_with_cls_and_is_padded_on_the_right(tokenizer, counts):
    tokens = tokenizer((counts, tokenizer.genes))
    lengths = tokens["gene_mask"].sum(1)

    assert (tokens["gene_ids"][:, 0] == tokenizer.vocabulary["<cls>"]).all()
    assert (tokens["gene_ids"][tokens["gene_mask"] == 0] == tokenizer.vocabulary["<pad>"]).all()
    assert (tokens["gene_mask"] == (np.arange(tokens["gene_mask"].shape[1]) < lengths[:, None])).all()
    assert tokens["gene_ids"].dtype == tokens["gene_mask"].dtype == np.int64
    assert tokens["gene_values"].dtype == np.float32


def test_special_tokens_and_padding_are_no_genes(tokenizer, counts):
    tokens = tokenizer((counts, tokenizer.genes))

    is_gene = tokenizer.is_gene(tokens["gene_ids"], tokens["gene_mask"])

    special = [tokenizer.vocabulary[name] for name in SPECIAL_TOKENS]
    np.testing.assert_array_equal(is_gene, ~np.isin(tokens["gene_ids"], special))
    assert not tokenizer.is_gene(tokens["gene_ids"], np.zeros_like(tokens["gene_mask"])).any()
    tensors = {name: torch.from_numpy(tokens[name]) for name in ("gene_ids", "gene_mask")}
    np.testing.assert_array_equal(tokenizer.is_gene(**tensors).numpy(), is_gene)


def test_ties_go_to_the_smaller_id(tokenizers):
    tokenizer = tokenizers["counts"]
    counts = np.zeros((1, NUM_GENES), int)
    counts[0, [7, 3, 250, 90]] = [2, 2, 5, 2]

    ids = tokenizer((counts, tokenizer.genes))["gene_ids"][0, 1:5]

    assert tokenizer.gene_rows(ids).tolist() == [250, 3, 7, 90]


def test_the_first_genes_in_order_stay_when_a_cell_is_too_long(tokenizer, counts):
    whole = tokenizer((counts, tokenizer.genes))["gene_ids"]

    cut = tokenizer((counts, tokenizer.genes), max_genes=10)["gene_ids"]

    np.testing.assert_array_equal(cut, whole[:, :11])


def test_sampling_takes_seeded_random_genes_and_keeps_their_values(tokenizer, counts):
    whole = tokenizer((counts, tokenizer.genes))
    sample = [tokenizer((counts, tokenizer.genes), max_genes=10, sample_seed=seed) for seed in (1, 1, 2)]

    assert_same_tokens(sample[0], sample[1])
    assert (sample[0]["gene_ids"] != sample[2]["gene_ids"]).any()
    values = dict(zip(whole["gene_ids"][0].tolist(), whole["gene_values"][0].tolist(), strict=True))
    for gene, value in zip(sample[0]["gene_ids"][0].tolist(), sample[0]["gene_values"][0].tolist(), strict=True):
        assert values[gene] == value


@pytest.mark.parametrize("mode", MODES)
def test_many_cells_are_laid_out_as_few(tokenizers, mode):
    tokenizer, cells = tokenizers[mode], counts_of(CELLS_AT_ONCE * 2 + 9, NUM_GENES, seed=5)
    sources = [(cells[:5], tokenizer.genes), (cells[5:], tokenizer.genes)]

    padded, packed = (tokenizer(sources, max_genes=10, sample_seed=1, packed=packed) for packed in (False, True))

    again = tokenizer.pad_tokens(packed["gene_ids"][0], packed["gene_values"][0], np.diff(packed["cell_cu_seqlens"]))
    assert_same_tokens(again, padded)
    whole, last = tokenizer(sources), tokenizer((cells[-1:], tokenizer.genes))
    length = int(last["gene_mask"].sum())
    assert_same_tokens({name: values[-1:, :length] for name, values in whole.items()}, last)


def test_log1p_values_are_log_of_counts_scaled_to_the_target(tokenizer, counts):
    tokens = tokenizer((counts, tokenizer.genes))
    scaled = np.log1p(counts / counts.sum(1, keepdims=True) * tokenizer.target_sum)

    for cell, (ids, values, mask) in enumerate(zip(*tokens.values(), strict=True)):
        rows = tokenizer.gene_rows(ids[mask == 1][1:])
        np.testing.assert_allclose(values[mask == 1][1:], scaled[cell, rows], rtol=1e-5)


def test_a_panel_is_scaled_to_its_share_of_the_reference(tokenizer, tokenizers, counts):
    panel = tokenizers["log1p of a panel"].with_settings(max_genes=None)
    mass = panel.gene_statistics["mass"]
    few = np.argsort(mass)[:200]

    values = panel((counts[:, few], [panel.genes[gene] for gene in few]))["gene_values"]

    share = panel.account["panel_share"]
    assert abs(np.log2(share / mass[few].sum())) <= 1 / 8
    np.testing.assert_allclose(np.expm1(values[:, 1:]).sum(1), 1e4 * share, rtol=1e-5)


def test_a_few_genes_more_or_less_leave_a_panel_where_it_was(tokenizers):
    panel = tokenizers["log1p of a panel"]

    shares = {panel.panel_share(np.arange(3, 3 + NUM_GENES - dropped)) for dropped in range(5)}

    assert shares == {1.0}


def test_zero_genes_are_listed_after_the_expressed(tokenizers, counts):
    tokenizer = tokenizers["counts"]

    tokens = tokenizer((counts, tokenizer.genes))

    assert tokens["gene_ids"].shape == (len(counts), NUM_GENES + 1)
    assert (np.sort(tokens["gene_ids"][:, 1:], axis=1) == np.arange(3, NUM_GENES + 3)).all()
    expressed = tokens["gene_values"][:, 1:] > 0
    assert (np.diff(expressed.astype(int), axis=1) <= 0).all()


def test_packed_cells_are_the_padded_ones_end_to_end(tokenizer, counts):
    padded = tokenizer((counts, tokenizer.genes))
    packed = tokenizer((counts, tokenizer.genes), packed=True)

    real = padded["gene_mask"] == 1
    np.testing.assert_array_equal(packed["gene_ids"], padded["gene_ids"][real][None])
    np.testing.assert_array_equal(packed["gene_values"], padded["gene_values"][real][None])
    again = tokenizer.pad_tokens(packed["gene_ids"][0], packed["gene_values"][0], np.diff(packed["cell_cu_seqlens"]))
    assert_same_tokens(again, padded)
    np.testing.assert_array_equal(np.diff(packed["cell_cu_seqlens"]), real.sum(1))
    assert packed["cell_cu_seqlens"].dtype == np.int32
    assert "gene_mask" not in packed


def test_some_packed_cells_are_padded_as_they_are_by_themselves(tokenizer, counts):
    packed = tokenizer((counts, tokenizer.genes), packed=True)

    some = padded_cells(packed, np.array([7, 2, 9]))

    alone = tokenizer((counts[[7, 2, 9]], tokenizer.genes))
    assert_same_tokens(some, alone)
    assert {name: values.dtype for name, values in some.items()} == {
        name: values.dtype for name, values in alone.items()
    }


@pytest.mark.parametrize("entries", [-1, float("inf")], ids=["numba", "numpy"])
@pytest.mark.parametrize("lengths", [[3, 3], [6, -1]])
def test_cells_longer_than_their_tokens_are_refused(tokenizer, lengths, entries, monkeypatch):
    monkeypatch.setattr(gene_kernels_scmmgpt, "ENTRIES_WITHOUT_NUMBA", entries)

    with pytest.raises(IndexError, match="of 5 ids and 5 values"):
        tokenizer.pad_tokens(np.arange(5), np.ones(5, np.float32), lengths)


def test_chunks_may_be_packed(tokenizer, counts, tmp_path):
    adata_of(counts, tokenizer.genes).write_h5ad(tmp_path / "cells.h5ad")
    whole = tokenizer((counts, tokenizer.genes), packed=True)

    chunks = list(tokenizer.iter_chunks(tmp_path / "cells.h5ad", chunk_size=5, packed=True))

    assert [len(chunk["cell_cu_seqlens"]) - 1 for chunk in chunks] == [5, 5, 2]
    ids = np.concatenate([chunk["gene_ids"][0] for chunk in chunks])
    np.testing.assert_array_equal(ids, whole["gene_ids"][0])


def test_chunks_are_the_whole_in_pieces(tokenizer, counts, tmp_path):
    adata_of(counts, tokenizer.genes).write_h5ad(tmp_path / "cells.h5ad")
    whole = tokenizer((counts, tokenizer.genes))

    chunks = list(tokenizer.iter_chunks(tmp_path / "cells.h5ad", chunk_size=5))

    assert [len(chunk["gene_ids"]) for chunk in chunks] == [5, 5, 2]
    start = 0
    for chunk in chunks:
        size, width = chunk["gene_ids"].shape
        np.testing.assert_array_equal(chunk["gene_ids"], whole["gene_ids"][start : start + size, :width])
        start += size
    assert tokenizer.account["num_cells"] == 12


def test_chunks_can_start_at_any_cell(tokenizer, counts, tmp_path):
    adata_of(counts, tokenizer.genes).write_h5ad(tmp_path / "cells.h5ad")
    whole = list(tokenizer.iter_chunks(tmp_path / "cells.h5ad", chunk_size=5))

    rest = list(tokenizer.iter_chunks(tmp_path / "cells.h5ad", chunk_size=5, start=5))

    assert len(rest) == len(whole) - 1
    for chunk, same in zip(rest, whole[1:], strict=True):
        np.testing.assert_array_equal(chunk["gene_ids"], same["gene_ids"])


@pytest.mark.parametrize(
    ("container", "rows_at_once"),
    [pytest.param(np.zeros, 838, id="dense"), pytest.param(sparse.csr_matrix, 2_000, id="sparse")],
)
def test_only_dense_matrices_are_read_in_blocks_smaller_than_asked(container, rows_at_once):
    matrix = in_memory("X", container((2_000, 20_000)), None, range(20_000))

    first, *_ = matrix.blocks(2_000)

    assert first == (0, rows_at_once)


def test_statistics_change_the_order_by_median(tokenizer, counts):
    other = tokenizer.with_statistics(tokenizer.gene_statistics["median"][::-1], tokenizer.gene_statistics["mass"])

    assert (other((counts, tokenizer.genes))["gene_ids"] != tokenizer((counts, tokenizer.genes))["gene_ids"]).any()


# ---- against independent implementations, on made cells and on real ones


def geneformer_order(counts, medians):
    """As Geneformer's tokenizer: scale to 10,000, divide by the medians, sort the non-zero genes."""
    scaled = counts / counts.sum() * 10_000 / medians
    nonzero = np.nonzero(scaled)[0]
    return nonzero[np.argsort(-scaled[nonzero], kind="stable")]


def scgpt_bins(counts, num_bins=51):
    """As scGPT's binning, with its random draw between the bins that a tie spans fixed at one half."""
    nonzero = counts[counts > 0]
    edges = np.quantile(nonzero, np.linspace(0, 1, num_bins - 1))
    left, right = np.digitize(nonzero, edges), np.digitize(nonzero, edges, right=True)
    binned = np.zeros(len(counts), dtype=int)
    binned[counts > 0] = np.ceil(0.5 * (right - left) + left).astype(int)
    return binned


def assert_geneformer_order(tokenizer, counts):
    medians = tokenizer.gene_statistics["median"]
    tokens = tokenizer((counts, tokenizer.genes))
    for cell, (ids, mask) in enumerate(zip(tokens["gene_ids"], tokens["gene_mask"], strict=True)):
        rows = tokenizer.gene_rows(ids[mask == 1])
        expected = geneformer_order(counts[cell].astype(np.float64), medians)[: tokenizer.max_genes]
        if not np.array_equal(rows, expected):  # only exact ties may stand in another order
            keys = counts[cell] / medians
            np.testing.assert_allclose(keys[rows], keys[expected], rtol=1e-12)


def assert_scgpt_bins(tokenizer, counts):
    tokens = tokenizer((counts, tokenizer.genes))
    for cell, (ids, values, mask) in enumerate(zip(*tokens.values(), strict=True)):
        rows = tokenizer.gene_rows(ids[mask == 1][1:])
        np.testing.assert_array_equal(values[mask == 1][1:], scgpt_bins(counts[cell])[rows])


def test_rank_mode_is_geneformers_order(tokenizers):
    tokenizer = tokenizers["rank"]
    counts = counts_of(500, NUM_GENES, seed=1)

    assert_geneformer_order(tokenizer, counts)


def test_rank_values_count_from_one(tokenizers, counts):
    tokens = tokenizers["rank"]((counts, tokenizers["rank"].genes))

    assert (tokens["gene_values"] == np.arange(1, tokens["gene_ids"].shape[1] + 1) * tokens["gene_mask"]).all()


@pytest.mark.parametrize("scale", [1, 7, 0.25])
def test_bins_mode_is_scgpts_bins(tokenizers, scale):
    tokenizer = tokenizers["bins"]
    counts = counts_of(500, NUM_GENES, seed=2)

    tokens = tokenizer((counts * scale, tokenizer.genes), counts=True)

    expected = tokenizer((counts, tokenizer.genes))
    assert_same_tokens(tokens, expected)
    assert_scgpt_bins(tokenizer, counts)


def test_bins_follow_the_quantiles_of_numpy_where_values_are_all_different(tokenizers):
    tokenizer = tokenizers["bins"].with_settings(max_genes=None)
    for num_expressed in (1, 2, 3, 49, 50, 51, 99, 148, 393):
        counts = np.zeros((1, NUM_GENES), int)
        counts[0, :num_expressed] = 1 + np.random.default_rng(num_expressed).permutation(num_expressed)

        assert_scgpt_bins(tokenizer, counts)


REAL_COUNTS = ["zheng68k_bmfm", "pbmc_facs_zheng2017", "celltypist_sample_unlabelled", "kang_lupus_muscat"]


@pytest.fixture(scope="module")
def real_folder():
    if not os.environ.get("SCMMGPT_DATA"):
        pytest.skip("SCMMGPT_DATA names no folder of development cells")
    return Path(os.environ["SCMMGPT_DATA"]) / "real"


def real_counts(folder, name, most=1500):
    """Counts of a real file over the genes whose symbols are each there once."""
    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    adata = adata[:most, ~adata.var["feature_name"].duplicated(keep=False)]
    return adata.X.toarray(), adata.var["feature_name"].astype(str).tolist()


@pytest.mark.data
@pytest.mark.parametrize("name", REAL_COUNTS)
@pytest.mark.parametrize("mode", ["rank", "bins"])
def test_real_cells_have_the_tokens_of_the_peers(mode, name, real_folder):
    counts, genes = real_counts(real_folder, name)
    medians = np.random.default_rng(0).lognormal(1, 0.5, len(genes))
    tokenizer = ScMMGPTGeneTokenizer(
        genes, medians=medians, value_mode=mode, max_genes=2048 if mode == "rank" else None, add_cls=mode == "bins"
    )

    {"rank": assert_geneformer_order, "bins": assert_scgpt_bins}[mode](tokenizer, counts)


@pytest.mark.data
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", REAL_COUNTS)
def test_real_cells_have_the_same_tokens_in_every_container_and_with_any_values(name, values, real_folder, tmp_path):
    counts, genes = real_counts(real_folder, name, most=60)
    tokenizer = ScMMGPTGeneTokenizer(genes, gene_order="median_ratio", max_genes=None)
    turn = REAL_COUNTS.index(name) + list(VALUES).index(values)
    in_container = list(CONTAINERS.values())[turn % len(CONTAINERS)]

    found = tokenizer(in_container(VALUES[values](counts, genes), tmp_path))

    assert_same_tokens(found, tokenizer((counts, genes)))


@pytest.mark.data
def test_every_development_file_is_read(real_folder):
    names = GeneNames.read(TABLE)
    genes = {gene.symbol: gene.ensembl_id for gene in reversed(names.genes("human"))}
    tokenizer = ScMMGPTGeneTokenizer(list(genes), list(genes.values()), gene_names=names, max_genes=None)

    for path in sorted(real_folder.parent.glob("*/*.h5ad")):
        sizes = [len(chunk["gene_ids"]) for chunk in tokenizer.iter_chunks(path, chunk_size=4096)]
        assert sum(sizes) == tokenizer.account["num_cells"]
        assert tokenizer.account["share_of_counts"] > 0.8


def test_the_kernels_agree_on_an_empty_block():
    empty = np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
    ids, values = np.empty(0, np.int64), np.empty(0, np.float32)
    rows = np.arange(3)

    totals = order_genes_with_numpy(*empty, rows, np.empty(0), np.empty(0), 0.0, rows[:0], rows[:0], ids, values)

    assert len(totals) == 0
