"""Reading a corpus: every row once, the same order again, batches that fit the model."""

import numpy as np
import pytest
import torch
from tiny_corpus import TYPES, gene_tokenizer, make_cells

from scmmgpt.training.collators import CellCollator, CellTextCollator, TokenizingCollator, row_generator
from scmmgpt.training.corpus.build import build_corpus
from scmmgpt.training.corpus.reading import Selection
from scmmgpt.training.corpus.recipe import CorpusRecipe
from scmmgpt.training.data import BatchSettings, CorpusBatchSampler, spread_types
from scmmgpt.training.run import RowOrder

ALL = Selection("all")
SETTINGS = BatchSettings(batch_size=8, run_rows=4, block_rows=32, seed=3)
NUM_ROWS = 203


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The same cells as tokens and as counts."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cells").mkdir()
    make_cells(num_cells=120, seed=0).write_h5ad(folder / "cells" / "big.h5ad")
    make_cells(num_cells=NUM_ROWS - 120, seed=1).write_h5ad(folder / "cells" / "small.h5ad")
    return {
        mode: build_corpus(
            [str(folder / "cells")],
            folder / mode,
            recipe=CorpusRecipe(shard_rows=50, chunk_rows=20, tokens={"value_mode": mode}),
            processor=gene_tokenizer(),
            say=lambda line: None,
        )
        for mode in ("log1p", "counts")
    }


@pytest.fixture
def corpus(corpora):
    return corpora["log1p"]


def sampler_of(corpus, settings=SETTINGS, epoch=0):
    sampler = CorpusBatchSampler(corpus, ALL, settings)
    sampler.epoch = epoch
    return sampler


def flat(batches):
    return [row for batch in batches for row in batch]


