"""What is asked for when cells are generated: shares, ids, and what is extrapolated."""

import pytest

from scmmgpt.cell_requests import (
    SeenInTraining,
    concerns,
    named_tissue,
    numbers_of,
    read_requests,
    unknown_place,
)
from scmmgpt.errors import UserError
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.asked_cells_scmmgpt import asked_cells
from scmmgpt.processing.author_labels_scmmgpt import in_names_of_types
from scmmgpt.processing.ontology_scmmgpt import EMPTY, FILE_NAME, Ontology


@pytest.fixture(scope="module")
def ontology():
    return Ontology.read(EMBEDDED_MODEL / FILE_NAME)


@pytest.fixture
def seen(ontology):
    tissues = {"B cell": ["blood", "lymph node"], "neuron": ["brain"], "hepatocyte": ["liver"]}
    summary = {
        "counted_kinds": ["CL:0000236 Homo sapiens", "CL:0000540 Mus musculus"],
        "tissues_of_types": {ontology.find(name).id: held for name, held in tissues.items()},
    }
    return SeenInTraining.of({"cell_decoder": summary})


@pytest.mark.parametrize(
    ("text", "proportions", "expected"),
    [
        pytest.param("B cell", None, {"B cell": 10}, id="one text"),
        pytest.param(["B cell", "monocyte"], None, {"B cell": 5, "monocyte": 5}, id="alike"),
        pytest.param(["B cell", "monocyte"], [0.7, 0.3], {"B cell": 7, "monocyte": 3}, id="shares"),
        pytest.param(["B cell", "monocyte"], [70, 30], {"B cell": 7, "monocyte": 3}, id="percent"),
        pytest.param({"B cell": 0.2, "monocyte": 0.8}, None, {"B cell": 2, "monocyte": 8}, id="a mapping"),
        pytest.param("60 % B cell, 40% monocyte", None, {"B cell": 6, "monocyte": 4}, id="in the words"),
        pytest.param("60% of B cell and 40 % monocyte", None, {"B cell": 6, "monocyte": 4}, id="with and"),
        pytest.param("CL:0000236 from spleen", None, {"B cell from spleen": 10}, id="an id"),
        pytest.param(["B cell", "CL:0000236"], None, {"B cell": 10}, id="the same twice"),
        pytest.param("CD4-positive, alpha-beta T cell", None, {"CD4-positive, alpha-beta T cell": 10}, id="a comma"),
    ],
)
def test_texts_get_their_share_of_the_cells(ontology, text, proportions, expected):
    requests = read_requests(text, 10, proportions, ontology)

    assert {request.text: request.num_cells for request in requests} == expected


@pytest.mark.parametrize(
    ("text", "proportions", "reason"),
    [
        pytest.param(" ", None, "empty", id="no words"),
        pytest.param([], None, "empty", id="no text"),
        pytest.param(["B cell", "monocyte"], [0.5, 0.6], "add up to 1.1, not to 1", id="too much"),
        pytest.param("60 % B cell, 30 % monocyte", None, "add up to 90, not to 1 or 100 %", id="too little"),
        pytest.param(["B cell", "monocyte"], [1.0], "1 shares for 2 texts", id="one share"),
        pytest.param(["B cell", "monocyte"], [1.5, -0.5], "above 0", id="negative"),
        pytest.param(["B cell", "monocyte"], [float("nan"), 1], "above 0", id="NaN"),
        pytest.param(["B cell", "monocyte"], ["much", "little"], "must be numbers", id="words"),
        pytest.param({"B cell": 1.0}, [1.0], "not in both", id="both"),
        pytest.param("60 % B cell, monocyte, 30 % T cell and platelets", None, "add up", id="a part without one"),
        pytest.param("50 % B cell 50 % monocyte", None, "by commas", id="no comma"),
        pytest.param("not a B cell", None, "which cells are not meant", id="not a type"),
        pytest.param("cells other than the monocyte", None, "which cells are not meant", id="all but a type"),
        pytest.param("non-T cells", None, "which cells are not meant", id="non"),
        pytest.param("CL:9999999", None, "CL:9999999 is no term", id="no such id"),
    ],
)
def test_shares_that_make_no_sense_are_refused_in_words(ontology, text, proportions, reason):
    with pytest.raises(UserError, match=reason):
        read_requests(text, 10, proportions, ontology)


