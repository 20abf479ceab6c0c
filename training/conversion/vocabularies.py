"""Gene ids change on the way: our vocabularies begin with the special tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scmmgpt.errors import UserError
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneNames
from scmmgpt.processing.gene_vocabulary_scmmgpt import SPECIAL_TOKENS


def in_our_order(vocabulary: Mapping[str, float]) -> tuple[list[str], list[int | None]]:
    """Genes by their old ids, and the old id for each of our ids; None: a special token that was not known."""
    old = {name: int(token) for name, token in vocabulary.items()}
    genes = sorted((name for name in old if not re.fullmatch(r"<.*>", name)), key=old.__getitem__)
    return genes, [old.get(name) for name in (*SPECIAL_TOKENS, *genes)]


def take_rows(table: torch.Tensor, rows: Sequence[int | None]) -> torch.Tensor:
    last = max(row for row in rows if row is not None)
    if last >= len(table):
        raise UserError(f"The vocabulary names id {last}, the weights hold {len(table)}.")
    taken = table[torch.tensor([0 if row is None else row for row in rows])].clone()
    taken[[row is None for row in rows]] = 0.0
    return taken


def tokenizer_of_genes(genes: Sequence[str], **settings: Any) -> ScMMGPTGeneTokenizer:
    """With the table of gene names that comes with the package, so that symbols find Ensembl ids and back."""
    names = EMBEDDED_MODEL / GENE_NAMES_FILE
    return ScMMGPTGeneTokenizer(genes, gene_names=GeneNames.read(names) if names.exists() else None, **settings)
