"""Stage 2 on instruction data: what a run is made of when its rows are conversations, not a corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import TrainingArguments

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.gene_layout_scmmgpt import pad_tokens
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME as ONTOLOGY_FILE
from scmmgpt.training.assembly import (
    assemble_config,
    assemble_generative_model,
    processor_to_train,
    with_words_of_language_model,
)
from scmmgpt.training.conversations import padded_rows
from scmmgpt.training.data import RowSampler
from scmmgpt.training.run import seed_everything
from scmmgpt.training.settings import Stage2Settings
from scmmgpt.training.strict_yaml import RecipeError
from scmmgpt.training.trainer import Rows

# Cells whose type an answer names as it is.
CLEAR_KINDS = ("name", "describe", "choose", "check", "genes", "against", "function", "where", "species", "compare")
BLOCK_OF_BATCHES = 16
PROJECTOR_START = "projector_start"
PROJECTOR_BATCH, PROJECTOR_RATE, PROJECTOR_NOISE = 160, 3e-3, 0.1
WORD_WIDTH, FILLER_WEIGHT, POSITION_SPREAD = 0.25, 0.3, 0.7
# What the choice among words, that among whole names, and the distance weigh.
WORD_CHOICE, NAME_CHOICE, DISTANCE = 0.5, 1.0, 0.5
CELLS_AT_ONCE = 64


@dataclass
class InstructionCollator:
    """Conversations as `ScMMGPTForConditionalGeneration.forward` takes them; labels on everything the assistant says."""

    processor: ScMMGPTProcessor
    max_tokens: int

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        spelt = [self.spell(json.loads(row["messages"])) for row in rows]
        return padded_rows(spelt, tokenizer.pad_token_id) | tokens_of_cells(rows)

    def spell(self, messages: list[dict]) -> tuple[list[int], list[int]]:
        """Token ids of a conversation and its labels: each answer is tokenised by itself, as generation writes it.

        Turns beyond `max_tokens` are left out. The first stays whole: it holds the cells.
        """
        ids: list[int] = []
        labels: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._render(messages[:number], add_generation_prompt=True)
            said = self._render(messages[: number + 1]).removeprefix(asked)
            before = "".join(self._render(messages[:last]) for last in [number - 1] if ids)
            question = self._ids(asked.removeprefix(before))
            answer = self._ids(said)
            if ids and len(ids) + len(question) + len(answer) > self.max_tokens:
                break
            ids += question + answer
            labels += [-100] * len(question) + answer
        return ids, labels

    def _render(self, messages: list[dict], **options: Any) -> str:
        text = self.processor.apply_chat_template(messages, tokenize=False, **options)
        return self.processor.expand_cell_tokens(text)

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokens_of_cells(rows: list[dict]) -> dict[str, torch.Tensor]:
    """The cells of all rows, in reading order; nothing where no row has any."""
    ids = [np.asarray(cell) for row in rows for cell in row["gene_ids"]]
    values = [np.asarray(cell, np.float32) for row in rows for cell in row["gene_values"]]
    if not ids:
        return {}
    padded = pad_tokens(np.concatenate(ids), np.concatenate(values), [len(cell) for cell in ids])
    return {name: torch.from_numpy(array) for name, array in padded.items()}


class SimilarLengths(RowSampler):
    """Rows at random, those of a batch of like length; a function of seed and epoch alone."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed

    def __iter__(self):
        generator = np.random.default_rng([self.seed, self.epoch])
        shuffled = generator.permutation(len(self.lengths))
        block = self.batch_size * BLOCK_OF_BATCHES
        for start in range(0, len(shuffled), block):
            rows = shuffled[start : start + block]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            whole = len(rows) // self.batch_size * self.batch_size
            batches = rows[:whole].reshape(-1, self.batch_size)
            yield from batches[generator.permutation(len(batches))].ravel().tolist()

    def __len__(self) -> int:
        return len(self.lengths)


