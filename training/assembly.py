"""The parts of a run, from its settings: processor, model with its pretrained towers, texts, rows and collators."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import is_flash_attn_2_available

from scmmgpt.errors import UserError
from scmmgpt.modeling_scmmgpt import (
    ScMMGPTConfig,
    ScMMGPTForConditionalGeneration,
    ScMMGPTForPreTraining,
    ScMMGPTModel,
)
from scmmgpt.processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME as ONTOLOGY_FILE
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.processing.prompting_scmmgpt import (
    ANNOTATION_QUESTIONS,
    DESCRIPTION_QUESTIONS,
    DESCRIPTIONS,
    cell_request,
    cell_text,
    label_text,
)
from scmmgpt.training.collators import CellCollator, TokenizingCollator
from scmmgpt.training.conversion.parts import join_language_model, take_weights
from scmmgpt.training.corpus.reading import TABLES_FOLDER, Corpus, Selection
from scmmgpt.training.data import BatchSettings, CorpusBatchSampler
from scmmgpt.training.run import RowOrder
from scmmgpt.training.settings import ModelSettings, RunSettings, Stage2Model, Stage2Settings
from scmmgpt.training.strict_yaml import RecipeError, check_names
from scmmgpt.training.text_tokenizer import train_text_tokenizer

NUM_TEXTS_FOR_TOKENIZER = 20_000
# Share of texts that bring the type's definition, so that both forms are known.
DEFINITION_SHARE = 0.5


# ---- processor

# What decides about tokens, beside their number and their values' mode; and what decides about values of a mode.
TOKEN_SETTINGS = ("gene_order", "add_cls", "include_zero_genes")
SETTINGS_OF_MODE = {"log1p": ("target_sum", "panel_scaling"), "bins": ("num_bins",)}


@contextmanager
def made_from_recipe() -> Iterator[None]:
    """What a library says of a folder, a size or a kind of attention that a recipe names, in its first sentence."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RecipeError(f"The model of the recipe cannot be made: {reason}") from error


def assemble_processor(settings: RunSettings, corpus: Corpus) -> ScMMGPTProcessor:
    """The starting checkpoint's processor, or one of the corpus's genes and the recipe's text tokenizers."""
    model, ontology_file = settings.model, corpus.path / TABLES_FOLDER / ONTOLOGY_FILE
    # What a model is trained to read is what its processor gives it later.
    read_length = {} if settings.data.max_genes is None else {"max_genes": settings.data.max_genes}
    if model.start_from is not None:
        processor = processor_to_train(model.start_from, ontology_file)
        check_vocabulary(processor.gene_tokenizer, corpus, model.start_from)
        check_reading(processor.gene_tokenizer, model)
        if read_length:
            processor.feature_extractor = processor.gene_tokenizer.with_settings(**read_length)
        return with_words_of_language_model(processor, model)
    num_query_tokens = model.config.get("qformer_config", {}).get("num_query_tokens", 32)
    processor = ScMMGPTProcessor(
        corpus.gene_tokenizer().with_settings(**{**model.gene_tokenizer, **read_length}),
        _text_tokenizer(model, corpus),
        qformer_tokenizer=AutoTokenizer.from_pretrained(model.qformer_tokenizer) if model.qformer_tokenizer else None,
        num_query_tokens=num_query_tokens,
    )
    processor.annotation_files = {ONTOLOGY_FILE: str(ontology_file)}
    return processor


def processor_to_train(start: str | os.PathLike, ontology_file: Path) -> ScMMGPTProcessor:
    """A checkpoint's processor with its ontology, or with that of the file where it has none.

    Calibration and type profiles are left behind: they were fitted to weights that training changes.
    """
    processor = ScMMGPTProcessor.from_pretrained(start)
    processor.annotation_files = {ONTOLOGY_FILE: processor.annotation_files.get(ONTOLOGY_FILE, str(ontology_file))}
    return processor


def check_vocabulary(genes: ScMMGPTGeneTokenizer, corpus: Corpus, model: str) -> None:
    """Raise an error if corpus and model have different gene vocabularies."""
    ours, theirs = genes.vocabulary, corpus.gene_tokenizer().vocabulary
    if ours == theirs:
        return
    first = next((name for name, i in theirs.items() if ours.get(name) != i), next(iter(set(ours) - set(theirs)), ""))
    raise RecipeError(
        f"{corpus.path} was made with another vocabulary ({len(theirs)} genes) than {model} has ({len(ours)}); the "
        f"first that differs is {first!r}. Build it again with `scmmgpt corpus build ... --processor {model}`."
    )


