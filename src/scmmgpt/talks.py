"""Several talks with the language model at once, whose earlier turns are not read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .text_generation import answers_tree, decode, embed_prompt, filler_of, tokenize_prompt

if TYPE_CHECKING:
    import torch

    from .loading import LoadedModel


class Talks:
    """Talks that are one another's length in turns; `cell_tokens` (cells, Q, H) fill the `<cell>` of all, None where none.

    Each turn takes the whole prompts. Where they go on from those of the turn before, only what is new is read; talks of
    a model whose memory cannot be cut back are read from the beginning.
    """

    def __init__(self, loaded: LoadedModel, cell_tokens: torch.Tensor | None):
        self.loaded, self.cell_tokens = loaded, cell_tokens
        self._spelt: list[torch.Tensor] = []  # the prompts of the last turn
        self._ids: torch.Tensor  # (talks, S) what was read, with gaps where others were longer
        self._is_word: torch.Tensor
        self._cache: Any = None

    def answers(self, prompts: Sequence[str], max_new_tokens: int, **settings: Any) -> list[str]:
        """The most probable answer to each prompt."""
        import torch

        spelt = [tokenize_prompt(self.loaded, prompt)[0] for prompt in prompts]
        with torch.inference_mode():
            if self._go_on(spelt):
                new = [ids[len(before) :] for ids, before in zip(spelt, self._spelt, strict=True)]
                ids, is_word = self._aligned(new)
                self._ids, self._is_word = torch.hstack([self._ids, ids]), torch.hstack([self._is_word, is_word])
            else:
                self._ids, self._is_word = self._aligned(spelt)
                self._cache = self._read()
            self._spelt = spelt
            return self._written(max_new_tokens, **settings)

    def choices(self, prompts: Sequence[str], allowed: Sequence[Sequence[str]]) -> list[str]:
        """The answer to each prompt where only some answers are allowed."""
        trees = [answers_tree(self.loaded, answers) for answers in allowed]
        longest = max(len(answer) for tree in trees for answer in tree.answers)

        def following(row: int, read_and_written: torch.Tensor) -> list[int]:
            return trees[row].following(read_and_written[self._ids.shape[1] :].tolist())

        return self.answers(prompts, longest, prefix_allowed_tokens_fn=following)

    def _go_on(self, spelt: Sequence[torch.Tensor]) -> bool:
        if self._cache is None or len(spelt) != len(self._spelt):
            return False
        pairs = list(zip(spelt, self._spelt, strict=True))
        return all(len(ids) > len(before) and (ids[: len(before)] == before).all() for ids, before in pairs)

    def _aligned(self, spelt: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(talks, S) token ids that end together, since an answer follows the last word, and which of them are words."""
        import torch

        longest, filler = max(map(len, spelt)), filler_of(self.loaded)
        ids = torch.stack([torch.nn.functional.pad(ids, (longest - len(ids), 0), value=filler) for ids in spelt])
        is_word = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in spelt], device=ids.device)
        return ids, is_word

    def _read(self) -> Any:
        """The model's memory of all but the last word of each prompt, read from vectors that hold the cells."""
        from .modeling_scmmgpt.outputs_scmmgpt import CACHE

        places = (self._is_word.cumsum(1) - 1).clamp(min=0)
        words = self.loaded.model.get_input_embeddings()(self._ids)
        embeds = words if self.cell_tokens is None else embed_prompt(self.loaded, self._ids, self.cell_tokens)
        read = self.loaded.model(
            inputs_embeds=embeds[:, :-1],
            attention_mask=self._is_word[:, :-1],
            position_ids=places[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        )
        return getattr(read, CACHE)

    def _written(self, max_new_tokens: int, **settings: Any) -> list[str]:
        from .modeling_scmmgpt.outputs_scmmgpt import CACHE

        length = self._ids.shape[1]
        ids = self.loaded.model.generate(
            input_ids=self._ids,
            attention_mask=self._is_word,
            max_new_tokens=max_new_tokens,
            pad_token_id=filler_of(self.loaded),
            **{"do_sample": False, CACHE: self._cache, **settings},
        )[:, length:]
        self._forget_answers(length)
        return decode(self.loaded, ids)

    def _forget_answers(self, length: int) -> None:
        """Cut the memory back to the prompts: of an answer the talk may keep only a part."""
        if any(getattr(self._cache, "is_sliding", ())) or not hasattr(self._cache, "crop"):
            self._cache = None
        elif (written := self._cache.get_seq_length() - length) > 0:
            self._cache.crop(-written)
