"""What a text says of cells is found sentence by sentence, and held against these cells."""

import math

import pytest

from scmmgpt.claims import ONLY_THE_NAME, CellFacts, ClaimReader, without_marks
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, Ontology

PERCENTILES = {"MS4A1": 98.0, "CD79A": 97.0, "CD3D": 20.0, "LYZ": 70.0, "MKI67": 30.0, "TOP2A": 25.0}


@pytest.fixture(scope="module")
def reader():
    return ClaimReader(Ontology.read(EMBEDDED_MODEL / FILE_NAME), frozenset(PERCENTILES))


def facts(label="B cell", **changes):
    known = {
        "second": "plasma cell",
        "species": "human",
        "tissue": "blood",
        "raised": ("MS4A1", "CD79A"),
        "gene_percentile": PERCENTILES.get,
        "gene_share": lambda gene: 0.8 if PERCENTILES[gene] > 50 else 0.0,
        "type_percentile": lambda name: 95.0,
    }
    return CellFacts(label, **{**known, **changes})


def found(checked):
    return [(claim.kind, claim.subject, claim.verdict) for claim in checked.claims]


def test_claims_that_the_cells_bear_out_are_printed_with_their_percentiles(reader):
    checked = reader.check("This is a B cell. MS4A1 and CD79A are higher here.", facts())

    assert checked.printed == (
        "This is a B cell. [percentile: type 95] MS4A1 and CD79A are higher here. [percentile: MS4A1 98, CD79A 97]"
    )


def test_a_gene_that_is_said_twice_is_printed_once(reader):
    checked = reader.check("Its raised genes include MS4A1, CD79A and MS4A1.", facts())

    assert checked.printed == "Its raised genes include MS4A1 and CD79A. [percentile: MS4A1 98, CD79A 97]"
    assert checked.raw.endswith("CD79A and MS4A1.")


@pytest.mark.parametrize(
    ("sentence", "claim"),
    [
        pytest.param("This is a monocyte.", ("type", "monocyte", "contradicted"), id="another type"),
        pytest.param("It is a cell of a mouse.", ("species", "mouse", "contradicted"), id="another species"),
        pytest.param("It comes from liver.", ("tissue", "liver", "contradicted"), id="another tissue"),
        pytest.param("CD3D is high.", ("gene up", "CD3D", "contradicted"), id="a gene that is low"),
        pytest.param("It lacks MS4A1.", ("gene absent", "MS4A1", "contradicted"), id="a gene that is there"),
        pytest.param("CD19A is high.", ("gene up", "CD19A", "contradicted"), id="no gene of the file"),
        pytest.param("It is proliferating.", ("state", "proliferating", "contradicted"), id="a state"),
        pytest.param("It is not a B cell.", ("another type", "B cell", "contradicted"), id="a denied type"),
    ],
)
def test_what_the_cells_contradict_is_withheld(reader, sentence, claim):
    checked = reader.check(f"{sentence} This is a B cell.", facts())

    assert claim in found(checked)
    assert checked.printed == "This is a B cell. [percentile: type 95]"


@pytest.mark.parametrize(
    "sentence",
    [
        "It is a lymphocyte.",
        "No, this is a B cell.",
        "It is a B-lymphocyte.",
        "It is not a T cell.",
        "It lacks CD3D.",
        "The nearest other type is a plasma cell.",
        "A human cell from blood.",
    ],
)
def test_a_type_above_a_synonym_a_denial_and_the_context_are_borne_out(reader, sentence):
    checked = reader.check(sentence, facts())

    assert {verdict for _, _, verdict in found(checked)} == {"supported"}


def test_what_cells_cannot_tell_is_general_knowledge(reader):
    checked = reader.check("B cells produce antibodies. They are fascinating.", facts())

    assert [(claim.kind, claim.verdict) for claim in checked.claims] == [("general knowledge", "unchecked")] * 2
    assert checked.printed == (
        "B cells produce antibodies. [general knowledge] They are fascinating. [general knowledge]"
    )
    assert without_marks(checked.printed) == "B cells produce antibodies. They are fascinating."


def test_where_the_model_knows_the_name_alone_the_ontology_defines_it(reader):
    sentence = ONLY_THE_NAME.format(type="a B cell")
    checked = reader.check(sentence, facts())

    assert checked.printed.startswith("B cell: A lymphocyte of B lineage")
    assert checked.printed.endswith("[Cell Ontology]")
    assert [claim.verdict for claim in checked.claims] == ["unchecked"]
    assert without_marks(checked.printed).endswith(".")
    for other in ("a monocyte", "a hepatobastrocell"):
        assert other not in reader.check(f"{ONLY_THE_NAME.format(type=other)} MS4A1 is high.", facts()).printed


def test_general_knowledge_of_another_type_is_withheld(reader):
    assert "Monocytes" not in reader.check("Monocytes eat bacteria. This is a B cell.", facts()).printed


def test_a_tissue_that_nobody_gave_cannot_be_known(reader):
    assert "blood" not in reader.check("It comes from blood. It is a B cell.", facts(tissue="")).printed


def test_where_everything_is_withheld_the_known_facts_are_said(reader):
    printed = reader.check("This is a neuron of a mouse.", facts()).printed

    assert printed == (
        "This is called B cell; raised genes: MS4A1, CD79A. "
        "[The language model's text was withheld, as the cells contradict it.]"
    )


def test_of_an_empty_text_nothing_is_called_withheld(reader):
    assert reader.check("", facts()).printed.endswith("[The language model's text was empty.]")


def test_a_finer_type_is_borne_out_only_where_it_cannot_be_told_from_the_call(reader):
    text = "This is a naive B cell."

    assert found(reader.check(text, facts()))[0][2] == "contradicted"
    assert found(reader.check(text, facts(candidates=("naive B cell",))))[0][2] == "supported"


def test_of_several_cells_each_is_asked_for_what_is_said_of_it(reader):
    pair = facts(), facts("monocyte", gene_percentile={**PERCENTILES, "LYZ": 99.0, "MS4A1": 10.0}.get)

    right = reader.check("Cell 1 is a B cell (MS4A1); cell 2 is a monocyte (LYZ).", *pair)
    wrong = reader.check("Cell 1 is a monocyte; cell 2 is a B cell.", *pair)

    assert {verdict for _, _, verdict in found(right)} == {"supported"}
    assert {verdict for _, _, verdict in found(wrong)} == {"contradicted"}


def test_without_a_study_genes_are_looked_up_in_the_cell_alone(reader):
    alone = facts(gene_percentile=lambda gene: math.nan if gene in PERCENTILES else None)

    checked = reader.check("MS4A1 is high. CD3D is high.", alone)

    assert [verdict for _, _, verdict in found(checked)] == ["supported", "contradicted"]
    assert checked.printed == "MS4A1 is high."
