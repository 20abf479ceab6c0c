"""`compare` on screens whose answer is known, and predictions of a response next to what usually wins.

    python -m scmmgpt.training.evaluation.perturbation --screen tapseq.h5ad --stimulated kang.h5ad --output FILE.json

1. Knockdowns: is the target gene among those that change, and down? Where does it stand among those that go down?
2. Ranking: types by energy distance against the paired pseudobulk response of the donors.
3. Search: cells of one donor that look perturbed by what another donor's cells show.
4. Left-out types: the response of a whole type, predicted from text, as no change, or from the other types.
5. Patients (`--patients FILE`, added to what was measured): a drug on tissue of several, each left out in turn.

The stimulated study names condition and donor in one column, "ctrl101" and "stim101", as muscat's copy does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from scipy import sparse, stats

from scmmgpt.api import generate_cells
from scmmgpt.comparison import compare, read_embeds_and_expression
from scmmgpt.loading import LoadedModel, load
from scmmgpt.processing.prompting_scmmgpt import query_text
from scmmgpt.response import donor_differences, gene_changes
from scmmgpt.verb import Execution, Verb

from .results import provenance

if TYPE_CHECKING:
    from anndata import AnnData

CONTROL, TREATED = "ctrl", "stim"
UNTREATED = "control"  # of screens and of drugs
WORDS = "stimulated with interferon beta"
MOST_CHANGED = 100
_GENERATED = 200


def knockdowns(screen: AnnData, loaded: LoadedModel) -> list[dict[str, Any]]:
    """For each perturbation what became of its target: fold change, rate, and place among the genes that go down."""
    target_of = dict(zip(screen.obs.perturbation.astype(str), screen.obs.target_gene.astype(str), strict=True))
    found = compare(screen, groupby="perturbation", control=UNTREATED, model=loaded, progress=False)
    rows = []
    for row in found.table.itertuples():
        genes = (
            found.genes[found.genes.group == row.group].sort_values("p_value", kind="stable").reset_index(drop=True)
        )
        down = genes[genes.log2_fold_change < 0].reset_index(drop=True)
        target = down[down.gene == target_of[row.group]]
        one = target.iloc[0] if len(target) else None
        rows.append(
            {
                "perturbation": row.group,
                "target": target_of[row.group],
                "is_down": one is not None,
                "log2_fold_change": None if one is None else round(float(one.log2_fold_change), 2),
                "fdr": None if one is None else float(f"{one.fdr:.2g}"),
                "place_among_down": None if one is None else int(target.index[0]) + 1,
                "energy_distance": round(float(row.energy_distance), 4),
                "e_test_fdr": round(float(row.fdr), 4),
            }
        )
    return rows


def split_donors(adata: AnnData) -> AnnData:
    """The study with condition and donor in two columns."""
    adata = adata.copy()
    adata.obs["condition"] = adata.obs.donor_id.astype(str).str[: len(CONTROL)]
    adata.obs["donor"] = adata.obs.donor_id.astype(str).str[len(CONTROL) :]
    return adata


def ranking(adata: AnnData, expression: sparse.csr_array, loaded: LoadedModel) -> dict[str, Any]:
    """Types by energy distance, and by what paired pseudobulk profiles of the donors say."""
    found = compare(
        adata, groupby="condition", control=CONTROL, donor_key="donor", model=loaded, progress=False
    ).table.set_index("cell_type")
    types, is_treated = adata.obs.cell_type.astype(str).to_numpy(), (adata.obs.condition == TREATED).to_numpy()
    donors, rows = adata.obs.donor.to_numpy(), []
    for name, row in found.iterrows():
        own = types == name
        dense, treated = expression[own].toarray(), is_treated[own]
        pairs = donor_differences(dense[treated], dense[~treated], donors[own][treated], donors[own][~treated])
        agreeing = (np.sign(pairs) == np.sign(pairs[0])).all(axis=0) & (np.abs(pairs) > 0.5).all(axis=0)
        rows.append(
            {
                "cell_type": name,
                "energy_distance": round(float(row.energy_distance), 3),
                "p_value": float(row.p_value),
                "genes_changed": int(row.genes_changed),
                "pseudobulk_genes": int((agreeing & (np.abs(pairs.mean(axis=0)) > 1)).sum()),
            }
        )
    figures = {name: [row[name] for row in rows] for name in ("energy_distance", "genes_changed", "pseudobulk_genes")}
    rho = {name: round(float(stats.spearmanr(figures[name], figures["pseudobulk_genes"])[0]), 2) for name in figures}
    return {"types": rows, "spearman_with_pseudobulk": rho, "donors": len(set(donors))}


def search_across_donors(adata: AnnData, loaded: LoadedModel) -> list[dict[str, Any]]:
    """AUC of the score by which `Comparison.search` ranks the cells of a donor that was not compared."""
    rows = []
    for donor in sorted(set(adata.obs.donor)):
        other = adata[adata.obs.donor != donor]
        found = compare(other, groupby="condition", control=CONTROL, model=loaded, progress=False)
        cells = adata[adata.obs.donor == donor].copy()
        hits = found.search(cells, top=cells.n_obs)
        is_treated = (hits.condition == TREATED).to_numpy()
        inside = [auc(hits.score[rows], is_treated[rows]) for rows in _rows_of(hits.cell_type.astype(str).to_numpy())]
        first = float(is_treated[:20].mean())
        rows.append(
            {
                "donor": donor,
                "auc": round(auc(hits.score.to_numpy(), is_treated), 3),
                "auc_within_types": round(float(np.mean(inside)), 3),
                "perturbed_of_first_20": first,
            }
        )
    return rows


def _rows_of(names: np.ndarray) -> list[np.ndarray]:
    return [names == name for name in sorted(set(names))]


def auc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are in the right order."""
    ranks = stats.rankdata(scores)
    number = is_positive.sum()
    return float((ranks[is_positive].sum() - number * (number + 1) / 2) / (number * (~is_positive).sum()))


