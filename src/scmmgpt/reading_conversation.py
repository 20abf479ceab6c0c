"""Conversations in which every answer is checked against the cells before it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .claims import CheckedText, without_marks
from .conversation import MAX_NEW_TOKENS, Conversation
from .medical_advice import NO_ADVICE, asks_for_advice
from .processing.labels_scmmgpt import UNKNOWN
from .processing.prompting_scmmgpt import reading
from .reading import (
    NO_QUESTION,
    ReadGroups,
    asked,
    asks_for_type,
    is_question,
    plain_question,
    read_cells,
    said,
    whole_sentences,
)

if TYPE_CHECKING:
    from .verb import Verb

LIMITS = (
    "scmmgpt-chat is a small language model: it errs. What the cells contradict is withheld; what they cannot tell is "
    "general knowledge, and may be wrong. No medical advice."
)


@dataclass
class ReadingConversation(Conversation):
    """A conversation with contexts; `.last` is the last answer with its claims.

    Attributes
    ----------
    read
        The cells or clusters, with what is known of them.
    checked
        Whether what they contradict is withheld.
    """

    read: ReadGroups | None = None
    checked: bool = True
    last: CheckedText | None = None
    limits = LIMITS
    num_opening = 1

    def stream(self, question: str, *, max_new_tokens: int = MAX_NEW_TOKENS) -> Iterator[str]:
        """The answer, once it was written and checked."""
        assert self.read is not None
        question = plain_question(self.loaded, question)
        known = (
            NO_ADVICE
            if asks_for_advice(question)
            else ""
            if is_question(question) or not question.strip()
            else NO_QUESTION
        )
        if known:
            self.last = CheckedText(known, known)
            self._keep(question, known)
            yield known
            return
        if not self.messages and asks_for_type(question) and (told := self.read.named(range(len(self.names)))):
            self.last = self.read.reader.check(told, *self.read.facts)
            self.messages = [*reading(question, self.read.contexts), said(told)]
            yield self._shown()
            return
        answer = whole_sentences("".join(super().stream(question, max_new_tokens=max_new_tokens)).strip())
        self.last = self.read.reader.check(answer, *self.read.facts)
        if all(label == UNKNOWN for label in self.read.labels):
            self.last = replace(self.last, printed="I cannot tell what these cells are.")
        yield self._shown()

    def _shown(self) -> str:
        """The last answer as the person reads it; what was withheld must not be built upon, so the model reads it so, too."""
        assert self.last is not None
        shown = self.last.printed if self.checked else self.last.raw
        self.messages[-1] = said(without_marks(shown))
        return shown

    def _keep(self, question: str, answer: str) -> None:
        self.messages = [*self.messages, *self._question(question), said(answer)]

    def _question(self, question: str) -> list[dict[str, Any]]:
        assert self.read is not None
        if self.messages:
            return [asked(question)]
        opening = self.read.opening(range(len(self.names)))
        return [*opening, asked(question)] if opening else reading(question, self.read.contexts)

    def _about(self, first: dict) -> list[dict]:
        return first["content"][:-1]


def begin_reading(verb: Verb, names: list[str], groups: np.ndarray, *, checked: bool) -> ReadingConversation:
    """Call the cells, gather their contexts, and encode what stands for each cell or cluster once."""
    read = read_cells(verb, names, groups)
    return ReadingConversation(verb.loaded, names, read.tokens, read=read, checked=checked)
