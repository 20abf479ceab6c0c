"""Label sets are read from every form a person gives them in, and say what is doubtful."""

import json

import pytest

from scmmgpt.errors import UserError
from scmmgpt.processing.author_words_scmmgpt import ABBREVIATIONS, TISSUES
from scmmgpt.processing.labels_scmmgpt import read_labels
from scmmgpt.processing.ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, Term, plain_name, read_ontology


@pytest.fixture(scope="module")
def ontology() -> Ontology:
    from scmmgpt.loading import EMBEDDED_MODEL

    return read_ontology(EMBEDDED_MODEL)


@pytest.fixture
def small_ontology() -> Ontology:
    terms = [
        Term("CL:1", "lymphocyte"),
        Term("CL:2", "T cell", parents=("CL:1",), synonyms=("T lymphocyte",)),
        Term("CL:3", "B cell", parents=("CL:1",), synonyms=("B lymphocyte", "lymph thing")),
        Term("CL:4", "naive T cell", parents=("CL:2",), synonyms=("lymph thing",)),
    ]
    return Ontology({term.id: term for term in terms}, replaced={"CL:9": "CL:2"})


def test_a_file_gives_one_label_a_line_and_keeps_commas(tmp_path, ontology):
    file = tmp_path / "labels.txt"
    file.write_text("CD4-positive, alpha-beta T cell\n\n  B cell \n", encoding="utf-8-sig")

    labels = read_labels(file, ontology)

    assert labels.labels == ("CD4-positive, alpha-beta T cell", "B cell")
    assert labels.term_ids == ("CL:0000624", "CL:0000236")


def test_labels_are_kept_verbatim_when_the_ontology_spells_them_otherwise(ontology):
    labels = read_labels(["b cells", "T-cell"], ontology)

    assert labels.labels == ("b cells", "T-cell")
    assert labels.term_ids == ("CL:0000236", "CL:0000084")


def test_the_words_of_authors_mean_terms_and_stay_the_labels(ontology):
    labels = read_labels(["T_CD4", "CD14+ Mono", "B cell"], ontology)

    assert labels.labels == ("T_CD4", "CD14+ Mono", "B cell")
    assert labels.names == ("CD4-positive, alpha-beta T cell", "CD14-positive monocyte", "B cell")
    assert labels.term_ids == ("CL:0000624", "CL:0001054", "CL:0000236")
    assert labels.texts()[0].startswith("This cell is a CD4-positive, alpha-beta T cell.")
    assert "'T_CD4' as 'CD4-positive, alpha-beta T cell'" in labels.notes[0]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        pytest.param(["PC", "B"], ["plasma cell", "B cell"], id="blood"),
        pytest.param(["PC", "TAL", "Podocyte"], ["renal principal cell", None, "Podocyte"], id="kidney"),
        pytest.param(["HSC", "MK"], ["hematopoietic stem cell", "megakaryocyte"], id="marrow"),
        pytest.param(
            ["HSC", "Hepatocyte", "Kupffer"], ["hepatic stellate cell", "Hepatocyte", "Kupffer cell"], id="liver"
        ),
    ],
)
def test_what_stands_beside_a_short_word_says_what_it_means(ontology, words, names):
    found = read_labels(words, ontology).names

    assert [name for name, expected in zip(found, names, strict=True) if expected] == [name for name in names if name]


def test_a_label_with_a_name_of_its_own_comes_before_an_abbreviation(ontology):
    assert read_labels(["B", "B cell"], ontology).term_ids == (None, "CL:0000236")


def test_abbreviations_of_one_term_are_said_to_be_one(ontology):
    labels = read_labels(["Astrocyte1", "Astrocyte2"], ontology)

    assert labels.names == labels.labels
    assert labels.notes == ("'Astrocyte1' and 'Astrocyte2' are the same Cell Ontology term (CL:0000127)",)


@pytest.mark.parametrize("label", ["not a B cell", "non-T cell", "low quality B cell", "Mono/Mac"])
def test_what_is_no_name_of_a_type_is_free_text(ontology, label):
    labels = read_labels([label, "neuron"], ontology)

    assert labels.term_ids[0] is None
    assert labels.names[0] == label
    assert "is not in the Cell Ontology and is used as free text" in labels.notes[0]


def test_unknown_is_the_name_of_cells_without_a_call_and_left_out(ontology):
    labels = read_labels({"Unknown": "who knows", "B cell": ""}, ontology)

    assert labels.labels == ("B cell",)
    assert labels.notes == ("'Unknown' was left out of the labels: it names cells without a call",)