def left_out_types(
    types: np.ndarray,
    is_treated: np.ndarray,
    embeds: np.ndarray,
    expression: sparse.csr_array,
    from_text: Callable[[str], np.ndarray] | None = None,
    what: str = "types",
) -> list[dict[str, Any]]:
    """For each type (or patient) left out: its response as each predictor has it, beside the measured one."""
    names = sorted(set(types))
    mean = {
        (name, side): _mean(expression[(types == name) & (is_treated == side)]) for name in names for side in (0, 1)
    }
    change = {name: mean[name, 1] - mean[name, 0] for name in names}
    centre = {name: embeds[(types == name) & ~is_treated].mean(axis=0) for name in names}
    rows = []
    for name in names:
        others = [other for other in names if other != name]
        nearness = np.array([-float(np.linalg.norm(centre[name] - centre[other])) for other in others])
        weights = np.exp(nearness / 0.1) / np.exp(nearness / 0.1).sum()
        predicted = {
            "no change": np.zeros_like(change[name]),
            f"mean of other {what}": np.mean([change[other] for other in others], axis=0),
            f"other {what} by nearness in the embedding": weights @ np.array([change[other] for other in others]),
        }
        if from_text is not None:
            predicted["text to cell"] = from_text(name)
        genes = gene_changes(expression[types == name], is_treated[types == name]).columns
        scores = {predictor: _scores(values[genes], change[name][genes]) for predictor, values in predicted.items()}
        best = min(scores, key=lambda predictor: scores[predictor]["rmse"])
        rows.append({"cell_type": name, "predictors": scores, "lowest_rmse": best})
    return rows


