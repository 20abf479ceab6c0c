"""Text to cell by factors: what decides which cells come out, how they differ, and what is refused."""

import pytest
import torch

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration

NUM_GENES = 58
FACT_SIZES = {"type": 3, "organism": 2, "tissue": 3, "stage": 2, "disease": 1}
FACTORS = {
    "kind": "factors",
    "num_states": 6,
    "num_factors": 3,
    "factor_rank": 3,
    "num_kinds": 4,
    "state_hidden_size": 16,
    "fact_sizes": list(FACT_SIZES.values()),
    "num_populations": 4,
    "num_own_genes": 2,
    "platforms": ["10x", "Smart-seq2"],
}


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    network = ScMMGPTForConditionalGeneration(tiny_config(decoder=FACTORS)).eval()
    decoder = network.cell_decoder
    with torch.no_grad():
        decoder.kind_spreads.copy_(torch.eye(3).expand(4, 3, 3) * torch.arange(1, 5)[:, None, None] / 4)
        decoder.gene_platforms[10, 1] = 3.0
        decoder.gene_dispersion.fill_(3.0)
    return network


def test_cells_are_whole_counts_of_all_genes(model, make_texts):
    output = model.generate_cells(**make_texts(), num_cells=4)

    assert output.counts.dtype == torch.int32
    assert output.counts.shape == (12, NUM_GENES)
    assert (output.counts >= 0).all()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_same_seed_gives_the_same_bytes_in_any_batch_size(model, make_texts, batch_size):
    expected = model.generate_cells(**make_texts(), num_cells=7, seed=3)
    output = model.generate_cells(**make_texts(), num_cells=7, seed=3, batch_size=batch_size)

    assert output.counts.numpy().tobytes() == expected.counts.numpy().tobytes()
    assert not torch.equal(model.generate_cells(**make_texts(), num_cells=7, seed=4).counts, expected.counts)


def test_saved_and_loaded_it_gives_the_same_cells(model, make_texts, tmp_path):
    model.save_pretrained(tmp_path)

    loaded = ScMMGPTForConditionalGeneration.from_pretrained(tmp_path)

    expected = model.generate_cells(**make_texts(), num_cells=3).counts
    assert torch.equal(loaded.generate_cells(**make_texts(), num_cells=3).counts, expected)
    assert loaded.config.cell_decoder_config.platforms == ["10x", "Smart-seq2"]


def test_the_mean_of_many_cells_has_the_shares_of_the_state(model):
    state = model.cell_decoder.kind_states[1].detach()
    population = model.cell_decoder.population(state, torch.arange(2, 60))
    draws = [population.draw(torch.Generator().manual_seed(i))[0].exp() for i in range(4000)]

    expected = model.cell_decoder.log_shares(state[None], torch.arange(2, 60))[0].softmax(0)

    torch.testing.assert_close(torch.stack(draws).mean(0), expected.detach(), rtol=0.1, atol=0)


def test_cells_vary_as_their_nearest_kinds_do(model):
    decoder, genes = model.cell_decoder, torch.arange(2, 60)

    calm, lively = (decoder.population(decoder.kind_states[i].detach() * 3, genes) for i in (0, 3))

    assert (lively.loadings.square().sum() > 4 * calm.loadings.square().sum()).item()


def test_guidance_moves_the_mean_and_leaves_the_spread_to_the_kinds(model, make_texts):
    texts = make_texts((5,))

    plain, guided = (model.text_states(**texts, guidance_scale=scale) for scale in (1.0, 3.0))
    none = model.cell_decoder.states(model.cell_decoder.text_features())

    torch.testing.assert_close(guided - none, 3 * (plain - none), atol=1e-5, rtol=1e-4)
    cells = model.generate_cells(**texts, guidance_scale=3.0, num_cells=20, library_size=3000).counts
    assert len(cells.unique(dim=0)) == 20


def says(**facts):
    """What a text says, as the reader would have it: a type, an organism, and perhaps a tissue and a stage."""
    said = [torch.nn.functional.one_hot(torch.tensor(facts.get(name, 0)), size) for name, size in FACT_SIZES.items()]
    return torch.cat(said)[None].float()