def answer_loss(model: ScMMGPTForConditionalGeneration, inputs: dict[str, Any]) -> torch.Tensor:
    """The language loss, with logits of answers alone: of all words they cost a quarter of a small LLM's step."""
    labels, number = inputs["labels"], inputs.get("num_items_in_batch")
    rest = {name: value for name, value in inputs.items() if name not in ("labels", "num_items_in_batch")}
    states = model.model(**rest, use_cache=False).last_hidden_state
    is_asked = labels[:, 1:] != -100
    logits = model.lm_head(states[:, :-1][is_asked]).float()
    total = F.cross_entropy(logits, labels[:, 1:][is_asked], reduction="sum")
    return total / (is_asked.sum() if number is None else number)


def without_cells(model: ScMMGPTForConditionalGeneration, inputs: dict[str, Any]) -> torch.Tensor:
    """Which conversations (B,) of a batch hold no cell."""
    return (inputs["input_ids"] != model.config.cell_token_id).all(1)


def retention_loss(
    model: ScMMGPTForConditionalGeneration, inputs: dict[str, Any], without_adapters: Callable[[], Any]
) -> torch.Tensor | None:
    """How far (Kullback-Leibler, a word) an LLM's next words in conversations without cells are from those it had before.

    None where every conversation of the batch holds a cell.
    """
    is_plain = without_cells(model, inputs)
    if not is_plain.any():
        return None
    ids, mask = inputs["input_ids"][is_plain], inputs["attention_mask"][is_plain]

    def next_words() -> torch.Tensor:
        states = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return model.lm_head(states[mask.bool()]).float().log_softmax(-1)

    with torch.no_grad(), without_adapters():
        before = next_words()
    return F.kl_div(next_words(), before, log_target=True, reduction="batchmean")


def instruction_parts(
    settings: Stage2Settings, arguments: TrainingArguments
) -> tuple[ScMMGPTProcessor, ScMMGPTForConditionalGeneration, Rows]:
    """The processor, the model as it begins, and the conversations of a run on instruction data."""
    seed_everything(arguments)
    start, place = settings.model.start_from, settings.data.instructions
    if start is None or settings.model.language_model is None or place is None:
        raise RecipeError("`data.instructions` needs `model.start_from` for its cells and `model.language_model`.")
    if settings.language_retention and (settings.towers.language_model != "lora" or arguments.world_size > 1):
        raise RecipeError("`language_retention` needs `towers.language_model: lora`, and one process.")
    try:
        dataset = datasets.load_from_disk(place)
    except FileNotFoundError as error:
        raise RecipeError(f"{place} holds no instruction data: make it with training/chat/instructions.py.") from error
    processor = with_words_of_language_model(processor_to_train(start, EMBEDDED_MODEL / ONTOLOGY_FILE), settings.model)
    model = assemble_generative_model(settings, assemble_config(settings, processor), processor)
    collate = InstructionCollator(processor, settings.data.max_text_tokens)
    lengths = np.array([len(text) for text in dataset["messages"]])  # in letters, which cost nothing to count
    order = SimilarLengths(lengths, arguments.train_batch_size * arguments.world_size, arguments.seed)
    if settings.model.projector_start_steps:
        begin_projector_once(model, processor, dataset, settings)
    return processor, model, Rows(dataset, None, collate, order)


# ---- where the projector begins