def patients(adata: AnnData, loaded: LoadedModel) -> dict[str, Any]:
    """A drug on cells of several patients: the response of each, and what the others say of it when it is left out."""
    how: dict[str, Any] = {"groupby": "perturbation", "control": UNTREATED, "cell_type_key": "donor_id"}
    found = compare(adata, **how, model=loaded, progress=False).table
    columns = ["cell_type", "energy_distance", "p_value", "genes_changed", "up", "down"]
    names, is_treated = adata.obs.donor_id.astype(str).to_numpy(), (adata.obs.perturbation != UNTREATED).to_numpy()
    verb = Verb.begin("compare", adata, loaded, Execution(progress=False))
    embeds, expression = read_embeds_and_expression(verb, np.arange(adata.n_obs))
    aucs = {}
    for name in sorted(set(names)):
        of_others = compare(adata[names != name].copy(), **how, model=loaded, progress=False)
        own = names == name
        aucs[name] = round(auc(of_others.scores(embeds[own]), is_treated[own]), 3)
    return {
        "responses": found[columns].round(4).to_dict("records"),
        "auc_of_left_out": aucs,
        "left_out": left_out_types(names, is_treated, embeds, expression, what="patients"),
    }


def _mean(expression: sparse.csr_array) -> np.ndarray:
    return np.asarray(expression.mean(axis=0)).ravel()


def _from_text(name: str, loaded: LoadedModel) -> np.ndarray:
    """The difference of cells generated from the text with and without the perturbation."""
    generative = load(generative=True)
    sides = [
        generate_cells(text, _GENERATED, model=generative, progress=False)
        for text in (f"{query_text(name)} {WORDS}", query_text(name))
    ]
    verbs = [Verb.begin("compare", cells, loaded, Execution(progress=False)) for cells in sides]
    with_words, without = (read_embeds_and_expression(verb, np.arange(_GENERATED))[1] for verb in verbs)
    return _mean(with_words) - _mean(without)


def _scores(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """RMSE over the tested genes, correlation of the changes, share of right directions among those that change most."""
    most = np.argsort(-np.abs(measured))[:MOST_CHANGED]
    is_flat = np.ptp(predicted) == 0
    return {
        "rmse": round(float(np.sqrt(((predicted - measured) ** 2).mean())), 4),
        "correlation": 0.0 if is_flat else round(float(np.corrcoef(predicted, measured)[0, 1]), 3),
        "right_direction": round(float((np.sign(predicted[most]) == np.sign(measured[most])).mean()), 3),
    }


def evaluate(screen: AnnData, stimulated: AnnData) -> dict[str, Any]:
    """All four parts."""
    loaded = load()
    adata = split_donors(stimulated)
    verb = Verb.begin("compare", adata, loaded, Execution(progress=False))
    embeds, expression = read_embeds_and_expression(verb, np.arange(adata.n_obs))
    types, is_treated = adata.obs.cell_type.astype(str).to_numpy(), (adata.obs.condition == TREATED).to_numpy()
    return {
        "knockdowns": knockdowns(screen, loaded),
        "ranking": ranking(adata, expression, loaded),
        "search": search_across_donors(adata, loaded),
        "left_out_types": left_out_types(types, is_treated, embeds, expression, lambda name: _from_text(name, loaded)),
    }


def main(
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    screen: Annotated[Path | None, typer.Option(help="Cells with the columns perturbation and target_gene.")] = None,
    stimulated: Annotated[
        Path | None, typer.Option(help="Cells with donor_id such as stim101, and cell_type.")
    ] = None,
    drug: Annotated[
        Path | None, typer.Option("--patients", help="Cells with perturbation and donor_id, added to OUTPUT.")
    ] = None,
) -> None:
    """Write the figures of all parts whose files are named."""
    import anndata

    report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    run = provenance(seed=0, device=str(load().device))
    if screen is not None and stimulated is not None:
        report |= {"screen": screen.stem, "stimulated": stimulated.stem, "run": run}
        report |= evaluate(anndata.read_h5ad(screen), anndata.read_h5ad(stimulated))
    if drug is not None:
        report["patients"] = {"study": drug.stem, "run": run, **patients(anndata.read_h5ad(drug), load())}
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
