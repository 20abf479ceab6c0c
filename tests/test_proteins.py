"""Antibodies beside the RNA are evidence about cell types: any panel, any container, and none at all."""

import os
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from input_variants import without_pulling
from scipy import sparse

import scmmgpt
from scmmgpt.loading import load
from scmmgpt.processing.cell_reading_scmmgpt import open_cells
from scmmgpt.processing.protein_names_scmmgpt import ProteinNames, is_control
from scmmgpt.processing.proteins_scmmgpt import COUNTS, LOGARITHMS, Panel, Proteins, read_proteins, two_levels
from scmmgpt.processing.surface_phenotypes_scmmgpt import PHENOTYPES, SurfacePhenotypes
from scmmgpt.protein_evidence import StudyProteins, types_of_labels
from scmmgpt.summary import annotation_summary
from scmmgpt.verb import Execution, Verb

LABELS = [
    "CD4-positive, alpha-beta T cell",
    "CD8-positive, alpha-beta T cell",
    "B cell",
    "natural killer cell",
    "monocyte",
]
PANEL = [
    "CD3_TotalSeqB",
    "CD4_TotalSeqB",
    "CD8a_TotalSeqB",
    "CD19_TotalSeqB",
    "CD14_TotalSeqB",
    "IgG1_control_TotalSeqB",
]
CALLS = ("scmmgpt_cell_type", "scmmgpt_confidence", "scmmgpt_second_choice", "scmmgpt_candidates")
# mudata's own, of two modalities that share names.
pytestmark = pytest.mark.filterwarnings("ignore:var_names are not unique:UserWarning")


@pytest.fixture(scope="module")
def loaded():
    return load(device="cpu")


@pytest.fixture(scope="module")
def names(loaded) -> ProteinNames:
    return ProteinNames(loaded.processor.gene_tokenizer.gene_names)


@pytest.fixture(scope="module")
def rna() -> ad.AnnData:
    """Real cells whose types were sorted by FACS."""
    cells = ad.read_h5ad(Path(__file__).parent / "data" / "pbmc_facs_300.h5ad")
    return ad.AnnData(cells.X, obs=cells.obs, var=cells.var)[::2].copy()


@pytest.fixture(scope="module")
def antibodies(rna, loaded) -> pd.DataFrame:
    """Counts of a panel, drawn: ten times as many where cells of the sorted type have the protein."""
    phenotypes = SurfacePhenotypes(loaded.annotator.ontology, ProteinNames(loaded.processor.gene_tokenizer.gene_names))
    proteins = [phenotypes.names.protein(name) for name in PANEL]
    expected = phenotypes.table(rna.obs["cell_type_ontology_term_id"].astype(str).tolist(), proteins)
    counts = np.random.default_rng(0).poisson(np.where(expected > 0, 200, 20))
    return pd.DataFrame(counts, columns=PANEL, index=rna.obs_names)


def annotated(cells, loaded, **settings):
    return scmmgpt.annotate(cells, LABELS, model=loaded, progress=False, **settings)


def in_obsm(rna, antibodies) -> ad.AnnData:
    cells = rna.copy()
    cells.obsm["protein_expression"] = antibodies
    return cells


def in_rows(rna, antibodies) -> ad.AnnData:
    both = ad.AnnData(
        sparse.hstack([rna.X, sparse.csr_matrix(antibodies.to_numpy(np.float32))], format="csr"), obs=rna.obs
    )
    names = [*rna.var_names, *antibodies.columns]
    both.var = pd.DataFrame({"feature_id": [*rna.var["feature_id"].astype(str), *antibodies.columns]}, index=names)
    return both


def in_mod(rna, antibodies) -> mudata.MuData:
    part = ad.AnnData(antibodies.to_numpy(np.float32), obs=pd.DataFrame(index=antibodies.index))
    part.var_names = antibodies.columns
    with without_pulling():
        return mudata.MuData({"rna": rna.copy(), "prot": part})


def in_h5ad(rna, antibodies, folder) -> Path:
    in_obsm(rna, antibodies).write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def in_h5mu(rna, antibodies, folder) -> Path:
    with without_pulling():
        in_mod(rna, antibodies).write(folder / "cells.h5mu")
    return folder / "cells.h5mu"


CONTAINERS = {
    "obsm": lambda rna, antibodies, folder: in_obsm(rna, antibodies),
    "rows": lambda rna, antibodies, folder: in_rows(rna, antibodies),
    "MuData": lambda rna, antibodies, folder: in_mod(rna, antibodies),
    "h5ad with obsm": in_h5ad,
    "h5mu": in_h5mu,
}


