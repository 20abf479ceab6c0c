"""Rows of a corpus -> the arguments of `forward`: padded or packed genes, texts, and which texts are alike.

Rows come as one Arrow table (`CorpusRows`) or as a list of dicts (`datasets`); both give the same batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch

from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.cell_matrix_scmmgpt import CsrRows
from scmmgpt.processing.gene_layout_scmmgpt import CellBlock, lay_out, pad_tokens
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.corpus.reading import GENE_COLUMNS, as_rows, ragged
from scmmgpt.training.corpus.shards import to_model_values

Rows: TypeAlias = "pa.Table | list[dict]"


@dataclass
class CellCollator:
    """Genes of the rows as `gene_ids`, `gene_values`, `gene_mask`, or packed end to end with `cell_cu_seqlens`.

    Attributes
    ----------
    value_mode
        How the corpus wrote its values: `corpus.manifest["value_mode"]`.
    max_genes
        Tokens of a cell to keep, from the first; None keeps all.
    """

    value_mode: str
    packed: bool = False
    max_genes: int | None = None

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        offsets, gene_ids, stored = _genes_of(rows)
        values = to_model_values(stored, self.value_mode)
        if self.max_genes is not None:
            offsets, gene_ids, values = _first_tokens(offsets, gene_ids, values, self.max_genes)
        if self.packed:
            return {
                "gene_ids": torch.from_numpy(gene_ids.astype(np.int64))[None],
                "gene_values": torch.from_numpy(values)[None],
                "cell_cu_seqlens": torch.from_numpy(offsets.astype(np.int32)),
            }
        padded = pad_tokens(gene_ids, values, np.diff(offsets))
        return {name: torch.from_numpy(array) for name, array in padded.items()}


@dataclass
class TokenizingCollator:
    """The same from a corpus of raw counts, tokenised as the batch is made: other settings need no other corpus.

    Attributes
    ----------
    gene_tokenizer
        A gene tokenizer with the corpus's vocabulary and any settings. With `panel_scaling` every cell is taken for
        one of a whole transcriptome: a corpus does not say which genes were measured and zero.
    """

    gene_tokenizer: ScMMGPTGeneTokenizer
    packed: bool = False

    @cached_property
    def _id_of_column(self) -> np.ndarray:
        """Columns are vocabulary ids; special tokens are not counted."""
        ids = np.arange(self.gene_tokenizer.vocab_size, dtype=np.int32)
        return np.where(self.gene_tokenizer.is_gene(ids), ids, -1).astype(np.int32)

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        offsets, gene_ids, stored = _genes_of(rows)
        cells = CsrRows(offsets.astype(np.int64), gene_ids.astype(np.int32), stored.astype(np.float32))
        tokenizer = self.gene_tokenizer
        # The corpus has named the genes already: straight to the layout, which costs a tenth of the whole call.
        block = CellBlock(cells, self._id_of_column, tokenizer.target_sum, float(cells.data.sum()), 0)
        features, _ = lay_out([block], tokenizer._layout(tokenizer.max_genes, self.packed))
        return {name: torch.from_numpy(array) for name, array in features.items()}


@dataclass
class CellTextCollator:
    """Cells with their texts: what stage 1 trains on.

    Attributes
    ----------
    collate_cells
        A `CellCollator` or `TokenizingCollator`.
    write_text
        (row, generator) -> text. The generator is seeded by the row, so a rerun writes the same words.
    tokenize
        Texts -> `input_ids`, `attention_mask` and what else the text branch takes, as tensors.
    ontology
        Tells which types are near each other or contain one another.
    """

    collate_cells: Callable[[Rows], dict]
    write_text: Callable[[dict, np.random.Generator], str]
    tokenize: Callable[[list[str]], dict]
    ontology: Ontology
    seed: int = 0

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        facts = facts_of(rows)
        texts = [self.write_text(row, row_generator(row, self.seed)) for row in facts]
        return {
            **self.collate_cells(rows),
            **self.tokenize(texts),
            "text_groups": text_groups(texts),
            "text_lineage": self._lineages.of([row["cell_type_ontology_term_id"] for row in facts]),
        }

    @cached_property
    def _lineages(self) -> Lineages:
        return Lineages(self.ontology)


@dataclass
class Lineages:
    """The numbers of cell types and of all that lies above them, as rows of one width."""

    ontology: Ontology

    @cached_property
    def width(self) -> int:
        """The same in every process and batch: rows of several processes are gathered."""
        return 1 + max((len(self.ontology.ancestors(term)) for term in self.ontology.terms), default=0)

    def of(self, term_ids: list[str]) -> torch.Tensor:
        """(terms, width): a term, then its ancestors, padded with -1; a row of -1 for a term not known."""
        lineages = torch.full((len(term_ids), self.width), -1, dtype=torch.int64)
        for row, term_id in zip(lineages, term_ids, strict=True):
            if term_id in self.ontology.terms:
                numbers = [_number(term) for term in (term_id, *self.ontology.ancestors(term_id))]
                row[: len(numbers)] = torch.tensor(numbers)
        return lineages


def text_groups(texts: list[str]) -> torch.Tensor:
    """A number for each text that is equal exactly where texts are equal, in every process."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


def row_generator(row: dict, seed: int) -> np.random.Generator:
    """Random numbers that belong to a row, wherever and in whichever batch it is read."""
    return np.random.default_rng([seed, row["cell_hash"]])


def facts_of(rows: Rows) -> list[dict]:
    """The rows as dicts; gene lists stay arrays."""
    return as_rows(rows) if isinstance(rows, pa.Table) else rows


def _genes_of(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets of the cells, their gene ids and stored values end to end."""
    if isinstance(rows, pa.Table):
        return ragged(rows)
    offsets = np.concatenate([[0], np.cumsum([len(row["gene_ids"]) for row in rows])])
    gene_ids, values = (np.concatenate([np.asarray(row[key]) for row in rows]) for key in GENE_COLUMNS)
    return offsets, gene_ids, values


def _first_tokens(offsets, gene_ids, values, max_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)
    place = np.arange(len(gene_ids)) - np.repeat(offsets[:-1], lengths)
    kept = place < max_tokens
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, max_tokens))])
    return offsets, gene_ids[kept], values[kept]


def _number(term_id: str) -> int:
    return int(term_id.rpartition(":")[2])
