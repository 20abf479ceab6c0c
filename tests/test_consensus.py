"""A study decides together: neighbours, communities, the labels it holds, the sets that hold the truth."""

import tracemalloc
import warnings
import weakref
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import sparse

import scmmgpt
from scmmgpt.cells import CellsInMemory
from scmmgpt.consensus import _neighbourhoods, divided, over_neighbours
from scmmgpt.errors import UserError
from scmmgpt.evidence import CalledGenes, numbered, support_of_genes
from scmmgpt.loading import load
from scmmgpt.processing.calibration_scmmgpt import Calibration
from scmmgpt.processing.calling_scmmgpt import CellEvidence
from scmmgpt.processing.held_labels_scmmgpt import Lineages, held_labels, names_of_held
from scmmgpt.processing.label_sets_scmmgpt import GAPS, MOST_LABELS, ROOT, Groups, Sets, fitted_gap, label_sets
from scmmgpt.processing.labels_scmmgpt import LabelSet
from scmmgpt.processing.ontology_scmmgpt import Ontology, Term
from scmmgpt.report import GroupGenes
from scmmgpt.smoothing import graph_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TREE = Ontology(
    {
        term.id: term
        for term in (
            Term("CL:0000000", "cell"),
            Term("CL:1", "lymphocyte", parents=("CL:0000000",)),
            Term("CL:2", "T cell", parents=("CL:1",)),
            Term("CL:3", "naive T cell", parents=("CL:2",)),
            Term("CL:4", "neuron", parents=("CL:0000000",)),
            Term("CL:5", "fibroblast", parents=("CL:0000000",)),
            *(Term(f"CL:1{number}", f"T cell {number}", parents=("CL:2",)) for number in range(6)),
        )
    }
)
IDS = ("CL:1", "CL:2", "CL:3", "CL:4", "CL:5")


def blobs(sizes=(40, 30, 30), width=8, noise=0.05) -> np.ndarray:
    """Unit vectors around as many orthogonal axes as there are sizes."""
    rows = np.repeat(np.eye(len(sizes), width), sizes, axis=0)
    rows = rows + noise * np.random.default_rng(0).normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def evidence(embeds: np.ndarray) -> CellEvidence:
    return CellEvidence(embeds, *np.zeros((2, len(embeds)), dtype=bool))


def plain_cells(number: int, **more) -> CellsInMemory:
    return CellsInMemory(anndata.AnnData(np.zeros((number, 1), np.float32), **more))


def together(embeds: np.ndarray, **more) -> tuple[np.ndarray, np.ndarray]:
    cells, communities = over_neighbours(evidence(embeds), plain_cells(len(embeds), **more))
    return cells.embeds, communities


# ---- neighbours and communities


def test_communities_are_the_groups_that_lie_apart():
    _, communities = together(blobs())

    assert all(set(communities[:40]).isdisjoint(communities[start:]) for start in (40, 70))


def test_the_order_of_the_cells_changes_nothing():
    embeds = blobs(noise=0.3)
    order = np.random.default_rng(1).permutation(len(embeds))

    (plain, communities), (turned, turned_communities) = together(embeds), together(embeds[order])

    np.testing.assert_allclose(turned, plain[order], atol=1e-6)
    pairs = set(zip(communities[order], turned_communities, strict=True))
    assert len(pairs) == len(set(communities)) == len(set(turned_communities))


def test_neighbours_are_looked_for_in_blocks_of_like_cells(monkeypatch):
    whole, _ = together(blobs())

    monkeypatch.setattr("scmmgpt.consensus.CELLS_PER_BLOCK", 50)
    in_blocks, _ = together(blobs())

    np.testing.assert_allclose(in_blocks, whole, atol=1e-6)


def test_the_places_of_one_part_are_let_go_before_the_next_are_read(monkeypatch):
    held = list[weakref.ref]()

    def watched(array, rows):
        assert not any(places() is not None for places in held)
        places = np.array(array[rows])
        held.append(weakref.ref(places))
        return places

    monkeypatch.setattr("scmmgpt.consensus._CELLS_HELD", 50)
    monkeypatch.setattr("scmmgpt.consensus.scattered_rows", watched)
    rows = [rows for rows, _, _ in _neighbourhoods(blobs(), plain_cells(100), 4)]

    assert len(held) > 1
    assert sorted(np.concatenate(rows)) == list(range(100))


def test_a_hundred_cells_of_one_kind_are_one_community():
    embeds = np.repeat(np.eye(1, 8, dtype=np.float32), 100, axis=0)

    smoothed, communities = together(embeds)

    np.testing.assert_allclose(smoothed, embeds, atol=1e-6)
    assert set(communities) == {0}


