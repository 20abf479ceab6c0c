"""Author labels to terms of the Cell Ontology: by name, by part of a name, and by the model's text tower."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .processing.labels_scmmgpt import ontology_labels
from .processing.ontology_scmmgpt import Ontology, Term, plain_name
from .processing.prompting_scmmgpt import cell_text

if TYPE_CHECKING:
    from .loading import LoadedModel

# Abbreviations that authors use and the ontology does not spell out, or spells for another cell as well.
ABBREVIATIONS = {
    "astro": "astrocyte",
    "b": "B cell",
    "bcell": "B cell",
    "cd14mono": "CD14-positive monocyte",
    "cd16mono": "CD14-low, CD16-positive monocyte",
    "cd4": "CD4-positive, alpha-beta T cell",
    "cd4positivet": "CD4-positive, alpha-beta T cell",
    "cd4t": "CD4-positive, alpha-beta T cell",
    "cd8": "CD8-positive, alpha-beta T cell",
    "cd8positivet": "CD8-positive, alpha-beta T cell",
    "cd8t": "CD8-positive, alpha-beta T cell",
    "cdc": "conventional dendritic cell",
    "cdc1": "CD141-positive myeloid dendritic cell",
    "cdc2": "CD1c-positive myeloid dendritic cell",
    "cm": "cardiac muscle cell",
    "dc": "dendritic cell",
    "ec": "endothelial cell",
    "endo": "endothelial cell",
    "epi": "epithelial cell",
    "eryth": "erythrocyte",
    "exc": "glutamatergic neuron",
    "excitatory": "glutamatergic neuron",
    "fcgr3apositivemonocyte": "CD14-low, CD16-positive monocyte",
    "fibro": "fibroblast",
    "gdt": "gamma-delta T cell",
    "gran": "granulocyte",
    "hep": "hepatocyte",
    "hsc": "hematopoietic stem cell",
    "hspc": "hematopoietic precursor cell",
    "ilc": "innate lymphoid cell",
    "inh": "GABAergic neuron",
    "inhibitory": "GABAergic neuron",
    "mac": "macrophage",
    "mait": "mucosal invariant T cell",
    "mg": "microglial cell",
    "micro": "microglial cell",
    "mk": "megakaryocyte",
    "mono": "monocyte",
    "monocd14": "CD14-positive monocyte",
    "monocd16": "CD14-low, CD16-positive monocyte",
    "neut": "neutrophil",
    "nk": "natural killer cell",
    "nkt": "mature NK T cell",
    "oligo": "oligodendrocyte",
    "opc": "oligodendrocyte precursor cell",
    "pc": "plasma cell",
    "pdc": "plasmacytoid dendritic cell",
    "rbc": "erythrocyte",
    "smc": "smooth muscle cell",
    "t": "T cell",
    "ta": "transit amplifying cell",
    "tcd4": "CD4-positive, alpha-beta T cell",
    "tcd8": "CD8-positive, alpha-beta T cell",
    "tcell": "T cell",
    "treg": "regulatory T cell",
}
# Where several of these stand together they are cells of the pancreas.
PANCREAS = {
    "acinar": "pancreatic acinar cell",
    "alpha": "pancreatic A cell",
    "beta": "type B pancreatic cell",
    "delta": "pancreatic D cell",
    "ductal": "pancreatic ductal cell",
    "epsilon": "pancreatic epsilon cell",
    "gamma": "pancreatic PP cell",
    "pp": "pancreatic PP cell",
    "stellate": "pancreatic stellate cell",
}
_ISLET = frozenset(("alpha", "beta", "delta", "epsilon"))
# What says little without the word before it.
_GENERIC = frozenset(
    [
        "cell",
        "positive",
        "negative",
        "progenitor",
        "precursor",
        "stem",
        "malignant",
        "mature",
        "immature",
        "early",
        "late",
    ]
)
UNASSIGNED = frozenset(
    [
        "unknown",
        "unassigned",
        "na",
        "nan",
        "none",
        "other",
        "doublet",
        "unlabelled",
        "unlabeled",
        "undefined",
        "ambiguous",
    ]
)
# Measured on labels of 20 development studies, see docs/howto/audit.md: how often each way finds the right lineage.
_BY_NAME, _BY_SYNONYM, _BY_ABBREVIATION, _BY_PART, _BY_TEXT = 1.0, 0.97, 0.93, 0.9, 0.4
_MIN_COSINE = 0.6


@dataclass(frozen=True)
class Mapping:
    """What a label means: a term, how it was found, and how sure that is."""

    label: str
    term: str = ""
    confidence: float = 0.0
    term_id: str = ""
    how: str = "not found"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"confidence": round(self.confidence, 3)}


def map_labels(labels: Sequence[str], loaded: LoadedModel) -> list[Mapping]:
    """The term of each label, in their order; what names do not settle the text tower is asked."""
    ontology = loaded.ontology
    words = [_words(label) for label in labels]
    is_pancreas = len(_ISLET & {word for one in words for word in one}) > 1
    found = [by_name(label, ontology, PANCREAS if is_pancreas else {}) for label in labels]
    open_ones = [number for number, mapping in enumerate(found) if mapping.how == "not found"]
    for number, mapping in zip(open_ones, _by_text([labels[n] for n in open_ones], loaded), strict=True):
        found[number] = mapping
    return found


def by_name(label: str, ontology: Ontology, in_this_tissue: dict[str, str] | None = None) -> Mapping:
    """The term that a label names, whole, abbreviated or in part."""
    words, short = _words(label), ABBREVIATIONS | (in_this_tissue or {})
    if not words or UNASSIGNED & set(words) or _GENERIC.issuperset(words):
        return Mapping(label, how="no type")
    is_short = plain_name(label).removesuffix(" cell") in (in_this_tissue or {})
    if (term := ontology.find(label)) is not None and not is_short:
        is_own = label.strip() == term.id or plain_name(label) == plain_name(term.label)
        return _mapping(label, term, *(("name", _BY_NAME) if is_own else ("synonym", _BY_SYNONYM)))
    for number, phrase in enumerate((plain_name(label), *_phrases(words))):
        written_out = short.get(phrase.removesuffix(" cell").replace(" ", ""))
        for name in (written_out, phrase, f"{phrase} cell"):
            if name and (name is written_out or len(phrase) > 1) and (term := ontology.find(name)) is not None:
                how, sure = ("abbreviation", _BY_ABBREVIATION) if name is written_out else ("part", _BY_PART)
                return _mapping(label, term, how, _BY_ABBREVIATION if number < 2 else sure)
    return Mapping(label)


def _mapping(label: str, term: Term, how: str, confidence: float) -> Mapping:
    return Mapping(label, term.label, confidence, term.id, how)


def _words(label: str) -> list[str]:
    """Words of a label, without cluster numbers, marker genes ("Stromal cell Acta2 high") and camel case."""
    label = re.sub(r"\b[A-Za-z0-9]+ (high|low|hi|lo)\b", " ", label)
    label = re.sub(r"(?<=[a-z]{3})(?=[A-Z][a-z]{2})", " ", label)
    words = plain_name(re.sub(r"[_./|:]", " ", label)).split()
    words = [re.sub(r"(?<=[a-z]{3})\d+$", "", word) for word in words]
    return [word for word in words if not word.isdigit() and word not in ("cluster", "like")]


def _phrases(words: Sequence[str]) -> Iterable[str]:
    """Runs of words, long ones first, and among these the later ones: the noun stands last."""
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length, -1, -1):
            if not _GENERIC.issuperset(words[start : start + length]):
                yield " ".join(words[start : start + length])


def _by_text(labels: Sequence[str], loaded: LoadedModel) -> list[Mapping]:
    """The term whose name lies nearest in the model's space of texts."""
    if not labels or not loaded.ontology.terms:
        return [Mapping(label) for label in labels]
    from .text_cache import remembered

    known = ontology_labels(loaded.ontology)
    names = [cell_text({"cell_type": name}) for name in known.labels]
    ours = remembered(loaded.weights_hash, names, lambda: loaded.embed_texts(names))
    texts = loaded.embed_texts([cell_text({"cell_type": " ".join(_words(label))}) for label in labels])
    mappings = []
    for label, cosines in zip(labels, texts @ np.asarray(ours).T, strict=True):
        best = int(cosines.argmax())
        sure = _BY_TEXT * max(0.0, (float(cosines[best]) - _MIN_COSINE) / (1 - _MIN_COSINE))
        term_id = known.term_ids[best] or ""
        mappings.append(Mapping(label, known.labels[best], sure, term_id, "text") if sure else Mapping(label))
    return mappings
