"""Author labels to terms of the Cell Ontology: by name, and where names do not settle it by the model's text tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .processing.author_labels_scmmgpt import NamedTerm, named_terms, words_of
from .processing.labels_scmmgpt import ontology_labels
from .processing.prompting_scmmgpt import cell_text

if TYPE_CHECKING:
    from .loading import LoadedModel

# Of a term that is found by text, how often it is of the right lineage; see docs/howto/audit.md.
_BY_TEXT, _MIN_COSINE = 0.4, 0.6


def map_labels(labels: Sequence[str], loaded: LoadedModel) -> list[NamedTerm]:
    """The term of each label, in their order; what names do not settle the text tower is asked."""
    found = named_terms(labels, loaded.ontology)
    open_ones = [number for number, named in enumerate(found) if named.how == "not found"]
    for number, named in zip(open_ones, _by_text([labels[n] for n in open_ones], loaded), strict=True):
        found[number] = named
    return found


def _by_text(labels: Sequence[str], loaded: LoadedModel) -> list[NamedTerm]:
    """The term whose name lies nearest in the model's space of texts."""
    if not labels or not loaded.ontology.terms:
        return [NamedTerm(label) for label in labels]
    from .text_cache import remembered

    known = ontology_labels(loaded.ontology)
    names = [cell_text({"cell_type": name}) for name in known.labels]
    ours = remembered(loaded.weights_hash, names, lambda: loaded.embed_texts(names))
    texts = loaded.embed_texts([cell_text({"cell_type": " ".join(words_of(label))}) for label in labels])
    found = []
    for label, cosines in zip(labels, texts @ np.asarray(ours).T, strict=True):
        best = int(cosines.argmax())
        sure = _BY_TEXT * max(0.0, (float(cosines[best]) - _MIN_COSINE) / (1 - _MIN_COSINE))
        term_id = known.term_ids[best] or ""
        found.append(NamedTerm(label, known.labels[best], sure, term_id, "text") if sure else NamedTerm(label))
    return found
