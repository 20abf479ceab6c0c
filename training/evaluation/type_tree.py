"""The Cell Ontology as evaluation needs it: who is whose parent, how far apart two types are, other words for a type."""

from __future__ import annotations

import gzip
import json
import re
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, UNINFORMATIVE_TERMS, Ontology, Term


class TypeTree:
    """Distances, nearest candidates and wordings of cell types named by label, synonym or CL id.

    Parameters
    ----------
    ontology
        Terms, their names and parents.
    tissues
        Names of tissues, to recognise them in descriptions.
    """

    def __init__(self, ontology: Ontology, tissues: Iterable[str] = ()):
        self.ontology = ontology
        self.tissues = list(tissues)

    @classmethod
    @cache
    def load(cls, path: str | Path = EMBEDDED_MODEL / FILE_NAME) -> TypeTree:
        """The tree from `path`, by default the one that travels with the embedded model."""
        table = json.loads(gzip.decompress(Path(path).read_bytes()))
        return cls(Ontology.read(path), table["tissues"].values())

    @property
    def labels(self) -> list[str]:
        """The labels of all terms that say something, in order of id."""
        return [term.label for key, term in sorted(self.ontology.terms.items()) if key not in UNINFORMATIVE_TERMS]

    def find(self, name: str) -> str | None:
        """The CL id that `name` means, or None."""
        return term.id if (term := self.term(name)) else None

    @lru_cache(maxsize=100_000)  # noqa: B019  one tree lives as long as the process
    def term(self, name: str) -> Term | None:
        """The term that `name` means, or None."""
        return self.ontology.find(str(name))

    def is_parent(self, name: str, *, of: str) -> bool:
        """Whether `name` is a direct parent of the type `of`."""
        child = self.term(of)
        return child is not None and self.find(name) in child.parents

    def ancestors(self, name: str) -> dict[str, int]:
        """Ids of all ancestors with the fewest is-a steps up to each; the type itself is not among them."""
        found = self.find(name)
        return {key: steps for key, steps in self._steps_up(found).items() if steps} if found else {}

    @lru_cache(maxsize=100_000)  # noqa: B019
    def lineage(self, name: str) -> frozenset[str]:
        """Ids of the type and its ancestors, without those that say nothing, the root above all.

        A name that the ontology does not know stands for itself alone.
        """
        found = self.find(name)
        return frozenset(self._steps_up(found).keys() - UNINFORMATIVE_TERMS) if found else frozenset([name])

    def distance(self, first: str, second: str) -> float:
        """Fewest is-a steps, up or down, between two types; NaN when either is unknown or nothing joins them."""
        if first == second:
            return 0.0
        start, goal = self.find(first), self.find(second)
        return float(self._steps_around(start).get(goal, np.nan)) if start and goal else float("nan")

    def nearest_of(self, name: str, candidates: Iterable[str]) -> str | None:
        """The candidate that is this type or else its nearest ancestor; None if there is none."""
        candidates = list(candidates)
        if name in candidates:
            return name
        found = self.find(name)
        steps = self._steps_up(found) if found else {}
        above = [(steps[key], c) for c in candidates if (key := self.find(c)) in steps]
        return min(above)[1] if above else None

    def synonym(self, name: str) -> str | None:
        """The first synonym that is not the name itself in another case, or None."""
        term = self.term(name)
        return next((s for s in term.synonyms if s.lower() != str(name).lower()), None) if term else None

    def definition_without_name(self, name: str) -> str | None:
        """The definition with label, synonyms and their plurals replaced by "this cell", or None."""
        term = self.term(name)
        if term is None or not term.definition:
            return None
        text = term.definition
        for words in sorted([term.label, *term.synonyms], key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(words)}(?:s|es)?(?!\w)", "this cell", text, flags=re.IGNORECASE)
        return text

    @cached_property
    def _neighbours(self) -> dict[str, set[str]]:
        neighbours: dict[str, set[str]] = {key: set() for key in self.ontology.terms}
        for key, term in self.ontology.terms.items():
            for parent in neighbours.keys() & set(term.parents):
                neighbours[key].add(parent)
                neighbours[parent].add(key)
        return neighbours

    @lru_cache(maxsize=4096)  # noqa: B019
    def _steps_up(self, key: str) -> dict[str, int]:
        return _breadth_first(key, lambda child: self.ontology.terms.keys() & set(self.ontology.terms[child].parents))

    @lru_cache(maxsize=1024)  # noqa: B019
    def _steps_around(self, key: str) -> dict[str, int]:
        return _breadth_first(key, self._neighbours.__getitem__)


def _breadth_first(start: str, next_of: Callable[[str], Iterable[str]]) -> dict[str, int]:
    steps = {start: 0}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for there in next_of(here):
            if there not in steps:
                steps[there] = steps[here] + 1
                queue.append(there)
    return steps
