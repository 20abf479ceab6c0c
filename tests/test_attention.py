"""Every attention gives the same numbers, and `torch_varlen`'s reference is exact."""

import logging
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional as F

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTModel
from scmmgpt.modeling_scmmgpt.attention_scmmgpt import (
    attend,
    takes_packed_sequences,
    torch_varlen_attention_forward,
)

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="flash kernels need a CUDA device")


class Module(torch.nn.Module):
    is_causal = False
    is_cross_attention = False


def states(rows, length, heads=HEADS):
    return torch.randn(rows, heads, length, WIDTH)


def plain(query, key, value, visible):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(1, 2)


def varlen(query, key, value, mask=None, causal=False, cross=False, **kwargs):
    module = Module()
    module.is_causal, module.is_cross_attention = causal, cross
    return torch_varlen_attention_forward(module, query, key, value, mask, scaling=WIDTH**-0.5, **kwargs)[0]


@pytest.mark.parametrize("key_heads", [HEADS, KEY_HEADS], ids=["plain", "grouped"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_varlen_equals_sdpa_on_padded_rows(key_heads, side, causal):
    query, key, value = states(3, 7), states(3, 7, key_heads), states(3, 7, key_heads)
    mask = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    mask = mask if side == "right" else mask.flip(1)
    visible = mask[:, None, None] & (torch.ones(7, 7, dtype=torch.bool).tril() if causal else True)

    found = varlen(query, key, value, mask, causal)

    torch.testing.assert_close(found[mask], plain(query, key, value, visible)[mask], atol=1e-5, rtol=0)
    assert not found[~mask].any()


@pytest.mark.parametrize("num_queries", [1, 4], ids=["one new token", "several"])
def test_varlen_equals_sdpa_behind_a_cache(num_queries):
    query, key, value = states(2, num_queries), states(2, 7), states(2, 7)
    causal = torch.ones(num_queries, 7, dtype=torch.bool).tril(diagonal=7 - num_queries)

    torch.testing.assert_close(varlen(query, key, value, causal=True), plain(query, key, value, causal))


def test_varlen_equals_sdpa_across_sequences_of_equal_length():
    query, key, value = states(3, 7), states(3, 7), states(3, 7)
    mask = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]

    found = varlen(query, key, value, mask, cross=True)

    torch.testing.assert_close(found, plain(query, key, value, mask[:, None, None]), atol=1e-5, rtol=0)


def test_varlen_keeps_packed_sequences_apart():
    query, key, value = states(1, 12), states(1, 12), states(1, 12)
    starts = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    number = torch.bucketize(torch.arange(12), starts[1:].long(), right=True)
    positions = torch.cat([torch.arange(5), torch.arange(1), torch.arange(6)])[None]

    by_bounds = varlen(query, key, value, cu_seq_lens_q=starts, cu_seq_lens_k=starts)
    by_positions = varlen(query, key, value, position_ids=positions)

    expected = plain(query, key, value, number[:, None] == number[None])
    torch.testing.assert_close(by_bounds, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_positions, expected, atol=1e-5, rtol=0)


def test_varlen_has_the_gradients_of_sdpa():
    inputs = [states(2, 6).requires_grad_() for _ in range(3)]
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]

    found = torch.autograd.grad(varlen(*inputs, mask)[mask].square().sum(), inputs)
    expected = torch.autograd.grad(plain(*inputs, mask[:, None, None])[mask].square().sum(), inputs)

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_flash_attention_across_padded_keys_leaves_no_query_out():
    query, key, value = states(3, 4), states(3, 7), states(3, 7)
    mask, module = torch.arange(7) < torch.tensor([7, 3, 5])[:, None], Module()
    module.is_cross_attention = True

    found, _ = attend(module, "flash_attention_2", query, key, value, mask.long(), scaling=WIDTH**-0.5)

    torch.testing.assert_close(found, plain(query, key, value, mask[:, None, None]))


def test_varlen_refuses_dropout():
    with pytest.raises(ValueError, match="no attention dropout"):
        varlen(states(1, 2), states(1, 2), states(1, 2), dropout=0.1)


