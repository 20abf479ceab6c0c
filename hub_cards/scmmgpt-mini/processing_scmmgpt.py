"""Cells and text in, model inputs out; model outputs in, labels and cells out."""

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .asked_cells_scmmgpt import AskedCells, asked_cells, searched_words
from .calling_scmmgpt import ANNOTATION_FILES, CellAnnotator
from .errors_scmmgpt import UserError
from .gene_tokenization_scmmgpt import HUB_ARGUMENTS, hub_file
from .prompting_scmmgpt import CELL_TOKEN, chat_template_with_cells, conversation, description_question

if TYPE_CHECKING:  # transformers saves what a module imports, this too: the pipelines travel with the processor
    from .pipeline_scmmgpt import PIPELINES  # noqa: F401

try:
    import anndata
    import pandas as pd
except ImportError:  # only `post_process_cells` needs them
    anndata = pd = None

QFORMER_FOLDER = "qformer_tokenizer"
CELL_OPTIONS = ("layer", "counts", "gene_column", "species", "strict", "max_genes", "packed", "sample_seed")


class ScMMGPTProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True}, "common_kwargs": {"return_tensors": "pt"}}  # type: ignore[misc] # where transformers looks


OPTIONS: Any = ScMMGPTProcessorKwargs  # transformers takes the class where its annotation says an instance