@pytest.fixture
def knowing(model):
    """Types 0 and 1 are alike, 2 is not. Known are 0 and 2 in tissue 1, 0 in tissue 2, and 0 in tissue 1 at stage 1.

    Each of these populations has a direction of its own, in which it lies one step from its type.
    """
    decoder = model.cell_decoder
    with torch.no_grad():
        decoder.type_states.zero_()
        decoder.type_states[0, :, 0], decoder.type_states[1, :, 0], decoder.type_states[2, :, 1] = 2.0, 2.1, 2.0
        decoder.type_levels.copy_(decoder.type_states)
        rows = [
            says(type=0, tissue=1),
            says(type=2, tissue=1),
            says(type=0, tissue=2),
            says(type=0, tissue=1, stage=1),
        ]
        decoder.population_facts.copy_(torch.cat(rows))
        decoder.population_facts[:, 5] = 1  # where no tissue is said, each of them answers
        for number, type_number in enumerate((0, 2, 0, 0)):
            decoder.population_states[number] = decoder.type_levels[type_number, 0]
            decoder.population_states[number, 2 + number] = 1.0
    return decoder


def test_a_known_population_has_the_state_that_was_found(knowing):
    own = knowing.composed(says(type=0, tissue=1))[0, :6]

    torch.testing.assert_close(own, torch.tensor([2.0, 0, 1, 0, 0, 0]), atol=1e-2, rtol=0)


def test_an_unknown_pair_moves_as_the_types_most_like_it_do_there(knowing):
    shift = knowing.composed(says(type=1, tissue=1))[0, :6] - knowing.type_states[1, 0]

    assert shift[2] > 5 * shift[3] > 0
    assert shift[2] > 0.9


def test_where_no_tissue_is_said_the_cells_are_of_any(knowing):
    state = knowing.composed(says(type=0))[0, :6]

    torch.testing.assert_close(state, knowing.type_states[0, 0])


def test_a_stage_counts_beside_the_tissue(knowing):
    state = knowing.composed(says(type=0, tissue=1, stage=1))[0]

    assert state[5] > 0.99
    assert state[2].abs() < 0.01


def test_where_nothing_is_known_the_type_stays_as_it_is(knowing):
    state = knowing.composed(says(type=2, tissue=2, stage=1))[0, :6]

    torch.testing.assert_close(state, knowing.type_states[2, 0], atol=1e-2, rtol=0)


def test_a_type_seen_in_one_place_keeps_what_that_place_does_to_it(knowing):
    with torch.no_grad():
        knowing.type_levels[2, :, 1] = 0.5  # seen once
        knowing.type_levels[0, :, 0] = 0.5  # seen three times

    once, often = (knowing.composed(says(type=number, tissue=2, stage=1))[0, :6].detach() for number in (2, 0))

    assert once[1].item() == pytest.approx(2.0, abs=0.05)
    assert often[0] < 1


def test_the_genes_that_are_a_population_s_own_come_with_it_and_with_its_type_elsewhere(knowing):
    with torch.no_grad():
        knowing.own_genes[0, 0], knowing.own_shifts[0, 0] = 20, 5.0
        knowing.own_genes[1, 0], knowing.own_shifts[1, 0] = 30, 5.0
    plain, genes = knowing.gene_bias[0] * 0, torch.tensor([20, 30])

    def shares(**facts):
        state = knowing.composed(says(**facts))
        return knowing.log_shares(state, genes)[0] - knowing.gene_states[genes] @ state[0, :6] - plain

    torch.testing.assert_close(shares(type=0, tissue=1), torch.tensor([5.0, 0.0]), atol=1e-2, rtol=0)
    assert shares(type=0, tissue=2)[0].abs() < 0.01  # known without it
    assert shares(type=2, tissue=2)[1] > 4.9  # unknown there: as the type is elsewhere


def test_a_platform_shifts_its_genes(model, make_texts):
    def share(platform):
        counts = model.generate_cells(**make_texts((5,)), num_cells=60, platform=platform, library_size=5000).counts
        return counts[:, 8].float().mean()  # gene id 10

    assert share("Smart-seq2") > 5 * share("10x")
    assert share("10x") == share(None)


def test_depth_is_the_median_of_totals_that_differ(model, make_texts):
    totals = model.generate_cells(**make_texts((5,)), num_cells=300, depth=2000).library_size

    assert totals.median() == pytest.approx(2000, rel=0.15)
    assert totals.log().std() == pytest.approx(0.5, rel=0.15)