# ---- names


@pytest.mark.parametrize(
    ("name", "protein"),
    [
        ("CD3_TotalSeqB", "CD3E"),
        ("adt_CD8a", "CD8A"),
        ("CD16-1", "FCGR3A"),  # made unique, not CD161
        ("CD3-1", "CD3E"),
        ("CD19_1", "CD19"),
        ("CD56(NCAM)Recombinant", "NCAM1"),
        ("CD4:SK3|CD4|AHS0032|pAbO", "CD4"),
        ("Hu.CD3-UCHT1", "CD3E"),
        ("UCHT1", "CD3E"),
        ("anti-human/mouse CD44", "CD44"),
        ("CD197 (CCR7)", "CCR7"),
        ("CD279_PD-1", "PDCD1"),
        ("HLA-DR", "HLA-DRA"),
        ("TCR_gd", "TRDC"),
        ("CD45RA_PROT", "CD45RA"),
        ("CD45", "PTPRC"),
        ("CD3-CTCATTGTAACTCCT", "CD3E"),
        ("no such protein", None),
        ("IgG2a-control", None),
    ],
)
def test_a_name_of_an_antibody_finds_its_protein(names, name, protein):
    assert names.protein(name) == protein


def test_every_phenotype_is_one_of_a_type_of_the_ontology_and_of_known_proteins(loaded, names):
    for term_id, words in PHENOTYPES.items():
        assert term_id in loaded.annotator.ontology.terms
        assert all(names.protein(word[:-1]) for word in words.split()), words


def test_a_type_inherits_what_is_known_of_its_ancestors(loaded, names):
    phenotypes = SurfacePhenotypes(loaded.annotator.ontology, names)

    found = phenotypes.table(["CL:0000904", "CL:0002396", None], ["CD3E", "CD4", "CD45RA", "CCR7", "FCGR3A", "CD14"])

    assert found.tolist() == [[1, 1, -1, 1, 0, -1], [-1, 0, 0, 0, 1, -1], [0] * 6]


def test_words_about_amounts_are_no_proteins(loaded, names):
    phenotypes = SurfacePhenotypes(loaded.annotator.ontology, names)

    found = phenotypes.table(list(loaded.annotator.ontology.terms), ["HAS1", "BRIP1", "WWOX"])

    assert not found.any()  # "has high", "of high", "for low"


def test_other_cells_that_a_definition_speaks_of_are_not_the_type_itself(loaded, names):
    phenotypes = SurfacePhenotypes(loaded.annotator.ontology, names)
    be1, thymic_epithelium, cdc1 = "CL:0000943", "CL:0002364", "CL:0002394"

    found = phenotypes.table([be1, thymic_epithelium, cdc1], ["CD4", "CD8A"])

    assert (found <= 0).all(where=[[True, True], [True, True], [False, True]])  # "antigen to CD8-positive T cells"


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("CD14 Mono", "CD14+ FCGR3A-"),
        ("FCGR3A+ Monocytes", "CD14- FCGR3A+"),
        ("CD4 Naive", "CD3E+ CD4+ CD8A- CD45RA+ CD45RO- CCR7+"),
        ("CD8 TEM", "CD3E+ CD4- CD8A+ CD45RA- CD45RO+ CCR7-"),
        ("memory CD4 T", "CD3E+ CD4+ CD45RA- CD45RO+"),
        ("NK_CD56bright", "CD3E- NCAM1+ FCGR3A-"),
        ("B naive", "CD19+ IGHD+ CD27-"),
        ("Treg", "CD3E+ CD4+ CD8A-"),
        ("gdT", "CD3E+ TRDC+"),
        ("HLA-DR+ T cells", "CD3E+ HLA-DRA+"),
        ("CD4+ T cells", "CD3E+ CD4+ CD8A-"),
        ("something else", ""),
    ],
)
def test_what_the_words_of_authors_say_of_proteins_is_known(loaded, names, label, said):
    proteins = [word[:-1] for word in said.split()] or ["CD3E", "CD4"]
    meant, words = types_of_labels([label], [None], loaded.ontology)

    found = SurfacePhenotypes(loaded.ontology, names).table(meant, proteins, words)

    assert found[0].tolist() == ([1 if word[-1] == "+" else -1 for word in said.split()] or [0, 0])


