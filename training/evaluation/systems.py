"""What is evaluated: anything that does some of six things with cells and text, as plain functions.

The model, a baseline and a control all come as a `System`; a task asks only for the functions it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

Annotate = Callable[["AnnData", "Sequence[str] | None"], "Annotation"]
Predict = Callable[["AnnData", Sequence[str]], np.ndarray]
Embed = Callable[["AnnData"], np.ndarray]
EmbedText = Callable[[Sequence[str]], np.ndarray]
Describe = Callable[["AnnData"], Sequence[str]]
Generate = Callable[[str, int, int], "AnnData"]
Function = TypeVar("Function")

# Two terms of the Cell Ontology, neither above the other, that studies use for the same cells.
_PAIRS = (
    ("classical monocyte", "CD14-positive monocyte"),
    ("non-classical monocyte", "CD14-low, CD16-positive monocyte"),
)
SAME_CELLS = {first: (second,) for pair in _PAIRS for first, second in (pair, pair[::-1])}


@dataclass(frozen=True)
class Annotation:
    """What a system would write into a file, one entry a cell.

    Attributes
    ----------
    names
        One name a cell; "unknown" for none.
    sets
        The label set of each cell, where the system gives one.
    synonyms
        Names that are as right as one of its names where they are a type of the study.
    num_turned_away
        Cells that a guard against what looks like no cell left without a name.
    """

    names: np.ndarray
    sets: Sequence[frozenset[str]] | None = None
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_turned_away: int = 0

    def names_for(self, types: Sequence[str]) -> np.ndarray:
        """The names, or those of their synonyms that are among these types."""
        said = {name: name for name in set(self.names)}
        for name in said.keys() - set(types):
            same = [*self.synonyms.get(name, ()), *SAME_CELLS.get(name, ())]
            said[name] = next((other for other in same if other in types), name)
        return np.array([said[name] for name in self.names], object).astype(str)


@dataclass(frozen=True)
class System:
    """A named set of functions to evaluate.

    Attributes
    ----------
    predict
        (cells, labels) -> cells x labels; the largest wins, each row sums to one and is the confidence.
    embed
        cells -> cells x D.
    embed_text
        texts -> texts x D in the space of `embed`, so that dot products rank.
    describe
        cells -> one text a cell.
    generate
        (text, number of cells, seed) -> AnnData of counts.
    annotate
        (cells, labels or None) -> what it writes for a person, who gave these labels or none.
    needs_counts
        It takes no part in studies whose X holds none.
    """

    name: str
    predict: Predict | None = None
    embed: Embed | None = None
    embed_text: EmbedText | None = None
    describe: Describe | None = None
    generate: Generate | None = None
    annotate: Annotate | None = None
    is_baseline: bool = False
    needs_counts: bool = False

    def renamed(self, name: str) -> System:
        """The same functions under another name."""
        return replace(self, name=name)


def needed(function: Function | None) -> Function:
    """A function of a system that a task cannot do without."""
    if function is None:
        raise TypeError("The system lacks the function that this task asks for; `System` names them all.")
    return function


def checked_scores(system: System, cells: AnnData, labels: Sequence[str]) -> np.ndarray:
    """`system.predict`, refused when its answer has the wrong shape, holds NaN or does not sum to one."""
    scores = np.asarray(needed(system.predict)(cells, list(labels)), dtype=float)
    if scores.shape != (cells.n_obs, len(labels)):
        raise ValueError(
            f"{system.name} gave scores of shape {scores.shape} for {cells.n_obs} cells, {len(labels)} labels."
        )
    if not np.isfinite(scores).all() or np.abs(scores.sum(1) - 1).max() > 1e-3:
        raise ValueError(
            f"{system.name} gave scores that are not probabilities: each row must be finite and sum to 1."
        )
    return scores