def check_tokens(genes: ScMMGPTGeneTokenizer, corpus: Corpus) -> None:
    """Raise an error if a corpus of tokens holds others than the model will read of the same cells."""
    stored = corpus.gene_tokenizer()
    for name in (*TOKEN_SETTINGS, *SETTINGS_OF_MODE.get(genes.value_mode, ())):
        ours, theirs = getattr(genes, name), getattr(stored, name)
        if ours != theirs:
            raise RecipeError(
                f"{corpus.path} holds tokens made with {name} {theirs!r}, and the model reads cells with {ours!r}. Build the "
                f"corpus with `tokens: {{value_mode: counts}}`, which serves every setting, or with {ours!r}."
            )


def check_reading(genes: ScMMGPTGeneTokenizer, model: ModelSettings) -> None:
    """Raise an error if a recipe wants cells read in another way than its starting checkpoint has learnt to."""
    for name, wanted in model.gene_tokenizer.items():
        if getattr(genes, name) != wanted:
            raise RecipeError(
                f"`model.gene_tokenizer.{name}` is {wanted!r}, and {model.start_from} reads cells with "
                f"{getattr(genes, name)!r}: leave it out, or train without `model.start_from`."
            )


def with_words_of_language_model(processor: ScMMGPTProcessor, model: ModelSettings) -> ScMMGPTProcessor:
    """With the tokenizer of a new language model; the Q-Former goes on reading the tokens that it has learnt."""
    if not isinstance(model, Stage2Model) or model.language_model is None:
        return processor
    theirs = _pretrained_tokenizer(model.language_model)
    if theirs.get_vocab().items() <= processor.tokenizer.get_vocab().items():
        return processor
    joined = ScMMGPTProcessor(
        processor.gene_tokenizer,
        theirs,
        qformer_tokenizer=processor.qformer_tokenizer or processor.tokenizer,
        num_query_tokens=processor.num_query_tokens,
    )
    joined.annotation_files = processor.annotation_files
    return joined


def _text_tokenizer(model: ModelSettings, corpus: Corpus) -> PreTrainedTokenizerBase:
    source = model.tokenizer or (model.language_model if isinstance(model, Stage2Model) else None)
    if source is None:
        return train_text_tokenizer(_sample_texts(corpus), model.tokenizer_size)
    return _pretrained_tokenizer(source)


def _pretrained_tokenizer(source: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _sample_texts(corpus: Corpus):
    """Texts of training cells, questions, and what the ontology says of every type."""
    yield from itertools.chain(DESCRIPTIONS, ANNOTATION_QUESTIONS, DESCRIPTION_QUESTIONS)
    for term in corpus.ontology.terms.values():
        yield label_text(term.label, term.definition)
    rows = corpus.rows(Selection("train"))
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.permutation(rows)[:NUM_TEXTS_FOR_TOKENIZER])
    write = CellWriter(corpus.ontology)
    columns = [name for name in corpus.dataset.column_names if name not in ("gene_ids", "gene_values")]
    for row in corpus.table(chosen, columns).to_pylist():
        yield write(row, generator)
        yield cell_request(row)


def new_token_ids(settings: Stage2Settings, processor: ScMMGPTProcessor) -> list[int]:
    """Tokens that the pretrained LLM's own tokenizer does not have: their rows must be learnt and kept."""
    if settings.model.language_model is None:
        return []
    known = AutoTokenizer.from_pretrained(settings.model.language_model).get_vocab()
    return sorted(index for token, index in processor.tokenizer.get_vocab().items() if token not in known)


# ---- texts


class CellWriter:
    """(row of a corpus, generator) -> a text about the cell; a type's definition in half of them."""

    def __init__(self, ontology: Ontology):
        self.ontology = ontology

    def __call__(self, row: dict, generator: np.random.Generator) -> str:
        definition = self.definition(row) if generator.random() < DEFINITION_SHARE else None
        return cell_text(row, definition, paraphrase=int(generator.integers(len(DESCRIPTIONS))))

    def definition(self, row: dict) -> str | None:
        """What the ontology says of the row's type."""
        term = self.ontology.terms.get(row["cell_type_ontology_term_id"])
        return term.definition if term else None


