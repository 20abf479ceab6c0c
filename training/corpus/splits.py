"""Which cells train, which validate and which test: by donor, study, tissue or cell type, never cell by cell.

A scheme gives whole groups to a split. Files of one study are one group, whatever they are called, and a cell type
takes its descendants with it, so that no test cell has a twin, a sibling file or a finer label in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from scmmgpt.errors import UserError
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.strict_yaml import CHECKED

from .metadata import UNKNOWN

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
Scheme = Literal["donor", "study", "tissue", "cell_type"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


@dataclass(config=CHECKED, frozen=True)
class SplitSettings:
    """How much of the corpus is held out, and what must be held out by name.

    Attributes
    ----------
    held_out
        {scheme: {split: [group, ...]}}: groups that a person has chosen; the rest follows the fractions.
    """

    seed: int = 0
    validation: float = 0.1
    test: float = 0.1
    held_out: dict[Scheme, dict[Literal["train", "validation", "test"], list[str]]] = Field(default_factory=dict)

    def __post_init__(self):
        if not 0 <= self.validation + self.test < 1:
            raise ValueError(f"validation + test must lie in [0, 1), got {self.validation} + {self.test}.")


def study_family(dataset: str, study: str, families: Mapping[str, Iterable[str]]) -> str:
    """The name shared by all files of one study.

    Examples
    --------
    >>> families = {"zheng2017": ["pbmc_facs", "zheng68k"]}
    >>> study_family("zheng68k_bmfm", "zheng68k_bmfm", families)
    'zheng2017'
    """
    for family, members in families.items():
        if any(dataset == member or dataset.startswith(f"{member}_") for member in members):
            return family
    return study


def split_scheme(num_cells: Mapping[str, int], scheme: Scheme, settings: SplitSettings, ontology: Ontology) -> dict:
    """{split: sorted groups} for one scheme.

    `num_cells` holds the cells of each group: a study, "study/donor", a tissue, or the id of a cell type, which takes
    its descendants in the ontology with it.
    """
    chosen = {group: split for split, groups in settings.held_out.get(scheme, {}).items() for group in groups}
    unknown = sorted(set(chosen) - set(num_cells))
    if unknown:
        known = ", ".join(sorted(num_cells)[:10])
        raise UserError(f"held_out names {scheme} {', '.join(unknown)}, not in the corpus ({known}, ...).")
    bundles = _clades(num_cells, ontology) if scheme == "cell_type" else {group: [group] for group in num_cells}
    split_of = _assign(num_cells, bundles, chosen, settings)
    return {split: sorted(group for group in num_cells if split_of[group] == split) for split in SPLITS}


def _assign(
    num_cells: Mapping[str, int],
    bundles: Mapping[str, list[str]],
    chosen: Mapping[str, str],
    settings: SplitSettings,
) -> dict[str, str]:
    """Fill test, then validation, with randomly ordered bundles up to their share; the rest trains."""
    split_of: dict[str, str] = {}
    for group, split in chosen.items():
        split_of.update(dict.fromkeys(bundles[group], split))
    total = sum(num_cells.values())
    order = sorted(bundles, key=lambda group: hashlib.sha256(f"{settings.seed}:{group}".encode()).hexdigest())
    for split, share in ((TEST, settings.test), (VALIDATION, settings.validation)):
        room = share * total - sum(num_cells[group] for group, taken in split_of.items() if taken == split)
        for group in order:
            members = bundles[group]
            size = sum(num_cells[member] for member in members)
            # A group larger than the room left would unbalance the split: it trains.
            if group != UNKNOWN and size <= room and not any(member in split_of for member in members):
                split_of.update(dict.fromkeys(members, split))
                room -= size
    return {group: split_of.get(group, TRAIN) for group in num_cells}


def _clades(num_cells: Mapping[str, int], ontology: Ontology) -> dict[str, list[str]]:
    """Each cell type with all its descendants that occur."""
    clades = {term: [term] for term in num_cells}
    for term in num_cells:
        for ancestor in ontology.ancestors(term):
            if ancestor in clades:
                clades[ancestor].append(term)
    return clades