class ScMMGPTProcessor(ProcessorMixin):
    """Gene tokenizer and text tokenizer in one.

    Parameters
    ----------
    feature_extractor
        The `ScMMGPTGeneTokenizer`.
    tokenizer
        The text tokenizer; `<cell>` is added to it where it lacks it.
    qformer_tokenizer
        Text tokenizer of the Q-Former, if it differs from the language model's.
    num_query_tokens
        Placeholders that stand for one cell in a prompt.
    cell_token
        The placeholder.
    chat_template
        Chat template; default: the text tokenizer's, extended by `{"type": "cell"}` blocks.
    """

    valid_processor_kwargs = ScMMGPTProcessorKwargs

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        qformer_tokenizer=None,
        num_query_tokens: int = 32,
        cell_token: str = CELL_TOKEN,
        chat_template: str | None = None,
    ):
        if cell_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([cell_token], special_tokens=True)
        self.num_query_tokens = num_query_tokens
        self.cell_token = cell_token
        self.cell_token_id = tokenizer.convert_tokens_to_ids(cell_token)
        self.qformer_tokenizer = qformer_tokenizer
        # How scores become names: read where the processor was loaded from, written where it is saved.
        self.annotation_files: dict[str, str] = {}
        template = chat_template or chat_template_with_cells(tokenizer.chat_template)
        super().__init__(feature_extractor, tokenizer, chat_template=template)

    @property
    def gene_tokenizer(self):
        """The `ScMMGPTGeneTokenizer`; the same object as `feature_extractor`."""
        return self.feature_extractor

    @property
    def account(self) -> dict | None:
        """What the last call decided about the matrix and the genes of the cells."""
        return self.gene_tokenizer.account

    @property
    def model_input_names(self) -> list[str]:
        """Everything that a call may return."""
        names = [*self.tokenizer.model_input_names, *self.gene_tokenizer.model_input_names]
        return [*names, *(f"qformer_{name}" for name in QFORMER_NAMES)] if self.qformer_tokenizer else names

    def __call__(
        self,
        cells: Any = None,
        text: str | Sequence[str] | None = None,
        images=None,
        videos=None,
        audio=None,
        **kwargs: Unpack[ScMMGPTProcessorKwargs],
    ) -> BatchFeature:
        """Model inputs for cells, text, or prompts about cells.

        Parameters
        ----------
        cells
            What the gene tokenizer takes: an AnnData, a path, a pair (matrix, gene names), or a list of those.
        text
            One string for every cell, or one per cell. Text without `<cell>` gets one in front when cells are given;
            text with k of them takes k cells.
        images, videos, audio
            Not taken.
        kwargs
            Options of the gene tokenizer (`layer`, `counts`, `gene_column`, `species`, `strict`, `max_genes`,
            `packed`, `sample_seed`), and of the text tokenizer (`padding`, `truncation`, `max_length`, ...).
        """
        if images is not None or videos is not None or audio is not None:
            raise UserError("scmmgpt takes cells and text, no images, videos or audio.")
        if cells is None and text is None:
            raise UserError("Nothing to process: pass `cells=`, `text=`, or both.")
        if text is not None and not isinstance(text, str):
            text = _list_of_texts(text)
            if not text and cells is None:
                raise UserError("`text` is an empty list.")
        cell_options = {name: option for name, option in kwargs.items() if name in CELL_OPTIONS}
        text_options = {name: option for name, option in kwargs.items() if name not in CELL_OPTIONS}
        options = self._merge_kwargs(OPTIONS, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **text_options)
        return_tensors = options["text_kwargs"].pop("return_tensors", None)
        features: dict[str, Any] = {}
        if cells is not None:
            features.update(self.gene_tokenizer(cells, **cell_options))
        if text is not None:
            num_cells = None if cells is None else _num_cells(features)
            features = {**self._tokenize_text(text, num_cells, options), **features}
        return BatchFeature(features, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def prompts(self, text: str | Sequence[str], num_cells: int, **kwargs) -> BatchFeature:
        """The text half of a call, for `num_cells` cells whose tokens are at hand already; options as in the call."""
        options = self._merge_kwargs(OPTIONS, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        return_tensors = options["text_kwargs"].pop("return_tensors", None)
        return BatchFeature(self._tokenize_text(text, num_cells, options), tensor_type=return_tensors)

    def cell_prompt(self, question: str | None = None, num_cells: int = 1) -> str:
        """A chat about cells up to where the answer begins, with one `<cell>` for each.

        Without a question it asks for a description, as in training.
        """
        messages = conversation(question or description_question(), num_cells=num_cells)
        return self.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _tokenize_text(self, text: str | Sequence[str], num_cells: int | None, options: dict) -> dict[str, Any]:
        text_options = options["text_kwargs"]
        text_options.pop("return_mm_token_type_ids", None)
        with_offsets = text_options.pop("return_text_replacement_offsets", False) or options.get(
            "return_text_replacement_offsets", False
        )
        if num_cells is not None:  # an answer begins where its prompt ends
            text_options.setdefault("padding_side", "left")
        texts = self._place_cells(text, num_cells)
        features = dict(self.tokenizer([self.expand_cell_tokens(one) for one in texts], **text_options))
        if (fast := getattr(self.tokenizer, "backend_tokenizer", None)) is not None:
            fast.no_padding()  # which it would remember, and save
        if with_offsets:  # without them `return_assistant_tokens_mask=True` marks the wrong tokens
            features["text_replacement_offsets"] = [self._replacements(one) for one in texts]
        if self.qformer_tokenizer is not None and num_cells is None:
            for_qformer = self.qformer_tokenizer(texts, padding=text_options.get("padding", True), truncation=True)
            features.update({f"qformer_{name}": for_qformer[name] for name in QFORMER_NAMES})
        return features

    def _place_cells(self, text: str | Sequence[str], num_cells: int | None) -> list[str]:
        """One text per prompt, with as many `<cell>` in all as there are cells."""
        texts = [text] if isinstance(text, str) else list(text)
        num_placed = sum(one.count(self.cell_token) for one in texts)
        if num_placed == (num_cells or 0):
            return texts
        if num_cells is None:
            raise UserError(f"The text has {num_placed} `{self.cell_token}` but no `cells=` were passed.")
        if isinstance(text, str) and num_placed <= 1:
            texts = texts * num_cells
        texts = [one if self.cell_token in one else f"{self.cell_token} {one}" for one in texts]
        num_placed = sum(one.count(self.cell_token) for one in texts)
        if num_placed != num_cells:
            raise UserError(
                f"{len(texts)} texts with {num_placed} `{self.cell_token}` in all cannot take {num_cells} cells. Pass "
                f"one text for every cell, one per cell, or as many `{self.cell_token}` as there are cells."
            )
        return texts

    def expand_cell_tokens(self, text: str) -> str:
        """The text with every `<cell>` repeated, once for each query token: what the text tokenizer is given."""
        return text.replace(self.cell_token, self.cell_token * self.num_query_tokens)

    def _replacements(self, text: str) -> list[dict]:
        """Which characters of a text `expand_cell_tokens` replaces, in the words of transformers."""
        repeated = self.expand_cell_tokens(self.cell_token)
        gained = len(repeated) - len(self.cell_token)
        spans = [match.span() for match in re.finditer(re.escape(self.cell_token), text)]
        return [
            {
                "type": "cell",
                "span": (start, end),
                "new_span": (start + place * gained, end + (place + 1) * gained),
                "text": self.cell_token,
                "replacement": repeated,
            }
            for place, (start, end) in enumerate(spans)
        ]

    def _multimodal_inputs_from_conversations(self, conversations, audio_loading_params, load_audio_from_video=False):
        images, videos, audios, others = super()._multimodal_inputs_from_conversations(
            conversations, audio_loading_params, load_audio_from_video
        )
        cells = [
            block["cell"]
            for conversation in conversations
            for message in conversation
            if isinstance(message.get("content"), list)
            for block in message["content"]
            if block["type"] == "cell" and block.get("cell") is not None
        ]
        return images, videos, audios, {**others, "cells": cells} if cells else others

    def asked_cells(self, text: str) -> AskedCells:
        """What a text asks for, of cells to make: in the ontology's words, without what was done to the cells."""
        return asked_cells(text, self.annotator().ontology)

    def searched_words(self, text: str) -> str:
        """A text to look for cells by, as it is compared with them."""
        return searched_words(text, self.annotator().ontology)

    # ---- output side

    def annotator(self, config: Any = None) -> CellAnnotator:
        """How scores of a model become names: its calibration, its ontology, its type profiles.

        The training summary in the model's `config` names the types to choose from where no labels are given.
        """
        return CellAnnotator.of_files(self.annotation_files, getattr(config, "training_summary", None))

    def post_process_annotation(
        self, scores: Any, labels: Sequence[str], num_choices: int = 2
    ) -> list[dict[str, Any]]:
        """The best labels of each cell with their probabilities.

        Parameters
        ----------
        scores
            Logits, cells x labels.
        labels
            Names in the order of the columns; returned verbatim.
        num_choices
            How many to return, best first.
        """
        logits = np.asarray(scores.detach().float().cpu() if hasattr(scores, "detach") else scores, dtype=np.float64)
        if logits.ndim != 2 or logits.shape[1] != len(labels):
            raise UserError(
                f"`scores` has shape {logits.shape}; expected one column for each of {len(labels)} labels."
            )
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :num_choices]
        return [
            {"labels": [labels[column] for column in row], "confidences": probabilities[cell, row].tolist()}
            for cell, row in enumerate(best)
        ]

    def post_process_cells(
        self, counts: Any, gene_ids: Any = None, text: Sequence[str] | str | None = None
    ) -> "anndata.AnnData":
        """Pseudo-cells as an AnnData of counts, complete with names.

        Parameters
        ----------
        counts
            Whole numbers, cells x genes.
        gene_ids
            Vocabulary id of each column; None: every gene of the vocabulary in order.
        text
            What the cells were generated from, one for all or one per cell, kept in `obs["text"]`.
        """
        if anndata is None:
            raise ImportError('`post_process_cells` returns an AnnData: pip install "anndata>=0.12".')
        counts = np.asarray(counts.detach().cpu() if hasattr(counts, "detach") else counts)
        gene_tokenizer = self.gene_tokenizer
        gene_ids = gene_tokenizer.gene_ids if gene_ids is None else np.asarray(gene_ids)
        rows = gene_tokenizer.gene_rows(gene_ids)
        if (rows < 0).any():
            raise ValueError(f"Ids {gene_ids[rows < 0].tolist()} are special tokens, not genes.")
        if counts.ndim != 2 or counts.shape[1] != len(rows):
            raise ValueError(f"`counts` has shape {counts.shape}, but {len(rows)} genes are named.")
        symbols, ensembl_ids = np.array(gene_tokenizer.genes)[rows], np.array(gene_tokenizer.ensembl_ids)[rows]
        var = pd.DataFrame({"feature_name": symbols, "feature_id": ensembl_ids}, index=pd.Index(symbols, dtype=str))
        obs = pd.DataFrame({"total_counts": counts.sum(axis=1), "n_genes": (counts > 0).sum(axis=1)})
        obs.index = pd.Index([f"cell_{number}" for number in range(len(counts))], dtype=str)
        if text is not None:
            obs["text"] = text
        return anndata.AnnData(sparse.csr_matrix(counts.astype(np.int32)), obs=obs, var=var)

    # ---- save, load

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Parts that transformers saves and loads; `qformer_tokenizer` may be absent, so it is ours to handle."""
        return ["feature_extractor", "tokenizer"]

    def to_dict(self) -> dict[str, Any]:
        """The settings, without what has files of its own: the second tokenizer and the annotation's."""
        own, self.qformer_tokenizer = self.qformer_tokenizer, None
        try:
            settings = super().to_dict()
        finally:
            self.qformer_tokenizer = own
        settings.pop("qformer_tokenizer", None)
        settings.pop("annotation_files", None)
        # A save sets it, a load forgets it: both say the same.
        settings["auto_map"] = {"AutoProcessor": f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"}
        return settings

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings, and beside them the vocabulary, the second tokenizer and the annotation's files.

        `save_pretrained(push_to_hub=True)` uploads what was written after it listed the folder: this is the one call
        it makes in between.
        """
        super().to_json_file(json_file_path)
        directory = os.path.dirname(json_file_path)
        self.gene_tokenizer.save_vocabulary(directory)
        if self.qformer_tokenizer is not None:
            self.qformer_tokenizer.save_pretrained(os.path.join(directory, QFORMER_FOLDER))
        for name, path in self.annotation_files.items():
            if not os.path.exists(target := os.path.join(directory, name)) or not os.path.samefile(path, target):
                shutil.copyfile(path, target)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "ScMMGPTProcessor":  # type: ignore[override] # options by name alone
        """Load settings, gene tokenizer and text tokenizers from a folder or a Hub repository."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        where = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        subfolder = where.pop("subfolder", "")

        def found(name: str) -> str | None:
            return hub_file(pretrained_model_name_or_path, os.path.join(subfolder, name), where)

        if settings := found(f"{QFORMER_FOLDER}/tokenizer_config.json"):
            processor.qformer_tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(settings))
        processor.annotation_files = {name: path for name in ANNOTATION_FILES if (path := found(name))}
        return processor


QFORMER_NAMES = ("input_ids", "attention_mask")


def _list_of_texts(texts: Any) -> list[str]:
    found = list(texts) if isinstance(texts, Iterable) else [texts]
    if all(isinstance(text, str) for text in found):
        return found
    raise UserError(f"`text` must be one text or a list of texts, got {texts!r:.80}.")


def _num_cells(features: dict) -> int:
    return len(features["cell_cu_seqlens"]) - 1 if "cell_cu_seqlens" in features else len(features["gene_ids"])


__all__ = ["ScMMGPTProcessor"]
