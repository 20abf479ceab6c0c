"""Groups of cells as a language model with contexts is asked about them: calls, contexts, prompts, and checked answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .cell_context import Groups, origin, read_groups
from .claims import CONTRADICTED, TYPE, CellFacts, CheckedText, ClaimReader
from .embedding import run_chunk, token_batch
from .errors import UserError
from .processing.label_sets_scmmgpt import BETWEEN
from .processing.labels_scmmgpt import UNKNOWN
from .processing.ontology_scmmgpt import UNINFORMATIVE_TERMS
from .processing.prompting_scmmgpt import label_text, reading, with_article
from .scoring import call_study
from .talks import Talks

if TYPE_CHECKING:
    import torch

    from .loading import LoadedModel
    from .verb import Verb

GROUPS_AT_ONCE = 8
CELLS_OF_GROUP, CELLS_AT_ONCE = 16, 256
MAX_QUESTION_LETTERS = 4_000
WHAT_IS_IT, WHAT_ARE_THEY = "What type of cell is this?", "What are these cells?"
DESCRIBE_BY = ("Which genes speak for that?", "What does such a cell do?")
NO_QUESTION = "I did not understand the question. You can ask for the type, the genes or the function of these cells."
_WHAT_IS_IT = re.compile(
    r"^\W*(?:(?:what|which)(?: (?:cell )?(?:types?|kinds?)(?: of cells?)?)? (?:is|are) (?:this|these|they|it|the)(?: cells?)?|"
    r"(?:name|identify)(?: the (?:cell )?types?(?: of)?)? ?(?:this|these|the)? ?cells?)\W*$",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[a-z]{2,}", re.IGNORECASE)


def is_question(text: str) -> bool:
    """Whether there is anything to answer: a question mark behind a word, or a few words."""
    words = _WORDS.findall(text)
    return bool(words) and ("?" in text or len(words) > 1 or words[0].lower() in ("describe", "compare", "why"))


def asks_for_type(question: str) -> bool:
    """Whether a question is for the type and nothing else."""
    return bool(_WHAT_IS_IT.search(question))


def plain_question(loaded: LoadedModel, question: str) -> str:
    """A question without the marks of the chat template, refused where it is far longer than any question."""
    if len(question) > MAX_QUESTION_LETTERS:
        raise UserError(f"The question has {len(question)} letters; at most {MAX_QUESTION_LETTERS} are read.")
    for mark in loaded.processor.tokenizer.all_special_tokens:
        question = question.replace(mark, " ")
    return question


@dataclass
class ReadGroups:
    """Groups of cells with all that is asked and known about them.

    Attributes
    ----------
    names
        Of the groups.
    group_of_cell
        (cells,) -1 where a cell is in no group.
    labels, seconds, candidates
        What each group is called, its runner-up, and the labels that cannot be told from it.
    verb, typical
        Whence the cells come, and which of each group stand for it.
    """

    loaded: LoadedModel
    names: list[str]
    group_of_cell: np.ndarray
    groups: Groups
    embeds: np.ndarray
    labels: list[str]
    seconds: list[str]
    candidates: list[tuple[str, ...]]
    verb: Verb
    typical: list[np.ndarray]
    gene_account: dict[str, Any]
    _chosen: dict[int, str] = field(default_factory=dict)

    @cached_property
    def contexts(self) -> list[str]:
        return [self.groups.context(group) for group in range(len(self.names))]

    @cached_property
    def facts(self) -> list[CellFacts]:
        return [
            replace(self.groups.facts(group, label, second, others), type_percentile=self._percentile_of(group))
            for group, (label, second, others) in enumerate(
                zip(self.labels, self.seconds, self.candidates, strict=True)
            )
        ]

    @cached_property
    def tokens(self) -> torch.Tensor:
        """(groups, Q, H) what the language model reads each group as: the mean over its most typical cells."""
        return _mean_tokens(self.verb, self.typical)

    @property
    def read_as(self) -> list[str]:
        """What the language model reads each group as, among the types that the calls leave open; "" where nothing is."""
        return self._labels_of(range(len(self.names)))

    def _labels_of(self, groups: Sequence[int]) -> list[str]:
        for some in self.at_once([group for group in groups if group not in self._chosen]):
            self.choose(some, self.talks(some))
        return [self._chosen[group] for group in groups]

    def at_once(self, groups: Sequence[int]) -> list[list[int]]:
        """So many groups together as the language model is asked about at once; unclear ones by themselves."""
        clear = [group for group in groups if self._open_types(group)]
        unclear = [group for group in groups if not self._open_types(group)]
        starts = range(0, len(groups), GROUPS_AT_ONCE)
        batches = (kind[start : start + GROUPS_AT_ONCE] for kind in (clear, unclear) for start in starts)
        return [batch for batch in batches if batch]

    def talks(self, groups: Sequence[int]) -> Talks:
        """Talks about each of some groups, before anything was said."""
        return Talks(self.loaded, self.tokens[list(groups)])

    def choose(self, groups: Sequence[int], talks: Talks) -> None:
        """Decide what some groups are read as; the talks about them begin with that choice."""
        open_types = [self._open_types(group) for group in groups]
        found = [types[0] if types else "" for types in open_types]
        if not set(groups) <= self._chosen.keys() and any(len(types) > 1 for types in open_types):
            prompts = [
                self.render(reading(_choice(types), [self.contexts[group]]))
                for group, types in zip(groups, open_types, strict=True)
            ]
            found = talks.choices(prompts, open_types)
        for group, label in zip(groups, found, strict=True):
            self._chosen.setdefault(group, label)

    def _open_types(self, group: int) -> list[str]:
        if self.labels[group] == UNKNOWN:
            return []
        others = {self.seconds[group], *self.candidates[group]}
        terms = {label: self.loaded.ontology.find(label) for label in others if label}
        telling = {label for label, term in terms.items() if term and term.id not in UNINFORMATIVE_TERMS}
        return sorted({self.labels[group], *telling})

    def named(self, groups: Sequence[int]) -> str:
        """The sentence that says what groups were read as; "" where one of them is unclear."""
        names = [with_article(label) for label in self._labels_of(groups) if label]
        if len(names) < len(groups):
            return ""
        if len(names) == 1:
            return f"This is {names[0]}."
        text = "; ".join(f"cell {number} is {name}" for number, name in enumerate(names, 1))
        return f"{text[:1].upper()}{text[1:]}."

    def opening(self, groups: Sequence[int]) -> list[dict[str, Any]]:
        """Messages before the first question: the cells with their contexts, and what they were read as."""
        answer = self.named(groups)
        if not answer:
            return []
        question, open_types = WHAT_ARE_THEY, self._open_types(groups[0])
        if len(groups) == 1:
            question = _choice(open_types)
            answer = self._labels_of(groups)[0] if len(open_types) > 1 else answer
        return [*reading(question, [self.contexts[group] for group in groups]), said(answer)]

    @cached_property
    def reader(self) -> ClaimReader:
        return ClaimReader(self.loaded.ontology, frozenset(self.loaded.processor.gene_tokenizer.genes))

    def render(self, messages: list[dict[str, Any]]) -> str:
        return self.loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _percentile_of(self, group: int):
        known: dict[str, float] = {}

        def percentile(label: str) -> float:
            if label not in known:
                known[label] = self._fit_percentile(group, label)
            return known[label]

        return percentile

    def _fit_percentile(self, group: int, label: str) -> float:
        """How many of a hundred cells of the study lie farther from the type's text than the group's mean does."""
        if not self.groups.is_compared:
            return float("nan")
        term = self.loaded.ontology.find(label)
        text = self.loaded.embed_texts([label_text(label, term.definition if term else None)])[0]
        fits = self.embeds @ text
        own = fits[self.group_of_cell == group].mean()
        return float(100 * ((fits < own).mean() + (fits == own).mean() / 2))


def _choice(types: Sequence[str]) -> str:
    """The question among some types, as the language model was taught it."""
    return f"{WHAT_IS_IT} Choose one of: {'; '.join(types)}." if len(types) > 1 else WHAT_IS_IT


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def read_cells(verb: Verb, names: list[str], group_of_cell: np.ndarray | None) -> ReadGroups:
    """Call all cells, and gather what is known of each group; None makes a group of each call."""
    study = call_study(verb)
    cells, calls, sets = study.cells, study.calls, study.sets.astype(str)
    called, seconds = calls.labels.astype(str), calls.second_choices.astype(str)
    if group_of_cell is None:
        found, group_of_cell = np.unique(called, return_inverse=True)
        names = [str(name) for name in found]
    members = [np.flatnonzero(group_of_cell == group) for group in range(len(names))]
    typical = [_nearest_to_mean(cells.embeds, rows) for rows in members]
    main = [_most_frequent(called[rows]) for rows in members]
    return ReadGroups(
        verb.loaded,
        [str(name) for name in names],
        group_of_cell,
        read_groups(study.run.gene_tokenizer, verb.cells, group_of_cell),
        cells.embeds,
        main,
        [_most_frequent(seconds[rows][seconds[rows] != label]) for rows, label in zip(members, main, strict=True)],
        [tuple(_most_frequent(sets[rows]).split(BETWEEN)) for rows in members],
        verb,
        typical,
        study.run.gene_account,
    )


def _most_frequent(values: np.ndarray) -> str:
    names, counts = np.unique(values, return_counts=True)
    return str(names[counts.argmax()]) if len(names) else ""


def _nearest_to_mean(embeds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A group's most typical cells; of a few like cells together less is chance than in any one of them."""
    nearness = embeds[rows] @ embeds[rows].mean(axis=0)
    return rows[np.argsort(-nearness, kind="stable")[:CELLS_OF_GROUP]]


