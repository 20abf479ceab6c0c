"""The end of the embedded model: its cell decoder. Genes and counted cells in closed form, then texts to states.

The language model is frozen: each text passes through it once, and the reader of its states trains on what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from datasets import Dataset

from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForConditionalGeneration
from scmmgpt.modeling_scmmgpt.modeling_factor_decoder import ScMMGPTFactorDecoder
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.gene_vocabulary_scmmgpt import FIRST_GENE_ID
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training import stage2
from scmmgpt.training.stage2 import Stage2Trainer
from scmmgpt.training.trainer import Rows

from .factor_fit import (
    Counted,
    Factors,
    choose_cells,
    fit_factors,
    groups_of_kinds,
    library_sizes,
    log_shares,
    molecules_of_reads,
    numbered,
    platform_shifts,
    state_space,
    truly_measured,
)
from .measured_cells import MeasuredCells
from .profiles import WHOLE_TRANSCRIPTOME, Profiles
from .recipe import FactorPart, MiniRecipe
from .request_facts import FactTable
from .request_texts import RequestTexts

TEXTS_PER_PASS = 256
FEWEST_CELLS = 15  # of a kind that is to have a covariance of its own


@dataclass
class CountedKinds:
    """What a fit says of the counted kinds (J): their terms and organisms, and the arrays of the decoder."""

    terms: list[tuple[str, str]]
    arrays: dict[str, np.ndarray]


def platform_of(studies: Sequence[str], platforms: Mapping[str, tuple[str, ...]]) -> np.ndarray:
    """The platform of each study, by parts of its name; the first platform where none is named."""
    return np.array(
        [
            next((i for i, parts in enumerate(platforms.values()) if any(part in study for part in parts)), 0)
            for study in studies
        ]
    )


@dataclass
class Means:
    """What mean profiles say: the decoder's arrays, the table of their populations and the states of the profiles."""

    arrays: dict[str, np.ndarray]
    table: pd.DataFrame
    states: np.ndarray
    facts: FactTable


def fit_means(profiles: Profiles, wording: RequestTexts, part: FactorPart) -> Means:
    """Genes, platforms, states, and which states go with which facts, from whole transcriptomes."""
    rows = np.flatnonzero(profiles.measured.sum(1) >= WHOLE_TRANSCRIPTOME)
    table = profiles.table.iloc[rows].reset_index(drop=True)
    platform = platform_of(table.study, part.platforms)
    _, kind = numbered(table.term_id, table.organism)
    said = [wording.facts(row) for row in table.to_dict("records")]
    facts = FactTable.of(said, wording.ontology, wording.tissue_parts)
    seen = truly_measured(profiles.share[rows], profiles.measured[rows], table.study)
    logs = log_shares(profiles.share[rows], seen, kind)
    shifts = platform_shifts(logs, kind, platform, len(part.platforms))
    logs -= shifts[platform]
    space = state_space(logs, facts.population, part.num_states)
    arrays = {"gene_bias": space.mean, "gene_states": space.loadings, "gene_platforms": shifts.T}
    known = facts.arrays(space.states)
    by_states = space.mean + known["population_states"] @ space.loadings.T
    arrays |= known | own_genes(facts.means(logs), by_states, part.num_own_genes)
    return Means(arrays, table, space.states, facts)


