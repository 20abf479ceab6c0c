"""Write `type_profiles.safetensors.gz` of the embedded model: how the types of its training express their genes.

    python -m scmmgpt.training.mini.type_profiles MODEL_DIR

The profiles are those that the model in the directory was trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.loading import load
from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneNames
from scmmgpt.processing.type_profiles_scmmgpt import TypeProfiles
from scmmgpt.training.mini.cell_simulator import TARGET_SUM
from scmmgpt.training.mini.profiles import WHOLE_TRANSCRIPTOME, Profiles
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, RecipeFile, read_recipe
from scmmgpt.training.mini.train import corpus_profiles

# As many as 30 MB have room for, those that tell most.
NUM_GENES = 8_000


def type_profiles(profiles: Profiles, num_genes: int = NUM_GENES) -> TypeProfiles:
    """Each type's mean log expression over the profiles that measured a gene, less the mean of all types."""
    whole = profiles.measured.sum(1) >= WHOLE_TRANSCRIPTOME
    measured, terms = profiles.measured[whole], profiles.table.term_id.to_numpy()[whole]
    values = np.log1p(TARGET_SUM * profiles.share[whole]) * measured
    term_ids = np.unique(terms)
    means = np.array([values[terms == one].sum(0) / np.maximum(measured[terms == one].sum(0), 1) for one in term_ids])
    differences = means - means.mean(0)
    telling = np.sort(np.argsort(-np.square(differences).sum(0), kind="stable")[:num_genes])
    return TypeProfiles(tuple(term_ids), telling, differences[:, telling])


def main(model: Path, data: CellFolder, config: RecipeFile = RECIPE) -> None:
    """Write the type profiles of the model in a directory."""
    recipe, loaded = read_recipe(config), load(model)
    profiles, genes, _ = corpus_profiles(
        recipe, data, GeneNames.read(EMBEDDED_MODEL / GENE_NAMES_FILE), loaded.ontology
    )
    if genes != loaded.processor.gene_tokenizer.genes:
        raise typer.BadParameter(f"{model} knows other genes than the sources of {config}")
    if (loaded.training_summary or {})["development"]:
        profiles = profiles.without(recipe.development_studies)
    found = type_profiles(profiles)
    found.write(model)
    print(f"{len(found.term_ids)} types, {len(found.gene_rows)} genes")


if __name__ == "__main__":
    typer.run(main)
