"""The Q-Former: who may see whom in each mode, and that it is BLIP-2's architecture."""

import pytest
import torch
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from scmmgpt.modeling_scmmgpt import ScMMGPTQFormer, ScMMGPTQFormerConfig
from scmmgpt.modeling_scmmgpt.modeling_qformer import joint_mask
from scmmgpt.training.conversion.bert import QFORMER_NAMES
from scmmgpt.training.conversion.foreign_files import renamed

NUM_QUERIES, NUM_WORDS, WIDTH, CELL_WIDTH = 4, 40, 24, 32


@pytest.fixture
def qformer(tiny_config):
    def build(**qformer):
        return ScMMGPTQFormer(tiny_config(qformer=qformer).qformer_config).eval()

    return build


@pytest.fixture
def inputs(make_texts):
    return {
        "cell_states": torch.randn(3, 9, CELL_WIDTH),
        "cell_mask": (torch.arange(9) < torch.tensor([9, 5, 7])[:, None]).long(),
        **make_texts((7, 4, 6)),
    }


def words_that_move(model, inputs, mode, branch, position):
    """Which words change the state at `position` of a branch, by gradient; and whether the cell does."""
    words = {}
    hook = model.embeddings.word_embeddings.register_forward_hook(
        lambda module, args, output: words.setdefault("states", output.requires_grad_()).retain_grad()
    )
    cell_states = inputs["cell_states"].clone().requires_grad_()
    output = model(**{**inputs, "cell_states": cell_states}, mode=mode)
    hook.remove()
    getattr(output, branch)[0, position, 0].backward()
    moved = torch.zeros(7, dtype=torch.bool) if words["states"].grad is None else words["states"].grad[0].any(-1)
    return moved.tolist(), cell_states.grad is not None and bool(cell_states.grad.any())


def test_in_contrast_mode_no_word_reaches_a_query(qformer, inputs):
    words, cell = words_that_move(qformer(), inputs, "contrast", "query_states", 2)

    assert not any(words)
    assert cell


@pytest.mark.parametrize("position", [0, 3, 6])
def test_in_contrast_mode_no_cell_reaches_a_word(qformer, inputs, position):
    words, cell = words_that_move(qformer(), inputs, "contrast", "text_states", position)

    assert all(words)
    assert not cell


@pytest.mark.parametrize("branch", ["query_states", "text_states"])
def test_in_match_mode_everybody_sees_everybody(qformer, inputs, branch):
    words, cell = words_that_move(qformer(), inputs, "match", branch, 2)

    assert all(words)
    assert cell


@pytest.mark.parametrize("position", range(7))
def test_in_caption_mode_a_word_sees_the_cell_and_no_later_word(qformer, inputs, position):
    words, cell = words_that_move(qformer(), inputs, "caption", "text_states", position)

    assert words == [i <= position for i in range(7)]
    assert cell


def test_in_caption_mode_no_word_reaches_a_query(qformer, inputs):
    words, _ = words_that_move(qformer(), inputs, "caption", "query_states", 2)

    assert not any(words)


@pytest.mark.parametrize("mode", ["contrast", "caption"])
def test_perturbing_hidden_tokens_changes_no_bit(qformer, inputs, mode):
    model = qformer()
    output = model(**inputs, mode=mode)
    other_words = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other_words["input_ids"][:, 3:] = 39

    changed = model(**other_words, mode=mode)

    assert torch.equal(changed.query_states, output.query_states)
    if mode == "caption":
        assert torch.equal(changed.text_states[:, :3], output.text_states[:, :3])


