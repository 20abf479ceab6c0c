"""The genes a model knows, in id order, with what a corpus taught about each."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors_scmmgpt import UserError

SPECIAL_TOKENS = ("<pad>", "<cls>", "<mask>")
PAD_ID, CLS_ID, MASK_ID = range(len(SPECIAL_TOKENS))
FIRST_GENE_ID = len(SPECIAL_TOKENS)
Numbers = Sequence[float] | np.ndarray
GZIP = b"\x1f\x8b"  # how a packed file begins
COLUMNS = ("gene", "ensembl_id", "median", "mass")


class GeneVocabulary:
    """Genes in id order, each name once; ids begin after the special tokens.

    Ensembl ids are "" where unknown. `medians` are those of each gene's non-zero values in cells scaled to
    `target_sum`, 1 by default; zero or NaN, for a gene that the corpus never showed, becomes the median of the others.
    `masses` are each gene's mean share of a cell's counts, equal by default, scaled to sum to 1.
    """

    def __init__(
        self,
        genes: Sequence[str],
        ensembl_ids: Sequence[str] | None = None,
        medians: Numbers | None = None,
        masses: Numbers | None = None,
    ):
        self.genes = [str(gene) for gene in genes]
        if len(set(self.genes)) < len(self.genes):
            raise UserError(f"The vocabulary names {len(self.genes) - len(set(self.genes))} genes twice.")
        self.ensembl_ids = ["" if not gene_id else str(gene_id) for gene_id in ensembl_ids or [""] * len(self.genes)]
        seen = self._numbers("medians", medians)
        known = seen > 0
        self.medians = np.where(known, seen, np.median(seen[known]) if known.any() else 1.0)
        self.log_medians = np.log(self.medians).astype(np.float32)
        shares = self._numbers("masses", masses)
        # Kept in the short digits in which they are written, so that a saved vocabulary is the same to the last bit.
        total = shares.sum() or 1.0
        self.masses = (shares if abs(total - 1) < 1e-4 else shares / total).astype(np.float32).astype(np.float64)
        if len(self.ensembl_ids) != len(self.genes):
            raise UserError(f"There are {len(self.ensembl_ids)} Ensembl ids for {len(self.genes)} genes.")

    def _numbers(self, name: str, numbers: Numbers | None) -> np.ndarray:
        found = np.ones(len(self.genes)) if numbers is None else np.nan_to_num(np.asarray(numbers, np.float64))
        if found.shape != (len(self.genes),) or (found < 0).any():
            raise UserError(f"`{name}` must hold one number, zero or more, for each of the {len(self.genes)} genes.")
        return found

    def __deepcopy__(self, memo: dict) -> "GeneVocabulary":
        return self  # never changed, so every copy of a tokenizer may share it

    @property
    def ids(self) -> dict[str, int]:
        """Id of every special token and gene."""
        return {name: token for token, name in enumerate([*SPECIAL_TOKENS, *self.genes])}

    def __len__(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.genes)

    def write(self, path: str | Path) -> None:
        """Write a packed table with one line per gene; the same genes give the same bytes."""
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        numbers = zip(self.medians, self.masses.astype(np.float32), strict=True)
        for gene, gene_id, (median, mass) in zip(self.genes, self.ensembl_ids, numbers, strict=True):
            table.writerow([gene, gene_id, str(median), str(mass)])
        Path(path).write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))

    @classmethod
    def read(cls, path: str | Path) -> "GeneVocabulary":
        """Read what `write` wrote, or the same table as plain text."""
        content = Path(path).read_bytes()
        try:
            text = (gzip.decompress(content) if content.startswith(GZIP) else content).decode()
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{str(path)!r} is damaged: {error}") from error
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))[1:]
        genes, ensembl_ids, medians, masses = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(genes, ensembl_ids, np.array(medians, np.float64), np.array(masses, np.float64))
