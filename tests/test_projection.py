"""The projections of the embedded model, moved by single cells: what it gains, what it keeps, what it writes."""

import json
import shutil

import anndata
import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file
from test_mini import GUARD_CELLS, needs_weights
from torch import nn
from torch.nn import functional as F

from scmmgpt.loading import EMBEDDED_MODEL, load
from scmmgpt.training.mini.projection import LAYERS, EncodedCells, Wishes, chances_of, encode, fit, main, write
from scmmgpt.training.mini.recipe import ProjectionPart

PART = ProjectionPart(steps=60, batch_size=64, learning_rate=3e-3)
WIDTH, NUM_CELLS = 16, 240


@pytest.fixture
def layers() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in LAYERS})


@pytest.fixture
def cells() -> EncodedCells:
    """Three types that a direction of each tells apart, under noise that they share."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.arange(NUM_CELLS) % 3
    summaries = 0.7 * torch.randn(NUM_CELLS, WIDTH, generator=generator)
    summaries[:, :3] = F.one_hot(kinds, 3) + 0.1 * torch.randn(NUM_CELLS, 3, generator=generator)
    queries = torch.randn(NUM_CELLS, WIDTH, generator=generator)
    profiles = F.normalize(F.one_hot(kinds, 3) - 1 / 3, dim=1)
    chances = np.full(NUM_CELLS, 1 / NUM_CELLS)
    return EncodedCells(["one", "two", "three"], kinds.numpy(), chances, queries, summaries, profiles)


def wishes(related: torch.Tensor | None = None) -> Wishes:
    texts = F.normalize(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)
    return Wishes(texts, torch.zeros(3, 3, dtype=torch.bool) if related is None else related, torch.tensor(10.0))


def likeness(embeds: torch.Tensor, kinds: np.ndarray) -> float:
    """How much more alike cells of one type are than cells of two."""
    same = torch.from_numpy(kinds[:, None] == kinds)
    alike = embeds @ embeds.T
    return float(alike[same].mean() - alike[~same].mean())


def test_cells_of_a_type_move_together_and_say_of_texts_what_they_said(layers, cells):
    with torch.no_grad():
        before = cells.embeds(layers)
    losses = fit(layers, cells, wishes(), PART, seed=0)
    after = cells.embeds(layers).detach()

    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert likeness(after, cells.kinds) > 2 * likeness(before, cells.kinds)
    said, kept = ((10 * embeds @ wishes().texts.T).softmax(1) for embeds in (after, before))
    assert float((said - kept).abs().sum(1).mean()) < 0.3


def test_the_same_cells_and_seed_give_the_same_layers(layers, cells):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        again = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in LAYERS})
        fit(again, cells, wishes(), PART, seed=3)
        found.append(again.state_dict())

    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_type_is_no_negative_of_what_lies_above_it(layers, cells):
    embeds = cells.embeds(layers).detach()
    related = torch.ones(3, 3, dtype=torch.bool)
    kinds, profiles = torch.from_numpy(cells.kinds), cells.profiles

    apart, together = (
        asked._apart(embeds @ embeds.T / PART.temperature, kinds) for asked in (wishes(), wishes(related))
    )

    assert apart > together + 0.5  # only cells of the own type are left to stand out among
    assert wishes().loss(embeds, embeds, kinds, profiles, PART) > apart


def test_small_types_and_counted_cells_are_drawn_more_often_than_their_share():
    kinds = np.array([0] * 90 + [1] * 10 + [0] * 300)
    studies = np.array(["blood"] * 100 + ["simulated"] * 300)
    is_simulated = studies == "simulated"

    chances = chances_of(kinds, studies, is_simulated, counted_share=0.5)

    assert chances.sum() == pytest.approx(1)
    assert chances[~is_simulated].sum() == pytest.approx(0.5)
    assert chances[90:100].sum() == pytest.approx(0.25 * chances[:100].sum())  # a tenth of the cells: one root in four
    alone = chances_of(kinds[:100], studies[:100], is_simulated[:100], counted_share=0.5)
    assert alone.sum() == pytest.approx(1)


@needs_weights
def test_cells_are_projected_as_the_model_embeds_them():
    loaded, cells = load(EMBEDDED_MODEL), anndata.read_h5ad(GUARD_CELLS)[:40].copy()
    cells.obs["cell_type_ontology_term_id"] = ["CL:0000236", "CL:0000084"] * 20

    encoded = encode(loaded, iter([(False, np.full(40, "blood"), cells)]), PART)

    tokens = loaded.processor.gene_tokenizer(cells, return_tensors="pt")
    with torch.no_grad():
        expected = loaded.model.get_cell_features(**tokens).pooler_output
        found = encoded.embeds(nn.ModuleDict({name: getattr(loaded.model, name) for name in LAYERS}))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert encoded.terms == ["CL:0000084", "CL:0000236"]
    torch.testing.assert_close(encoded.profiles.norm(dim=1), torch.ones(40))


@needs_weights
def test_only_the_projections_change_and_only_once(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, model)
    before = load_file(model / "model.safetensors")
    layers = nn.ModuleDict({name: getattr(load(model).model, name) for name in LAYERS})
    for parameter in layers.parameters():
        parameter.data += 1

    write(model, layers, {"steps": 1})

    after = load_file(model / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")}
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    assert json.loads((model / "config.json").read_text())["training_summary"]["projection"] == {"steps": 1}
    with pytest.raises(typer.BadParameter, match="moved before"):
        main(model, tmp_path)
