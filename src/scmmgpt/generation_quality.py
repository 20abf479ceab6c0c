"""How generated cells look by themselves and beside real ones: numbers that are not chosen to flatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from .errors import UserError
from .processing.ontology_scmmgpt import Ontology, Term

if TYPE_CHECKING:
    from anndata import AnnData

TARGET_SUM = 1e4
NUM_NEIGHBOURS = 5
NUM_COMPONENTS = 30
NUM_VARIABLE = 1_000
NUM_COVARIANCE_GENES = 200
FEWEST_GENES, FEWEST_CELLS = 50, 20
FEWEST_FOR_COVARIANCE = 40
MOST_CELLS = 1_000  # of either side: distances between all pairs
FOLDS = 5
RIDGE = 0.3  # of the mean variance, for the direction that tells real from made


def own_quality(counts: sparse.csr_matrix, genes: Sequence[str]) -> dict[str, Any]:
    """Size, sparsity and variety of generated cells."""
    totals, num_genes = np.asarray(counts.sum(1)).ravel(), np.diff(counts.indptr)
    mean = np.asarray(counts.mean(0)).ravel()
    return {
        "median_counts": float(np.median(totals)),
        "median_genes": float(np.median(num_genes)),
        "share_of_zeros": round(1 - counts.nnz / np.prod(counts.shape), 4),
        "distinct_cells": len({row.tobytes() for row in _contents(counts)}),
        "top_genes": ", ".join(np.asarray(genes)[np.argsort(-mean)[:10]]),
    }


@dataclass(frozen=True)
class Reference:
    """Real cells: linear values (cells, G) of genes named in upper case, and the type of each cell where it is known."""

    values: sparse.csr_matrix
    genes: np.ndarray
    types: np.ndarray | None


def read_reference(cells: AnnData, key: str) -> Reference:
    """The cells that generated ones are held against; `key` names the column of their types."""
    from .processing.cell_reading_scmmgpt import choose_matrix, open_cells

    with open_cells(cells) as opened:
        chosen = choose_matrix(opened)
        num_cells, num_genes = chosen.matrix.shape
        if num_cells < FEWEST_CELLS:
            raise UserError(f"reference= holds {num_cells} cells; at least {FEWEST_CELLS} are needed.")
        rows, _ = chosen.linear_rows(0, num_cells)
        values = sparse.csr_matrix(
            (rows.data, rows.indices, rows.indptr - rows.indptr[0]), shape=(num_cells, num_genes)
        )
        names = chosen.matrix.var_names
        if chosen.matrix.var is not None and "feature_name" in chosen.matrix.var:
            names = chosen.matrix.var["feature_name"]
    if key not in cells.obs:
        known = ", ".join(map(str, cells.obs.columns[:8]))
        raise UserError(
            f"reference= has no column {key!r} in obs; name its types in reference_key=. There is: {known}."
        )
    types = cells.obs[key].astype(str).to_numpy()
    return Reference(values, np.array([str(name).upper() for name in names]), types)


def quality_beside(
    reference: Reference,
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    asked: Sequence[Term | None],
    ontology: Ontology,
    seed: int = 0,
) -> dict[str, Any]:
    """Generated cells beside real ones, on the genes of both.

    `asked` is the type that each generated cell was asked for. Real cells are cut in two halves: one is the reference,
    the other, measured in the same way, is what perfect cells would reach (`real_...`).
    """
    made, real = _on_shared_genes(reference, counts, genes)
    random = np.random.default_rng(seed)
    order = random.permutation(real.shape[0])[: 2 * MOST_CELLS]
    first, second = np.sort(order[::2]), np.sort(order[1::2])
    picked = np.sort(random.permutation(made.shape[0])[:MOST_CELLS])
    types, meant = _meant_types(reference, asked, ontology)
    made, meant = made[picked], meant[picked]
    values: dict[str, Any] = {"reference_genes": made.shape[1], "reference_cells": real.shape[0]}
    values |= _sizes("", made) | _sizes("real_", real[second])
    logs = [_log_normalised(part) for part in (made, real[first], real[second])]
    points = _components(logs)
    for name, mine, named in (("", points[0], meant), ("real_", points[2], types[second])):
        known = named != ""
        if known.any():
            near = _neighbour_types(mine[known], points[1], types[first])
            values[f"{name}nearest_type_as_asked"] = round(float((near == named[known]).mean()), 3)
    values["real_or_made_auc"] = _auc(points[2], points[0], random)
    values |= _near_copies(*points)
    values |= _covariance(logs, meant, types[first], types[second])
    return values


def _on_shared_genes(reference: Reference, counts: sparse.csr_matrix, genes: Sequence[str]):
    column = {str(name).upper(): i for i, name in enumerate(genes)}
    place: dict[str, int] = {}
    for i, name in enumerate(reference.genes):
        if name in column:
            place.setdefault(name, i)
    if len(place) < FEWEST_GENES:
        raise UserError(
            f"reference= shares {len(place)} genes with the generated cells; at least {FEWEST_GENES} are needed. Its genes "
            f"look like {', '.join(reference.genes[:3])}: give symbols in var_names or in var['feature_name']."
        )
    names = list(place)
    return counts[:, [column[name] for name in names]], reference.values[:, [place[name] for name in names]].tocsr()


def _meant_types(
    reference: Reference, asked: Sequence[Term | None], ontology: Ontology
) -> tuple[np.ndarray, np.ndarray]:
    """The real cells' types, and that one of them which each generated cell should have ("" where there is none)."""
    given = ["unknown"] * reference.values.shape[0] if reference.types is None else reference.types
    types = np.array(["" if name in ("nan", "unknown") else name for name in given])
    labels = {name: ontology.find(name) for name in np.unique(types) if name}

    def meant(term: Term | None) -> str:
        if term is None:
            return ""
        family = [term.id, *ontology.ancestors(term.id)]
        own = [(family.index(found.id), name) for name, found in labels.items() if found and found.id in family]
        return min(own)[1] if own else ""

    by_term = {term: meant(term) for term in set(asked)}
    return types, np.array([by_term[term] for term in asked])


