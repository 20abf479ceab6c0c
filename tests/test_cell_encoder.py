"""The cell encoder: one cell, one answer, however it arrives; and what it refuses."""

from dataclasses import fields

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, AutoModelForPreTraining

from scmmgpt.modeling_scmmgpt import (
    ScMMGPTCellConfig,
    ScMMGPTCellDecoderConfig,
    ScMMGPTCellEncoder,
    ScMMGPTCellEncoderForMaskedValues,
    ScMMGPTConfig,
    ScMMGPTQFormerConfig,
)

KINDS = {
    "scgpt": {},
    "bins": {"value_encoding": "bins", "num_bins": 8},
    "ranks only": {"value_encoding": "none"},
    "narrow table": {"embedding_size": 16},
    "pooled": {"num_pooled_tokens": 2, "num_attended_genes": 5, "embedding_size": 48},
    "shortcut": {"num_pooled_tokens": 2, "num_attended_genes": 5, "pooled_shortcut": True},
}
SCGPT, POOLED, SHORTCUT = KINDS["scgpt"], KINDS["pooled"], KINDS["shortcut"]


@pytest.fixture
def encoder(tiny_config):
    def build(**cell):
        return ScMMGPTCellEncoder(tiny_config(cell=cell).cell_config).eval()

    return build


def states_of(output, cell):
    """The real states of one cell of a batch."""
    return output.last_hidden_state[cell][output.state_mask[cell].bool()]


