"""Initial values of the cell decoder: mean share of each gene, and principal components of the type profiles.

A new decoder would spend its first thousands of steps on both, and they are a sum and a singular value decomposition.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from scmmgpt.modeling_scmmgpt.modeling_factor_decoder import CellDecoder, ScMMGPTFactorDecoder
from scmmgpt.training.corpus.reading import Corpus, Selection

# What is added to a share before its logarithm: a tenth of a transcript in a cell of ten thousand.
PSEUDO_SHARE = 1e-5
LEADING_GENES = 3_000
MOST_ROWS = 20_000


def is_new(decoder: CellDecoder) -> bool:
    """Whether nothing has been learnt about any gene yet."""
    bias = _genes(decoder).gene_bias
    return bool((bias == bias[0]).all())


@torch.no_grad()
def begin_with(decoder: CellDecoder, shares: np.ndarray, measured: np.ndarray, gene_ids: np.ndarray) -> None:
    """Set the free numbers of each gene from mean profiles.

    Parameters
    ----------
    decoder
        Its `gene_bias`, and `gene_loadings` or `gene_states` where it has them, are written.
    shares
        (P, G) share of each gene in the counts of P profiles.
    measured
        (P, G) genes that a profile measured.
    gene_ids
        (G,) row of each gene in the decoder.
    """
    head = _genes(decoder)
    loadings = head.gene_states if isinstance(head, ScMMGPTFactorDecoder) else getattr(head, "gene_loadings", None)
    mean = np.where(measured, shares, 0).sum(0) / np.maximum(measured.sum(0), 1)
    smallest = mean[mean > 0].min()
    head.gene_bias[gene_ids] = _like(np.log(np.maximum(mean, smallest)), head.gene_bias)
    if loadings is not None:
        components = leading_components(shares, measured, loadings.shape[1])
        loadings.zero_()
        loadings[gene_ids, : components.shape[1]] = _like(components, loadings)


def _genes(decoder: CellDecoder):
    """The part that knows each gene."""
    return decoder if isinstance(decoder, ScMMGPTFactorDecoder) else decoder.gene_head


def leading_components(shares: np.ndarray, measured: np.ndarray, number: int) -> np.ndarray:
    """(G, R) how each gene's log share moves with the R leading components of the profiles, for a step of one deviation.

    The components are those of the genes that fill the cells; what a profile did not measure counts as the mean.
    """
    logs = np.log(shares + PSEUDO_SHARE, dtype=np.float32)
    mean = (logs * measured).sum(0) / np.maximum(measured.sum(0), 1)
    deviations = np.where(measured, logs - mean, 0)
    leading = np.argsort(-shares.max(0), kind="stable")[:LEADING_GENES]
    scores, sizes, _ = np.linalg.svd(deviations[:, leading], full_matrices=False)
    kept = min(number, int((sizes > 1e-4 * sizes[0]).sum()))
    scores = scores[:, :kept] * np.sqrt(len(scores))
    return deviations.T @ scores / len(scores)


def corpus_shares(corpus: Corpus, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    """(P, V) shares of the counts and genes seen, for each study's types in a sample of a corpus of counts."""
    rows = corpus.rows(selection)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST_ROWS])
    kinds = corpus.table(rows, ["study", "cell_type_ontology_term_id"]).to_pandas().astype(str)
    _, profile = np.unique(kinds.agg("|".join, axis=1), return_inverse=True)
    member = sp.csr_matrix((np.ones(len(rows)), (profile, np.arange(len(rows)))))
    counts = (member @ corpus.matrix(rows)).toarray()
    seen = np.zeros_like(counts, dtype=bool)
    for study in kinds.study.unique():
        mine = np.unique(profile[(kinds.study == study).to_numpy()])
        seen[mine] = (counts[mine] > 0).any(0)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1), seen


def _like(values: np.ndarray, parameter: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(parameter)
