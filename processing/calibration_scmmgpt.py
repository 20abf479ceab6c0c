"""The calibration of a model: temperatures, class bias and thresholds, fitted on held-out studies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors_scmmgpt import UserError

FILE_NAME = "calibration.json"
# Where the model directory says nothing. Shares and limits: measured on left-out studies, see the model card.
DEFAULT_PRIOR_SHARE = 0.5
DEFAULT_MIN_CONFIDENCE = 0.3
DEFAULT_LEAST_SHARE = 0.003
DEFAULT_NAMING_TEMPERATURE = 2.0
DEFAULT_PARENT_BIAS = 0.0
DEFAULT_LEAST_PART = 0.1


@dataclass(frozen=True)
class Calibration:
    """How one model's similarities are read.

    Between its (number of candidates, temperature) pairs the temperature follows the logarithm of the number. The
    class bias, by Cell Ontology id or label, is subtracted from a candidate's logits: a model prefers types that it
    has seen in training. The prior correction takes away `prior_share` of a label's mean logit over the data;
    `profile_weight` is that of the type-profile cosine. Below `min_confidence` a call backs off to a parent term, then
    to "unknown". Where a study is called as a whole, `consensus` is the calibration of that, and a label must add
    `least_share` of the study to what is said about it, read at `naming_temperature`; `parent_bias` is taken from the
    logits of types that have others below them, and a type with less than `least_part` of what is said below a parent
    is called by that. Where cells are not compared with
    one another, `alone` is. `set_gap_by_candidates` are the gaps of `label_sets_scmmgpt`.
    """

    temperature_by_candidates: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    class_bias: dict[str, float] = field(default_factory=dict)
    prior_share: float = DEFAULT_PRIOR_SHARE
    min_confidence: float = DEFAULT_MIN_CONFIDENCE
    profile_weight: float = 0.0
    least_share: float = DEFAULT_LEAST_SHARE
    naming_temperature: float = DEFAULT_NAMING_TEMPERATURE
    parent_bias: float = DEFAULT_PARENT_BIAS
    least_part: float = DEFAULT_LEAST_PART
    set_gap_by_candidates: tuple[tuple[float, float], ...] = ()
    consensus: Calibration | None = None
    alone: Calibration | None = None

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """What the `calibration.json` of a model directory says."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            of_cells = cls.of_content(content)
            if (alone := content.get("alone")) is not None:
                of_cells = replace(of_cells, alone=cls.of_content(alone))
            if (of_study := content.get("consensus")) is None:
                return of_cells
            return replace(of_cells, consensus=replace(cls.of_content(of_study), class_bias=of_cells.class_bias))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{str(path)!r} is not a calibration file: {error!r}") from error

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Calibration:
        """The calibration that a table of numbers says."""
        return cls(
            _pairs(content["temperature_by_candidates"]),
            {str(name): float(bias) for name, bias in (content.get("class_bias") or {}).items()},
            float(content.get("prior_share", DEFAULT_PRIOR_SHARE)),
            float(content.get("min_confidence", DEFAULT_MIN_CONFIDENCE)),
            float(content.get("profile_weight", 0.0)),
            float(content.get("least_share", DEFAULT_LEAST_SHARE)),
            float(content.get("naming_temperature", DEFAULT_NAMING_TEMPERATURE)),
            float(content.get("parent_bias", DEFAULT_PARENT_BIAS)),
            float(content.get("least_part", DEFAULT_LEAST_PART)),
            _pairs(content.get("set_gap_by_candidates", ())),
        )

    @property
    def of_single_cells(self) -> Calibration:
        """The numbers for cells that are not compared with others of their study: text alone speaks of them."""
        return self.alone or self

    @property
    def of_study(self) -> Calibration:
        """The numbers for calls that a study decides together."""
        return self.consensus or self

    def temperature(self, num_candidates: int) -> float:
        return _between(self.temperature_by_candidates, num_candidates)

    def set_gap(self, num_candidates: int) -> float:
        """How far below the best a label of a cell's set may lie; infinite where nothing was fitted."""
        return _between(self.set_gap_by_candidates, num_candidates) if self.set_gap_by_candidates else float("inf")

    def bias_of(self, labels: Sequence[str], term_ids: Sequence[str | None]) -> np.ndarray:
        """The bias of each candidate."""
        return np.array(
            [
                self.class_bias.get(term_id or label, self.class_bias.get(label, 0.0))
                for label, term_id in zip(labels, term_ids, strict=True)
            ],
            dtype=np.float32,
        )


def _pairs(content: Any) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((float(number), float(value)) for number, value in content))


def _between(pairs: Sequence[tuple[float, float]], number: int) -> float:
    """The value for a number of candidates: between its neighbours by the logarithm of the number."""
    numbers, values = zip(*pairs, strict=True)
    return float(np.interp(np.log(number), np.log(numbers), values))


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    """scipy's, whose package takes longer to come than all of a small study's."""
    shares = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return shares / shares.sum(axis=axis, keepdims=True)
