"""Fit `calibration.json` of the embedded model: prior correction, bias, profiles, temperatures, abstention.

    python -m scmmgpt.training.mini.calibration DEVELOPMENT_MODEL_DIR --output hub_cards/scmmgpt-mini/calibration.json

Everything is fitted on the development studies with a model that has not seen them. The shipped model, which has, is
read with the same numbers: its own confidence on these studies would be too good.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.special import log_softmax

from scmmgpt.loading import LoadedModel, load
from scmmgpt.processing.calibration_scmmgpt import Calibration
from scmmgpt.processing.labels_scmmgpt import ontology_labels
from scmmgpt.training.evaluation.metrics import expected_calibration_error, macro_f1
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


class Studies:
    """Development studies embedded once, with the names of all types that a study or the ontology knows."""

    def __init__(self, loaded: LoadedModel, studies: Sequence[EmbeddedStudy]):
        self.studies, summary = studies, loaded.training_summary
        self.trained: list[str] = summary["cell_types"] if summary else []
        own = sorted({name for study in studies for name in study.truth})
        self.everything = list(dict.fromkeys([*own, *ontology_labels(loaded.ontology).labels]))
        self.ontology = loaded.ontology

    def logits(self, study: EmbeddedStudy, labels: list[str], calibration: Calibration) -> np.ndarray:
        """What `annotate` softens with the temperature and turns into confidences."""
        return study.scores.scorer(labels, calibration).logits(slice(None))

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
    pairs = tuple((float(number), temperature(studies, best, number)) for number in NUMBERS_OF_CANDIDATES)
    best = replace(best, temperature_by_candidates=pairs)
    return replace(best, min_confidence=threshold(studies, best))


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


def _bias_for(output: Path, bias: dict[str, float]) -> dict[str, float]:
    """The same bias for the types of the model whose directory the file is written to: it was trained on more."""
    config = output.parent / "config.json"
    if not config.is_file() or not bias:
        return bias
    types = json.loads(config.read_text(encoding="utf-8"))["training_summary"]["cell_types"]
    return dict.fromkeys(types, next(iter(bias.values())))


def main(model: Path, data: CellFolder, output: Annotated[Path, typer.Option()], config: RecipeFile = RECIPE) -> None:
    """Fit `calibration.json` with a model that was trained with --development."""
    loaded = load(model)
    if not (loaded.training_summary or {}).get("development"):
        raise typer.BadParameter(f"{model} has seen the development studies: train one with --development")
    recipe = read_recipe(config)
    cells = read_studies(recipe.development_studies, recipe.sources, data, loaded.ontology)
    studies = Studies(loaded, list(embed_studies(loaded, cells)))
    calibration = fit(studies)
    print(f"merit {merit(studies, Calibration(prior_share=0.0)):.3f} -> {merit(studies, calibration):.3f}")
    for number in (None, *NUMBERS_OF_CANDIDATES):
        pairs = confidences(studies, calibration, number)
        errors = [expected_calibration_error(*pair) for pair in pairs]
        confidence, correct = (np.concatenate(part) for part in zip(*pairs, strict=True))
        pooled = expected_calibration_error(confidence, correct)
        print(f"{number or 'own'} candidates: ECE {np.mean(errors):.3f} by study, {pooled:.3f} pooled")
    content = {
        "temperature_by_candidates": [
            (number, round(value, 3)) for number, value in calibration.temperature_by_candidates
        ],
        "class_bias": _bias_for(output, calibration.class_bias),
        "prior_share": calibration.prior_share,
        "profile_weight": calibration.profile_weight,
        "min_confidence": round(calibration.min_confidence, 3),
    }
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