def own_genes(logs: np.ndarray, by_states: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """The genes of each population whose levels its state misses most, and by how much; those that fill cells first."""
    missed = logs - by_states
    weight = np.exp(np.maximum(logs, by_states) / 2)
    genes = np.sort(np.argpartition(-np.abs(missed) * weight, number, axis=1)[:, :number], axis=1)
    return {"own_genes": genes + FIRST_GENE_ID, "own_shifts": np.take_along_axis(missed, genes, 1)}


def fit_kinds(
    profiles: Profiles, counted: Mapping[str, MeasuredCells], means: Means, part: FactorPart, seed: int
) -> CountedKinds:
    """Factors, dispersions, library sizes, from counted cells of whole transcriptomes."""
    families = {name: cells for name, cells in counted.items() if cells.are_whole}
    profile = np.concatenate([cells.profiles for cells in families.values()])
    family = np.concatenate([[name] * len(cells.profiles) for name, cells in families.items()])
    table = profiles.table.iloc[profile]
    counts = sp.vstack([cells.counts for cells in families.values()]).tocsr()
    names, kind = numbered(table.term_id, table.organism)
    platform = platform_of(table.study, part.platforms)
    reads = np.isin(platform, [list(part.platforms).index(name) for name in part.read_platforms])
    totals = np.asarray(counts.sum(1)).ravel()
    centers, spreads, added = library_sizes(totals, kind, family, platform, len(part.platforms))
    chosen = choose_cells(profile, part.cells_per_profile, seed)
    base = np.log(np.maximum(profiles.share[profile[chosen]], 1e-8)) + np.log(totals[chosen])[:, None]
    cells = Counted(
        counts[chosen],
        base.astype(np.float32),
        profiles.measured[profile[chosen]],
        kind[chosen],
        numbered(profile[chosen])[1],
        reads[chosen].astype(int),
    )
    states = _states_of_kinds(names, means)
    fit = fit_groups(cells, groups_of_kinds(states[:, : means.states.shape[1]], part.num_groups), part, seed)
    kept = np.bincount(kind, minlength=len(names)) >= FEWEST_CELLS
    molecules = np.zeros(len(part.platforms))
    for place in np.unique(platform[reads]):
        mine = np.flatnonzero(reads & (platform == place))
        molecules[place] = molecules_of_reads(counts[mine], profiles.share, profile[mine])
    arrays = {
        "gene_factors": fit.loadings,
        "gene_dispersion": -np.log(fit.dispersions[0]),
        "kind_states": states[kept],
        "kind_spreads": fit.covariances[kept],
        "kind_libraries": added[kept],
        "platform_libraries": centers,
        "platform_spreads": spreads,
        "platform_molecules": molecules,
    }
    terms = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
    return CountedKinds(terms, means.arrays | arrays)


def _states_of_kinds(names: list[tuple[str, str]], means: Means) -> np.ndarray:
    """The mean state of each kind's profiles, and their shares of the known populations."""
    pairs = list(zip(means.table.term_id, means.table.organism, strict=True))
    whole = np.concatenate([means.states, np.eye(len(means.facts.populations))[means.facts.population]], axis=1)
    return np.array([whole[[pair == kind for pair in pairs]].mean(0) for kind in names])


def fit_groups(cells: Counted, group: np.ndarray, part: FactorPart, seed: int) -> Factors:
    """A factor analysis of each group of kinds (J,), side by side: a kind varies along its own group's factors alone.

    Of the covariances come roots (J, R, factors of a group).
    """
    number, size = group.max() + 1, part.factors_of_group
    num_genes, num_kinds = cells.counts.shape[1], len(group)
    loadings = np.zeros((num_genes, number * size), np.float32)
    roots = np.zeros((num_kinds, number * size, size), np.float32)
    dispersions, weight = np.zeros((2, num_genes)), np.zeros((2, 1))
    for place in range(number):
        mine = np.flatnonzero(group[cells.kind] == place)
        kinds, kind = np.unique(cells.kind[mine], return_inverse=True)
        fit = fit_factors(cells.rows(mine, kind), size, part.em_steps, part.num_leading_genes, seed)
        block = slice(place * size, (place + 1) * size)
        loadings[:, block] = fit.loadings
        roots[kinds, block] = np.linalg.cholesky(fit.covariances.astype(np.float64) + 1e-6 * np.eye(size))
        of_class = np.bincount(cells.noise[mine], minlength=2)[: len(fit.dispersions), None]
        dispersions[: len(of_class)] += of_class * np.log(fit.dispersions)
        weight[: len(of_class)] += of_class
    return Factors(loadings, roots, np.exp(dispersions / np.maximum(weight, 1)))


def new_decoder(
    model: ScMMGPTForConditionalGeneration, kinds: CountedKinds, facts: FactTable, part: FactorPart
) -> ScMMGPTForConditionalGeneration:
    """The same model with a new decoder, whose genes and kinds are fitted and whose reader knows nothing."""
    config = ScMMGPTConfig.from_dict(model.config.to_dict())
    decoder_config = config.cell_decoder_config
    for name, value in part.config["cell_decoder_config"].items():
        setattr(decoder_config, name, value)
    decoder_config.kind = "factors"
    decoder_config.platforms = list(part.platforms)
    decoder_config.num_states = kinds.arrays["gene_states"].shape[1]
    decoder_config.num_factors, decoder_config.factor_rank = kinds.arrays["kind_spreads"].shape[1:]
    decoder_config.num_kinds = len(kinds.terms)
    decoder_config.fact_sizes = facts.sizes
    decoder_config.num_populations, decoder_config.num_own_genes = kinds.arrays["own_genes"].shape
    decoder = ScMMGPTFactorDecoder(
        decoder_config, config.cell_config, model.model.get_input_embeddings().embedding_dim
    )
    with torch.no_grad():
        for name, values in kinds.arrays.items():
            held = getattr(decoder, name)
            first = FIRST_GENE_ID if name.startswith("gene_") else 0
            held[first:] = torch.from_numpy(np.ascontiguousarray(values)).to(held)
    model.config.cell_decoder_config = decoder_config
    model.cell_decoder = decoder
    return model


@dataclass
class EncodedRequests:
    """N texts as the language model's states (tokens of each, width), and what each of them says (N, A)."""

    texts: list[torch.Tensor]
    facts: torch.Tensor

    @property
    def numbers(self) -> Dataset:
        """The rows of a trainer: `collate` makes batches of them."""
        return Dataset.from_dict({"number": range(len(self.texts))})

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [self.texts[row["number"]].float() for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(text) for text in texts])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return {"text_states": padded, "text_mask": mask, "facts": self.facts[[row["number"] for row in rows]]}


