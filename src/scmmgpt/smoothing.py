"""Embeddings averaged over nearest neighbours."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from .processing.cell_matrix_scmmgpt import parts


def nearest_neighbours(embeds: np.ndarray, num_neighbours: int) -> sparse.csr_array:
    """The graph that joins each cell to its `num_neighbours` most similar cells and itself, each with the same weight.

    Embeddings are unit vectors, (N, D). The search is exact, a part of the rows at a time.
    """
    import torch

    num_cells = len(embeds)
    num_neighbours = min(num_neighbours + 1, num_cells)
    columns = np.empty((num_cells, num_neighbours), dtype=np.int64)
    for rows in parts(num_cells, size=1024):
        similarity = np.asarray(embeds[rows]) @ np.asarray(embeds).T
        columns[rows] = torch.from_numpy(similarity).topk(num_neighbours, dim=1, sorted=False).indices
    weights = np.full(columns.size, 1 / num_neighbours, dtype=np.float32)
    offsets = np.arange(0, columns.size + 1, num_neighbours)
    return sparse.csr_array((weights, columns.ravel(), offsets), shape=(num_cells, num_cells))


def graph_weights(graph: sparse.csr_array, rows: np.ndarray, own: float) -> sparse.csr_array:
    """Some rows of a neighbour graph as weights that sum to one, `own` of it the cell's own.

    A cell without neighbours has all of its own weight.
    """
    graph = sparse.csr_array(graph, dtype=np.float32)
    graph.data = np.nan_to_num(graph.data, posinf=0).clip(min=0)
    total = np.asarray(graph.sum(axis=1)).ravel()
    others = np.divide(1 - own, total, out=np.zeros_like(total), where=total > 0)
    places = np.arange(len(rows))
    itself = sparse.csr_array((np.where(total > 0, own, 1).astype(np.float32), (places, rows)), shape=graph.shape)
    return sparse.csr_array(sparse.diags_array(others) @ graph + itself)


def smooth(embeds: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Mean embedding of each cell's neighbourhood.

    Similarity to a label is linear in the embedding, so this is the mean of the neighbours' similarities.
    """
    return np.asarray(nearest_neighbours(embeds, num_neighbours) @ np.asarray(embeds), dtype=np.float32)
