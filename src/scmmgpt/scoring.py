"""The calls of all cells of a study: each by itself, or with what its neighbours say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from .cell_requests import SeenInTraining, named_tissue
from .chromatin import activity_scorer, is_gene_activity
from .consensus import MIN_CELLS, NUM_NEIGHBOURS, over_neighbours
from .embedding import CellRun, EvidenceBatch
from .errors import UserError
from .evidence import evidence_of
from .input_warnings import cell_warnings, why_no_study
from .processing.back_off_scmmgpt import Calls
from .processing.calling_scmmgpt import CellEvidence, Scorer
from .processing.encoding_scmmgpt import similarity_scale
from .processing.label_sets_scmmgpt import ROOT
from .processing.labels_scmmgpt import CELL_ONTOLOGY, TRAINED_TYPES, UNKNOWN, Labels, LabelSet
from .protein_evidence import StudyProteins
from .smoothing import smooth as smooth_embeds
from .spatial import Space, said_over_space
from .text_cache import remembered
from .verb import Verb

# Share of cells whose candidates are the root, above which it is said: of 25 studies the three above it had .29, .11 and .03 of
# their cells named right, the seven of a half to three quarters .24 to .89.
MOST_OF_ROOT = 0.75


@dataclass(frozen=True)
class Asked:
    """How cells are to be called, see `annotate`; `clusters` (N,) are numbers.

    `proteins` and `space` are what is known of the cells beside their genes.
    """

    tissue: str | None = None
    min_confidence: float | None = None
    clusters: np.ndarray | None = None
    smooth: int = 0
    rerank: int = 0
    prior_share: float | None = None
    consensus: bool | None = None
    proteins: StudyProteins | None = None
    space: Space | None = None


@dataclass(frozen=True)
class CalledStudy:
    """The cells of a study, their calls and label sets, and what these were decided by.

    `turned_away` (N,) are cells that look like none; `support` is that of the genes, see `support_of_genes`.
    """

    labels: LabelSet
    together: bool
    min_confidence: float
    run: CellRun
    cells: CellEvidence
    scorer: Scorer
    calls: Calls
    evidence: dict[str, np.ndarray]
    support: float
    turned_away: np.ndarray
    sets: np.ndarray
    proteins: StudyProteins | None

    @property
    def settings(self) -> dict[str, Any]:
        """What was decided along the way, for the record of the run."""
        used = {name: getattr(self.scorer, name) for name in ("prior_share", "profile_weight", "temperature")}
        held = {"held_labels": self.scorer.candidates.labels.labels} if self.together else {}
        return {
            "labels": self.labels.source,
            "num_candidates": len(self.labels),
            "min_confidence": self.min_confidence,
            "implausible_cells": int(self.turned_away.sum()),
            "consensus": self.together,
            "support_of_genes": self.support,
            **used,
            **held,
        }

    @property
    def notes(self) -> list[str]:
        """What should be known about the study before its calls are trusted."""
        if not self.together or self.turned_away.all():
            return []
        names, is_root = set(self.calls.labels) - {UNKNOWN}, self.sets == ROOT
        found = []
        if len(names) == 1:
            found.append(
                f"All cells are called {names.pop()!r}: with one type in a study there is nothing to compare cells with, "
                "so look at the candidates and at the genes before you trust it."
            )
        if is_root.mean() > MOST_OF_ROOT:
            found.append(
                f"{is_root.mean():.0%} of the cells might be nearly anything (their candidates are `{ROOT}`): the model may not know "
                "their types, too few of their genes were measured, or they are of one kind and there is nothing to compare them with."
            )
        return found

    def protein_results(self, verb: Verb) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Columns by name and the account of what antibodies changed; nothing where there are none."""
        return self.proteins.results(self.scorer, self.calls, verb.loaded) if self.proteins else ({}, {})


def call_study(verb: Verb, labels: Labels | None = None, asked: Asked = Asked()) -> CalledStudy:
    """Score and call all cells of a verb."""
    annotator = verb.loaded.annotator
    label_set = label_set_of(verb, labels)
    together = _decides_together(verb, asked, label_set)
    if together and labels is None:
        label_set = annotator.label_set(of_study=True)
    run, cells, scorer = _score(verb, label_set, asked, together)
    least = scorer.calibration.min_confidence if asked.min_confidence is None else asked.min_confidence
    calls = annotator.call(scorer, min_confidence=least, clusters=asked.clusters)
    evidence, support = evidence_of(verb, calls)
    turned_away = np.asarray(cells.is_implausible)
    reason = why_no_study(turned_away.mean(), support, scorer.profile_reach, run.variation, run.gene_account)
    if together and least > 0 and reason:
        verb.warn(
            f"All cells are called unknown: {reason}. Check genes and values; min_confidence=0 names them anyway."
        )
        turned_away = np.ones(len(cells), dtype=bool)
        calls = calls.with_unknown(turned_away)
    return CalledStudy(
        label_set,
        together,
        least,
        run,
        cells,
        scorer,
        calls,
        evidence,
        support,
        turned_away,
        annotator.label_sets(scorer, turned_away),
        asked.proteins,
    )