# ---- levels


def test_two_levels_are_found_whatever_the_order_of_the_cells():
    values = np.concatenate(
        [np.random.default_rng(0).normal(1, 0.3, 900), np.random.default_rng(1).normal(4, 0.3, 100)]
    )

    found = two_levels(values)

    assert found == two_levels(values[::-1].copy())
    assert np.abs(np.array(found[:3]) - [1, 4, 0.1]).max() < 0.1


def test_an_antibody_without_two_levels_says_little(names):
    noise = np.random.default_rng(0).normal(3, 0.5, (500, 1))

    panel = Panel.of(Proteins(["CD4"], noise.astype(np.float32), "obsm", LOGARITHMS), names)

    assert panel.parting[0] < 0.6
    assert Panel.of(Proteins(["CD4"], np.full((500, 1), 3.0), "obsm", LOGARITHMS), names).parting[0] == 0


def test_a_few_counts_of_background_are_no_second_level(names):
    counts = np.random.default_rng(0).poisson(0.3, (500, 1)).astype(np.float32)

    assert Panel.of(Proteins(["CD4"], counts, "obsm", COUNTS), names).parting[0] < 0.6


def test_what_isotype_controls_rise_with_is_no_protein(names):
    generator = np.random.default_rng(0)
    sticky = generator.normal(3, 1, 600)
    values = np.column_stack([sticky + generator.normal(0, 0.2, 600), sticky]).astype(np.float32)

    with_control = Panel.of(Proteins(["CD4", "IgG1_control"], values, "obsm", LOGARITHMS), names)
    without = Panel.of(Proteins(["CD4"], values[:, :1], "obsm", LOGARITHMS), names)

    assert (
        abs(np.corrcoef(with_control.presence[:, 0], sticky)[0, 1])
        < 0.5
        < np.corrcoef(without.presence[:, 0], sticky)[0, 1]
    )


# ---- calls


def test_proteins_correct_calls_of_the_rna(rna, antibodies, loaded):
    truth = rna.obs["cell_type"].astype(str).to_numpy()
    of_rna = annotated(rna, loaded, min_confidence=0).obs["scmmgpt_cell_type"].astype(str).to_numpy()

    found = annotated(in_obsm(rna, antibodies), loaded, min_confidence=0)

    is_b = truth == "B cell"
    assert (found.obs["scmmgpt_cell_type"].astype(str)[is_b] == "B cell").mean() >= (of_rna[is_b] == "B cell").mean()
    told = found.uns["scmmgpt"]["annotate"]["proteins"]
    assert (told["place"], told["scale"], told["cells"]) == ("obsm['protein_expression']", "counts", rna.n_obs)
    assert list(told["controls"]) == ["IgG1_control_TotalSeqB"]
    assert told["changed_calls"] == (found.obs["scmmgpt_cell_type"].astype(str).to_numpy() != of_rna).sum()
    evidence = dict(zip(told["evidence"]["cell_type"], told["evidence"]["proteins"], strict=True))
    assert evidence["B cell"].startswith("CD19+")
    assert found.obs["scmmgpt_protein_conflict"].between(0, 1).all()


@pytest.mark.filterwarnings("ignore:read as types of the Cell Ontology:UserWarning")
def test_labels_in_the_words_of_authors_have_proteins_too(rna, antibodies, loaded):
    authors = ["CD4 T", "CD8 T", "B", "NK", "Mono"]
    names = [
        "CD4-positive, alpha-beta T cell",
        "CD8-positive, alpha-beta T cell",
        "B cell",
        "natural killer cell",
        "monocyte",
    ]

    found, expected = (
        scmmgpt.annotate(in_obsm(rna, antibodies), labels, model=loaded, min_confidence=0, progress=False)
        for labels in (authors, names)
    )

    called = found.obs["scmmgpt_cell_type"].astype(str)
    assert called.map(dict(zip(authors, names, strict=True))).tolist() == expected.obs["scmmgpt_cell_type"].tolist()
    is_cytotoxic = rna.obs["cell_type"].astype(str).str.contains("CD8-positive").to_numpy()
    assert (called[is_cytotoxic] == "CD8 T").mean() > 0.6  # 0.18 of them without proteins
    assert (called[~is_cytotoxic] != "CD8 T").mean() > 0.95


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_answer(rna, antibodies, loaded, tmp_path, container):
    expected = annotated(in_obsm(rna, antibodies), loaded)

    found = annotated(CONTAINERS[container](rna, antibodies, tmp_path), loaded)

    for column in (*CALLS, "scmmgpt_protein_conflict"):
        assert found.obs[column].tolist() == expected.obs[column].tolist()


