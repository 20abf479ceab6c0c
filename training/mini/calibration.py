"""Fit `calibration.json` of the embedded model: prior correction, bias, profiles, temperatures, abstention, sets.

    python -m scmmgpt.training.mini.calibration DEVELOPMENT_MODEL_DIR --output hub_cards/scmmgpt-mini/calibration.json

Everything is fitted on those development studies that the model has not seen. The shipped model, which has, is
read with the same numbers: its own confidence on these studies would be too good.

The numbers of single cells come first; then, under "consensus", those for studies that are called as a whole, among the
types that the model knows. There a call is right if the true type is the called one or one below it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from anndata import AnnData
from scipy.special import log_softmax

from scmmgpt.cells import CellsInMemory
from scmmgpt.consensus import over_neighbours
from scmmgpt.loading import LoadedModel, load
from scmmgpt.processing.calibration_scmmgpt import Calibration
from scmmgpt.processing.calling_scmmgpt import CellEvidence, Scorer
from scmmgpt.processing.label_sets_scmmgpt import GAPS, Groups, Sets, fitted_gap
from scmmgpt.processing.labels_scmmgpt import ontology_labels, read_labels
from scmmgpt.training.evaluation.metrics import expected_calibration_error, hierarchical_f1, macro_f1
from scmmgpt.training.evaluation.type_tree import TypeTree
from scmmgpt.training.mini.development import EmbeddedStudy, embed_studies, read_studies
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, RecipeFile, read_recipe

CHOICES = {
    "profile_weight": (0.0, 30.0, 60.0, 90.0),
    "class_bias": (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0),  # in favour of the types that the model was trained on
    "prior_share": (0.0, 0.25, 0.5, 0.75, 1.0),
}
NUMBERS_OF_CANDIDATES = (5, 30, 300, 3000)
TEMPERATURES = np.geomspace(0.2, 8.0, 60)
COVERAGE = 0.8
OF_STUDY_CHOICES = {
    "profile_weight": (0.0, 30.0, 60.0, 90.0),
    "prior_share": (0.0, 0.25, 0.5),
    "parent_bias": (0.0, 1.0, 2.0, 3.0, 4.0),
    "least_part": (0.0, 0.05, 0.1, 0.2, 0.3),
    # Of 1, 1.5 and 2 the best on all development studies, those of blood included, which the weights have seen.
    "naming_temperature": (1.0,),
}
# A study that names few types well is better named than not: its neighbours have already spoken.
OF_STUDY_COVERAGE = 0.999


class Studies:
    """Development studies embedded once, with the names of all types that a study or the ontology knows."""

    def __init__(self, loaded: LoadedModel, studies: Sequence[EmbeddedStudy]):
        self.studies, summary = studies, loaded.training_summary
        self.trained: list[str] = summary["cell_types"] if summary else []
        self.of_weights: list[str] = (summary or {}).get("cell_types_of_weights", self.trained)
        own = sorted({name for study in studies for name in study.truth})
        self.everything = list(dict.fromkeys([*own, *ontology_labels(loaded.ontology).labels]))
        self.ontology = loaded.ontology
        self.prior_share: float | None = None  # 0: cells are judged one by one

    def logits(self, study: EmbeddedStudy, labels: list[str], calibration: Calibration) -> np.ndarray:
        """What `annotate` softens with the temperature and turns into confidences."""
        return study.scores.scorer(labels, calibration, self.prior_share).logits(slice(None))

    def candidates(self, study: EmbeddedStudy, number: int, generator: np.random.Generator) -> list[str]:
        """The study's types, cut or filled up by lot from the whole ontology to so many."""
        own = study.types
        if number < len(own):
            return sorted(generator.choice(own, number, replace=False))
        others = [label for label in self.everything if label not in own]
        return own + list(generator.choice(others, min(number - len(own), len(others)), replace=False))


def fit(studies: Studies) -> Calibration:
    """First what moves the winner, by accuracy and macro-F1; then the temperatures, by likelihood."""
    best = Calibration(prior_share=0.5)
    for _ in range(2):  # one number after the other, and once more with what the others have become
        for name, values in CHOICES.items():
            best = max((_with(studies, best, name, value) for value in values), key=lambda one: merit(studies, one))
    return with_confidences(studies, best)


