"""Numbers about descriptions: overlap with a reference text, and whether what they say of a cell is true.

Overlap uses sacrebleu, rouge-score and nltk (extra `eval`). Truth needs no reference text and is the number to lead
with: a text can overlap a lot and name the wrong type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scmmgpt.processing.ontology_scmmgpt import plain_name

from .metrics_generation import maximum_mean_discrepancy
from .type_tree import TypeTree


def bleu(texts: Sequence[str], references: Sequence[str], max_order: int) -> float:
    """Corpus BLEU up to n-grams of `max_order` words, 0..1 (sacrebleu, tokenizer 13a)."""
    from sacrebleu.metrics import BLEU

    return BLEU(max_ngram_order=max_order).corpus_score(list(texts), [list(references)]).score / 100


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming (rouge-score)."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}


def meteor_exact_stem(texts: Sequence[str], references: Sequence[str]) -> float:
    """METEOR with exact and stemmed matches only: no synonyms, so not to be compared with standard METEOR.

    Standard METEOR asks WordNet for synonyms, which is a download; nltk passes when every word matches exactly and
    raises otherwise.
    """
    from nltk.translate.meteor_score import single_meteor_score

    return float(
        np.mean(
            [
                single_meteor_score(_words(reference), _words(text), wordnet=_NoSynonyms())
                for text, reference in zip(texts, references, strict=True)
            ]
        )
    )


def embedding_discrepancy(text_embeds: np.ndarray, reference_embeds: np.ndarray) -> float:
    """How far the descriptions as a set lie from the reference texts as a set, in a text encoder's space.

    The squared maximum mean discrepancy (see `maximum_mean_discrepancy`) between the rows of the two matrices, each
    row brought to unit length: 0 for two samples of one distribution, near 1 for sets that share nothing. State the
    encoder beside it. "Textual discrepancy" in the paper is not defined there; this is not claimed to be it.
    """
    from sklearn.preprocessing import normalize

    return maximum_mean_discrepancy(normalize(text_embeds), normalize(reference_embeds))


# Names in UBERON that ordinary sentences use without meaning a tissue.
_NO_TISSUES = {"tissue", "organ", "system", "surface", "capillary", "vessel", "gland", "epithelium", "body", "tube"}


@dataclass
class Facts:
    """What a description claims: ids of cell types, names of tissues, genes."""

    types: set[str] = field(default_factory=set)
    tissues: set[str] = field(default_factory=set)
    genes: set[str] = field(default_factory=set)


class FactFinder:
    """Finds the types, tissues and genes that a text names.

    Types and tissues are the longest names of the ontologies found from left to right, so "CD4-positive, alpha-beta T
    cell" is one fact and not also "T cell". A gene is a word of the text that is, letter for letter, one of `genes`
    and has two capitals or digits, so that "was" and "Cell" are none.
    """

    _MOST_WORDS = 12  # in one name

    def __init__(self, tree: TypeTree, genes: Sequence[str]):
        self.tree = tree
        self.genes = {gene for gene in genes if len(re.findall(r"[A-Z0-9]", gene)) > 1}
        self._tissues = {plain_name(name): name.lower() for name in tree.tissues if name not in _NO_TISSUES}

    def find(self, text: str) -> Facts:
        """The facts that `text` claims."""
        facts = Facts(genes=self.genes & set(re.findall(r"\w[\w.\-]*\w", text)))
        words = plain_name(text).split()
        start = 0
        while start < len(words):
            start += self._note_name_at(words, start, facts)
        return facts

    def _note_name_at(self, words: list[str], start: int, facts: Facts) -> int:
        """Note the longest name that starts here; return how many words to move on."""
        for stop in range(min(len(words), start + self._MOST_WORDS), start, -1):
            name = " ".join(words[start:stop])
            term = self.tree.term(name) if name != "cell" else None
            if term is not None:
                facts.types.add(term.id)
                return stop - start
            if name in self._tissues:
                facts.tissues.add(self._tissues[name])
                return stop - start
        return 1


def fact_precision(
    claims: Sequence[Facts],
    *,
    types: Sequence[str],
    tissues: Sequence[str] | None,
    expressed: Sequence[set[str]],
    tree: TypeTree,
) -> dict[str, float]:
    """Share of claimed facts that hold for their cell, by kind, with the mean number of claims of that kind.

    A type holds if it is the cell's type or an ancestor of it (`type_exact_precision`: the type itself); a tissue if
    it is the cell's tissue, word for word; a gene if the cell has a count of it. NaN where nothing was claimed.
    Precision rewards silence, so the numbers of claims belong beside it.
    """
    held: dict[str, list[bool]] = {"type": [], "type_exact": [], "tissue": [], "gene": []}
    for i, claim in enumerate(claims):
        own = tree.find(types[i])
        above = tree.ancestors(types[i])
        held["type"] += [claimed == own or claimed in above for claimed in claim.types]
        held["type_exact"] += [claimed == own for claimed in claim.types]
        held["gene"] += [gene in expressed[i] for gene in claim.genes]
        if tissues is not None:
            held["tissue"] += [claimed == str(tissues[i]).lower() for claimed in claim.tissues]
    scores = {f"{kind}_precision": _mean(kept) for kind, kept in held.items()}
    scores["fact_precision"] = _mean(held["type"] + held["tissue"] + held["gene"])
    for kind in ("type", "tissue", "gene"):
        scores[f"{kind}s_claimed"] = len(held[kind]) / max(len(claims), 1)
    return scores


class _NoSynonyms:
    def synsets(self, *_) -> list:
        return []


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _mean(values: list[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")
