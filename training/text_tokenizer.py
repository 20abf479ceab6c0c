"""A small text tokenizer for runs without a pretrained one: byte-level BPE over the run's own texts."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from scmmgpt.processing.prompting_scmmgpt import CELL_TOKEN, PLAIN_CHAT_TEMPLATE

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def train_text_tokenizer(texts: Iterable[str], size: int = 4096) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these texts' words; any other text falls into smaller pieces, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS.values(), CELL_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = SPECIAL_TOKENS["bos_token"]
    # The first token of a text is what its embedding is read from: the same in all of them, as BERT's [CLS].
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[CELL_TOKEN],
        chat_template=PLAIN_CHAT_TEMPLATE,
        model_max_length=512,
        **SPECIAL_TOKENS,
    )
