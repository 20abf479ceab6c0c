"""Numbers about embeddings: do types form clusters, do batches mix, which text belongs to which cell.

Pure functions of arrays; scikit-learn comes with the extra `eval`, scib-metrics with the extra `scib`.
Definitions of AvgBIO and AvgBATCH: scGPT (Cui et al. 2024) after scIB (Luecken et al. 2022).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import hypergeom

from .metrics import Labels

NUM_NEIGHBOURS = 15
LISI_NEIGHBOURS = 90  # as scIB: three times the perplexity
NUM_LEIDENS = 40
RESOLUTIONS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)


def bio_conservation(embedding: np.ndarray, types: Labels, *, seed: int = 0) -> dict[str, float]:
    """How well clusters of the embedding agree with cell types: ARI, NMI, ASW and their mean AvgBIO.

    ASW is the silhouette of the types brought to 0..1. ARI and NMI are means over `clusterings`: the ARI of one run of
    Leiden has a standard deviation of up to 0.07 on a study, and moves with the last digits of the embedding.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    types = np.asarray(types).astype(str)
    found = clusterings(embedding, types, seed=seed)
    scores = {
        "ari": float(np.mean([adjusted_rand_score(types, clusters) for clusters in found])),
        "nmi": float(np.mean([normalized_mutual_info_score(types, clusters) for clusters in found])),
        "asw": float((silhouette_score(embedding, types, random_state=seed) + 1) / 2),
    }
    return {**scores, "avg_bio": float(np.mean(list(scores.values())))}


def batch_mixing(embedding: np.ndarray, types: Labels, batches: Labels) -> dict[str, float]:
    """How little batches show within a type: batch ASW, graph connectivity and their mean AvgBATCH, 1 is best.

    Batch ASW is 1 - |silhouette of the batches|, averaged within each type that has two batches, then over types.
    """
    from sklearn.metrics import silhouette_samples

    types, batches = np.asarray(types).astype(str), np.asarray(batches).astype(str)
    per_type = []
    for name in np.unique(types):
        here = types == name
        if 1 < len(np.unique(batches[here])) < here.sum():
            per_type.append(np.mean(1 - np.abs(silhouette_samples(embedding[here], batches[here]))))
    scores = {
        "asw_batch": float(np.mean(per_type)) if per_type else float("nan"),
        "graph_connectivity": graph_connectivity(embedding, types),
    }
    return {**scores, "avg_batch": float(np.mean(list(scores.values())))}


def graph_connectivity(embedding: np.ndarray, types: Labels, num_neighbours: int = NUM_NEIGHBOURS) -> float:
    """Share of a type's cells in the largest connected part of that type's neighbour graph, averaged over types."""
    types = np.asarray(types).astype(str)
    graph = _neighbour_graph(embedding, num_neighbours)
    shares = []
    for name in np.unique(types):
        here = np.flatnonzero(types == name)
        _, part = connected_components(graph[here][:, here], directed=False)
        shares.append(np.max(np.bincount(part)) / len(here))
    return float(np.mean(shares))


def clusterings(embedding: np.ndarray, types: Labels, *, seed: int = 0) -> list[np.ndarray]:
    """Leiden clusters of many seeds, each at the resolution of best NMI, as scIB does; without igraph k-means, once.

    k-means is told the true number. Looking at the types to choose a resolution flatters, and flatters every embedding
    alike.
    """
    from sklearn.cluster import KMeans

    if clustering_method() == "k-means":
        return [KMeans(len(set(types)), n_init=10, random_state=seed).fit_predict(embedding)]
    graph = _undirected_neighbours(embedding)
    return [_leiden(graph, types, one) for one in range(seed, seed + NUM_LEIDENS)]


def clustering_method() -> str:
    """ "Leiden" where igraph is installed, else "k-means"."""
    from importlib.util import find_spec

    return "Leiden" if find_spec("igraph") else "k-means"


