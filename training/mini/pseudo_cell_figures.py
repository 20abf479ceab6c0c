"""Every figure about generated cells, beside a negative binomial and a Gaussian copula of the same training cells.

    python -m scmmgpt.training.mini.pseudo_cell_figures --output docs/measured/generation.json [--only asked ...]

Parts: `asked` (does a classifier trained on real cells of another study name them as asked?), `studies` (distances,
covariance, real against made, on the test studies), `copies` (of the cells that taught the decoder?), `speed`, `rare` (does
padding a rare class help?). A file that exists keeps the parts that are not measured again. `mini/unseen_pairs.py` measures pairs that were left out.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.sparse as sp
import typer
from anndata import AnnData, read_h5ad
from scipy.spatial.distance import cdist

from scmmgpt.api import generate_cells
from scmmgpt.errors import UserError
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.loading import LoadedModel, load
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME as ONTOLOGY_FILE
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.evaluation.baseline_generation import GaussianCopulaGenerator, NegativeBinomialGenerator
from scmmgpt.training.evaluation.baselines import TrainingCells, logistic_regression
from scmmgpt.training.evaluation.expression import (
    holds_counts,
    linear_expression,
    log_normalised,
    most_variable,
    on_genes,
    principal_space,
    upper_symbols,
)
from scmmgpt.training.evaluation.metrics import meant_types
from scmmgpt.training.evaluation.results import provenance
from scmmgpt.training.evaluation.study import open_study
from scmmgpt.training.evaluation.systems import System
from scmmgpt.training.evaluation.task_generation import generate_study
from scmmgpt.training.evaluation.type_tree import TypeTree
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, read_recipe

CELLS_ASKED = 60
CELLS_OF_TYPE, NUM_GENES_OF_RARE = 100, 500
RARE_STUDY = "real/kang_lupus_muscat.h5ad"
RARE = ("CD14-low, CD16-positive monocyte", "CD8-positive, alpha-beta T cell")
MODEL = "scmmgpt-mini"


@dataclass(frozen=True)
class Asked:
    """Texts for the types of one tissue, and the study that the classifier learns from; some taught the decoder too.

    `real` is yet another study, whose real cells the same classifier names: what perfect cells would reach.
    """

    tissue: str
    reference: str
    platform: str
    words: str
    types: tuple[str, ...]
    is_in_training: bool = False
    real: str | None = None


TABULA_MURIS = "../dev2/real/mouse_tabula_muris_facs_18organs.h5ad"
ZEISEL = "../dev2/real/mouse_cortex_zeisel2015_gpsfish.h5ad"
ASKED = (
    Asked("blood", "real/pbmc_10x3tech_symphony.h5ad", "10x", "a {} from human blood",
          ("B cell", "CD14-positive monocyte", "natural killer cell", "CD8-positive, alpha-beta T cell"),
          real="real/kang_lupus_muscat.h5ad"),
    Asked("pancreas", "../dev2/real/human_pancreas_enge2017.h5ad", "10x", "a {} from human pancreas",
          ("pancreatic A cell", "type B pancreatic cell", "pancreatic ductal cell", "pancreatic acinar cell"),
          real="real/pancreas_wang_xin.h5ad"),
    Asked("lung", TABULA_MURIS, "Smart-seq2", "a {} from mouse lung",
          ("B cell", "natural killer cell", "lung endothelial cell"), is_in_training=True),
    Asked("brain", TABULA_MURIS, "Smart-seq2", "a {} from mouse brain",
          ("astrocyte", "oligodendrocyte", "oligodendrocyte precursor cell", "neuron"), is_in_training=True, real=ZEISEL),
    Asked("brain", "../dev2/multiome/snareseq_mouse_cortex_chen2019.h5mu", "10x", "a {} from mouse brain",
          ("astrocyte", "oligodendrocyte", "oligodendrocyte precursor cell", "glutamatergic neuron"), real=ZEISEL),
    Asked("brain", "../dev2/spatial/starmap_mpfc_wang2018.h5ad", "10x", "a {} from mouse brain",
          ("astrocyte", "oligodendrocyte", "glutamatergic neuron", "endothelial cell"), real=ZEISEL),
    Asked("brain", "../dev2/spatial/merfish_hypothalamus_clustsignal.h5ad", "10x", "a {} from mouse brain",
          ("astrocyte", "oligodendrocyte", "oligodendrocyte precursor cell", "glutamatergic neuron"), real=ZEISEL),
)  # fmt: skip
SORTED_BLOOD = Asked(
    "sorted blood",
    "real/pbmc_facs_zheng2017.h5ad",
    "10x",
    "a {} from human blood",
    ("B cell", "CD14-positive monocyte", "natural killer cell"),
    is_in_training=True,
)
# Test studies: words for its types, and the platform nearest to its own.
STUDIES = {
    "real/pbmc_10x3tech_symphony.h5ad": ("a {} from human blood", "10x"),
    "real/kang_lupus_muscat.h5ad": ("a {} from human blood", "10x"),
    "../dev2/real/human_pbmc_zanini2018.h5ad": ("a {} from human blood", "Smart-seq2"),
    "../dev2/real/human_pancreas_enge2017.h5ad": ("a {} from human pancreas", "Smart-seq2"),
    "real/pancreas_wang_xin.h5ad": ("a {} from human pancreas", "Smart-seq2"),
    "../dev2/real/lymphoid_ref_spacexr.h5ad": ("a {} from human lymph node", "10x"),
    "../dev2/real/mouse_fetal_liver_su2017_screclassify.h5ad": ("a fetal mouse {} from liver", "Smart-seq2"),
}
# Studies that taught the decoder, in the same way.
TAUGHT = {
    "real/pbmc_facs_zheng2017.h5ad": ("a {} from human blood", "10x"),
    "../dev2/real/pancreas_baron_human_came.h5ad": ("a {} from human pancreas", "inDrop"),
    TABULA_MURIS: ("a mouse {}", "Smart-seq2"),
    ZEISEL: ("a {} from mouse brain", "STRT"),
}
MOST_TYPES, FEWEST_CELLS = 6, 90


def main(
    data: CellFolder,
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("docs/measured/generation.json"),
    model: Annotated[Path, typer.Option(help="The model directory.")] = EMBEDDED_MODEL,
    only: Annotated[list[str] | None, typer.Option(help="Parts to measure; all by default.")] = None,
    studies: Annotated[
        list[str] | None, typer.Option(help="Parts of the names of test studies; all by default.")
    ] = None,
) -> None:
    """Every figure about generated cells."""
    loaded = load(model, generative=True)
    tree = TypeTree(Ontology.read(EMBEDDED_MODEL / ONTOLOGY_FILE))
    known = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    parts: dict[str, Callable[[], Any]] = {
        "asked": lambda: [as_asked(loaded, data, asked, tree) for asked in (*ASKED, SORTED_BLOOD)],
        "studies": lambda: {**known.get("studies", {}), **beside_studies(loaded, data, tree, studies)},
        "copies": lambda: [near_copies(loaded, data, file) for file in TAUGHT],
        "speed": lambda: speed(loaded),
        "rare": lambda: [rare_class(loaded, data, rare, number) for rare in RARE for number in (5, 20)],
    }
    for name, measure in parts.items():
        if not only or name in only:
            known[name] = measure()
            known["provenance"] = provenance(seed=0, device="cpu", weights=loaded.weights_hash)
            output.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            print(json.dumps({name: known[name]}, indent=1))


def read_cells(path: Path) -> AnnData:
    """The cells with a type of the ontology; of a multiome, their RNA."""
    if path.suffix == ".h5mu":
        from mudata import read_h5mu

        whole = read_h5mu(path)
        cells = whole.mod["rna"]
        if "cell_type" not in cells.obs:
            cells.obs = whole.obs.loc[cells.obs_names].rename(columns=lambda name: name.removeprefix("rna:"))
    else:
        cells = read_h5ad(path)
    kept = cells.obs["cell_type_ontology_term_id"].astype(str) != "unknown"
    return cells[kept.to_numpy()].copy()


def made(loaded: LoadedModel, words: str, name: str, number: int, seed: int = 0, **wish: Any) -> AnnData:
    with warnings.catch_warnings():  # what is extrapolated counts like the rest
        warnings.simplefilter("ignore")
        return generate_cells(words.format(name), number, model=loaded, seed=seed, progress=False, **wish)


def as_asked(loaded: LoadedModel, data: Path, asked: Asked, tree: TypeTree) -> dict[str, Any]:
    """Share of the cells of each type that a classifier of real cells names as asked."""
    reference = read_cells(data / asked.reference)
    if reference.obs.tissue.nunique() > 1:
        reference = reference[reference.obs.tissue.astype(str).str.contains(asked.tissue).to_numpy()].copy()
    names = _namer(reference, tree)
    shares = {}
    for name in asked.types:
        cells = made(loaded, asked.words, name, CELLS_ASKED, platform=asked.platform)
        shares[name] = round(float((names(cells) == name).mean()), 3)
    mean = round(float(np.mean(list(shares.values()))), 3)
    about = {"tissue": asked.tissue, "classifier": Path(asked.reference).stem, "in_training": asked.is_in_training}
    found = {**about, "shares": shares, "mean": mean}
    if asked.real:
        real = read_cells(data / asked.real)
        meant = meant_types(
            real.obs.cell_type.astype(str).to_numpy(object), list(asked.types), tree, finer_counts=True
        )
        called = meant_types(names(real), list(asked.types), tree, finer_counts=True)
        right = {
            name: round(float((called == name)[meant == name].mean()), 3) for name in asked.types if name in meant
        }
        found["real"] = {"study": Path(asked.real).stem, "shares": right}
    return found


def _namer(reference: AnnData, tree: TypeTree) -> Callable[[AnnData], np.ndarray]:
    """A classifier of the reference's types, on the genes that it and other cells share."""
    labels = sorted(set(reference.obs.cell_type.astype(str)))
    training, symbols = TrainingCells([reference]), upper_symbols(reference)

    def names(cells: AnnData) -> np.ndarray:
        genes = symbols[np.isin(symbols, upper_symbols(cells))]
        seen = training.reference(
            AnnData(sp.csr_matrix((1, len(genes))), var={"feature_name": genes}), labels, tree, True
        )
        expression = log_normalised(on_genes(linear_expression(cells), upper_symbols(cells), genes))
        return np.array(labels, object)[logistic_regression(seen, expression).argmax(1)]

    return names


