"""Chromatin as genes: how open each gene is in each cell, from counts of peaks or from fragments.

A cut counts for every gene whose body it lies in, or in the 2,000 bases before it; the less, the farther from the gene's
start. It counts in fifths, so that activities are whole numbers. The result is AnnData that every function takes, marked so
that `annotate` reads it by a calibration of its own: the type profiles speak, the text tower, which learnt RNA, hardly.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from .errors import UserError
from .processing.calibration_scmmgpt import Calibration
from .processing.features_scmmgpt import PEAK, features_of

if TYPE_CHECKING:
    from anndata import AnnData

    from .processing.calling_scmmgpt import Candidates, CellAnnotator, CellEvidence, Scorer

POSITIONS_FILE = Path(__file__).with_name("gene_positions.tsv.gz")
MODALITY_KEY, MODALITY = "scmmgpt_modality", "gene activity"
UPSTREAM = 2_000
# A cut before a gene or at its start counts so much, and in the body less with the distance from the start, but at least 1.
FULL, DECAY = 5, 5_000
# Peaks lie at starts of genes far more often than at places 50,000 bases beside them, if the genome is the right one.
_NEAR_START, _BESIDE = 1_000, 50_000
LEAST_ENRICHMENT = 2.0
# Fitted on the only open study of cells with both modalities and labels by experts, see docs/howto/chromatin.md.
CALIBRATION = Calibration(((1.0, 3.0),), profile_weight=90.0, prior_share=0.0, min_confidence=0.3)
SHARE_OF_TEXT = 0.1
_FRAGMENTS_AT_A_TIME = 1_000_000
_PEAK = re.compile(r"(?:.*?_+)?((?:chr)?[A-Za-z0-9.]+?)[:_-](\d+)[_-](\d+)")
ATAC_NAMES = ("atac", "peaks", "chromatin")

Genome = Literal["hg38", "hg19", "mm10"]


@dataclass(frozen=True)
class GenePositions:
    """Where G genes of one genome lie: `starts` are those of transcription, `ends` the other end, as to the strand."""

    ids: np.ndarray
    symbols: np.ndarray
    chromosomes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@lru_cache(maxsize=1)
def gene_positions() -> dict[str, GenePositions]:
    """Genome -> positions of its genes, from the table that travels with the package."""
    rows: dict[str, list[list[str]]] = {}
    with gzip.open(POSITIONS_FILE, "rt", encoding="utf-8") as lines:
        table = (line.rstrip("\n").split("\t") for line in lines if not line.startswith("#"))
        next(table)
        for genome, *row in table:
            rows.setdefault(genome, []).append(row)
    return {genome: _positions(of_genome) for genome, of_genome in rows.items()}


def _positions(rows: list[list[str]]) -> GenePositions:
    chromosomes, start, length, strand, ids, symbols = (np.array(column) for column in zip(*rows, strict=True))
    first, last = start.astype(np.int64), start.astype(np.int64) + length.astype(np.int64)
    is_forward = strand == "+"
    return GenePositions(
        ids, symbols, chromosomes, np.where(is_forward, first, last), np.where(is_forward, last, first)
    )


def gene_activity(
    peaks: AnnData | str | os.PathLike, fragments: str | os.PathLike | None = None, *, genome: Genome | None = None
) -> AnnData:
    """How open each gene is in each cell: AnnData of cells x genes for `annotate`, `embed` and every other function.

    Parameters
    ----------
    peaks
        AnnData of cells x peaks, or MuData with a modality called atac, or the path of such a file or of 10x's; peaks are
        named by place (`chr1:100-600`), in `var_names` or in columns `chrom`, `start`, `end` of `var`.
    fragments
        The path of a fragments file of the same cells (`fragments.tsv.gz`): both ends of every fragment are counted, not
        only those in peaks. `peaks` then only says which cells to count.
    genome
        The genome of the places: "hg38", "hg19" or "mm10". None: the one at whose genes' starts the peaks lie.
    """
    import anndata
    import pandas as pd
    from anndata.utils import make_index_unique

    cells = _peak_cells(peaks)
    places = Places.of(cells)
    genome, enrichment = _checked_genome(places, genome)
    positions = gene_positions()[genome]
    if fragments is None:
        activity = sparse.csr_matrix(_counts(cells) @ weights_of_genes(places, positions))
    else:
        activity = _of_fragments(Path(fragments), cells.obs_names.astype(str).tolist(), positions)
    kept = np.asarray(activity.sum(axis=0)).ravel() > 0
    if not kept.any():
        raise UserError(f"No peak lies in a gene of {genome} or just before one.")
    names = make_index_unique(pd.Index(positions.symbols[kept], dtype=object))
    table = pd.DataFrame({"feature_id": positions.ids[kept]}, index=names)
    result = anndata.AnnData(activity[:, kept].astype(np.float32), obs=cells.obs.copy(), var=table)
    result.uns[MODALITY_KEY] = MODALITY
    result.uns["scmmgpt_gene_activity"] = {"genome": genome, "enrichment_at_starts": enrichment}
    return result


def is_gene_activity(cells: Any) -> bool:
    """Whether cells that a function opened, in memory or in a file, were marked by `gene_activity`."""
    if cells.path is None:
        return bool(cells.adata.uns.get(MODALITY_KEY) == MODALITY)
    from anndata.io import read_elem

    from .storage import open_store

    with open_store(cells.path) as store:
        uns = store.get("uns", {})
        return MODALITY_KEY in uns and read_elem(uns[MODALITY_KEY]) == MODALITY


def activity_scorer(
    annotator: CellAnnotator,
    cells: CellEvidence,
    candidates: Candidates,
    *,
    scale: float,
    measured_genes: np.ndarray | None,
) -> Scorer:
    """Probabilities of the candidates for gene activities, by the calibration of these."""
    reader = replace(annotator, calibration=CALIBRATION)
    scorer = reader.scorer(
        cells, candidates, scale=SHARE_OF_TEXT * scale, measured_genes=measured_genes, prior_share=0
    )
    if scorer.agreement is not None:  # also where cells are not compared for a prior
        scorer.profile_weight = CALIBRATION.profile_weight
    return scorer


def _peak_cells(peaks: Any) -> AnnData:
    if isinstance(peaks, str | os.PathLike):
        peaks = _read(Path(peaks))
    if hasattr(peaks, "mod"):
        name = next((name for name in peaks.mod if name.lower() in ATAC_NAMES), None)
        if name is None:
            raise UserError(f"None of the modalities {list(peaks.mod)} is called atac; pass the one that holds peaks.")
        peaks = peaks.mod[name]
    peaks = peaks.to_memory() if peaks.isbacked else peaks
    is_peak = features_of(peaks.var, peaks.var_names.astype(str).tolist()).kinds == PEAK
    return peaks[:, is_peak] if is_peak.any() else peaks


def _read(path: Path) -> Any:
    if path.suffix == ".h5mu":
        return read_h5mu(path)
    from .storage import check_input, read_cells

    return read_cells(check_input(path))


def read_h5mu(path: Path) -> Any:
    """MuData as it lies in a file; mudata before 0.4 would pull columns of `obs` up, and say so, unless told not to."""
    import mudata

    quiet = mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()
    with quiet:
        return mudata.read_h5mu(path)


def _counts(cells: AnnData) -> sparse.csr_matrix:
    from .processing.matrix_state_scmmgpt import count_bad_values

    counts = sparse.csr_matrix(cells.X)
    if count_bad_values(counts.data):
        raise UserError("The peak counts hold values that are negative, infinite or no numbers.")
    return counts


@dataclass(frozen=True)
class Places:
    """Stretches of a genome, one each for the columns of a matrix; "" is the chromosome of a column that is none."""

    chromosomes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, cells: AnnData) -> Places:
        """The places of peaks, by columns of `var` or by their names."""
        columns = next((names for names in _PLACE_COLUMNS if set(names) <= set(cells.var)), None)
        if columns is not None:
            chromosome, start, end = (cells.var[name] for name in columns)
            return cls(_bare(chromosome.astype(str)), start.to_numpy(np.int64), end.to_numpy(np.int64))
        named = next((name for name in _NAME_COLUMNS if name in cells.var), None)
        names = cells.var_names if _PEAK.fullmatch(str(cells.var_names[0])) or named is None else cells.var[named]
        found = [_PEAK.fullmatch(str(name)) for name in names]
        number = sum(match is not None for match in found)
        if number < len(found) / 2:
            raise UserError(
                f"{len(found) - number} of {len(found)} columns, such as {names[0]}, are not named like peaks "
                "(chr1:100-600). gene_activity takes cells x peaks."
            )
        rows = [match.groups() if match else ("", "0", "0") for match in found]
        chromosome, start, end = zip(*rows, strict=True)
        return cls(_bare(chromosome), np.array(start, np.int64), np.array(end, np.int64))


_PLACE_COLUMNS = (
    ("chrom", "start", "end"),
    ("chrom", "chromStart", "chromEnd"),
    ("seqnames", "start", "end"),
    ("chr", "start", "end"),
)
_NAME_COLUMNS = ("interval", "peak", "feature_name", "gene_ids")


def _bare(chromosomes: Any) -> np.ndarray:
    return np.array([str(name).removeprefix("chr") for name in chromosomes])


def _checked_genome(places: Places, wanted: str | None) -> tuple[Genome, float]:
    """The genome of some peaks, by how much more often they lie at starts of genes than by chance."""
    known = gene_positions()
    if wanted is not None and wanted not in known:
        raise UserError(f"There are positions of genes for {', '.join(known)}, not for {wanted!r}.")
    found = {genome: enrichment_at_starts(places, positions) for genome, positions in known.items()}
    best = max(found, key=lambda genome: found[genome])
    listed = ", ".join(f"{genome} {value:.1f}" for genome, value in found.items())
    if found[best] < LEAST_ENRICHMENT and wanted is None:
        raise UserError(
            f"The peaks lie at starts of genes hardly more often than 50,000 bases beside them (times: {listed}): they seem to be of "
            f"another genome than {', '.join(known)}. Lift them over, or name the genome in genome= if you know it."
        )
    if wanted is not None and found[best] >= LEAST_ENRICHMENT and found[wanted] < found[best] / 2:
        raise UserError(
            f"The peaks are said to be of {wanted}, but lie at starts of genes of {best} (times as often as by chance: {listed})."
        )
    return wanted or best, round(found[wanted or best], 2)  # type: ignore[return-value]


def enrichment_at_starts(places: Places, positions: GenePositions) -> float:
    """How many times as many peaks lie at starts of genes as 50,000 bases to either side of them."""
    at, beside = 0, 0
    for chromosome in np.unique(positions.chromosomes):
        middles = np.sort((places.starts + places.ends)[places.chromosomes == chromosome] // 2)
        starts = np.unique(positions.starts[positions.chromosomes == chromosome])
        at += _num_near(middles, starts)
        beside += _num_near(middles, starts - _BESIDE) + _num_near(middles, starts + _BESIDE)
    return 2 * at / (beside + 2)  # a few peaks prove nothing


def _num_near(middles: np.ndarray, starts: np.ndarray) -> int:
    return int((np.searchsorted(middles, starts + _NEAR_START) - np.searchsorted(middles, starts - _NEAR_START)).sum())


def weights_of_genes(places: Places, positions: GenePositions) -> sparse.csr_matrix:
    """(places, genes): what a cut in each place counts for each gene."""
    is_forward = positions.ends >= positions.starts
    first = np.where(is_forward, positions.starts - UPSTREAM, positions.ends)
    last = np.where(is_forward, positions.ends, positions.starts + UPSTREAM)
    rows, columns = [], []
    for chromosome in np.intersect1d(places.chromosomes, positions.chromosomes):
        genes = np.flatnonzero(positions.chromosomes == chromosome)
        own = np.flatnonzero(places.chromosomes == chromosome)
        own = own[np.argsort(places.starts[own], kind="stable")]
        widest = int((places.ends[own] - places.starts[own]).max(initial=0))
        begin = np.searchsorted(places.starts[own], first[genes] - widest)
        number = np.searchsorted(places.starts[own], last[genes], side="right") - begin
        gene = np.repeat(genes, number)
        place = own[np.repeat(begin - np.concatenate([[0], number.cumsum()[:-1]]), number) + np.arange(number.sum())]
        touches = places.ends[place] >= first[gene]
        rows.append(place[touches])
        columns.append(gene[touches])
    row, column = (np.concatenate(part) if part else np.empty(0, np.int64) for part in (rows, columns))
    distance = np.maximum(
        np.maximum(places.starts[row] - positions.starts[column], positions.starts[column] - places.ends[row]), 0
    )
    is_before = np.where(
        is_forward[column], places.ends[row] < positions.starts[column], places.starts[row] > positions.starts[column]
    )
    weight = np.where(is_before, FULL, np.maximum(np.round(FULL * np.exp(-distance / DECAY)), 1.0))
    return sparse.csr_matrix((weight, (row, column)), shape=(len(places.starts), len(positions.ids)))


def _of_fragments(path: Path, barcodes: list[str], positions: GenePositions) -> sparse.csr_matrix:
    """Both ends of every fragment of some cells, counted for genes, a part of the file at a time."""
    row_of = {barcode: row for row, barcode in enumerate(barcodes)}
    total = sparse.csr_matrix((len(barcodes), len(positions.ids)))
    for chromosomes, starts, ends, names in _parts_of_fragments(path):
        rows = np.array([row_of.get(name, -1) for name in names])
        known = np.flatnonzero(rows >= 0)
        cuts = np.concatenate([starts[known], ends[known]])
        both = np.concatenate([chromosomes[known], chromosomes[known]])
        cells = np.concatenate([rows[known], rows[known]])
        of_cells = sparse.csr_matrix(
            (np.ones(len(cuts)), (cells, np.arange(len(cuts)))), shape=(len(barcodes), len(cuts))
        )
        total = total + of_cells @ weights_of_genes(Places(both, cuts, cuts), positions)
    if total.nnz == 0:
        raise UserError(
            f"No fragment of {path.name} has the barcode of one of the {len(barcodes)} cells, such as {barcodes[0]}."
        )
    return total


def _parts_of_fragments(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]]:
    import pandas as pd

    if not path.exists():
        raise UserError(f"There is no file {str(path)!r}.")
    columns = ["chromosome", "start", "end", "barcode"]
    try:
        tables = pd.read_csv(
            path,
            sep="\t",
            comment="#",
            header=None,
            usecols=range(4),
            names=columns,
            chunksize=_FRAGMENTS_AT_A_TIME,
            dtype={"chromosome": str, "barcode": str},
        )
        for table in tables:
            yield (
                _bare_categories(table["chromosome"]),
                table["start"].to_numpy(np.int64),
                table["end"].to_numpy(np.int64),
                table["barcode"].tolist(),
            )
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as fragments (chromosome, start, end, barcode): {error}") from error


def _bare_categories(chromosomes: Any) -> np.ndarray:
    return chromosomes.str.removeprefix("chr").to_numpy(str)
