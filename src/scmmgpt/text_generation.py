"""Text that the language model writes to prompts with cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .constrained import PrefixTree
from .errors import UserError

if TYPE_CHECKING:
    import torch

    from .loading import LoadedModel

# A gene symbol by itself; in "CD4-positive" the symbol is part of a name.
_SYMBOL = re.compile(r"(?<![\w-])[A-Z][A-Za-z0-9]+(?:-[A-Z0-9]+)*(?![\w+-])")
NOT_DETECTED = "[not detected]"


def checked_question(loaded: LoadedModel, question: str) -> str:
    """The question; refused when it is empty or places cells itself."""
    if not isinstance(question, str):
        raise UserError(f"The question must be text, got {type(question).__name__}.")
    if not question.strip():
        raise UserError("The question is empty.")
    if loaded.processor.cell_token in question:
        raise UserError(f"The question must not hold {loaded.processor.cell_token!r}: the cells are put before it.")
    return question


def check_num_tokens(max_new_tokens: int) -> None:
    """Refuse an answer of no length."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")


def tokenize_prompt(loaded: LoadedModel, prompt: str) -> torch.Tensor:
    """Token ids of one prompt, (1, S), every `<cell>` as many placeholders as a cell has tokens."""
    processor = loaded.processor
    tokenizer = processor.tokenizer
    text = processor.expand_cell_tokens(prompt)
    has_start = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids = tokenizer(text, add_special_tokens=not has_start, return_tensors="pt")["input_ids"]
    return ids.to(loaded.device)


def embed_prompt(loaded: LoadedModel, input_ids: torch.Tensor, cell_tokens: torch.Tensor) -> torch.Tensor:
    """Input embeddings (B, S, H) of prompts (B, S), with cell tokens (cells, Q, H) in place of `<cell>`, in order."""
    words = loaded.model.get_input_embeddings()(input_ids)
    return loaded.model.model.place_cells(input_ids, words, cell_tokens)


def filler_of(loaded: LoadedModel) -> int:
    """The token that fills up what is shorter than the longest."""
    tokenizer = loaded.processor.tokenizer
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def generate_ids(
    loaded: LoadedModel, input_ids: torch.Tensor, cell_tokens: torch.Tensor, max_new_tokens: int, **settings: Any
) -> torch.Tensor:
    """New token ids, (B, max_new_tokens), padded at the end.

    The prompt is read from vectors that hold the cells; what was read stays in the cache that generation goes on from.
    """
    import torch
    from torch.nn.functional import pad

    from .modeling_scmmgpt.outputs_scmmgpt import CACHE

    filler = filler_of(loaded)
    embeds = embed_prompt(loaded, input_ids, cell_tokens)
    read = loaded.model(inputs_embeds=embeds[:, :-1], use_cache=True, logits_to_keep=1)
    ids = loaded.model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        pad_token_id=filler,
        **{"do_sample": False, CACHE: getattr(read, CACHE), **settings},
    )[:, input_ids.shape[1] :]
    return pad(ids, (0, max_new_tokens - ids.shape[1]), value=filler)


def decode(loaded: LoadedModel, ids: Any) -> list[str]:
    """Token ids as texts without special tokens and outer spaces."""
    return [text.strip() for text in loaded.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def answers_tree(loaded: LoadedModel, answers: Sequence[str]) -> PrefixTree:
    """The tree of these answers' tokens."""
    tokenizer = loaded.processor.tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError("This model's tokenizer has no end-of-text token, so answers cannot be told apart.")
    return PrefixTree(
        [[*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for answer in answers]
    )


def answer_probabilities(loaded: LoadedModel, embeds: torch.Tensor, tree: PrefixTree) -> torch.Tensor:
    """How probable constrained generation makes each answer, (B, answers); rows sum to 1."""
    import torch

    words = loaded.model.get_input_embeddings()
    log_probabilities = []
    for number, answer in enumerate(tree.answers):
        tokens = torch.tensor(answer[:-1], device=embeds.device, dtype=torch.long)
        spelt = words(tokens).expand(len(embeds), -1, -1).to(embeds.dtype)
        logits = loaded.model(inputs_embeds=torch.cat([embeds, spelt], dim=1), logits_to_keep=len(answer)).logits
        log_probabilities.append(tree.log_probability(number, logits.float()))
    return torch.stack(log_probabilities, dim=1).exp()


def mark_genes(text: str, vocabulary: dict[str, int], expressed: set[int]) -> str:
    """The text with a mark behind every gene that the cell does not express."""

    def marked(match: re.Match) -> str:
        word = match.group()
        is_absent = word in vocabulary and vocabulary[word] not in expressed
        return f"{word} {NOT_DETECTED}" if is_absent else word

    return _SYMBOL.sub(marked, text)
