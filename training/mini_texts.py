"""What the embedded model reads: many wordings of each cell type, markers counted from profiles, a small tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from scmmgpt.ontology import UNINFORMATIVE_TERMS, Ontology, Term
from scmmgpt.processing.prompting_scmmgpt import DESCRIPTIONS, cell_text

from .expression import TARGET_SUM
from .profiles import Profiles

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
FURTHER_TOKENS = ("<cell>", "<|system|>", "<|user|>", "<|assistant|>")
NUM_MARKERS = 25
NUM_NAMED_MARKERS = 6


@dataclass
class TypeTexts:
    """Draws a wording of a cell type: name or synonym, with or without definition, parents, tissue and markers.

    Attributes
    ----------
    markers
        Genes by which each type of the training profiles stands out, most telling first.
    marker_rate
        Share of texts that name some of them.
    """

    ontology: Ontology
    markers: dict[str, list[str]] = field(default_factory=dict)
    marker_rate: float = 0.35
    tissue_rate: float = 0.15

    def draw(self, term_id: str, generator: np.random.Generator, tissue: str | None = None) -> str:
        """A new text about the type."""
        place = {"tissue": tissue} if tissue and generator.random() < self.tissue_rate else {}
        text = self._wording(self.ontology.terms[term_id], place, generator)
        markers = self.markers.get(term_id)
        if markers and generator.random() < self.marker_rate:
            chosen = generator.choice(markers, min(NUM_NAMED_MARKERS, len(markers)), replace=False)
            about = text if generator.random() < 0.7 else ""
            text = f"{about} Markers: {', '.join(chosen)}.".strip()
        return text

    def _wording(self, term: Term, place: dict[str, str], generator: np.random.Generator) -> str:
        name = term.label
        if term.synonyms and generator.random() < 0.4:
            name = str(generator.choice(term.synonyms))
        # Half the texts in the plain wording, which annotation uses; the others in all.
        paraphrase = 0 if generator.random() < 0.5 else int(generator.integers(len(DESCRIPTIONS)))
        kind = generator.random()
        if kind < 0.15:
            return f"{name}s" if generator.random() < 0.3 else name
        if kind < 0.35 or not term.definition:
            return cell_text({"cell_type": name, **place}, paraphrase=paraphrase)
        if kind < 0.65:
            return cell_text({"cell_type": name, **place}, term.definition, paraphrase)
        if kind < 0.8:
            return without_name(term)
        parents = [self.ontology.terms[parent].label for parent in term.parents if parent in self.ontology.terms]
        kinship = f", a kind of {' and '.join(parents[:2])}" if parents else ""
        return cell_text({"cell_type": f"{name}{kinship}", **place}, paraphrase=paraphrase)

    @property
    def readable_terms(self) -> list[str]:
        """Types about which there is something to say, in order of id."""
        return sorted(
            key for key, term in self.ontology.terms.items() if term.definition and key not in UNINFORMATIVE_TERMS
        )


def without_name(term: Term) -> str:
    """The definition in which nothing spells the name of the type."""
    text = term.definition
    for name in sorted([term.label, *term.synonyms], key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?:s|es)?(?!\w)", "this cell", text, flags=re.IGNORECASE)
    return text


def marker_genes(profiles: Profiles, genes: Sequence[str]) -> dict[str, list[str]]:
    """For each type the genes whose log expression stands out most among all types, by standard deviations."""
    terms = profiles.table.term_id.to_numpy()
    log_share = np.log1p(TARGET_SUM * profiles.share)
    whole = profiles.measured.sum(1) >= profiles.measured.shape[1] // 3
    known = list(np.unique(terms[whole]))
    mean = np.array([log_share[whole & (terms == term)].mean(0) for term in known])
    outstanding = (mean - mean.mean(0)) / (mean.std(0) + 0.3)
    order = np.argsort(-outstanding, axis=1)[:, :NUM_MARKERS]
    return {term: [genes[i] for i in row] for term, row in zip(known, order, strict=True)}


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the texts, shared by the text branch and the decoder; `<bos>` begins every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS.values(), *FURTHER_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    )
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side="left",
        additional_special_tokens=list(FURTHER_TOKENS),
        **SPECIAL_TOKENS,
    )


def tokenizer_corpus(ontology: Ontology, genes: Sequence[str]) -> list[str]:
    """Every name and definition of the ontology, and the genes' names."""
    texts = [
        f"{term.label}. {term.definition} {', '.join(term.synonyms)}" for _, term in sorted(ontology.terms.items())
    ]
    return texts + [", ".join(genes[i : i + 50]) for i in range(0, len(genes), 50)]
