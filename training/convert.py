"""Public checkpoints -> ours, every number kept: scGPT, Geneformer, LangCell, any BERT, and all of them together.

`convert_checkpoint` writes a folder that `AutoModel.from_pretrained` loads, with the gene tokenizer or the text
tokenizer beside it. Gene ids change on the way: our vocabularies begin with the special tokens.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from scmmgpt.errors import UserError
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.modeling_scmmgpt import (
    ScMMGPTCellConfig,
    ScMMGPTCellEncoderForMaskedValues,
    ScMMGPTConfig,
    ScMMGPTForConditionalGeneration,
    ScMMGPTQFormer,
    ScMMGPTQFormerConfig,
)
from scmmgpt.processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor
from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneNames
from scmmgpt.processing.gene_vocabulary_scmmgpt import SPECIAL_TOKENS

logger = logging.get_logger(__name__)

Weights = dict[str, torch.Tensor]

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


def convert_checkpoint(kind: str, source: str | Path, output: str | Path) -> dict[str, Any]:
    """Write a public checkpoint as one of ours; return what it holds.

    Parameters
    ----------
    kind
        "scgpt" (`best_model.pt`, `args.json`, `vocab.json`), "geneformer" or "langcell" (a BERT of ranked genes and
        its `token_dictionary`), "bert" (the start of a Q-Former), or "parts" (folders `cell`, `qformer` and `text`).
    source, output
        Folders.
    """
    converters: dict[str, Callable[[Path, Path], PreTrainedModel]] = {
        "scgpt": _convert_scgpt,
        "geneformer": _convert_geneformer,
        "langcell": _convert_geneformer,
        "bert": _convert_bert,
        "parts": _convert_parts,
    }
    if kind not in converters:
        raise UserError(f"`{kind}` cannot be converted. Kinds: {', '.join(converters)}.")
    source, output = Path(source), Path(output)
    if not source.is_dir():
        raise UserError(f"There is no folder {str(source)!r}.")
    model = converters[kind](source, output)
    return {"class": type(model).__name__, "parameters": sum(weight.numel() for weight in model.parameters())}


# ---- reading what others wrote


def read_weights(path: Path) -> Weights:
    """Tensors of a safetensors or a torch file. A pickle that holds anything else is refused, unread."""
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{str(path)!r} holds more than tensors or is damaged, and what is not tensors could run code: not loaded. "
            "Ask its authors for a safetensors file, or for its `state_dict()` alone."
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise UserError(f"{str(path)!r} is not a state_dict. Save only the model's `state_dict()`.")
    return dict(weights)


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries of strings and numbers, nothing that could run."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def read_dictionary(path: Path) -> dict[str, float]:
    """A dictionary of names and numbers, as json or as a pickle of nothing else."""
    try:
        with path.open("rb") as file:
            return json.load(file) if path.suffix == ".json" else _PlainUnpickler(file).load()
    except (pickle.UnpicklingError, UnicodeDecodeError, json.JSONDecodeError, EOFError) as error:
        raise UserError(
            f"{str(path)!r} holds more than names and numbers ({error}), which could run code: not loaded. Save it as "
            "json: {name: number, ...}."
        ) from error


def _find(folder: Path, *patterns: str) -> Path:
    """The one file of a folder that fits, the first pattern first."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    present = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"{str(folder)!r} lacks {' or '.join(patterns)}; it holds {present}.")


def renamed(weights: Weights, names: Sequence[tuple[str, str]]) -> Weights:
    """The same tensors under other names; every rule is tried in order."""
    other = {}
    for name, weight in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        other[name] = weight
    return other


def load_all(model: PreTrainedModel, weights: Weights, source: Path, may_lack: str = r"$^") -> None:
    """Load the weights; any name that lacks or is too many, and any size that differs, means another architecture."""
    expected = model.state_dict()
    lacking = [name for name in expected if name not in weights and not re.search(may_lack, name)]
    unknown = [name for name in weights if name not in expected]
    unlike = [name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape]
    reasons = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])})"
        for what, names in (("weights lack", lacking), ("are unknown", unknown), ("have another size", unlike))
        if names
    ]
    if reasons:
        raise UserError(
            f"{str(source)!r} holds another architecture than {type(model).__name__}: {'; '.join(reasons)}."
        )
    model.load_state_dict(weights, strict=False)


# ---- scGPT