def text_encoder(processor: ScMMGPTProcessor, max_tokens: int) -> Callable[[list[str]], dict]:
    """Texts -> the text arguments of the towers' forward."""
    tokenizers = {"": processor.tokenizer, "qformer_": processor.qformer_tokenizer}
    options = {"padding": True, "truncation": True, "max_length": max_tokens, "return_tensors": "pt"}

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}{name}": tensor
            for prefix, tokenizer in tokenizers.items()
            if tokenizer is not None
            for name, tensor in tokenizer(texts, return_token_type_ids=False, **options).items()
        }

    return encode


# ---- rows


class CorpusRows(Dataset):
    """The corpus's rows by number; a batch of them comes as one Arrow table, which the collators take as it is."""

    def __init__(self, corpus: Corpus, rows: np.ndarray | None = None):
        self.corpus, self.rows = corpus, np.arange(len(corpus)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index]).to_pylist()[0]

    def __getitems__(self, indices: list[int]):
        return self.corpus.table(self.rows[indices])


def cell_collator(settings: RunSettings, corpus: Corpus, processor: ScMMGPTProcessor) -> Callable:
    """Rows -> genes: as the corpus holds them, or tokenised on the way from a corpus of counts."""
    data, genes, stored = settings.data, processor.gene_tokenizer, corpus.manifest["value_mode"]
    if stored == "counts" and genes.value_mode != "counts":
        return TokenizingCollator(genes, packed=data.packed)
    check_tokens(genes, corpus)
    if stored != genes.value_mode:
        raise RecipeError(
            f"{corpus.path} holds values of mode {stored!r} and the model reads {genes.value_mode!r}. Build the corpus "
            f"with `tokens: {{value_mode: counts}}`, which serves every mode, or with {genes.value_mode!r}."
        )
    read = None if genes.max_genes is None else genes.max_genes + genes.add_cls
    limits = [limit for limit in (data.max_genes, read) if limit is not None]
    return CellCollator(stored, packed=data.packed, max_genes=min(limits, default=None))


def row_order(settings: RunSettings, corpus: Corpus, selection: Selection, arguments: TrainingArguments) -> RowOrder:
    """Training rows in the order of steps, the same for every division of a step among processes and accumulation."""
    data = settings.data
    global_batch = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    batches = BatchSettings(
        batch_size=global_batch,
        seed=arguments.data_seed if arguments.data_seed is not None else arguments.seed,
        block_rows=data.block_rows,
        distinct_types=data.distinct_types,
        similar_lengths=data.similar_lengths,
        type_balance=data.type_balance,
        source_weights=data.source_weights,
        drop_last=True,
    )
    order = RowOrder(CorpusBatchSampler(corpus, selection, batches))
    if unknown := sorted(set(selection.sources) - set(corpus.names("source"))):
        raise RecipeError(f"{corpus.path} has no sources {unknown}; it has {', '.join(corpus.names('source'))}.")
    if len(order) < global_batch:
        raise RecipeError(
            f"{corpus.path} has {len(order)} rows to train on, one step of all processes takes {global_batch}: lower "
            "`training.per_device_train_batch_size`, or widen `data.sources`."
        )
    return order


# ---- model