def test_identical_cells_beyond_a_block_are_read_in_parts(monkeypatch):
    monkeypatch.setattr("scmmgpt.consensus.CELLS_PER_BLOCK", 30)

    smoothed, _ = together(np.repeat(np.eye(1, 8, dtype=np.float32), 100, axis=0))

    np.testing.assert_allclose(smoothed[:, 0], 1, atol=1e-6)


def test_no_group_is_larger_than_asked():
    groups = divided(blobs((100, 100)), 1, most_cells=40)

    assert max(map(len, groups)) <= 40
    assert sorted(np.concatenate(groups)) == list(range(200))


def test_the_graph_that_the_data_bring_is_used_and_isolated_cells_keep_to_themselves():
    embeds = blobs((2, 1), noise=0)
    graph = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0.0]]))

    weights = graph_weights(graph, np.arange(3), own=0.25).toarray()
    smoothed, _ = together(embeds, obsp={"connectivities": graph})

    np.testing.assert_allclose(weights, [[0.25, 0.75, 0], [0.75, 0.25, 0], [0, 0, 1]])
    np.testing.assert_allclose(smoothed, embeds, atol=1e-6)


# ---- the labels that a study holds


def held(probabilities: list[list[float]], num_cells: list[int], least_share: float = 0.01) -> list[int]:
    return list(held_labels(np.array(probabilities), np.array(num_cells), Lineages.of(IDS, TREE), least_share))


def test_strangers_agree_in_nothing_and_relatives_in_part():
    lineages = Lineages.of((*IDS, None), TREE)

    assert lineages.agreement[1, 2] > lineages.agreement[0, 2] > 0
    assert lineages.agreement[2, 3] == 0
    assert lineages.agreement[5].tolist() == [0, 0, 0, 0, 0, 1]
    assert lineages.is_above[0].tolist() == [False, True, True, False, False, False]


def test_a_type_of_a_handful_of_cells_is_not_held():
    assert held([[0, 0, 0.9, 0, 0.1], [0, 0, 0.5, 0.5, 0]], [990, 10]) == [2]


def test_types_that_hold_enough_of_the_study_are_held():
    assert held([[0, 0, 0.9, 0, 0.1], [0, 0, 0.0, 0.9, 0.1]], [900, 100]) == [2, 3]


def test_a_type_and_its_parent_are_not_both_held_for_like_communities():
    assert len(held([[0.1, 0.5, 0.4, 0, 0], [0.1, 0.4, 0.5, 0, 0]], [50, 50])) == 1


def test_the_child_is_held_where_the_evidence_reaches_it():
    assert held([[0.05, 0.15, 0.8, 0, 0]], [100]) == [2]


def named(probabilities: list[list[float]], labels: list[int], least_part: float) -> list[int]:
    sizes, lineages = np.full(len(probabilities), 50), Lineages.of(IDS, TREE)
    return list(names_of_held(np.array(labels), np.array(probabilities), sizes, lineages, least_part))


def test_a_held_type_is_called_by_its_parent_where_little_of_what_is_said_there_is_its_own():
    says_little, says_much = [[0.1, 0.6, 0.2, 0, 0.1]], [[0.1, 0.2, 0.6, 0, 0.1]]

    assert named(says_little, [2], least_part=0.3) == [1]
    assert named(says_much, [2], least_part=0.3) == [2]


def test_a_parent_of_two_held_types_names_neither():
    assert named([[0.5, 0.3, 0.2, 0, 0], [0.5, 0.3, 0.2, 0, 0]], [1, 2], least_part=0.9) == [1, 2]


# ---- sets of labels


def sets_of(probabilities: list[float], names: list[str], gap: float) -> str:
    terms = [TREE.find(name) for name in names]
    labels = LabelSet(
        tuple(names), tuple(term.id if term else None for term in terms), ("",) * len(names), tuple(names)
    )
    return label_sets(np.array([probabilities]), labels, Groups.of(labels, TREE), TREE, gap)[0]


def test_a_set_holds_what_is_nearly_as_probable_as_the_best():
    assert sets_of([0.5, 0.4, 0.1], ["neuron", "T cell", "other"], gap=1.0) == "neuron | T cell"
    assert sets_of([0.05, 0.05, 0.9], ["neuron", "T cell", "other"], gap=1.0) == "other"


def test_the_set_is_what_too_many_labels_have_in_common():
    subtypes = [f"T cell {number}" for number in range(MOST_LABELS + 1)]
    flat, unlike = [0.16] * 6 + [0.04], [0.16] * 5 + [0.04, 0.16]

    assert sets_of(flat, [*subtypes, "neuron"], gap=1.0) == "T cell"
    assert sets_of(unlike, [*subtypes, "neuron"], gap=1.0) == ROOT


def test_the_set_is_the_root_where_nothing_was_fitted():
    assert sets_of([0.9, 0.1], ["neuron", "T cell"], Calibration().set_gap(2)) == ROOT


