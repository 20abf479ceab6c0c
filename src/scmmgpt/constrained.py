"""How probable each of some given answers is when a language model may write nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch

Tokens = tuple[int, ...]


class PrefixTree:
    """Which tokens may follow which, so that only the given answers can be written.

    Answers are token ids, each with its end-of-text token.
    """

    def __init__(self, answers: Sequence[Sequence[int]]):
        self.answers = [tuple(answer) for answer in answers]
        if not self.answers or not all(self.answers):
            raise UserError("Every entry of `choices` must have at least one token.")
        if len(set(self.answers)) < len(self.answers):
            raise UserError("Two of `choices` have the same tokens: make them different.")
        self._following: dict[Tokens, list[int]] = {}
        for answer in self.answers:
            for place, token in enumerate(answer):
                choices = self._following.setdefault(answer[:place], [])
                if token not in choices:
                    choices.append(token)

    def following(self, written: Sequence[int]) -> list[int]:
        """The tokens that may come next; behind a whole answer its end again."""
        return self._following.get(tuple(written), [self.answers[0][-1]])

    def log_probability(self, answer: int, logits: torch.Tensor) -> torch.Tensor:
        """How probable constrained sampling makes the answer of this number.

        `logits` are the model's at each place of the answer, (..., tokens of the answer, vocabulary).
        """
        tokens = self.answers[answer]
        total = logits.new_zeros(logits.shape[:-2])
        for place, token in enumerate(tokens):
            choices = self._following[tokens[:place]]
            total = total + logits[..., place, choices].log_softmax(-1)[..., choices.index(token)]
        return total