def beside_studies(loaded: LoadedModel, data: Path, tree: TypeTree, wanted: list[str] | None) -> dict[str, Any]:
    """All metrics of the task "generation" on test studies, with platform and depth as in the study."""
    training = counted_training_cells(data)
    found = {}
    for file, (words, platform) in STUDIES.items():
        if wanted and not any(part in file for part in wanted):
            continue
        study = open_study(read_cells(data / file), "cell_type", name=Path(file).stem, tree=tree)
        depth = _depth(study.cells, loaded) if holds_counts(study.cells) else None
        systems = [
            System(MODEL, generate=_generator(loaded, words, {})),
            System(
                f"{MODEL}, platform and depth named",
                generate=_generator(loaded, words, {"platform": platform, "depth": depth}),
            ),
        ]
        try:
            found[study.name] = _table(generate_study(systems, study, training=training, tree=tree))
        except UserError as error:  # too few cells of a type to compare
            print(f"{study.name} is left out: {error}")
    return found


def _generator(loaded: LoadedModel, words: str, wish: dict[str, Any]) -> Callable[[str, int, int], AnnData]:
    return lambda name, number, seed: made(loaded, words, name, number, seed, **wish)


def _depth(cells: AnnData, loaded: LoadedModel) -> float:
    """The median total that a cell of all genes would have had, were the study's genes its only ones that count."""
    measured = loaded.processor.gene_tokenizer.measured_genes(cells)
    mass = loaded.processor.gene_tokenizer.gene_statistics["mass"]
    share = float(mass[measured].sum() / mass.sum())
    return float(np.median(np.asarray(cells.X.sum(1)).ravel()) / max(share, 1e-3))


