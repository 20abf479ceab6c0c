# /// script
# requires-python = ">=3.11"
# dependencies = ["scmmgpt[train,eval]"]
# ///
"""Train the embedded model, scmmgpt-mini, from profiles to a model directory.

    python -m scmmgpt.training.mini.train --config training/recipes/mini.yaml [--development] [--steps N] [--output DIR]

Each part starts from what the part before it wrote, so that `--towers DIR/stage1`, or `DIR/stage2`, goes on as one
uninterrupted run would have.

`SCMMGPT_DATA` names the folder with the cells, which has the folder `genes` with the public gene lists beside it.
Without `--development` everything trains and the result is what ships.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from scmmgpt.hashes import hash_of_files
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.hub_cards.export import export
from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor
from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneIdentifier, GeneNames
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME as ONTOLOGY_FILE
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.mini.cell_simulator import CellSimulator
from scmmgpt.training.mini.cell_text_batches import train_stage1
from scmmgpt.training.mini.conversation_batches import ConversationBatches, train_stage2
from scmmgpt.training.mini.factor_decoder import train_decoder
from scmmgpt.training.mini.gene_tables import vocabulary_genes
from scmmgpt.training.mini.measured_cells import read_measured_cells
from scmmgpt.training.mini.profiles import Profiles, read_profiles
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, MiniRecipe, RecipeFile, read_recipe
from scmmgpt.training.mini.texts import TypeTexts, marker_genes, tokenizer_corpus
from scmmgpt.training.text_tokenizer import train_text_tokenizer

RUNS = "runs"  # of the parts, below the output
# What a summary says of one run; the rest is of the corpus, which the parts share.
OF_A_RUN = ("date", "final_loss", "recipe_sha256", "code_sha256")


def main(
    data: CellFolder,
    config: RecipeFile = RECIPE,
    output: Annotated[Path, typer.Option(help="The model directory to write.")] = Path("runs/scmmgpt-mini"),
    development: Annotated[bool, typer.Option(help="Leave the development studies out.")] = False,
    steps: Annotated[int | None, typer.Option(help="Cut every part of the training to so many steps.")] = None,
    towers: Annotated[Path | None, typer.Option(help="Go on from `stage1` or `stage2` of another run.")] = None,
    stage1_only: Annotated[bool, typer.Option(help="Stop before the language model.")] = False,
) -> None:
    """Train the embedded model, from profiles to a model directory."""
    recipe = read_recipe(config).cut_to(steps)
    ontology, names = Ontology.read(EMBEDDED_MODEL / ONTOLOGY_FILE), GeneNames.read(EMBEDDED_MODEL / GENE_NAMES_FILE)
    if towers is None:
        profiles, genes, ensembl_ids = corpus_profiles(recipe, data, names, ontology)
        processor = build_processor(recipe, genes, ensembl_ids, profiles, names, ontology)
    else:  # whatever the sources express, the genes are those of the towers
        processor = ScMMGPTProcessor.from_pretrained(towers)
        genes, ensembl_ids = processor.gene_tokenizer.genes, processor.gene_tokenizer.ensembl_ids
        profiles = sources_profiles(recipe, data, GeneIdentifier(genes, ensembl_ids, names), len(genes), ontology)
    medians, masses = processor.gene_tokenizer.gene_statistics.values()
    if development:
        profiles = profiles.without(recipe.development_studies)
    with_cells = [source for source in recipe.sources if not source.simulated and source.table is None]
    counted = read_measured_cells(
        ((source.family, source.read(data, ontology)) for source in with_cells),
        GeneIdentifier(genes, ensembl_ids, names),
        profiles,
    )
    simulator = CellSimulator(profiles, medians, masses, recipe.simulator, counted)

    history: list[dict] = []
    folder = output / "stage1"
    digest = hash_of_files([config])
    about = partial(summary, recipe, digest, profiles, development)
    if towers is None:
        texts = TypeTexts(ontology, marker_genes(profiles, genes))
        model, history = train_stage1(recipe, simulator, texts, processor, output / RUNS / "stage1")
        model.config.training_summary = about(history)
        export(model, processor, folder, dtype=torch.float16)
    if not stage1_only:
        whole = {family: cells for family, cells in counted.items() if cells.are_whole}
        compose = ConversationBatches(simulator, ontology, processor, recipe.stage2, recipe.tissue_names, whole)
        history += second_stage(recipe, compose, about, towers or folder, output)
    print(json.dumps({"losses": [entry["loss"] for entry in history]}))


def second_stage(
    recipe: MiniRecipe, compose: ConversationBatches, about: Callable, start: Path, output: Path
) -> list[dict]:
    """From the towers in `start`, or from a model that lacks the cell decoder alone, to what ships; the logged losses."""
    history: list[dict] = []
    learned = ScMMGPTConfig.from_pretrained(start).training_summary or {}
    if "stage2_steps" not in learned:
        model, history = train_stage2(recipe, compose, start, output / RUNS / "stage2")
        steps = {"stage2_steps": recipe.stage2.training["max_steps"]}
        model.config.training_summary = learned | about(history) | steps
        start = output / "stage2"
        export(model, compose.processor, start, dtype=torch.float16)
    model = ScMMGPTForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    profiles, counted = compose.simulator.profiles, compose.simulator.counted
    model, more = train_decoder(
        model, compose.processor, recipe, profiles, counted, compose.ontology, output / RUNS / "decoder"
    )
    run = {name: value for name, value in about(more).items() if name in OF_A_RUN}
    summary = dict(model.config.training_summary or {})
    summary["cell_decoder"] |= run | {"steps": recipe.factors.training["max_steps"]}
    model.config.training_summary = summary
    export(model, compose.processor, output, dtype=torch.float16)
    return history + more


def corpus_profiles(
    recipe: MiniRecipe, data: Path, names: GeneNames, ontology: Ontology
) -> tuple[Profiles, list[str], list[str]]:
    """The profiles of all sources over the genes that any of them expresses."""
    known = [(gene.symbol, gene.ensembl_id) for gene in vocabulary_genes(data.parent / "genes")]
    identifier = GeneIdentifier([symbol for symbol, _ in known], [gene_id for _, gene_id in known], names)
    profiles = sources_profiles(recipe, data, identifier, len(known), ontology)
    seen = profiles.masses > 0
    profiles = Profiles(profiles.table, profiles.share[:, seen], profiles.measured[:, seen], profiles.medians[seen])
    kept = [gene for gene, is_seen in zip(known, seen, strict=True) if is_seen]
    return profiles, [symbol for symbol, _ in kept], [gene_id for _, gene_id in kept]


def sources_profiles(
    recipe: MiniRecipe, data: Path, identifier: GeneIdentifier, num_genes: int, ontology: Ontology
) -> Profiles:
    """The profiles of all sources over the genes of a vocabulary."""
    sources = ((source.family, source.read(data, ontology)) for source in recipe.sources)
    return read_profiles(sources, identifier, num_genes)


def build_processor(recipe, genes, ensembl_ids, profiles, names, ontology) -> ScMMGPTProcessor:
    """The processor of the model: all genes of a cell, ordered by how far they lie above their median."""
    gene_tokenizer = ScMMGPTGeneTokenizer(
        genes,
        ensembl_ids,
        profiles.medians,
        profiles.masses,
        names,
        value_mode="log1p",
        max_genes=None,
        gene_order="median_ratio",
        panel_scaling=True,
    )
    qformer = recipe.model.config["qformer_config"]
    tokenizer = train_text_tokenizer(tokenizer_corpus(ontology, genes), recipe.model.tokenizer_size)
    return ScMMGPTProcessor(gene_tokenizer, tokenizer, num_query_tokens=qformer["num_query_tokens"])


def summary(
    recipe: MiniRecipe, recipe_digest: str, profiles: Profiles, development: bool, history: list[dict]
) -> dict:
    """What the weights have seen, for the config and the card."""
    table = profiles.table
    return {
        "date": datetime.date.today().isoformat(),
        "steps": sum(part.training["max_steps"] for part in recipe.stage1),
        "num_profiles": len(table),
        "studies": sorted(table.study.unique()),
        "simulated_sources": [source.file for source in recipe.sources if source.simulated],
        "sources": {source.file: source.licence for source in recipe.sources},
        "cell_types": sorted(table.term_id.unique()),
        "development": development,
        "recipe_sha256": recipe_digest,
        "corpus_sha256": hashlib.sha256(profiles.share.tobytes()).hexdigest(),
        "code_sha256": code_digest(),
        **({"final_loss": history[-1]["loss"]} if history else {}),
    }


def code_digest() -> str:
    """One hash over the modules that make the weights."""
    training = Path(__file__).parents[1]
    return hash_of_files(sorted([*training.glob("*.py"), *(training / "mini").glob("*.py")]))


if __name__ == "__main__":
    typer.run(main)