@pytest.mark.parametrize("shape", ["no antibodies", "switched off", "controls alone", "hashtags alone", "no gene"])
def test_without_proteins_nothing_changes(rna, antibodies, loaded, shape):
    expected = annotated(rna, loaded)
    other = {
        "controls alone": ["IgG1_control", "IgG2a_control"],
        "hashtags alone": ["HTO1", "HTO2"],
        "no gene": ["Unheard-of", "Foo"],
    }
    cells, settings = rna, {}
    if shape in other:
        cells = in_obsm(rna, antibodies.iloc[:, :2].set_axis(other[shape], axis=1))
    elif shape == "switched off":
        cells, settings = in_obsm(rna, antibodies), {"proteins": False}

    found = annotated(cells, loaded, **settings)

    for column in CALLS:
        assert found.obs[column].tolist() == expected.obs[column].tolist()
    assert "scmmgpt_protein_conflict" not in found.obs


def test_a_conflict_of_an_earlier_call_does_not_outlive_it(rna, antibodies, loaded):
    before = annotated(in_obsm(rna, antibodies), loaded)

    found = annotated(before, loaded, proteins=False, overwrite=True)

    assert before.obs["scmmgpt_protein_conflict"].any()
    assert not found.obs["scmmgpt_protein_conflict"].any()


def test_the_order_of_the_cells_changes_no_call(rna, antibodies, loaded):
    cells = in_obsm(rna, antibodies)
    order = np.random.default_rng(1).permutation(rna.n_obs)

    found, shuffled = annotated(cells, loaded), annotated(cells[order].copy(), loaded)

    conflict = found.obs["scmmgpt_protein_conflict"].to_numpy()[order]
    assert found.obs["scmmgpt_cell_type"].to_numpy()[order].tolist() == shuffled.obs["scmmgpt_cell_type"].tolist()
    np.testing.assert_allclose(shuffled.obs["scmmgpt_protein_conflict"], conflict, atol=1e-4)


def test_antibodies_dropped_one_by_one_move_the_probabilities_a_little_each_time(rna, antibodies, loaded):
    steps = []
    for number in range(len(PANEL), 0, -1):
        cells = in_obsm(rna, antibodies.iloc[:, :number])
        steps.append(annotated(cells, loaded).obs.get("scmmgpt_protein_conflict", pd.Series(0.0)).mean())

    assert steps[-1] < steps[0]
    assert np.abs(np.diff(steps)).max() < 0.2


# ---- input that is not as it should be


def test_cells_of_another_modality_are_matched_by_name(rna, antibodies, loaded):
    shuffled = antibodies.sample(frac=1, random_state=0)

    some = annotated(in_mod(rna, shuffled.drop(index=rna.obs_names[:50])), loaded)

    whole = annotated(in_obsm(rna, antibodies), loaded, proteins=False)
    told = some.uns["scmmgpt"]["annotate"]["proteins"]
    assert (told["cells"], told["cells_without_proteins"]) == (rna.n_obs - 50, 50)
    assert (some.obs["scmmgpt_protein_conflict"][:50] == 0).all()
    assert some.obs["scmmgpt_confidence"][:50].tolist() == whole.obs["scmmgpt_confidence"][:50].tolist()


def test_a_modality_of_other_cells_is_not_used_and_that_is_said(rna, antibodies, loaded):
    found = annotated(in_mod(rna, antibodies.set_axis([f"{name}-2" for name in antibodies.index])), loaded)

    assert "has the name of a cell" in found.uns["scmmgpt"]["annotate"]["proteins"]["not_used"]


def test_few_cells_do_not_show_levels_and_that_is_said(rna, antibodies, loaded):
    found = annotated(in_obsm(rna, antibodies)[:60].copy(), loaded)

    assert "fewer than 100 cells" in found.uns["scmmgpt"]["annotate"]["proteins"]["not_used"]


