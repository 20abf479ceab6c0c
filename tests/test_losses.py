"""Stage 1's losses: who may be a negative of whom, what each says, and what trains."""

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from scmmgpt.modeling_scmmgpt import ScMMGPTForPreTraining
from scmmgpt.modeling_scmmgpt.losses_scmmgpt import caption_loss, contrast_loss, lineage_overlap, sample_negatives

# B cell and CD4 T cell are T-or-B lymphocytes; a neuron is none. Each row: the type, then its ancestors.
LYMPHOCYTE, B_CELL, CD4_T_CELL, NEURON, CELL = 1, 2, 3, 4, 0
LINEAGE = torch.tensor(
    [[LYMPHOCYTE, CELL, -1], [B_CELL, LYMPHOCYTE, CELL], [CD4_T_CELL, LYMPHOCYTE, CELL], [NEURON, CELL, -1]]
)


def unit(*shape):
    return F.normalize(torch.randn(shape), dim=-1)


def test_contrast_is_the_symmetric_cross_entropy():
    cells, texts, own = unit(4, 8), unit(4, 8), torch.arange(4)

    logits = 10 * cells @ texts.T

    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrast_loss(cells, texts, torch.tensor(10.0)), expected)


def test_cells_of_one_text_are_not_pushed_apart():
    cells, texts = unit(3, 8).requires_grad_(), unit(3, 8).requires_grad_()

    contrast_loss(cells[[0, 1]], texts[[0, 1]], torch.tensor(10.0), text_groups=torch.tensor([7, 7])).backward()

    assert not cells.grad.any()
    assert not texts.grad.any()


def test_an_ancestor_is_related_and_a_sibling_only_similar():
    related, similarity = lineage_overlap(LINEAGE)

    assert related[0].tolist() == [True, True, True, False]
    assert related[1].tolist() == [True, True, False, False]
    assert similarity[1, 2] == pytest.approx(2 / 4)
    assert similarity[1, 3] == pytest.approx(1 / 4)
    torch.testing.assert_close(similarity, similarity.T)


def test_an_unknown_type_is_related_to_none():
    related, similarity = lineage_overlap(torch.tensor([[-1, -1], [-1, -1], [1, 0]]))

    assert not related[:2].any()
    assert not similarity[:2].any()


def test_a_text_of_an_ancestor_is_no_negative():
    cells, texts = unit(4, 8).requires_grad_(), unit(4, 8)
    own_term_alone = LINEAGE.clone()
    own_term_alone[:, 1:] = -1

    def push(lineage):
        """How the loss moves the B cell's similarity to the lymphocyte's text."""
        loss = contrast_loss(cells, texts, torch.tensor(1.0), text_lineage=lineage, target_temperature=1e-3)
        return torch.autograd.grad(loss, cells)[0][1]

    # Two gradients of the B cell's row: with and without the lymphocyte's text among its negatives.
    assert not torch.allclose(push(LINEAGE), push(own_term_alone))
    texts[0] = -texts[0]
    changed = push(LINEAGE)
    texts[0] = -texts[0]
    torch.testing.assert_close(changed, push(LINEAGE))


def test_a_sibling_takes_more_of_the_target_than_a_stranger():
    cells, texts = torch.zeros(4, 8), torch.zeros(4, 8, requires_grad=True)
    cells[1, 0] = 1.0

    loss = contrast_loss(cells, texts, torch.tensor(1.0), text_lineage=LINEAGE, target_temperature=1.0)
    loss.backward()
    pull_of_b_cell = -texts.grad[:, 0]

    # All similarities are equal, so that only the targets make a difference: itself, then the sibling, the stranger.
    assert pull_of_b_cell[1] > pull_of_b_cell[2] > pull_of_b_cell[3]


def test_hard_negatives_are_never_related_pairs():
    excluded = torch.eye(6, dtype=torch.bool) | (torch.arange(6)[:, None] % 2 == torch.arange(6)[None] % 2)

    for _ in range(50):
        drawn, has_negative = sample_negatives(torch.randn(6, 6) * 30, excluded)
        assert has_negative.all()
        assert not excluded[torch.arange(6), drawn].any()


def test_a_batch_of_one_text_has_no_negative():
    _, has_negative = sample_negatives(torch.randn(3, 3), torch.ones(3, 3, dtype=torch.bool))

    assert not has_negative.any()


def test_the_caption_loss_does_not_depend_on_the_side_of_the_padding():
    logits, ids, mask = torch.randn(1, 5, 11), torch.randint(11, (1, 5)), torch.tensor([[1, 1, 1, 0, 0]])
    moved = [3, 4, 0, 1, 2]

    left = caption_loss(logits[:, moved], ids[:, moved], mask[:, moved])

    torch.testing.assert_close(left, caption_loss(logits, ids, mask))


def test_a_caption_of_one_token_says_nothing():
    assert caption_loss(torch.randn(1, 1, 11), torch.tensor([[3]]), torch.tensor([[1]])) == 0


# ---- the model of stage 1


