"""What stage 2 can do on held-out cells, with its controls: name the type of a cell, and make cells of a type.

A model that ignores the cell still answers well where one type is common: the same questions are asked with other
cells in the prompts. Cells made for a type are judged beside the same cells under shuffled texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from scmmgpt.processing.ontology_scmmgpt import plain_name
from scmmgpt.processing.prompting_scmmgpt import annotation_question, cell_request, conversation
from scmmgpt.training.conversations import ConversationCollator
from scmmgpt.training.corpus.reading import Corpus, Selection
from scmmgpt.training.evaluation.expression import log_normalised, principal_space
from scmmgpt.training.evaluation.metrics_generation import neighbour_accuracy
from scmmgpt.training.held_out import spread_over

MAX_NEW_TOKENS = 24
MOST_TYPES = 12
NUM_NEIGHBOURS = 10
REAL_CELLS_PER_TYPE = 40


@dataclass
class HeldOutGeneration:
    """Questions about held-out cells, and real cells of the types that will be asked for.

    Attributes
    ----------
    cells, types
        Cells to be named, and their true types.
    prompts
        Tokenised questions, padded on the left.
    real, real_types
        Log expression of real cells, and their types.
    requests, asked
        Texts that ask for cells, and the types they ask for.
    """

    cells: dict
    types: list[str]
    prompts: dict
    real: sp.csr_matrix
    real_types: np.ndarray
    requests: dict
    asked: list[str]
    collate: ConversationCollator
    num_cells: int
    samples: list[dict] | None = None

    def __call__(self, model) -> dict[str, float]:
        """Share of cells named right, in sight and blind; share of made cells among their type, asked and shuffled."""
        scores = self.score_names(model) if self.collate.cells_to_text and self.types else {}
        return scores | (self.score_cells(model) if self.collate.text_to_cells and len(set(self.asked)) > 1 else {})

    def score_names(self, model) -> dict[str, float]:
        """Greedy answers, compared word for word; `blind`: with each prompt given another type's cell."""
        named = self.answer(model, self.cells)
        order = _derangement(self.types)
        blind = self.answer(model, {name: value[order] for name, value in self.cells.items()})
        self.samples = [{"type": true, "answer": said} for true, said in zip(self.types, named, strict=True)]
        return {"named_types": _share_equal(self.types, named), "named_types_blind": _share_equal(self.types, blind)}

    def answer(self, model, cells: dict) -> list[str]:
        """What the model says of each cell."""
        inputs = {name: value.to(model.device) for name, value in {**self.prompts, **cells}.items()}
        tokenizer = self.collate.processor.tokenizer
        ids = model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def score_cells(self, model) -> dict[str, float]:
        """Nearest real cells of each made cell, in the principal components of the real ones."""
        requests = {name: value.to(model.device) for name, value in self.requests.items()}
        made = model.generate_cells(**requests, num_cells=self.num_cells, seed=0)
        genes = self.collate.processor.gene_tokenizer.gene_rows(made.gene_ids.numpy())
        counts = sp.csr_matrix(made.counts.numpy().astype(np.float32))
        in_space = principal_space(self.real)
        real, made = in_space(self.real), in_space(log_normalised(counts[:, np.argsort(genes)]))
        asked = np.repeat(self.asked, self.num_cells)
        shuffled = np.roll(asked, self.num_cells)
        k = min(NUM_NEIGHBOURS, len(real))
        return {
            "made_as_asked": neighbour_accuracy(real, self.real_types, made, asked, k),
            "made_as_asked_shuffled": neighbour_accuracy(real, self.real_types, made, shuffled, k),
        }


def held_out_generation(
    corpus: Corpus, selection: Selection, collate: ConversationCollator, *, num_texts: int, num_cells: int
) -> HeldOutGeneration | None:
    """Labelled rows of a selection as questions and as references; None where it has none."""
    rows = corpus.rows(selection)
    if not len(rows):
        return None
    named = spread_over(corpus, rows, "cell_type", num_texts)
    table = corpus.table(named)
    types = table["cell_type"].to_pylist()
    prompt = collate.render(conversation(annotation_question()), add_generation_prompt=True)
    prompts = collate.tokenize_prompts([prompt] * len(types), [""] * len(types), padding_side="left")
    prompts.pop("labels")
    real = spread_over(corpus, rows, "cell_type", REAL_CELLS_PER_TYPE * MOST_TYPES)
    real_types = np.array(corpus.table(real, ["cell_type"])["cell_type"].to_pylist())
    common = [str(name) for name in np.unique(real_types)][:MOST_TYPES]
    kept = np.isin(real_types, common)
    facts = {row["cell_type"]: row for row in table.to_pylist()}
    asked = [name for name in common if name in facts]
    request_texts = [cell_request({"cell_type": name}, collate.definition(facts[name])) for name in asked]
    requests = collate.processor.tokenizer(
        request_texts or [""],
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=collate.max_tokens,
        return_tensors="pt",
    )
    cells = _padded(collate, table)
    return HeldOutGeneration(
        cells=cells,
        types=types,
        prompts=prompts,
        real=log_normalised(_matrix(corpus, real[kept], collate)),
        real_types=real_types[kept],
        requests={name: requests[name] for name in ("input_ids", "attention_mask")},
        asked=asked,
        collate=collate,
        num_cells=num_cells,
    )


def _padded(collate: ConversationCollator, table) -> dict[str, torch.Tensor]:
    """Cells one to a row, so that they can be handed to other prompts."""
    from scmmgpt.modeling_scmmgpt.modeling_cell_encoder import unpack_cells

    cells = collate.collate_cells(table)
    if "cell_cu_seqlens" not in cells:
        return cells
    starts = cells["cell_cu_seqlens"]
    gene_ids, gene_mask = unpack_cells(cells["gene_ids"], starts)
    return {"gene_ids": gene_ids, "gene_values": unpack_cells(cells["gene_values"], starts)[0], "gene_mask": gene_mask}


def _matrix(corpus: Corpus, rows: np.ndarray, collate: ConversationCollator) -> sp.csr_matrix:
    """Counts of real cells, cells x genes in the vocabulary's order."""
    genes = collate.processor.gene_tokenizer
    return sp.csr_matrix(corpus.matrix(rows)[:, genes.vocab_size - len(genes.genes) :])


def _derangement(types: list[str]) -> torch.Tensor:
    """For each cell a cell of another type where there is one: sorted by type, then shifted by the commonest's size."""
    order = np.argsort(types, kind="stable")
    shift = int(np.unique(types, return_counts=True)[1].max())
    taken = np.empty(len(types), dtype=np.int64)
    taken[order] = np.roll(order, -shift)
    return torch.from_numpy(taken)


def _share_equal(types: list[str], answers: list[str]) -> float:
    pairs = zip(types, answers, strict=True)
    return float(np.mean([plain_name(true) == plain_name(said.strip().rstrip(".")) for true, said in pairs]))
