"""What the shell prints after `annotate`: from the result alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .processing.input_account_scmmgpt import set_aside_lines
from .processing.labels_scmmgpt import UNKNOWN
from .processing.result_keys_scmmgpt import ResultKeys
from .protein_evidence import protein_line

if TYPE_CHECKING:
    from anndata import AnnData


def annotation_summary(adata: AnnData, key_added: str) -> tuple[dict[str, Any], list[str]]:
    """Counts and confidence of each type, and the line that says what was read."""
    keys = ResultKeys(key_added)
    obs = adata.obs
    counts = obs[keys.cell_type].value_counts()
    cell_types = []
    for label, count in counts[counts > 0].items():
        mine = (obs[keys.cell_type] == label).to_numpy()
        confidence = obs[keys.confidence].to_numpy()[mine]
        term = obs[keys.term_id].iloc[int(mine.argmax())]
        cell_types.append(
            {
                "cell_type": str(label),
                "term": str(term),
                "cells": int(count),
                "confidence": round(float(np.median(confidence.astype(float))), 3),
            }
        )
    details, genes = adata.uns[key_added]["annotate"], adata.uns[key_added]["genes"]
    result = {
        "cells": adata.n_obs,
        "unknown": int(counts.get(UNKNOWN, 0)),
        "median_confidence": round(float(obs[keys.confidence].astype(float).median()), 3),
        "cell_types": cell_types,
        "genes": _plain(genes),
        "settings": _plain(details["settings"]),
        "notes": [str(note) for note in np.atleast_1d(details.get("notes", [])) if str(note)],
    }
    lines = [gene_line(genes), *set_aside_lines(genes)]
    return result, [*lines, f"proteins: {protein_line(details['proteins'])}"] if "proteins" in details else lines


def gene_line(account: dict[str, Any]) -> str:
    """What was read, in one line."""
    return (
        f"Read {account['matrix']} ({account['matrix_state']}): {account['num_matched']} of {account['num_genes']} "
        f"{account['species']} genes matched, {float(account['share_of_counts']):.1%} of the counts."
    )


def _plain(value: Any) -> Any:
    """Content of `uns` in JSON's own types."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
