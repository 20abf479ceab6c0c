"""A BERT -> a cell encoder of ranked genes (Geneformer, LangCell), or the start of a Q-Former."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from scmmgpt.errors import UserError
from scmmgpt.modeling_scmmgpt import ScMMGPTQFormer, ScMMGPTQFormerConfig
from scmmgpt.processing.gene_vocabulary_scmmgpt import SPECIAL_TOKENS
from scmmgpt.training.conversion.foreign_files import Weights, find, load_all, read_dictionary, read_weights, renamed
from scmmgpt.training.conversion.vocabularies import in_our_order, take_rows, tokenizer_of_genes

logger = logging.get_logger(__name__)

# BERT's and BLIP-2's names -> the Q-Former's.
QFORMER_NAMES = [
    (r"^(bert|qformer)\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.(self|attention)\.", ".self_attn."),
    (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
    (r"\.attention\.output\.LayerNorm\.", ".self_attn_norm."),
    (r"\.crossattention\.(self|attention)\.", ".cross_attn."),
    (r"\.crossattention\.output\.dense\.", ".cross_attn.out_proj."),
    (r"\.crossattention\.output\.LayerNorm\.", ".cross_attn_norm."),
    (r"_attn\.query\.", "_attn.q_proj."),
    (r"_attn\.key\.", "_attn.k_proj."),
    (r"_attn\.value\.", "_attn.v_proj."),
    (r"\.intermediate_query\.dense\.", ".query_feed_forward.linear1."),
    (r"\.output_query\.dense\.", ".query_feed_forward.linear2."),
    (r"\.output_query\.LayerNorm\.", ".query_feed_forward.norm."),
    (r"\.intermediate\.dense\.", ".text_feed_forward.linear1."),
    (r"\.output\.dense\.", ".text_feed_forward.linear2."),
    (r"\.output\.LayerNorm\.", ".text_feed_forward.norm."),
    (r"^(embeddings\.)?(LayerNorm|layernorm)\.", "embeddings.norm."),
]

SIZES_OF_BERT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "pad_token_id"),
)


def _read_bert(source: Path) -> tuple[Any, Weights]:
    """A BERT's config and its encoder's weights, whatever head they came with."""
    kind = json.loads(find(source, "config.json").read_text()).get("model_type")
    if kind != "bert":
        raise UserError(f"{str(source)!r} holds a model of type {kind!r}; expected 'bert'.")
    files = sorted(source.glob("model*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    files = files or [find(source, "model.safetensors", "pytorch_model.bin")]
    weights = {name: weight for file in files for name, weight in read_weights(file).items()}
    weights = {re.sub(r"^bert\.", "", name): weight for name, weight in weights.items()}
    # Checkpoints from before 2020 name LayerNorm's numbers so.
    weights = renamed(weights, [(r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")])
    weights = {name: weight for name, weight in weights.items() if re.match(r"(embeddings|encoder)\.", name)}
    weights.pop("embeddings.position_ids", None)
    return AutoConfig.from_pretrained(source), weights


def convert_geneformer(source: Path, output: Path) -> PreTrainedModel:
    config, weights = _read_bert(source)
    genes, rows = in_our_order(read_dictionary(find(source, "token_dictionary*.json", "token_dictionary*.pkl")))
    medians = {}
    if files := sorted(source.glob("gene_median_dictionary*")):
        medians = read_dictionary(files[0])
    else:
        logger.warning(
            f"{source} has no gene_median_dictionary*: genes are ranked by value, not by value divided by their median."
        )
    config.vocab_size, config.pad_token_id = len(rows), SPECIAL_TOKENS.index("<pad>")
    model = AutoModel.from_config(config, add_pooling_layer=False).eval()
    words = "embeddings.word_embeddings.weight"
    if words in weights:
        weights[words] = take_rows(weights[words], rows)
    load_all(model, weights, source)
    model.save_pretrained(output)
    add_cls = rows[SPECIAL_TOKENS.index("<cls>")] is not None
    tokenizer_of_genes(
        genes,
        ensembl_ids=genes,
        medians=[medians.get(gene, 0.0) for gene in genes] if medians else None,
        value_mode="rank",
        max_genes=config.max_position_embeddings - add_cls,
        add_cls=add_cls,
    ).save_pretrained(output)
    return model


def convert_bert(source: Path, output: Path) -> PreTrainedModel:
    config, weights = _read_bert(source)
    sizes = {name: getattr(config, name) for name in SIZES_OF_BERT}
    dropout, eps = config.hidden_dropout_prob, config.layer_norm_eps
    attention_dropout = config.attention_probs_dropout_prob
    model = ScMMGPTQFormer(
        ScMMGPTQFormerConfig(hidden_dropout=dropout, attention_dropout=attention_dropout, layer_norm_eps=eps, **sizes)
    ).eval()
    load_all(model, qformer_weights(weights), source, may_lack=r"query_tokens|\.cross_attn")
    model.save_pretrained(output)
    if (source / "vocab.txt").exists() or (source / "tokenizer.json").exists():
        AutoTokenizer.from_pretrained(source).save_pretrained(output)
    return model


def qformer_weights(bert: Weights) -> Weights:
    """A BERT's weights as a Q-Former's: queries start from the text's feed-forwards, as BLIP-2's do."""
    bert = dict(bert)
    segments = bert.pop("embeddings.token_type_embeddings.weight", None)
    ours = renamed(bert, QFORMER_NAMES)
    if segments is not None:  # a text is all one segment: its vector goes into every position
        ours["embeddings.position_embeddings.weight"] = ours["embeddings.position_embeddings.weight"] + segments[0]
    copies = {
        name.replace(".text_feed_forward.", ".query_feed_forward."): weight.clone()
        for name, weight in ours.items()
        if ".text_feed_forward." in name
    }
    return copies | ours
