"""Descriptions of cells by the language model; genes that they name are looked up in the cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .embedding import Arrays, Compute, embed_batch, run_chunk
from .errors import UserError
from .medical_advice import NO_ADVICE, asks_for_advice
from .processing.gene_layout_scmmgpt import padded_cells
from .processing.prompting_scmmgpt import annotation_question, description_question
from .text_generation import (
    answer_probabilities,
    answers_tree,
    check_num_tokens,
    checked_question,
    decode,
    embed_prompt,
    generate_ids,
    mark_genes,
    tokenize_prompt,
)

if TYPE_CHECKING:
    import torch

    from .embedding import CellRun
    from .processing.labels_scmmgpt import LabelSet
    from .verb import Verb

CELLS_PER_CHUNK = 128
# From more cells on, a model that reads contexts describes the types that it calls, not each cell.
MAX_DESCRIBED_CELLS = 50


@dataclass
class Descriptions:
    """One text per cell and, where answers were given to choose from, the probability of each, (N, C)."""

    texts: list[str]
    prompt: str
    gene_account: dict[str, Any]
    probabilities: np.ndarray | None = None
    claims: dict[str, np.ndarray] | None = None


def describe_cells(
    verb: Verb,
    clusters: np.ndarray | None,
    *,
    prompt: str | None,
    choices: LabelSet | None,
    max_new_tokens: int,
    checked: bool = True,
) -> Descriptions:
    """Describe every cell, or only the most typical cell of each cluster, for all of its cells."""
    if prompt and asks_for_advice(prompt):
        raise UserError(NO_ADVICE)
    check_num_tokens(max_new_tokens)
    if verb.loaded.reads_contexts and choices is None:
        return _describe_in_context(verb, clusters, prompt, max_new_tokens, checked)
    asked = prompt or (annotation_question() if choices else description_question())
    question = verb.loaded.processor.cell_prompt(checked_question(verb.loaded, asked))
    if choices is None:
        compute = _write_batch(verb, question, max_new_tokens)
    else:
        compute = _choose_batch(verb, question, choices)
    settings = {"question": question, "answers": choices and choices.labels, "tokens": max_new_tokens}
    run = verb.start_run(clusters=clusters is not None, **settings)
    if clusters is None:
        texts, probabilities = _describe_all(run, compute, choices)
    else:
        texts, probabilities = _describe_clusters(run, compute, choices, clusters)
    return Descriptions(texts, question, run.gene_account, probabilities)


def _describe_in_context(
    verb: Verb, clusters: np.ndarray | None, prompt: str | None, max_new_tokens: int, checked: bool
) -> Descriptions:
    """Each group in its study's context; what the cells contradict is withheld, unless nothing is to be checked."""
    from .reading import answers, checked_answers, claim_table, descriptions, plain_question, read_cells

    question = plain_question(verb.loaded, checked_question(verb.loaded, prompt or description_question()))
    if clusters is None and verb.cells.num_cells <= MAX_DESCRIBED_CELLS:
        clusters = np.arange(verb.cells.num_cells)
    names = [] if clusters is None else [str(number) for number in range(int(clusters.max()) + 1)]
    read = read_cells(verb, names, clusters)
    told = answers(read, [question], max_new_tokens) if prompt else descriptions(read, max_new_tokens)
    texts = checked_answers(read, told)
    shown = [text.printed if checked else text.raw for text in texts]
    of_cell = [shown[group] if group >= 0 else "" for group in read.group_of_cell]
    return Descriptions(of_cell, question, read.gene_account, claims=claim_table(read, texts))


def _describe_all(run: CellRun, compute: Compute, choices: LabelSet | None) -> tuple[list[str], np.ndarray | None]:
    texts = run.workspace.lines("describe")
    run.cells_per_chunk = CELLS_PER_CHUNK
    if choices is not None:
        probabilities = run.compute("choose", lambda _: compute)["probabilities"]
        return [choices.labels[best] for best in probabilities.argmax(axis=1)], probabilities
    for rows, features, results in run.results("describe", compute):
        new = _checked_texts(run, padded_cells(features, np.arange(rows.stop - rows.start)), results)
        run.workspace.append("describe", new)
        texts += new
    return texts, None


def _describe_clusters(
    run: CellRun, compute: Compute, choices: LabelSet | None, clusters: np.ndarray
) -> tuple[list[str], np.ndarray | None]:
    embeds = run.compute("embed", embed_batch)["embeds"]
    typical = _most_typical(embeds, clusters)
    features = dict(run.gene_tokenizer(run.cells.rows(typical), return_tensors="np"))
    results = run_chunk(features, compute, run.batches, run.loaded.device)
    if choices is not None:
        probabilities = results["probabilities"][clusters]
        return [choices.labels[best] for best in probabilities.argmax(axis=1)], probabilities
    texts = _checked_texts(run, features, results)
    return [texts[cluster] for cluster in clusters], None


def _most_typical(embeds: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The cell nearest to each cluster's mean: a real cell, unlike the mean itself."""
    rows = []
    for cluster in range(int(clusters.max()) + 1):
        members = np.flatnonzero(clusters == cluster)
        rows.append(members[(embeds[members] @ embeds[members].mean(axis=0)).argmax()])
    return np.array(rows)


def _checked_texts(run: CellRun, features: dict[str, np.ndarray], results: Arrays) -> list[str]:
    vocabulary = run.gene_tokenizer.vocabulary
    is_gene = run.gene_tokenizer.is_gene(features["gene_ids"], features["gene_mask"])
    is_expressed = is_gene & (features["gene_values"] > 0)
    return [
        mark_genes(text, vocabulary, set(ids[expressed].tolist()))
        for text, ids, expressed in zip(
            decode(run.loaded, results["ids"]), features["gene_ids"], is_expressed, strict=True
        )
    ]


def _write_batch(verb: Verb, question: str, max_new_tokens: int) -> Compute:
    """A computation of new token ids for each cell."""
    loaded = verb.loaded
    prompt_ids = tokenize_prompt(loaded, question)

    def compute(inputs: dict[str, torch.Tensor], tokens: Arrays) -> Arrays:
        cell_tokens = loaded.model.get_cell_tokens(**inputs)
        prompts = prompt_ids.expand(len(cell_tokens), -1)
        return {"ids": generate_ids(loaded, prompts, cell_tokens, max_new_tokens).cpu().numpy()}

    return compute


def _choose_batch(verb: Verb, question: str, choices: LabelSet) -> Compute:
    """A computation of the probability of each answer for each cell."""
    loaded = verb.loaded
    prompt_ids, tree = tokenize_prompt(loaded, question), answers_tree(loaded, choices.labels)

    def compute(inputs: dict[str, torch.Tensor], tokens: Arrays) -> Arrays:
        cell_tokens = loaded.model.get_cell_tokens(**inputs)
        embeds = embed_prompt(loaded, prompt_ids.expand(len(cell_tokens), -1), cell_tokens)
        return {"probabilities": answer_probabilities(loaded, embeds, tree).float().cpu().numpy()}

    return compute
