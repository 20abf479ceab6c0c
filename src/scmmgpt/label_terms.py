"""The candidates, what they mean among the types of the training, and which of these types speak for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .embedding import embed_texts
from .loading import LoadedModel
from .processing.labels_scmmgpt import Labels, LabelSet, ontology_labels, read_labels
from .processing.type_profiles_scmmgpt import Agreement, candidate_of_type
from .prompts import label_texts

# Definitions without the name lie this near to their own type's text in 95 of 100 cases, measured on trained types.
MIN_COSINE = 0.9


def candidates_of(loaded: LoadedModel, labels: Labels | None) -> LabelSet:
    """The labels that a person gave; without any the types of the training, else the whole ontology."""
    ontology, trained = loaded.ontology, (loaded.training_summary or {}).get("cell_types")
    if labels is not None:
        return read_labels(labels, ontology)
    if not trained:
        return ontology_labels(ontology)
    terms = [ontology.find(name) for name in trained]
    known = [term.label if term else name for term, name in zip(terms, trained, strict=True)]
    return read_labels(list(dict.fromkeys(known)), ontology)


def meant_terms(loaded: LoadedModel, labels: LabelSet, label_embeds: np.ndarray) -> tuple[str | None, ...]:
    """The Cell Ontology id of each label; for free text that of the trained type next to it, if there is one so near.

    No type is meant by two labels: a name comes before free text, and of several texts the nearest comes first.
    """
    summary = loaded.training_summary or {}
    terms = [term for name in summary.get("cell_types", ()) if (term := loaded.ontology.find(name))]
    free = [index for index, term_id in enumerate(labels.term_ids) if term_id is None]
    if not terms or not free:
        return labels.term_ids
    named = read_labels([term.label for term in terms], loaded.ontology)
    cosines = label_embeds[free] @ embed_texts(loaded, label_texts(named)).T
    meant, taken = list(labels.term_ids), set(labels.term_ids)
    for place in np.argsort(-cosines.max(axis=1), kind="stable"):
        nearest = int(cosines[place].argmax())
        if cosines[place, nearest] >= MIN_COSINE and terms[nearest].id not in taken:
            meant[free[place]] = terms[nearest].id
            taken.add(terms[nearest].id)
    return tuple(meant)


def speakers_for(loaded: LoadedModel, term_ids: Sequence[str | None]) -> np.ndarray:
    """For each type with a profile the candidate that it speaks for, or -1; none where fewer than two are spoken for."""
    profiles = loaded.type_profiles
    if profiles is None or not loaded.calibration.profile_weight:
        return np.empty(0, dtype=np.int64)
    speakers = candidate_of_type(profiles, term_ids, loaded.ontology)
    return speakers if len(np.unique(speakers[speakers >= 0])) > 1 else np.full_like(speakers, -1)


def agreement_of(loaded: LoadedModel, cells: Any, values: np.ndarray, speakers: np.ndarray) -> Agreement:
    """What `agreeing_batch` found for the types that speak, with what the cells measured taken into account."""
    profiles = loaded.type_profiles
    assert profiles is not None
    measured = loaded.processor.feature_extractor.measured_genes(cells)
    return Agreement.of(values, profiles, measured, speakers)
