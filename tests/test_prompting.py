"""Labels, metadata and definitions become text in one place, the same for training and evaluation."""

import math

import pytest

from scmmgpt.processing import prompting_scmmgpt as prompting
from scmmgpt.processing.prompting_scmmgpt import (
    annotation_question,
    cell_request,
    cell_text,
    conversation,
    description_question,
    is_missing,
    label_text,
    metadata_fields,
    questions,
)

CELL = {
    "cell_type": "alveolar macrophage",
    "tissue": "lung",
    "disease": "COVID-19",
    "assay": "10x 3' v3",
    "sex": "female",
    "development_stage": "adult stage",
    "donor_id": "D1",
}


def test_a_description_mentions_every_field_that_is_known():
    text = cell_text(CELL)

    for word in ("alveolar macrophage", "lung", "COVID-19", "10x 3' v3", "female", "adult stage"):
        assert word in text


@pytest.mark.parametrize("field", CELL)
@pytest.mark.parametrize("nothing", [None, "unknown", "", "nan", float("nan"), "NA"])
def test_a_missing_field_is_dropped_without_a_trace(field, nothing):
    with_nothing = cell_text({**CELL, field: nothing})
    without = cell_text({name: value for name, value in CELL.items() if name != field})

    assert with_nothing == without
    assert "unknown" not in with_nothing
    assert "  " not in with_nothing
    assert with_nothing.endswith(".")


def test_a_healthy_donor_is_called_so():
    assert cell_text({"cell_type": "B cell", "disease": "normal"}) == "This cell is a B cell of a healthy donor."


@pytest.mark.parametrize(
    ("noun", "text"),
    [
        ("erythrocyte", "This cell is an erythrocyte."),
        ("B cell", "This cell is a B cell."),
        ("unipolar brush cell", "This cell is a unipolar brush cell."),
        ("NK cell", "This cell is an NK cell."),
        ("CD4-positive, alpha-beta T cell", "This cell is a CD4-positive, alpha-beta T cell."),
    ],
)
def test_a_type_has_the_right_article(noun, text):
    assert label_text(noun) == text


def test_a_definition_follows_as_a_sentence():
    assert label_text("B cell", "A lymphocyte of B lineage").endswith(" A lymphocyte of B lineage.")


@pytest.mark.parametrize("definition", [None, "", float("nan")])
def test_no_definition_leaves_the_label_alone(definition):
    assert label_text("B cell", definition) == label_text("B cell")


def test_there_are_several_paraphrases_and_all_say_the_same():
    texts = {cell_text(CELL, paraphrase=number) for number in range(len(prompting.DESCRIPTIONS))}

    assert len(texts) == len(prompting.DESCRIPTIONS) >= 4
    assert all("alveolar macrophage" in text and "lung" in text for text in texts)


def test_paraphrases_come_round_again():
    assert description_question(len(prompting.DESCRIPTION_QUESTIONS)) == description_question(0)


def test_the_label_text_is_the_cell_text_of_its_type():
    """What a cell is compared with at evaluation is what it was trained with."""
    assert label_text("B cell", "A lymphocyte.") == cell_text({"cell_type": "B cell"}, "A lymphocyte.")


def test_a_cell_without_a_type_can_be_described():
    assert "lung" in cell_text({"tissue": "lung"})


def test_other_names_of_columns_are_understood():
    assert metadata_fields({"celltype": "B cell", "organ": "blood", "gender": "male"}) == {
        "cell_type": "B cell",
        "tissue": "blood",
        "sex": "male",
    }


def test_a_question_names_candidates_and_tissue():
    question = annotation_question(["B cell", "T cell"], tissue="blood")

    assert "blood" in question
    assert question.endswith("Choose one of: B cell; T cell.")


def test_every_known_field_gives_a_question_with_its_answer():
    answers = dict(questions(CELL, "A phagocyte."))

    assert answers["What type of cell is this?"] == "alveolar macrophage"
    assert answers["Which tissue does this cell come from?"] == "Lung."
    assert answers["Is this cell from a healthy donor or from one with a disease?"] == "A donor with COVID-19."
    assert answers["Describe this cell."] == cell_text(CELL, "A phagocyte.")


def test_unknown_fields_are_not_asked_about():
    assert [question for question, _ in questions({"tissue": "lung"})] == [
        "Describe this cell.",
        "Which tissue does this cell come from?",
    ]


def test_a_request_asks_for_cells_in_the_words_of_a_description():
    assert cell_request({"cell_type": "B cell", "tissue": "blood"}) == "Generate a B cell from blood."


def test_a_conversation_puts_the_cells_first_and_the_answer_last():
    messages = conversation("What is it?", "A B cell.", num_cells=2)

    assert [block["type"] for block in messages[0]["content"]] == ["cell", "cell", "text"]
    assert messages[1] == {"role": "assistant", "content": [{"type": "text", "text": "A B cell."}]}
    assert len(conversation("What is it?")) == 1


@pytest.mark.parametrize(("value", "missing"), [(0, False), ("0", False), (None, True), (math.nan, True)])
def test_zero_is_a_value(value, missing):
    assert is_missing(value) is missing
