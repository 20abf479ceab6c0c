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
    """What mean profiles say: the decoder's arrays, the table of the profiles that teach the reader, and their states."""

    arrays: dict[str, np.ndarray]
    table: pd.DataFrame
    states: np.ndarray


def fit_means(profiles: Profiles, part: FactorPart) -> Means:
    """Genes, platforms and states, from whole transcriptomes."""
    rows = np.flatnonzero(profiles.measured.sum(1) >= WHOLE_TRANSCRIPTOME)
    table = profiles.table.iloc[rows].reset_index(drop=True)
    platform = platform_of(table.study, part.platforms)
    _, kind = numbered(table.term_id, table.organism)
    _, alike = numbered(table.term_id, table.organism, table.tissue, table.stage)
    seen = truly_measured(profiles.share[rows], profiles.measured[rows], table.study)
    logs = log_shares(profiles.share[rows], seen, kind)
    shifts = platform_shifts(logs, kind, platform, len(part.platforms))
    logs -= shifts[platform]
    space = state_space(logs, alike, part.num_states)
    arrays = {"gene_bias": space.mean, "gene_states": space.loadings, "gene_platforms": shifts.T}
    return Means(arrays, table, space.states)


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
    fit = fit_groups(cells, groups_of_kinds(states, part.num_groups), part, seed)
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
    """The mean state of each kind's profiles."""
    pairs = list(zip(means.table.term_id, means.table.organism, strict=True))
    return np.array([means.states[[pair == kind for pair in pairs]].mean(0) for kind in names])


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
    model: ScMMGPTForConditionalGeneration, kinds: CountedKinds, part: FactorPart
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
    decoder = ScMMGPTFactorDecoder(
        decoder_config, config.cell_config, model.model.get_input_embeddings().embedding_dim
    )
    with torch.no_grad():
        for name, values in kinds.arrays.items():
            parameter = getattr(decoder, name)
            first = FIRST_GENE_ID if name.startswith("gene_") else 0
            parameter[first:] = torch.from_numpy(np.ascontiguousarray(values)).to(parameter)
    model.config.cell_decoder_config = decoder_config
    model.cell_decoder = decoder
    return model


@dataclass
class EncodedRequests:
    """N texts as the language model's states (tokens of each, width), and the states (N, S) that they ask for."""

    texts: list[torch.Tensor]
    targets: torch.Tensor

    @property
    def numbers(self) -> Dataset:
        """The rows of a trainer: `collate` makes batches of them."""
        return Dataset.from_dict({"number": range(len(self.texts))})

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [self.texts[row["number"]].float() for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(text) for text in texts])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return {"text_states": padded, "text_mask": mask, "targets": self.targets[[row["number"] for row in rows]]}


@torch.no_grad()
def encode_requests(
    model: ScMMGPTForConditionalGeneration,
    processor: ScMMGPTProcessor,
    texts: list[str],
    targets: np.ndarray,
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
    return EncodedRequests(kept, torch.from_numpy(targets))


class ReaderTrainer(Stage2Trainer):
    """Squared error of the states that texts lead to; a hidden text leads to the mean of all."""

    def losses_of(self, model, inputs):
        decoder, targets = model.cell_decoder, inputs["targets"]
        features = decoder.text_features(inputs["text_states"], inputs["text_mask"])
        hidden = torch.rand(len(features)) < decoder.config.text_dropout
        states = decoder.states(decoder.text_features.hide(features, hidden))
        return (states - targets * ~hidden[:, None]).square().sum(1).mean(), {}


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
    means = fit_means(profiles, part)
    kinds = fit_kinds(profiles, counted, means, part, seed)
    torch.manual_seed(seed)
    model = new_decoder(model, kinds, part)
    wording = RequestTexts(ontology, recipe.tissue_names, recipe.disease_names)
    facts = [wording.facts(row) for row in means.table.to_dict("records")]
    account = {"counted_kinds": [" ".join(kind) for kind in kinds.terms], "tissues_of_types": _tissues_of_types(facts)}
    model.config.training_summary = (model.config.training_summary or {}) | {"cell_decoder": account}
    return model, train_reader(model, processor, recipe, means, wording, output)


def train_reader(
    model: ScMMGPTForConditionalGeneration,
    processor: ScMMGPTProcessor,
    recipe: MiniRecipe,
    means: Means,
    wording: RequestTexts,
    output: Path,
) -> list[dict]:
    """Teach the decoder which state a text asks for; the logged losses."""
    run = recipe.stage2_run(recipe.factors, output, seed=90)
    generator = np.random.default_rng(run.training["seed"])
    facts = [wording.facts(row) for row in means.table.to_dict("records")]
    drawn = _draw_rows(means.table.term_id.to_numpy(), recipe.factors.num_texts, generator)
    texts = [wording.draw(facts[row], generator) for row in drawn]
    requests = encode_requests(model, processor, texts, means.states[drawn], recipe.factors.max_text_tokens)
    rows = Rows(requests.numbers, None, requests.collate)
    trainer = stage2.train(run, model, processor, rows, fresh=True, make_trainer=ReaderTrainer)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _tissues_of_types(facts: list[dict[str, str]]) -> dict[str, list[str]]:
    """By term the tissues that its profiles come from, as texts call them."""
    found: dict[str, set[str]] = {}
    for fact in facts:
        found.setdefault(fact["term_id"], set()).add(fact["tissue"])
    return {term: sorted(tissues - {""}) for term, tissues in sorted(found.items())}


def _draw_rows(terms: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """Profiles: first the type, by the root of its number of profiles."""
    names, kind, sizes = np.unique(terms, return_inverse=True, return_counts=True)
    weights = np.sqrt(sizes)
    types = generator.choice(len(names), number, p=weights / weights.sum())
    members = [np.flatnonzero(kind == i) for i in range(len(names))]
    return np.array([generator.choice(members[i]) for i in types])
