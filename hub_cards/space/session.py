"""What one visitor of the Space does: cells, names, a map, and answers about them. Nothing here knows the page."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.hub_cards.request_cells_scmmgpt import check_h5ad_apart
from scmmgpt.layout import lay_out
from scmmgpt.loading import LoadedModel
from scmmgpt.processing.result_keys_scmmgpt import ResultKeys
from scmmgpt.report import GroupGenes, find_embedding, points_of

MAX_CELLS = 20_000
MAX_UPLOAD_MB = 100
MAX_UNPACKED_BYTES = 1024**3
MAX_LABELS = 1_000
MAX_TEXT = 2_000
MAX_GENERATED = 500
MAX_CELLS_FOR_GENES = 4_000
NUM_HITS = 50
KEYS = ResultKeys()


@dataclass(eq=False, repr=False)
class Session:
    """One visitor's cells. Every visitor has a session and a folder of their own."""

    model: LoadedModel
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="scmmgpt-space-")))
    adata: anndata.AnnData | None = None
    coordinates: np.ndarray | None = None
    selected: list[int] = field(default_factory=list)
    highlighted: list[int] = field(default_factory=list)
    conversation: Any = None

    def close(self) -> None:
        """Forget the cells and remove every file made for this visitor."""
        self.adata = self.coordinates = self.conversation = None
        shutil.rmtree(self.folder, ignore_errors=True)

    # Cells in

    def open_file(self, path: str) -> None:
        """Take the cells of an uploaded h5ad, after a look at what it declares."""
        if not path.endswith(".h5ad"):
            raise UserError("Upload an .h5ad file.")
        if Path(path).stat().st_size > MAX_UPLOAD_MB * 1e6:
            raise UserError(f"The file is larger than {MAX_UPLOAD_MB} MB; take a part of the cells.")
        check_h5ad_apart(path, max_cells=MAX_CELLS, max_unpacked_bytes=MAX_UNPACKED_BYTES)
        self._take(anndata.read_h5ad(path))

    def open_sample(self) -> None:
        """Take 700 blood cells that come with scanpy."""
        import scanpy

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._take(scanpy.datasets.pbmc68k_reduced())

    def _take(self, adata: anndata.AnnData) -> None:
        adata.obs_names_make_unique()
        self.adata, self.selected, self.highlighted, self.conversation = adata, [], [], None
        self._embed()

    def _embed(self) -> None:
        self.adata = scmmgpt.embed(self.adata, model=self.model, overwrite=True, progress=False)
        key = find_embedding([key for key in self.adata.obsm if key != KEYS.embedding])
        given = self.adata.obsm[key] if key is not None else None
        self.coordinates = np.asarray(given)[:, :2] if given is not None else lay_out(self.embeds)

    @property
    def embeds(self) -> np.ndarray:
        return self.cells.obsm[KEYS.embedding]

    @property
    def cells(self) -> anndata.AnnData:
        if self.adata is None:
            raise UserError("There are no cells yet: upload a file or take the sample.")
        return self.adata

    # Names

    def annotate(
        self, labels: str, min_confidence: float | None = None, prior_share: float | None = None
    ) -> list[list[Any]]:
        """Name every cell, as `scmmgpt.annotate` does; rows of (type, cells, median confidence), most frequent first."""
        wanted = [line.strip() for line in labels.splitlines() if line.strip()]
        if len(wanted) > MAX_LABELS:
            raise UserError(f"{len(wanted)} labels are too many here; at most {MAX_LABELS}.")
        self.adata = scmmgpt.annotate(
            self.cells,
            wanted or None,
            model=self.model,
            min_confidence=min_confidence,
            prior_share=prior_share,
            report=self.folder / "report.html",
            overwrite=True,
            progress=False,
        )
        return self.composition(range(self.adata.n_obs))

    def composition(self, rows: Sequence[int]) -> list[list[Any]]:
        """(type, cells, median confidence) of some cells."""
        obs = self._named().obs.iloc[list(rows)]
        groups = obs.groupby(KEYS.cell_type, observed=True)[KEYS.confidence]
        table = groups.agg(["size", "median"]).sort_values("size", ascending=False)
        return [[name, int(row["size"]), round(float(row["median"]), 2)] for name, row in table.iterrows()]

    def _named(self) -> anndata.AnnData:
        if KEYS.cell_type not in self.cells.obs:
            raise UserError("The cells have no labels yet: press Annotate first.")
        return self.cells

    # The map

    def points(self) -> dict[str, Any]:
        """What the map draws."""
        obs, num_cells = self.cells.obs, self.cells.n_obs
        is_named = KEYS.cell_type in obs
        labels = obs[KEYS.cell_type].astype(str).to_numpy() if is_named else np.full(num_cells, "not named yet")
        confidence = obs[KEYS.confidence].to_numpy() if is_named else np.zeros(num_cells)
        points = points_of(self.coordinates, "", labels, confidence)
        return points | {"selected": self.selected, "highlighted": self.highlighted}

    def select(self, rows: Sequence[Any]) -> str:
        """Choose cells on the map; returns what they are in one line."""
        num_cells = self.cells.n_obs
        self.selected = sorted({int(row) for row in rows if 0 <= int(row) < num_cells})
        self.conversation = None
        if not self.selected:
            return "No cells are selected."
        if KEYS.cell_type not in self.cells.obs:
            return f"{len(self.selected)} cells are selected."
        parts = [f"{count} {name}" for name, count, _ in self.composition(self.selected)[:4]]
        return f"{len(self.selected)} cells are selected: {', '.join(parts)}."

    def _selection(self) -> np.ndarray:
        if not self.selected:
            raise UserError("Select cells first: click one on the map, or draw around several.")
        return np.array(self.selected)

    def _most_typical(self) -> int:
        """The selected cell nearest to the mean of the selection."""
        rows = self._selection()
        vectors = self.embeds[rows]
        return int(rows[(vectors @ vectors.mean(axis=0)).argmax()])

    # Answers

    def describe(self) -> str:
        """The model's words about the most typical of the selected cells."""
        rows, typical = self._selection(), self._most_typical()
        name = self.cells.obs_names[typical]
        described = scmmgpt.describe(self.cells[[typical]].copy(), model=self.model, overwrite=True, progress=False)
        who = f"Cell {name}" if len(rows) == 1 else f"The most typical of {len(rows)} cells ({name})"
        return f"**{who}**\n\n{described.obs[KEYS.description].iloc[0]}"

    def compare(self) -> list[list[Any]]:
        """Genes that stand out in the selection: (gene, percent of its cells, percent of the others)."""
        rows = self._selection()
        if len(rows) == self.cells.n_obs:
            raise UserError("All cells are selected: leave some out to compare with.")
        rng = np.random.default_rng(0)
        inside = rng.permutation(rows)[:MAX_CELLS_FOR_GENES]
        outside = rng.permutation(np.setdiff1d(np.arange(self.cells.n_obs), rows))[:MAX_CELLS_FOR_GENES]
        gene_tokenizer = self.model.processor.gene_tokenizer
        genes = GroupGenes.empty(gene_tokenizer.genes, 2)
        for group, members in enumerate((inside, outside)):
            tokens = gene_tokenizer(self.cells[np.sort(members)].copy(), return_tensors="np")
            cell, place = np.nonzero(gene_tokenizer.is_gene(tokens["gene_ids"], tokens["gene_mask"]))
            gene_rows = gene_tokenizer.gene_rows(tokens["gene_ids"][cell, place])
            genes.add(np.full(len(members), group), gene_rows, tokens["gene_values"][cell, place], cell)
        return [[row["gene"], row["percent"], row["elsewhere"]] for row in genes.top(0, num=15)]

    def chat(self, question: str) -> Iterator[str]:
        """The answer about the most typical of the selected cells, growing; earlier turns about it are kept.

        One cell, because small models have learnt to talk about one at a time.
        """
        _check_text(question, "question")
        if self.conversation is None:
            name = str(self.cells.obs_names[self._most_typical()])
            self.conversation = scmmgpt.chat(self.cells, select=[name], model=self.model)
        answer = ""
        for piece in self.conversation.stream(question):
            answer += piece
            yield answer

    def search(self, text: str) -> list[list[Any]]:
        """Highlight the cells that fit a text best; rows of (cell, type, score)."""
        _check_text(text, "text to search for")
        scores = self.embeds @ self.model.embed_texts([self.model.processor.searched_words(text)])[0]
        best = np.argsort(-scores, kind="stable")[: max(1, min(NUM_HITS, self.cells.n_obs // 10))]
        self.highlighted = [int(row) for row in best]
        obs = self.cells.obs
        types = obs[KEYS.cell_type].astype(str) if KEYS.cell_type in obs else None
        names = self.cells.obs_names
        return [
            [names[row], types.iloc[row] if types is not None else "", round(float(scores[row]), 3)] for row in best
        ]

    def generate(self, text: str, num_cells: int, seed: int) -> tuple[str, str]:
        """Make pseudo-cells; (what they look like, the path of an h5ad with them)."""
        _check_text(text, "text to make cells from")
        num_cells = int(np.clip(num_cells, 1, MAX_GENERATED))
        path = self.folder / "generated.h5ad"
        path.unlink(missing_ok=True)
        made = scmmgpt.generate_cells(text, num_cells, seed=int(seed), model=self.model, output=path, progress=False)
        quality = made.uns[KEYS.name]["generate"]["quality"]
        lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in quality.items()]
        return "\n".join([f"**{made.n_obs} pseudo-cells** x {made.n_vars} genes", "", *lines]), str(path)

    def write_results(self) -> tuple[str, str]:
        """Paths of the annotated cells and of the report."""
        path = self.folder / "annotated.h5ad"
        self._named().write_h5ad(path)
        return str(path), str(self.folder / "report.html")


def _check_text(text: str, what: str) -> None:
    if not text.strip():
        raise UserError(f"The {what} is empty.")
    if len(text) > MAX_TEXT:
        raise UserError(f"The {what} has {len(text)} characters; at most {MAX_TEXT} are taken.")
