"""From cell-label similarities to labels: the one rule that verbs, pipelines, endpoint and evaluation share.

The steps, in order, for N cells and C candidate labels:

1. logits = similarity x the model's scale, minus the class bias of `calibration.json`.
2. Prior correction: from each label's logits a share of their mean over the cells is taken away, so that a label that
   the model likes for every cell does not win everywhere. It assumes roughly even types, and is therefore off under
   100 cells and when one label wins more than 60 % of them.
3. Type profiles, where the model directory holds them: how well a cell agrees with the mean expression of each training
   type, compared with the other cells, is added to the logits. Off where the prior correction is off.
   Antibodies of the same cells, where there are any, add the logarithm of their likelihoods, see `proteins_scmmgpt.py`.
4. confidence = softmax(logits / temperature), with the temperature fitted for this number of candidates.
5. Below `min_confidence` a call moves to the most specific ancestor whose candidates together reach it, else "unknown".
   An ancestor of k of the n candidates collects k/n by chance alone, so it must reach `min_confidence` beyond that:
   (confidence - k/n) / (1 - k/n). What all candidates have in common is never an answer.
6. Cells without a known gene, and cells that look like no cell, are "unknown". Confidences of a species far from human
   are lowered by its reach, and below `LEAST_REACH` every cell is "unknown".

Where a study is called as a whole, each cell's evidence is first averaged with that of its neighbours, steps 1 to 4 are
taken for its communities, `held_labels_scmmgpt.py` chooses the labels that the study holds, and all steps are taken again
for each cell among these. The numbers are those of the calibration's `consensus`.

Steps 2 and 3 compare the cells of one study with each other. Whoever sees cells one by one (an endpoint) passes
`prior_share=0`, and each cell is judged by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .back_off_scmmgpt import BackOff, Calls, call_cells, group_means
from .calibration_scmmgpt import FILE_NAME as CALIBRATION_FILE
from .calibration_scmmgpt import Calibration, softmax
from .cell_matrix_scmmgpt import parts
from .errors_scmmgpt import UserError
from .held_labels_scmmgpt import Lineages, held_labels, names_of_held
from .label_sets_scmmgpt import ROOT, Groups, label_sets
from .labels_scmmgpt import FINETUNED_LABELS, TRAINED_TYPES, Labels, LabelSet, ontology_labels, read_labels
from .ontology_scmmgpt import EMPTY, UNINFORMATIVE_TERMS, Ontology
from .ontology_scmmgpt import FILE_NAME as ONTOLOGY_FILE
from .plausibility_scmmgpt import resembles_a_type, saturated
from .proteins_scmmgpt import ProteinEvidence
from .species_scmmgpt import LEAST_REACH, trust
from .type_profiles_scmmgpt import FILE_NAME as PROFILES_FILE
from .type_profiles_scmmgpt import Agreement, TypeProfiles, candidate_of_type

ANNOTATION_FILES = (ONTOLOGY_FILE, CALIBRATION_FILE, PROFILES_FILE)
MIN_CELLS_FOR_PRIOR = 100
MAX_SHARE_OF_ONE_LABEL = 0.6
# Definitions without the name lie this near to their own type's text in 95 of 100 cases, measured on trained types.
MIN_COSINE_OF_FREE_TEXT = 0.9
RERANK_WEIGHT = 0.5

EmbedTexts = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Candidates:
    """The C labels that cells may get, as one model understands them.

    Their texts have the unit vectors `embeds`, (C, D). Free text has the Cell Ontology id of the trained type that
    says the same, if there is one. `candidate_of_profile` is the label that each type profile of the model counts for,
    by index, or -1; empty where profiles are not used.
    """

    labels: LabelSet
    embeds: np.ndarray
    term_ids: tuple[str | None, ...]
    candidate_of_profile: np.ndarray

    def chosen(self, places: np.ndarray) -> "Candidates":
        """Some of the labels; each type profile still counts for its own, or for none of them."""
        new = np.full(len(self.labels) + 1, -1)  # the last place is that of profiles that count for nothing
        new[places] = np.arange(len(places))
        labels = self.labels.chosen(places)
        return Candidates(
            labels,
            self.embeds[places],
            tuple(self.term_ids[place] for place in places),
            new[self.candidate_of_profile],
        )

    @property
    def profiles(self) -> list[int]:
        """The type profiles that count for some label."""
        return np.flatnonzero(self.candidate_of_profile >= 0).tolist()


@dataclass(frozen=True)
class CellEvidence:
    """What is known about N cells, one row each.

    Unit vectors; which cells hold no known gene, and which look like no cell; the agreement (N, T) with each of the
    candidates' `profiles`; the matching head's probability (N, k) that a candidate describes the cell, and which
    candidate it is. None: not used.
    """

    embeds: np.ndarray
    is_empty: np.ndarray
    is_implausible: np.ndarray
    agreement: np.ndarray | None = None
    match: np.ndarray | None = None
    matched: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.embeds)


@dataclass(frozen=True)
class CellAnnotator:
    """What one model directory says about reading its scores.

    Candidates where none are given: `own_labels`, which it was fine-tuned on, else `trained_types`, names or ids.
    """

    ontology: Ontology = EMPTY
    calibration: Calibration = Calibration()
    type_profiles: TypeProfiles | None = None
    trained_types: tuple[str, ...] = ()
    own_labels: tuple[str, ...] = ()

    @classmethod
    def of_files(cls, files: Mapping[str, str | Path], summary: Mapping[str, Any] | None = None) -> "CellAnnotator":
        """Read from {name: path} of those `ANNOTATION_FILES` that a model has, and its training summary."""
        states = ((name, str(path), Path(path).stat().st_mtime_ns) for name, path in sorted(files.items()))
        types, own = ((summary or {}).get(name) or () for name in ("cell_types", "finetuned_labels"))
        return replace(_read(tuple(states)), trained_types=tuple(types), own_labels=tuple(own))

    def label_set(self, labels: Labels | None = None, *, of_study: bool = False) -> LabelSet:
        """The labels that a person gave; without any those it learnt, else the whole ontology.

        `of_study` adds all types that have a profile: profiles speak where a study is called as a whole.
        """
        if labels is None and self.own_labels:
            return replace(read_labels(self.own_labels, self.ontology), source=FINETUNED_LABELS, notes=())
        if labels is not None:
            return read_labels(labels, self.ontology)
        if not self.trained_types:
            return ontology_labels(self.ontology)
        names = [*self.trained_types, *(self._types_with_profiles if of_study else ())]
        terms = [self.ontology.find(name) for name in names]
        known = [term.label if term else name for term, name in zip(terms, names, strict=True)]
        return replace(read_labels(list(dict.fromkeys(known)), self.ontology), source=TRAINED_TYPES)

    @property
    def _types_with_profiles(self) -> list[str]:
        term_ids = self.type_profiles.term_ids if self.type_profiles else ()
        return [one for one in term_ids if one in self.ontology.terms and one not in UNINFORMATIVE_TERMS]

    def candidates(
        self, labels: LabelSet, embed_texts: EmbedTexts, *, tissue: str | None = None, with_profiles: bool = True
    ) -> Candidates:
        """Labels with their vectors and with what they mean to the model.

        `with_profiles` is False where cells are judged one by one: type profiles compare the cells of a study.
        """
        embeds = embed_texts(labels.texts(tissue))
        term_ids = self._meant_terms(labels, embeds, embed_texts)
        return Candidates(labels, embeds, term_ids, self._candidate_of_profile(term_ids, with_profiles))

    def _meant_terms(self, labels: LabelSet, embeds: np.ndarray, embed_texts: EmbedTexts) -> tuple[str | None, ...]:
        """The Cell Ontology id of each label; for free text that of the trained type next to it, if one is so near.

        No type is meant by two labels: a name comes before free text, and of several texts the nearest comes first.
        """
        terms = [term for name in self.trained_types if (term := self.ontology.find(name))]
        free = [index for index, term_id in enumerate(labels.term_ids) if term_id is None]
        if not terms or not free:
            return labels.term_ids
        trained = read_labels([term.label for term in terms], self.ontology)
        cosines = embeds[free] @ embed_texts(trained.texts()).T
        meant, taken = list(labels.term_ids), set(labels.term_ids)
        for place in np.argsort(-cosines.max(axis=1), kind="stable"):
            nearest = int(cosines[place].argmax())
            if cosines[place, nearest] >= MIN_COSINE_OF_FREE_TEXT and terms[nearest].id not in taken:
                meant[free[place]] = terms[nearest].id
                taken.add(terms[nearest].id)
        return tuple(meant)

    def _candidate_of_profile(self, term_ids: Sequence[str | None], with_profiles: bool) -> np.ndarray:
        if self.type_profiles is None or not self.calibration.profile_weight or not with_profiles:
            return np.empty(0, dtype=np.int64)
        found = candidate_of_type(self.type_profiles, term_ids, self.ontology)
        return found if len(np.unique(found[found >= 0])) > 1 else np.full_like(found, -1)

    # ---- each batch of cells

    def token_evidence(self, gene_tokenizer: Any, candidates: Candidates | None = None) -> "TokenEvidence":
        """What reads the tokens of each batch of cells, see `TokenEvidence`; without candidates no type profiles."""
        return TokenEvidence(gene_tokenizer, self.type_profiles, candidates.profiles if candidates else ())

    # ---- all cells

    def scorer(
        self,
        cells: CellEvidence | Mapping[str, np.ndarray],
        candidates: Candidates,
        *,
        scale: float,
        measured_genes: np.ndarray | None = None,
        prior_share: float | None = None,
        of_study: bool = False,
        proteins: ProteinEvidence | None = None,
        reach: float = 1.0,
    ) -> "Scorer":
        """Calibrated probabilities of the candidates, see `Scorer`.

        `scale` is the model's similarity scale, `measured_genes` the vocabulary rows of the genes that the study
        measured; cells with `agreement` need them. `prior_share` of a label's mean logit is what the prior correction
        takes away: None is the calibration's, and off where it does not apply; 0 judges every cell by itself.
        `of_study` reads evidence that was averaged over neighbours by the calibration made for it. `proteins` is what
        antibodies of the same cells say, `reach` that of the cells' genes, see `species_scmmgpt`.
        """
        cells = cells if isinstance(cells, CellEvidence) else CellEvidence(**cells)
        agreement, norms = None, self.profile_norms(candidates, measured_genes)
        if cells.agreement is not None and norms is not None:
            agreement = Agreement(cells.agreement, norms, candidates.candidate_of_profile[candidates.profiles])
        calibration = self.calibration.of_study if of_study else self.calibration
        scorer = Scorer(cells, candidates, calibration, scale=scale, prior_share=prior_share, agreement=agreement)
        scorer.proteins, scorer.reach = proteins, reach
        return scorer

    def profile_norms(self, candidates: Candidates, measured_genes: np.ndarray | None) -> np.ndarray | None:
        """Those of the candidates' `profiles` in the genes that were measured; None where profiles are not used."""
        if self.type_profiles is None or measured_genes is None or not candidates.profiles:
            return None
        return self.type_profiles.norms(measured_genes)[candidates.profiles]

    def held(self, scorer: "Scorer", communities: np.ndarray) -> "Scorer":
        """The same probabilities of those labels alone that the study holds, by the names that they are called.

        `communities` has the number of each cell's community, which speaks by the mean logits of its cells. See
        `held_labels` and `names_of_held`.
        """
        calibration, num_cells = scorer.calibration, np.bincount(communities)
        lineages = Lineages.of(scorer.candidates.term_ids, self.ontology)
        logits, bias = group_means(scorer.logits, communities), calibration.parent_bias * lineages.is_parent
        chances = softmax((logits - bias) / calibration.naming_temperature, axis=1)
        # Where few genes were measured, less is known of each type.
        held = held_labels(chances, num_cells, lineages, calibration.least_share / scorer.profile_reach)
        said = softmax(logits / calibration.naming_temperature, axis=1)
        names = names_of_held(held, said, num_cells, lineages, calibration.least_part)
        return scorer.among(held, names, bias)

    def call(
        self, scorer: "Scorer", *, min_confidence: float | None = None, clusters: np.ndarray | None = None
    ) -> Calls:
        """The call of every cell, or of every cluster (a number for each cell) by the mean probability of its cells.

        Below `min_confidence` calls back off, and cells that look like none become unknown; 0 never does either. None:
        the calibration's.
        """
        least = scorer.calibration.min_confidence if min_confidence is None else min_confidence
        back_off = BackOff(scorer.candidates.labels, self.ontology, least)
        calls = call_cells(len(scorer.cells), scorer.probabilities, back_off, clusters)
        if least > 0 and clusters is None:
            calls = calls.with_unknown(np.asarray(scorer.cells.is_empty) | np.asarray(scorer.cells.is_implausible))
        if least > 0 and scorer.reach < LEAST_REACH:
            calls = calls.with_unknown(np.ones(len(calls.labels), dtype=bool))
        return calls

    def label_sets(self, scorer: "Scorer", is_none: np.ndarray) -> np.ndarray:
        """The set of labels of each cell, as text, see `label_sets`; the root where `is_none`: it looks like no cell."""
        scorer = scorer.whole
        labels, cells = scorer.candidates.labels, scorer.cells
        # Where few genes were measured, less is known of each type.
        gap, groups = scorer.calibration.set_gap(len(labels)) / scorer.profile_reach, Groups.of(labels, self.ontology)
        sets = [
            label_sets(scorer.probabilities(rows), labels, groups, self.ontology, gap) for rows in parts(len(cells))
        ]
        is_none = is_none | np.asarray(cells.is_empty) | (scorer.reach < LEAST_REACH)
        return np.where(is_none, ROOT, np.concatenate(sets))