@pytest.mark.parametrize(
    ("implementation", "packed"),
    [("sdpa", False), ("eager", False), (None, False), ("torch_varlen", True), ("flash_attention_2", True)],
)
def test_only_attentions_that_honour_bounds_get_packed_rows(implementation, packed):
    assert takes_packed_sequences(implementation) == packed


# ---- in the model


def outcomes(model, cells, texts):
    with torch.no_grad():
        cell, text = model.get_cell_features(**cells), model.get_text_features(**texts)
        match = model.get_match_scores(**cells, **texts)
    return cell.last_hidden_state, cell.pooler_output, text.pooler_output, match


# torch's compiler is itself made of what torch deprecates, in a dozen places that change with every release.
COMPILED = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("attention", ["eager", "torch_varlen", pytest.param("flex_attention", marks=COMPILED)])
def test_every_attention_gives_the_numbers_of_sdpa(tiny_config, make_cells, make_texts, attention):
    model, cells, texts = ScMMGPTModel(tiny_config()).eval(), make_cells(), make_texts()
    expected = outcomes(model, cells, texts)

    model.set_attn_implementation({"cell_config": attention, "qformer_config": attention})

    assert model.cell_encoder.config._attn_implementation == attention
    for found, wanted in zip(outcomes(model, cells, texts), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", ["eager", "torch_varlen"])
def test_each_tower_has_its_own_attention(tiny_config, make_cells, text):
    model = ScMMGPTForConditionalGeneration(tiny_config()).eval()
    prompts = torch.tensor([[0, 6, 5, 5, 5, 5, 7], [6, 5, 5, 5, 5, 8, 9], [0, 0, 5, 5, 5, 5, 7]])
    inputs = {"input_ids": prompts, "attention_mask": (prompts != 0).long(), **make_cells()}
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    logits = model(**inputs).logits

    model.set_attn_implementation({"cell_config": "torch_varlen", "qformer_config": "eager", "text_config": text})

    chosen = [model.config.cell_config, model.config.qformer_config, model.config.text_config]
    assert [config._attn_implementation for config in chosen] == ["torch_varlen", "eager", text]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[real], logits[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.generate(**inputs, max_new_tokens=5, do_sample=False), expected)


@needs_cuda
def test_flash_kernels_give_the_numbers_of_sdpa_in_bfloat16(tiny_config, make_cells, pack):
    model = ScMMGPTModel(tiny_config()).eval().to("cuda", torch.bfloat16)
    cells = {name: value.to("cuda") for name, value in make_cells().items()}
    expected = model.get_cell_features(**cells).pooler_output

    model.set_attn_implementation({"cell_config": "torch_varlen", "qformer_config": "torch_varlen"})

    for inputs in (cells, pack(cells)):
        torch.testing.assert_close(model.get_cell_features(**inputs).pooler_output, expected, atol=2e-2, rtol=0)


def test_setting_an_attention_of_every_tower_warns_of_nothing(tiny_config, make_texts, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model, texts = ScMMGPTForConditionalGeneration(tiny_config()).eval(), make_texts((7, 0, 6))
    expected = model.text_features(**texts)

    for attention in ("eager", "sdpa", "torch_varlen"):
        model.set_attn_implementation(attention)

        assert model.cell_decoder.config._attn_implementation == attention
        torch.testing.assert_close(model.text_features(**texts), expected, atol=1e-5, rtol=0)
    assert caplog.messages == []


def test_an_attention_of_ours_is_known_to_transformers_when_a_model_asks_for_it(tiny_config, tmp_path):
    script = """
        import sys
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
        known = ["torch_varlen" in ALL_ATTENTION_FUNCTIONS]
        options = {"attn_implementation": {"text_config": "torch_varlen"}} if sys.argv[2] == "load" else {}
        model = ScMMGPTForConditionalGeneration.from_pretrained(sys.argv[1], **options)
        known.append("torch_varlen" in ALL_ATTENTION_FUNCTIONS)
        model.set_attn_implementation({"text_config": "torch_varlen"})
        known.append("torch_varlen" in ALL_ATTENTION_FUNCTIONS)
        print(known, model.model.language_model.config._attn_implementation)
    """
    ScMMGPTForConditionalGeneration(tiny_config()).save_pretrained(tmp_path)

    def run(when):
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), when]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert run("set") == "[False, False, True] torch_varlen"
    assert run("load") == "[False, True, True] torch_varlen"
