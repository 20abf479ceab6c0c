"""Describing and generating cells with the embedded model: batches beside one cell at a time.

    python -m benchmarks.text                                    # some minutes
    python -m benchmarks.text --num-cells 4 --repeats 1          # does it run?

The rival's way is that of the published tools: one prompt, one cell, one call. Rates of descriptions are new tokens a
second (each description is held to the same number of tokens), those of generation cells a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch

from benchmarks._measuring import OUT, interleaved, machine, options, row, write_report
from benchmarks._tiled import real_cells, tiled


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


def generating(model, num_cells: int) -> Callable[[int], int]:
    """Pseudo-cells of one text."""
    import scmmgpt

    def in_batches_of(size: int) -> int:
        scmmgpt.generate_cells("a naive B cell", num_cells, model=model, batch_size=size, progress=False)
        return num_cells

    return in_batches_of


def main() -> None:
    given = options(__doc__, num_cells=64, num_tokens=32, batch_size=64, repeats=3, device=str)
    warnings.simplefilter("ignore", UserWarning)
    import scmmgpt

    cells, about = tiled(real_cells(), given.num_cells), machine("cuda" if torch.cuda.is_available() else "cpu")
    model = scmmgpt.load(device=given.device, generative=True)
    tasks = {
        ("describe", "tokens/s"): describing(model, cells, given.num_tokens),
        ("generate", "cells/s"): generating(model, given.num_cells),
    }
    rows = []
    for (task, unit), work in tasks.items():
        ways = {
            "one cell at a time": partial(work, 1),
            f"batches of {given.batch_size}": partial(work, given.batch_size),
        }
        found = interleaved(ways, given.repeats)
        plain = next(iter(found.values()))["rate"]
        rows += [row(task, way, rates, unit, plain=plain) for way, rates in found.items()]
    write_report(OUT / "text.json", rows, machine=about, settings=vars(given))


if __name__ == "__main__":
    main()
