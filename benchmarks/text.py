"""Describing and generating cells with the embedded model: batches beside one cell at a time.

    python -m benchmarks.text                                    # some minutes
    python -m benchmarks.text --num-cells 4 --repeats 1          # does it run?

The rival's way is that of the published tools: one prompt, one cell, one call. Rates of descriptions are new tokens a
second (each description is held to the same number of tokens), those of generation cells a second.
"""

from __future__ import annotations

import argparse
import warnings

import torch

from benchmarks._measuring import interleaved, machine, row, write_report
from benchmarks._tiled import real_cells, tiled


def describe_ways(model, cells, num_tokens: int, batch_size: int) -> dict:
    """Greedy descriptions of `num_tokens` tokens each, never ended early, so that every way does the same work."""
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

    def with_batches_of(size: int):
        def work() -> int:
            ids = run_chunk(features, compute, Batches(model.device, size), model.device)["ids"]
            return ids.shape[0] * num_tokens

        return work

    return {"one cell at a time": with_batches_of(1), f"batches of {batch_size}": with_batches_of(batch_size)}


def generate_ways(model, num_cells: int, batch_size: int) -> dict:
    """Pseudo-cells of one text."""
    import scmmgpt

    def with_batches_of(size: int):
        def work() -> int:
            scmmgpt.generate_cells("a naive B cell", num_cells, model=model, batch_size=size, progress=False)
            return num_cells

        return work

    return {"one cell at a time": with_batches_of(1), f"batches of {batch_size}": with_batches_of(batch_size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-cells", type=int, default=64)
    parser.add_argument("--num-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    import scmmgpt

    cells, about = tiled(real_cells(), arguments.num_cells), machine("cuda" if torch.cuda.is_available() else "cpu")
    model = scmmgpt.load(device=arguments.device, generative=True)
    tasks = {
        ("describe", "tokens/s"): describe_ways(model, cells, arguments.num_tokens, arguments.batch_size),
        ("generate", "cells/s"): generate_ways(model, arguments.num_cells, arguments.batch_size),
    }
    rows = []
    for (task, unit), ways in tasks.items():
        found = interleaved(ways, arguments.repeats)
        plain = next(iter(found.values()))["rate"]
        rows += [row(task, way, rates, unit, plain=plain) for way, rates in found.items()]
    write_report("text", rows, machine=about, settings=vars(arguments))


if __name__ == "__main__":
    main()