def scib_scores(embedding: np.ndarray, types: Labels, batches: Labels | None = None) -> dict[str, float]:
    """The same notions computed by scib-metrics, each under `scib_...`; empty where it is not installed."""
    try:
        import scib_metrics
        from scib_metrics.nearest_neighbors import pynndescent
    except ImportError:
        return {}
    types = np.asarray(types).astype(str)
    neighbours = pynndescent(np.asarray(embedding, np.float32), n_neighbors=NUM_NEIGHBOURS)
    leiden = scib_metrics.nmi_ari_cluster_labels_leiden(neighbours, types)
    scores = {"scib_nmi": leiden["nmi"], "scib_ari": leiden["ari"]}
    scores["scib_asw"] = scib_metrics.silhouette_label(embedding, types)
    scores["scib_graph_connectivity"] = scib_metrics.graph_connectivity(neighbours, types)
    if batches is not None:
        batches = np.asarray(batches).astype(str)
        scores["scib_asw_batch"] = scib_metrics.silhouette_batch(embedding, types, batches)
        around = pynndescent(np.asarray(embedding, np.float32), n_neighbors=min(LISI_NEIGHBOURS, len(types) - 1))
        scores["scib_ilisi"] = scib_metrics.ilisi_knn(around, batches)
    return {name: float(value) for name, value in scores.items()}


def recall_at(similarity: np.ndarray, query_types: Labels, gallery_types: Labels, k: int) -> tuple[float, float]:
    """Share of queries with an item of their own type among the k most similar, and what a blind ranking would get.

    Q queries, G gallery items; a duplicate item is one more chance, so collapse equal texts before. Items of equal
    similarity are taken in random order: the expectation is returned, and a constant similarity scores the chance.
    """
    relevant_QG = np.asarray(query_types).astype(str)[:, None] == np.asarray(gallery_types).astype(str)[None, :]
    answerable = relevant_QG.any(1)
    if not answerable.any():
        return float("nan"), float("nan")
    relevant_QG, similarity_QG = relevant_QG[answerable], np.asarray(similarity)[answerable]
    best_Q1 = np.where(relevant_QG, similarity_QG, -np.inf).max(1, keepdims=True)
    places_left_Q = np.maximum(k - (similarity_QG > best_Q1).sum(1), 0)
    tied_QG = similarity_QG == best_Q1
    found = _chance_of_one(tied_QG.sum(1), (tied_QG & relevant_QG).sum(1), places_left_Q)
    blind = _chance_of_one(np.full(len(found), relevant_QG.shape[1]), relevant_QG.sum(1), np.full(len(found), k))
    return float(found.mean()), float(blind.mean())


def _chance_of_one(num_items: np.ndarray, num_relevant: np.ndarray, num_drawn: np.ndarray) -> np.ndarray:
    """Chance that a draw without replacement holds at least one relevant item."""
    return 1 - hypergeom.pmf(0, num_items, num_relevant, np.minimum(num_drawn, num_items))


def _undirected_neighbours(embedding: np.ndarray) -> Any:
    import igraph

    graph = _neighbour_graph(embedding, NUM_NEIGHBOURS).tocoo()
    edges = list(zip(*np.sort([graph.row, graph.col], axis=0).tolist(), strict=True))
    return igraph.Graph(graph.shape[0], edges).simplify()


def _leiden(graph: Any, types: Labels, seed: int) -> np.ndarray:
    from sklearn.metrics import normalized_mutual_info_score

    tried = []
    for resolution in RESOLUTIONS:
        random.seed(seed)  # the only generator that igraph knows
        found = graph.community_leiden("modularity", resolution=resolution, n_iterations=2)
        tried.append(np.array(found.membership))
    return max(tried, key=lambda clusters: normalized_mutual_info_score(types, clusters))


def _neighbour_graph(embedding: np.ndarray, num_neighbours: int) -> csr_matrix:
    from sklearn.neighbors import kneighbors_graph

    return csr_matrix(kneighbors_graph(embedding, min(num_neighbours, len(embedding) - 1)))