def annotation_files(directory: Path) -> dict[str, Path]:
    """{name: path} of those `ANNOTATION_FILES` that a model directory holds."""
    return {name: directory / name for name in ANNOTATION_FILES if (directory / name).is_file()}


@lru_cache(maxsize=8)
def _read(files: tuple[tuple[str, str, int], ...]) -> CellAnnotator:
    paths = {name: Path(path) for name, path, _ in files}  # the time of change makes a file written anew another one
    return CellAnnotator(
        Ontology.read(paths[ONTOLOGY_FILE]) if ONTOLOGY_FILE in paths else EMPTY,
        Calibration.read(paths[CALIBRATION_FILE]) if CALIBRATION_FILE in paths else Calibration(),
        TypeProfiles.read(paths[PROFILES_FILE]) if PROFILES_FILE in paths else None,
    )


class TokenEvidence:
    """What a batch's tokens say without the model: is a cell empty, does it look like one, which profiles it fits.

    Only the `chosen` profiles are compared with the cells.
    """

    def __init__(self, gene_tokenizer: Any, type_profiles: TypeProfiles | None = None, chosen: Sequence[int] = ()):
        self.gene_tokenizer, self.type_profiles = gene_tokenizer, type_profiles
        self._table: torch.Tensor | None = None
        if type_profiles is not None and len(chosen):
            gene_ids = gene_tokenizer.gene_ids
            if type_profiles.gene_rows.max(initial=0) >= len(gene_ids):
                raise UserError(f"{PROFILES_FILE} holds profiles of other genes than the model's vocabulary names.")
            self._table = torch.from_numpy(np.ascontiguousarray(type_profiles.differences[list(chosen)].T))
            # Of every token its gene among those of the profiles; the last stands for all others.
            self._places = torch.full((gene_tokenizer.vocab_size,), len(self._table))
            self._places[torch.from_numpy(gene_ids[type_profiles.gene_rows])] = torch.arange(len(self._table))

    def __call__(self, tokens: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Arrays of `CellEvidence`, one row per cell, from `gene_ids`, `gene_values` and `gene_mask`."""
        tokens = {name: np.asarray(values) for name, values in tokens.items()}
        is_gene = self.gene_tokenizer.is_gene(tokens["gene_ids"], tokens["gene_mask"])
        evidence = {"is_empty": ~is_gene.any(axis=1), "is_implausible": self._is_implausible(tokens, is_gene)}
        if self._table is not None:
            evidence["agreement"] = self._agreement(self._table, tokens, is_gene)
        return evidence

    def _agreement(self, table: torch.Tensor, tokens: Mapping[str, np.ndarray], is_gene: np.ndarray) -> np.ndarray:
        """(cells, profiles): sum of a cell's values weighted by a type's differences, over the length of the values."""
        values = torch.from_numpy(tokens["gene_values"].astype(np.float32) * is_gene).clamp(min=0)
        places = self._places[torch.from_numpy(np.ascontiguousarray(tokens["gene_ids"]))]
        of_genes = torch.zeros(len(values), len(table) + 1).scatter_add_(1, places, values)
        sums = of_genes[:, :-1] @ table
        return (sums / values.norm(dim=1, keepdim=True).clamp(min=1e-6)).numpy()

    def _is_implausible(self, tokens: Mapping[str, np.ndarray], is_gene: np.ndarray) -> np.ndarray:
        """Cells like no cell; few are compared with the types, as a rule none."""
        suspects = np.flatnonzero(found := self.gene_tokenizer.looks_implausible(**tokens))
        if len(suspects) and self._differences is not None:
            values, ids = (tokens[name][suspects] for name in ("gene_values", "gene_ids"))
            found[suspects] = ~resembles_a_type(values, ids, is_gene[suspects], self._differences)
        return found

    @cached_property
    def _differences(self) -> torch.Tensor | None:
        """(V, T) all type profiles by token id, as `resembles_a_type` wants them."""
        profiles = self.type_profiles
        if profiles is None:
            return None
        ids, size = self.gene_tokenizer.gene_ids, self.gene_tokenizer.vocab_size
        return saturated(torch.from_numpy(profiles.table(range(len(profiles.term_ids)), ids, size)))


class Scorer:
    """Calibrated probabilities of the candidates for any rows of the cells: steps 1 to 4.

    `scale` and `prior_share` are those of `CellAnnotator.scorer`; without `agreement` no type profile counts.
    """

    def __init__(
        self,
        cells: CellEvidence,
        candidates: Candidates,
        calibration: Calibration,
        *,
        scale: float,
        prior_share: float | None = None,
        agreement: Agreement | None = None,
    ):
        self.cells, self.candidates = cells, candidates
        self.whole: Scorer = self  # of which `among` takes some candidates
        self.reach = 1.0
        self._columns: slice | np.ndarray = slice(None)
        self.bias: np.ndarray
        self.proteins: ProteinEvidence | None = None
        self.weights = (candidates.embeds * scale).astype(np.float32)
        self.agreement, self.profile_weight = agreement, 0.0
        self.calibration, self.temperature, self.bias = self._read_by(calibration)
        is_study = self._is_study() if prior_share is None else prior_share != 0
        if not is_study:
            self.calibration, self.temperature, self.bias = self._read_by(calibration.of_single_cells)
        self.prior_share = (calibration.prior_share if prior_share is None else prior_share) if is_study else 0.0
        if self.prior_share:
            self.bias = self.bias + self.prior_share * self._mean_logits()
        if is_study and agreement is not None:
            self.profile_weight = calibration.profile_weight

    def _read_by(self, calibration: Calibration) -> tuple[Calibration, float, np.ndarray]:
        labels = self.candidates.labels.labels
        return calibration, calibration.temperature(len(labels)), calibration.bias_of(labels, self.candidates.term_ids)

    def logits(self, rows: slice | np.ndarray) -> np.ndarray:
        """Similarities after bias, prior correction and type profiles."""
        logits = np.asarray(self.cells.embeds[rows], dtype=np.float32) @ self.weights.T - self.bias
        if self.agreement is not None and self.profile_weight:
            logits += self.profile_weight * self.agreement.evidence(rows, logits.shape[1])
        if self.proteins is not None:  # in natural units, as probabilities are read from the logits
            logits += self.temperature * self.proteins.evidence(rows)
        return logits

    @property
    def profile_reach(self) -> float:
        """How much of the type profiles the measured genes can show, from 0 to 1; 1 where profiles do not count."""
        return self.agreement.reach if self.agreement is not None and self.profile_weight else 1.0

    def without_proteins(self) -> "Scorer":
        """The same probabilities by the RNA alone."""
        of_rna = copy(self)
        of_rna.proteins = None
        return of_rna

    def among(self, places: np.ndarray, names: np.ndarray, bias: np.ndarray) -> "Scorer":
        """The same probabilities of some of the candidates alone, by index: what the others have is nobody's.

        They are called by other candidates, `names`; `bias` (C,) is taken from the logits.
        """
        fewer = copy(self)
        fewer._columns, fewer.candidates, fewer.bias = places, self.candidates.chosen(names), self.bias + bias
        return fewer

    def probabilities(self, rows: slice | np.ndarray) -> np.ndarray:
        """(rows, C); where the matching head was asked, its opinion is mixed in."""
        probabilities = softmax(self.logits(rows) / self.temperature, axis=1)
        probabilities *= trust(self.reach)
        if self.cells.match is None or self.cells.matched is None:
            return probabilities[:, self._columns]
        return rerank(probabilities, self.cells.match[rows], self.cells.matched[rows], RERANK_WEIGHT)

    def _mean_logits(self) -> np.ndarray:
        mean_cell = np.mean(self.cells.embeds, axis=0, dtype=np.float64).astype(np.float32)
        mean = mean_cell @ self.weights.T - self.bias
        return mean - mean.mean()

    def _is_study(self) -> bool:
        """Whether there are enough cells, of more than one type, to compare them with one another."""
        num_cells, num_labels = len(self.cells), len(self.bias)
        if num_cells < MIN_CELLS_FOR_PRIOR or num_labels < 2:
            return False
        wins = np.zeros(num_labels)
        for rows in parts(num_cells):
            wins += np.bincount(self.logits(rows).argmax(axis=1), minlength=num_labels)
        return bool(wins.max() <= MAX_SHARE_OF_ONE_LABEL * num_cells)


def rerank(probabilities: np.ndarray, match: np.ndarray, candidates: np.ndarray, weight: float) -> np.ndarray:
    """Re-score the best candidates with the matching head; their total probability stays the same.

    `match` (N, k) is its probability that each of `candidates` (N, k) describes the cell. Weight 0 ignores the
    matching head, 1 trusts nothing else among the k.
    """
    best = np.take_along_axis(probabilities, candidates, axis=1)
    log_mixed = (1 - weight) * np.log(best + 1e-12) + weight * np.log(match + 1e-12)
    result = probabilities.copy()
    np.put_along_axis(result, candidates, softmax(log_mixed, axis=1) * best.sum(axis=1, keepdims=True), axis=1)
    return result
