"""Several talks at once: what they answer is what each would answer alone, read from the beginning."""

from pathlib import Path

import anndata
import pytest
import torch
from tiny_chat import CONFIGS, write_llm, write_repository

import scmmgpt
from scmmgpt import chat_model
from scmmgpt.chat_model import assembled
from scmmgpt.loading import load
from scmmgpt.reading import asked, said
from scmmgpt.talks import Talks
from scmmgpt.text_generation import decode, embed_prompt, tokenize_prompt

REAL_CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
QUESTIONS = ("Which genes speak for that?", "What does such a cell do?")
NEW_TOKENS = 6


@pytest.fixture(scope="module", params=CONFIGS)
def chat(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    llm = write_llm(folder / "llm", request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_model, "cache_folder", lambda: folder / "cache")
        place = assembled(write_repository(folder / "repository", llm), base=llm)
    return load(place, device="cpu", generative=True)


@pytest.fixture(scope="module")
def read(chat):
    cells = anndata.read_h5ad(REAL_CELLS)[:60].copy()
    cells.obs["part"] = ["one", "two", "three"] * 20
    cells.obs["tissue"] = ["blood", "blood", "an organ with a longer name"] * 20
    return scmmgpt.chat(cells, cluster_key="part", model=chat).read


def prompts_of(read, groups, turns):
    """Whole prompts of some groups after so many turns, each answered with as many words as its number."""
    talks = []
    for group in groups:
        talk = [*read.opening([group]), asked(QUESTIONS[0])]
        for turn in range(turns):
            talk += [said("It is so. " * (group + 1)), asked(QUESTIONS[(turn + 1) % 2])]
        talks.append(read.render(talk))
    return talks


def plain_answer(chat, prompt, cell_tokens):
    """By `generate` alone, from vectors of the whole prompt."""
    ids = tokenize_prompt(chat, prompt)
    with torch.inference_mode():
        words = embed_prompt(chat, ids, cell_tokens) if len(cell_tokens) else chat.model.get_input_embeddings()(ids)
        new = chat.model.generate(
            inputs_embeds=words, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
    return decode(chat, new)[0]


def test_answers_are_those_that_each_prompt_has_by_itself(chat, read):
    prompts = prompts_of(read, [0, 1, 2], 0)

    answers = Talks(chat, read.tokens).answers(prompts, NEW_TOKENS)

    assert answers == [plain_answer(chat, prompt, read.tokens[[row]]) for row, prompt in enumerate(prompts)]


def test_talks_without_cells_are_talks_too(chat, read):
    prompts = [read.render([asked(question)]) for question in QUESTIONS]

    assert Talks(chat, None).answers(prompts, NEW_TOKENS) == [plain_answer(chat, prompt, []) for prompt in prompts]


def test_later_turns_are_answered_as_if_all_had_been_read_again(chat, read):
    talks = Talks(chat, read.tokens)
    for turns in range(3):
        prompts = prompts_of(read, [0, 1, 2], turns)
        answers = talks.answers(prompts, NEW_TOKENS)

        assert answers == [
            Talks(chat, read.tokens[[group]]).answers([prompts[group]], NEW_TOKENS)[0] for group in range(3)
        ]


def test_only_what_is_new_is_read(chat, read, monkeypatch):
    lengths, forward = [], chat.model.model.language_model.forward

    def counted(*given, **named):
        words = named.get("inputs_embeds") if named.get("inputs_embeds") is not None else named.get("input_ids")
        lengths.append(words.shape[1])
        return forward(*given, **named)

    monkeypatch.setattr(chat.model.model.language_model, "forward", counted)
    talks = Talks(chat, read.tokens[[0]])
    first, second = (prompts_of(read, [0], turns) for turns in (0, 1))
    talks.answers(first, NEW_TOKENS)
    lengths.clear()

    talks.answers(second, NEW_TOKENS)

    tokenizer = chat.processor.tokenizer
    new = len(tokenizer(second[0].removeprefix(first[0]), add_special_tokens=False)["input_ids"])
    assert max(lengths) <= new + 1


def test_prompts_that_do_not_go_on_are_read_from_the_beginning(chat, read):
    talks = Talks(chat, read.tokens)
    talks.answers(prompts_of(read, [0, 1, 2], 1), NEW_TOKENS)
    prompts = prompts_of(read, [0, 1, 2], 0)

    assert talks.answers(prompts, NEW_TOKENS) == Talks(chat, read.tokens).answers(prompts, NEW_TOKENS)


def test_a_memory_that_cannot_be_cut_back_is_not_built_upon(chat, read, monkeypatch):
    prompts = [prompts_of(read, [0, 1, 2], turns) for turns in (0, 1)]
    expected = Talks(chat, read.tokens).answers(prompts[1], NEW_TOKENS)
    talks = Talks(chat, read.tokens)
    monkeypatch.setattr(Talks, "_forget_answers", lambda self, length: setattr(self, "_cache", None))

    talks.answers(prompts[0], NEW_TOKENS)

    assert talks.answers(prompts[1], NEW_TOKENS) == expected


def test_a_choice_is_one_of_the_given_answers_and_talks_go_on_from_it(chat, read):
    prompts, choices = (
        prompts_of(read, [0, 1], 0),
        [["B cell", "B cell of a kind", "monocyte"], ["neuron", "astrocyte"]],
    )
    talks = Talks(chat, read.tokens[:2])

    chosen = talks.choices(prompts, choices)

    assert all(label in among for label, among in zip(chosen, choices, strict=True))
    assert chosen == [Talks(chat, read.tokens[[row]]).choices([prompts[row]], [choices[row]])[0] for row in (0, 1)]
    later = prompts_of(read, [0, 1], 1)
    assert talks.answers(later, NEW_TOKENS) == Talks(chat, read.tokens[:2]).answers(later, NEW_TOKENS)


def test_a_memory_keeps_the_places_of_words_behind_gaps(chat, read):
    talks = Talks(chat, read.tokens)
    talks.answers(prompts_of(read, [0, 1, 2], 0), NEW_TOKENS)
    talks.answers(prompts_of(read, [0, 1, 2], 1), NEW_TOKENS)

    words = talks._is_word.sum(dim=1)

    assert not torch.all(words == talks._is_word.shape[1])
    assert words.tolist() == [len(ids) for ids in talks._spelt]