def test_values_that_came_normalised_are_used_as_they_are(rna, antibodies, loaded):
    logarithms = np.log1p(antibodies)
    normalised = logarithms - logarithms.mean(axis=0)

    found = annotated(in_obsm(rna, normalised.astype(np.float32)), loaded)

    told = found.uns["scmmgpt"]["annotate"]["proteins"]
    assert told["scale"] == LOGARITHMS
    expected = annotated(in_obsm(rna, antibodies), loaded).obs["scmmgpt_protein_conflict"]
    np.testing.assert_allclose(found.obs["scmmgpt_protein_conflict"], expected, atol=1e-3)


def test_a_matrix_of_obsm_without_names_is_not_guessed_at(rna, antibodies, loaded):
    cells = rna.copy()
    cells.obsm["protein_expression"] = antibodies.to_numpy()
    unnamed = annotated(cells, loaded)
    cells.uns["protein_names"] = np.array(PANEL)

    named = annotated(cells, loaded)

    assert "scmmgpt_protein_conflict" not in unnamed.obs
    assert "scmmgpt_protein_conflict" in named.obs


# ---- real cells


def citeseq(name: str) -> ad.AnnData:
    if not os.environ.get("SCMMGPT_DATA"):
        pytest.skip("SCMMGPT_DATA names no folder of development cells")
    path = Path(os.environ["SCMMGPT_DATA"]).parent / "dev2" / "multiome" / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"there is no {path.name} beside the development cells")
    return ad.read_h5ad(path)


@pytest.mark.parametrize("name", ["citeseq_malt10k_streak", "citeseq_pbmc5k_scvitools200", "adt_pbmc_mimitou2021"])
def test_real_panels_name_known_proteins(names, name):
    cells = citeseq(name)
    panel = list(cells.uns.get("protein_names", cells.var_names))

    unknown = [one for one in panel if names.protein(one) is None and not is_control(one)]

    assert not unknown


def test_real_proteins_agree_with_the_gates_that_were_drawn_on_them(loaded):
    cells = citeseq("citeseq_pbmc5k_scvitools200")
    known = (cells.obs["cell_type"] != "unknown").to_numpy()
    labels = sorted(set(cells.obs["cell_type"][known]))

    found = scmmgpt.annotate(cells, labels, model=loaded, min_confidence=0, progress=False)

    agree = found.obs["scmmgpt_cell_type"].astype(str) == cells.obs["cell_type"].astype(str)
    assert agree[known].mean() > 0.97


def test_read_proteins_of_a_file_are_those_of_memory(rna, antibodies, tmp_path):
    with open_cells(str(in_h5mu(rna, antibodies, tmp_path))) as cells:
        found = read_proteins(cells)

    assert (found.names, found.place) == (PANEL, "mod['prot']")
    np.testing.assert_array_equal(found.values, antibodies.to_numpy())


# ---- what is told


def test_the_report_and_the_shell_tell_of_proteins(rna, antibodies, loaded, tmp_path):
    found = annotated(in_obsm(rna, antibodies), loaded, report=tmp_path / "report.html")

    page = (tmp_path / "report.html").read_text()
    _, lines = annotation_summary(found, "scmmgpt")
    changed = found.uns["scmmgpt"]["annotate"]["proteins"]["changed_calls"]
    assert "proteins: CD3+" in page
    assert lines[-1] == (
        f"proteins: 5 antibodies of obsm['protein_expression'] (counts) in {rna.n_obs} cells: {changed} calls changed"
    )


def test_a_result_with_proteins_can_be_written(rna, antibodies, loaded, tmp_path):
    path = in_h5mu(rna, antibodies, tmp_path)

    annotated(path, loaded, output=tmp_path / "out.h5mu")

    with without_pulling():
        written = mudata.read_h5mu(tmp_path / "out.h5mu")["rna"]
    assert "scmmgpt_protein_conflict" in written.obs
    assert list(written.uns["scmmgpt"]["annotate"]["proteins"]["proteins"]) == ["CD3E", "CD4", "CD8A", "CD19", "CD14"]


def test_descriptions_name_proteins_as_proteins(rna, antibodies, loaded):
    cells = in_obsm(rna, antibodies)
    measured = StudyProteins.of(Verb.begin("describe", cells, loaded, Execution(progress=False)))
    is_b = (rna.obs["cell_type"] == "B cell").to_numpy()

    of_cells = np.array(measured.sentences())
    of_clusters = measured.sentences(is_b.astype(int))

    assert all(said.startswith("Surface proteins, by antibodies: ") for said in of_cells)
    assert np.mean(["CD19 high" in said for said in of_cells[is_b]]) > 0.9
    assert len(set(np.array(of_clusters)[is_b])) == 1
