"""The words in which cells are asked for in training."""

import numpy as np
import pytest

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, Ontology
from scmmgpt.training.mini.request_texts import RequestTexts

ROW = {
    "term_id": "CL:0000236",
    "tissue": "pbmcs",
    "organism": "Homo sapiens",
    "stage": "Adult",
    "study": "COVID_PBMCs",
}


@pytest.fixture(scope="module")
def wording():
    ontology = Ontology.read(EMBEDDED_MODEL / FILE_NAME)
    return RequestTexts(ontology, {"pbmcs": "blood"}, {"COVID": "COVID-19"})


def texts(wording, **changed):
    facts, generator = wording.facts({**ROW, **changed}), np.random.default_rng(0)
    return [wording.draw(facts, generator) for _ in range(300)]


def test_every_part_is_said_by_some_and_left_out_by_others(wording):
    drawn = texts(wording)

    for words in ("blood", "human", "COVID-19"):
        assert 0.2 < np.mean([words.lower() in text.lower() for text in drawn]) < 0.95
    assert len(set(drawn)) > 100


def test_another_organism_is_nearly_always_said(wording):
    drawn = texts(wording, organism="Mus musculus", study="x")

    assert np.mean([("mouse" in text or "murine" in text) for text in drawn]) > 0.95
    assert not any("human" in text for text in drawn)


def test_stages_have_words_of_their_own(wording):
    drawn = texts(wording, stage="Fetal E14.5", study="x")

    assert any("embryonic" in text for text in drawn)
    assert any("fetal" in text for text in drawn)
    assert not any("adult" in text for text in drawn)


def test_a_tissue_name_that_says_nothing_is_not_said():
    ontology = Ontology.read(EMBEDDED_MODEL / FILE_NAME)

    assert RequestTexts(ontology, {"pbmcs": ""}).facts(ROW)["tissue"] == ""
