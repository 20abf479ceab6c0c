"""The model as a `System`, measured through the same functions that people call.

The imports stand inside the function because the front door imports `training`, not the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .study_scores import StudyScores
from .systems import System

if TYPE_CHECKING:
    from anndata import AnnData

    from scmmgpt.loading import LoadedModel


def model_system(model: str | os.PathLike | None = None, name: str | None = None) -> System:
    """Annotation, embedding, description and generation of a model directory, repository or loaded model.

    Labels are embedded once each; cells are embedded once for as long as the same object is asked about.

    Parameters
    ----------
    model
        As in `scmmgpt.load`; None is the embedded model.
    name
        What tables call it; the model's own name without one.
    """
    from scmmgpt import api
    from scmmgpt.embedding import embed_texts
    from scmmgpt.labels import read_labels
    from scmmgpt.prompts import label_texts

    loaded = api.load(model)
    vector_of_text: dict[str, np.ndarray] = {}
    last: list = [None, None]
    last_scored: list = [None, None]

    def embed(cells: AnnData) -> np.ndarray:
        if last[0] is not cells:
            last[:] = [cells, np.asarray(api.embed(cells, model=loaded, progress=False).obsm["X_scmmgpt"])]
        return last[1]

    def scores(cells: AnnData) -> StudyScores:
        if last_scored[0] is not cells:
            last_scored[:] = [cells, StudyScores.of(loaded, cells)]
        return last_scored[1]

    def embed_text(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in vector_of_text]
        if new:
            vector_of_text.update(zip(new, embed_texts(loaded, new), strict=True))
        return np.stack([vector_of_text[text] for text in texts])

    def predict(cells: AnnData, labels: Sequence[str]) -> np.ndarray:
        candidates = read_labels(list(labels), loaded.ontology)
        vectors = embed_text(label_texts(candidates))
        scorer = scores(cells).scorer(candidates, vectors)
        probabilities = scorer.probabilities(slice(None))
        # `annotate` calls a cell without counts unknown, with confidence 0; the nearest to that is to prefer nothing.
        probabilities[np.asarray(cells.X.sum(axis=1)).ravel() == 0] = 1 / len(labels)
        return probabilities

    @cache
    def writer() -> LoadedModel:
        return api.load(loaded.directory, device=loaded.device, generative=True)

    def describe(cells: AnnData) -> list[str]:
        described = api.describe(cells, model=writer(), progress=False)
        return list(described.obs["scmmgpt_description"].astype(str))

    def generate(text: str, num_cells: int, seed: int) -> AnnData:
        return api.generate_cells(text, num_cells, seed=seed, model=writer(), progress=False)

    can_write = _can_write(loaded)
    return System(
        name or loaded.name,
        predict=predict,
        embed=embed,
        embed_text=embed_text,
        describe=describe if can_write else None,
        generate=generate if can_write else None,
    )


def _can_write(loaded) -> bool:
    """Whether the checkpoint is of stage 2, which alone writes text and cells."""
    architectures = getattr(loaded.config, "architectures", None) or []
    return any("ConditionalGeneration" in name for name in architectures)
