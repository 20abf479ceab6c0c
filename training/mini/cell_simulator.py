"""Cells redrawn from mean profiles, as varied as the platforms that people use: the corpus of the embedded model.

A drawn cell is a number of transcripts picked from a noisy version of its profile. The noise stands for what differs
between two studies of one type: gene effects of a platform, ambient RNA, depth, the genes that were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic.dataclasses import dataclass as checked_dataclass
from torch.utils.data import IterableDataset, get_worker_info

from scmmgpt.processing.gene_layout_scmmgpt import pad_tokens
from scmmgpt.processing.gene_vocabulary_scmmgpt import CLS_ID, FIRST_GENE_ID
from scmmgpt.training.strict_yaml import CHECKED

from .measured_cells import MeasuredCells
from .profiles import WHOLE_TRANSCRIPTOME, Profiles

TARGET_SUM = 1e4
PANEL_STEPS_PER_OCTAVE = 4
AMPLIFIED_COPIES = 50  # reads of one transcript, where the protocol cannot tell them apart


@checked_dataclass(config=CHECKED, frozen=True)
class SimulatorSettings:
    """How a cell may differ from its profile.

    Attributes
    ----------
    library_median, library_spread, library_range
        Transcripts of a whole transcriptome: lognormal, cut off.
    platform_noise
        Largest standard deviation of log gene effects; each cell draws its own from 0 to this.
    cell_noise
        Standard deviation of the log gene effects that no cell escapes.
    ambient
        Largest share of transcripts from the study's mean profile.
    mixing_rate
        Share of cells mixed with another profile of the same type.
    amplified_rate, amplification
        Share of cells whose transcripts were amplified before they were counted, as full-length protocols do, and the
        standard deviation of the log number of copies.
    panel_rate, panel_genes
        Share of cells that see a gene panel, and its smallest and largest size.
    measured_rate
        Share of a profile's cells that are taken as they were counted, where its source holds cells with counts.
    thinning_rate
        Share of these that lose transcripts, down to the library of a drawn cell.
    """

    library_median: float = 2_500
    library_spread: float = 0.9
    library_range: tuple[float, float] = (300, 10_000)
    platform_noise: float = 0.8
    cell_noise: float = 0.58
    ambient: float = 0.15
    mixing_rate: float = 0.5
    amplified_rate: float = 0.0
    amplification: float = 1.0
    panel_rate: float = 0.35
    panel_genes: tuple[int, int] = (200, 4_000)
    measured_rate: float = 0.0
    thinning_rate: float = 0.5


@dataclass
class DrawnCell:
    """Genes of one cell (vocabulary rows, the highest above their median first), their counts and values."""

    genes: np.ndarray
    counts: np.ndarray
    values: np.ndarray
    measured: np.ndarray


@dataclass
class CellSimulator:
    """Draws cells: first the type, by the root of its number of profiles, then the profile, then the cell.

    `counted` are the cells that stand behind some of the profiles, by family of studies.
    """

    profiles: Profiles
    medians: np.ndarray
    masses: np.ndarray
    settings: SimulatorSettings = field(default_factory=SimulatorSettings)
    counted: Mapping[str, MeasuredCells] = field(default_factory=dict)

    def __post_init__(self):
        table = self.profiles.table
        self.types = table.term_id.unique()
        self.rows_of_type = [np.flatnonzero(table.term_id == term) for term in self.types]
        weights = np.sqrt([len(rows) for rows in self.rows_of_type])
        self.type_weights = weights / weights.sum()
        self.type_of_row = table.term_id.map({term: i for i, term in enumerate(self.types)}).to_numpy()
        studies, self.study_of_row = np.unique(table.study, return_inverse=True)
        log_share = np.log1p(TARGET_SUM * self.profiles.share)
        rows_of_study = [np.flatnonzero(self.study_of_row == i) for i in range(len(studies))]
        self.rows_of_study = rows_of_study
        self.ambient = np.array([self.profiles.share[rows].mean(0) for rows in rows_of_study])
        # What makes a gene worth a place on a panel: it varies between the types of a tissue, or between all types.
        self.variability_of_study = np.log(np.array([log_share[rows].var(0) for rows in rows_of_study]) + 1e-4).astype(
            np.float32
        )
        self.variability = np.log(log_share.var(0) + 1e-4).astype(np.float32)
        self.counted_of_row = {
            row: (family, np.flatnonzero(cells.profiles == row))
            for family, cells in self.counted.items()
            for row in np.unique(cells.profiles)
        }

    def draw_rows(self, number: int, generator: np.random.Generator) -> np.ndarray:
        """Profiles for so many cells."""
        types = generator.choice(len(self.types), number, p=self.type_weights)
        return np.array([generator.choice(self.rows_of_type[i]) for i in types])

    def draw_cell(self, row: int, generator: np.random.Generator, whole: bool = False) -> DrawnCell:
        """A new cell of the profile `row`; `whole` never hides genes behind a panel."""
        if row in self.counted_of_row and generator.random() < self.settings.measured_rate:
            return self._counted(row, generator, whole)
        settings = self.settings
        share, measured = self._mixed(row, generator)
        share = self._with_ambient(share, measured, row, generator)
        spread = np.float32(np.hypot(generator.uniform(0, settings.platform_noise), settings.cell_noise))
        share = share * np.exp(spread * generator.standard_normal(len(share), dtype=np.float32))
        library = self._library(generator)
        if self._on_panel(measured, whole, generator):
            measured, whole = self._panel(row, measured, generator), share.sum()
            share = np.where(measured, share, 0)
            # Targeted assays often read their genes deeper than a whole transcriptome would.
            library = max(library * share.sum() / whole * generator.choice([1, 1, 2, 4]), 30)
        return self._pick(share, measured, int(library), generator)

    def _counted(self, row, generator, whole) -> DrawnCell:
        """A cell as it was counted, or with fewer transcripts, or fewer genes."""
        family, members = self.counted_of_row[row]
        cells = self.counted[family]
        cell = cells.counts[generator.choice(members)]
        genes, counts, measured = cell.indices, cell.data.astype(np.int64), cells.measured
        share = self._library(generator) / counts.sum()
        if share < 1 and generator.random() < self.settings.thinning_rate:
            counts = generator.binomial(counts, share)
        if self._on_panel(measured, whole, generator):
            panel = self._panel(row, measured, generator)
            if (counts * panel[genes]).sum():
                counts, measured = counts * panel[genes], panel
        kept = counts > 0
        return self.as_drawn(genes[kept], counts[kept], measured)

    def _library(self, generator) -> float:
        settings = self.settings
        library = generator.lognormal(np.log(settings.library_median), settings.library_spread)
        return float(np.clip(library, *settings.library_range))

    def _on_panel(self, measured, whole, generator) -> bool:
        return not whole and measured.sum() >= WHOLE_TRANSCRIPTOME and generator.random() < self.settings.panel_rate

    def _mixed(self, row, generator) -> tuple[np.ndarray, np.ndarray]:
        profiles, settings = self.profiles, self.settings
        share, measured = profiles.share[row], profiles.measured[row]
        other = row
        if generator.random() < settings.mixing_rate:
            other = generator.choice(self.rows_of_type[self.type_of_row[row]])
        both = measured & profiles.measured[other]
        # A whole transcriptome mixed with a small panel would become that panel.
        if other == row or both.sum() < min(WHOLE_TRANSCRIPTOME, measured.sum()):
            return share, measured
        part = np.float32(generator.random())
        return np.where(both, part * share + (1 - part) * profiles.share[other], 0), both

    def _with_ambient(self, share, measured, row, generator):
        part = np.float32(self.settings.ambient * generator.random())
        return (1 - part) * share + part * self.ambient[self.study_of_row[row]] * measured

    def _panel(self, row, measured, generator) -> np.ndarray:
        """A gene panel: between random and designed for the cell's own tissue."""
        low, high = self.settings.panel_genes
        size = int(np.exp(generator.uniform(np.log(low), np.log(high))))
        merit = self.variability_of_study[self.study_of_row[row]] if generator.random() < 0.5 else self.variability
        lots = generator.gumbel(size=len(merit)).astype(np.float32) + 1.5 * generator.random() * merit
        lots[~measured] = -np.inf
        panel = np.zeros_like(measured)
        panel[np.argpartition(-lots, size)[:size]] = True
        return panel & measured

    def _pick(self, share, measured, library, generator) -> DrawnCell:
        bounds = np.cumsum(share, dtype=np.float64)
        picked = np.searchsorted(bounds, generator.random(library) * bounds[-1], side="right")
        genes, counts = np.unique(np.minimum(picked, len(share) - 1), return_counts=True)
        if generator.random() < self.settings.amplified_rate:
            copies = np.exp(self.settings.amplification * generator.standard_normal(len(counts)))
            counts = np.ceil(AMPLIFIED_COPIES * counts * copies).astype(np.int64)
        return self.as_drawn(genes, counts, measured)

    def as_drawn(self, genes: np.ndarray, counts: np.ndarray, measured: np.ndarray) -> DrawnCell:
        """A cell of these counts, with its values and its order."""
        scale = TARGET_SUM * self._panel_share(measured) / counts.sum()
        order = np.argsort(-counts / self.medians[genes], kind="stable")
        values = np.log1p(counts * scale).astype(np.float32)
        return DrawnCell(genes[order], counts[order], values[order], measured)

    def _panel_share(self, measured) -> float:
        """The reference mass of the measured genes in quarter octaves: what the gene tokenizer scales a panel to."""
        mass = max(float(self.masses[measured].sum()), 1e-6)
        return 2.0 ** (round(np.log2(mass) * PANEL_STEPS_PER_OCTAVE) / PANEL_STEPS_PER_OCTAVE)


