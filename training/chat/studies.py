"""Labelled studies as instruction data needs them: each cell's tokens, and which genes each type raises."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp

from scmmgpt.cell_context import Study, study_of
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.mini.recipe import MiniRecipe

MAX_CELLS_OF_TYPE = 40
MIN_CELLS, MIN_CELLS_OF_TYPE = 30, 5
# Simulated studies teach the width of types, real ones what cells are like.
WEIGHT_SIMULATED = 0.4
MIN_DETECTED = 60


@dataclass
class LabelledStudy:
    """Cells of one study with their types."""

    name: str
    study: Study
    features: dict[str, np.ndarray]
    labels: np.ndarray
    species: str
    tissue: str
    measured_ids: np.ndarray
    weight: float = 1.0

    @property
    def num_measured(self) -> int:
        return len(self.measured_ids)

    @cached_property
    def types(self) -> list[str]:
        return sorted(set(self.labels))

    @cached_property
    def _means(self) -> dict[str, np.ndarray]:
        return {label: np.asarray(self.study.values[self.labels == label].mean(0)).ravel() for label in self.types}

    def tokens(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        length = int(self.features["gene_mask"][number].sum())
        return self.features["gene_ids"][number, :length], self.features["gene_values"][number, :length]

    def merged(self, first: int, second: int) -> tuple[tuple[np.ndarray, np.ndarray], sp.csr_matrix]:
        """Two cells in one: tokens and values of their mean counts."""
        values = ((self.study.values[first].expm1() + self.study.values[second].expm1()) / 2).log1p().tocsr()
        values.sort_indices()
        start, amount = self.tokens(first)
        return (np.r_[start[:1], self.study.gene_ids[values.indices]], np.r_[amount[:1], values.data]), values

    def by_type(self, label: str, genes: list[str]) -> list[str]:
        """Those of some genes that the type raises in the study, the most telling first."""
        return self._ordered(genes, self._means[label] - self.study.means)

    def against(self, label: str, rival: str, genes: list[str]) -> list[str]:
        """Those of some genes that one type has higher than the other."""
        return self._ordered(genes, self._means[label] - self._means[rival])

    def rival(self, label: str) -> str | None:
        """The type of the study that is most like it."""
        others = [other for other in self.types if other != label]
        if not others:
            return None
        return min(others, key=lambda other: float(np.square(self._means[label] - self._means[other]).sum()))

    def _ordered(self, genes: list[str], difference: np.ndarray) -> list[str]:
        places = [self.study.place_of[gene] for gene in genes]
        ranked = sorted(zip(genes, places, strict=True), key=lambda pair: -difference[pair[1]])
        return [gene for gene, place in ranked if difference[place] > 0.1]


def read_studies(
    recipe: MiniRecipe, data: Path, gene_tokenizer: ScMMGPTGeneTokenizer, ontology: Ontology, seed: int = 0
) -> list[LabelledStudy]:
    """The labelled studies of a recipe's files of cells; its tables of means have no cells."""
    generator, studies = np.random.default_rng(seed), []
    for source in recipe.sources:
        if source.table is not None:
            continue
        cells = source.read(data, ontology)
        known = cells.obs.cell_type_ontology_term_id.astype(str).isin(ontology.terms).to_numpy()
        names = cells.obs["study_profile" if "study_profile" in cells.obs else "dataset"].astype(str)
        groups = names + " " + cells.obs.tissue.astype(str)
        for name in sorted(set(groups[known])):
            rows = _some_of_each(np.flatnonzero((groups == name).to_numpy() & known), cells, generator)
            if len(rows) >= MIN_CELLS:
                study = _read(name, cells[rows], gene_tokenizer, ontology, recipe)
                study.weight = WEIGHT_SIMULATED if source.simulated else 1.0
                studies.append(study)
    return studies


def _some_of_each(rows: np.ndarray, cells: anndata.AnnData, generator: np.random.Generator) -> np.ndarray:
    """At most so many cells of a type, none of a type with a handful."""
    types = cells.obs.cell_type_ontology_term_id.astype(str).to_numpy()[rows]
    kept = [
        generator.permutation(rows[types == one])[:MAX_CELLS_OF_TYPE]
        for one in sorted(set(types))
        if (types == one).sum() >= MIN_CELLS_OF_TYPE
    ]
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, int)


def _read(
    name: str,
    cells: anndata.AnnData,
    gene_tokenizer: ScMMGPTGeneTokenizer,
    ontology: Ontology,
    recipe: MiniRecipe,
) -> LabelledStudy:
    features = {key: np.asarray(value) for key, value in gene_tokenizer(cells).items()}
    study = study_of(gene_tokenizer, features)
    labels = [ontology.terms[term].label for term in cells.obs.cell_type_ontology_term_id.astype(str)]
    tissue = str(cells.obs.tissue.iloc[0])
    species = "mouse" if cells.obs.organism.iloc[0] == "Mus musculus" else "human"
    measured = gene_tokenizer.measured_genes(cells) + gene_tokenizer.first_gene_id
    tissue = recipe.tissue_names.get(tissue, tissue).split(" (")[0]
    return LabelledStudy(name, study, features, np.array(labels), species, tissue, measured)