@pytest.fixture
def batch(make_cells, make_texts):
    cells = make_cells((12, 7, 9, 5))
    labels = torch.full_like(cells["gene_values"], -100)
    labels[:, 2:4] = cells["gene_values"][:, 2:4]
    return {**cells, **make_texts((7, 4, 6, 5)), "target_values": labels, "text_groups": torch.tensor([0, 1, 0, 2])}


@pytest.fixture
def model(tiny_config):
    def build(**config):
        still = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
        return ScMMGPTForPreTraining(tiny_config(cell={"hidden_dropout": 0.0}, qformer=still, **config))

    return build


def test_the_loss_is_the_weighted_sum_of_the_named_losses(model, batch):
    weights = {"contrast_weight": 1.0, "match_weight": 0.5, "caption_weight": 2.0, "value_weight": 0.25}

    output = model(**weights)(**batch)

    named = [weight * output[name.replace("_weight", "_loss")] for name, weight in weights.items()]
    torch.testing.assert_close(output.loss, torch.stack(named).sum())


def test_the_loss_comes_first_as_transformers_has_it(model, batch):
    output = model(value_weight=1.0)(**batch)

    assert output[0] is output.loss
    assert output.to_tuple()[0] is output.loss


def test_a_batch_that_is_evaluated_has_one_loss(model, batch):
    evaluated = model().eval()

    losses = {evaluated(**batch).loss.item() for _ in range(5)}

    assert len(losses) == 1


def test_the_losses_of_mixed_precision_are_near_those_of_single_and_in_float32(model, batch):
    stage_1 = model(value_weight=1.0, match_weight=0.0)  # its negatives are drawn by what is near, to the last bit
    losses = ("loss", "contrast_loss", "caption_loss", "value_loss")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = stage_1(**batch)
        stage_1.zero_grad()
        mixed.loss.backward()

    single = stage_1(**batch)
    assert {mixed[name].dtype for name in losses} == {torch.float32}
    assert all(torch.allclose(mixed[name], single[name], rtol=0.05, atol=0.02) for name in losses)
    assert all(part.grad is None or part.grad.isfinite().all() for part in stage_1.parameters())


def test_the_matching_loss_trains_in_mixed_precision(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model()(**batch).match_loss

    assert loss.dtype == torch.float32
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["contrast", "match", "caption", "value"])
def test_a_loss_of_weight_zero_is_not_computed(model, batch, name):
    output = model(**{"value_weight": 1.0, f"{name}_weight": 0.0})(**batch)

    assert f"{name}_loss" not in output


def test_every_weight_of_stage_1_moves(model, batch):
    network = model(value_weight=1.0)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)

    for _ in range(2):
        optimizer.zero_grad()
        network(**batch).loss.backward()
        optimizer.step()

    assert [name for name, weight in network.named_parameters() if torch.equal(weight, before[name])] == []


def test_a_frozen_tower_does_not_move(model, batch):
    network = model()
    network.model.cell_encoder.requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in network.model.cell_encoder.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)

    network(**batch).loss.backward()
    optimizer.step()

    for name, weight in network.model.cell_encoder.named_parameters():
        assert torch.equal(weight, before[name]), name


def test_stage_1_learns_to_tell_four_cells_apart(model, batch):
    network = model(value_weight=1.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    del batch["text_groups"]

    losses = []
    for _ in range(25):
        losses.append(network(**batch))
        optimizer.zero_grad()
        losses[-1].loss.backward()
        optimizer.step()

    for name in ("contrast_loss", "caption_loss", "value_loss"):
        assert losses[-1][name] < losses[0][name] / 2, name


def test_packed_cells_give_the_same_losses(model, batch, pack):
    network, cells = model(match_weight=0.0).eval(), ("gene_ids", "gene_values", "gene_mask")
    packed = pack({name: batch[name] for name in cells})

    padded = network(**batch)
    other = network(**{name: value for name, value in batch.items() if name not in cells}, **packed)

    torch.testing.assert_close(other.contrast_loss, padded.contrast_loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(other.caption_loss, padded.caption_loss, atol=1e-5, rtol=0)


def test_nothing_to_learn_is_refused(model, make_cells):
    with pytest.raises(ValueError, match="neither text nor `target_values`"):
        model()(**make_cells())


def test_a_plain_trainer_evaluates_the_loss_of_stage_1(model, batch, tmp_path):
    rows = [{name: value[i] for name, value in batch.items() if name != "target_values"} for i in range(4)]
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to=[], per_device_eval_batch_size=2)
    network = model(match_weight=0.0)

    measured = Trainer(network, arguments, eval_dataset=rows).evaluate()

    halves = [{name: value.chunk(2)[half] for name, value in batch.items()} for half in range(2)]
    assert measured["eval_loss"] == pytest.approx(sum(network(**half).loss.item() for half in halves) / 2, rel=1e-5)


def test_embeddings_come_without_a_loss_where_none_is_asked_for(model, batch):
    network = model(value_weight=1.0).eval()

    output = network(**batch, return_loss=False)

    assert output.loss is None
    torch.testing.assert_close(output.cell_embeds, network(**batch).cell_embeds)