def label_set_of(verb: Verb, labels: Labels | None) -> LabelSet:
    """The labels that a person gave, or none, as the model reads them; warns of what should be known about them."""
    label_set = verb.loaded.annotator.label_set(labels)
    for warning in label_set.notes:
        verb.warn(warning)
    if len(label_set) == 1:
        verb.warn(
            f"With one label every cell is called {label_set.labels[0]!r}, and its confidence says nothing: add what else the "
            "cells might be."
        )
    return label_set


def _decides_together(verb: Verb, asked: Asked, labels: LabelSet) -> bool:
    """Whether the study decides together, as was asked or as its labels and its size suggest."""
    is_possible = asked.clusters is None and not asked.rerank and asked.prior_share != 0
    if asked.consensus and not is_possible:
        raise UserError("consensus=True decides over the study: leave out cluster_key, rerank and prior_share=0.")
    by_itself = labels.source in (TRAINED_TYPES, CELL_ONTOLOGY) and not is_gene_activity(verb.cells)
    wanted = by_itself if asked.consensus is None else asked.consensus
    return wanted and is_possible and verb.cells.num_cells >= MIN_CELLS


def _warn_of_strange_tissue(verb: Verb, tissue: str) -> None:
    seen = SeenInTraining.of(verb.loaded.training_summary)
    if seen is not None and named_tissue(tissue, seen.tissues) is None:
        near = get_close_matches(tissue.lower(), sorted(seen.tissues), 1)
        verb.warn(
            f"The tissue {tissue!r} was not seen in training: it may change names in ways that mean nothing. Leave it out"
            f"{f', or name {near[0]!r}' if near else ''}."
        )


def _score(verb: Verb, labels: LabelSet, asked: Asked, together: bool) -> tuple[CellRun, CellEvidence, Scorer]:
    """The run, what it found of each cell, and the scores of the labels; warns of cells that look like none."""
    loaded, annotator = verb.loaded, verb.loaded.annotator
    candidates = annotator.candidates(
        labels,
        lambda texts: remembered(loaded.weights_hash, texts, lambda: loaded.embed_texts(texts)),
        tissue=asked.tissue,
        with_profiles=asked.prior_share != 0,
    )
    if asked.tissue:
        _warn_of_strange_tissue(verb, asked.tissue)
    texts = labels.texts(asked.tissue) if asked.rerank else []
    run = verb.start_run(texts=texts or None, rerank=asked.rerank, types=candidates.profiles)
    cells = CellEvidence(**run.compute("annotate", EvidenceBatch(candidates, texts, asked.rerank)))
    measured = run.gene_tokenizer.measured_genes(run.source) if candidates.profiles else None
    scale = similarity_scale(loaded.model)
    if is_gene_activity(verb.cells):
        cells = replace(cells, is_implausible=np.zeros_like(cells.is_implausible))  # of RNA, the guard knows
        return run, cells, activity_scorer(annotator, cells, candidates, scale=scale, measured_genes=measured)
    scored, communities = said_over_space(verb, cells, asked.space, together), None
    if together:
        number, norms = asked.smooth or NUM_NEIGHBOURS, annotator.profile_norms(candidates, measured)
        scored, communities = over_neighbours(scored, verb.cells, run.array, number, norms)
    elif asked.smooth:
        scored = replace(scored, embeds=smooth_embeds(scored.embeds, asked.smooth))
    scorer = annotator.scorer(
        scored,
        candidates,
        scale=scale,
        measured_genes=measured,
        prior_share=asked.prior_share,
        of_study=together,
        proteins=None if asked.proteins is None else asked.proteins.evidence(candidates, loaded),
        reach=run.gene_account.get("reach", 1.0),
    )
    for warning in cell_warnings(int(cells.is_implausible.sum()), len(cells), run.variation, run.gene_account):
        verb.warn(warning)
    return run, cells, scorer if communities is None else annotator.held(scorer, communities)
