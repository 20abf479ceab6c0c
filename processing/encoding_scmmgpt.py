"""Texts through a model: batches of like length, cut to what its text branch reads, one unit vector each."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

TEXTS_PER_BATCH = 64
TEXTS_REMEMBERED = 20_000

# A processor, or what calls one.
Processor = Callable[..., Mapping[str, Any]]


def check_vocabularies(model: Any, processor: Any) -> None:
    """Refuse a processor that knows genes or words for which the model has no vector."""
    config, words = model.config, len(processor.tokenizer)
    words_of_qformer = len(processor.qformer_tokenizer) if processor.qformer_tokenizer is not None else words
    tables = [
        ("genes", processor.gene_tokenizer.vocab_size, config.cell_config.vocab_size, "resize_gene_embeddings"),
        ("words", words_of_qformer, config.qformer_config.vocab_size, "the Q-Former's resize_token_embeddings"),
    ]
    if hasattr(model, "generate_cells"):  # it has an LLM
        tables.append(("words", words, config.text_config.vocab_size, "resize_token_embeddings"))
    for what, known, has_vectors, remedy in tables:
        if known > has_vectors:
            raise ValueError(
                f"The processor knows {known} {what}, but the model has vectors for {has_vectors}. Load the processor "
                f"that belongs to the model, or let the model grow: {remedy}({known})."
            )


def embed_texts(model: Any, processor: Processor, texts: Sequence[str]) -> np.ndarray:
    """One unit vector per text, (N, D), from any scmmgpt model and its processor."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(order), TEXTS_PER_BATCH):
            batch = [texts[index] for index in order[start : start + TEXTS_PER_BATCH]]
            features = model.get_text_features(**tokenize_texts(model, processor, batch))
            vectors.append(features.pooler_output.float().cpu().numpy())
    return np.concatenate(vectors)[np.argsort(order)]


def tokenize_texts(model: Any, processor: Processor, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Texts as inputs of the model, on its device."""
    longest = model.config.qformer_config.max_position_embeddings
    inputs = processor(text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest)
    return {name: values.to(model.device) for name, values in inputs.items()}


def similarity_scale(model: Any) -> float:
    """By what a model multiplies cosines of cells and texts."""
    towers = getattr(model, "model", model)
    return float(towers.similarity_scale().detach())


class TextEmbedder:
    """`embed_texts` that remembers: label sets come again and again."""

    def __init__(self, model: Any, processor: Processor):
        self.model, self.processor = model, processor
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """One unit vector per text, (N, D)."""
        new = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        if new:
            self._vectors.update(zip(new, embed_texts(self.model, self.processor, new), strict=True))
        result = np.stack([self._vectors[text] for text in texts])
        for _ in range(len(self._vectors) - TEXTS_REMEMBERED):
            self._vectors.popitem(last=False)
        return result