def with_confidences(studies: Studies, best: Calibration) -> Calibration:
    """The temperatures and thresholds under which its confidences say what they should."""
    pairs = tuple((float(number), temperature(studies, best, number)) for number in NUMBERS_OF_CANDIDATES)
    best = replace(best, temperature_by_candidates=pairs)
    gaps = tuple((float(number), gap(studies, best, number)) for number in NUMBERS_OF_CANDIDATES)
    return replace(best, min_confidence=threshold(studies, best), set_gap_by_candidates=gaps)


def fit_alone(studies: Studies, of_cells: Calibration) -> Calibration:
    """As `fit`, for cells that are judged one by one, without type profiles and prior correction.

    Types that the weights were not trained on, but have profiles, have no lead here.
    """
    alone = copy(studies)
    alone.prior_share, alone.trained = 0.0, studies.of_weights
    best, values = replace(of_cells, profile_weight=0.0, prior_share=0.0), CHOICES["class_bias"]
    biases = (_with(alone, best, "class_bias", value) for value in values)
    return with_confidences(alone, max(biases, key=lambda one: merit(alone, one)))


def _with(studies: Studies, calibration: Calibration, name: str, value: float) -> Calibration:
    changed: Any = dict.fromkeys(studies.trained, -value) if name == "class_bias" else value
    return replace(calibration, **{name: changed})


def merit(studies: Studies, calibration: Calibration) -> float:
    """Mean of accuracy and macro-F1 over the studies, with each study's own types and with the whole ontology.

    The whole ontology must count: what hardly matters among ten own types (a bias in favour of trained types, part of
    the prior correction) decides whether the right one of 3,000 loses to types that nobody has seen.
    """
    everything = studies.everything
    scores = []
    for study in studies.studies:
        for labels in (study.types, everything):
            named = np.array(labels, object)[studies.logits(study, labels, calibration).argmax(1)]
            scores.append((np.mean(named == study.truth) + macro_f1(study.truth, named)) / 2)
    return float(np.mean(scores))


def temperature(studies: Studies, calibration: Calibration, number: int) -> float:
    """The temperature under which confidences say best which calls are right, studies counting alike."""
    generator, likelihood = np.random.default_rng(0), np.zeros(len(TEMPERATURES))
    for study in studies.studies:
        labels = studies.candidates(study, number, generator)
        known = np.isin(study.truth, labels)
        logits = studies.logits(study, labels, calibration)[known]
        is_right = np.array(labels, object)[logits.argmax(1)] == study.truth[known]
        for i, value in enumerate(TEMPERATURES):
            confidence = np.exp(log_softmax(logits / value, axis=1).max(1)).clip(1e-6, 1 - 1e-6)
            likelihood[i] += np.log(np.where(is_right, confidence, 1 - confidence)).mean()
    return float(TEMPERATURES[likelihood.argmax()])


