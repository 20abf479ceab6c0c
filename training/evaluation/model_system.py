"""The model as a `System`, measured through the same functions that people call.

Imports stand inside the functions because `scmmgpt.api` imports `training`, not the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from scmmgpt.processing.label_sets_scmmgpt import BETWEEN
from scmmgpt.processing.result_keys_scmmgpt import ResultKeys

from .systems import Annotation, System

if TYPE_CHECKING:
    from anndata import AnnData

    from scmmgpt.loading import LoadedModel
    from scmmgpt.processing.calibration_scmmgpt import Calibration
    from scmmgpt.processing.calling_scmmgpt import CellEvidence, EmbedTexts, Scorer


def annotating_system(loaded: LoadedModel, name: str | None = None, **asked: Any) -> System:
    """What `scmmgpt.annotate` writes with these arguments, and nothing else of the model."""
    from scmmgpt import api

    keys = ResultKeys()

    def annotate(cells: AnnData, labels: Sequence[str] | None) -> Annotation:
        annotated = api.annotate(cells, labels, model=loaded, progress=False, overwrite=True, **asked)
        settings = annotated.uns[keys.name]["annotate"]["settings"]
        sets = [frozenset(text.split(BETWEEN)) for text in annotated.obs[keys.candidates].astype(str)]
        names = annotated.obs[keys.cell_type].astype(str).to_numpy()
        return Annotation(names, sets, num_turned_away=int(settings["implausible_cells"]))

    return System(name or loaded.name, annotate=annotate)


def model_system(
    model: str | os.PathLike | LoadedModel | None = None,
    name: str | None = None,
    prior_share: float | None = None,
) -> System:
    """Annotation, embedding, description and generation of a model directory, repository or loaded model.

    Labels are embedded once each; cells are embedded once for as long as the same object is asked about.

    Parameters
    ----------
    model
        As in `scmmgpt.load`; None is the embedded model.
    name
        What tables call it; the model's own name without one.
    prior_share
        As in `scmmgpt.annotate`; 0 measures how each cell is named by itself.
    """
    from scmmgpt import api
    from scmmgpt.processing.encoding_scmmgpt import TextEmbedder

    loaded = api.load(model)
    embed_texts = TextEmbedder(loaded.model, loaded.processor)
    last: list = [None, None]
    last_scored: list = [None, None]

    def embed(cells: AnnData) -> np.ndarray:
        if last[0] is not cells:
            last[:] = [cells, np.asarray(api.embed(cells, model=loaded, progress=False).obsm["X_scmmgpt"])]
        return last[1]

    def scores(cells: AnnData) -> StudyScores:
        if last_scored[0] is not cells:
            last_scored[:] = [cells, StudyScores.of(loaded, cells, embed_texts)]
        return last_scored[1]

    def predict(cells: AnnData, labels: Sequence[str]) -> np.ndarray:
        study = scores(cells)
        probabilities = study.scorer(labels, prior_share=prior_share).probabilities(slice(None))
        # `annotate` calls a cell without counts unknown, with confidence 0; the nearest to that is to prefer nothing.
        probabilities[study.cells.is_empty] = 1 / len(labels)
        return probabilities

    @cache
    def writer() -> LoadedModel:
        return api.load(loaded.directory, device=loaded.device, generative=True)

    def describe(cells: AnnData) -> list[str]:
        described = api.describe(cells, model=writer(), progress=False)
        return list(described.obs["scmmgpt_description"].astype(str))

    def generate(text: str, num_cells: int, seed: int) -> AnnData:
        return api.generate_cells(text, num_cells, seed=seed, model=writer(), progress=False)

    # A checkpoint of stage 2, which alone writes text and cells.
    can_write = any("ConditionalGeneration" in name for name in loaded.config.architectures or [])
    return System(
        name or loaded.name,
        predict=predict,
        embed=embed,
        embed_text=embed_texts,
        describe=describe if can_write else None,
        generate=generate if can_write else None,
        annotate=annotating_system(loaded, prior_share=prior_share).annotate,
    )


@dataclass(frozen=True)
class StudyScores:
    """What the model says about the cells of a study before any label is known.

    Attributes
    ----------
    cells
        Evidence with the agreement with every type profile of the model.
    measured
        Rows of the vocabulary that the study measured.
    """

    loaded: LoadedModel
    cells: CellEvidence
    measured: np.ndarray
    embed_texts: EmbedTexts

    @classmethod
    def of(cls, loaded: LoadedModel, cells: AnnData, embed_texts: EmbedTexts) -> StudyScores:
        """Send the cells through the model once."""
        from scmmgpt.device import Batches
        from scmmgpt.embedding import embed_batch, run_chunk
        from scmmgpt.processing.calling_scmmgpt import CellEvidence, TokenEvidence

        genes, profiles = loaded.processor.gene_tokenizer, loaded.annotator.type_profiles
        tokens = dict(genes(cells, return_tensors="np"))
        read_tokens = TokenEvidence(genes, profiles, range(len(profiles.term_ids)) if profiles else ())
        read_cells = embed_batch(loaded)
        arrays = run_chunk(
            tokens,
            lambda inputs, tokens: {**read_cells(inputs, tokens), **read_tokens(tokens)},
            Batches(loaded.device, 256),
            loaded.device,
        )
        return cls(loaded, CellEvidence(**arrays), genes.measured_genes(cells), embed_texts)

    def scorer(
        self, labels: Sequence[str], calibration: Calibration | None = None, prior_share: float | None = None
    ) -> Scorer:
        """As `annotate` would score the labels; by another calibration than the model's if one is given."""
        from scmmgpt.processing.encoding_scmmgpt import similarity_scale

        annotator = self.loaded.annotator
        if calibration is not None:
            annotator = replace(annotator, calibration=calibration)
        candidates = annotator.candidates(
            annotator.label_set(list(labels)), self.embed_texts, with_profiles=prior_share != 0
        )
        agreement = None if self.cells.agreement is None else self.cells.agreement[:, candidates.profiles]
        return annotator.scorer(
            replace(self.cells, agreement=agreement if candidates.profiles else None),
            candidates,
            scale=similarity_scale(self.loaded.model),
            measured_genes=self.measured,
            prior_share=prior_share,
        )
