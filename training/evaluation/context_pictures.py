"""The pictures of the pages about space, perturbations and species, from measured figures and one tissue.

python -m scmmgpt.training.evaluation.context_pictures --tissue starmap.h5ad --measured docs/measured --output docs/_static
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from scmmgpt.niche_finding import niches

if TYPE_CHECKING:
    from anndata import AnnData

_GREY, _BLUE, _ORANGE, _GREEN = "#9a9ea4", "#2f6f9f", "#d9822b", "#3f8f5f"


def draw_tissue(adata: AnnData, section_key: str, path: Path) -> None:
    """One section three times: by the types and layers of its authors, and by its niches."""
    keys: dict[str, Any] = {"library_key": section_key, "cell_type_key": "cell_type_original"}
    found = niches(adata, num_niches=4, progress=False, **keys)
    own = found[found.obs[section_key] == sorted(found.obs[section_key].unique())[0]].copy()
    figure, axes = _figure(1, 3, 15, 4.4)
    own.obs["layer"] = "layer " + own.obs["spatial_domain"].astype(str)
    panels = {
        "cell_type": "cell type, by the authors",
        "layer": "layer, by the authors",
        "scmmgpt_niche": "niche, not trained",
    }
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        names = own.obs[column].astype(str)
        for number, name in enumerate(names.value_counts().index):
            place = own.obsm["spatial"][(names == name).to_numpy()]
            axis.scatter(*place.T, s=9, color=_colour(number), label=name, linewidths=0)
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_aspect("equal")
        axis.axis("off")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=8, frameon=False, markerscale=2)
    _save(figure, path)


def draw_perturbation(report: dict[str, Any], path: Path) -> None:
    """Responses by type, targets of knockdowns, and predictions for types left out."""
    figure, axes = _figure(1, 3, 14, 4)
    types = report["ranking"]["types"][::-1]
    axes[0].barh([_short(row["cell_type"]) for row in types], [row["energy_distance"] for row in types], color=_BLUE)
    axes[0].set_title("response to interferon, by type", loc="left", fontsize=11)
    axes[0].set_xlabel("energy distance")
    targets = sorted(report["knockdowns"], key=lambda row: -row["log2_fold_change"])
    axes[1].barh([row["perturbation"] for row in targets], [row["log2_fold_change"] for row in targets], color=_GREEN)
    axes[1].set_title("target of each knockdown", loc="left", fontsize=11)
    axes[1].set_xlabel("log2 fold change")
    left_out = report["left_out_types"]
    predictors = list(left_out[0]["predictors"])
    for number, predictor in enumerate(predictors):
        height = [row["predictors"][predictor]["rmse"] for row in left_out]
        place = np.arange(len(left_out)) + 0.2 * (number - 1.5)
        colour = (_GREY, _BLUE, _GREEN, _ORANGE)[number]
        axes[2].bar(place, height, 0.19, color=colour, label=predictor)
    axes[2].set_xticks(range(len(left_out)), [_short(row["cell_type"]) for row in left_out], rotation=20, ha="right")
    axes[2].set_title("types left out: error of the prediction", loc="left", fontsize=11)
    axes[2].set_ylabel("RMSE of log expression")
    axes[2].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, 1))
    axes[2].set_ylim(0, 0.75)
    _save(figure, path)


def draw_species(report: dict[str, Any], path: Path) -> None:
    """Accuracy of renamed cells against the share of counts that orthologs cover."""
    figure, axes = _figure(1, 1, 7.5, 4.4)
    axis = axes[0]
    studies = list(dict.fromkeys(row["study"] for row in report["rows"]))
    for number, study in enumerate(studies):
        rows = [row for row in report["rows"] if row["study"] == study]
        places = [row["share_of_counts"] for row in rows], [row["accuracy"] for row in rows]
        axis.scatter(*places, s=28, color=_colour(number), label=study)
    mean: dict[str, list[tuple[float, float]]] = {}
    for row in report["rows"]:
        mean.setdefault(row["species"], []).append((row["share_of_counts"], row["accuracy"]))
    for species in ("human", "mouse", "chicken", "zebrafish", "fruit fly", "roundworm"):
        x, y = np.mean(mean[species], axis=0)
        axis.annotate(
            species,
            (x, y),
            fontsize=8,
            xytext=(0, -30 if species == "fruit fly" else -18),
            textcoords="offset points",
            ha="center",
        )
    axis.set_xlabel("share of the counts that orthologs cover")
    axis.set_ylabel("accuracy, labels of the study")
    axis.set_ylim(0, 1)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    _save(figure, path)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, np.ndarray]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False)
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes.ravel()


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"](number % 10)


def _short(name: str) -> str:
    return (
        name.replace("-positive", "+").replace("-low", " low").replace(", alpha-beta", "").replace("monocyte", "mono")
    )


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(
    tissue: Annotated[Path, typer.Option(help="Cells with coordinates, donor_id and cell_type.")],
    measured: Annotated[Path, typer.Option(help="The folder with the measured figures.")],
    output: Annotated[Path, typer.Option(help="The folder for the pictures.")],
) -> None:
    """Draw all three."""
    import anndata

    for name, draw in (("perturbation", draw_perturbation), ("renamed_species", draw_species)):
        path = measured / f"{name}.json"
        if path.exists():
            draw(json.loads(path.read_text(encoding="utf-8")), output / f"{name.removeprefix('renamed_')}.png")
    draw_tissue(anndata.read_h5ad(tissue), "donor_id", output / "niches.png")


if __name__ == "__main__":
    typer.run(main)
