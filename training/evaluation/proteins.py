"""What antibodies add to the RNA: measured on CITE-seq, against the RNA alone, shuffled proteins and other methods.

    python -m scmmgpt.training.evaluation.proteins FOLDER --output docs/measured/proteins.json

The labels of both open studies are gates on some of their antibodies: with these among the inputs a number is circular, and is
called so. What counts is what the other antibodies add when these are hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from scipy import sparse

from scmmgpt.processing.protein_names_scmmgpt import ProteinNames
from scmmgpt.processing.proteins_scmmgpt import COUNTS, Panel, Proteins

from .expression import log_expression, most_variable
from .metrics import accuracy, macro_f1
from .results import provenance

if TYPE_CHECKING:
    from anndata import AnnData

    from scmmgpt.loading import LoadedModel

STUDIES = ("citeseq_malt10k_streak", "citeseq_pbmc5k_scvitools200")
PROTEINS_ONLY = "adt_pbmc_mimitou2021"
# As the authors' clusters are called: what antibodies against all that is known of them can be compared with.
TERMS_OF_CLUSTERS = {
    "T cell": "T cell",
    "natural killer cell": "natural killer cell",
    "B cell": "B cell",
    "myeloid cell": "monocyte",
}
ALL, HELPERS, GATES = "none: circular", "CD4, CD8", "all that were gated on"
HIDDEN = {
    ALL: (),
    HELPERS: ("CD4", "CD8A"),
    GATES: ("CD3E", "CD4", "CD8A", "CD19", "MS4A1", "CD14", "FCGR3A", "NCAM1"),
}
TOTAL_VI = "k nearest cells in totalVI's latent space, labels of other cells seen"
NAIVE, MEMORY = "naive thymus-derived CD4-positive, alpha-beta T cell", "CD4-positive, alpha-beta memory T cell"
HELPER_T = "CD4-positive, alpha-beta T cell"
NUM_ORDERS, NUM_FOLDS, NUM_COMPONENTS = 10, 5, 30
EPOCHS = 200  # of totalVI, half of its default: what two cores have time for


@dataclass
class ScoredStudy:
    """Cells that the model has read by their RNA; antibodies may be added in any choice."""

    name: str
    cells: AnnData
    truth: np.ndarray
    loaded: LoadedModel
    labels: Sequence[str]

    def __post_init__(self):
        from scmmgpt.scoring import call_study
        from scmmgpt.verb import Execution, Verb

        self.verb = Verb.begin("annotate", self.cells, None, Execution(progress=False))
        self.scorer = call_study(self.verb, list(self.labels)).scorer
        table = self.cells.obsm["protein_expression"]
        self.names, self.counts = list(table.columns), table.to_numpy(np.float32)
        finder = ProteinNames(self.loaded.processor.gene_tokenizer.gene_names)
        self.proteins = [finder.protein(name) for name in self.names]
        self.finder = finder

    def visible(self, hidden: Sequence[str]) -> list[int]:
        """The antibodies that do not bind what is hidden."""
        return [at for at, protein in enumerate(self.proteins) if protein not in hidden]

    def panel(self, columns: Sequence[int], order: np.ndarray | None = None) -> Panel:
        counts = self.counts[:, list(columns)]
        counts = counts if order is None else counts[order]
        return Panel.of(Proteins([self.names[at] for at in columns], counts, "obsm", COUNTS), self.finder)

    def called(self, columns: Sequence[int] = (), order: np.ndarray | None = None) -> np.ndarray:
        """The best label of each cell by its RNA and some antibodies, those of other cells where `order` says so."""
        from scmmgpt.protein_evidence import StudyProteins

        self.scorer.proteins = None
        if len(columns):
            proteins = StudyProteins({}, self.panel(columns, order))
            self.scorer.proteins = proteins.evidence(self.scorer.candidates, self.loaded)
        return np.array(self.labels)[self.scorer.probabilities(slice(None)).argmax(axis=1)]


def systems(study: ScoredStudy, hidden: Sequence[str], seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Every method's calls with some antibodies hidden."""
    from sklearn.decomposition import TruncatedSVD

    columns = study.visible(hidden)
    shuffled = np.random.default_rng(seed).permutation(study.cells.n_obs)
    yield "RNA alone", study.called()
    yield "RNA + proteins", study.called(columns)
    yield "RNA + proteins of other cells", study.called(columns, shuffled)
    yield "RNA, proteins written into the values of their genes", _written_into_genes(study, columns)
    expression = log_expression(study.cells)
    space = TruncatedSVD(NUM_COMPONENTS, random_state=seed)  # so that a few proteins count beside thousands of genes
    rna = space.fit_transform(expression[:, most_variable(expression, 2000)])
    proteins = np.log1p(study.counts[:, columns])
    yield "logistic regression, RNA, labels of other cells seen", _cross_validated([rna], study.truth, seed)
    both = _cross_validated([rna, proteins], study.truth, seed)
    yield "logistic regression, RNA + proteins, labels of other cells seen", both