def test_an_epoch_holds_every_row_once_in_whole_batches(corpus):
    batches = list(sampler_of(corpus))

    assert sorted(flat(batches)) == list(range(NUM_ROWS))
    assert [len(batch) for batch in batches] == [8] * (NUM_ROWS // 8) + [NUM_ROWS % 8]


def test_the_length_of_an_epoch_is_the_number_of_its_batches(corpus):
    assert len(sampler_of(corpus)) == len(list(sampler_of(corpus)))


def test_the_same_seed_gives_the_same_order_and_the_next_epoch_another(corpus):
    first, again, second = (list(sampler_of(corpus, epoch=epoch)) for epoch in (0, 0, 1))

    assert first == again
    assert flat(first) != flat(second)
    assert sorted(flat(second)) == list(range(NUM_ROWS))


def test_dropping_the_last_batch_leaves_whole_ones(corpus):
    settings = BatchSettings(batch_size=8, run_rows=4, block_rows=32, drop_last=True)

    assert [len(batch) for batch in sampler_of(corpus, settings)] == [8] * (NUM_ROWS // 8)


def test_rows_one_by_one_follow_the_batches_of_their_epoch(corpus):
    order = RowOrder(sampler_of(corpus))

    order.set_epoch(2)

    assert list(order) == flat(sampler_of(corpus, epoch=2))
    assert len(order) == NUM_ROWS


def test_a_batch_repeats_a_type_as_rarely_as_its_rows_allow(corpus):
    settings = BatchSettings(batch_size=6, run_rows=4, block_rows=256, similar_lengths=False)
    types = corpus.index["cell_type"]

    repeats = [np.bincount(types[batch]).max() for batch in CorpusBatchSampler(corpus, ALL, settings)]

    assert np.mean(repeats) < 2.6  # of three types; 3.4 by chance


def test_batches_of_similar_lengths_need_less_padding(corpus):
    def padding(similar_lengths):
        settings = BatchSettings(batch_size=2, run_rows=4, block_rows=256, similar_lengths=similar_lengths)
        lengths = [corpus.index["num_tokens"][batch] for batch in CorpusBatchSampler(corpus, ALL, settings)]
        return sum(length.max() * len(length) - length.sum() for length in lengths)

    assert padding(True) < 0.75 * padding(False)


def test_type_balance_evens_out_types_and_keeps_the_size_of_an_epoch(corpus):
    selection = Selection("all", sources=("big",))
    rare = corpus.names("cell_type").index("B cell")
    settings = BatchSettings(batch_size=8, run_rows=4, block_rows=64, type_balance=1.0)
    weights = CorpusBatchSampler(corpus, selection, settings)._weights

    counts = np.zeros(len(corpus.names("cell_type")))
    for epoch in range(10):
        sampler = CorpusBatchSampler(corpus, selection, settings)
        sampler.epoch = epoch
        counts += np.bincount(corpus.index["cell_type"][np.concatenate(list(sampler))], minlength=len(counts))

    assert weights.shape == (2, len(TYPES))
    assert counts[rare] == pytest.approx(counts.sum() / len(TYPES), rel=0.05)
    assert counts.sum() == pytest.approx(1200, rel=0.05)


def test_source_weights_change_the_mixture(corpus):
    settings = BatchSettings(batch_size=8, run_rows=4, block_rows=64, source_weights={"small": 0.0})

    rows = flat(sampler_of(corpus, settings))

    assert set(corpus.table(rows, ["source"])["source"].to_pylist()) == {"big"}


def test_an_unknown_source_weight_is_refused(corpus):
    with pytest.raises(ValueError, match="names nothing; the corpus has big, small"):
        CorpusBatchSampler(corpus, ALL, BatchSettings(source_weights={"nothing": 2.0}))


# ---- batches


def test_padded_packed_and_listed_rows_hold_the_same_cells(corpus):
    table = corpus.table(np.arange(10, 30))
    rows = [corpus.dataset.with_format("numpy")[number] for number in range(10, 30)]

    padded, packed = CellCollator("log1p")(table), CellCollator("log1p", packed=True)(table)
    listed = CellCollator("log1p")(rows)

    is_real = padded["gene_mask"].bool()
    for key in ("gene_ids", "gene_values"):
        assert torch.equal(padded[key][is_real], packed[key][0])
        assert torch.equal(padded[key], listed[key])
        assert not padded[key][~is_real].any()
    assert torch.equal(packed["cell_cu_seqlens"].diff(), is_real.sum(1).to(torch.int32))


def test_a_batch_equals_what_the_gene_tokenizer_makes_of_the_cells(corpus):
    batch = CellCollator("log1p")(corpus.table(np.arange(120)))

    expected = gene_tokenizer()(make_cells(num_cells=120, seed=0), return_tensors="pt")

    assert torch.equal(batch["gene_ids"], expected["gene_ids"])
    assert torch.equal(batch["gene_mask"], expected["gene_mask"])
    torch.testing.assert_close(batch["gene_values"], expected["gene_values"], atol=1.3e-4, rtol=0)


@pytest.mark.parametrize("settings", [{"value_mode": "bins"}, {"value_mode": "rank"}, {"value_mode": "log1p"}])
def test_counts_are_tokenised_on_the_way_as_the_gene_tokenizer_would(corpora, settings):
    tokenizer = gene_tokenizer(max_genes=30, **settings)

    batch = TokenizingCollator(tokenizer)(corpora["counts"].table(np.arange(120)))

    expected = tokenizer(make_cells(num_cells=120, seed=0), return_tensors="pt")
    for key in ("gene_ids", "gene_values", "gene_mask"):
        assert torch.equal(batch[key], expected[key])


def test_max_genes_keeps_the_first_tokens(corpus):
    table = corpus.table(np.arange(16))

    short = CellCollator("log1p", max_genes=20)(table)

    assert short["gene_ids"].shape == (16, 20)
    assert torch.equal(short["gene_ids"], CellCollator("log1p")(table)["gene_ids"][:, :20])


def write_text(row, generator):
    return f"{row['cell_type']} {generator.integers(2)}"


def lengths_of(texts):
    return {"input_ids": torch.tensor([[len(text)] for text in texts])}


def test_texts_lineages_and_labels_come_with_the_cells(corpus):
    collate = CellTextCollator(CellCollator("log1p"), write_text, lengths_of, corpus.ontology)
    table = corpus.table(np.arange(40))

    batch = collate(table)

    texts = [write_text(row, row_generator(row, 0)) for row in table.to_pylist()]
    for one in range(40):
        for other in range(40):
            same = bool(batch["text_groups"][one] == batch["text_groups"][other])
            assert same == (texts[one] == texts[other])
    term_ids = table["cell_type_ontology_term_id"].to_pylist()
    assert batch["text_lineage"][:, 0].tolist() == [int(term_id[3:]) for term_id in term_ids]
    ancestors = {int(term_id[3:]) for term_id in corpus.ontology.ancestors(term_ids[0])}
    assert set(batch["text_lineage"][0, 1:].tolist()) - {-1} == ancestors


def test_a_row_writes_the_same_text_in_any_batch_and_another_with_another_seed(corpus):
    collate = CellTextCollator(CellCollator("log1p"), write_text, lengths_of, corpus.ontology)
    other = CellTextCollator(CellCollator("log1p"), write_text, lengths_of, corpus.ontology, seed=1)
    rows = np.arange(40)

    labels = collate(corpus.table(rows))["text_groups"]

    assert torch.equal(collate(corpus.table(rows[10:20]))["text_groups"], labels[10:20])
    assert not torch.equal(other(corpus.table(rows))["text_groups"], labels)


def test_spread_types_leaves_no_type_at_one_end():
    types = np.repeat([0, 1, 2], [60, 30, 10])

    order = spread_types(types, np.random.default_rng(0))

    assert sorted(order) == list(range(100))
    for part in np.array_split(types[order], 5):
        assert np.abs(np.bincount(part, minlength=3) - [12, 6, 2]).max() <= 1
