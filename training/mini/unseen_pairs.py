"""Does the cell decoder compose? Types in tissues in which its training never saw them.

    python -m scmmgpt.training.mini.unseen_pairs --output docs/measured/generation.json [--start hub_cards/scmmgpt-mini]

One tissue of each of many types is taken out of the profiles, in both organisms; states and reader are fitted on the
rest. The mean that a text asks for should lie nearer to the pair's own mean than to the type's mean in the tissues of the
same organism that were seen; the control asks without the tissue. Distances are taken along the leading components of the
profiles that were seen, and, as a harder measure, on the genes in which the two means differ most: a pair's own mean is that
of some fifty cells, so that much of what single genes differ by is chance. Which tissue of a type is left out is drawn
several times.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from scipy.stats import binomtest

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneIdentifier, GeneNames
from scmmgpt.processing.gene_vocabulary_scmmgpt import FIRST_GENE_ID
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME as ONTOLOGY_FILE
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.processing.prompting_scmmgpt import generation_text

from .factor_decoder import CountedKinds, Means, fit_means, new_decoder, train_reader
from .profiles import WHOLE_TRANSCRIPTOME, Profiles
from .recipe import RECIPE, CellFolder, MiniRecipe, RecipeFile, read_recipe
from .request_texts import RequestTexts
from .train import sources_profiles

FEWEST_TISSUES, MOST_PAIRS = 4, 24
NUM_COMPONENTS, NUM_GENES = 30, 2_000
SPACES = ("components", "genes")
SCALE = 1e4


def main(
    data: CellFolder,
    config: RecipeFile = RECIPE,
    output: Annotated[Path, typer.Option(help="The JSON file to write into.")] = Path("docs/measured/generation.json"),
    start: Annotated[Path, typer.Option(help="The model whose language model reads.")] = EMBEDDED_MODEL,
    steps: Annotated[int | None, typer.Option(help="Cut the training to so many steps.")] = None,
    draws: Annotated[int, typer.Option(help="How often pairs are drawn and left out.")] = 4,
) -> None:
    """Types in tissues in which training never saw them."""
    recipe = read_recipe(config).cut_to(steps)
    ontology = Ontology.read(EMBEDDED_MODEL / ONTOLOGY_FILE)
    processor = ScMMGPTProcessor.from_pretrained(start)
    genes = processor.gene_tokenizer
    names = GeneNames.read(EMBEDDED_MODEL / GENE_NAMES_FILE)
    profiles = sources_profiles(
        recipe, data, GeneIdentifier(genes.genes, genes.ensembl_ids, names), len(genes.genes), ontology
    )
    known = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    found = []
    for seed in range(draws):
        model = ScMMGPTForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
        found.append(measure(model, processor, recipe, profiles, ontology, seed))
        print(json.dumps(found[-1]["summary"], indent=1))
    output.write_text(json.dumps({**known, "unseen_pairs": found}, indent=1) + "\n", encoding="utf-8")


def measure(
    model: ScMMGPTForConditionalGeneration,
    processor: ScMMGPTProcessor,
    recipe: MiniRecipe,
    profiles: Profiles,
    ontology: Ontology,
    seed: int,
) -> dict[str, Any]:
    """The pairs, and how near the means that were asked for are."""
    wording = RequestTexts(ontology, recipe.tissue_names, recipe.disease_names, recipe.tissue_parts)
    facts = pd.DataFrame([wording.facts(row) for row in profiles.table.to_dict("records")])
    facts["label"] = profiles.table.label.to_numpy()
    whole = profiles.measured.sum(1) >= WHOLE_TRANSCRIPTOME
    pairs = choose_pairs(facts[whole], seed)
    left_out = pd.MultiIndex.from_frame(facts[["term_id", "tissue"]]).isin([pair[:2] for pair in pairs])
    rest = Profiles(
        profiles.table[~left_out].reset_index(drop=True),
        profiles.share[~left_out],
        profiles.measured[~left_out],
        profiles.medians,
    )
    means = fit_means(rest, wording, recipe.factors)
    torch.manual_seed(seed)  # the reader's start
    model = new_decoder(model, without_kinds(means), means.facts, recipe.factors)
    with tempfile.TemporaryDirectory() as folder:
        train_reader(model, processor, recipe, means.facts, wording, Path(folder))
    axes = main_axes(_logs(rest.share[rest.measured.sum(1) >= WHOLE_TRANSCRIPTOME]))
    rows = [
        held_against(model.eval(), processor, facts, profiles, whole, pair, ontology.terms[pair[0]].label, axes)
        for pair in pairs
    ]
    return {"seed": seed, "summary": {space: summary(rows, space) for space in SPACES}, "pairs": rows}


def choose_pairs(facts: pd.DataFrame, seed: int) -> list[tuple[str, str, str]]:
    """(type, tissue, organism): one tissue of each type that several tissues of one organism hold."""
    held = facts[(facts.tissue != "") & (facts.stage == "")]
    tissues = held.groupby(["term_id", "organism"]).tissue.agg(lambda names: sorted(set(names)))
    tissues = tissues[tissues.map(len) >= FEWEST_TISSUES].groupby("term_id").head(1)
    random = np.random.default_rng(seed)
    chosen = tissues.iloc[np.sort(random.permutation(len(tissues))[:MOST_PAIRS])]
    return [(term, str(random.choice(names)), organism) for (term, organism), names in chosen.items()]


def without_kinds(means: Means) -> CountedKinds:
    """A decoder of means alone."""
    arrays = {
        "gene_factors": np.zeros((len(means.arrays["gene_bias"]), 1), np.float32),
        "kind_spreads": np.zeros((1, 1, 1), np.float32),
        "kind_states": np.pad(means.states.mean(0, keepdims=True), ((0, 0), (0, len(means.facts.populations)))),
    }
    return CountedKinds([("", "")], means.arrays | arrays)


def main_axes(logs: np.ndarray) -> np.ndarray:
    """(G, NUM_COMPONENTS) along which profiles (P, G) differ most."""
    _, _, axes = np.linalg.svd(logs - logs.mean(0), full_matrices=False)
    return axes[:NUM_COMPONENTS].T


@torch.no_grad()
def held_against(
    model, processor, facts, profiles: Profiles, whole, pair, label: str, axes: np.ndarray
) -> dict[str, Any]:
    """In each space the distances of the means that are asked for, with the tissue and without, to [its own, the type's
    elsewhere]."""
    term, tissue, organism = pair
    of_type = whole & ((facts.term_id == term) & (facts.organism == organism) & (facts.stage == "")).to_numpy()
    is_here = (facts.tissue == tissue).to_numpy()
    measured = profiles.measured[of_type].all(0)
    real = [_logs(profiles.share[of_type & here]).mean(0) for here in (is_here, ~is_here)]
    genes = np.flatnonzero(measured)
    genes = genes[np.argsort(-np.abs(real[0] - real[1])[genes], kind="stable")[:NUM_GENES]]
    row: dict[str, Any] = {"cell_type": label, "tissue": tissue, "organism": organism}
    for name, words in (("with_tissue", f"{organism} {label} from {tissue}"), ("without", f"{organism} {label}")):
        tokens = processor.tokenizer([generation_text(words)], return_tensors="pt")
        state = model.text_states(tokens["input_ids"], tokens["attention_mask"])[0]
        decoder, ids = model.cell_decoder, torch.arange(profiles.share.shape[1]) + FIRST_GENE_ID
        made = _logs(decoder.log_shares(state[None], ids)[0].softmax(0).numpy())
        differences = {
            "components": [(made - mean) @ axes for mean in real],
            "genes": [(made - mean)[genes] for mean in real],
        }
        row[name] = {
            space: [round(float(np.linalg.norm(one)), 3) for one in both] for space, both in differences.items()
        }
    return row


def _logs(share: np.ndarray) -> np.ndarray:
    return np.log1p(SCALE * share)


def summary(rows: list[dict[str, Any]], space: str) -> dict[str, Any]:
    """How many pairs are nearer to their own mean, and to how many the tissue in the text brings the mean closer."""
    nearer = {way: sum(row[way][space][0] < row[way][space][1] for row in rows) for way in ("with_tissue", "without")}
    closer = sum(row["with_tissue"][space][0] < row["without"][space][0] for row in rows)
    p_value = binomtest(nearer["with_tissue"], len(rows), 0.5, alternative="greater").pvalue
    return {
        "pairs": len(rows),
        "nearer_own_mean": nearer["with_tissue"],
        "nearer_own_mean_without_tissue": nearer["without"],
        "tissue_brings_closer": closer,
        "p_value": round(float(p_value), 4),
    }


if __name__ == "__main__":
    typer.run(main)
