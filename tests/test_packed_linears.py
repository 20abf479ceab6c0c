"""oneDNN's linear layers: the same numbers, and plain ones wherever the packed weights would be wrong."""

import copy

import pytest
import torch
from torch import nn

from scmmgpt import packed_linears
from scmmgpt.packed_linears import pack_linears

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 8, bias=False))


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (3, 5, 24), (0, 24)], ids=str)
def test_packed_layers_give_the_same_numbers(model, shape):
    states = torch.randn(shape)
    with torch.inference_mode():
        expected = model(states)

        assert pack_linears(model) == 2
        assert torch.allclose(model(states), expected, atol=1e-5)


@pytest.mark.parametrize("packs", [True, False], ids=["where oneDNN can", "where it cannot"])
def test_under_autocast_they_multiply_in_its_type_and_float32_stays_as_it_was(model, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr(packed_linears, "_packs", lambda dtype: dtype == torch.float32)
    states = torch.randn(7, 24)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(states)
    pack_linears(model)
    with torch.inference_mode():
        before = model(states)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(states)
        after = model(states)

    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected.float(), atol=0.02)
    assert torch.equal(before, after)


def test_learning_goes_through_the_plain_layers(model):
    pack_linears(model)

    model(torch.randn(2, 24)).sum().backward()

    assert all(weight.grad is not None for weight in model.parameters())


def test_weights_that_change_are_packed_anew(model):
    pack_linears(model)
    with torch.inference_mode():
        model(torch.randn(1, 24))
    other = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 8, bias=False))
    model.load_state_dict(other.state_dict())
    states = torch.randn(4, 24)

    with torch.inference_mode():
        assert torch.allclose(model(states), other(states), atol=1e-5)


def test_a_copy_stands_alone(model):
    pack_linears(model)
    states = torch.randn(4, 24)
    with torch.inference_mode():
        model(states)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.zero_()

    with torch.inference_mode():
        assert not torch.allclose(model(states), twin(states))