def _table(records: list) -> dict[str, dict[str, float]]:
    """By system the values that the must-show figures need."""
    table: dict[str, dict[str, float]] = {}
    for record in records:
        control = record.conditions.get("control", "none")
        name = record.system if control == "none" else f"{record.system}, {control}"
        table[name] = {key: round(float(value), 4) for key, value in record.values.items()}
    return table


def counted_training_cells(data: Path) -> TrainingCells:
    """The counted cells of the recipe, which the decoder's factors come from."""
    recipe = read_recipe(RECIPE)
    files = [source.file for source in recipe.sources if not source.simulated and source.table is None]
    return TrainingCells([cells for cells in (read_cells(data / file) for file in files) if holds_counts(cells)])


def near_copies(loaded: LoadedModel, data: Path, file: str) -> dict[str, Any]:
    """How far made cells lie from the nearest cell of a study that taught the decoder, beside its cells from one another.

    All of them taught the decoder, so that each real cell is held against all others; on a third of a type the components
    are fitted. Below one made cells lie nearer to real ones than these do to each other; copies lie at nothing.
    """
    cells, (words, platform) = read_cells(data / file), TAUGHT[file]
    types, counts, symbols = cells.obs.cell_type.astype(str).to_numpy(), sp.csr_matrix(cells.X), upper_symbols(cells)
    depth, random = _depth(cells, loaded), np.random.default_rng(0)
    names, numbers = np.unique(types, return_counts=True)
    ratios: dict[str, list[float]] = {}
    for name in names[numbers >= FEWEST_CELLS][:MOST_TYPES]:
        ruler, *others = np.array_split(random.permutation(np.flatnonzero(types == name)), 3)
        taught = np.concatenate(others)
        text = made(loaded, words, name, len(ruler), platform=platform, depth=depth)
        genes = symbols[np.isin(symbols, upper_symbols(text))]
        floor = NegativeBinomialGenerator(counts[taught], types[taught]).sample(name, len(ruler), 0)
        shown = [(counts[rows], symbols) for rows in (ruler, taught)]
        shown += [(linear_expression(text), upper_symbols(text)), (sp.csr_matrix(floor, dtype=np.float32), symbols)]
        logs = [log_normalised(on_genes(values, own, genes)) for values, own in shown]
        project = principal_space(logs[0])
        _, real, *drawn = (project(one) for one in logs)
        from_another = np.median(np.sort(cdist(real, real), axis=1)[:, 1])
        ratios[str(name)] = [round(float(np.median(cdist(one, real).min(1)) / from_another), 3) for one in drawn]
    mean = np.mean(list(ratios.values()), axis=0).round(3).tolist()
    return {"study": Path(file).stem, "systems": [MODEL, "negative binomial"], "mean": mean, "ratios": ratios}


