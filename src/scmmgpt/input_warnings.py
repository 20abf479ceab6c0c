"""Warnings about input that may spoil results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .cell_variation import Variation
from .processing.features_scmmgpt import PANEL_BY_NAMES
from .processing.species_scmmgpt import HUMAN, LEAST_REACH, MILLION_YEARS, REACH_OF_CALIBRATION, trust

if TYPE_CHECKING:
    import pandas as pd

_FEW_COVERED = 0.5
# Standard deviations by which the genes of the calls must agree with types better than by chance. Real studies had 4 and
# more, shuffled genes 1 and less.
LEAST_SUPPORT = 2.0
LEAST_PROFILE_REACH = 0.3
FEWEST_MOUSE_NAMES = 10
# Of implausible cells in a study: real ones had under a fortieth, lines of cancer cells four in ten.
MOST_IMPLAUSIBLE = 0.5


def input_warnings(account: Mapping[str, Any]) -> list[str]:
    """Warnings about the matrix and the genes that were read, each with a remedy."""
    if account.get("matrix_state") == "empty":
        return [f"{account.get('matrix')} holds nothing but zeros: put the counts into X or into layers['counts']."]
    found = []
    if account.get("share_of_counts", 1) < _FEW_COVERED:
        found.append(
            f"Only {account['share_of_counts']:.0%} of the counts are in genes of the model's vocabulary: check the "
            "species, and that var_names are gene symbols or Ensembl ids."
        )
    found += _species_warnings(account)
    if account.get("empty_cells"):
        found.append(
            f"Cells that express no gene of the model's vocabulary: {account['empty_cells']}. Nothing can be said of them."
        )
    if account.get("matrix_state") != "counts" and not account.get("cells_turned_back_into_counts"):
        found.append(
            f"No raw counts were found; {account.get('matrix')} ({account.get('matrix_detail')}) is used. Put raw "
            "counts into layers['counts'] if you have them."
        )
    if account.get("duplicate_cell_names"):
        found.append(
            f"{account['duplicate_cell_names']} cell names are repeated; adata.obs_names_make_unique() helps."
        )
    found += [
        f"{one['number']} rows are taken for antibodies by names such as {one['names'][0]}, and not read; say what each "
        "row is in var['feature_types'] to be sure."
        for one in (account.get("set_aside") or {}).values()
        if one["why"] == PANEL_BY_NAMES
    ]
    return found


def organism_warnings(obs: pd.DataFrame) -> list[str]:
    """What `obs` says of several species in one file, where their genes already go by common names."""
    for column in ("organism", "species", "organism_ontology_term_id"):
        names = sorted(obs[column].dropna().astype(str).unique()) if column in obs else []
        if len(names) > 1:
            return [
                f"obs[{column!r}] names several species ({', '.join(names[:5])}), and all cells are read by the same genes: "
                "reach and confidence are those of the species that the gene names say. Split the file to have each its own."
            ]
    return []


def _species_warnings(account: Mapping[str, Any]) -> list[str]:
    """What the species of the genes means for the results."""
    found = []
    species, reach = account.get("species"), account.get("reach", 1.0)
    far = f"The cells are of {species}, {MILLION_YEARS.get(str(species), 0)} million years from human"
    figures = f"orthologs cover {account.get('share_of_counts', 1):.0%} of the counts: reach {reach:.2f}"
    if reach < LEAST_REACH:
        found.append(
            f"{far}, and {figures}, under the {LEAST_REACH} that a name needs: every cell is called unknown. "
            "min_confidence=0 names cells all the same; embeddings compare cells of one file with each other."
        )
    elif species != HUMAN and reach < REACH_OF_CALIBRATION:
        found.append(f"{far}, and {figures}; confidences are multiplied by {trust(reach):.2f} for that.")
    if several := account.get("several_species"):
        genes = ", ".join(f"{name} ({number} genes)" for name, number in several.items())
        found.append(
            f"The file holds genes of several species: {genes}. Each gene is read by its own, a cell by all of its genes; "
            "split the file by species, or keep the genes of one, before you trust cells that mix them."
        )
    if (number := account.get("mouse_names_in_capitals", 0)) >= FEWEST_MOUSE_NAMES:
        found.append(
            f"{number} gene names are a mouse's in capitals (0610005C13RIK, GM1992), but the cells are read as human: write the "
            "symbols as a mouse's (Cd3e), or give Ensembl ids."
        )
    others = {name: share for name, share in (account.get("alternative_species") or {}).items() if share >= 0.99}
    if others and species != HUMAN:
        found.append(
            f"{max(others.values()):.0%} of the gene names are also those of {', '.join(others)}; they are read as "
            f"{species}, which has most of them. Ensembl ids would tell for sure."
        )
    return found


def cell_warnings(num_implausible: int, num_cells: int, variation: Variation, account: Mapping[str, Any]) -> list[str]:
    """Warnings about the values of the cells, each with a remedy."""
    found = []
    if num_implausible:
        found.append(
            f"{num_implausible} of {num_cells} cells are implausible: genes that are usually high are not high in "
            "them. Likely causes: noise, or counts under the wrong gene names. Check that gene names and columns match."
        )
    if variation.is_noise(account):
        found.append(
            "The cells vary hardly more than random counts from one profile, as in empty droplets or a shallowly "
            "sequenced pure population. Filter out empty droplets before you trust the labels."
        )
    return found


def why_no_study(
    share_implausible: float, support: float, profile_reach: float, variation: Variation, account: Mapping[str, Any]
) -> str:
    """Why all cells of a study together are nothing that can be called; "" where they can.

    `support` is what `support_of_genes` found; of few genes (`profile_reach`) it says nothing.
    """
    if variation.is_noise(account):
        return "the cells vary hardly more than random counts"
    if support < LEAST_SUPPORT and profile_reach >= LEAST_PROFILE_REACH:
        return "their genes agree with the types hardly better than under shuffled gene names"
    if share_implausible > MOST_IMPLAUSIBLE:
        return "in most of them the genes that are usually high are not"
    return ""
