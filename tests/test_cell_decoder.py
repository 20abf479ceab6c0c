"""Text to cell: what decides which cells come out, and what is refused."""

import pytest
import torch

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.modeling_scmmgpt.modeling_cell_decoder import negative_binomial_loss, sample_counts

NUM_GENES = 58


@pytest.fixture
def model(tiny_config):
    def build(**parts):
        return ScMMGPTForConditionalGeneration(tiny_config(**parts)).eval()

    return build


def rows(output, text, num_cells):
    return output.counts[text * num_cells : (text + 1) * num_cells]


def test_cells_are_whole_counts_of_all_genes(model, make_texts):
    output = model().generate_cells(**make_texts(), num_cells=4)

    assert output.counts.dtype == torch.int32
    assert output.counts.shape == (12, NUM_GENES)
    assert output.gene_ids.tolist() == list(range(2, 60))
    assert (output.counts >= 0).all()
    assert (output.library_size >= 1).all()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_same_seed_gives_the_same_cells_in_any_batch_size(model, make_texts, batch_size):
    network, texts = model(), make_texts()

    expected = network.generate_cells(**texts, num_cells=7, seed=3)
    output = network.generate_cells(**texts, num_cells=7, seed=3, batch_size=batch_size)

    assert torch.equal(output.counts, expected.counts)


def test_more_cells_begin_with_the_same_cells(model, make_texts):
    network, texts = model(), make_texts((5,))

    few, many = (network.generate_cells(**texts, num_cells=number).counts for number in (3, 9))

    assert torch.equal(many[:3], few)


@pytest.mark.parametrize("seed", [1, 2**32 + 5, 2**63])
def test_another_seed_gives_other_cells(model, make_texts, seed):
    network, texts = model(), make_texts()

    assert not torch.equal(
        network.generate_cells(**texts, num_cells=3, seed=seed).counts,
        network.generate_cells(**texts, num_cells=3).counts,
    )


def test_swapping_the_texts_swaps_the_cells(model, make_texts):
    network, texts = model(), make_texts()
    swapped = {name: value[[2, 0, 1]] for name, value in texts.items()}

    straight, other = (network.generate_cells(**t, num_cells=4) for t in (texts, swapped))

    for new, old in enumerate((2, 0, 1)):
        assert torch.equal(rows(other, new, 4), rows(straight, old, 4))
    assert not torch.equal(rows(straight, 0, 4), rows(straight, 1, 4))


def test_padding_of_a_text_changes_no_cell(model, make_texts):
    network, texts = model(), make_texts((7, 4))

    alone = network.generate_cells(texts["input_ids"][1:, :4], num_cells=4)

    assert torch.equal(rows(network.generate_cells(**texts, num_cells=4), 1, 4), alone.counts)


def test_a_text_that_comes_again_brings_new_cells(model, make_texts):
    network, text = model(), make_texts((5,))
    twice = {name: value.expand(2, -1) for name, value in text.items()}

    output = network.generate_cells(**twice, num_cells=5)

    assert torch.equal(rows(output, 0, 5), network.generate_cells(**text, num_cells=5).counts)
    assert not torch.equal(rows(output, 0, 5), rows(output, 1, 5))


def test_ten_thousand_cells_hold_no_duplicates(model, make_texts):
    chunks = model().stream_cells(**make_texts((5,)), num_cells=10_000, batch_size=2048, library_size=3000)

    counts = torch.cat([chunk.counts for chunk in chunks])

    assert len(counts) == 10_000
    assert len(counts.unique(dim=0)) == 10_000


@pytest.mark.parametrize(
    "empty",
    [
        pytest.param(torch.zeros(1, 0, dtype=torch.long), id="no token"),
        pytest.param(torch.tensor([[1]]), id="the tokenizer's first token alone"),
        pytest.param(torch.tensor([[1, 2]]), id="first and last token"),
    ],
)
def test_the_empty_text_has_the_features_of_no_text(model, empty):
    network = model()

    features = network.text_features(empty)

    torch.testing.assert_close(features[0], network.cell_decoder.text_features.no_text)
    assert network.generate_cells(empty, num_cells=2).counts.shape == (2, NUM_GENES)


def test_an_empty_text_beside_others_changes_none(model, make_texts):
    network, texts = model(), make_texts((7, 4))
    mask = torch.cat([texts["attention_mask"], torch.zeros(1, 7, dtype=torch.long)])
    ids = torch.cat([texts["input_ids"], torch.zeros(1, 7, dtype=torch.long)])

    features = network.text_features(ids, mask)

    torch.testing.assert_close(features[:2], network.text_features(**texts), atol=1e-5, rtol=0)
    torch.testing.assert_close(features[2], network.cell_decoder.text_features.no_text)


def test_chosen_genes_are_those_columns_of_all_genes(model, make_texts):
    network, texts, chosen = model(), make_texts(), torch.tensor([40, 7, 12])
    seen = {}
    network.cell_decoder.gene_head.register_forward_hook(lambda m, args, out: seen.update(genes=args[2]))

    output = network.generate_cells(**texts, gene_ids=chosen, num_cells=2)

    assert output.counts.shape == (6, 3)
    assert output.gene_ids.tolist() == [40, 7, 12]
    assert len(seen["genes"]) == NUM_GENES  # shares are of the whole transcriptome, whatever was asked for