def _convert_scgpt(source: Path, output: Path) -> PreTrainedModel:
    settings = json.loads(_find(source, "args.json").read_text())
    vocabulary = read_dictionary(_find(source, "vocab.json"))
    weights = read_weights(_find(source, "best_model.safetensors", "best_model.pt", "*.safetensors", "*.pt"))
    genes, rows = _in_our_order(vocabulary)
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
    _gene_tokenizer(
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
        ours[table] = _take_rows(ours[table], rows)
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


def _in_our_order(vocabulary: Mapping[str, float]) -> tuple[list[str], list[int | None]]:
    """Genes by their old ids, and the old id for each of our ids; None: a special token that was not known."""
    old = {name: int(token) for name, token in vocabulary.items()}
    genes = sorted((name for name in old if not re.fullmatch(r"<.*>", name)), key=old.__getitem__)
    return genes, [old.get(name) for name in (*SPECIAL_TOKENS, *genes)]


def _take_rows(table: torch.Tensor, rows: Sequence[int | None]) -> torch.Tensor:
    last = max(row for row in rows if row is not None)
    if last >= len(table):
        raise UserError(f"The vocabulary names id {last}, the weights hold {len(table)}.")
    taken = table[torch.tensor([0 if row is None else row for row in rows])].clone()
    taken[[row is None for row in rows]] = 0.0
    return taken


def _gene_tokenizer(genes: Sequence[str], **settings: Any) -> ScMMGPTGeneTokenizer:
    """With the table of gene names that comes with the package, so that symbols find Ensembl ids and back."""
    names = EMBEDDED_MODEL / GENE_NAMES_FILE
    return ScMMGPTGeneTokenizer(genes, gene_names=GeneNames.read(names) if names.exists() else None, **settings)


# ---- BERT: Geneformer and LangCell read ranked genes with it, the Q-Former starts from it


def _read_bert(source: Path) -> tuple[Any, Weights]:
    """A BERT's config and its encoder's weights, whatever head they came with."""
    kind = json.loads(_find(source, "config.json").read_text()).get("model_type")
    if kind != "bert":
        raise UserError(f"{str(source)!r} holds a model of type {kind!r}; expected 'bert'.")
    files = sorted(source.glob("model*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    files = files or [_find(source, "model.safetensors", "pytorch_model.bin")]
    weights = {name: weight for file in files for name, weight in read_weights(file).items()}
    weights = {re.sub(r"^bert\.", "", name): weight for name, weight in weights.items()}
    # Checkpoints from before 2020 name LayerNorm's numbers so.
    weights = renamed(weights, [(r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")])
    weights = {name: weight for name, weight in weights.items() if re.match(r"(embeddings|encoder)\.", name)}
    weights.pop("embeddings.position_ids", None)
    return AutoConfig.from_pretrained(source), weights


def _convert_geneformer(source: Path, output: Path) -> PreTrainedModel:
    config, weights = _read_bert(source)
    genes, rows = _in_our_order(read_dictionary(_find(source, "token_dictionary*.json", "token_dictionary*.pkl")))
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
        weights[words] = _take_rows(weights[words], rows)
    load_all(model, weights, source)
    model.save_pretrained(output)
    add_cls = rows[SPECIAL_TOKENS.index("<cls>")] is not None
    _gene_tokenizer(
        genes,
        ensembl_ids=genes,
        medians=[medians.get(gene, 0.0) for gene in genes] if medians else None,
        value_mode="rank",
        max_genes=config.max_position_embeddings - add_cls,
        add_cls=add_cls,
    ).save_pretrained(output)
    return model


def _convert_bert(source: Path, output: Path) -> PreTrainedModel:
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


# ---- all together


def _convert_parts(source: Path, output: Path) -> PreTrainedModel:
    cell, qformer = source / "cell", source / "qformer"
    model, processor = from_parts(
        text=_find(source, "text"),
        cell=cell if cell.exists() else None,
        qformer=qformer if qformer.exists() else None,
    )
    model.save_pretrained(output)
    if processor is not None:
        processor.save_pretrained(output)
    return model


def from_parts(
    text: str | Path,
    cell: str | Path | None = None,
    qformer: str | Path | None = None,
    config: ScMMGPTConfig | None = None,
    **kwargs: Any,
) -> tuple[ScMMGPTForConditionalGeneration, ScMMGPTProcessor | None]:
    """A generative model of a causal LM, a cell encoder and a Q-Former, each from its folder or Hub name.

    Parameters
    ----------
    text
        Any causal LM of transformers, with its tokenizer; `<cell>` is added to it.
    cell, qformer
        What `convert_checkpoint` wrote; None leaves that part new.
    config
        Sizes of the parts that are new.
    **kwargs
        To the LLM's `from_pretrained`: dtype, quantization_config, device_map, ...

    Returns
    -------
    The model, and its processor where `cell` came with a gene tokenizer.
    """
    config = config or ScMMGPTConfig()
    encoder = AutoModel.from_pretrained(cell) if cell is not None else None
    if encoder is not None:
        config.cell_config = encoder.config
    width = config.cell_config.hidden_size
    if qformer is not None:
        # A Q-Former that comes from a BERT has never seen a cell: its cross-attention fits itself to the encoder.
        reader = ScMMGPTQFormer.from_pretrained(qformer, encoder_hidden_size=width, ignore_mismatched_sizes=True)
        config.qformer_config = reader.config
    else:
        reader, config.qformer_config.encoder_hidden_size = None, width
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.add_tokens(["<cell>"], special_tokens=True)
    config.cell_token_id = tokenizer.get_vocab()["<cell>"]
    model = ScMMGPTForConditionalGeneration.from_parts(config, str(text), encoder, reader, **kwargs)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if cell is None:
        return model, None
    words = AutoTokenizer.from_pretrained(qformer) if qformer is not None else None
    genes = ScMMGPTGeneTokenizer.from_pretrained(cell)
    return model, ScMMGPTProcessor(genes, tokenizer, words, num_query_tokens=config.num_query_tokens)
