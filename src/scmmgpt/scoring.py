"""The scores of candidate labels for all cells of a study: by themselves, or with what their neighbours say."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .chromatin import activity_scorer, is_gene_activity
from .consensus import MIN_CELLS, NUM_NEIGHBOURS, over_neighbours
from .embedding import CellRun, EvidenceBatch
from .errors import UserError
from .input_warnings import cell_warnings
from .processing.calling_scmmgpt import CellEvidence, Scorer
from .processing.encoding_scmmgpt import similarity_scale
from .processing.labels_scmmgpt import CELL_ONTOLOGY, TRAINED_TYPES, LabelSet
from .protein_evidence import StudyProteins
from .smoothing import smooth as smooth_embeds
from .spatial import Space, said_over_space
from .text_cache import remembered
from .verb import Verb


def decides_together(verb: Verb, asked: bool | None, labels: LabelSet, is_possible: bool) -> bool:
    """Whether the study decides together, as was asked or as its labels and its size suggest."""
    if asked and not is_possible:
        raise UserError("consensus=True decides over the study: leave out cluster_key, rerank and prior_share=0.")
    by_itself = labels.source in (TRAINED_TYPES, CELL_ONTOLOGY) and not is_gene_activity(verb.cells)
    wanted = by_itself if asked is None else asked
    return wanted and is_possible and verb.cells.num_cells >= MIN_CELLS


@dataclass(frozen=True)
class Scoring:
    """How cells are scored, as `annotate` was asked to; `proteins` and `space` are what is known beside the genes."""

    tissue: str | None
    smooth: int
    rerank: int
    prior_share: float | None
    together: bool
    proteins: StudyProteins | None
    space: Space | None

    def of(self, verb: Verb, labels: LabelSet) -> tuple[CellRun, CellEvidence, Scorer]:
        """The run, what it found of each cell, and the scores of the labels; warns of cells that look like none."""
        loaded, annotator = verb.loaded, verb.loaded.annotator
        candidates = annotator.candidates(
            labels,
            lambda texts: remembered(loaded.weights_hash, texts, lambda: loaded.embed_texts(texts)),
            tissue=self.tissue,
            with_profiles=self.prior_share != 0,
        )
        texts = labels.texts(self.tissue) if self.rerank else []
        run = verb.start_run(texts=texts or None, rerank=self.rerank, types=candidates.profiles)
        cells = CellEvidence(**run.compute("annotate", EvidenceBatch(candidates, texts, self.rerank)))
        measured = run.gene_tokenizer.measured_genes(run.source) if candidates.profiles else None
        scale = similarity_scale(loaded.model)
        if is_gene_activity(verb.cells):
            cells = replace(cells, is_implausible=np.zeros_like(cells.is_implausible))  # of RNA, the guard knows
            return run, cells, activity_scorer(annotator, cells, candidates, scale=scale, measured_genes=measured)
        scored, communities = said_over_space(verb, cells, self.space, self.together), None
        if self.together:
            number, norms = self.smooth or NUM_NEIGHBOURS, annotator.profile_norms(candidates, measured)
            scored, communities = over_neighbours(scored, verb.cells, run.array, number, norms)
        elif self.smooth:
            scored = replace(scored, embeds=smooth_embeds(scored.embeds, self.smooth))
        scorer = annotator.scorer(
            scored,
            candidates,
            scale=scale,
            measured_genes=measured,
            prior_share=self.prior_share,
            of_study=self.together,
            proteins=self.proteins and self.proteins.evidence(candidates, loaded),
            reach=run.gene_account.get("reach", 1.0),
        )
        for warning in cell_warnings(int(cells.is_implausible.sum()), len(cells), run.dispersion(), run.gene_account):
            verb.warn(warning)
        return run, cells, scorer if communities is None else annotator.held(scorer, communities)
