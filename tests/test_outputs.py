"""What the joint models return: transformers' output contract, with the states of every tower within reach."""

import pytest
import torch
from transformers import BertConfig
from transformers.utils import ModelOutput

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining, ScMMGPTModel

ALL_STATES = {"output_hidden_states": True, "output_attentions": True}
NUM_LAYERS, CELL = 2, [5, 5, 5, 5]
JOINT_CLASSES = [ScMMGPTModel, ScMMGPTForPreTraining, ScMMGPTForConditionalGeneration]
# The Q-Former looks at the cell every second layer.
OF_CELLS = {"cell_hidden_states": NUM_LAYERS + 1, "cell_attentions": NUM_LAYERS}
OF_QUERIES = {"hidden_states": NUM_LAYERS + 1, "attentions": NUM_LAYERS, "cross_attentions": 1}
OF_TEXTS = {"text_hidden_states": NUM_LAYERS + 1, "text_attentions": NUM_LAYERS}
STATES = {
    ScMMGPTModel: {**OF_QUERIES, **OF_CELLS, **OF_TEXTS},
    ScMMGPTForPreTraining: {**OF_QUERIES, **OF_CELLS, **OF_TEXTS},
    ScMMGPTForConditionalGeneration: {
        "hidden_states": NUM_LAYERS + 1,
        "attentions": NUM_LAYERS,
        **{f"qformer_{name}": number for name, number in OF_QUERIES.items()},
        **OF_CELLS,
    },
}


@pytest.fixture
def build(tiny_config):
    def model(model_class, config=None, **fields):
        config = config or tiny_config(**fields)
        return model_class._from_config(config, attn_implementation="eager").eval()

    return model


@pytest.fixture
def inputs_of(make_cells, make_texts):
    """Cells with the text that a class takes beside them."""

    def inputs(model_class):
        if model_class is not ScMMGPTForConditionalGeneration:
            return {**make_cells(), **make_texts()}
        prompts = torch.tensor([[6, *CELL, 7, 8], [9, *CELL, 10, 11], [12, 13, *CELL, 14]])
        return {"input_ids": prompts, "attention_mask": torch.ones_like(prompts), "labels": prompts, **make_cells()}

    return inputs


def flat(output):
    """All tensors of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, ModelOutput):
        output = output.to_tuple()
    return [tensor for part in output for tensor in flat(part)] if isinstance(output, tuple) else []


@pytest.mark.parametrize("model_class", JOINT_CLASSES)
def test_states_of_every_tower_are_there_when_asked_for_and_only_then(build, inputs_of, model_class):
    model, inputs = build(model_class), inputs_of(model_class)

    asked, plain = model(**inputs, **ALL_STATES), model(**inputs)

    assert {name: len(asked[name]) for name in STATES[model_class]} == STATES[model_class]
    assert not STATES[model_class].keys() & plain.keys()


@pytest.mark.parametrize("model_class", JOINT_CLASSES)
def test_the_config_asks_for_states_as_an_argument_does(build, inputs_of, tiny_config, model_class):
    model, inputs = build(model_class, tiny_config(output_hidden_states=True)), inputs_of(model_class)

    output = model(**inputs)

    names = {name for name in STATES[model_class] if name.endswith("hidden_states")}
    assert {name for name in output if name.endswith("hidden_states")} == names
    assert not {name for name in output if name.endswith("attentions")}
    assert "cell_hidden_states" not in model(**inputs, output_hidden_states=False)


@pytest.mark.parametrize("by_config", [False, True])
@pytest.mark.parametrize("model_class", JOINT_CLASSES)
def test_without_a_dict_the_same_comes_as_a_tuple(build, inputs_of, model_class, by_config):
    model, inputs = build(model_class), inputs_of(model_class)
    torch.manual_seed(0)  # hard negatives are drawn
    expected = flat(model(**inputs, **ALL_STATES))
    asked = {**ALL_STATES} if by_config else {**ALL_STATES, "return_dict": False}
    model.config.return_dict = not by_config

    torch.manual_seed(0)
    output = model(**inputs, **asked)

    assert isinstance(output, tuple)
    for ours, theirs in zip(flat(output), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("model_class", JOINT_CLASSES)
def test_features_are_transformers_outputs_with_states_or_tuples(build, make_cells, make_texts, model_class):
    model, cells, texts = build(model_class), make_cells(), make_texts()

    of_cells, of_texts = model.get_cell_features(**cells, **ALL_STATES), model.get_text_features(**texts, **ALL_STATES)

    assert {name: len(of_cells[name]) for name in {**OF_QUERIES, **OF_CELLS}} == {**OF_QUERIES, **OF_CELLS}
    assert (len(of_texts.hidden_states), len(of_texts.attentions)) == (NUM_LAYERS + 1, NUM_LAYERS)
    torch.testing.assert_close(of_cells.hidden_states[-1], of_cells.last_hidden_state)
    torch.testing.assert_close(of_texts.hidden_states[-1], of_texts.last_hidden_state)
    for features, as_tuple in (
        (of_cells, model.get_cell_features(**cells, return_dict=False)),
        (of_texts, model.get_text_features(**texts, return_dict=False)),
    ):
        assert len(as_tuple) == 2
        torch.testing.assert_close(as_tuple[1], features.pooler_output)


@pytest.mark.parametrize("model_class", JOINT_CLASSES)
def test_gradients_reach_the_states_that_were_returned(build, inputs_of, model_class):
    output = build(model_class)(**inputs_of(model_class), **ALL_STATES)
    states = [output[name][0] for name in STATES[model_class] if not name.startswith("text_")]
    for state in states:
        state.retain_grad()

    output[0].flatten()[0].backward()

    assert all(state.grad is not None for state in states)


def test_another_cell_encoder_shows_its_states_too(build, tiny_config, make_cells):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = tiny_config()
    config.cell_config = BertConfig(vocab_size=60, **sizes)

    features = build(ScMMGPTModel, config).get_cell_features(**make_cells(), **ALL_STATES)

    assert (len(features.cell_hidden_states), len(features.cell_attentions)) == (4, 3)


@pytest.mark.parametrize("model_class", [ScMMGPTForPreTraining, ScMMGPTForConditionalGeneration])
def test_the_loss_comes_first(build, inputs_of, model_class):
    output = build(model_class)(**inputs_of(model_class))

    assert next(iter(output)) == "loss"
    assert output[0] is output.loss


@pytest.mark.parametrize("model_class", JOINT_CLASSES)
def test_a_flag_by_a_wrong_name_is_refused(build, inputs_of, model_class):
    with pytest.raises(TypeError, match="'output_hidden_state' is not.*Did you mean 'output_hidden_states'"):
        build(model_class)(**inputs_of(model_class), output_hidden_state=True)


@pytest.mark.parametrize("model_class", JOINT_CLASSES)
@pytest.mark.parametrize("call", ["get_cell_features", "get_text_features"])
def test_features_take_no_argument_that_they_would_not_use(build, make_cells, make_texts, model_class, call):
    inputs = make_cells() if "cell" in call else make_texts()

    with pytest.raises(TypeError, match="'colour' is not an argument"):
        getattr(build(model_class), call)(**inputs, colour="red")