def _sizes(prefix: str, values: sparse.csr_matrix) -> dict[str, float]:
    """Per cell on the shared genes; `detection_rate` is the share of them that a cell expresses."""
    return {
        f"{prefix}library_size": float(np.median(np.asarray(values.sum(1)).ravel())),
        f"{prefix}detection_rate": round(float(np.median(np.diff(values.indptr)) / values.shape[1]), 4),
    }


def _log_normalised(values: sparse.csr_matrix) -> np.ndarray:
    dense = values.toarray().astype(np.float32)
    return np.log1p(dense / np.maximum(dense.sum(1, keepdims=True), 1e-9) * TARGET_SUM)


def _components(logs: list[np.ndarray]) -> list[np.ndarray]:
    """Leading components of the first half of the real cells."""
    _, real, _ = logs
    genes = np.argsort(-real.var(0), kind="stable")[:NUM_VARIABLE]
    center = real[:, genes].mean(0)
    _, _, axes = np.linalg.svd(real[:, genes] - center, full_matrices=False)
    axes = axes[: min(NUM_COMPONENTS, len(real) - 1)].T
    return [(part[:, genes] - center) @ axes for part in logs]


def _neighbour_types(points: np.ndarray, real: np.ndarray, types: np.ndarray) -> np.ndarray:
    names, codes = np.unique(types, return_inverse=True)
    near = np.argsort(cdist(points, real), axis=1, kind="stable")[:, :NUM_NEIGHBOURS]
    votes = (codes[near][:, :, None] == np.arange(len(names))).sum(1)
    return names[votes.argmax(1)]


def _auc(real: np.ndarray, made: np.ndarray, random: np.random.Generator) -> float:
    """How well a straight line tells made cells from real ones it has not seen: .5 not at all, 1 always."""
    points = np.vstack([real, made])
    is_made = np.repeat([False, True], [len(real), len(made)])
    fold = random.permutation(len(points)) % FOLDS
    scores = np.zeros(len(points))
    for i in range(FOLDS):
        seen = fold != i
        groups = [points[seen & (is_made == side)] for side in (False, True)]
        if min(map(len, groups)) < 2:
            return 0.5
        within = np.mean([np.cov(group, rowvar=False).reshape(points.shape[1], -1) for group in groups], axis=0)
        within += RIDGE * np.trace(within) / len(within) * np.eye(len(within))
        direction = np.linalg.solve(within, groups[1].mean(0) - groups[0].mean(0))
        scores[~seen] = (points[~seen] - (groups[0].mean(0) + groups[1].mean(0)) / 2) @ direction
    ranks = rankdata(scores)[is_made].sum()
    number = int(is_made.sum())
    auc = (ranks - number * (number + 1) / 2) / (number * (len(points) - number))
    return round(float(max(auc, 1 - auc)), 3)


def _near_copies(made: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Share of cells nearer to a reference cell than all but one in a hundred of other real cells are."""
    limit = np.quantile(cdist(second, first).min(1), 0.01)
    return {"near_copies_of_reference": round(float((cdist(made, first).min(1) < limit).mean()), 4)}


def _covariance(logs: list[np.ndarray], meant: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Agreement of gene-gene covariance within types, made against real and real against real."""
    mine, others = [], []
    for name in np.unique(meant[meant != ""]):
        made, real, other = (log[kind == name] for log, kind in zip(logs, (meant, first, second), strict=True))
        if min(len(made), len(real), len(other)) >= FEWEST_FOR_COVARIANCE:
            genes = np.argsort(-real.var(0), kind="stable")[:NUM_COVARIANCE_GENES]
            pairs = np.triu_indices(len(genes), 1)
            covariances = [np.cov(part[:, genes], rowvar=False)[pairs] for part in (real, made, other)]
            if all(np.std(one) > 0 for one in covariances):
                mine.append(np.corrcoef(covariances[0], covariances[1])[0, 1])
                others.append(np.corrcoef(covariances[0], covariances[2])[0, 1])
    if not mine:
        return {}
    means = {"covariance_agreement": mine, "real_covariance_agreement": others}
    return {name: round(float(np.mean(found)), 3) for name, found in means.items()}


def _contents(counts: sparse.csr_matrix) -> list[np.ndarray]:
    return [
        np.concatenate([counts.indices[start:stop], counts.data[start:stop]])
        for start, stop in zip(counts.indptr[:-1], counts.indptr[1:], strict=True)
    ]
