"""Write `type_profiles.safetensors.gz` of the embedded model: how types express their genes, and their markers.

    pip download --no-deps cellconsensus==1.2.0
    python -m scmmgpt.training.mini.type_profiles MODEL_DIR --markers cellconsensus-1.2.0-py3-none-any.whl

The profiles are those of the recipe's sources; for a model trained with --development without the studies that it left
out. The types with profiles become types that the model knows, as if its towers had been trained on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.loading import load
from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneIdentifier, GeneNames
from scmmgpt.processing.type_profiles_scmmgpt import TypeProfiles
from scmmgpt.training.mini.cell_simulator import TARGET_SUM
from scmmgpt.training.mini.consensus_markers import read_consensus_markers
from scmmgpt.training.mini.profiles import WHOLE_TRANSCRIPTOME, Profiles
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, RecipeFile, read_recipe
from scmmgpt.training.mini.train import sources_profiles

# Those that tell most.
NUM_GENES = 8_000
# Variance between studies of one type, of log values, below which a direction counts in full.
STEADY_VARIANCE = 1.0
# Length of each type's differences: the largest of them stay within what a byte of steps can hold.
LENGTH = 40.0


def type_profiles(
    profiles: Profiles, markers: Mapping[str, np.ndarray] | None = None, num_genes: int = NUM_GENES
) -> TypeProfiles:
    """Each type's differences from the mean of all types, in equal parts from its profiles and from its markers.

    A type that has only one of the two has that alone.
    """
    term_ids, differences = steady_differences(profiles)
    differences = _of_length_one(differences)
    if markers:
        mean = np.mean([markers[term_id] for term_id in term_ids if term_id in markers], axis=0)
        of_type = {term_id: _of_length_one(vector - mean) for term_id, vector in markers.items()}
        both = [row + of_type.get(term_id, 0) for term_id, row in zip(term_ids, differences, strict=True)]
        only = sorted(set(of_type) - set(term_ids))
        term_ids, differences = [*term_ids, *only], np.array([*both, *(of_type[term_id] for term_id in only)])
    telling = np.sort(np.argsort(-np.square(differences).sum(0), kind="stable")[:num_genes])
    return TypeProfiles(tuple(term_ids), telling, LENGTH * _of_length_one(differences[:, telling]))


def steady_differences(profiles: Profiles) -> tuple[list[str], np.ndarray]:
    """Types, and each one's mean log expression less that of all types, without what differs between its studies.

    Directions in which profiles of one type differ (platform, tissue, ambient RNA) shrink by their variance, as in a
    discriminant analysis: types count alike, and a gene that a study did not measure says nothing.
    """
    whole = profiles.measured.sum(1) >= WHOLE_TRANSCRIPTOME
    measured = profiles.measured[whole]
    values = np.log1p(TARGET_SUM * profiles.share[whole]) * measured
    types, kind, number = np.unique(profiles.table.term_id.to_numpy()[whole], return_inverse=True, return_counts=True)
    means = np.array([values[kind == i].sum(0) / np.maximum(measured[kind == i].sum(0), 1) for i in range(len(types))])
    differences = means - means.mean(0)
    repeated = number[kind] > 1
    weights = repeated / number[kind]
    scatter = (values - means[kind]) * measured * np.sqrt(weights / max(weights.sum(), 1))[:, None]
    _, sizes, directions = np.linalg.svd(scatter[repeated].astype(np.float32), full_matrices=False)
    shrunk = sizes**2 / (sizes**2 + STEADY_VARIANCE)
    return list(types), differences - ((differences @ directions.T) * shrunk) @ directions


def _of_length_one(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


def main(
    model: Path,
    data: CellFolder,
    config: RecipeFile = RECIPE,
    markers: Annotated[Path | None, typer.Option(help="The wheel of cellconsensus; without it no markers.")] = None,
) -> None:
    """Write the type profiles of the model in a directory."""
    recipe, loaded = read_recipe(config), load(model)
    tokenizer = loaded.processor.gene_tokenizer
    names = GeneNames.read(EMBEDDED_MODEL / GENE_NAMES_FILE)
    identifier = GeneIdentifier(tokenizer.genes, tokenizer.ensembl_ids, names)
    profiles = sources_profiles(recipe, data, identifier, len(tokenizer.genes), loaded.ontology)
    if (loaded.training_summary or {})["development"]:
        profiles = profiles.without(recipe.development_studies)
    known = read_consensus_markers(markers, tokenizer.genes) if markers else {}
    found = type_profiles(profiles, {term: known[term] for term in known if term in loaded.ontology.terms})
    found.write(model)
    path = model / "config.json"
    content = json.loads(path.read_text())
    summary = content["training_summary"]
    summary["type_profiles"] = {
        "num_profiles": len(profiles.table),
        "num_types": len(found.term_ids),
        "studies": sorted(profiles.table.study.unique()),
        "sources_beside": {
            source.family: source.licence for source in recipe.sources if source.file not in summary["sources"]
        },
        "markers": " ".join(markers.name.split("-")[:2]) if markers else None,
    }
    summary.setdefault("cell_types_of_weights", summary["cell_types"])
    summary["cell_types"] = sorted({*summary["cell_types"], *profiles.table.term_id})
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    print(f"{len(found.term_ids)} types, {len(found.gene_rows)} genes")


if __name__ == "__main__":
    typer.run(main)
