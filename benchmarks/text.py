"""Describing and generating cells: batches beside one cell at a time.

    python -m benchmarks.text                                    # some minutes
    python -m benchmarks.text --num-cells 4 --repeats 1          # does it run?

The rival's way is that of the published tools: one prompt, one cell, one call. Rates of descriptions are new tokens a
second (each description is held to the same number of tokens), those of generation cells a second. Clusters are
described by scmmgpt-chat where its base LLM can be had, the other two tasks are the embedded model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch

from benchmarks._measuring import OUT, interleaved, machine, options, row, write_report
from benchmarks._tiled import real_cells, tiled
from scmmgpt.errors import UserError

GROUPS = 8


def describing(model, cells, num_tokens: int) -> Callable[[int], int]:
    """Greedy descriptions of `num_tokens` tokens each, never ended early, so that every batch size does the same work."""
    from scmmgpt.device import Batches
    from scmmgpt.embedding import run_chunk
    from scmmgpt.text_generation import generate_ids, tokenize_prompt

    features = dict(model.processor.gene_tokenizer(cells, return_tensors="np"))
    prompt_ids = tokenize_prompt(model, model.processor.cell_prompt())

    def compute(inputs, tokens):
        cell_tokens = model.model.get_cell_tokens(**inputs)
        prompts = prompt_ids.expand(len(cell_tokens), -1)
        ids = generate_ids(model, prompts, cell_tokens, num_tokens, min_new_tokens=num_tokens)
        return {"ids": ids.cpu().numpy()}

    def in_batches_of(size: int) -> int:
        ids = run_chunk(features, compute, Batches(model.device, size), model.device)["ids"]
        return ids.shape[0] * num_tokens

    return in_batches_of


def describing_clusters(cells, num_tokens: int) -> dict[str, Callable[[], int]]:
    """The questions of a description about eight clusters, answered with `num_tokens` tokens each."""
    import scmmgpt
    from scmmgpt.hub_cards import CHAT_MODEL
    from scmmgpt.reading import DESCRIBE_BY, asked, said
    from scmmgpt.reading_conversation import ReadingConversation
    from scmmgpt.talks import Talks

    cells.obs["part"] = [str(number % GROUPS) for number in range(cells.n_obs)]
    talk = scmmgpt.chat(cells, cluster_key="part", model=scmmgpt.load(CHAT_MODEL, generative=True))
    assert isinstance(talk, ReadingConversation)
    assert talk.read is not None
    read = talk.read
    prompts: list[list[str]] = []
    talks = [read.opening([group]) for group in range(GROUPS)]
    for question in DESCRIBE_BY:
        talks = [[*talk, asked(question)] for talk in talks]
        prompts.append([read.render(talk) for talk in talks])
        talks = [[*talk, said("LYZ and CD3D are higher than in the other cells.")] for talk in talks]

    def work(at_once: int, are_kept: bool) -> int:
        for start in range(0, GROUPS, at_once):
            part = slice(start, start + at_once)
            asking = Talks(read.loaded, read.tokens[part])
            for turn in prompts:
                asking = asking if are_kept else Talks(read.loaded, read.tokens[part])
                asking.answers(turn[part], num_tokens, min_new_tokens=num_tokens)
        return GROUPS * len(prompts) * num_tokens

    return {
        "one cluster, each question read anew": partial(work, 1, False),
        f"{GROUPS} clusters, each question read anew": partial(work, GROUPS, False),
        f"{GROUPS} clusters, talks kept": partial(work, GROUPS, True),
    }


def generating(model, num_cells: int) -> Callable[[int], int]:
    """Pseudo-cells of one text."""
    import scmmgpt

    def in_batches_of(size: int) -> int:
        scmmgpt.generate_cells("a naive B cell", num_cells, model=model, batch_size=size, progress=False)
        return num_cells

    return in_batches_of


def in_batches(work: Callable[[int], int], size: int) -> dict[str, Callable[[], int]]:
    return {"one cell at a time": partial(work, 1), f"batches of {size}": partial(work, size)}


def main() -> None:
    given = options(__doc__, num_cells=64, num_tokens=32, batch_size=64, repeats=3, device=str)
    warnings.simplefilter("ignore", UserWarning)
    import scmmgpt

    cells, about = tiled(real_cells(), given.num_cells), machine("cuda" if torch.cuda.is_available() else "cpu")
    model = scmmgpt.load(device=given.device, generative=True)
    tasks = {
        ("describe", "tokens/s"): in_batches(describing(model, cells, given.num_tokens), given.batch_size),
        ("generate", "cells/s"): in_batches(generating(model, given.num_cells), given.batch_size),
    }
    try:
        tasks["describe clusters", "tokens/s"] = describing_clusters(tiled(real_cells(), 4000), given.num_tokens)
    except UserError as why:
        print(f"Clusters are not described: {why}")
    rows = []
    for (task, unit), ways in tasks.items():
        found = interleaved(ways, given.repeats)
        plain = next(iter(found.values()))["rate"]
        rows += [row(task, way, rates, unit, plain=plain) for way, rates in found.items()]
    write_report(OUT / "text.json", rows, machine=about, settings=vars(given))


if __name__ == "__main__":
    main()
