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
    labels = adata.obs[keys.cell_type].astype(str)
    confidence = adata.obs[keys.confidence].astype(float)
    term_ids = adata.obs[keys.term_id].astype(str)
    counts = labels.value_counts()
    cell_types = [
        {
            "cell_type": label,
            "term": term_ids[labels == label].iloc[0],
            "cells": int(count),
            "confidence": round(float(confidence[labels == label].median()), 3),
        }
        for label, count in counts.items()
    ]
    details, genes = adata.uns[key_added]["annotate"], adata.uns[key_added]["genes"]
    result = {
        "cells": adata.n_obs,
        "unknown": int(counts.get(UNKNOWN, 0)),
        "median_confidence": round(float(confidence.median()), 3),
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