def _written_into_genes(study: ScoredStudy, columns: Sequence[int]) -> np.ndarray:
    """The other form that was tried: a cell with a protein gets the usual count of the gene, the encoder reads it."""
    panel, cells = study.panel(columns), study.cells.copy()
    counts = sparse.lil_matrix(cells.X)
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    place = {name: at for at, name in enumerate(cells.var_names)}
    for at, protein in enumerate(panel.proteins):
        gene = place.get(study.finder.gene(protein)) if protein else None
        if gene is None or not panel.parting[at]:
            continue
        own = cells.X[:, [gene]].toarray().ravel()
        usual = (own / totals)[own > 0].mean() if (own > 0).any() else 1 / np.median(totals)
        written = np.where(panel.presence[:, at] > 0.5, np.maximum(own, np.ceil(usual * totals)), 0)
        counts[:, gene] = written[:, None]
    cells.X = sparse.csr_matrix(counts)
    return ScoredStudy(study.name, cells, study.truth, study.loaded, study.labels).called()


def _cross_validated(parts: Sequence[np.ndarray], truth: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    method = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    return cross_val_predict(method, np.column_stack(parts), truth, cv=folds)


def total_vi(study: ScoredStudy, hidden: Sequence[str], seed: int = 0) -> np.ndarray:
    """k nearest cells in the latent space that totalVI finds of RNA and visible antibodies, labels of other cells seen."""
    import scvi
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    scvi.settings.seed = seed
    expression = log_expression(study.cells)
    cells = study.cells[:, most_variable(expression, 2000)].copy()
    cells.obsm["proteins"] = cells.obsm["protein_expression"].iloc[:, study.visible(hidden)]
    scvi.model.TOTALVI.setup_anndata(cells, protein_expression_obsm_key="proteins")
    model = scvi.model.TOTALVI(cells)
    model.train(max_epochs=EPOCHS, enable_progress_bar=False, accelerator="cpu")
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    near = KNeighborsClassifier(15)
    return cross_val_predict(near, model.get_latent_representation(), study.truth, cv=folds)


def dropped(study: ScoredStudy, hidden: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Antibodies dropped one by one, in several orders: accuracy with so many of them left."""
    columns = np.array([at for at in study.visible(hidden) if study.proteins[at]])
    scores: dict[int, list[tuple[float, float]]] = {}
    for number_of_order in range(NUM_ORDERS):
        order = np.random.default_rng(seed + number_of_order).permutation(columns)
        for number in range(len(order) + 1):
            called = study.called(order[:number].tolist())
            scores.setdefault(number, []).append((accuracy(study.truth, called), macro_f1(study.truth, called)))
    return [
        {"left": number, "accuracy": _mean(pairs, 0), "lowest": round(min(pairs)[0], 3), "macro_f1": _mean(pairs, 1)}
        for number, pairs in sorted(scores.items(), reverse=True)
    ]


def _mean(pairs: Sequence[tuple[float, float]], at: int) -> float:
    return round(float(np.mean([pair[at] for pair in pairs])), 3)


def open_study(path: Path, loaded: LoadedModel) -> ScoredStudy:
    """A study without the cells that its gates left open."""
    import anndata

    cells = anndata.read_h5ad(path)
    cells = cells[(cells.obs["cell_type"] != "unknown").to_numpy()].copy()
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    return ScoredStudy(path.stem, cells, truth, loaded, sorted(set(truth)))


def memory_study(study: ScoredStudy) -> ScoredStudy:
    """Its helper T cells, naive or memory by gates on CD45RA and CD45RO; cells on one side of both."""
    rows = np.flatnonzero(study.truth == HELPER_T)
    columns = [at for at, protein in enumerate(study.proteins) if protein in ("CD45RA", "CD45RO")]
    panel = Panel.of(
        Proteins([study.names[at] for at in columns], study.counts[np.ix_(rows, np.array(columns))], "obsm", COUNTS),
        study.finder,
    )
    has = dict(zip(panel.proteins, (panel.presence > 0.5).T, strict=True))
    one_sided = has["CD45RA"] != has["CD45RO"]
    truth = np.where(has["CD45RO"], MEMORY, NAIVE)[one_sided]
    cells = study.cells[rows[one_sided]].copy()
    return ScoredStudy(f"{study.name}, helper T cells", cells, truth, study.loaded, sorted({NAIVE, MEMORY}))


def protein_only(path: Path, loaded: LoadedModel, seed: int = 0) -> list[dict[str, Any]]:
    """Antibodies alone, against the clusters of the authors: all of them, and random panels."""
    import anndata

    from scmmgpt.processing.proteins_scmmgpt import ProteinEvidence
    from scmmgpt.protein_evidence import StudyProteins

    cells = anndata.read_h5ad(path)
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    counts = np.asarray(cells.X.toarray() if sparse.issparse(cells.X) else cells.X, dtype=np.float32)
    finder = ProteinNames(loaded.processor.gene_tokenizer.gene_names)
    found = map(loaded.annotator.ontology.find, TERMS_OF_CLUSTERS.values())
    terms = [None if term is None else term.id for term in found]
    names, rows = np.array(list(TERMS_OF_CLUSTERS)), []
    for number in (len(cells.var_names), 100, 50, 25):
        pairs = []
        for repeat in range(1 if number == len(cells.var_names) else NUM_ORDERS):
            chosen = np.random.default_rng(seed + repeat).permutation(len(cells.var_names))[:number]
            panel = Panel.of(
                Proteins([str(cells.var_names[at]) for at in chosen], counts[:, chosen], "X", COUNTS), finder
            )
            expected = StudyProteins({}, panel)._expected(list(TERMS_OF_CLUSTERS.values()), terms, loaded)
            called = names[ProteinEvidence(panel, expected).evidence(slice(None)).argmax(axis=1)]
            pairs.append((accuracy(truth, called), macro_f1(truth, called)))
        rows.append(
            {"antibodies": number, "accuracy": _mean(pairs, 0), "macro_f1": _mean(pairs, 1), "panels": len(pairs)}
        )
    majority = max(np.mean(truth == name) for name in set(truth))
    return [
        *rows,
        {
            "antibodies": 0,
            "accuracy": round(float(majority), 3),
            "macro_f1": round(macro_f1(truth, np.full(len(truth), "T cell")), 3),
            "panels": 1,
        },
    ]


def cases(folder: Path, loaded: LoadedModel) -> Iterator[tuple[ScoredStudy, str, tuple[str, ...]]]:
    """Every study, with what is hidden in words and as proteins."""
    for name in STUDIES:
        study = open_study(folder / f"{name}.h5ad", loaded)
        yield from ((study, said, hidden) for said, hidden in HIDDEN.items())
        memory = memory_study(study)
        if min(np.unique(memory.truth, return_counts=True)[1]) >= 2 * NUM_FOLDS:
            yield memory, "CD45RA, CD45RO, CD45RB", ("CD45RA", "CD45RO", "CD45RB")


def _row(study: ScoredStudy, said: str, system: str, called: np.ndarray) -> dict[str, Any]:
    values = {"accuracy": accuracy(study.truth, called), "macro_f1": macro_f1(study.truth, called)}
    rounded = {metric: round(float(value), 3) for metric, value in values.items()}
    row = {"study": study.name, "cells": len(study.truth), "hidden": said, "system": system, **rounded}
    print(json.dumps(row), flush=True)
    return row


def measure(folder: Path, loaded: LoadedModel) -> dict[str, Any]:
    """Every row of the tables."""
    rows, curves = [], []
    for study, said, hidden in cases(folder, loaded):
        rows += [_row(study, said, system, called) for system, called in systems(study, hidden)]
        if said in (ALL, HELPERS):
            curves.append({"study": study.name, "hidden": said, "steps": dropped(study, hidden)})
    alone = protein_only(folder / f"{PROTEINS_ONLY}.h5ad", loaded)
    return {"rows": rows, "dropped": curves, "alone": {"study": PROTEINS_ONLY, "rows": alone}}


def main(
    folder: Path,
    output: Annotated[Path, typer.Option()],
    only_total_vi: Annotated[bool, typer.Option(help="Add totalVI to what was measured; needs scvi-tools.")] = False,
) -> None:
    """Measure what antibodies add; FOLDER holds the three files."""
    from scmmgpt.loading import load

    loaded = load(device="cpu")
    if only_total_vi:
        report = json.loads(output.read_text(encoding="utf-8"))
        report["run_of_total_vi"] = provenance(
            seed=0, device="cpu", model=f"totalVI of scvi-tools {version('scvi-tools')}"
        )
        report["rows"] = [row for row in report["rows"] if row["system"] != TOTAL_VI]
        report["rows"] += [
            _row(study, said, TOTAL_VI, total_vi(study, hidden)) for study, said, hidden in cases(folder, loaded)
        ]
    else:
        report = {"run": provenance(seed=0, device="cpu", model=loaded.name), **measure(folder, loaded)}
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