def speed(loaded: LoadedModel, number: int = 1000) -> dict[str, float]:
    """Seconds of processor time for cells, their quality summary included."""
    started, clock = time.process_time(), time.perf_counter()
    made(loaded, "a {} from human blood", "B cell", number)
    return {
        "cells": number,
        "processor_seconds": round(time.process_time() - started, 2),
        "wall_seconds": round(time.perf_counter() - clock, 2),
    }


def rare_class(loaded: LoadedModel, data: Path, rare: str, number: int, seeds: int = 5) -> dict[str, Any]:
    """F1 of a rare class of blood, and balanced accuracy, with its few training cells padded to the size of the others.

    Of each type 100 cells train a logistic regression, of the rare one so few; 100 others of each are tested.
    """
    cells = read_cells(data / RARE_STUDY)
    counts, types = sp.csr_matrix(cells.X), cells.obs.cell_type.astype(str).to_numpy()
    depth, genes = _depth(cells, loaded), upper_symbols(cells)
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        train, test = _rare_split(types, rare, number, seed)
        few, missing = train[types[train] == rare], CELLS_OF_TYPE - number
        again = np.random.default_rng(seed).choice(few, missing)
        text = made(loaded, "a {} from human blood", rare, missing, seed, depth=depth)
        pads = {
            "nothing": counts[:0],
            "oversampling": counts[again],
            "negative binomial": NegativeBinomialGenerator(counts[few], types[few]).sample(rare, missing, seed),
            "Gaussian copula": GaussianCopulaGenerator(counts[few], types[few]).sample(rare, missing, seed),
            MODEL: on_genes(linear_expression(text), upper_symbols(text), genes),
        }
        for name, pad in pads.items():
            shown = sp.vstack([counts[train], sp.csr_matrix(pad)]).tocsr()
            meant = np.concatenate([types[train], np.repeat(rare, pad.shape[0])])
            scores.setdefault(name, []).append(_scores_of_rare(shown, meant, counts[test], types[test], rare))
    return {
        "study": Path(RARE_STUDY).stem,
        "rare": rare,
        "cells": number,
        "seeds": seeds,
        "f1": {name: _mean_and_spread([one[0] for one in found]) for name, found in scores.items()},
        "balanced_accuracy": {name: _mean_and_spread([one[1] for one in found]) for name, found in scores.items()},
    }


def _rare_split(types: np.ndarray, rare: str, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random, train, test = np.random.default_rng(seed), [], []
    for name in np.unique(types):
        rows = random.permutation(np.flatnonzero(types == name))
        train.append(rows[: number if name == rare else CELLS_OF_TYPE])
        test.append(rows[CELLS_OF_TYPE : 2 * CELLS_OF_TYPE])
    return np.concatenate(train), np.concatenate(test)


def _scores_of_rare(train, train_types, test, test_types, rare: str) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, f1_score

    shown, asked = log_normalised(train), log_normalised(test)
    genes = most_variable(shown, NUM_GENES_OF_RARE)
    classifier = LogisticRegression(C=0.02, max_iter=200).fit(shown[:, genes].toarray(), train_types)
    called = classifier.predict(asked[:, genes].toarray())
    f1 = f1_score(test_types == rare, called == rare, zero_division=0)
    return float(f1), float(balanced_accuracy_score(test_types, called))


def _mean_and_spread(values: list[float]) -> list[float]:
    return [round(float(np.mean(values)), 3), round(float(np.std(values, ddof=1)), 3)]


if __name__ == "__main__":
    typer.run(main)
