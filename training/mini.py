"""Train the embedded model, scmmgpt-mini, from profiles to a model directory.

    python -m scmmgpt.training.mini --config training/recipes/mini.yaml [--development] [--steps N] [--output DIR]

`SCMMGPT_DATA` names the folder with the cells, which has the folder `genes` with the public gene lists beside it. `--development` leaves the development studies out and measures on
them; without it everything trains and the result is what ships. `--steps` cuts every part short, to look at the loss.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
from pathlib import Path

import torch

from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForPreTraining
from scmmgpt.ontology import Ontology
from scmmgpt.processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor
from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneIdentifier, GeneNames
from scmmgpt.training.cell_simulator import CellSimulator
from scmmgpt.training.gene_tables import vocabulary_genes
from scmmgpt.training.mini_recipe import MiniRecipe, read_recipe
from scmmgpt.training.mini_stage1 import train_stage1
from scmmgpt.training.mini_texts import TypeTexts, marker_genes, tokenizer_corpus, train_tokenizer
from scmmgpt.training.profiles import Profiles, read_profiles

EMBEDDED = Path("hub_cards/scmmgpt-mini")
ONTOLOGY_FILE = "cell_ontology.json.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("training/recipes/mini.yaml"))
    parser.add_argument("--output", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--development", action="store_true", help="leave the development studies out")
    parser.add_argument("--steps", type=int, default=None, help="cut every part of the training to so many steps")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.config).cut_to(arguments.steps)
    data = Path(os.environ.get("SCMMGPT_DATA") or parser.error("set SCMMGPT_DATA to the folder with the cells"))
    torch.manual_seed(recipe.seed)

    ontology = Ontology.read(EMBEDDED / ONTOLOGY_FILE)
    names = GeneNames.read(EMBEDDED / GENE_NAMES_FILE)
    profiles, genes, ensembl_ids = corpus_profiles(recipe, data, names)
    masses, medians = profiles.masses, profiles.medians
    if arguments.development:
        profiles = profiles.without(recipe.development_studies)
    processor = build_processor(recipe, genes, ensembl_ids, medians, masses, names, ontology)
    model = ScMMGPTForPreTraining(build_config(recipe, processor))

    simulator = CellSimulator(
        profiles, processor.feature_extractor.gene_statistics["median"], masses, recipe.simulator
    )
    texts = TypeTexts(ontology, marker_genes(profiles, genes))
    history = train_stage1(model, recipe, simulator, texts, processor.tokenizer)

    model.config.training_summary = summary(recipe, profiles, history, arguments.development)
    save(model, processor, arguments.output)


def corpus_profiles(recipe: MiniRecipe, data: Path, names: GeneNames) -> tuple[Profiles, list[str], list[str]]:
    """The profiles of all sources over the genes that any of them expresses."""
    known = [(gene.symbol, gene.ensembl_id) for gene in vocabulary_genes(data.parent / "genes")]
    files = [data / source.file for source in recipe.sources]
    identifier = GeneIdentifier(*map(list, zip(*known, strict=True)), names)
    profiles = read_profiles(files, identifier, len(known))
    seen = profiles.masses > 0
    profiles = Profiles(profiles.table, profiles.share[:, seen], profiles.measured[:, seen], profiles.medians[seen])
    kept = [gene for gene, is_seen in zip(known, seen, strict=True) if is_seen]
    return profiles, [symbol for symbol, _ in kept], [gene_id for _, gene_id in kept]


def build_processor(recipe, genes, ensembl_ids, medians, masses, names, ontology) -> ScMMGPTProcessor:
    """The processor of the model: all genes of a cell, ordered by how far they lie above their median."""
    gene_tokenizer = ScMMGPTGeneTokenizer(
        genes,
        ensembl_ids,
        medians,
        masses,
        names,
        value_mode="log1p",
        max_genes=None,
        gene_order="median_ratio",
        panel_scaling=True,
    )
    tokenizer = train_tokenizer(
        tokenizer_corpus(ontology, genes),
        recipe.tokenizer_size,
        recipe.model["qformer_config"]["max_position_embeddings"],
    )
    return ScMMGPTProcessor(
        gene_tokenizer, tokenizer, num_query_tokens=recipe.model["qformer_config"]["num_query_tokens"]
    )


def build_config(recipe: MiniRecipe, processor: ScMMGPTProcessor) -> ScMMGPTConfig:
    """The architecture of the recipe with the sizes of the vocabularies."""
    tokenizer, vocabulary = processor.tokenizer, processor.feature_extractor.vocabulary
    fields = dict(recipe.model)
    fields["cell_config"] = {
        **fields["cell_config"],
        "vocab_size": len(vocabulary),
        "pad_token_id": vocabulary["<pad>"],
        "cls_token_id": vocabulary["<cls>"],
    }
    fields["qformer_config"] = {
        **fields["qformer_config"],
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return ScMMGPTConfig(**fields, cell_token_id=processor.cell_token_id)


def summary(recipe: MiniRecipe, profiles: Profiles, history: list[dict], development: bool) -> dict:
    """What the weights have seen, for the config and the card."""
    table = profiles.table
    return {
        "date": datetime.date.today().isoformat(),
        "steps": sum(part.steps for part in recipe.stage1),
        "num_profiles": len(table),
        "studies": sorted(table.study.unique()),
        "simulated_sources": [source.file for source in recipe.sources if source.simulated],
        "sources": {source.file: source.licence for source in recipe.sources},
        "cell_types": sorted(table.term_id.unique()),
        "development": development,
        "recipe_sha256": recipe.digest,
        "corpus_sha256": hashlib.sha256(profiles.share.tobytes()).hexdigest(),
        "code_sha256": code_digest(),
        "final_loss": history[-1]["loss"] if history else None,
    }


def code_digest() -> str:
    """One hash over the modules that make the weights."""
    digest = hashlib.sha256()
    for name in ("profiles.py", "cell_simulator.py", "mini.py", "mini_recipe.py", "mini_stage1.py", "mini_texts.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def save(model, processor: ScMMGPTProcessor, output: Path) -> None:
    """Write weights in 16 bits, but loaded as float32: in 16 bits padding alone would move an embedding by 1e-2."""
    model.to(torch.float16).save_pretrained(output)
    config = json.loads((output / "config.json").read_text())
    config["dtype"] = "float32"
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    processor.save_pretrained(output)


if __name__ == "__main__":
    main()