@torch.no_grad()
def encode_requests(
    model: ScMMGPTForConditionalGeneration,
    processor: ScMMGPTProcessor,
    texts: list[str],
    facts: np.ndarray,
    most: int,
) -> EncodedRequests:
    """Texts through the frozen language model, those of like length together."""
    model.eval()
    kept: list[torch.Tensor] = [torch.zeros(0)] * len(texts)
    order = np.argsort([len(text) for text in texts], kind="stable")
    processor.tokenizer.padding_side = "right"
    for start in range(0, len(texts), TEXTS_PER_PASS):
        numbers = order[start : start + TEXTS_PER_PASS]
        tokens = processor.tokenizer(
            [texts[i] for i in numbers], padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        states = model.model.language_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for i, text, length in zip(numbers, states.half(), mask.sum(1), strict=True):
            kept[i] = text[:length].clone()
    return EncodedRequests(kept, torch.from_numpy(facts))


class ReaderTrainer(Stage2Trainer):
    """Cross-entropy of what texts say; a hidden text says what texts say on average."""

    def losses_of(self, model, inputs):
        decoder, facts = model.cell_decoder, inputs["facts"]
        features = decoder.text_features(inputs["text_states"], inputs["text_mask"])
        hidden = torch.rand(len(features)) < decoder.config.text_dropout
        read = decoder.request_reader(decoder.text_features.hide(features, hidden))
        return -(facts * read).sum(1).mean(), {}


def train_decoder(
    model: ScMMGPTForConditionalGeneration,
    processor: ScMMGPTProcessor,
    recipe: MiniRecipe,
    profiles: Profiles,
    counted: Mapping[str, MeasuredCells],
    ontology: Ontology,
    output: Path,
) -> tuple[ScMMGPTForConditionalGeneration, list[dict]]:
    """The model with its new decoder, and the logged losses."""
    part = recipe.factors
    run = recipe.stage2_run(part, output, seed=90)
    seed = run.training["seed"]
    wording = RequestTexts(ontology, recipe.tissue_names, recipe.disease_names, recipe.tissue_parts)
    means = fit_means(profiles, wording, part)
    kinds = fit_kinds(profiles, counted, means, part, seed)
    torch.manual_seed(seed)
    model = new_decoder(model, kinds, means.facts, part)
    account = {
        "counted_kinds": [" ".join(kind) for kind in kinds.terms],
        "tissues_of_types": means.facts.tissues_of_types(),
    }
    model.config.training_summary = (model.config.training_summary or {}) | {"cell_decoder": account}
    return model, train_reader(model, processor, recipe, means.facts, wording, output)


def train_reader(
    model: ScMMGPTForConditionalGeneration,
    processor: ScMMGPTProcessor,
    recipe: MiniRecipe,
    facts: FactTable,
    wording: RequestTexts,
    output: Path,
) -> list[dict]:
    """Teach the decoder what texts say; the logged losses."""
    run = recipe.stage2_run(recipe.factors, output, seed=90)
    generator = np.random.default_rng(run.training["seed"])
    drawn = [facts.draw(generator) for _ in range(recipe.factors.num_texts)]
    texts = [wording.draw(fact, generator) for fact in drawn]
    targets = np.stack([facts.target(fact, text) for fact, text in zip(drawn, texts, strict=True)])
    requests = encode_requests(model, processor, texts, targets, recipe.factors.max_text_tokens)
    rows = Rows(requests.numbers, None, requests.collate)
    trainer = stage2.train(run, model, processor, rows, fresh=True, make_trainer=ReaderTrainer)
    return [entry for entry in trainer.state.log_history if "loss" in entry]