@pytest.mark.parametrize("cell", KINDS.values(), ids=KINDS)
def test_a_cell_alone_equals_the_cell_in_a_padded_batch(encoder, make_cells, cell):
    model, cells = encoder(**cell), make_cells((12, 7, 1, 9))

    batch = model(**cells)

    for i, length in enumerate((12, 7, 1, 9)):
        alone = model(cells["gene_ids"][[i], :length], cells["gene_values"][[i], :length])
        torch.testing.assert_close(alone.last_hidden_state[0], states_of(batch, i), atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.pooler_output[0], batch.pooler_output[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", KINDS.values(), ids=KINDS)
def test_the_order_of_cells_changes_nothing(encoder, make_cells, cell):
    model, cells, order = encoder(**cell), make_cells(), torch.tensor([2, 0, 1])

    shuffled = model(**{name: value[order] for name, value in cells.items()})

    torch.testing.assert_close(shuffled.pooler_output, model(**cells).pooler_output[order], atol=1e-5, rtol=0)


def test_the_order_of_genes_changes_nothing(encoder, make_cells):
    model, cells = encoder(), make_cells((12,))
    order = torch.cat([torch.tensor([0]), torch.randperm(11) + 1])

    shuffled = model(cells["gene_ids"][:, order], cells["gene_values"][:, order])

    torch.testing.assert_close(shuffled.pooler_output, model(**cells).pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa", "torch_varlen"])
def test_packed_cells_equal_padded_cells(encoder, make_cells, pack, cell, attention):
    model, cells = encoder(**cell), make_cells((12, 7, 1, 9))
    padded = model(**cells)
    model.set_attn_implementation(attention)

    packed = model(**pack(cells))

    for i in range(4):
        torch.testing.assert_close(states_of(packed, i), states_of(padded, i), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "torch_varlen"])
def test_nothing_crosses_between_packed_cells(encoder, make_cells, pack, attention):
    model = encoder()
    model.set_attn_implementation(attention)
    packed = pack(make_cells((12, 7, 9)))
    values = packed["gene_values"].requires_grad_()

    model(**packed).last_hidden_state[1, :, 0].sum().backward()

    moved = values.grad[0] != 0
    assert moved[13:19].all()  # its own genes (the <cls> at 12 too, but by its constant value)
    assert not moved[:12].any()
    assert not moved[19:].any()


def test_padding_receives_no_gradient(encoder, make_cells):
    cells = make_cells((12, 7))
    values = cells["gene_values"].requires_grad_()

    encoder()(**cells).pooler_output[:, 0].sum().backward()  # a sum over all features is constant: they are normalised

    assert (values.grad[1, 7:] == 0).all()
    assert (values.grad[1, 1:7] != 0).all()


def test_every_gene_of_a_pooled_cell_counts_however_few_are_attended_to(encoder, make_cells):
    cells = make_cells((12, 7))
    values = cells["gene_values"].requires_grad_()

    encoder(**POOLED)(**cells).pooler_output[:, 0].sum().backward()

    assert (values.grad[0, 1:] != 0).all()


def test_with_the_shortcut_the_layers_leave_the_pooled_tokens_as_they_are(encoder, make_cells):
    model, cells = encoder(**SHORTCUT), make_cells()

    states = model(**cells).last_hidden_state

    pooled = model.pool(**cells)
    torch.testing.assert_close(states[:, 1:3], pooled)
    assert not torch.allclose(states[:, 3], model.embeddings(cells["gene_ids"], cells["gene_values"])[:, 1])


def test_a_shortcut_without_pooled_tokens_is_refused(encoder):
    with pytest.raises(StrictDataclassClassValidationError, match="set `num_pooled_tokens` to at least 1"):
        encoder(pooled_shortcut=True)


def test_a_value_beyond_the_maximum_counts_as_the_maximum(encoder, make_cells):
    model, cells = encoder(max_value=3), make_cells()
    clipped = {**cells, "gene_values": cells["gene_values"].clamp(max=3)}

    torch.testing.assert_close(model(**cells).pooler_output, model(**clipped).pooler_output)


@pytest.mark.parametrize("kind", [ScMMGPTCellEncoder, ScMMGPTCellEncoderForMaskedValues])
def test_a_tuple_holds_what_the_output_holds(tiny_config, make_cells, kind):
    model, cells = kind(tiny_config().cell_config).eval(), make_cells()
    model.set_attn_implementation("eager")
    options = {"output_hidden_states": True, "output_attentions": True}
    labelled = {**cells, "value_labels": cells["gene_values"]} if kind is ScMMGPTCellEncoderForMaskedValues else cells
    expected = model(**labelled, **options)

    as_tuple = model(**labelled, **options, return_dict=False)
    model.config.return_dict, model.config.output_hidden_states, model.config.output_attentions = False, True, True
    by_config = model(**labelled)

    for found in (as_tuple, by_config):
        assert isinstance(found, tuple)
        torch.testing.assert_close(found, expected.to_tuple())
    if kind is ScMMGPTCellEncoderForMaskedValues:
        torch.testing.assert_close(found[0], expected.loss)


def test_hidden_states_of_packed_cells_are_packed(encoder, make_cells, pack):
    model, cells = encoder(), make_cells((12, 7, 9))
    padded = model(**cells, output_hidden_states=True).hidden_states
    model.set_attn_implementation("torch_varlen")

    output = model(**pack(cells), output_hidden_states=True, output_attentions=True)

    assert output.attentions == ()  # as flash attention, it has none to give
    for packed, expected in zip(output.hidden_states, padded, strict=True):
        torch.testing.assert_close(packed[0], expected[cells["gene_mask"].bool()], atol=1e-5, rtol=0)


def test_hidden_states_and_attentions_are_recorded_on_request(encoder, make_cells):
    model = encoder()
    model.set_attn_implementation("eager")

    output = model(**make_cells(), output_hidden_states=True, output_attentions=True)

    assert [states.shape for states in output.hidden_states] == [(3, 12, 32)] * 3
    assert [weights.shape for weights in output.attentions] == [(3, 4, 12, 12)] * 2


@pytest.mark.parametrize("cell", [SCGPT, POOLED, SHORTCUT], ids=["scgpt", "pooled", "shortcut"])
def test_compiles_without_a_graph_break(encoder, make_cells, cell):
    model, cells = encoder(**cell), make_cells()
    expected = model(**cells).pooler_output

    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(**cells).pooler_output

    torch.testing.assert_close(compiled, expected)


@pytest.mark.parametrize("cell", [SCGPT, POOLED, SHORTCUT], ids=["scgpt", "pooled", "shortcut"])
def test_checkpointed_activations_give_the_same_gradients(encoder, make_cells, cell):
    model, cells = encoder(**cell, hidden_dropout=0.0), make_cells()
    model.train()(**cells).pooler_output[:, 0].sum().backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()

    model(**cells).pooler_output[:, 0].sum().backward()

    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], msg=name)


