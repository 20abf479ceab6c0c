"""Metrics of descriptions: overlap against hand-worked cases and other code, truth against small claims."""

import numpy as np
import pytest

from scmmgpt.training.evaluation import metrics_text
from scmmgpt.training.evaluation.type_tree import TypeTree

REFERENCE = "the cat sat on the mat"
OTHER = "a dog runs fast"


@pytest.fixture(scope="module")
def finder():
    genes = ["CD3D", "MS4A1", "NKG7", "was", "IMPACT", "Cd8a", "A"]
    return metrics_text.FactFinder(TypeTree.load(), genes)


def test_bleu_of_a_hand_worked_case():
    pytest.importorskip("sacrebleu")
    text = "the cat sat mat"  # 4 of 4 words, 2 of 3 pairs, 4 words against 6

    score = metrics_text.bleu([text], [REFERENCE], max_order=2)

    assert score == pytest.approx(np.sqrt(1 * 2 / 3) * np.exp(1 - 6 / 4))


def test_bleu_agrees_with_nltk_over_a_corpus():
    pytest.importorskip("sacrebleu")
    bleu_score = pytest.importorskip("nltk.translate.bleu_score")
    texts = ["the cat sat on a mat today", "there is a quick dog in the park"]
    references = ["the cat sat on the mat today", "there is a quick brown dog in the park"]

    ours = metrics_text.bleu(texts, references, max_order=4)

    theirs = bleu_score.corpus_bleu([[r.split()] for r in references], [t.split() for t in texts])
    assert ours == pytest.approx(theirs)


def test_rouge_of_a_hand_worked_case():
    pytest.importorskip("rouge_score")

    scores = metrics_text.rouge(["the cat mat"], [REFERENCE])

    assert scores["rouge1"] == pytest.approx(2 * 1 * 0.5 / 1.5)  # 3 of 3 and 3 of 6
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 5) / (1 / 2 + 1 / 5))
    assert scores["rougeL"] == pytest.approx(2 * 1 * 0.5 / 1.5)


def test_meteor_without_wordnet_works_when_words_differ_and_matches_stems():
    pytest.importorskip("nltk")

    exact = metrics_text.meteor_exact_stem([REFERENCE], [REFERENCE])
    stem = metrics_text.meteor_exact_stem(["cells expressing markers"], ["cell expresses marker"])
    nothing = metrics_text.meteor_exact_stem([OTHER], ["whole tissue"])

    assert exact == pytest.approx(1 - 0.5 * (1 / 6) ** 3)  # one chunk of six matches
    assert stem == pytest.approx(1 - 0.5 * (1 / 3) ** 3)
    assert nothing == 0


def test_perfect_texts_overlap_fully_and_foreign_ones_hardly():
    pytest.importorskip("sacrebleu")

    assert metrics_text.bleu([REFERENCE], [REFERENCE], max_order=4) == pytest.approx(1)
    assert metrics_text.bleu([OTHER], [REFERENCE], max_order=4) < 0.1


def test_the_embedding_discrepancy_is_zero_for_one_distribution_and_large_for_two():
    generator = np.random.default_rng(0)
    references = generator.normal(size=(300, 16)) + 3 * np.eye(16)[0]
    same = generator.normal(size=(300, 16)) + 3 * np.eye(16)[0]
    other = generator.normal(size=(300, 16)) - 3 * np.eye(16)[0]

    assert metrics_text.embedding_discrepancy(same, references) == pytest.approx(0, abs=0.02)
    assert metrics_text.embedding_discrepancy(other, references) > 0.5
    assert metrics_text.embedding_discrepancy(100 * same, references) == pytest.approx(
        metrics_text.embedding_discrepancy(same, references)
    )


def test_the_longest_name_of_a_type_is_the_fact(finder):
    facts = finder.find("This is a CD4-positive, alpha-beta T cell from human blood.")

    assert facts.types == {"CL:0000624"}
    assert facts.tissues == {"blood"}


def test_plurals_and_synonyms_name_types_and_the_bare_word_cell_does_not(finder):
    assert finder.find("These B cells and hepatocytes are cells.").types == {"CL:0000236", "CL:0000182"}
    assert finder.find("A pancreatic B cell.").types == {finder.tree.find("type B pancreatic cell")}


def test_genes_are_words_spelt_exactly_and_ordinary_words_are_none(finder):
    facts = finder.find("It was an IMPACT of CD3D, MS4A1-high; cd3d and NKG7x do not count, A neither.")

    assert facts.genes == {"CD3D", "IMPACT"}


def test_fact_precision_of_a_hand_worked_case(finder):
    claims = [
        finder.find("A T cell in blood that expresses CD3D and MS4A1."),  # ancestor right, tissue right, one gene
        finder.find("A hepatocyte in the liver that expresses NKG7."),  # all wrong
        finder.find("Nothing is said."),
    ]

    scores = metrics_text.fact_precision(
        claims,
        types=["CD4-positive, alpha-beta T cell"] * 3,
        tissues=["blood"] * 3,
        expressed=[{"CD3D"}, {"CD3D"}, set()],
        tree=finder.tree,
    )

    assert scores["type_precision"] == 0.5
    assert scores["type_exact_precision"] == 0
    assert scores["tissue_precision"] == 0.5
    assert scores["gene_precision"] == pytest.approx(1 / 3)
    assert scores["fact_precision"] == pytest.approx(3 / 7)
    assert scores["genes_claimed"] == 1


def test_silence_has_no_precision_rather_than_a_perfect_one(finder):
    scores = metrics_text.fact_precision(
        [finder.find("")], types=["B cell"], tissues=None, expressed=[set()], tree=finder.tree
    )

    assert np.isnan(scores["fact_precision"])
    assert scores["types_claimed"] == 0
