"""`SentenceTransformer` loads our repositories: its vectors of texts and cells are those of `embed`."""

from pathlib import Path

import anndata
import numpy as np
import pytest

pytest.importorskip("sentence_transformers")
from sentence_transformers import SentenceTransformer
from tiny_models import make_repository

import scmmgpt
from scmmgpt.hub_cards import EMBEDDED_MODEL

TEXTS = ["a B cell", "a monocyte from blood that engulfs things", "T"]


def sentence_transformer(directory: Path):
    return SentenceTransformer(str(directory), trust_remote_code=True, device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def own():
    return scmmgpt.load(device="cpu")


@pytest.fixture(scope="module")
def theirs():
    return sentence_transformer(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def cells():
    cells = anndata.read_h5ad(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad")[:40].copy()
    cells.var = cells.var[[]]
    return cells


@pytest.fixture(scope="module")
def embeds(cells, own):
    return scmmgpt.embed(cells, model=own, progress=False).obsm["X_scmmgpt"]


def as_counts(cells):
    return [dict(zip(cells.var_names, row.tolist(), strict=True)) for row in cells.X.toarray()]


def test_texts_have_the_vectors_of_embed(own, theirs):
    np.testing.assert_allclose(theirs.encode(TEXTS), own.embed_texts(TEXTS), atol=1e-5)


def test_cells_have_the_vectors_of_embed(cells, embeds, theirs):
    one_by_one = [cells[number] for number in range(cells.n_obs)]

    np.testing.assert_allclose(theirs.encode(one_by_one), embeds, atol=1e-5)
    np.testing.assert_allclose(theirs.encode(as_counts(cells), batch_size=7), embeds, atol=1e-5)


def test_texts_and_cells_may_come_together(cells, embeds, own, theirs):
    vectors = theirs.encode([TEXTS[0], *as_counts(cells[:3]), cells[3], TEXTS[1]])

    np.testing.assert_allclose(vectors[1:5], embeds[:4], atol=1e-5)
    np.testing.assert_allclose(vectors[[0, 5]], own.embed_texts(TEXTS[:2]), atol=1e-5)


def test_a_cell_has_the_same_vector_in_every_batch(cells, theirs):
    expressed = [{gene: count for gene, count in cell.items() if count} for cell in as_counts(cells[:5])]

    np.testing.assert_allclose(theirs.encode(expressed), theirs.encode(expressed, batch_size=1), atol=1e-6)


def test_a_single_text_has_a_single_vector(theirs):
    assert theirs.encode(TEXTS[0]).shape == (theirs.get_embedding_dimension(),)


def test_similarities_are_cosines(theirs, cells):
    similarity = theirs.similarity(theirs.encode(TEXTS), theirs.encode(as_counts(cells[:2])))

    assert similarity.shape == (3, 2)
    assert float(similarity.abs().max()) <= 1 + 1e-5


@pytest.mark.parametrize("given", [[3], [{"CD3D": 1.0}, object()]], ids=["a number", "anything"])
def test_what_is_neither_text_nor_cell_is_refused(given, theirs):
    with pytest.raises(TypeError, match=r"texts, cells as \{gene: count\}"):
        theirs.encode(given)


def test_many_cells_as_one_input_are_refused(cells, theirs):
    with pytest.raises(TypeError, match="one cell each"):
        theirs.encode(cells)


def test_a_model_that_was_saved_is_loaded_again(tmp_path):
    first = sentence_transformer(make_repository(tmp_path / "model"))
    first.save(str(tmp_path / "saved"))

    np.testing.assert_allclose(sentence_transformer(tmp_path / "saved").encode(TEXTS), first.encode(TEXTS), atol=1e-6)
