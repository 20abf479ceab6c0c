"""Implausible cells: genes that are usually high when expressed are not high in them, nor those of any cell type.

A guard against confident names for noise and for counts under the wrong gene names, which a softmax never refuses.
"""

import numpy as np
import torch
from torch.nn.functional import embedding_bag

# In fewer genes, and so in small designed panels, the correlation says too little.
MIN_GENES = 100
# The largest of a few round numbers that touches at most 2 % of the cells of every development study; what it
# catches is measured by training/evaluation/out_of_distribution.py.
MIN_AGREEMENT = 0.15
STANDARD_ERRORS = 2.0
# A cell of a full-length protocol may show other genes high than most cells do. It is no noise if its expressed genes are
# as high as some type's profile says. Of hundreds of types one correlates by chance, less than this.
MIN_RESEMBLANCE = 0.06
CHANCE_ERRORS = 4.1
# Differences count up to about here, or two or three marker genes of a type would decide.
SATURATION = 0.5


def looks_implausible(
    values: np.ndarray, log_medians: np.ndarray, is_gene: np.ndarray, value_mode: str, max_genes: int | None
) -> np.ndarray:
    """Which cells certainly agree too little with how high their genes usually are.

    Arrays are (cells, tokens): values, logarithms of the median of a gene's values over the corpus, and which tokens
    are expressed genes. `value_mode` and `max_genes` are settings of the gene tokenizer.
    """
    num_genes = is_gene.sum(axis=1)
    agreement = _correlation(_height(values, value_mode), log_medians, is_gene)
    at_most = agreement + STANDARD_ERRORS / np.sqrt(np.maximum(num_genes, 1))
    # A cell cut to its first genes shows only those that stand out, which bends the correlation.
    is_whole = num_genes < (max_genes or np.inf)
    return is_whole & (num_genes >= MIN_GENES) & (at_most < MIN_AGREEMENT)


def resembles_a_type(
    values: np.ndarray, gene_ids: np.ndarray, is_gene: np.ndarray, differences: torch.Tensor
) -> np.ndarray:
    """Which cells express their genes as high as some type does, compared with the other types.

    Arrays are (cells, tokens), as for `looks_implausible`; `differences` (V, T) are the type profiles by token id, which
    `saturated` has dampened.
    """
    num_genes = is_gene.sum(axis=1)
    ids, kept = torch.from_numpy(np.ascontiguousarray(gene_ids)), torch.from_numpy(is_gene.astype(np.float32))
    height = torch.from_numpy(_centred(values, is_gene).astype(np.float32))
    products = embedding_bag(ids, differences, per_sample_weights=height, mode="sum")
    squares = embedding_bag(ids, differences.square(), per_sample_weights=kept, mode="sum")
    lengths = height.norm(dim=1, keepdim=True) * squares.sqrt()
    best = (products / lengths.clamp(min=1e-6)).amax(dim=1).numpy()
    return best >= np.maximum(MIN_RESEMBLANCE, CHANCE_ERRORS / np.sqrt(np.maximum(num_genes, 1)))


def saturated(differences: torch.Tensor) -> torch.Tensor:
    """Differences of types of which no single gene decides."""
    return torch.tanh(differences / SATURATION)


def _height(values: np.ndarray, value_mode: str) -> np.ndarray:
    """Something that rises with expression, without long tails."""
    if value_mode == "rank":
        return -values
    return np.log1p(values) if value_mode == "counts" else values


def _correlation(first: np.ndarray, second: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Pearson's, row by row, over the kept entries; 1 where one side is constant, which says nothing."""
    first, second = _centred(first, kept), _centred(second, kept)
    squares = [np.einsum("ij,ij->i", one, other) for one, other in ((first, first), (second, second), (first, second))]
    spread = np.sqrt(squares[0] * squares[1])
    return np.divide(squares[2], spread, out=np.ones_like(spread), where=spread > 1e-9)


def _centred(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Kept entries less their row's mean, zero elsewhere."""
    sums = values.sum(axis=1, keepdims=True, where=kept)
    means = sums / np.maximum(kept.sum(axis=1, keepdims=True), 1).astype(values.dtype)
    return (values - means) * kept
