"""Rows of a corpus -> batches of stage 2: questions about cells with their answers, and requests for cells.

A row without a cell type has no answer to learn from; it still teaches text -> cell, with the empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence

from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.processing.prompting_scmmgpt import CELL_REQUESTS, cell_request, conversation, is_missing, questions
from scmmgpt.training.collators import Rows, facts_of, row_generator
from scmmgpt.training.data import RowSampler

IGNORE = -100
NUM_WORDINGS = 4


@dataclass
class ConversationCollator:
    """Both directions of stage 2 in one batch, as `ScMMGPTForConditionalGeneration.forward` takes them.

    Attributes
    ----------
    collate_cells
        Rows -> genes.
    num_target_genes
        Genes whose counts a request has to explain, drawn anew for each batch; None takes all.
    packed
        Prompts end to end in one row, as `collate_cells` then gives the cells.
    ask
        (row, generator) -> a question about the cell and its answer; None asks what the row's metadata can answer.
    """

    collate_cells: Callable[[Rows], dict]
    processor: ScMMGPTProcessor
    ontology: Ontology
    max_tokens: int = 256
    cells_to_text: bool = True
    text_to_cells: bool = True
    num_target_genes: int | None = 2048
    packed: bool = False
    ask: Callable[[dict, np.random.Generator], tuple[str, str]] | None = None
    seed: int = 0

    def __call__(self, rows: Rows) -> dict:
        facts = facts_of(rows)
        # numpy's format of `datasets` reads the unsigned hash as a signed number.
        generators = [row_generator({"cell_hash": int(row["cell_hash"]) % 2**64}, self.seed) for row in facts]
        batch = dict(self.collate_cells(rows))
        if self.cells_to_text:
            batch |= self.conversations(facts, generators)
        if self.text_to_cells:
            batch |= self.requests(facts, generators) | self.targets(rows, generators[0])
        return batch

    def conversations(self, facts: list[dict], generators: list[np.random.Generator]) -> dict:
        """Prompts with `<cell>` placeholders; labels on the answers alone."""
        prompts, answers = zip(*map(self._question, facts, generators), strict=True)
        inputs = self.tokenize_prompts(list(prompts), list(answers))
        return flatten_prompts(inputs) if self.packed else inputs

    def _question(self, row: dict, generator: np.random.Generator) -> tuple[str, str]:
        question, answer = (self.ask or self.ask_metadata)(row, generator)
        prompt = self.render(conversation(question), add_generation_prompt=True)
        if not answer:
            return prompt, ""
        return prompt, self.render(conversation(question, answer)).removeprefix(prompt)

    def ask_metadata(self, row: dict, generator: np.random.Generator) -> tuple[str, str]:
        """One of the questions that the row's metadata answers; without a cell type, the answer is left open."""
        known = questions(row, self.definition(row), paraphrase=int(generator.integers(NUM_WORDINGS)))
        question, answer = known[int(generator.integers(len(known)))]
        return question, "" if is_missing(row["cell_type"]) else answer

    def render(self, messages: list[dict], **options) -> str:
        """A conversation in the words of the chat template."""
        return self.processor.apply_chat_template(messages, tokenize=False, **options)

    def tokenize_prompts(self, prompts: list[str], answers: list[str], padding_side: str = "right") -> dict:
        """Prompt + answer, each cell's placeholder repeated; the answer's tokens are the labels.

        Prompt and answer are tokenised apart, as in generation: a token that joined the prompt's last space to the
        answer's first word would never be asked for there.
        """
        processor, tokenizer = self.processor, self.processor.tokenizer
        texts = [processor.expand_cell_tokens(prompt) for prompt in prompts]
        # As `apply_chat_template` decides it: a template may write the first token itself.
        has_start = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
        asked = tokenizer(texts, add_special_tokens=not has_start)["input_ids"]
        said = tokenizer(answers, add_special_tokens=False)["input_ids"]
        room = self.max_tokens + processor.num_query_tokens
        rows = [
            (question, answer[: max(room - len(question), 0)]) for question, answer in zip(asked, said, strict=True)
        ]
        return padded_prompts(rows, tokenizer.pad_token_id, padding_side)

    def requests(self, facts: list[dict], generators: list[np.random.Generator]) -> dict[str, torch.Tensor]:
        """A text that asks for each cell; no token at all for a cell of unknown type."""
        texts = [
            "" if is_missing(row["cell_type"]) else self._request(row, generator)
            for row, generator in zip(facts, generators, strict=True)
        ]
        inputs = self.processor.tokenizer(
            texts, padding=True, padding_side="right", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        has_text = torch.tensor([bool(text) for text in texts])
        return {
            "cell_prompt_ids": inputs["input_ids"],
            "cell_prompt_mask": inputs["attention_mask"] * has_text[:, None],
        }

    def _request(self, row: dict, generator: np.random.Generator) -> str:
        definition = self.definition(row) if generator.random() < 0.5 else None
        return cell_request(row, definition, paraphrase=int(generator.integers(len(CELL_REQUESTS))))

    def targets(self, rows: Rows, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Counts of a random share of the genes, and each cell's total over all of them."""
        genes = self.processor.gene_tokenizer
        counts = _counts_of(rows, genes.vocab_size)
        num_special = genes.vocab_size - len(genes.genes)
        wanted = np.arange(num_special, genes.vocab_size)
        if self.num_target_genes is not None and self.num_target_genes < len(wanted):
            wanted = np.sort(generator.choice(wanted, self.num_target_genes, replace=False))
        return {
            "target_gene_ids": torch.from_numpy(wanted),
            "target_counts": torch.from_numpy(counts[:, wanted]),
            "target_library_size": torch.from_numpy(counts[:, num_special:].sum(1)),
        }

    def definition(self, row: dict) -> str | None:
        """What the ontology says of the row's type."""
        term = self.ontology.terms.get(str(row["cell_type_ontology_term_id"]))
        return term.definition if term else None


def padded_prompts(rows: list[tuple[list[int], list[int]]], pad_token_id: int, padding_side: str = "right") -> dict:
    """Tokens of prompts and answers as padded rows, with labels on the answers alone."""
    labelled = [(question + answer, [IGNORE] * len(question) + answer) for question, answer in rows]
    return padded_rows(labelled, pad_token_id, padding_side)


def padded_rows(rows: list[tuple[list[int], list[int]]], pad_token_id: int, padding_side: str = "right") -> dict:
    """Tokens and labels of the same length as padded rows."""
    padded = {
        "input_ids": ([tokens for tokens, _ in rows], pad_token_id),
        "attention_mask": ([[1] * len(tokens) for tokens, _ in rows], 0),
        "labels": ([labels for _, labels in rows], IGNORE),
    }
    return {
        name: pad_sequence([torch.tensor(row) for row in values], True, filler, padding_side)
        for name, (values, filler) in padded.items()
    }


def flatten_prompts(inputs: dict[str, torch.Tensor]) -> dict:
    """Padded prompts end to end in one row, with the bounds that kernels for packed sequences take.

    sdpa tells segments apart by the positions that start again, and only where no cache is asked for.
    """
    is_real, lengths = inputs["attention_mask"].bool(), inputs["attention_mask"].sum(1)
    labels = inputs["labels"].clone()
    labels[torch.arange(len(labels)), is_real.int().argmax(1)] = IGNORE  # nothing predicts a segment's first token
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    return {
        "input_ids": inputs["input_ids"][is_real][None],
        "labels": labels[is_real][None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }


class MixedOrder(RowSampler):
    """Rows of two orders, `share` of them from the second, which begins again when it ends."""

    def __init__(self, first: RowSampler, second: RowSampler, share: float):
        self.first, self.second, self.share = first, second, share

    def __iter__(self):
        owed = 0.0
        rest: Iterator[int] = iter(())
        for row in self.first:
            yield row
            owed += self.share / (1 - self.share)
            while owed >= 1:
                other = next(rest, None)
                if other is None:
                    rest = iter(self.second)
                    other = next(rest)
                yield other
                owed -= 1

    def __len__(self) -> int:
        return int(len(self.first) / (1 - self.share))

    def set_epoch(self, epoch: int) -> None:
        for order in (self.first, self.second):
            order.set_epoch(epoch)


class ShuffledRows(RowSampler):
    """Given rows in an order that depends on seed and epoch alone."""

    def __init__(self, rows: np.ndarray, seed: int):
        self.rows, self.seed = rows, seed

    def __iter__(self):
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.rows).tolist())

    def __len__(self) -> int:
        return len(self.rows)


def _counts_of(rows: Rows, vocab_size: int) -> np.ndarray:
    """Counts, cells x vocabulary."""
    parts = rows.select(["gene_ids", "gene_values"]).to_pylist() if isinstance(rows, pa.Table) else rows
    counts = np.zeros((len(parts), vocab_size), dtype=np.float32)
    for row, part in zip(counts, parts, strict=True):
        row[np.asarray(part["gene_ids"], dtype=np.int64)] = part["gene_values"]
    return counts