def pad_cells(cells: list[DrawnCell]) -> dict[str, torch.Tensor]:
    """Cells as the processor would give them: ids and values behind `<cls>`, padded, mask 1 = real."""
    ids = np.concatenate([np.append(CLS_ID, cell.genes + FIRST_GENE_ID) for cell in cells])
    values = np.concatenate([np.append(0, cell.values) for cell in cells])
    padded = pad_tokens(ids, values, [1 + len(cell.genes) for cell in cells])
    return {name: torch.from_numpy(array) for name, array in padded.items()}


def as_it_is(batch: dict) -> dict:
    """The collator of batches that come whole."""
    return batch


@dataclass
class SimulatedBatches(IterableDataset):
    """An endless stream of batches; `compose` turns profiles and drawn cells into what a model is given.

    Worker k of n writes batches k, k + n, ...: their content does not depend on the number of workers.
    """

    simulator: CellSimulator
    compose: Callable[[np.ndarray, list[DrawnCell], np.random.Generator], dict]
    batch_size: int
    seed: int

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            generator = np.random.default_rng([self.seed, number])
            rows = self.simulator.draw_rows(self.batch_size, generator)
            cells = [self.simulator.draw_cell(row, generator) for row in rows]
            yield self.compose(rows, cells, generator)
            number += step
