"""`generate` over prompts with cells: cells are encoded once, and every way of decoding writes the same text."""

import pytest
import torch

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.modeling_scmmgpt.outputs_scmmgpt import CACHE

CELL = [5, 5, 5, 5]
CELLS = ("gene_ids", "gene_values", "gene_mask")
LENGTH = {"max_new_tokens": 8, "min_new_tokens": 8}
GREEDY = {**LENGTH, "do_sample": False}


@pytest.fixture
def model(tiny_config):
    return ScMMGPTForConditionalGeneration(tiny_config()).eval()


@pytest.fixture
def encoded_rows(model):
    """How many cells each call of the cell encoder was given."""
    rows = []
    model.model.cell_encoder.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    return rows


@pytest.fixture
def two_prompts(make_cells):
    prompts = torch.tensor([[6, *CELL, 7, 8], [9, 10, *CELL, 11]])
    return {"input_ids": prompts, "attention_mask": torch.ones_like(prompts), **make_cells((12, 7))}


@pytest.fixture
def one_prompt(make_cells):
    return {"input_ids": torch.tensor([[6, *CELL, 7, 8, 6, 7]]), **make_cells((12,))}


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 5, "do_sample": False},
        {"num_beams": 5, "num_return_sequences": 3, "do_sample": False},
        {"num_beams": 2, "do_sample": True},
        {"num_return_sequences": 5, "do_sample": True},
        {"num_beams": 5, "do_sample": False, "use_cache": False},
    ],
)
def test_two_cells_are_two_rows_whatever_a_prompt_is_repeated_for(model, encoded_rows, two_prompts, options):
    model.generate(**two_prompts, **LENGTH, **options)

    assert encoded_rows == [2]


def test_packed_cells_are_encoded_once(model, encoded_rows, two_prompts, pack):
    packed = {name: value for name, value in two_prompts.items() if name not in CELLS}
    packed |= pack({name: two_prompts[name] for name in CELLS})
    expected = model.generate(**two_prompts, **GREEDY, num_beams=5)
    encoded_rows.clear()

    torch.testing.assert_close(model.generate(**packed, **GREEDY, num_beams=5), expected)
    assert len(encoded_rows) == 1


def test_samples_of_a_prompt_are_those_of_as_many_prompts_with_their_own_cells(model, two_prompts):
    by_hand = {name: value.repeat_interleave(3, 0) for name, value in two_prompts.items()}
    torch.manual_seed(1)
    expected = model.generate(**by_hand, **LENGTH, do_sample=True)

    torch.manual_seed(1)
    samples = model.generate(**two_prompts, **LENGTH, do_sample=True, num_return_sequences=3)

    torch.testing.assert_close(samples, expected)


def test_cells_that_were_encoded_before_take_the_place_of_genes(model, encoded_rows, two_prompts):
    expected, logits = model.generate(**two_prompts, **GREEDY, num_beams=3), model(**two_prompts).logits
    read = {"cell": model.model.read_cells(*(two_prompts.pop(name) for name in CELLS))}
    encoded_rows.clear()

    torch.testing.assert_close(model.generate(**two_prompts, mm_encoder_outputs=read, **GREEDY, num_beams=3), expected)
    torch.testing.assert_close(model(**two_prompts, mm_encoder_outputs=read).logits, logits)
    assert not encoded_rows


@pytest.mark.parametrize("way", ["an assistant", "a smaller assistant", "prompt lookup", "a prompt in chunks"])
def test_a_faster_way_writes_the_same(model, encoded_rows, one_prompt, tiny_config, way):
    smaller = {"hidden_size": 16} if way == "a smaller assistant" else {}
    options = {
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "a prompt in chunks": {"prefill_chunk_size": 3},
    }.get(way) or {"assistant_model": ScMMGPTForConditionalGeneration(tiny_config(text=smaller)).eval()}
    expected = model.generate(**one_prompt, **GREEDY)
    encoded_rows.clear()

    # No end of text instead of `min_new_tokens`, of which transformers warns in an assistant.
    written = model.generate(**one_prompt, max_new_tokens=8, do_sample=False, eos_token_id=[], **options)

    torch.testing.assert_close(written, expected)
    assert encoded_rows == [1]


def test_a_conversation_goes_on_from_its_cache(model, encoded_rows, one_prompt, make_cells):
    first = model.generate(**one_prompt, **GREEDY, return_dict_in_generate=True)
    question = torch.cat([first.sequences, torch.tensor([[9, *CELL, 10]])], dim=1)
    other = make_cells((9,), seed=1)
    both = {
        name: torch.cat([torch.nn.functional.pad(other[name], (0, 3)), one_prompt[name]]).flip(0) for name in CELLS
    }
    expected = model.generate(input_ids=question, **both, **GREEDY)
    encoded_rows.clear()

    answer = model.generate(input_ids=question, **{CACHE: first[CACHE]}, **other, **GREEDY)

    torch.testing.assert_close(answer, expected)
    assert encoded_rows == [1]


def test_a_new_placeholder_of_a_conversation_without_its_cell_is_refused(model, one_prompt):
    first = model.generate(**one_prompt, **GREEDY, return_dict_in_generate=True)
    question = torch.cat([first.sequences, torch.tensor([[9, *CELL, 10]])], dim=1)

    with pytest.raises(ValueError, match="4 <cell> placeholder tokens.*1 cells, but 0 cells"):
        model.generate(input_ids=question, **{CACHE: first[CACHE]}, **GREEDY)


def test_guidance_sees_the_cells_of_the_prompt_and_none_of_its_opposite(model, encoded_rows, one_prompt):
    opposite = {"negative_prompt_ids": torch.tensor([[6, 7, 8]]), "guidance_scale": 1.5}

    guided = model.generate(**one_prompt, **GREEDY, **opposite)

    assert encoded_rows == [1]
    logits = model(**one_prompt).logits[:, -1].log_softmax(-1)
    against = model(input_ids=opposite["negative_prompt_ids"]).logits[:, -1].log_softmax(-1)
    scores = (against + 1.5 * (logits - against)).index_fill(1, torch.tensor([2, 5]), -torch.inf)
    assert guided[0, 9] == scores.argmax()


def test_beams_of_too_few_cells_are_refused_with_both_numbers(model, two_prompts):
    too_few = {**two_prompts, **{name: two_prompts[name][:1] for name in CELLS}}

    with pytest.raises(ValueError, match="8 <cell> placeholder tokens.*2 cells of 4 tokens, but 1 cells"):
        model.generate(**too_few, **GREEDY, num_beams=2)
