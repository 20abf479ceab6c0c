"""Type profiles: how each known type expresses its genes, compared with the other types and within a study.

The score of a cell for a type is close to the cosine between the cell's values and the type's difference from the mean type, minus
the mean over the study's cells. This removes effects of platform and ambient RNA that all cells of the study share.
The differences come from mean profiles and from marker genes, see `training/mini/type_profiles.py`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .errors_scmmgpt import UserError
from .ontology_scmmgpt import Ontology

FILE_NAME = "type_profiles.safetensors.gz"
# Differences are stored in steps of a byte each.
STEP = 0.2
# A type says less the shorter its differences are in the genes that were measured; by half at this length.
SHORT = 5.0


@dataclass(frozen=True)
class TypeProfiles:
    """Differences between T types and the mean of all types, for K genes.

    `term_ids` are Cell Ontology ids, `gene_rows` (K,) rows of the vocabulary, `differences` (T, K) in whole steps of
    `STEP`.
    """

    term_ids: tuple[str, ...]
    gene_rows: np.ndarray
    differences: np.ndarray

    @classmethod
    def read(cls, path: Path) -> TypeProfiles:
        """The type profiles of a model directory."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(gzip.decompress(path.read_bytes()))
            terms = tuple(f"CL:{number:07d}" for number in arrays["terms"])
            return cls(terms, arrays["gene_rows"], arrays["steps"].T * np.float32(STEP))
        except (OSError, EOFError, KeyError, zlib.error, SafetensorError) as error:
            raise UserError(f"{str(path)!r} is not a file of type profiles: {error!r}") from error

    def write(self, directory: Path) -> None:
        """Write the profiles into a model directory; the same profiles give the same bytes."""
        from safetensors.numpy import save

        steps = np.clip(np.round(self.differences / STEP), -127, 127).astype(np.int8)
        arrays: dict[str, np.ndarray] = {
            "terms": np.array([int(term_id.removeprefix("CL:")) for term_id in self.term_ids], np.int32),
            "gene_rows": self.gene_rows.astype(np.int32),
            "steps": np.ascontiguousarray(steps.T),  # genes that differ alike lie together
        }
        (directory / FILE_NAME).write_bytes(gzip.compress(save(arrays), mtime=0))

    def norms(self, measured: np.ndarray) -> np.ndarray:
        """(T,) length of each type's differences in the genes that were measured, rows of the vocabulary.

        It is taken together with `SHORT`, so that a type of which little was measured says little.
        """
        among = np.isin(self.gene_rows, measured)
        return np.hypot(np.linalg.norm(self.differences[:, among], axis=1), SHORT)

    def table(self, types: Sequence[int], gene_ids: np.ndarray, vocab_size: int) -> np.ndarray:
        """(V, len(types)): for each token id what a unit of its value says for each of some types."""
        table = np.zeros((vocab_size, len(types)), np.float32)
        table[gene_ids[self.gene_rows]] = self.differences[list(types)].T
        return table


@dataclass(frozen=True)
class Agreement:
    """How well N cells agree with T types, and which of the candidates, by index, each type counts for.

    `values` (N, T) are sums of a cell's values weighted by the differences, over the length of the values; `norms`
    (T,) those of the differences in the genes that were measured.
    """

    values: np.ndarray
    norms: np.ndarray
    candidates: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """(T,) of the values over all cells."""
        return np.asarray(np.mean(self.values, axis=0, dtype=np.float64), dtype=np.float32)

    @property
    def reach(self) -> float:
        """How much of the types' differences the measured genes can show, from 0 to 1."""
        return float(np.median(np.maximum(1 - np.square(SHORT / np.maximum(self.norms, SHORT)), 1e-3)))

    def evidence(self, rows: slice | np.ndarray, num_candidates: int) -> np.ndarray:
        """(rows, C): what speaks for each candidate, 0 on average and for candidates that no type speaks for.

        A candidate has the best of its types.
        """
        cosines = (np.asarray(self.values[rows]) - self.mean) / np.maximum(self.norms, 1e-6)
        result = np.zeros((len(cosines), num_candidates), np.float32)
        spoken_for = np.unique(self.candidates)
        if len(spoken_for) < 2:
            return result
        best = np.column_stack([cosines[:, self.candidates == one].max(axis=1) for one in spoken_for])
        result[:, spoken_for] = best - best.mean(axis=1, keepdims=True)
        return result


def candidate_of_type(profiles: TypeProfiles, term_ids: Sequence[str | None], ontology: Ontology) -> np.ndarray:
    """(T,) index of the candidate label for each training type: the type itself or its nearest ancestor; -1: none.

    `term_ids` are what the candidates mean, None where nothing is known.
    """
    place = {term_id: index for index, term_id in reversed(list(enumerate(term_ids))) if term_id}
    lineages = ((term_id, *ontology.ancestors(term_id)) for term_id in profiles.term_ids)
    return np.array([next((place[one] for one in lineage if one in place), -1) for lineage in lineages])
