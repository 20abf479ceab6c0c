"""Tiny stand-ins: every test runs on a CPU, without the network, in seconds."""

import os

import pytest
import torch
from tiny_models import CELL_DECODER, CELL_ENCODER, LANGUAGE_MODEL, PROJECTIONS, QFORMER, WIDE

from scmmgpt.modeling_scmmgpt import ScMMGPTConfig

# `describe` and `chat` speak with the small decoder, whether or not the base LLM of scmmgpt-chat is installed: tests of
# that model ask for it.
os.environ.setdefault("SCMMGPT_LANGUAGE_MODEL", "embedded")

NUM_GENE_IDS, NUM_WORDS = 60, 40
PAD, CLS = 0, 1
CELL_TOKEN = 5

_WORDS = {"vocab_size": NUM_WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**LANGUAGE_MODEL, **_WORDS, "max_position_embeddings": 128}
TEXT_CONFIGS = {
    "llama": {**_DECODER},
    "mistral": {**_DECODER, "sliding_window": 16},
    "qwen3": {**_DECODER, "tie_word_embeddings": True},
    "gemma": {**_DECODER},
    # Its embeddings are narrower than its states.
    "opt": {
        **_WORDS,
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "init_std": 0.2,
        "dropout": 0.0,
    },
}


@pytest.fixture(autouse=True)
def _one_seed_for_every_test():
    torch.manual_seed(0)


@pytest.fixture
def tiny_config():
    """Build a config by the LLM's name; every part can be changed."""

    def build(text_model="llama", cell=None, qformer=None, decoder=None, text=None, **top):
        return ScMMGPTConfig(
            cell_config={
                **CELL_ENCODER,
                "vocab_size": NUM_GENE_IDS,
                "pad_token_id": PAD,
                "cls_token_id": CLS,
                **(cell or {}),
            },
            qformer_config={**QFORMER, "vocab_size": NUM_WORDS, **(qformer or {})},
            cell_decoder_config={**CELL_DECODER, **(decoder or {})},
            text_config={"model_type": text_model, **TEXT_CONFIGS[text_model], **(text or {})},
            cell_token_id=CELL_TOKEN,
            **{**PROJECTIONS, **WIDE, **top},
        )

    return build


@pytest.fixture
def make_cells():
    """Cells as the processor gives them: `<cls>` first, real genes in front, padding behind."""

    def make(lengths=(12, 7, 9), seed=0):
        generator = torch.Generator().manual_seed(seed)
        longest = max(lengths)
        mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        ids = torch.stack([torch.randperm(NUM_GENE_IDS - 2, generator=generator)[:longest] + 2 for _ in lengths])
        values = torch.rand(len(lengths), longest, generator=generator) * 5 + 0.1
        ids[:, 0], values[:, 0] = CLS, 0.0
        return {
            "gene_ids": ids.masked_fill(mask == 0, PAD),
            "gene_values": values.masked_fill(mask == 0, 0.0),
            "gene_mask": mask,
        }

    return make


@pytest.fixture
def make_texts():
    """Texts as a tokenizer gives them, padded on the right or on the left."""

    def make(lengths=(7, 4, 6), seed=0, padding_side="right"):
        generator = torch.Generator().manual_seed(seed)
        longest = max(lengths)
        mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(6, NUM_WORDS, (len(lengths), longest), generator=generator)
        if padding_side == "left":
            mask = mask.flip(1)
        return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}

    return make


@pytest.fixture
def pack():
    """Lay padded cells end to end, as `processor(cells=..., packed=True)` does."""

    def packed(cells):
        real = cells["gene_mask"].bool()
        lengths = real.sum(1)
        return {
            "gene_ids": cells["gene_ids"][real][None],
            "gene_values": cells["gene_values"][real][None],
            "cell_cu_seqlens": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
        }

    return packed
