"""Labels that fit their cells, and the same cell on two sides of a split."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from tiny_corpus import gene_tokenizer, make_cells, write_cells

from scmmgpt.cli import app
from scmmgpt.console import run_to_exit_code
from scmmgpt.training.corpus.audit import audit_corpus
from scmmgpt.training.corpus.build import build_corpus
from scmmgpt.training.corpus.checks import DuplicateSettings, label_coherence, near_duplicates
from scmmgpt.training.corpus.recipe import CorpusRecipe
from scmmgpt.training.corpus.splits import SplitSettings

LOOSE = DuplicateSettings(min_genes=10)


@pytest.fixture
def cells():
    return make_cells(num_cells=120)


def corpus_of(folder, output, **recipe):
    recipe = CorpusRecipe(shard_rows=50, chunk_rows=25, **recipe)
    return build_corpus([str(folder)], output, recipe=recipe, processor=gene_tokenizer(), say=lambda line: None)


def test_true_labels_beat_chance_and_shuffled_ones_do_not(cells):
    labels = cells.obs["cell_type"].to_numpy(str)
    shuffled = np.random.default_rng(0).permutation(labels)

    assert not label_coherence(cells.X, labels).is_at_chance
    assert label_coherence(cells.X, shuffled).is_at_chance


def test_one_type_cannot_be_checked(cells):
    assert label_coherence(cells.X, np.full(cells.n_obs, "B cell")) is None


def random_cells(num_cells=60, num_genes=2000, seed=0):
    generator = np.random.default_rng(seed)
    return sp.csr_matrix(generator.poisson(0.2, (num_cells, num_genes)).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        pytest.param(lambda counts, generator: counts, True, id="the same"),
        pytest.param(lambda counts, generator: np.log1p(counts), True, id="normalised"),
        pytest.param(
            lambda counts, generator: counts * (generator.random(counts.shape) > 0.02), True, id="two percent lost"
        ),
        pytest.param(lambda counts, generator: counts * (generator.random(counts.shape) > 0.5), False, id="half lost"),
    ],
)
def test_nearly_equal_cells_are_found_and_only_those(change, is_found):
    cells = random_cells()
    copied = sp.csr_matrix(change(cells[10:30].toarray(), np.random.default_rng(1)))

    pairs = near_duplicates(cells, copied)

    expected = [[row, row - 10] for row in range(10, 30)] if is_found else []
    assert pairs.tolist() == expected


def test_pairs_within_one_set_are_named_once():
    cells = sp.vstack([random_cells(), random_cells()[:3]], format="csr")

    assert near_duplicates(cells).tolist() == [[0, 60], [1, 61], [2, 62]]


def test_cells_of_a_small_panel_do_not_count_as_duplicates():
    panel = sp.csr_matrix(np.ones((20, 30), np.float32))

    assert len(near_duplicates(panel)) == 0
    assert len(near_duplicates(panel, settings=DuplicateSettings(min_genes=10))) == 190


def test_the_audit_of_a_sound_corpus_passes(tmp_path):
    corpus = corpus_of(write_cells(tmp_path / "cells", one=1, two=2, three=3), tmp_path / "corpus")

    report = audit_corpus(corpus.path, settings=LOOSE)

    assert report["passed"]
    assert report["across_splits"]["num_pairs"] == report["exact_duplicates"] == 0


def test_the_audit_finds_a_cell_that_trains_and_tests(tmp_path):
    folder = write_cells(tmp_path / "cells", one=1, two=2)
    cells = anndata.read_h5ad(folder / "one.h5ad")[:5].copy()
    counts = cells.X.toarray()
    counts[:, 119] += 1  # no longer equal, but nearly
    cells.X = sp.csr_matrix(counts)
    cells.write_h5ad(folder / "copied.h5ad")
    splits = SplitSettings(validation=0, test=0, held_out={"study": {"test": ["copied"]}})
    corpus = corpus_of(folder, tmp_path / "corpus", splits=splits)

    report = audit_corpus(corpus.path, settings=LOOSE)

    assert report["across_splits"]["num_pairs"] == 5
    example = report["across_splits"]["examples"][0]
    assert {example["cell_source"], example["other_source"]} == {"one", "copied"}
    assert not report["passed"]


def test_the_audit_finds_a_test_sets_cells_in_the_corpus_on_fewer_genes(tmp_path):
    folder = write_cells(tmp_path / "cells", one=1, two=2)
    corpus = corpus_of(folder, tmp_path / "corpus")
    known, new = anndata.read_h5ad(folder / "two.h5ad")[:15], make_cells(num_cells=20, seed=9)
    test_set = anndata.concat([known, new], index_unique="-")[:, :90].copy()
    test_set.write_h5ad(tmp_path / "test.h5ad")

    report = audit_corpus(corpus.path, test_set=str(tmp_path / "test.h5ad"), settings=LOOSE)

    found = report["test_set"]["test"]
    assert found["num_test_cells_found"] == 15
    assert {example["cell_source"] for example in found["examples"]} == {"two"}


def test_the_audit_reports_labels_at_chance(tmp_path):
    cells = make_cells(num_cells=150)
    cells.obs["cell_type"] = np.random.default_rng(3).permutation(cells.obs["cell_type"])
    del cells.obs["cell_type_ontology_term_id"]
    cells.write_h5ad(tmp_path / "shuffled.h5ad")
    corpus = corpus_of(tmp_path / "shuffled.h5ad", tmp_path / "corpus", labels_at_chance="keep")

    report = audit_corpus(corpus.path, settings=LOOSE)

    assert report["labels"]["shuffled"]["at_chance"]
    assert run_to_exit_code(lambda: app(["corpus", "audit", str(corpus.path)], standalone_mode=False)) == 2