def test_each_branch_of_contrast_mode_equals_the_branch_alone(qformer, inputs):
    model = qformer()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    cell = {name: inputs[name] for name in ("cell_states", "cell_mask")}

    together = model(**inputs, mode="contrast")

    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(together.query_states, model(**cell).query_states, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.text_states[real], model(**text).text_states[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["contrast", "match", "caption"])
def test_padding_on_either_side_changes_nothing(qformer, inputs, make_texts, mode):
    model = qformer()
    right, left = inputs["attention_mask"].bool(), inputs["attention_mask"].flip(1).bool()
    left_ids = torch.zeros_like(inputs["input_ids"])
    left_ids[left] = inputs["input_ids"][right]

    padded_right = model(**inputs, mode=mode)
    padded_left = model(**{**inputs, "input_ids": left_ids, "attention_mask": left.long()}, mode=mode)

    torch.testing.assert_close(padded_left.query_states, padded_right.query_states, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded_left.text_states[left], padded_right.text_states[right], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["contrast", "match", "caption"])
def test_a_pair_alone_equals_the_pair_in_a_batch(qformer, inputs, mode):
    model = qformer()
    batch = model(**inputs, mode=mode)

    alone = model(inputs["cell_states"][[1], :5], None, inputs["input_ids"][[1], :4], None, mode=mode)

    torch.testing.assert_close(alone.query_states[0], batch.query_states[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.text_states[0], batch.text_states[1, :4], atol=1e-5, rtol=0)


def test_no_row_of_a_mask_is_empty_even_for_an_empty_text():
    for mode in ("contrast", "match", "caption"):
        assert joint_mask(mode, NUM_QUERIES, torch.zeros(1, 5, dtype=torch.long)).any(-1).all()


def test_an_unknown_mode_is_refused(qformer, inputs):
    with pytest.raises(ValueError, match="one of contrast, match and caption, got 'itm'"):
        qformer()(**inputs, mode="itm")


def test_a_text_longer_than_the_positions_is_refused(qformer, make_texts):
    with pytest.raises(ValueError, match="9 tokens.*8 positions"):
        qformer(max_position_embeddings=8)(**make_texts((9,)))


def test_compiles_without_a_graph_break(qformer, inputs):
    model = qformer()
    expected = model(**inputs, mode="match").query_states

    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs, mode="match").query_states

    torch.testing.assert_close(compiled, expected)


def test_checkpointed_activations_give_the_same_gradients(qformer, inputs):
    model = qformer(hidden_dropout=0.0, attention_dropout=0.0).train()
    model(**inputs).query_states[..., 0].sum().backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()

    model(**inputs).query_states[..., 0].sum().backward()

    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], msg=name)


def test_shares_every_number_with_the_qformer_of_blip2(inputs):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    common = {**sizes, "encoder_hidden_size": CELL_WIDTH, "cross_attention_frequency": 2, "initializer_range": 0.2}
    reference = Blip2QFormerModel(Blip2QFormerConfig(**common, use_qformer_text_input=True)).eval()
    ours = ScMMGPTQFormer(ScMMGPTQFormerConfig(**common, num_query_tokens=NUM_QUERIES, vocab_size=NUM_WORDS)).eval()
    missing = ours.load_state_dict(renamed(reference.state_dict(), QFORMER_NAMES), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("embeddings.") for name in missing.missing_keys)

    text = ours.embeddings.embed_text(inputs["input_ids"], inputs["attention_mask"])
    states = torch.cat([ours.embeddings.query_tokens.expand(3, -1, -1), text], dim=1)
    real = torch.cat([torch.ones(3, NUM_QUERIES, dtype=torch.long), inputs["attention_mask"]], dim=1)
    theirs = reference(
        query_embeds=states,
        query_length=NUM_QUERIES,
        attention_mask=real,
        encoder_hidden_states=inputs["cell_states"],
        encoder_attention_mask=inputs["cell_mask"].bool()[:, None, None],  # theirs forgets the text in a 2D mask
    ).last_hidden_state

    output = ours(**inputs, mode="match")

    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(output.query_states, theirs[:, :NUM_QUERIES], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.text_states[seen], theirs[:, NUM_QUERIES:][seen], atol=1e-5, rtol=0)


def test_states_and_attentions_are_recorded_on_request(qformer, inputs):
    model = qformer()
    model.set_attn_implementation("eager")
    options = {"output_hidden_states": True, "output_attentions": True}

    output = model(**inputs, **options)

    total = NUM_QUERIES + 7
    assert [states.shape for states in output.hidden_states] == [(3, total, WIDTH)] * 3
    assert [weights.shape for weights in output.attentions] == [(3, 4, total, total)] * 2
    assert [weights.shape for weights in output.cross_attentions] == [(3, 4, NUM_QUERIES, 9)]  # every second layer
    torch.testing.assert_close(output.hidden_states[-1][:, :NUM_QUERIES], output.query_states)
    torch.testing.assert_close(model(**inputs, **options, return_dict=False), output.to_tuple())
