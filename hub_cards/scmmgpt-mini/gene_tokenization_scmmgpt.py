"""The gene tokenizer: cells in any format -> `gene_ids`, `gene_values`, `gene_mask`."""

import copy
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import sparse
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import cached_file

from .cell_reading_scmmgpt import choose_matrix, open_cells
from .errors_scmmgpt import UserError
from .gene_identity_scmmgpt import GENE_NAMES_FILE, GeneIdentifier, GeneMatch, GeneNames, gene_name_columns
from .gene_layout_scmmgpt import CellBlock, Layout, lay_out, pad_tokens, sum_duplicates
from .gene_vocabulary_scmmgpt import FIRST_GENE_ID, GeneVocabulary, Numbers
from .input_account_scmmgpt import InputAccount
from .plausibility_scmmgpt import looks_implausible

VOCABULARY_FILE = "gene_vocabulary.tsv.gz"
PLAIN_VOCABULARY_FILE = "gene_vocabulary.tsv"  # as the first models were saved
VALUE_MODES = ("log1p", "bins", "counts", "rank")
GENE_ORDERS = ("value", "median_ratio")
MIN_MATCHED_GENES = 20
# Some genes of any species bear names that are also human: a hundredth of a yeast's, say.
LEAST_KNOWN_SHARE = 0.01
MATCHES_REMEMBERED = 8
SETTINGS = (
    "value_mode",
    "max_genes",
    "target_sum",
    "num_bins",
    "gene_order",
    "panel_scaling",
    "add_cls",
    "include_zero_genes",
    "species",
    "min_matched_genes",
    "strict",
)
UNSAVED = ("_vocabulary", "_gene_names", "_identifier", "_matches", "_account")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# A panel's share of the reference mass is rounded to quarter octaves: a few unexpressed genes more or less in the
# file change nothing, and anything above 92 % counts as a whole transcriptome.
PANEL_STEPS_PER_OCTAVE = 4