def test_numbers_add_up_whatever_the_shares():
    assert [sum(numbers_of([1 / 3] * 3, total)) for total in (1, 2, 100)] == [1, 2, 100]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a CD14-positive monocyte from human blood", "CD14-positive monocyte"),
        ("CD4-positive, alpha-beta T cell in lymph node", "CD4-positive, alpha-beta T cell"),
        ("fetal hepatocytes of a mouse", "hepatocyte"),
        ("beta cells of the human pancreas", "type B pancreatic cell"),
        ("excitatory neuron from mouse brain", "glutamatergic neuron"),
        ("CD8+ T cell, blood", "CD8-positive, alpha-beta T cell"),
        ("hepatitis B", None),
        ("something blue", None),
        ("a cell", None),
    ],
)
def test_the_longest_name_of_a_type_is_the_one_that_is_meant(ontology, text, name):
    _, term = in_names_of_types(text, ontology)

    assert (term and term.label) == name


def test_a_text_is_read_in_the_words_of_the_training(ontology):
    (request,) = read_requests("fetal AT2 cells, from a human lung", 1, None, ontology)

    assert request.text == "fetal AT2 cells, from a human lung"
    assert request.words == "fetal pulmonary alveolar type 2 cell, from a human lung"


def test_a_model_without_an_ontology_reads_a_text_as_it_stands():
    assert asked_cells("CL:0000236 treated with a drug", EMPTY) == ("CL:0000236 treated with a drug", None, "")


@pytest.mark.parametrize(
    ("text", "words", "left_out"),
    [
        ("a B cell stimulated with interferon beta", "a B cell", "stimulated with interferon beta"),
        ("an LPS-treated B cell from blood", "a B cell from blood", "LPS-treated"),
        ("a B cell, treated with a drug, from human blood", "a B cell, from human blood", "treated with a drug"),
        (
            "a B cell that was exposed to heat in vitro from blood",
            "a B cell from blood",
            "that was exposed to heat in vitro",
        ),
        (
            "B cells after 24 hours of stimulation with LPS in blood",
            "B cell in blood",
            "after 24 hours of stimulation with LPS",
        ),
        ("a CD19-knockout B cell", "a B cell", "CD19-knockout"),
        ("a B cell with CD19 knocked out", "a B cell", "with CD19 knocked out"),
        ("a B cell of a patient with COVID-19", "a B cell of a patient with COVID-19", ""),
    ],
)
def test_what_was_done_to_cells_is_left_out_and_said(ontology, seen, text, words, left_out):
    (request,) = read_requests(text, 1, None, ontology)

    assert (request.words, request.left_out) == (words, left_out)
    assert ("is left out" in " ".join(concerns(request, seen, ontology))) == bool(left_out)


def test_what_was_seen_needs_no_warning(ontology, seen):
    (request,) = read_requests("a B cell from human blood", 1, None, ontology)

    assert concerns(request, seen, ontology) == []


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        pytest.param("a neuron from blood", "No neuron from blood was seen", id="contradiction"),
        pytest.param("a hepatocyte from liver", "never counted", id="means alone"),
        pytest.param("a podocyte", "No podocyte was seen in training", id="unseen type"),
        pytest.param("a B cell from the antenna", "tissue 'antenna' was not seen", id="unknown tissue"),
        pytest.param("something blue", "names no cell type", id="no type"),
    ],
)
def test_what_is_extrapolated_is_said(ontology, seen, text, warning):
    (request,) = read_requests(text, 1, None, ontology)

    assert warning in " ".join(concerns(request, seen, ontology))