def test_a_set_holds_the_truth_by_its_labels_or_by_what_stands_above_it():
    labels, group = np.array([[True, False], [True, True], [True, True]]), np.array([-1, 0, 1])
    truth_is_second, group_is_above = np.array([[False, True]] * 3), np.array([[False], [True], [False]])

    assert list(Sets(labels, group).hold(truth_is_second, group_is_above)) == [False, True, True]


def studies(number: int) -> list[np.ndarray]:
    """Of studies that the model fits more or less well, the share of cells whose set holds the truth for each gap."""
    found = []
    for seed in range(number):
        generator = np.random.default_rng(seed)
        truth = generator.integers(5, size=100)
        logits = generator.normal(size=(100, 5)) * generator.uniform(0.5, 2) + 2 * np.eye(5)[truth]
        of_truth = logits.max(axis=1) - logits[np.arange(100), truth]
        found.append((of_truth[:, None] <= GAPS).mean(axis=0))
    return found


def test_sets_hold_the_truth_as_often_as_they_promise_in_studies_left_out():
    all_studies = studies(40)

    gaps = [fitted_gap(all_studies[:place] + all_studies[place + 1 :]) for place in range(40)]
    shares = [study[np.searchsorted(GAPS, gap)] for study, gap in zip(all_studies, gaps, strict=True)]

    assert 0.88 <= np.mean(shares) < 0.97


def test_cells_of_one_set_share_one_text():
    labels = LabelSet(("neuron", "T cell"), ("CL:0000540", "CL:0000084"), ("", ""), ("neuron", "T cell"))

    texts = label_sets(np.full((50, 2), 0.5), labels, Groups.of(labels, TREE), TREE, gap=1.0)

    assert len({id(text) for text in texts}) == 1


def test_too_few_studies_promise_nothing():
    assert fitted_gap(studies(3)) == float("inf")


# ---- annotate


@pytest.fixture(scope="module")
def loaded():
    return load(device="cpu")


