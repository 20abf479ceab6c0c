"""`compare`: what a perturbation does to each cell type, next to a control."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .arguments import shared_arguments
from .cells import column_of
from .embedding import CELLS_PER_CHUNK, embed_batch, run_chunk
from .errors import UserError
from .index import hits
from .loading import ModelSource
from .processing.cell_matrix_scmmgpt import parts
from .processing.labels_scmmgpt import UNKNOWN
from .processing.result_keys_scmmgpt import ResultKeys
from .progress import progress_bar
from .response import MIN_CELLS, energy_test, false_discovery_rates, gene_changes, sample
from .response_text import response_lines
from .verb import Execution, Verb

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData

# Of each type so many cells of a group are read: enough for its genes, few enough for any file.
MOST_CELLS = 10_000
TYPE_COLUMNS = ("scmmgpt_cell_type", "cell_type")


@dataclass(frozen=True)
class Direction:
    """Where the control cells of one type lie in the embedding, and the way from them to the perturbed ones.

    `spread` is the standard deviation of the control cells along the way.
    """

    control: np.ndarray
    way: np.ndarray
    spread: float

    @classmethod
    def between(cls, control: np.ndarray, treated: np.ndarray) -> Direction:
        """From the mean of some unit vectors to that of others."""
        mean = control.mean(axis=0)
        way = treated.mean(axis=0) - mean
        along = (control - mean) @ way / max(float(np.linalg.norm(way)), 1e-12)
        return cls(mean, way, max(float(along.std()), 1e-6))

    def score(self, embeds: np.ndarray) -> np.ndarray:
        """How far along the way cells are, in standard deviations of the control, whose mean is 0."""
        return (embeds - self.control) @ self.way / max(float(np.linalg.norm(self.way)), 1e-12) / self.spread


@dataclass
class Comparison:
    """What was found for each type and group, the strongest response first.

    Attributes
    ----------
    table
        One row for each group and type: cells, energy distance, p-value, false discovery rate, genes.
    genes
        One row for each group, type and gene that was tested: log2 fold change, p-value, false discovery rate.
    text
        The response in words.
    directions
        For each (group, type) the difference in the embedding, which `search` looks for.
    """

    table: pd.DataFrame
    genes: pd.DataFrame
    text: str
    groupby: str
    control: str
    directions: dict[tuple[str, str], Direction] = field(repr=False)
    loaded: Any = field(repr=False)
    notes: list[str] = field(default_factory=list)

    def scores(self, embeds: np.ndarray, group: str | None = None) -> np.ndarray:
        """How much each cell looks like the perturbed ones of the type whose control or perturbed cells are nearest."""
        found = self._of_group(group)
        middles = np.array([direction.control + direction.way / 2 for direction in found])
        nearest = ((middles**2).sum(axis=1) - 2 * embeds @ middles.T).argmin(axis=1)
        scores = np.empty(len(embeds))
        for place, direction in enumerate(found):
            scores[nearest == place] = direction.score(embeds[nearest == place])
        return scores

    def search(self, cells: AnnData | str | os.PathLike, *, group: str | None = None, top: int = 20) -> pd.DataFrame:
        """The cells of another file that look most like perturbed ones: the difference between the groups is the query."""
        verb = Verb.begin("search", cells, self.loaded, Execution(progress=False))
        embeds = verb.start_run().compute("search", embed_batch)["embeds"]
        scores = self.scores(np.asarray(embeds), group)
        best = np.argsort(-scores, kind="stable")[:top]
        return hits(verb.cells.obs, best, scores[best])

    def _of_group(self, group: str | None) -> list[Direction]:
        groups = sorted({name for name, _ in self.directions})
        if group is None and len(groups) > 1:
            raise UserError(f"Several groups were compared: say which one to look for, of {', '.join(groups)}.")
        found = [direction for (name, _), direction in self.directions.items() if group in (None, name)]
        if not found:
            raise UserError(f"There is no response of {group!r}; there are those of {', '.join(groups) or 'none'}.")
        return found


@shared_arguments
def compare(
    adata: AnnData | str | os.PathLike,
    *,
    groupby: str,
    control: str,
    groups: Sequence[str] | None = None,
    cell_type_key: str | None = None,
    donor_key: str | None = None,
    seed: int = 0,
    model: ModelSource = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare perturbed cells with control cells, type by type: which types respond, how much, and with which genes.

    The energy distance of the embeddings says how far the two lie apart; its p-value comes from permutations of who is
    perturbed. Genes are tested over donors where three have cells of both kinds, else over cells.

    Parameters
    ----------
    adata
        AnnData or MuData, or the path of a file of cells.
    groupby
        The column of `.obs` that says how each cell was treated.
    control
        Its value for untreated cells.
    groups
        The treatments to compare with it; None: all others.
    cell_type_key
        The column of `.obs` with cell types; None: `scmmgpt_cell_type` or `cell_type`, else they are annotated first.
    donor_key
        The column of `.obs` with donors or batches: treatments are then permuted within each, and genes paired by them.
    seed
        The same seed gives the same permutations.
    """
    verb = Verb.begin("compare", adata, model, Execution(device, batch_size, progress))
    treatment, control = column_of(verb.cells.obs, groupby).to_numpy(), str(control)
    treated = _groups(treatment, groupby, control, None if groups is None else list(map(str, groups)))
    types = annotated_types(verb, cell_type_key, adata)
    donors = None if donor_key is None else column_of(verb.cells.obs, donor_key).to_numpy()
    if donors is not None:
        _check_donors(str(donor_key), donors, treatment, control, treated)
    names = verb.cells.obs.index.astype(str).to_numpy(dtype=str)
    rows = _rows_to_read(treatment, types, [control, *treated], names, seed)
    embeds, expression = read_embeds_and_expression(verb, rows)
    by_name = np.argsort(
        names[rows], kind="stable"
    )  # so that the order in the file changes no sample and no permutation
    rows, embeds, expression = rows[by_name], embeds[by_name], expression[by_name]
    found = _Compared(control, treatment[rows], types[rows], None if donors is None else donors[rows], seed)
    counts = {name: int(np.count_nonzero(where)) for name, where in _pairs_of(treatment, types).items()}
    results = list(found.responses(treated, embeds, expression, counts))
    genes = verb.loaded.processor.gene_tokenizer.genes
    table, gene_table = _tables(results, genes)
    text = "\n".join(response_lines(table, groupby, control))
    directions = {(one["group"], one["cell_type"]): one["direction"] for one in results if one["direction"]}
    return Comparison(table, gene_table, text, groupby, control, directions, verb.loaded, verb.warnings)


