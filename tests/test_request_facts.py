"""What texts say, as numbers: which values facts have, what a text about them means, and which states go with them."""

import numpy as np
import pytest

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, Ontology
from scmmgpt.training.mini.request_facts import FACTS, FactTable, kinds_of
from scmmgpt.training.mini.request_texts import RequestTexts

B_CELL, T_CELL, CD4, CD8, HEPATOCYTE = "CL:0000236", "CL:0000084", "CL:0000624", "CL:0000625", "CL:0000182"
ROWS = [
    (B_CELL, "human", "blood", "", ""),
    (B_CELL, "human", "spleen", "", ""),
    (B_CELL, "mouse", "spleen", "", ""),
    (CD4, "human", "blood", "", ""),
    (CD4, "human", "blood", "", "COVID-19"),
    (CD8, "human", "blood", "Fetal", ""),
    (CD8, "mouse", "spleen", "", ""),
]


@pytest.fixture(scope="module")
def ontology():
    return Ontology.read(EMBEDDED_MODEL / FILE_NAME)


@pytest.fixture(scope="module")
def table(ontology):
    return FactTable.of([dict(zip(FACTS, row, strict=True)) for row in ROWS], ontology)


def said(table, target):
    """The values that a target holds, fact by fact."""
    parts = np.split(target, np.cumsum(table.sizes)[:-1])
    return [
        {name for name, share in zip(values, part, strict=True) if share}
        for values, part in zip(table.values, parts, strict=True)
    ]


def test_nothing_said_is_the_first_value_of_tissue_stage_and_disease(table):
    assert [values[0] for values in table.values[2:]] == ["", "", ""]
    assert table.sizes == [3, 2, 3, 2, 2]


def test_a_text_means_what_it_says_and_nothing_of_what_it_leaves_out(table):
    facts = dict(zip(FACTS, ROWS[4], strict=True))

    assert said(table, table.target(facts, "a T cell from blood of a patient with COVID-19")) == [
        {CD4},
        {"human"},
        {"blood"},
        {""},
        {"COVID-19"},
    ]
    assert said(table, table.target(facts, "a T cell"))[2:] == [{""}, {""}, {""}]


def test_a_general_type_means_its_kinds_and_an_unknown_one_its_kin(table, ontology):
    assert table.kinds[T_CELL] == [CD4, CD8]
    assert table.kinds["CL:0000905"] == [CD4]  # effector memory CD4-positive, alpha-beta T cell
    target = table.target({**dict(zip(FACTS, ROWS[0], strict=True)), "term_id": T_CELL}, "T cells")
    assert said(table, target)[0] == {CD4, CD8}
    assert target.sum() == pytest.approx(5)
    assert HEPATOCYTE not in kinds_of([B_CELL], ontology)


def test_populations_have_their_states_and_types_the_mean_of_theirs(table):
    states = np.random.default_rng(0).normal(size=(len(ROWS), 4))
    arrays = table.arrays(states)

    home, facts, found = (arrays[name] for name in ("type_states", "population_facts", "population_states"))
    b_cell = table.values[0].index(B_CELL)
    np.testing.assert_allclose(home[b_cell, 0], states[:2].mean(0), atol=1e-6)
    assert facts.shape == (7, sum(table.sizes))
    for row, state in zip(ROWS, states, strict=True):
        np.testing.assert_allclose(found[table.populations.index(row)], state, atol=1e-6)
    assert not np.isnan(home).any()


def test_what_a_type_is_and_what_a_place_does_add_up_to_pairs_that_were_never_seen(ontology):
    random = np.random.default_rng(0)
    terms, tissues = sorted(ontology.terms)[200:212], ["blood", "lung", "skin", "spleen", "liver"]
    of_type, of_tissue = random.normal(size=(len(terms), 3)), random.normal(size=(len(tissues), 3))
    pairs = [(i, j) for i in range(len(terms)) for j in range(len(tissues)) if (i, j) != (0, 0)]
    rows = [dict(zip(FACTS, (terms[i], "human", tissues[j], "", ""), strict=True)) for i, j in pairs]
    table = FactTable.of(rows, ontology)

    arrays = table.arrays(np.array([of_type[i] + of_tissue[j] for i, j in pairs]))

    type_place = table.values[0].index(terms[0])
    level, anywhere = (arrays[name][type_place, 0] for name in ("type_levels", "type_states"))
    others = [arrays["population_states"][n] - arrays["type_levels"][table.values[0].index(one[0]), 0]
              for n, one in enumerate(table.populations) if one[2] == tissues[0]]  # fmt: skip
    moved, truth = level + np.mean(others, axis=0) - anywhere, of_type[0] + of_tissue[0] - anywhere
    assert np.linalg.norm(moved - truth) < 0.5 * np.linalg.norm(truth)


def test_every_population_answers_to_a_text_without_a_tissue(table):
    facts = table.arrays(np.ones((len(ROWS), 2)))["population_facts"]

    first_tissue = sum(table.sizes[:2])
    assert facts[:, first_tissue].all()


def test_texts_are_drawn_about_known_and_other_types(table, ontology):
    wording, generator = RequestTexts(ontology), np.random.default_rng(0)
    drawn = [table.draw(generator) for _ in range(400)]

    assert 0.05 < np.mean([one["term_id"] not in table.values[0] for one in drawn]) < 0.3
    for one in drawn[:50]:
        target = table.target(one, wording.draw(one, generator))
        assert target.sum() == pytest.approx(5)


def test_texts_are_drawn_about_types_where_no_profile_has_them(table):
    generator = np.random.default_rng(0)
    drawn = [tuple(table.draw(generator).values()) for _ in range(400)]

    of_profiled = [one for one in drawn if one[0] in table.values[0]]
    assert 0.05 < np.mean([one not in table.populations for one in of_profiled]) < 0.5


def test_the_tissues_of_each_type_are_told(table):
    assert table.tissues_of_types() == {B_CELL: ["blood", "spleen"], CD4: ["blood"], CD8: ["blood", "spleen"]}
