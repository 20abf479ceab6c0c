"""`harmonise`: annotate several files, or the samples of one, with one vocabulary of names.

Each sample is first called by itself; the types found in any of them become the candidates of all, so that the same
cells get the same name everywhere. Samples of one file may come from different tissues, which a column names.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import shared_arguments
from .cells import column_of
from .errors import UserError
from .loading import load
from .processing.labels_scmmgpt import UNKNOWN
from .processing.result_keys_scmmgpt import ResultKeys
from .storage import check_output, read_cells, save_cells

if TYPE_CHECKING:
    from anndata import AnnData

    from .loading import ModelSource

_LEAST_CELLS, _LEAST_SHARE = 5, 0.005  # of a sample, for a type to be a name for all


@dataclass
class _Sample:
    """Some cells of one study, which are called together."""

    study: int
    rows: np.ndarray
    tissue: str | None


@shared_arguments
def harmonise(
    studies: Sequence[AnnData | str | os.PathLike],
    *,
    sample_key: str | None = None,
    tissue_key: str | None = None,
    min_confidence: float | None = None,
    output: str | os.PathLike | None = None,
    model: ModelSource = None,
    key_added: str = "scmmgpt",
    overwrite: bool = False,
    device: Any = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> list[AnnData]:
    """Annotate several studies, or the samples of one, with one vocabulary of names.

    Parameters
    ----------
    studies
        AnnData, or paths of files of cells.
    sample_key
        A column of `.obs` with samples, each of which is called by itself; None: each study is one sample.
    tissue_key
        A column of `.obs` with the tissue of each cell.
    min_confidence
        As in `annotate`.
    output
        A folder for the annotated files, which keep their names; studies must then be paths.
    """
    loaded = load(model, device=device)
    targets = _targets(studies, output)
    cells = [read_cells(Path(one)) if isinstance(one, str | os.PathLike) else one.copy() for one in studies]
    if not cells:
        raise UserError("There are no studies: name at least one.")
    samples = [part for study, adata in enumerate(cells) for part in _samples(study, adata, sample_key, tissue_key)]
    how: dict[str, Any] = {"model": loaded, "batch_size": batch_size, "progress": progress, "key_added": key_added}
    how |= {"min_confidence": min_confidence, "overwrite": True}
    keys = ResultKeys(key_added)
    if not overwrite and any(keys.cell_type in adata.obs for adata in cells):
        raise UserError(f"obs[{keys.cell_type!r}] is already there; overwrite=True (--overwrite) replaces it.")
    names = vocabulary([_called(cells, one, how, None).obs[keys.cell_type].astype(str) for one in samples])
    for study, adata in enumerate(cells):
        mine = [(one, _called(cells, one, how, names)) for one in samples if one.study == study]
        _merge(adata, mine, key_added, names)
        if targets:
            save_cells(adata, targets[study])
    return cells


def vocabulary(calls: Sequence[Any]) -> list[str]:
    """Names that enough cells of some sample got, the commonest first."""
    kept: Counter[str] = Counter()
    for called in calls:
        least = max(_LEAST_CELLS, _LEAST_SHARE * len(called))
        kept.update({name: count for name, count in Counter(called).items() if count >= least and name != UNKNOWN})
    if len(kept) < 2:
        raise UserError("Fewer than two types were found in all samples together: there is nothing to harmonise.")
    return [name for name, _ in sorted(kept.items(), key=lambda pair: (-pair[1], pair[0]))]


def _targets(studies: Sequence[Any], output: str | os.PathLike | None) -> list[Path]:
    if output is None:
        return []
    folder = Path(output)
    if not all(isinstance(one, str | os.PathLike) for one in studies):
        raise UserError("output= writes files under the names of the studies, which must then be paths.")
    names = [f"{Path(one).stem}.h5ad" for one in studies]
    if len(set(names)) < len(names):
        raise UserError("Two studies have the same file name; rename one.")
    folder.mkdir(parents=True, exist_ok=True)
    return [check_output(folder / name, Path(one).resolve()) for name, one in zip(names, studies, strict=True)]


def _samples(study: int, adata: AnnData, sample_key: str | None, tissue_key: str | None) -> Iterator[_Sample]:
    nowhere = np.zeros(adata.n_obs, dtype=object).astype(str)
    samples = nowhere if sample_key is None else column_of(adata.obs, sample_key).to_numpy()
    tissues = nowhere if tissue_key is None else column_of(adata.obs, tissue_key).to_numpy()
    for sample, tissue in sorted(set(zip(samples, tissues, strict=True))):
        named = tissue if tissue_key is not None and tissue not in ("nan", "unknown", "") else None
        yield _Sample(study, np.flatnonzero((samples == sample) & (tissues == tissue)), named)


def _called(cells: Sequence[AnnData], sample: _Sample, how: dict[str, Any], names: list[str] | None) -> AnnData:
    from . import api

    part = cells[sample.study][sample.rows].copy()
    together = None if names is None else part.n_obs >= 100
    return api.annotate(part, names, tissue=sample.tissue, consensus=together, **how)


def _merge(adata: AnnData, parts: Sequence[tuple[_Sample, AnnData]], key_added: str, names: list[str]) -> None:
    """The columns of the samples, put together in the order of the cells."""
    import pandas as pd

    keys = ResultKeys(key_added)
    numbers = (keys.confidence, keys.protein_conflict)
    for column in (keys.cell_type, keys.term_id, keys.second_choice, keys.candidates, *numbers):
        having = [(sample.rows, called.obs[column]) for sample, called in parts if column in called.obs]
        if not having:
            continue
        values = np.zeros(adata.n_obs, np.float32 if column in numbers else object)
        for rows, found in having:  # a sample without antibodies, or with few cells, has no conflict with them
            values[rows] = found.to_numpy()
        adata.obs[column] = values if column in numbers else pd.Categorical(values.astype(str))
    record = parts[0][1].uns[key_added]
    adata.uns[key_added] = {**record, "harmonise": {"names": np.array(names, dtype=object), "samples": len(parts)}}
