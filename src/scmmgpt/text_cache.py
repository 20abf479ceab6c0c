"""Vectors of long label lists, kept on disk: the Cell Ontology is embedded once per model, not once per run."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

# Shorter lists take a moment to embed, and would fill the folder with files.
MIN_TEXTS = 100


def cache_folder() -> Path:
    """Beside the other caches of the Hub's libraries; `HF_HOME` moves it."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "scmmgpt"


def remembered(weights_hash: str, texts: Sequence[str], embed: Callable[[], np.ndarray]) -> np.ndarray:
    """The vectors of these texts from the model with these weights: from disk, or computed by `embed` and kept."""
    if len(texts) < MIN_TEXTS:
        return embed()
    digest = hashlib.sha256("\0".join([weights_hash, *texts]).encode()).hexdigest()
    path = cache_folder() / f"texts-{digest}.npy"
    if (kept := _read(path, len(texts))) is not None:
        return kept
    vectors = embed()
    with suppress(OSError):  # a folder that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.{threading.get_ident()}.npy")
        try:
            np.save(temporary, vectors)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return vectors


def _read(path: Path, number: int) -> np.ndarray | None:
    """So many unit vectors; None where they are not there, cut short, or not what was written."""
    try:
        with path.open("rb") as file:
            vectors = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        return None
    if vectors.ndim != 2 or len(vectors) != number or vectors.dtype != np.float32:
        return None
    with np.errstate(all="ignore"):
        return vectors if np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3) else None