@pytest.mark.parametrize("cell", [SCGPT, POOLED, SHORTCUT], ids=["scgpt", "pooled", "shortcut"])
def test_masked_values_are_learnt_and_every_weight_moves(encoder, make_cells, tiny_config, cell):
    model = ScMMGPTCellEncoderForMaskedValues(tiny_config(cell=cell | {"hidden_dropout": 0.0}).cell_config)
    cells = make_cells((12, 10, 9))
    labels = torch.full_like(cells["gene_values"], -100)
    labels[:, 2:5] = cells["gene_values"][:, 2:5]
    cells["gene_values"][:, 2:5] = model.config.mask_value
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    losses = []
    for _ in range(30):
        losses.append(model(**cells, value_labels=labels).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()

    assert losses[-1] < losses[0] / 3
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []


def test_only_masked_values_enter_the_loss(tiny_config, make_cells):
    model, cells = ScMMGPTCellEncoderForMaskedValues(tiny_config().cell_config).eval(), make_cells()
    labels = torch.full_like(cells["gene_values"], -100)
    labels[1, 3] = 2.0

    output = model(**cells, value_labels=labels)

    torch.testing.assert_close(output.loss, (output.value_predictions[1, 3] - 2.0) ** 2)
    assert model(**cells, value_labels=torch.full_like(labels, -100)).loss == 0


def test_saved_and_loaded_is_the_same_with_and_without_the_value_head(tiny_config, make_cells, tmp_path):
    model, cells = ScMMGPTCellEncoderForMaskedValues(tiny_config().cell_config).eval(), make_cells()
    expected = model(**cells)
    model.save_pretrained(tmp_path)

    whole, missing = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    bare = AutoModel.from_pretrained(tmp_path)

    assert not missing["missing_keys"]
    assert type(bare) is ScMMGPTCellEncoder
    torch.testing.assert_close(whole(**cells).value_predictions, expected.value_predictions)
    torch.testing.assert_close(bare(**cells).pooler_output, expected.last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"gene_ids": (0, 3, 60)}, "go from 0 to 60.*60 entries", id="gene outside the vocabulary"),
        pytest.param({"gene_ids": (0, 3, -1)}, "go from -1", id="negative gene id"),
        pytest.param({"gene_values": (2, 3, float("nan"))}, "NaN or infinity, first in row 2", id="NaN"),
        pytest.param({"gene_values": (1, 3, float("inf"))}, "NaN or infinity, first in row 1", id="infinity"),
        pytest.param({"gene_mask": (1, slice(None), 0)}, "every gene of cell 1", id="all-masked cell"),
    ],
)
def test_bad_cells_are_refused(encoder, make_cells, change, reason):
    cells = make_cells()
    [(name, (row, column, value))] = change.items()
    cells[name][row, column] = value

    with pytest.raises(ValueError, match=reason):
        encoder()(**cells)


@pytest.mark.parametrize("attention", ["sdpa", "torch_varlen"])
@pytest.mark.parametrize(
    ("starts", "reason"),
    [
        pytest.param([0, 12, 12, 28], "cell 1", id="empty cell"),
        pytest.param([0, 12, 19], "19.*28", id="bounds end before the genes"),
        pytest.param([0, 12, 19, 40], "40.*28", id="bounds end behind the genes"),
    ],
)
def test_bad_bounds_of_packed_cells_are_refused(encoder, make_cells, pack, attention, starts, reason):
    model, packed = encoder(), pack(make_cells((12, 7, 9)))
    model.set_attn_implementation(attention)

    with pytest.raises(ValueError, match=reason):
        model(**{**packed, "cell_cu_seqlens": torch.tensor(starts, dtype=torch.int32)})


@pytest.mark.parametrize(
    ("field", "nearest"),
    [("hidden_sizes", "hidden_size"), ("num_hidden_layer", "num_hidden_layers"), ("vocab_sise", "vocab_size")],
)
def test_a_misspelt_field_is_refused_with_the_nearest_real_one(field, nearest):
    with pytest.raises(ValueError, match=f"Did you mean `{nearest}`"):
        ScMMGPTCellConfig(**{field: 3})


@pytest.mark.parametrize("kind", [ScMMGPTCellConfig, ScMMGPTQFormerConfig])
def test_a_dropout_under_its_name_in_bert_is_the_same_field_saved_and_loaded(kind, tmp_path):
    config = kind()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0
    config.save_pretrained(tmp_path)

    loaded = kind.from_pretrained(tmp_path)

    assert (config.hidden_dropout, config.attention_dropout) == (0, 0)
    assert (loaded.hidden_dropout, loaded.attention_dropout, loaded.hidden_dropout_prob) == (0, 0, 0)
    assert kind(hidden_dropout_prob=0.5).hidden_dropout == 0.5


def test_a_misspelt_field_is_refused_when_it_is_set_not_when_it_is_loaded():
    with pytest.raises(ValueError, match="Did you mean `vocab_size`"):
        ScMMGPTCellConfig().vocab_sise = 3


CONFIGS = [ScMMGPTConfig, ScMMGPTCellConfig, ScMMGPTQFormerConfig, ScMMGPTCellDecoderConfig]
REAL_NUMBERS = [(kind, field.name) for kind in CONFIGS for field in fields(kind) if isinstance(field.default, float)]


@pytest.mark.parametrize(
    ("kind", "field"), REAL_NUMBERS, ids=[f"{kind.__name__}.{field}" for kind, field in REAL_NUMBERS]
)
def test_a_whole_number_is_a_real_number(kind, field, tmp_path):
    config = kind()
    setattr(config, field, 1)
    config.save_pretrained(tmp_path)

    assert getattr(kind.from_pretrained(tmp_path), field) == 1


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="512 and 7"):
        ScMMGPTCellConfig(num_attention_heads=7)
