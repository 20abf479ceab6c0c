"""The quality summary: made cells beside real ones, on data where the truth is known."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scmmgpt.errors import UserError
from scmmgpt.generation_quality import own_quality, quality_beside, read_reference
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, Ontology

GENES = [f"GENE{i}" for i in range(80)]
TYPES = ("B cell", "monocyte")


@pytest.fixture(scope="module")
def ontology():
    return Ontology.read(EMBEDDED_MODEL / FILE_NAME)


def draw(number, seed, *, together=True, depth=600):
    """Cells of two types; in each, half of the genes rise and fall together."""
    random = np.random.default_rng(seed)
    levels = np.random.default_rng(0).normal(size=(2, len(GENES)))
    kind = np.repeat([0, 1], number)
    common = random.normal(size=(2 * number, 1)) if together else np.zeros((2 * number, 1))
    logs = levels[kind] + common * np.where(np.arange(len(GENES)) % 2, 0.8, 0)
    share = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    return sparse.csr_matrix(random.poisson(depth * share)), np.array(TYPES)[kind]


def cells_of(counts, types):
    obs = pd.DataFrame({"cell_type": types}, index=[f"cell{i}" for i in range(len(types))])
    return AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def reference():
    return read_reference(cells_of(*draw(200, 1)), "cell_type")


def beside(reference, ontology, counts, types):
    asked = [ontology.find(name) for name in types]
    return quality_beside(reference, counts, GENES, asked, ontology)


def test_cells_of_the_same_origin_look_real(reference, ontology):
    found = beside(reference, ontology, *draw(200, 2))

    assert found["nearest_type_as_asked"] > 0.95
    assert found["real_or_made_auc"] < 0.62
    assert found["covariance_agreement"] == pytest.approx(found["real_covariance_agreement"], abs=0.1)
    assert found["near_copies_of_reference"] < 0.04
    assert found["detection_rate"] == pytest.approx(found["real_detection_rate"], abs=0.03)


def test_independent_genes_other_types_and_other_depths_do_not_pass(reference, ontology):
    counts, types = draw(200, 2, together=False, depth=150)

    found = beside(reference, ontology, counts, types[::-1])

    assert found["nearest_type_as_asked"] < 0.1
    assert found["covariance_agreement"] < 0.2 < found["real_covariance_agreement"]
    assert found["real_or_made_auc"] > 0.9
    assert found["library_size"] < found["real_library_size"] / 2


def test_copies_of_real_cells_are_found(reference, ontology):
    found = beside(reference, ontology, reference.values, reference.types)

    assert found["near_copies_of_reference"] > 0.4  # those whose original is in the half that is compared with


def test_a_type_that_the_reference_lacks_is_not_held_against_it(reference, ontology):
    counts, _ = draw(30, 2)

    found = beside(reference, ontology, counts, ["neuron"] * 60)

    assert "nearest_type_as_asked" not in found
    assert found["real_nearest_type_as_asked"] > 0.9


def test_a_reference_with_other_genes_or_without_types_is_refused(reference, ontology):
    counts, types = draw(30, 2)
    cells = cells_of(counts, types)

    with pytest.raises(UserError, match="shares 0 genes"):
        quality_beside(reference, counts, [f"other{i}" for i in range(80)], [None] * 60, ontology)
    with pytest.raises(UserError, match="no column 'annotation'.*cell_type"):
        read_reference(cells, "annotation")
    with pytest.raises(UserError, match="holds 9 cells"):
        read_reference(cells[:9].copy(), "cell_type")


def test_the_summary_without_a_reference_counts_what_is_there():
    counts = sparse.csr_matrix(np.array([[1, 0, 3], [1, 0, 3], [0, 0, 9]]))

    found = own_quality(counts, ["A", "B", "C"])

    assert found == {
        "median_counts": 4.0,
        "median_genes": 2.0,
        "share_of_zeros": 0.4444,
        "distinct_cells": 2,
        "top_genes": "C, A, B",
    }