@pytest.mark.parametrize(
    ("text", "made", "others"),
    [
        pytest.param("B cell, monocyte", "B cell", "monocyte", id="a list"),
        pytest.param("a B cell or a T cell", "B cell", "T cell", id="or"),
        pytest.param("one third B cell, two thirds monocyte", "B cell", "monocyte", id="shares in words"),
        pytest.param("B cells of human blood and monocytes of human blood", "B cell", "monocyte", id="with places"),
        pytest.param("B cell 60 %, monocyte 40 %", "B cell", "monocyte", id="shares behind"),
        pytest.param("Mono, B cells", "B cell", "monocyte", id="an abbreviation"),
    ],
)
def test_of_several_types_one_is_made_and_that_is_said(ontology, seen, text, made, others):
    (request,) = read_requests(text, 1, None, ontology)

    warning = concerns(request, seen, ontology)[0]

    assert f"names {others} beside {made}: {made} alone is made" in warning
    assert '"60 % B cell, 40 % monocyte"' in warning


@pytest.mark.parametrize(
    "text",
    [
        "a naive B cell, a lymphocyte from blood",
        "T cells and not B cells",
        "B cells of a patient with lupus and monocyte leukemia",
        "CD8-positive, alpha-beta T cell, lymph node",
        "a T cell that kills B cells",
        "neuron, retina or brain, human or mouse",
    ],
)
def test_one_type_with_whatever_is_said_of_it_is_one(ontology, seen, text):
    (request,) = read_requests(text, 1, None, ontology)

    assert not [note for note in concerns(request, seen, ontology) if "beside" in note]


def test_no_name_of_the_ontology_names_several_types_or_what_is_not_meant(ontology, seen):
    labels = sorted(
        term.label for term in ontology.terms.values() if set(term.label) & set(",/") or " and " in term.label
    )
    every = sorted(term.label for term in ontology.terms.values())[::100]

    for label in [*labels[::10], *every]:
        (request,) = read_requests(f"a {label} from human blood", 1, None, ontology)
        assert not [note for note in concerns(request, seen, ontology) if "beside" in note or "can be made" in note], (
            label
        )


@pytest.mark.parametrize(
    ("text", "is_said"),
    [
        ("a zebrafish hepatocyte", True),
        ("a rat neuron", True),
        ("a B cell of a chicken", True),
        ("a mouse neuron", False),
        ("a human B cell", False),
    ],
)
def test_a_species_that_cannot_be_made_is_said_to_be_human(ontology, seen, text, is_said):
    (request,) = read_requests(text, 1, None, ontology)

    assert ("human cells are made" in " ".join(concerns(request, seen, ontology))) == is_said


def test_a_tissue_in_the_name_of_a_type_is_not_where_its_cells_are_from(ontology):
    naive = "CL:0000895"
    pairs = frozenset({(naive, "blood"), ("CL:0000893", "thymus")})
    seen = SeenInTraining(frozenset({naive}), frozenset({naive}), frozenset({"blood", "thymus"}), pairs)

    for place, is_said in (("", 0), (" from blood", 0), (" from thymus", 1)):
        text = f"a naive thymus-derived CD4-positive, alpha-beta T cell{place}"
        (request,) = read_requests(text, 1, None, ontology)
        assert len(concerns(request, seen, ontology)) == is_said


def test_a_finer_type_has_the_tissues_of_the_type_above_it(ontology, seen):
    (request,) = read_requests("a naive B cell from blood", 1, None, ontology)

    found = concerns(request, seen, ontology)

    assert len(found) == 1  # that the finer type was not seen, and not that it is strange in blood
    assert "No naive B cell was seen" in found[0]


def test_tissues_are_found_among_the_words():
    assert named_tissue("B cells of the Lymph Node", ["lymph node", "node", "blood"]) == "lymph node"
    assert unknown_place("a T cell from human blood of a patient with COVID-19", ["blood"]) is None
    assert unknown_place("a T cell in the human womb, mouse", ["blood"]) == "womb"


def test_a_model_without_an_account_of_its_training_is_not_asked():
    assert SeenInTraining.of({"cell_types": ["CL:0000236"]}) is None