def test_reads_are_copies_of_few_molecules(model, make_texts):
    with torch.no_grad():
        model.cell_decoder.platform_molecules[1] = 4.0  # e^4 = 55 molecules
    wish = {"num_cells": 100, "depth": 5000}

    reads = model.generate_cells(**make_texts((5,)), platform="Smart-seq2", **wish).counts
    counts = model.generate_cells(**make_texts((5,)), platform="10x", **wish).counts

    assert reads.sum(1).float().median() == pytest.approx(5000, rel=0.25)
    assert (reads > 0).float().mean() < 0.6 * (counts > 0).float().mean()
    assert reads.max() > 2 * counts.max()


def test_the_empty_text_means_any_counted_kind(model):
    output = model.generate_cells(torch.zeros(1, 0, dtype=torch.long), num_cells=40, library_size=20_000)

    spread = output.counts.float().log1p().std(0).mean()
    state = model.cell_decoder.kind_states[:1]
    one_kind = model.generate_cells(torch.tensor([[6, 7]]), num_cells=40, library_size=20_000, states=state)
    assert spread > one_kind.counts.float().log1p().std(0).mean()


def test_cells_lead_back_to_the_state_that_they_were_made_from(model):
    state = torch.nn.functional.pad(torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), (0, 4))
    with torch.no_grad():
        model.cell_decoder.kind_spreads.mul_(1e-3)
        model.cell_decoder.gene_states.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
        model.cell_decoder.kind_states.fill_(1.0)
    cells = model.generate_cells(torch.tensor([[6, 7]]), num_cells=50, states=state, library_size=3000)

    found = model.cell_states(cells.counts.float().mean(0, keepdim=True), cells.gene_ids)

    torch.testing.assert_close(found, state, atol=0.15, rtol=0)


def test_states_take_the_place_of_the_texts(model, make_texts):
    texts = make_texts((5, 4))
    own = model.text_states(**texts)

    as_told = model.generate_cells(**texts, num_cells=3).counts
    with_states = model.generate_cells(**texts, num_cells=3, states=own).counts
    swapped = model.generate_cells(**texts, num_cells=3, states=own.flip(0)).counts

    assert torch.equal(as_told, with_states)
    assert not torch.equal(as_told, swapped)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        pytest.param({"platform": "10X"}, "must be one of 10x, Smart-seq2, got '10X'", id="platform"),
        pytest.param({"depth": 0.5}, "`depth` must be at least 1", id="depth"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(model, make_texts, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        model.generate_cells(**make_texts(), **wrong)


def test_a_flow_knows_neither_platforms_nor_states(tiny_config, make_texts):
    flow = ScMMGPTForConditionalGeneration(tiny_config()).eval()

    with pytest.raises(ValueError, match="no platforms and no states"):
        flow.generate_cells(**make_texts(), platform="10x")
    with pytest.raises(ValueError, match="States are of cell decoders with factors"):
        flow.text_states(**make_texts())
    totals = flow.generate_cells(**make_texts((5,)), num_cells=100, depth=500).library_size
    assert totals.median() == pytest.approx(500, rel=0.3)


def test_it_learns_from_counts_too(model, make_cells, make_texts):
    texts = make_texts((7, 4, 6))
    batch = {
        **make_cells(),
        "cell_prompt_ids": texts["input_ids"],
        "cell_prompt_mask": texts["attention_mask"],
        "target_gene_ids": torch.arange(2, 60),
        "target_counts": torch.randint(0, 9, (3, NUM_GENES)),
    }
    model.train()
    optimizer = torch.optim.AdamW(model.cell_decoder.parameters(), lr=1e-2, weight_decay=0.0)

    losses = []
    for _ in range(40):
        losses.append(model(**batch).cell_generation_loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()

    assert sum(losses[-5:]) < sum(losses[:5]) * 0.9


def test_more_genes_leave_the_others_as_they_were(model):
    before = model.cell_decoder.gene_states.detach().clone()

    model.resize_gene_embeddings(64)

    assert model.cell_decoder.gene_dispersion.shape == (64,)
    torch.testing.assert_close(model.cell_decoder.gene_states[:60].detach(), before)