def _groups(treatment: np.ndarray, groupby: str, control: str, groups: Sequence[str] | None) -> list[str]:
    """The treatments to compare with the control; both must be there."""
    present = sorted(set(treatment))
    for name in [control, *(groups or [])]:
        if str(name) not in present:
            nearest = get_close_matches(str(name), present, n=1, cutoff=0.3)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
            raise UserError(f"obs[{groupby!r}] has no {name!r}{hint} There are: {', '.join(present[:20])}.")
    treated = [name for name in (groups or present) if name != control]
    if not treated:
        raise UserError(f"obs[{groupby!r}] holds nothing but the control {control!r}: there is nothing to compare.")
    return treated


def _check_donors(key: str, donors: np.ndarray, treatment: np.ndarray, control: str, groups: Sequence[str]) -> None:
    """Donors that were all treated alike cannot be compared within themselves."""
    of_control = set(donors[treatment == control])
    for group in groups:
        if not of_control & set(donors[treatment == group]):
            raise UserError(
                f"No value of obs[{key!r}] has both {control!r} and {group!r} cells, so nothing can be compared within "
                f"it: leave donor_key out, or name a column in which the same donor has one name in both."
            )


def types_column(obs: pd.DataFrame) -> str | None:
    """The column of cell types, if one is there that names any."""
    for name in TYPE_COLUMNS:
        if name in obs and (obs[name].astype(str) != UNKNOWN).any():
            return name
    return None


def annotated_types(verb: Verb, key: str | None, adata: Any) -> np.ndarray:
    """The column of cell types; where there is none, cells are annotated first."""
    key = key or types_column(verb.cells.obs)
    if key is not None:
        return column_of(verb.cells.obs, key).to_numpy()
    from .api import annotate

    verb.warn("There is no column of cell types: they were annotated first; cell_type_key= names one of yours.")
    annotated = annotate(adata, model=verb.loaded, progress=verb.execution.progress)
    return annotated.obs[ResultKeys("scmmgpt").cell_type].astype(str).to_numpy()