def test_a_label_may_be_as_long_as_a_description(ontology):
    labels = read_labels(["a cell that holds CD4 and more " * 2000, "T cell"], ontology)

    assert labels.term_ids == (None, "CL:0000084")


def test_the_ontology_s_own_names_mean_themselves(ontology):
    terms = [term for term in ontology.terms.values() if term.id not in UNINFORMATIVE_TERMS]

    labels = read_labels(list(dict.fromkeys(term.label for term in terms)), ontology)

    assert labels.names == labels.labels
    meant = [plain_name(ontology.terms[term_id].label) for term_id in labels.term_ids if term_id]
    assert meant == [plain_name(label) for label in labels.labels]


def test_every_word_of_authors_names_a_term(ontology):
    tables = (ABBREVIATIONS, *(tissue.names for tissue in TISSUES))

    assert not [name for table in tables for name in table.values() if ontology.find(name) is None]


def test_a_dict_brings_its_own_descriptions(ontology):
    labels = read_labels({"B cell": "makes antibodies", "doublet": "two cells"}, ontology)

    assert labels.descriptions == ("makes antibodies", "two cells")
    assert labels.term_ids == ("CL:0000236", None)


def test_a_json_file_reads_like_the_dict_it_holds(tmp_path, ontology):
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"B cell": "makes antibodies"}))

    assert read_labels(str(file), ontology).descriptions == ("makes antibodies",)


def test_the_whole_ontology_is_a_label_set_without_the_terms_that_say_nothing(ontology):
    labels = read_labels("cell-ontology", ontology)

    assert len(labels) > 3000
    assert not UNINFORMATIVE_TERMS & set(labels.term_ids)


def test_definitions_come_from_the_ontology(ontology):
    assert "T cell receptor" in read_labels(["T cell"], ontology).descriptions[0]


def test_a_typo_is_free_text_and_the_nearest_term_is_offered(ontology):
    labels = read_labels(["hepatocite"], ontology)

    assert labels.term_ids == (None,)
    assert "'hepatocyte'" in labels.notes[0]


def test_two_names_of_one_term_are_pointed_out(ontology):
    labels = read_labels(["T cell", "T lymphocyte"], ontology)

    assert any("same Cell Ontology term" in note for note in labels.notes)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        pytest.param([], "No labels", id="empty list"),
        pytest.param({}, "No labels", id="empty dict"),
        pytest.param(["B cell", " "], "Label 2", id="blank label"),
        pytest.param(["B cell", 3], "Label 2", id="number"),
        pytest.param(["B cell", "T cell", "B cell"], "given 2 times", id="duplicate"),
        pytest.param(["B cell", "CL:9999999"], "CL:9999999, is no term of the Cell Ontology", id="no such id"),
        pytest.param(["unknown"], "names cells without a call", id="unknown alone"),
        pytest.param("no/such/file.txt", "no label file", id="missing file"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_with_the_reason(labels, reason, ontology):
    with pytest.raises(UserError, match=reason):
        read_labels(labels, ontology)


def test_a_binary_label_file_is_refused(tmp_path, ontology):
    file = tmp_path / "labels.txt"
    file.write_bytes(b"\xff\xfe\x00\x80")

    with pytest.raises(UserError, match="UTF-8"):
        read_labels(file, ontology)


def test_an_empty_label_file_is_refused_by_name(tmp_path, ontology):
    file = tmp_path / "labels.txt"
    file.write_text("\n\n")

    with pytest.raises(UserError, match=r"labels\.txt"):
        read_labels(file, ontology)


def test_ancestors_come_nearest_first(small_ontology):
    assert small_ontology.ancestors("CL:4") == ["CL:2", "CL:1"]


def test_a_synonym_of_two_terms_names_neither(small_ontology):
    assert small_ontology.find("lymph thing") is None
    assert small_ontology.find("t LYMPHOCYTES").id == "CL:2"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        pytest.param("killer cell", "natural killer cell", id="a word left out"),
        pytest.param("natural kiler cell", "natural killer cell", id="misspelt"),
        pytest.param("CD333 mast cell", None, id="another number is another cell"),
    ],
)
def test_the_suggestion_is_what_was_meant(ontology, written, meant):
    assert ontology.suggest(written) == [meant] * (meant is not None)


def test_a_replaced_id_finds_its_successor(small_ontology):
    assert small_ontology.find("CL:9").label == "T cell"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param("CD8+ T cells", "CD8-positive T cell", id="plus"),
        pytest.param("NK-Cell", "nk cell", id="hyphen"),
        pytest.param("CD4- cell", "CD4-negative cell", id="minus"),
    ],
)
def test_spellings_that_do_not_matter_are_one_name(left, right):
    assert plain_name(left) == plain_name(right)
