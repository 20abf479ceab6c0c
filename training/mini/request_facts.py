"""What texts may say of cells, as numbers: which facts there are, which populations are known by them, and their states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from scmmgpt.modeling_scmmgpt.modeling_factor_decoder import KIN_SHARPNESS
from scmmgpt.processing.ontology_scmmgpt import UNINFORMATIVE_TERMS, Ontology, plain_name

from .factor_fit import numbered
from .request_texts import STAGES

FACTS = ("term_id", "organism", "tissue", "stage", "disease")
TYPE, ORGANISM, TISSUE, STAGE, DISEASE = range(len(FACTS))
# Of the texts that the reader learns from, those about types that no profile shows.
SHARE_OTHER_TYPES = 0.15
# Of the texts, those whose organism and place are drawn apart from the type: what is said of a cell is read word by word, or
# a type would only be found where it was seen.
SHARE_OTHER_PLACES = 0.5
# A type with more profiled kinds than this is too general to be asked for.
MOST_KINDS = 40
# What types, and places, stages and diseases, add to a state: shrinkage in populations, and how much a population of a
# stage, a disease or an unknown place counts beside the others, which are better balanced.
TYPE_RIDGE, PLACE_RIDGE, WEIGHT_OF_OTHERS = 0.1, 1.0, 0.01


@dataclass
class FactTable:
    """The facts of profiles.

    Attributes
    ----------
    values
        Of each fact in `FACTS`; "" is the first of a tissue, a stage and a disease: nothing is said.
    populations, population
        Distinct facts that profiles have, and which of them each profile (P,) has.
    kinds
        Types that a text may name, and the profiled types that it means by them.
    parts
        Tissues that are part of another: who asks for the whole means them too.
    """

    values: list[list[str]]
    populations: list[tuple[str, ...]]
    population: np.ndarray
    kinds: dict[str, list[str]]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, facts: list[dict[str, str]], ontology: Ontology, parts: Mapping[str, tuple[str, ...]] | None = None
    ) -> FactTable:
        """Of the facts of each profile."""
        populations, population = numbered(*([one[name] for one in facts] for name in FACTS))
        values = [sorted({one[place] for one in populations}) for place in range(len(FACTS))]
        for said in values[TISSUE:]:
            said[:] = ["", *(name for name in said if name)]
        return cls(values, populations, population, kinds_of(values[TYPE], ontology), parts or {})

    @property
    def sizes(self) -> list[int]:
        return [len(said) for said in self.values]

    def __post_init__(self):
        self._places = [{name: place for place, name in enumerate(said)} for said in self.values]
        self._starts = np.cumsum([0, *self.sizes])
        self._of_type: dict[str, list[int]] = {}
        self._of_tissue: dict[str, list[int]] = {}
        for number, one in enumerate(self.populations):
            self._of_type.setdefault(one[TYPE], []).append(number)
            self._of_tissue.setdefault(one[TISSUE], []).append(number)
        roots = np.sqrt([len(self._of_type[term]) for term in self.values[TYPE]])
        self._rates = roots / roots.sum()
        self._others = sorted(set(self.kinds) - set(self.values[TYPE]))

    # ---- for the decoder

    def means(self, values: np.ndarray) -> np.ndarray:
        """Of the profiles (P, ...) of each population."""
        member = np.equal.outer(np.arange(len(self.populations)), self.population).astype(np.float32)
        return member @ values / member.sum(1, keepdims=True)

    def arrays(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """Mean states of types, anywhere and without their places, and of populations, from the states (P, S) of profiles."""
        mean = self.means(states)
        home = np.full((*self.sizes[:2], states.shape[1]), np.nan)
        kind = self._kinds_of_populations()
        plain = (kind[:, STAGE] == 0) & (kind[:, DISEASE] == 0)
        for term, organism in {tuple(pair) for pair in kind[:, :2]}:
            mine = (kind[:, TYPE] == term) & (kind[:, ORGANISM] == organism)
            home[term, organism] = mean[mine & plain if (mine & plain).any() else mine].mean(0)
        facts = np.zeros((len(kind), self._starts[-1]), np.float32)
        for place, start in enumerate(self._starts[:-1]):
            facts[np.arange(len(kind)), start + kind[:, place]] = 1
        facts[:, self._starts[TISSUE]] = 1  # a text that names no place means cells of any
        for whole, parts in self.parts.items():
            if whole in self._places[TISSUE]:
                is_part = np.isin([self.values[TISSUE][place] for place in kind[:, TISSUE]], parts)
                facts[is_part, self._starts[TISSUE] + self._places[TISSUE][whole]] = 1
        of_types = {"type_states": home, "type_levels": self._levels(mean, kind)}
        found = {name: _in_all_organisms(values) for name, values in of_types.items()}
        return {**found, "population_facts": facts, "population_states": mean}

    def _kinds_of_populations(self) -> np.ndarray:
        """(K, number of facts) places of the values of each population."""
        return np.array([[self._places[place][one[place]] for place in range(len(FACTS))] for one in self.populations])

    def _levels(self, states: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """What is left of types (T, O, S) without what places do, from the states (K, S) of populations; NaN where unseen.

        By ridge, all at once: a type is found in some places only, and a place holds some types only.
        """
        num_organisms = self.sizes[ORGANISM]
        is_plain = (kind[:, STAGE] == 0) & (kind[:, DISEASE] == 0) & (kind[:, TISSUE] > 0)
        type_and_organism, tissue_and_organism = (
            kind[:, place] * num_organisms + kind[:, ORGANISM] for place in (TYPE, TISSUE)
        )
        parts = [
            (type_and_organism, self.sizes[TYPE] * num_organisms, TYPE_RIDGE),
            (tissue_and_organism, self.sizes[TISSUE] * num_organisms, PLACE_RIDGE),
            *((kind[:, place], self.sizes[place], PLACE_RIDGE) for place in (TISSUE, STAGE, DISEASE)),
        ]
        design = np.hstack([np.eye(size)[column] for column, size, _ in parts])
        ridge = np.concatenate([np.full(size, shrinkage) for _, size, shrinkage in parts])
        weight = np.where(is_plain, 1.0, WEIGHT_OF_OTHERS)[:, None]
        middle = states[is_plain].mean(0) if is_plain.any() else states.mean(0)
        fitted = np.linalg.solve(
            design.T @ (weight * design) + np.diag(ridge), design.T @ (weight * (states - middle))
        )
        levels = fitted[: parts[0][1]] + middle
        levels[~design[:, : len(levels)].any(0)] = np.nan
        return levels.reshape(self.sizes[TYPE], num_organisms, -1)

    def tissues_of_types(self) -> dict[str, list[str]]:
        """By term the tissues that its profiles come from, as texts call them."""
        return {
            term: sorted({self.populations[number][TISSUE] for number in numbers} - {""})
            for term, numbers in sorted(self._of_type.items())
        }

    # ---- for the reader of texts

    def draw(self, generator: np.random.Generator) -> dict[str, str]:
        """What a text is to say: first the type, by the root of its number of populations, then the place."""
        if self._others and generator.random() < SHARE_OTHER_TYPES:
            term = str(generator.choice(self._others))
            of = str(generator.choice(self.kinds[term]))
        else:
            term = of = str(generator.choice(self.values[TYPE], p=self._rates))
        one = self.populations[int(generator.choice(self._of_type[of]))]
        organism, place = one[ORGANISM], one[TISSUE:]
        if generator.random() < SHARE_OTHER_PLACES:
            organism = str(generator.choice(self.values[ORGANISM]))
            there = self._of_tissue[str(generator.choice(sorted(self._of_tissue)))]
            place = self.populations[int(generator.choice(there))][TISSUE:]
        return dict(zip(FACTS, (term, organism, *place), strict=True))

    def target(self, facts: Mapping[str, str], text: str) -> np.ndarray:
        """Probabilities (A,) of what a text about these facts says; what it leaves out is not said."""
        words, target = f" {plain_name(text)} ", np.zeros(self._starts[-1], np.float32)
        means = self.kinds[facts["term_id"]]
        for term in means:
            target[self._starts[TYPE] + self._places[TYPE][term]] = 1 / len(means)
        said = {name: f" {plain_name(facts[name])} " in words for name in ("tissue", "disease")}
        said["stage"] = any(f" {word} " in words for word in STAGES.get(facts["stage"], ()))
        for place, name in list(enumerate(FACTS))[ORGANISM:]:
            value = facts[name] if said.get(name, True) else ""
            target[self._starts[place] + self._places[place][value]] = 1
        return target


def kinds_of(profiled: list[str], ontology: Ontology) -> dict[str, list[str]]:
    """For each term the profiled types that it means: itself, or its kinds, or those of its nearest parent that has some."""
    below: dict[str, list[str]] = {}
    for term in profiled:
        for above in (term, *ontology.ancestors(term)):
            below.setdefault(above, []).append(term)
    found = {term: [term] for term in profiled}
    for term in ontology.terms:
        if term in found or term in UNINFORMATIVE_TERMS:
            continue
        known = [one for one in (term, *ontology.ancestors(term)) if one in below and one not in UNINFORMATIVE_TERMS]
        nearest = min(known, key=lambda one: len(below[one]), default=None) if term not in below else term
        if nearest is not None and len(below[nearest]) <= MOST_KINDS:
            found[term] = below[nearest]
    return found


def _in_all_organisms(home: np.ndarray) -> np.ndarray:
    """States (T, O, S) of types, those of an organism without profiles moved as the types most like it differ."""
    home = home.copy()
    known = ~np.isnan(home[..., 0])
    for organism in range(home.shape[1]):
        for other in range(home.shape[1]):
            both = np.flatnonzero(known[:, organism] & known[:, other])
            for term in np.flatnonzero(~known[:, organism] & known[:, other]):
                alike = _cosines(home[both, other], home[term, other])
                weights = np.exp(KIN_SHARPNESS * (alike - 1))
                moved = weights @ (home[both, organism] - home[both, other]) / max(weights.sum(), 1e-9)
                home[term, organism] = home[term, other] + moved
    return home


def _cosines(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    return rows @ row / np.maximum(np.linalg.norm(rows, axis=1) * np.linalg.norm(row), 1e-9)
