"""scGPT's checkpoint -> our cell encoder with its head for masked values, every number kept."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from scmmgpt.errors import UserError
from scmmgpt.modeling_scmmgpt import ScMMGPTCellConfig, ScMMGPTCellEncoderForMaskedValues
from scmmgpt.processing.gene_vocabulary_scmmgpt import SPECIAL_TOKENS
from scmmgpt.training.conversion.foreign_files import Weights, find, load_all, read_dictionary, read_weights, renamed
from scmmgpt.training.conversion.vocabularies import in_our_order, take_rows, tokenizer_of_genes

# scGPT's names -> ours. Attention is renamed by `_split_attention`.
SCGPT_NAMES = [
    (r"^encoder\.embedding\.", "model.embeddings.gene_embeddings."),
    (r"^encoder\.enc_norm\.", "model.embeddings.gene_norm."),
    (r"^value_encoder\.linear1\.", "model.embeddings.value_in."),
    (r"^value_encoder\.linear2\.", "model.embeddings.value_out."),
    (r"^value_encoder\.norm\.", "model.embeddings.value_norm."),
    (r"^transformer_encoder\.layers\.(\d+)\.norm1\.", r"model.layers.\1.self_attn_norm."),
    (r"^transformer_encoder\.layers\.(\d+)\.norm2\.", r"model.layers.\1.final_norm."),
    (r"^transformer_encoder\.layers\.", "model.layers."),
    (r"^decoder\.fc\.0\.", "value_head.linear1."),
    (r"^decoder\.fc\.2\.", "value_head.linear2."),
    (r"^decoder\.fc\.4\.", "value_head.out."),
]
# Heads of scGPT's other tasks, and a switch of its generative training: nothing of ours reads them.
SCGPT_UNREAD = re.compile(
    r"^(cls_decoder|mvc_decoder|flag_encoder|grad_reverse_discriminator|sim|decoder\.zero_logit)\b"
)


def convert_scgpt(source: Path, output: Path) -> PreTrainedModel:
    settings = json.loads(find(source, "args.json").read_text())
    vocabulary = read_dictionary(find(source, "vocab.json"))
    weights = read_weights(find(source, "best_model.safetensors", "best_model.pt", "*.safetensors", "*.pt"))
    genes, rows = in_our_order(vocabulary)
    style = settings.get("input_emb_style", "continuous")
    if style != "continuous":
        raise UserError(f"{str(source)!r} embeds values as {style!r}; only 'continuous' can be converted.")
    config = ScMMGPTCellConfig(
        vocab_size=len(rows),
        hidden_size=settings["embsize"],
        intermediate_size=settings["d_hid"],
        num_hidden_layers=settings["nlayers"],
        num_attention_heads=settings["nheads"],
        hidden_dropout=settings.get("dropout", 0.2),
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        cls_token_id=SPECIAL_TOKENS.index("<cls>"),
        mask_token_id=SPECIAL_TOKENS.index("<mask>"),
        mask_value=settings.get("mask_value", -1),
        cls_value=settings.get("pad_value", -2),
    )
    model = ScMMGPTCellEncoderForMaskedValues(config).eval()
    load_all(model, _scgpt_weights(weights, rows), source, may_lack=r"^value_head\.")
    model.save_pretrained(output)
    tokenizer_of_genes(
        genes,
        value_mode="bins",
        num_bins=settings.get("n_bins", 51),
        max_genes=settings.get("max_seq_len", 1536) - 1,
    ).save_pretrained(output)
    return model


def _scgpt_weights(weights: Weights, rows: Sequence[int | None]) -> Weights:
    weights = {name: weight for name, weight in weights.items() if not SCGPT_UNREAD.match(name)}
    ours = renamed(_split_attention(weights), SCGPT_NAMES)
    table = "model.embeddings.gene_embeddings.weight"
    if table in ours:
        ours[table] = take_rows(ours[table], rows)
    return ours


def _split_attention(weights: Weights) -> Weights:
    """One matrix for query, key and value, as flash-attn (`Wqkv`) or torch (`in_proj_`) names it -> three."""
    split = {}
    for name, weight in weights.items():
        joined = re.fullmatch(r"(.*\.self_attn\.)(?:Wqkv\.|in_proj_)(weight|bias)", name)
        if joined is None:
            split[name] = weight
            continue
        for part, piece in zip(("q_proj", "k_proj", "v_proj"), weight.chunk(3), strict=True):
            split[f"{joined[1]}{part}.{joined[2]}"] = piece.contiguous()
    return split