def test_the_library_size_asked_for_is_the_mean_of_the_totals(model, make_texts):
    output = model().generate_cells(**make_texts((5,)), num_cells=400, library_size=2000)

    assert output.counts.sum(1).float().mean() == pytest.approx(2000, rel=0.05)


def test_guidance_leans_away_from_no_text(model, make_texts):
    network, texts = model(), make_texts((5,))

    plain, guided, none = (
        network.generate_cells(**texts, guidance_scale=s, num_cells=4).counts for s in (1.0, 4.0, 0.0)
    )

    assert not torch.equal(plain, guided)
    assert not torch.equal(plain, none)


def test_generation_never_reads_a_real_cell(model, make_texts):
    network = model()
    for part in (network.model.qformer, network.cell_decoder.latent_encoder):
        part.register_forward_hook(lambda *args: pytest.fail("a real cell was asked for"))

    network.generate_cells(**make_texts(), num_cells=2)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        pytest.param({"num_cells": 0}, "`num_cells` must be at least 1, got 0", id="no cells"),
        pytest.param({"batch_size": 0}, "`batch_size` must be at least 1", id="no batch"),
        pytest.param({"library_size": 0}, "`library_size` must be at least 1", id="no counts"),
        pytest.param({"gene_ids": torch.tensor([3, 60])}, "58 genes.*holds 60, which is no gene", id="outside"),
        pytest.param({"gene_ids": torch.tensor([3, 1])}, "holds 1, which is no gene", id="special token"),
        pytest.param({"gene_ids": torch.tensor([], dtype=torch.long)}, "shape .0,", id="no genes"),
        pytest.param({"gene_ids": torch.tensor([[3, 4]])}, "shape .1, 2.", id="not a vector"),
    ],
)
def test_what_cannot_be_generated_is_refused(model, make_texts, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        model().generate_cells(**make_texts(), **wrong)


# ---- the loss


@pytest.fixture
def targets(make_cells, make_texts):
    texts = make_texts((7, 4, 6))
    return {
        **make_cells(),
        "cell_prompt_ids": texts["input_ids"],
        "cell_prompt_mask": texts["attention_mask"],
        "target_gene_ids": torch.arange(2, 60),
        "target_counts": torch.randint(0, 9, (3, NUM_GENES)),
    }


def test_the_negative_binomial_is_that_of_torch():
    counts, mean, dispersion = torch.arange(6.0)[None], torch.rand(1, 6) * 5 + 0.1, torch.rand(6) * 3 + 0.1

    reference = torch.distributions.NegativeBinomial(dispersion, logits=torch.log(mean / dispersion))

    expected = -reference.log_prob(counts).mean()
    torch.testing.assert_close(negative_binomial_loss(counts, mean, dispersion), expected)


def test_sampled_counts_have_the_mean_and_the_variance_asked_for():
    mean, dispersion = torch.tensor([0.5, 5.0, 50.0]).expand(40_000, 3), torch.tensor([0.5, 2.0, 10.0])

    counts = sample_counts(mean, dispersion, torch.Generator().manual_seed(0)).float()

    torch.testing.assert_close(counts.mean(0), mean[0], rtol=0.05, atol=0)
    torch.testing.assert_close(counts.var(0), mean[0] + mean[0] ** 2 / dispersion, rtol=0.1, atol=0)


def test_text_to_cell_learns_and_every_weight_of_it_moves(model, targets):
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    network = model(
        cell={"hidden_dropout": 0.0}, qformer=still, decoder={"text_dropout": 0.5, "num_gene_loadings": 2}
    ).train()
    before = {name: weight.detach().clone() for name, weight in network.cell_decoder.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)

    losses = []
    for _ in range(40):
        losses.append(network(**targets).cell_generation_loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()

    assert sum(losses[-5:]) < sum(losses[:5]) * 0.9
    stayed = [name for name, weight in network.cell_decoder.named_parameters() if torch.equal(weight, before[name])]
    # A key's bias moves every score of a row alike, which the softmax does not see.
    assert [name for name in stayed if name not in ("text_features.key_proj.bias", "gene_head.memory_key.bias")] == []


def test_both_directions_add_up_in_one_loss(model, targets):
    network = model(cell_generation_weight=0.5)
    prompts = torch.tensor([[6, 5, 5, 5, 5, 7]] * 3)

    torch.manual_seed(1)
    output = network(**targets, input_ids=prompts, labels=prompts)

    torch.testing.assert_close(output.loss, output.language_loss + 0.5 * output.cell_generation_loss)


def test_packed_cells_give_the_same_loss(model, targets, pack):
    network, cells = model(), ("gene_ids", "gene_values", "gene_mask")
    packed = {name: value for name, value in targets.items() if name not in cells}
    packed |= pack({name: targets[name] for name in cells})

    torch.manual_seed(1)
    expected = network(**targets).cell_generation_loss
    torch.manual_seed(1)

    torch.testing.assert_close(network(**packed).cell_generation_loss, expected)


def test_one_text_per_cell_is_asked_for(model, targets):
    targets["cell_prompt_ids"] = targets["cell_prompt_ids"][:2]

    with pytest.raises(ValueError, match="got 2 texts, 3 rows and 3 cells"):
        model()(**targets)
