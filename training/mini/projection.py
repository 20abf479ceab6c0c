"""Move the embedded model's projections of cells, by single cells: types together, and texts where they were.

    python -m scmmgpt.training.mini.projection MODEL_DIR

Stage 1 knows cells and texts alone. Here labelled cells of the recipe's sources pass through the towers once, and the
matrices behind their queries and summaries follow three wishes: cells of one type lie nearer than those of others;
cells are as alike as their type profiles say; no cell says anything else of the types' texts than before. Queries,
pooled tokens and texts stay. A model that was trained with --development leaves the development studies out. After
`type_profiles.py`, whose file it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import anndata
import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import nn
from torch.nn import functional as F

from scmmgpt.atomic_files import rename
from scmmgpt.loading import LoadedModel, load
from scmmgpt.modeling_scmmgpt.losses_scmmgpt import lineage_overlap, scaled_similarity
from scmmgpt.modeling_scmmgpt.modeling_cell_encoder import summary_tokens
from scmmgpt.processing.prompting_scmmgpt import label_text
from scmmgpt.training.collators import Lineages
from scmmgpt.training.evaluation.study import study_of_cells
from scmmgpt.training.mini.recipe import RECIPE, CellFolder, MiniRecipe, ProjectionPart, RecipeFile, read_recipe

LAYERS = ("cell_projection", "summary_projection")
WEIGHTS_FILE = "model.safetensors"
CELLS_PER_PASS = 256
FAR = -1e4  # the logit of what is not compared


@dataclass
class EncodedCells:
    """N labelled cells as the towers see them.

    Attributes
    ----------
    kinds
        (N,) index of each cell's type in `terms`.
    chances
        (N,) how often a cell is drawn: the root of its type's size in its study, counted and simulated cells by their
        share.
    queries, summaries
        (N, H) the mean of each cell's queries, and (N, S) its pooled tokens: what is projected.
    profiles
        (N, T) unit vectors: how each cell agrees with each type profile.
    """

    terms: list[str]
    kinds: np.ndarray
    chances: np.ndarray
    queries: torch.Tensor
    summaries: torch.Tensor
    profiles: torch.Tensor

    def embeds(self, layers: nn.ModuleDict, chosen: slice | np.ndarray = slice(None)) -> torch.Tensor:
        """The embeddings of some of them, as the model makes them."""
        queries, summaries = (layers[name] for name in LAYERS)
        return F.normalize(queries(self.queries[chosen]) + summaries(self.summaries[chosen]), dim=1)


@dataclass
class Wishes:
    """What the types say: their texts (K, D) as embedded before, which are related (K, K), and the scale of similarity."""

    texts: torch.Tensor
    related: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, loaded: LoadedModel, terms: list[str]) -> Wishes:
        """Those of a model: a type and what lies above it are never negatives of each other."""
        known = [loaded.ontology.terms[term] for term in terms]
        texts = loaded.embed_texts([label_text(term.label, term.definition or None) for term in known])
        related, _ = lineage_overlap(Lineages(loaded.ontology).of(terms))
        return cls(torch.from_numpy(texts), related, loaded.model.similarity_scale().detach())

    def loss(
        self,
        embeds: torch.Tensor,
        before: torch.Tensor,
        kinds: torch.Tensor,
        profiles: torch.Tensor,
        part: ProjectionPart,
    ) -> torch.Tensor:
        """The three wishes about some cells, whose embeddings were `before`."""
        alike = embeds @ embeds.T
        wanted = (before @ before.T + profiles @ profiles.T) / 2
        said, kept = (
            F.log_softmax(scaled_similarity(cells, self.texts, self.scale), dim=1) for cells in (embeds, before)
        )
        changed = F.kl_div(said, kept, reduction="batchmean", log_target=True)
        apart = self._apart(alike / part.temperature, kinds)
        return apart + part.profile_weight * F.mse_loss(alike, wanted) + changed

    def _apart(self, logits: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """How little cells of one type stand out among those of others (Khosla et al. 2020)."""
        itself = torch.eye(len(kinds), dtype=torch.bool)
        same = (kinds[:, None] == kinds) & ~itself
        related = self.related[kinds][:, kinds]
        logits = logits.masked_fill(itself | related & ~same, FAR)
        nearest = (F.log_softmax(logits, dim=1) * same).sum(1) / same.sum(1).clamp(min=1)
        return -nearest[same.any(1)].mean()


def labelled_cells(
    recipe: MiniRecipe, data: Path, loaded: LoadedModel, left_out: set[str]
) -> Iterator[tuple[bool, np.ndarray, anndata.AnnData]]:
    """Whether they are simulated, their studies, and the cells of each source; some, by lot, of a large one."""
    generator = np.random.default_rng(recipe.seed)
    for source in recipe.sources:
        if source.table is not None:
            continue
        cells = source.read(data, loaded.ontology)
        studies = study_of_cells(cells.obs, source.family).astype(str)
        terms = cells.obs["cell_type_ontology_term_id"].astype(str)
        kept = np.flatnonzero(terms.isin(loaded.ontology.terms).to_numpy() & ~np.isin(studies, sorted(left_out)))
        most = recipe.projection.cells_per_source
        if len(kept) > most:
            kept = np.sort(generator.choice(kept, most, replace=False))
        if len(kept):
            yield source.simulated, studies[kept], cells[kept].copy()


def encode(
    loaded: LoadedModel, sources: Iterator[tuple[bool, np.ndarray, anndata.AnnData]], part: ProjectionPart
) -> EncodedCells:
    """All cells through the towers, once."""
    found, terms, studies, simulated = [], [], [], []
    for is_simulated, of_cells, cells in sources:
        for start in range(0, cells.n_obs, CELLS_PER_PASS):
            found.append(_encode(loaded, cells[start : start + CELLS_PER_PASS].copy()))
        terms.append(cells.obs["cell_type_ontology_term_id"].astype(str).to_numpy())
        studies.append(of_cells)
        simulated.append(np.full(cells.n_obs, is_simulated))
    names, kinds = np.unique(np.concatenate(terms), return_inverse=True)
    chances = chances_of(kinds, np.concatenate(studies), np.concatenate(simulated), part.counted_share)
    return EncodedCells(names.tolist(), kinds, chances, *(torch.cat(parts) for parts in zip(*found, strict=True)))


def chances_of(kinds: np.ndarray, studies: np.ndarray, is_simulated: np.ndarray, counted_share: float) -> np.ndarray:
    """How often each cell is drawn: large types of a study often, but not in proportion; counted cells by their share."""
    _, study = np.unique(studies, return_inverse=True)
    _, group, sizes = np.unique(np.stack([kinds, study]), axis=1, return_inverse=True, return_counts=True)
    chances = 1 / np.sqrt(sizes[group.ravel()])
    for share, chosen in ((counted_share, ~is_simulated), (1 - counted_share, is_simulated)):
        chances[chosen] *= share / max(chances[chosen].sum(), 1e-9)
    return chances / chances.sum()


@torch.no_grad()
def _encode(loaded: LoadedModel, cells: anndata.AnnData) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    model, tokenizer, type_profiles = loaded.model, loaded.processor.gene_tokenizer, loaded.annotator.type_profiles
    if type_profiles is None:
        raise typer.BadParameter(f"{loaded.directory} has no type profiles: run type_profiles.py first.")
    tokens = tokenizer(cells, packed=True)
    values = sparse.csr_matrix(
        (tokens["gene_values"][0], tokens["gene_ids"][0], tokens["cell_cu_seqlens"]),
        shape=(cells.n_obs, tokenizer.vocab_size),
    )
    agreement = values @ type_profiles.table(
        range(len(type_profiles.term_ids)), tokenizer.gene_ids, tokenizer.vocab_size
    )
    agreement = torch.from_numpy(agreement - agreement.mean(1, keepdims=True))
    encoded = model.run_cell_encoder(**{name: torch.from_numpy(array) for name, array in tokens.items()})
    queries = model.qformer(cell_states=encoded.last_hidden_state, cell_mask=encoded.state_mask).query_states
    summaries = summary_tokens(encoded.last_hidden_state, model.config.cell_config.num_pooled_tokens).flatten(1)
    return queries.mean(1), summaries, F.normalize(agreement, dim=1)


def fit(layers: nn.ModuleDict, cells: EncodedCells, wishes: Wishes, part: ProjectionPart, seed: int) -> list[float]:
    """Train the layers; the losses, step by step."""
    with torch.no_grad():
        before = cells.embeds(layers)
    generator, losses = np.random.default_rng(seed), []
    optimizer = torch.optim.AdamW(layers.parameters(), lr=part.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, part.steps)
    for _ in range(part.steps):
        chosen = generator.choice(len(cells.kinds), part.batch_size, p=cells.chances)
        kinds = torch.from_numpy(cells.kinds[chosen])
        loss = wishes.loss(cells.embeds(layers, chosen), before[chosen], kinds, cells.profiles[chosen], part)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def write(directory: Path, layers: nn.ModuleDict, about: dict) -> None:
    """Put the layers among the weights of a model directory, and what is to be said of them into its summary."""
    path, config = directory / WEIGHTS_FILE, directory / "config.json"
    weights, learned = load_file(path), layers.state_dict()
    for name, stored in weights.items():
        layer = ".".join(name.split(".")[-2:])
        if layer in learned:
            weights[name] = learned[layer].to(stored.dtype).contiguous()
    temporary = path.with_suffix(".part")
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.chmod(path.stat().st_mode)  # safetensors lets nobody but the user read what it writes
    rename(temporary, path)
    content = json.loads(config.read_text(encoding="utf-8"))
    content["training_summary"]["projection"] = about
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(model: Path, data: CellFolder, config: RecipeFile = RECIPE, steps: int | None = None) -> None:
    """Move the projections of the model in a directory."""
    recipe, loaded = read_recipe(config).cut_to(steps), load(model)
    summary = loaded.training_summary or {}
    if "projection" in summary:
        raise typer.BadParameter(
            f"The projections of {model} were moved before, and would be moved on from where they are."
        )
    left_out = set(recipe.development_studies) if summary["development"] else set()
    cells = encode(loaded, labelled_cells(recipe, data, loaded, left_out), recipe.projection)
    layers = nn.ModuleDict({name: getattr(loaded.model, name) for name in LAYERS})
    losses = fit(layers, cells, Wishes.of(loaded, cells.terms), recipe.projection, recipe.seed)
    about = {
        "num_cells": len(cells.kinds),
        "num_types": len(cells.terms),
        "final_loss": losses[-1],
        **asdict(recipe.projection),
    }
    write(model, layers, about)
    print(json.dumps({"num_cells": len(cells.kinds), "losses": losses[:: max(1, len(losses) // 10)]}))


if __name__ == "__main__":
    typer.run(main)
