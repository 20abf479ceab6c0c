"""The model as a `System`, measured through the same functions that people call.

The imports stand inside the function because the front door imports `training`, not the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from .systems import System

if TYPE_CHECKING:
    from anndata import AnnData

    from scmmgpt.loading import LoadedModel
    from scmmgpt.processing.calibration_scmmgpt import Calibration
    from scmmgpt.processing.calling_scmmgpt import Scorer
    from scmmgpt.processing.labels_scmmgpt import LabelSet


def model_system(model: str | os.PathLike | LoadedModel | None = None, name: str | None = None) -> System:
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
    from scmmgpt.processing.labels_scmmgpt import read_labels
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


@dataclass
class StudyScores:
    """What the model says about each cell, before any label is known.

    Attributes
    ----------
    embeds
        (N, D) unit vectors.
    agreement
        (N, T) with each type that has a profile; None for a model without profiles.
    measured
        Rows of the vocabulary that the study measured.
    """

    loaded: LoadedModel
    embeds: np.ndarray
    agreement: np.ndarray | None
    measured: np.ndarray

    @classmethod
    def of(cls, loaded: LoadedModel, cells: AnnData) -> StudyScores:
        from scmmgpt.device import Batches
        from scmmgpt.embedding import agreeing_batch, embed_batch, run_chunk

        features = dict(loaded.processor.feature_extractor(cells, return_tensors="np"))
        make = embed_batch
        if loaded.type_profiles is not None:
            make = partial(agreeing_batch, make=embed_batch, types=range(len(loaded.type_profiles.term_ids)))
        arrays = run_chunk(features, make(loaded), Batches(loaded.device, 256), loaded.device)
        measured = loaded.processor.feature_extractor.measured_genes(cells)
        return cls(loaded, arrays["embeds"], arrays.get("agreement"), measured)

    def scorer(
        self,
        labels: LabelSet,
        label_embeds: np.ndarray,
        calibration: Calibration | None = None,
        prior_share: float | None = None,
    ) -> Scorer:
        """As `annotate` would score them; by another calibration than the model's if one is given."""
        from scmmgpt.embedding import towers_of
        from scmmgpt.label_terms import meant_terms
        from scmmgpt.processing.calling_scmmgpt import Scorer
        from scmmgpt.processing.type_profiles_scmmgpt import Agreement, candidate_of_type

        loaded, profiles = self.loaded, self.loaded.type_profiles
        meant, agreement = meant_terms(loaded, labels, label_embeds), None
        if profiles is not None and self.agreement is not None:
            speakers = candidate_of_type(profiles, meant, loaded.ontology)
            agreement = Agreement.of(self.agreement[:, speakers >= 0], profiles, self.measured, speakers)
        return Scorer(
            self.embeds,
            label_embeds,
            labels,
            calibration or loaded.calibration,
            scale=towers_of(loaded).similarity_scale().item(),
            prior_share=prior_share,
            agreement=agreement,
            term_ids=meant,
        )