@pytest.fixture(scope="module")
def blood() -> anndata.AnnData:
    return anndata.read_h5ad(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad")


def annotated(cells, loaded, **options) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scmmgpt.annotate(cells, model=loaded, progress=False, **options)


def settings(adata: anndata.AnnData) -> dict:
    return adata.uns["scmmgpt"]["annotate"]["settings"]


@pytest.fixture(scope="module")
def called(blood, loaded):
    return annotated(blood, loaded)


def test_a_study_gets_few_names_that_its_cells_share(blood, loaded, called):
    alone = annotated(blood, loaded, consensus=False)

    names = set(called.obs["scmmgpt_cell_type"]) - {"unknown"}
    assert settings(called)["consensus"]
    assert not settings(alone)["consensus"]
    assert len(names) <= 2 * blood.obs["cell_type"].nunique()
    assert len(names) < alone.obs["scmmgpt_cell_type"].nunique()


def test_names_do_not_depend_on_the_order_of_the_cells_or_the_batches(blood, loaded, called):
    order = np.random.default_rng(0).permutation(blood.n_obs)

    turned = annotated(blood[order].copy(), loaded, batch_size=7)

    for column in ("scmmgpt_cell_type", "scmmgpt_candidates"):
        assert list(turned.obs[column]) == list(called.obs[column].iloc[order])


def test_a_file_gives_what_cells_in_memory_give(blood, loaded, called, tmp_path, monkeypatch):
    monkeypatch.setattr("scmmgpt.embedding.CELLS_PER_CHUNK", 64)
    blood.write_h5ad(tmp_path / "in.h5ad")

    written = annotated(tmp_path / "in.h5ad", loaded, output=tmp_path / "out.h5ad")

    assert list(written.obs["scmmgpt_cell_type"]) == list(called.obs["scmmgpt_cell_type"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]


def test_a_list_of_ones_own_and_few_cells_are_judged_cell_by_cell(blood, loaded):
    assert not settings(annotated(blood, loaded, labels=["B cell", "T cell"]))["consensus"]
    assert not settings(annotated(blood[:99].copy(), loaded))["consensus"]
    assert settings(annotated(blood, loaded, labels=["B cell", "T cell"], consensus=True))["consensus"]


def test_labels_that_are_each_others_ancestors_are_called_as_given(blood, loaded):
    labels = ["lymphocyte", "T cell", "CD4-positive, alpha-beta T cell", "monocyte"]

    found = annotated(blood, loaded, labels=labels, min_confidence=0, consensus=True)

    assert set(found.obs["scmmgpt_cell_type"]) <= set(labels)


def test_cells_that_cannot_be_told_apart_get_one_name_and_the_account_says_what_that_is_worth(blood, loaded):
    same = anndata.concat([blood[:1]] * 100, index_unique="-")

    found = annotated(same, loaded)

    assert found.obs["scmmgpt_cell_type"].nunique() == 1
    assert "than random counts" in notes(found)


def notes(adata: anndata.AnnData) -> str:
    return " ".join(adata.uns["scmmgpt"]["annotate"]["notes"])


def test_a_study_of_one_type_is_named_and_the_account_says_that_there_was_nothing_to_compare(blood, loaded):
    b_cells = blood[(blood.obs["cell_type"] == "B cell").to_numpy()]
    study = anndata.concat([b_cells] * (1 + 100 // b_cells.n_obs), index_unique="-")

    found = annotated(study, loaded)

    assert (found.obs["scmmgpt_cell_type"] == "unknown").mean() < 0.1
    assert found.obs["scmmgpt_cell_type"].str.contains("B cell").mean() > 0.9
    assert "nothing to compare" in notes(found)


def test_where_no_set_of_labels_fits_the_account_says_that_the_types_may_be_unknown(blood, loaded, monkeypatch):
    monkeypatch.setattr(Calibration, "set_gap", lambda self, number: float("inf"))

    with pytest.warns(UserWarning, match="may not know their types"):
        found = scmmgpt.annotate(blood, model=loaded, progress=False)

    assert (found.obs["scmmgpt_candidates"] == ROOT).all()
    assert "may not know their types" in notes(found)


def test_shuffled_gene_names_make_a_study_unknown_unless_names_are_asked_for(blood, loaded):
    shuffled = blood[:, np.random.default_rng(0).permutation(blood.n_vars)].copy()
    shuffled.var = blood.var

    found, named = annotated(shuffled, loaded), annotated(shuffled, loaded, min_confidence=0)

    assert (found.obs["scmmgpt_cell_type"] == "unknown").all()
    assert (found.obs["scmmgpt_candidates"] == ROOT).all()
    assert "under shuffled gene names" in notes(found)
    assert not (named.obs["scmmgpt_cell_type"] == "unknown").any()


def test_a_study_of_which_most_cells_are_implausible_is_unknown_as_a_whole(blood, loaded):
    generator, mixed = np.random.default_rng(0), blood.copy()
    values = mixed.X.toarray()
    values[: 2 * len(values) // 3] = values[: 2 * len(values) // 3, generator.permutation(mixed.n_vars)]
    mixed.X = sparse.csr_matrix(values)

    found = annotated(mixed, loaded)

    assert (found.obs["scmmgpt_cell_type"] == "unknown").all()
    assert "in most of them" in notes(found)


def test_the_names_of_millions_of_cells_are_numbered_in_little_memory():
    names = np.array(["B cell", "effector memory CD8-positive, alpha-beta T cell", "acinar cell"], dtype=object)
    of_cells = names[np.arange(300_000) % 3]
    tracemalloc.start()
    distinct, numbers = numbered(of_cells)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert list(distinct) == sorted(names)
    assert (distinct[numbers] == of_cells).all()
    assert peak < 50 * len(of_cells)  # as text of equal width it would be 200 bytes a cell


def test_one_call_alone_says_nothing_of_its_genes(blood, loaded):
    groups = GroupGenes.empty(["A", "B"], 1)

    assert support_of_genes(CalledGenes(np.array(["B cell"]), np.zeros(3, int), groups), None) == float("inf")


def test_the_graph_of_the_data_may_leave_cells_alone(blood, loaded):
    cells = blood.copy()
    cells.obsp["connectivities"] = sparse.csr_matrix((cells.n_obs, cells.n_obs))

    found = annotated(cells, loaded)

    assert settings(found)["consensus"]
    assert np.isfinite(found.obs["scmmgpt_confidence"]).all()


def test_genes_of_the_cells_and_of_the_measured_profile_speak_for_a_call(blood, loaded, tmp_path):
    found = annotated(blood, loaded, labels=["B cell", "T cell", "monocyte"], report=tmp_path / "page.html")

    table = found.uns["scmmgpt"]["annotate"]["evidence"]
    genes = dict(zip(table["cell_type"], table["genes"], strict=True))
    assert {"CD79A", "CD79B", "MS4A1", "CD74", "HLA-DRA"} & set(genes["B cell"].split(", "))
    assert all(name != other for name, other in zip(table["cell_type"], table["against"], strict=True))
    assert genes["B cell"] in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("option", [{"cluster_key": "cell_type"}, {"rerank": 1}, {"prior_share": 0}], ids=str)
def test_what_contradicts_a_common_decision_is_refused(blood, loaded, option):
    with pytest.raises(UserError, match="consensus"):
        annotated(blood, loaded, consensus=True, **option)

    assert not settings(annotated(blood[:100].copy(), loaded, **option))["consensus"]