def confidences(studies: Studies, calibration: Calibration, number: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(confidence, correct) of each study; None for its own types."""
    generator, found = np.random.default_rng(1), []
    for study in studies.studies:
        labels = study.types if number is None else studies.candidates(study, number, generator)
        value = calibration.temperature(len(labels))
        chances = np.exp(log_softmax(studies.logits(study, labels, calibration) / value, axis=1))
        known = np.isin(study.truth, labels)
        correct = np.array(labels, object)[chances.argmax(1)] == study.truth
        found.append((chances.max(1)[known], correct[known]))
    return found


def threshold(studies: Studies, calibration: Calibration) -> float:
    """The confidence that four fifths of a study's cells reach, on average."""
    return float(
        np.mean([np.quantile(confidence, 1 - COVERAGE) for confidence, _ in confidences(studies, calibration, None)])
    )


@dataclass
class WholeStudy:
    """A study as `annotate` calls it when nobody lists its types, and what is true of it.

    Attributes
    ----------
    known
        (types, names) whether each candidate is a type of the study or stands above it.
    """

    study: EmbeddedStudy
    cells: CellEvidence
    communities: np.ndarray
    names: list[str]
    nearest: dict[str, str | None]
    known: np.ndarray
    tree: TypeTree

    @classmethod
    def of(cls, study: EmbeddedStudy, names: list[str], tree: TypeTree) -> WholeStudy:
        """Neighbours and communities found once, whatever the calibration."""
        scores = study.scores
        profiles = scores.loaded.annotator.type_profiles
        norms = profiles.norms(scores.measured) if profiles else None
        source = CellsInMemory(AnnData(shape=(len(study.truth), 0)))
        cells, communities = over_neighbours(scores.cells, source, profile_norms=norms)
        nearest = {name: tree.nearest_of(name, study.types) for name in names}
        above = [{tree.find(name), *tree.ancestors(name)} for name in study.types]
        known = np.array([[tree.find(name) in lineage for name in names] for lineage in above])
        return cls(study, cells, communities, names, nearest, known, tree)

    def scorer(self, calibration: Calibration) -> Scorer:
        """The scores of all trained types."""
        scores = replace(self.study.scores, cells=self.cells)
        return scores.scorer(self.names, replace(calibration, consensus=None))

    def held(self, calibration: Calibration) -> Scorer:
        """The scores of those that the study holds."""
        annotator = replace(self.study.scores.loaded.annotator, calibration=calibration)
        return annotator.held(self.scorer(calibration), self.communities)

    def meant(self, held: Scorer) -> np.ndarray:
        """The type of the study that each cell's call means, or the call itself."""
        types = np.array([self.nearest[label] or label for label in held.candidates.labels.labels], object)
        return types[held.probabilities(slice(None)).argmax(axis=1)].astype(str)

    def shares_held(self, calibration: Calibration) -> np.ndarray:
        """The share of cells whose label set holds their type, for each of `GAPS`."""
        scorer = self.scorer(calibration)
        types = np.searchsorted(self.study.types, self.study.truth)
        groups = Groups.of(scorer.candidates.labels, self.study.scores.loaded.ontology)
        lineages = [{self.tree.find(name), *self.tree.ancestors(name)} for name in self.study.types]
        above = np.array([[term_id in lineage for term_id in groups.term_ids] for lineage in lineages])
        logarithms = np.log(np.maximum(scorer.probabilities(slice(None)), 1e-30))
        return shares_held(logarithms, groups, self.known[types], above[types])

    def merit(self, calibration: Calibration) -> float:
        """Mean of accuracy, macro-F1 and hierarchical F1; nothing for more than twice as many names as types."""
        held, truth = self.held(calibration), self.study.truth
        names = np.array(held.candidates.labels.labels, object)[held.probabilities(slice(None)).argmax(axis=1)]
        if len(set(names)) > 2 * len(self.study.types):
            return 0.0
        meant = self.meant(held)
        scores = np.mean(meant == truth), macro_f1(truth, meant), hierarchical_f1(truth, names, self.tree)
        return float(np.mean(scores))


def fit_of_study(studies: Sequence[WholeStudy], of_cells: Calibration) -> Calibration:
    """As `fit`, for studies that are called as a whole."""

    def merit_of_study(calibration: Calibration) -> float:
        return float(np.mean([study.merit(calibration) for study in studies]))

    best = replace(of_cells, consensus=None)
    for name, values in OF_STUDY_CHOICES.items():
        best = max((replace(best, **{name: value}) for value in values), key=merit_of_study)  # type: ignore[arg-type]
    held = [study.held(best) for study in studies]
    right = [study.meant(one) == study.study.truth for study, one in zip(studies, held, strict=True)]
    value = max(TEMPERATURES, key=lambda value: sum(map(partial(_likelihood, value=value), held, right)))
    # The confidence that so many cells reach on average over the studies, which may differ in how many do.
    steps = [np.quantile(_confidence(one, value), np.linspace(0, 1, 1001)) for one in held]
    least = float(np.quantile(np.concatenate(steps), 1 - OF_STUDY_COVERAGE))
    best = replace(best, temperature_by_candidates=((1.0, float(value)),), min_confidence=least)
    return replace(best, set_gap_by_candidates=((1.0, fitted_gap([study.shares_held(best) for study in studies])),))


def _confidence(held: Scorer, value: float) -> np.ndarray:
    """The confidence of each cell's call at some temperature."""
    held = copy(held)
    held.temperature = value
    return held.probabilities(slice(None)).max(axis=1)


def _likelihood(held: Scorer, right: np.ndarray, value: float) -> float:
    """Mean log likelihood that the calls are right where they are, under the confidences at some temperature."""
    confidence = _confidence(held, value).clip(1e-6, 1 - 1e-6)
    return float(np.log(np.where(right, confidence, 1 - confidence)).mean())


def gap(studies: Studies, calibration: Calibration, number: int) -> float:
    """The gap of the label sets among so many candidates; types that are not among them are left out."""
    generator, shares = np.random.default_rng(2), []
    for study in studies.studies:
        labels = studies.candidates(study, number, generator)
        known = np.isin(study.truth, labels)
        logits = studies.logits(study, labels, calibration)[known] / calibration.temperature(len(labels))
        groups = Groups.of(read_labels(labels, studies.ontology), studies.ontology)
        place = {label: index for index, label in enumerate(labels)}
        truth = np.array([place[name] for name in study.truth[known]])
        labels_above, groups_above = np.eye(len(labels), dtype=bool)[truth], groups.membership[truth].toarray() > 0
        shares.append(shares_held(log_softmax(logits, axis=1), groups, labels_above, groups_above))
    return fitted_gap(shares)


def shares_held(
    logarithms: np.ndarray, groups: Groups, labels_above: np.ndarray, groups_above: np.ndarray
) -> np.ndarray:
    """The share of cells whose set holds their type, for each of `GAPS`."""
    sets = (Sets.of(np.exp(logarithms), groups, gap) for gap in GAPS)
    return np.array([one.hold(labels_above, groups_above).mean() for one in sets])


def report_sets(studies: Sequence[WholeStudy], calibration: Calibration) -> None:
    """Each study with a gap fitted on the others."""
    shares = [study.shares_held(calibration) for study in studies]
    for i, study in enumerate(studies):
        value = fitted_gap([share for j, share in enumerate(shares) if j != i])
        held = shares[i][np.searchsorted(GAPS, value)] if np.isfinite(value) else 1.0
        print(f"  {study.study.name}: sets hold {held:.2f}")


def content_of(calibration: Calibration) -> dict[str, Any]:
    """The numbers as the file keeps them."""
    pairs = {
        name: [(number, round(value, 3)) for number, value in getattr(calibration, name)]
        for name in ("temperature_by_candidates", "set_gap_by_candidates")
        if np.isfinite([value for _, value in getattr(calibration, name)]).all()
    }
    plain = {
        name: getattr(calibration, name)
        for name in (
            "prior_share",
            "profile_weight",
            "least_share",
            "naming_temperature",
            "parent_bias",
            "least_part",
        )
    }
    return pairs | plain | {"min_confidence": round(calibration.min_confidence, 3)}


def _bias_for(output: Path, bias: dict[str, float], types: str = "cell_types") -> dict[str, float]:
    """The same bias for the types of the model whose directory the file is written to: it was trained on more."""
    config = output.parent / "config.json"
    if not config.is_file() or not bias:
        return bias
    summary = json.loads(config.read_text(encoding="utf-8"))["training_summary"]
    return dict.fromkeys(summary.get(types, summary["cell_types"]), next(iter(bias.values())))


def main(model: Path, data: CellFolder, output: Annotated[Path, typer.Option()], config: RecipeFile = RECIPE) -> None:
    """Fit `calibration.json` with a model that was trained with --development."""
    loaded = load(model)
    if not output.parent.is_dir():
        raise typer.BadParameter(f"There is no folder {output.parent} to write to.")
    if not (loaded.training_summary or {}).get("development"):
        raise typer.BadParameter(f"{model} has seen the development studies: train one with --development")
    recipe, seen = read_recipe(config), set((loaded.training_summary or {})["studies"])
    names = [name for name in recipe.development_studies if name not in seen]
    cells = read_studies(names, recipe.sources, data, loaded.ontology)
    studies = Studies(loaded, list(embed_studies(loaded, cells)))
    calibration = fit(studies)
    print(f"merit {merit(studies, Calibration(prior_share=0.0)):.3f} -> {merit(studies, calibration):.3f}")
    for number in (None, *NUMBERS_OF_CANDIDATES):
        pairs = confidences(studies, calibration, number)
        errors = [expected_calibration_error(*pair) for pair in pairs]
        confidence, correct = (np.concatenate(part) for part in zip(*pairs, strict=True))
        pooled = expected_calibration_error(confidence, correct)
        print(f"{number or 'own'} candidates: ECE {np.mean(errors):.3f} by study, {pooled:.3f} pooled")
    names = list(loaded.annotator.label_set(of_study=True).labels)
    whole = [WholeStudy.of(study, names, TypeTree.load()) for study in studies.studies]
    of_study = fit_of_study(whole, calibration)
    print("Sets of labels for studies called as a whole")
    report_sets(whole, of_study)
    alone = fit_alone(studies, calibration)
    content = content_of(calibration) | {
        "class_bias": _bias_for(output, calibration.class_bias),
        "consensus": content_of(of_study),
        "alone": content_of(alone) | {"class_bias": _bias_for(output, alone.class_bias, "cell_types_of_weights")},
    }
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
