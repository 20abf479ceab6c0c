"""Reading a corpus: every row once, whoever reads; the same order again; from any place on; batches that fit the model."""

import multiprocessing
import re
from functools import partial

import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from tiny_corpus import TYPES, gene_tokenizer, make_cells
from torch.utils.data import DataLoader

from scmmgpt.training.collators import CellCollator, CellTextCollator, TokenizingCollator, row_generator
from scmmgpt.training.corpus.build import build_corpus
from scmmgpt.training.corpus.reading import Corpus, Selection, as_rows
from scmmgpt.training.corpus.recipe import CorpusRecipe
from scmmgpt.training.corpus.text import CellTextWriter
from scmmgpt.training.data import BatchSettings, CorpusBatchSampler, CorpusLoader, spread_types, stream_corpus

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


def row_numbers(table):
    """Stands in for a collator: which rows a batch holds."""
    rows = table.to_pylist() if hasattr(table, "to_pylist") else table
    return [(row["source"], row["row"]) for row in rows]


def loader(corpus, settings=SETTINGS, rank=0, world_size=1, **options):
    sampler = CorpusBatchSampler(corpus, ALL, settings, rank=rank, world_size=world_size)
    return CorpusLoader(sampler, row_numbers, columns=["source", "row"], **options)


def every_row(corpus):
    return sorted(zip(corpus.dataset["source"][:], corpus.dataset["row"][:], strict=True))


def flat(batches):
    return [row for batch in batches for row in batch]


def test_an_epoch_holds_every_row_once_in_whole_batches(corpus):
    batches = list(loader(corpus))

    assert sorted(flat(batches)) == every_row(corpus)
    assert [len(batch) for batch in batches] == [8] * (NUM_ROWS // 8) + [NUM_ROWS % 8]


def test_the_length_of_the_loader_is_the_number_of_its_batches(corpus):
    for rank in range(3):
        assert len(loader(corpus, rank=rank, world_size=3)) == len(list(loader(corpus, rank=rank, world_size=3)))


def test_the_same_seed_gives_the_same_order_and_the_next_epoch_another(corpus):
    one, two = loader(corpus), loader(corpus)

    first, again, second = list(one), list(two), list(one)

    assert first == again
    assert flat(first) != flat(second)
    assert sorted(flat(second)) == every_row(corpus)


def read_share(path, rank, world_size, first_batches, state, results):
    """One of several training processes, with two workers of its own."""
    own = loader(Corpus.open(path), rank=rank, world_size=world_size, num_workers=2)
    if state is not None:
        own.load_state_dict(state)
    batches = []
    for batch in own:
        batches.append(batch)
        if len(batches) == first_batches:
            break
    results.put((rank, batches, own.state_dict()))


def run_processes(path, world_size, first_batches=None, states=(None, None)):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=read_share, args=(path, rank, world_size, first_batches, states[rank], results))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return found


def test_two_processes_with_two_workers_see_every_row_once(corpus):
    shares = run_processes(corpus.path, world_size=2)

    assert sorted(flat(flat(batches for _, batches, _ in shares))) == every_row(corpus)


def test_two_processes_with_two_workers_resume_with_exactly_the_rows_not_seen(corpus):
    whole = run_processes(corpus.path, world_size=2)
    before = run_processes(corpus.path, world_size=2, first_batches=5)
    after = run_processes(corpus.path, world_size=2, states=[state for _, _, state in before])

    for rank in range(2):
        assert before[rank][1] + after[rank][1] == whole[rank][1]


def test_resuming_does_not_depend_on_the_number_of_workers(corpus):
    whole = list(loader(corpus))
    first = loader(corpus)
    iterator = iter(first)
    before = [next(iterator) for _ in range(7)]

    resumed = loader(corpus, num_workers=2)
    resumed.load_state_dict(first.state_dict())

    assert before + list(resumed) == whole