def _pairs_of(treatment: np.ndarray, types: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    return {(group, name): (treatment == group) & (types == name) for group in set(treatment) for name in set(types)}


def _rows_to_read(
    treatment: np.ndarray, types: np.ndarray, groups: Sequence[str], names: np.ndarray, seed: int
) -> np.ndarray:
    shuffled = np.argsort(names, kind="stable")[np.random.default_rng(seed).permutation(len(names))]
    chosen = [
        shuffled[where[shuffled]][:MOST_CELLS]
        for (group, _), where in sorted(_pairs_of(treatment, types).items())
        if group in groups
    ]
    return np.sort(np.concatenate(chosen))


def read_embeds_and_expression(verb: Verb, rows: np.ndarray) -> tuple[np.ndarray, sparse.csr_array]:
    """Embeddings, and log1p of counts per 10,000 of every gene of the vocabulary, of some cells."""
    own = verb.loaded.processor.gene_tokenizer
    whole = copy(own)
    whole.value_mode, whole.max_genes, whole.add_cls, whole.include_zero_genes = "log1p", None, False, False
    compute, embeds, blocks = embed_batch(verb.loaded), [], []
    with progress_bar(verb.name, len(rows), shown=verb.execution.progress) as advance:
        for part in parts(len(rows), size=CELLS_PER_CHUNK):
            cells = verb.cells.rows(rows[part])
            tokens = dict(own(cells, return_tensors="np"))
            embeds.append(run_chunk(tokens, compute, verb.batches, verb.loaded.device)["embeds"])
            blocks.append(_matrix(whole, dict(whole(cells, return_tensors="np"))))
            advance(len(tokens["gene_ids"]))
    verb.record(own.account)  # which warns of what may spoil the result
    return np.concatenate(embeds), sparse.csr_array(sparse.vstack(blocks))


def _matrix(gene_tokenizer: Any, tokens: dict[str, np.ndarray]) -> sparse.csr_array:
    cell, place = np.nonzero(gene_tokenizer.is_gene(tokens["gene_ids"], tokens["gene_mask"]))
    gene = gene_tokenizer.gene_rows(tokens["gene_ids"][cell, place])
    shape = (len(tokens["gene_ids"]), len(gene_tokenizer.genes))
    return sparse.csr_array((tokens["gene_values"][cell, place], (cell, gene)), shape=shape)


@dataclass
class _Compared:
    """Cells that were read, and how they were treated."""

    control: str
    treatment: np.ndarray
    types: np.ndarray
    donors: np.ndarray | None
    seed: int

    def responses(
        self, groups: Sequence[str], embeds: np.ndarray, expression: sparse.csr_array, counts: dict
    ) -> Iterator[dict[str, Any]]:
        """For each group and type what differs; None where there are too few cells."""
        for group in groups:
            for name in sorted(set(self.types)):
                num_cells, num_control = counts[group, name], counts[self.control, name]
                if not num_cells:
                    continue
                rows = np.flatnonzero((self.types == name) & np.isin(self.treatment, [group, self.control]))
                is_enough = min(num_cells, num_control) >= MIN_CELLS
                about = {"group": group, "cell_type": name, "cells": num_cells, "control_cells": num_control}
                found = self._response(rows, group, embeds, expression) if is_enough else dict.fromkeys(_NOT_TESTED)
                yield about | found

    def _response(
        self, rows: np.ndarray, group: str, embeds: np.ndarray, expression: sparse.csr_array
    ) -> dict[str, Any]:
        is_treated = self.treatment[rows] == group
        donors = None if self.donors is None else self.donors[rows]
        some = sample(is_treated, seed=self.seed)
        strata = None if donors is None else donors[some]
        test = energy_test(embeds[rows[some]], is_treated[some], strata, seed=self.seed)
        direction = Direction.between(embeds[rows[~is_treated]], embeds[rows[is_treated]])
        changes = gene_changes(expression[rows], is_treated, donors)
        return {"test": test, "direction": direction, "changes": changes}


_NOT_TESTED = ("test", "direction", "changes")


def _tables(results: Sequence[dict[str, Any]], genes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of responses, the largest first, and that of genes."""
    import pandas as pd

    names = np.array(genes, dtype=object)
    rows, gene_rows = [], []
    for one in results:
        test, changes = one["test"], one["changes"]
        row = {"group": one["group"], "cell_type": one["cell_type"]}
        row |= {"energy_distance": np.nan, "p_value": np.nan, "fdr": np.nan, "genes_changed": 0}
        row |= {"cells": one["cells"], "control_cells": one["control_cells"], "shift": np.nan, "up": "", "down": ""}
        if test is not None:
            row["energy_distance"], row["p_value"] = test.distance, test.p_value
            row["shift"] = float(np.linalg.norm(one["direction"].way))
            row["genes_changed"] = int(changes.is_changed.sum())
            row["up"], row["down"] = (", ".join(names[changes.top(sign)]) for sign in (1, -1))
            about = {"group": one["group"], "cell_type": one["cell_type"], "gene": names[changes.columns]}
            figures = {name: getattr(changes, name) for name in ("log2_fold_change", "p_value", "fdr")}
            gene_rows.append(pd.DataFrame(about | figures))
        rows.append(row)
    table = pd.DataFrame(rows)
    tested = table.p_value.notna()
    table.loc[tested, "fdr"] = false_discovery_rates(table.p_value[tested].to_numpy())
    table = table.sort_values(["energy_distance", "group", "cell_type"], ascending=[False, True, True])
    no_genes = pd.DataFrame(columns=["group", "cell_type", "gene", "log2_fold_change", "p_value", "fdr"])
    return table.reset_index(drop=True), pd.concat(gene_rows, ignore_index=True) if gene_rows else no_genes
