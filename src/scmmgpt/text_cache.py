"""Vectors of long label lists, kept on disk: the Cell Ontology is embedded once per model, not once per run."""

from __future__ import annotations

import hashlib
import os
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
    with suppress(OSError, ValueError):  # not there, or cut short
        return np.load(path)
    vectors = embed()
    with suppress(OSError):  # a folder that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.npy")
        np.save(temporary, vectors)
        temporary.replace(path)
    return vectors