def test_dropping_the_last_batch_gives_every_process_the_same_number(corpus):
    settings = BatchSettings(batch_size=8, run_rows=4, block_rows=32, drop_last=True)

    lengths = [[len(batch) for batch in loader(corpus, settings, rank=rank, world_size=3)] for rank in range(3)]

    assert lengths == [[8] * (NUM_ROWS // 8 // 3)] * 3


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
    weights = CorpusBatchSampler(corpus, selection, settings)._weights.of_group

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

    rows = flat(loader(corpus, settings))

    assert {source for source, _ in rows} == {"big"}


def test_an_unknown_source_weight_is_refused(corpus):
    with pytest.raises(ValueError, match="names nothing; the corpus has big, small"):
        CorpusBatchSampler(corpus, ALL, BatchSettings(source_weights={"nothing": 2.0}))


# ---- streaming


def stream(corpus, **options):
    return stream_corpus(corpus, ALL, SETTINGS, columns=["source", "row", "gene_ids", "gene_values"], **options)


def test_a_stream_holds_every_row_once_in_a_shuffled_order(corpus):
    rows = row_numbers(list(stream(corpus)))

    assert sorted(rows) == every_row(corpus)
    assert rows != every_row(corpus)
    assert rows == row_numbers(list(stream(corpus)))
    assert rows != row_numbers(list(stream(corpus, epoch=1)))


def test_a_stream_is_divided_among_processes_and_workers_without_overlap(corpus):
    shares = [split_dataset_by_node(stream(corpus), rank, 2) for rank in range(2)]

    rows = [flat(DataLoader(share, batch_size=8, num_workers=2, collate_fn=row_numbers)) for share in shares]

    assert sorted(flat(rows)) == every_row(corpus)


def test_a_stream_resumes_with_exactly_the_rows_not_seen(corpus):
    whole = row_numbers(list(stream(corpus)))
    rows = stream(corpus)
    before = [row for row, _ in zip(rows, range(77), strict=False)]

    resumed = stream(corpus)
    resumed.load_state_dict(rows.state_dict())

    # `zip` draws one row more than it keeps.
    assert row_numbers(before) + row_numbers(list(resumed)) in (whole, whole[:77] + whole[78:])


def test_a_stream_with_workers_resumes_under_a_stateful_loader(corpus):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")
    make = partial(stateful.StatefulDataLoader, batch_size=8, num_workers=2, collate_fn=row_numbers)
    whole = list(make(stream(corpus)))
    first = make(stream(corpus))
    iterator = iter(first)
    before = [next(iterator) for _ in range(6)]

    resumed = make(stream(corpus))
    resumed.load_state_dict(first.state_dict())

    assert before + list(resumed) == whole


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
            same = bool(batch["text_labels"][one] == batch["text_labels"][other])
            assert same == (texts[one] == texts[other])
    term_ids = table["cell_type_ontology_term_id"].to_pylist()
    assert batch["text_lineage"][:, 0].tolist() == [int(term_id[3:]) for term_id in term_ids]
    ancestors = {int(term_id[3:]) for term_id in corpus.ontology.ancestors(term_ids[0])}
    assert set(batch["text_lineage"][0, 1:].tolist()) - {-1} == ancestors


def test_a_row_writes_the_same_text_in_any_batch_and_another_with_another_seed(corpus):
    collate = CellTextCollator(CellCollator("log1p"), write_text, lengths_of, corpus.ontology)
    other = CellTextCollator(CellCollator("log1p"), write_text, lengths_of, corpus.ontology, seed=1)
    rows = np.arange(40)

    labels = collate(corpus.table(rows))["text_labels"]

    assert torch.equal(collate(corpus.table(rows[10:20]))["text_labels"], labels[10:20])
    assert not torch.equal(other(corpus.table(rows))["text_labels"], labels)


def test_spread_types_leaves_no_type_at_one_end():
    types = np.repeat([0, 1, 2], [60, 30, 10])

    order = spread_types(types, np.random.default_rng(0))

    assert sorted(order) == list(range(100))
    for part in np.array_split(types[order], 5):
        assert np.abs(np.bincount(part, minlength=3) - [12, 6, 2]).max() <= 1


# ---- texts


def test_a_text_names_only_markers_that_its_cell_expresses(corpus):
    writer = CellTextWriter.of_corpus(corpus, marker_share=1.0, definition_share=0.0, lineage_share=0.0)
    names = {token: gene for gene, token in corpus.gene_tokenizer().vocabulary.items()}
    rows = as_rows(corpus.table(np.arange(60)))

    for row in rows:
        named = set(re.findall(r"GENE\d+", writer(row, row_generator(row, 0))))
        assert named
        assert named <= {names[token] for token in row["gene_ids"]}
        assert named <= set(corpus.markers[row["cell_type_ontology_term_id"]])


def test_cells_of_one_type_do_not_all_have_the_same_text(corpus):
    writer = CellTextWriter.of_corpus(corpus)
    rows = [row for row in as_rows(corpus.table(np.arange(100))) if row["cell_type"] == "B cell"]

    texts = {writer(row, row_generator(row, 0)) for row in rows}

    assert len(texts) > len(rows) / 2


def test_a_text_speaks_of_its_own_type_only(corpus):
    writer = CellTextWriter.of_corpus(corpus, definition_share=1.0, lineage_share=1.0)
    row = as_rows(corpus.table([0]))[0]
    term = corpus.ontology.terms[row["cell_type_ontology_term_id"]]

    text = writer(row, np.random.default_rng(0))

    assert term.definition.strip().rstrip(".") in text
    assert corpus.ontology.terms[corpus.ontology.ancestors(term.id)[0]].label in text
    assert any(name in text for name in (term.label, *term.synonyms))
    assert row["tissue"] in text