def _mean_tokens(verb: Verb, rows_of_group: list[np.ndarray]) -> torch.Tensor:
    import torch

    loaded = verb.loaded
    rows, place = np.unique(np.concatenate(rows_of_group), return_inverse=True)
    tokens: list[np.ndarray] = []
    for start in range(0, len(rows), CELLS_AT_ONCE):
        features = loaded.processor.gene_tokenizer(
            verb.cells.rows(rows[start : start + CELLS_AT_ONCE]), return_tensors="np"
        )
        tokens.append(run_chunk(dict(features), token_batch(loaded), verb.batches, loaded.device)["tokens"])
    ends = np.cumsum([len(group) for group in rows_of_group])[:-1]
    means = np.stack([np.concatenate(tokens)[group].mean(axis=0) for group in np.split(place, ends)])
    return torch.from_numpy(means).to(loaded.device, loaded.model.dtype)


def answers(read: ReadGroups, questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """What the language model says of each group, unchecked: its answers to some questions, one after another."""
    texts: dict[int, str] = {}
    for groups in read.at_once(range(len(read.names))):
        asking = read.talks(groups)
        read.choose(groups, asking)
        talks = [read.opening([group]) for group in groups]
        for question in questions:
            talks = [
                [*talk, asked(question)] if talk else reading(question, [read.contexts[group]])
                for group, talk in zip(groups, talks, strict=True)
            ]
            new = asking.answers([read.render(talk) for talk in talks], max_new_tokens)
            talks = [[*talk, said(whole_sentences(text))] for talk, text in zip(talks, new, strict=True)]
        for group, talk in zip(groups, talks, strict=True):
            texts[group] = " ".join(dict.fromkeys(_answers_in(talk)[-len(questions) :]))
    return [texts[group] for group in range(len(read.names))]


def descriptions(read: ReadGroups, max_new_tokens: int) -> list[str]:
    """What each group was read as, where it is from, and what the language model says of its genes and its function."""
    told = answers(read, DESCRIBE_BY, max_new_tokens)
    return [
        f"This is {with_article(label)}{origin(read.groups.species, read.groups.tissues[group])}. {text}"
        if label
        else text
        for group, (label, text) in enumerate(zip(read.read_as, told, strict=True))
    ]


def _answers_in(talk: list[dict[str, Any]]) -> list[str]:
    return [message["content"][0]["text"] for message in talk if message["role"] == "assistant"]


def whole_sentences(text: str) -> str:
    """A text that was cut off, up to its last full stop; all of it where there is none."""
    end = max(text.rfind(mark) for mark in ".!?")
    return text[: end + 1] if end > 0 else text


def checked_answers(read: ReadGroups, texts: Sequence[str]) -> list[CheckedText]:
    """Each group's text, checked against it; unclear cells are not described."""
    return [check(read, text, group) for group, text in enumerate(texts)]


def check(read: ReadGroups, text: str, group: int) -> CheckedText:
    found = read.reader.check(whole_sentences(text), read.facts[group])
    if read.labels[group] == UNKNOWN:
        return replace(found, printed="I cannot tell what these cells are.")
    withheld = {claim.sentence for claim in found.claims if claim.verdict == CONTRADICTED}
    is_named = any(claim.kind == TYPE and claim.sentence not in withheld for claim in found.claims)
    called = f"called {read.labels[group]}"
    # Genes without a type would be half of a description: what was withheld is not.
    return (
        found if is_named or called in found.printed else replace(found, printed=f"This is {called}. {found.printed}")
    )


def claim_table(read: ReadGroups, checked: Sequence[CheckedText]) -> dict[str, np.ndarray]:
    """One row for each claim, in columns as `uns` keeps them."""
    rows = [
        (name, claim.sentence, claim.kind, claim.subject, claim.verdict, claim.percentile)
        for name, text in zip(read.names, checked, strict=True)
        for claim in text.claims
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    titles = ("group", "sentence", "kind", "subject", "verdict", "percentile")
    types = (object, np.int64, object, object, object, np.float64)
    return {title: np.array(column, dtype=kind) for title, column, kind in zip(titles, columns, types, strict=True)}