def assemble_config(settings: RunSettings, processor: ScMMGPTProcessor) -> ScMMGPTConfig:
    """The architecture of the recipe, with the sizes that the processor and the pretrained parts decide."""
    model = settings.model
    if model.start_from is not None:
        config = ScMMGPTConfig.from_pretrained(model.start_from)
        _update(config, model.config)
        config.cell_token_id = processor.cell_token_id
        return config
    chosen = {name: dict(value) if isinstance(value, dict) else value for name, value in model.config.items()}
    genes, text = processor.gene_tokenizer, processor.tokenizer
    qformer_text = processor.qformer_tokenizer or text
    if isinstance(model, Stage2Model) and model.language_model is not None:
        chosen["text_config"] = AutoConfig.from_pretrained(model.language_model).get_text_config().to_dict()
    chosen["cell_config"] = _part_config(model.cell_encoder) | {
        "vocab_size": genes.vocab_size,
        "pad_token_id": genes.vocabulary["<pad>"],
        "cls_token_id": genes.vocabulary["<cls>"] if genes.add_cls else None,
        "mask_token_id": genes.vocabulary["<mask>"],
        **chosen.get("cell_config", {}),
    }
    chosen["qformer_config"] = _part_config(model.qformer) | {
        "vocab_size": len(qformer_text),
        "pad_token_id": qformer_text.pad_token_id,
        **chosen.get("qformer_config", {}),
    }
    special = {name: getattr(text, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    chosen["text_config"] = {"model_type": "llama", "vocab_size": len(text), **special} | chosen.get("text_config", {})
    chosen["text_config"]["vocab_size"] = max(chosen["text_config"]["vocab_size"], len(text))
    try:
        return ScMMGPTConfig(cell_token_id=processor.cell_token_id, **chosen)
    except ValueError as error:
        raise RecipeError(f"`model.config`: {error}") from error


def loading_options(settings: RunSettings) -> dict[str, Any]:
    """Precision and attention of a model that is about to be trained."""
    half = settings.model.dtype == "bfloat16" or bool(settings.training.get("bf16") or settings.training.get("fp16"))
    attention = settings.model.attention
    if attention == "auto":
        attention = attention_for(half and torch.cuda.is_available(), is_flash_attn_2_available())
    return {"dtype": getattr(torch, settings.model.dtype), "attn_implementation": attention}


def attention_for(half_precision_gpu: bool, has_flash_attn: bool) -> str | dict[str, str]:
    """Flash kernels for the cell encoder where they run; the Q-Former drops attention out, which they cannot."""
    if not half_precision_gpu:
        return "sdpa"
    cell = "flash_attention_2" if has_flash_attn else "torch_varlen"
    return {"cell_config": cell, "qformer_config": "sdpa", "text_config": "sdpa"}


def assemble_pretraining_model(settings: RunSettings, config: ScMMGPTConfig) -> ScMMGPTForPreTraining:
    """Stage 1's model: from a checkpoint, or new with the recipe's pretrained towers."""
    model, options = settings.model, loading_options(settings)
    if model.start_from is not None:
        return ScMMGPTForPreTraining.from_pretrained(model.start_from, config=config, **options)
    made = ScMMGPTForPreTraining._from_config(config, **options)
    load_towers(made.model, model)
    return made


def assemble_generative_model(
    settings: Stage2Settings, config: ScMMGPTConfig, processor: ScMMGPTProcessor
) -> ScMMGPTForConditionalGeneration:
    """Stage 2's model: pretrained towers, and a causal LM from its own checkpoint or new."""
    model, options = settings.model, loading_options(settings)
    if model.language_model is None and model.start_from is not None:
        return ScMMGPTForConditionalGeneration.from_pretrained(model.start_from, config=config, **options)
    if model.language_model is None:
        made = ScMMGPTForConditionalGeneration._from_config(config, **options)
    else:
        if model.start_from is not None:
            config.text_config = AutoConfig.from_pretrained(model.language_model).get_text_config()
        made = join_language_model(config, model.language_model, **options)
    load_towers(made.model, model)
    if len(processor.tokenizer) > made.get_input_embeddings().num_embeddings:
        made.resize_token_embeddings(len(processor.tokenizer))
    return made


def load_towers(towers: ScMMGPTModel, model: ModelSettings) -> None:
    """Give new towers the pretrained weights that a recipe names: a whole checkpoint's, or those of single parts."""
    if model.start_from is not None:
        towers.load_state_dict(AutoModel.from_pretrained(model.start_from).state_dict(), strict=False)
    for key in ("cell_encoder", "qformer"):
        place = getattr(model, key)
        if place is None:
            continue
        try:
            take_weights(getattr(towers, key), AutoModel.from_pretrained(place))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"`model.{key}`: {place} does not fit this run's model: {reason}") from error


def _part_config(place: str | None) -> dict[str, Any]:
    return AutoConfig.from_pretrained(place).to_diff_dict() if place is not None else {}


def _update(config: Any, changes: dict[str, Any]) -> None:
    check_names(changes, [field.name for field in fields(type(config))], f"model.config ({type(config).__name__})")
    for name, value in changes.items():
        if isinstance(value, dict) and hasattr(getattr(config, name), "to_dict"):
            _update(getattr(config, name), value)
        else:
            setattr(config, name, value)