def begin_projector_once(
    model: ScMMGPTForConditionalGeneration,
    processor: ScMMGPTProcessor,
    dataset: datasets.Dataset,
    settings: Stage2Settings,
) -> None:
    """The projector as it begins, kept beside the run: a run that goes on needs it, but need not make it again."""
    steps, seed = settings.model.projector_start_steps, int(settings.training.get("seed", 0))
    kept = Path(settings.output) / f"{PROJECTOR_START}-{steps}-{seed}-{dataset._fingerprint}.safetensors"
    projector = model.model.cell_token_projector
    if not kept.is_file():
        states, words = spelling_task(model, processor, dataset)
        right = fit_words(projector, states, words, next(model.get_input_embeddings().parameters()), steps, seed)
        print(f"the projector spells {right:.0%} of the words of its last batch", flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(projector.state_dict(), kept)
    projector.load_state_dict(load_file(kept))


def fit_words(
    projector: torch.nn.Sequential,
    states: torch.Tensor,
    words: torch.Tensor,
    vectors: torch.Tensor,
    num_steps: int,
    seed: int,
) -> float:
    """Teach a projector to say words: those that spell each cell's type, before an LLM is asked to read them.

    `states` are (N, Q, width), `words` (N, Q), `vectors` those of all words of the LLM. Returns the share of the words of
    the last batch that lie nearest to what the projector says.
    """
    spoken, place = words.unique(return_inverse=True)
    names, name_of = place.unique(dim=0, return_inverse=True)
    table = vectors.detach().float()[spoken]
    variance, width = table.var(), WORD_WIDTH * table.square().sum(1).mean()
    # What fills up short names says nothing, and is most of all words.
    weight = torch.where(spoken == words[:, -1].mode().values, FILLER_WEIGHT, 1.0)
    generator = torch.Generator().manual_seed(seed)
    dtype = next(projector.parameters()).dtype
    projector.float()
    spread = _standardise(projector, states, table, generator)
    optimizer = torch.optim.AdamW(projector.parameters(), PROJECTOR_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PROJECTOR_RATE, total_steps=num_steps)
    right = 0.0
    for _ in range(num_steps):
        chosen = torch.randint(len(states), (PROJECTOR_BATCH,), generator=generator)
        noise = PROJECTOR_NOISE * spread * torch.randn((PROJECTOR_BATCH, 1, len(spread)), generator=generator)
        said, own = projector(states[chosen] + noise), place[chosen]
        distance = _distances(said, table)
        choice = F.cross_entropy((-distance / width).flatten(0, 1), own.flatten(), reduction="none")
        error = (said - table[own]).square().mean(-1) / variance
        by_word = WORD_CHOICE * choice.view_as(error) + DISTANCE * error
        from_names = _distances(said.flatten(1), table[names].flatten(1))
        by_name = F.cross_entropy(-from_names / (2 * width), name_of[chosen])
        loss = (by_word * weight[own]).sum() / weight[own].sum() + NAME_CHOICE * by_name
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right = (distance.argmin(-1) == own).float().mean().item()
    projector.to(dtype)
    return right


def _distances(vectors: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Squared distances to each row of a table."""
    return vectors.square().sum(-1, keepdim=True) - 2 * vectors @ table.T + table.square().sum(1)


@torch.no_grad()
def _standardise(
    projector: torch.nn.Sequential, states: torch.Tensor, table: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Begin with inputs of mean 0 and spread 1, the mean of the words, and places apart; the spread of the inputs."""
    mean, spread = states.mean((0, 1)), states.std((0, 1))
    parameters = dict(projector.named_parameters())
    parameters["0.weight"].div_(spread)
    parameters["0.bias"].sub_(parameters["0.weight"] @ mean)
    parameters["2.bias"].copy_(table.mean(0))
    if (positions := parameters.get("positions")) is not None:
        positions.copy_(POSITION_SPREAD * spread * torch.randn(positions.shape, generator=generator))
    return spread


def spelling_task(
    model: ScMMGPTForConditionalGeneration, processor: ScMMGPTProcessor, dataset: datasets.Dataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """The Q-Former's states of cells, (N, Q, width), and the words that spell their types, (N, Q)."""
    clear = dataset.filter(lambda kind: kind in CLEAR_KINDS, input_columns="kind")
    labels = [label for row in clear["labels"] for label in row]
    words = torch.tensor([spelling(processor, label) for label in labels])
    states = []
    for start in range(0, len(clear), CELLS_AT_ONCE):
        inputs = tokens_of_cells(clear.select(range(start, min(start + CELLS_AT_ONCE, len(clear)))).to_list())
        with torch.no_grad():
            states.append(model.model.get_cell_features(**inputs).last_hidden_state.float())
    return torch.cat(states), words


def spelling(processor: ScMMGPTProcessor, label: str) -> list[int]:
    """A type's name in as many words of the LLM as a cell has tokens: the first three and the last of a longer one."""
    tokenizer, number = processor.tokenizer, processor.num_query_tokens
    ids = tokenizer(f" {label}", add_special_tokens=False)["input_ids"]
    ids = ids if len(ids) <= number else ids[:3] + ids[3 - number :]
    stop = tokenizer(".", add_special_tokens=False)["input_ids"][0]
    return ids + [stop] * (number - len(ids))
