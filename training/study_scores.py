"""The cells of a study as annotation compares them with any labels: read once, scored often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

    from scmmgpt.annotation import Scorer
    from scmmgpt.calibration import Calibration
    from scmmgpt.labels import LabelSet
    from scmmgpt.loading import LoadedModel


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
        from functools import partial

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
        from scmmgpt.annotation import Scorer
        from scmmgpt.embedding import towers_of
        from scmmgpt.meaning import meant_terms
        from scmmgpt.type_profiles import Agreement, candidate_of_type

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