class ScMMGPTGeneTokenizer(FeatureExtractionMixin):
    """Turns cells into tokens: the ids of expressed genes and their values.

    Parameters
    ----------
    genes, ensembl_ids, medians, masses
        The vocabulary, as `GeneVocabulary` takes it.
    gene_names
        The offline table of symbols, ids, synonyms and orthologs.
    value_mode
        What `gene_values` holds: "log1p" of counts scaled to `target_sum`, "bins" (scGPT's quantile bins), "counts",
        or "rank" (Geneformer: 1 for the gene highest above its median).
    max_genes
        Genes kept of one cell, `<cls>` not counted; None keeps all. The first in `gene_order` stay.
    target_sum
        Sum that the vocabulary's genes of a cell are scaled to.
    num_bins
        Bins of mode "bins", the one for zero included.
    gene_order
        "value": by raw value. "median_ratio": by value over the gene's median. Ties: smaller id first.
    panel_scaling
        Multiply `target_sum` by the measured genes' usual share of a cell's counts, so that values of a gene panel are
        on the scale of a whole transcriptome.
    add_cls
        Begin every cell with `<cls>`.
    include_zero_genes
        After the expressed genes, list measured ones that are zero, smaller id first.
    species
        Species of the data; None recognises it from the genes.
    min_matched_genes
        Cells with fewer genes of the vocabulary are refused.
    strict
        Raise an error if less than this share of the counts is in genes of the vocabulary; True: 0.5.

    Examples
    --------
    >>> tokenizer = ScMMGPTGeneTokenizer(genes=["CD3D", "CD8A", "LYZ"], min_matched_genes=1)
    >>> tokenizer(([[3, 0, 1]], ["CD3D", "CD8A", "LYZ"]))["gene_ids"]
    array([[1, 3, 5]])
    """

    model_input_names = ["gene_ids", "gene_values", "gene_mask"]
    pad_tokens = staticmethod(pad_tokens)

    def __init__(  # noqa: PLR0913 - a feature extractor takes its settings one by one, as they stand in its json
        self,
        genes: Sequence[str] = (),
        ensembl_ids: Sequence[str] | None = None,
        medians: Numbers | None = None,
        masses: Numbers | None = None,
        gene_names: GeneNames | None = None,
        value_mode: Literal["log1p", "bins", "counts", "rank"] = "log1p",
        max_genes: int | None = 2048,
        target_sum: float = 1e4,
        num_bins: int = 51,
        gene_order: Literal["value", "median_ratio"] = "value",
        panel_scaling: bool = False,
        add_cls: bool = True,
        include_zero_genes: bool = False,
        species: str | None = None,
        min_matched_genes: int = MIN_MATCHED_GENES,
        strict: bool | float = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if value_mode not in VALUE_MODES:
            raise UserError(f"`value_mode` must be one of {VALUE_MODES}, got {value_mode!r}.")
        if gene_order not in GENE_ORDERS:
            raise UserError(f"`gene_order` must be one of {GENE_ORDERS}, got {gene_order!r}.")
        self.value_mode = value_mode
        self.max_genes = max_genes
        self.target_sum = target_sum
        self.num_bins = num_bins
        self.gene_order = "median_ratio" if value_mode == "rank" else gene_order
        self.panel_scaling = panel_scaling
        self.add_cls = add_cls
        self.include_zero_genes = include_zero_genes
        self.species = species
        self.min_matched_genes = min_matched_genes
        self.strict = strict
        self._set_vocabulary(GeneVocabulary(genes, ensembl_ids, medians, masses), gene_names)

    def _set_vocabulary(self, vocabulary: GeneVocabulary, gene_names: GeneNames | None) -> None:
        self._vocabulary = vocabulary
        self._gene_names = gene_names
        self._identifier = GeneIdentifier(vocabulary.genes, vocabulary.ensembl_ids, gene_names)
        self._matches: dict = {}
        self._account: dict | None = None

    # ---- vocabulary

    @property
    def genes(self) -> list[str]:
        """Names of the vocabulary's genes in id order, without special tokens; usable as `var_names`."""
        return list(self._vocabulary.genes)

    @property
    def ensembl_ids(self) -> list[str]:
        """Ensembl ids of `genes`, "" where unknown."""
        return list(self._vocabulary.ensembl_ids)

    @property
    def gene_names(self) -> GeneNames | None:
        """The offline table of names that came with the tokenizer."""
        return self._gene_names

    @property
    def gene_statistics(self) -> dict[str, np.ndarray]:
        """For each of `genes`: `median` of its non-zero values at `target_sum`, and `mass`, its share of counts."""
        return {"median": self._vocabulary.medians.copy(), "mass": self._vocabulary.masses.copy()}

    @property
    def vocabulary(self) -> dict[str, int]:
        """Id of every gene and special token, by name."""
        return self._vocabulary.ids

    @property
    def vocab_size(self) -> int:
        """Genes and special tokens together."""
        return len(self._vocabulary)

    @property
    def gene_ids(self) -> np.ndarray:
        """Ids of `genes`."""
        return FIRST_GENE_ID + np.arange(len(self._vocabulary.genes))

    @property
    def first_gene_id(self) -> int:
        """Id of the first of `genes`; smaller ids are special tokens."""
        return FIRST_GENE_ID

    def gene_rows(self, gene_ids: np.ndarray) -> np.ndarray:
        """Places in `genes` of the given ids; negative for special tokens."""
        return np.asarray(gene_ids) - FIRST_GENE_ID

    def is_gene(self, gene_ids: Any, gene_mask: Any = None) -> Any:
        """Which tokens are genes, not special tokens or padding; arrays or tensors of one shape, as the ids are."""
        is_gene = gene_ids >= FIRST_GENE_ID
        return is_gene if gene_mask is None else is_gene & (gene_mask > 0)

    def with_statistics(self, medians: Numbers, masses: Numbers) -> "ScMMGPTGeneTokenizer":
        """The same tokenizer with gene statistics measured on a corpus; zero or NaN: never seen there."""
        other = copy.copy(self)
        other._set_vocabulary(GeneVocabulary(self.genes, self.ensembl_ids, medians, masses), self._gene_names)
        return other

    def with_settings(self, **settings) -> "ScMMGPTGeneTokenizer":
        """The same vocabulary and tables under other settings."""
        return type(self)(
            genes=self.genes,
            ensembl_ids=self.ensembl_ids,
            medians=self._vocabulary.medians,
            masses=self._vocabulary.masses,
            gene_names=self._gene_names,
            **{**{name: value for name, value in self.to_dict().items() if name in SETTINGS}, **settings},
        )

    def panel_share(self, gene_ids: np.ndarray) -> float:
        """Reference mass of the measured genes, rounded to quarter octaves: what `panel_scaling` multiplies by."""
        mass = float(self._vocabulary.masses[self.gene_rows(np.unique(gene_ids))].sum())
        return 2.0 ** (round(np.log2(max(mass, 1e-6)) * PANEL_STEPS_PER_OCTAVE) / PANEL_STEPS_PER_OCTAVE)

    def looks_implausible(self, gene_ids: np.ndarray, gene_values: np.ndarray, gene_mask: np.ndarray) -> np.ndarray:
        """Which of some tokenised cells, (cells, tokens), look like no cell: noise, or counts under wrong names."""
        is_expressed = self.is_gene(gene_ids, gene_mask) & (gene_values > 0)
        log_medians = self._vocabulary.log_medians[np.where(is_expressed, self.gene_rows(gene_ids), 0)]
        return looks_implausible(gene_values, log_medians, is_expressed, self.value_mode, self.max_genes)

    @property
    def account(self) -> dict | None:
        """What the last call decided about the matrix and the genes."""
        return self._account

    # ---- the call

    def __call__(  # noqa: PLR0913
        self,
        cells: Any,
        *,
        layer: str | None = None,
        counts: bool | None = None,
        gene_column: str | None = None,
        species: str | None = None,
        strict: bool | float | None = None,
        max_genes: int | None = None,
        packed: bool = False,
        sample_seed: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Tokenise all cells at once.

        Parameters
        ----------
        cells
            An AnnData or MuData, a path to h5ad, zarr, h5mu or 10x's `.h5` or matrix folder, a pair (matrix, gene names), or a list of those.
        layer, counts
            Which matrix to read ("X", "raw" or a layer), and whether it holds counts; recognised if None.
        gene_column
            Column of `var` with the gene names to trust first.
        species, strict, max_genes
            Override the tokenizer's settings for this call.
        packed
            Return all cells end to end, (1, total), with their bounds in `cell_cu_seqlens`, instead of padded.
        sample_seed
            For training: of cells with more than `max_genes` genes keep a random choice, the same for the same seed.
        return_tensors
            "np" or "pt".
        """
        account = InputAccount(self.strict if strict is None else strict)
        blocks: list[CellBlock] = []
        for source in cells if isinstance(cells, list) else [cells]:
            blocks += self._read(source, account, layer, counts, gene_column, species or self.species)
        if not blocks:
            raise UserError("There are no cells to read.")
        features, totals = lay_out(blocks, self._layout(max_genes or self.max_genes, packed, sample_seed))
        for block, block_totals in zip(blocks, totals, strict=True):
            account.add(block_totals, block.total, block.turned_back)
        account.check()
        account.log()
        self._account = account.summary()
        return BatchFeature(features, tensor_type=return_tensors)

    def iter_chunks(  # noqa: PLR0913
        self,
        cells: Any,
        chunk_size: int = 1024,
        *,
        start: int = 0,
        stop: int | None = None,
        layer: str | None = None,
        counts: bool | None = None,
        gene_column: str | None = None,
        packed: bool = False,
        return_tensors: str | None = None,
    ) -> Iterator[BatchFeature]:
        """Tokenise any number of cells in constant memory, `chunk_size` at a time.

        Cells come in their order, from cell `start` up to `stop`; each chunk is padded to its own longest cell, or packed.
        `account` covers all of them up to the last chunk that was given.
        """
        account = InputAccount(self.strict)
        bounds = chunk_size, start, stop
        for block in self._read(cells, account, layer, counts, gene_column, self.species, bounds):
            features, totals = lay_out([block], self._layout(self.max_genes, packed))
            account.add(totals[0], block.total, block.turned_back)
            account.check()
            self._account = account.summary()
            yield BatchFeature(features, tensor_type=return_tensors)
        account.log()

    def measured_genes(self, cells: Any) -> np.ndarray:
        """Rows of the vocabulary that the cells' genes have, whether or not a cell expresses them."""
        with open_cells(cells) as opened:
            matrix = choose_matrix(opened).matrix
            rows = self._match(gene_name_columns(matrix.var, matrix.var_names), self.species, None).rows
        return np.unique(rows[rows >= 0])

    def linear_values(self, cells: Any) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Counts, or what is proportional to them, (cells, G) of the genes that were measured, and their ids (G,)."""
        with open_cells(cells) as opened:
            chosen = choose_matrix(opened)
            found = self._match(gene_name_columns(chosen.matrix.var, chosen.matrix.var_names), self.species, None).rows
            rows, _ = chosen.linear_rows(0, chosen.matrix.shape[0])
            values = sparse.csr_matrix(
                (rows.data, rows.indices, rows.indptr - rows.indptr[0]), shape=chosen.matrix.shape
            )
        known, place = np.unique(found[found >= 0], return_inverse=True)
        columns = np.flatnonzero(found >= 0)
        join = sparse.csr_matrix((np.ones(len(columns), np.float32), (columns, place)), (len(found), len(known)))
        return sparse.csr_matrix(values @ join), known + FIRST_GENE_ID

    def _layout(self, max_genes: int | None, packed: bool = False, sample_seed: int | None = None) -> Layout:
        by_median = self.gene_order == "median_ratio"
        return Layout(
            value_mode=self.value_mode,
            medians=np.pad(self._vocabulary.medians, (FIRST_GENE_ID, 0), constant_values=1)
            if by_median
            else np.empty(0),
            num_bins=self.num_bins,
            max_genes=max_genes or len(self._vocabulary.genes),
            add_cls=self.add_cls,
            include_zero_genes=self.include_zero_genes,
            packed=packed,
            sample_seed=sample_seed,
        )

    # ---- reading

    def _read(
        self,
        source: Any,
        account: InputAccount,
        layer: str | None,
        counts: bool | None,
        gene_column: str | None,
        species: str | None,
        bounds: tuple[int | None, int, int | None] = (None, 0, None),
    ) -> Iterator[CellBlock]:
        """Blocks of cells with their genes' places in the vocabulary."""
        with open_cells(source) as cells:
            if not cells.matrices or cells.matrices[0].shape[0] == 0:
                raise UserError("There are no cells to read.")
            chosen = choose_matrix(cells, layer, counts)
            names = gene_name_columns(chosen.matrix.var, chosen.matrix.var_names, gene_column)
            match = self._match(names, species, gene_column)
            share = self.panel_share(match.rows[match.rows >= 0] + FIRST_GENE_ID) if self.panel_scaling else 1.0
            account.begin(cells, chosen, match, share)
            id_of_column = np.where(match.rows >= 0, match.rows + FIRST_GENE_ID, -1).astype(np.int32)
            for start, stop in chosen.matrix.blocks(*bounds):
                rows, turned_back = chosen.linear_rows(start, stop)
                total = float(rows.data[rows.entries].sum(dtype=np.float64))
                columns = id_of_column
                if match.has_duplicates:
                    rows, columns = sum_duplicates(rows, id_of_column, self.vocab_size)
                yield CellBlock(rows, columns, self.target_sum * share, total, turned_back)

    def _match(self, names: dict[str, Sequence[str]], species: str | None, gene_column: str | None) -> GeneMatch:
        """Genes of the vocabulary under these names; remembered, since batches of one study share their genes."""
        key = (species, gene_column, *((column, tuple(values)) for column, values in names.items()))
        if key not in self._matches:
            match = self._identifier.match(names, species, gene_column)
            self._refuse_too_few(match)
            self._matches = {**dict(list(self._matches.items())[1 - MATCHES_REMEMBERED :]), key: match}
        return self._matches[key]

    def _refuse_too_few(self, match: GeneMatch) -> None:
        num_matched = match.num_distinct
        # A small vocabulary knows few names of any file.
        share = min(int(LEAST_KNOWN_SHARE * len(match.rows)), len(self.genes) // 2)
        needed = max(self.min_matched_genes, 1, share)
        if num_matched >= needed:
            return
        if not len(match.rows):
            raise UserError("The cells have no genes: `var` is empty.")
        found = f"Only {num_matched}" if num_matched else "None"
        raise UserError(
            f"{found} of the {len(match.rows)} genes {'are' if num_matched > 1 else 'is'} in the vocabulary; at least "
            f"{needed} are needed. The names look like {match.scheme}; the first are "
            f"{', '.join(map(str, match.names[:3]))}. If symbols or Ensembl ids are in a column of `var`, make it the "
            "index, or name it in `gene_column=` where a call takes it; `species=` there names a species that was not recognised."
        )

    # ---- save, load

    def to_dict(self) -> dict[str, Any]:
        """The settings; the vocabulary and the table of names have files of their own."""
        settings = {name: value for name, value in super().to_dict().items() if name not in UNSAVED}
        if "auto_map" in settings:
            # transformers takes any class with "Tokenizer" in its name for a slow and fast pair of text tokenizers.
            settings["auto_map"] = {
                auto: name if isinstance(name, str) else name[0] for auto, name in settings["auto_map"].items()
            }
        return settings

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings, and beside them the vocabulary.

        `save_pretrained(push_to_hub=True)` uploads what was written after it listed the folder: this is the one call
        it makes in between.
        """
        super().to_json_file(json_file_path)
        self.save_vocabulary(os.path.dirname(json_file_path))

    def save_vocabulary(self, save_directory: str | os.PathLike) -> tuple[str, ...]:
        """Write the vocabulary and, if there is one, the table of names; return their paths."""
        paths = [os.path.join(save_directory, VOCABULARY_FILE)]
        self._vocabulary.write(paths[0])
        if self._gene_names is not None:
            paths.append(os.path.join(save_directory, GENE_NAMES_FILE))
            self._gene_names.write(paths[1])
        return tuple(paths)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "ScMMGPTGeneTokenizer":  # type: ignore[override] # options by name alone
        """Load settings, vocabulary and table of names from a folder or a Hub repository."""
        tokenizer = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        where = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        found = partial(hub_file, pretrained_model_name_or_path, where=where)
        vocabulary: Any = found(VOCABULARY_FILE) or found(PLAIN_VOCABULARY_FILE)
        if vocabulary is None:  # says which file is missing, and where
            vocabulary = cached_file(pretrained_model_name_or_path, VOCABULARY_FILE, **where)
        names = found(GENE_NAMES_FILE)
        tokenizer._set_vocabulary(GeneVocabulary.read(vocabulary), GeneNames.read(names) if names else None)
        return tokenizer


def hub_file(repository: str | os.PathLike, name: str, where: dict[str, Any]) -> str | None:
    """The path of a file in a folder or Hub repository, None where there is none."""
    return cached_file(repository, name, _raise_exceptions_for_missing_entries=False, **where)


__all__ = ["ScMMGPTGeneTokenizer"]
