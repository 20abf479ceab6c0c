"""Conversations about cells: cells are encoded once, turns are kept, answers can be streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from .cells import column_of, open_cells
from .embedding import embed_batch, run_chunk
from .errors import UserError
from .medical_advice import NO_ADVICE, asks_for_advice
from .processing.prompting_scmmgpt import conversation
from .spatialdata_tables import table_of
from .text_generation import check_num_tokens, checked_question, generate_ids, tokenize_prompt

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from .loading import LoadedModel
    from .verb import Verb

MAX_CELLS = 8
MAX_NEW_TOKENS = 128
LIMITS = (
    "The embedded model is small: it names and describes cells in the phrases it was trained on, and does not reason. "
    "For a real conversation name a model with a larger language model."
)


@dataclass
class Conversation:
    """Cells to talk about, and what was said so far.

    Attributes
    ----------
    names
        The cells (or clusters) in the order in which the model sees them.
    cell_tokens
        The cells as tokens of the language model, (cells, Q, H).
    messages
        The turns, as chat templates take them.
    """

    loaded: LoadedModel
    names: list[str]
    cell_tokens: torch.Tensor
    messages: list[dict[str, Any]] = field(default_factory=list)
    limits = LIMITS
    num_opening = 0  # messages before the first question

    def ask(self, question: str, *, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The whole answer to a question."""
        return "".join(self.stream(question, max_new_tokens=max_new_tokens)).strip()

    def stream(self, question: str, *, max_new_tokens: int = MAX_NEW_TOKENS) -> Iterator[str]:
        """The answer in pieces, as it is written; the turn is kept when it is complete."""
        from transformers import TextIteratorStreamer

        check_num_tokens(max_new_tokens)
        if isinstance(question, str) and asks_for_advice(question):
            yield NO_ADVICE
            return
        messages, input_ids = self._prompt(checked_question(self.loaded, question), max_new_tokens)
        streamer = TextIteratorStreamer(self.loaded.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []
        writer = Thread(target=self._write, args=(input_ids, streamer, max_new_tokens, failure), daemon=True)
        writer.start()
        answer = ""
        for piece in streamer:
            answer += piece
            yield piece
        writer.join()
        if failure:
            raise failure[0]
        said = {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}
        self.messages = [*messages, said]

    def _write(
        self, input_ids: torch.Tensor, streamer: Any, max_new_tokens: int, failure: list[BaseException]
    ) -> None:
        import torch

        try:
            with torch.inference_mode():
                generate_ids(self.loaded, input_ids, self.cell_tokens, max_new_tokens, streamer=streamer)
        except Exception as error:  # the thread that reads the stream must hear of it
            failure.append(error)
            streamer.end()

    def _prompt(self, question: str, max_new_tokens: int) -> tuple[list[dict], torch.Tensor]:
        """The turns that fit into the model's context, with the new question, and their token ids."""
        turns = [*self.messages, *self._question(question)]
        room = getattr(self.loaded.config.text_config, "max_position_embeddings", 1 << 20) - max_new_tokens
        while True:
            template = self.loaded.processor.apply_chat_template
            ids = tokenize_prompt(self.loaded, template(turns, add_generation_prompt=True, tokenize=False))
            if ids.shape[1] <= room:
                return turns, ids
            if len(turns) < 3 + self.num_opening:
                raise UserError(f"The question and {len(self.names)} cells do not fit into the model's context.")
            turns = self._without_oldest_answer(turns)

    def _question(self, question: str) -> list[dict[str, Any]]:
        return conversation(question, num_cells=0 if self.messages else len(self.names))

    def _without_oldest_answer(self, turns: list[dict]) -> list[dict]:
        """Forget the oldest exchange; the cells move to the question that is now the first."""
        opening, turns = turns[: self.num_opening], turns[self.num_opening :]
        first = {**turns[2], "content": [*self._about(turns[0]), *turns[2]["content"]]}
        return [*opening, first, *turns[3:]]

    def _about(self, first: dict) -> list[dict]:
        """What stands before the first question."""
        return [block for block in first["content"] if block["type"] == "cell"]


def begin_conversation(
    verb: Verb, cluster_key: str | None, select: Sequence[str] | None, *, checked: bool = True
) -> Conversation:
    """Encode the chosen cells (or the most typical cell of each chosen cluster) once."""
    import torch

    if verb.loaded.reads_contexts:
        from .reading_conversation import begin_reading

        return begin_reading(verb, *_chosen_groups(verb, cluster_key, select), checked=checked)
    names, rows = _chosen_cells(verb, select) if cluster_key is None else _chosen_clusters(verb, cluster_key, select)
    features = verb.loaded.processor.gene_tokenizer(verb.cells.rows(rows), return_tensors="pt")
    with torch.inference_mode():
        inputs = {name: values.to(verb.loaded.device) for name, values in features.items()}
        return Conversation(verb.loaded, names, verb.loaded.model.get_cell_tokens(**inputs))


def check_chosen(data: Any, cluster_key: str | None, select: Sequence[str] | None) -> None:
    """Refuse cells, clusters and columns that are not there, before a model is looked for."""
    if cluster_key is not None or select is not None:
        _chosen_names(open_cells(table_of(data)).obs, cluster_key, select)


def _chosen_cells(verb: Verb, select: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    names, all_names = _chosen_names(verb.cells.obs, None, select), verb.cells.obs.index.astype(str)
    return names, np.array([np.flatnonzero(all_names == name)[0] for name in names])


def _chosen_groups(verb: Verb, key: str | None, select: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Names, and for each cell of the study the number of the chosen cell or cluster that it belongs to, or -1."""
    if key is None:
        names, rows = _chosen_cells(verb, select)
        groups = np.full(verb.cells.num_cells, -1)
        groups[rows] = np.arange(len(rows))
        return names, groups
    names = _chosen_names(verb.cells.obs, key, select)
    cluster_of_cell = column_of(verb.cells.obs, key).to_numpy()
    return names, np.array([names.index(name) if name in names else -1 for name in cluster_of_cell])


def _chosen_clusters(verb: Verb, key: str, select: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    names = _chosen_names(verb.cells.obs, key, select)
    cluster_of_cell = column_of(verb.cells.obs, key).to_numpy()
    return names, np.array([_most_typical(verb, np.flatnonzero(cluster_of_cell == name)) for name in names])


def _chosen_names(obs: pd.DataFrame, key: str | None, select: Sequence[str] | None) -> list[str]:
    """Names of cells, or with a key of the clusters in that column."""
    present = list(obs.index.astype(str)) if key is None else sorted(set(column_of(obs, key)))
    if isinstance(select, str):
        select = [select]
    names = list(present[: 1 if key is None else MAX_CELLS] if select is None else select)
    _check_names(names, set(present), "cells" if key is None else f"clusters of {key!r}")
    return names


def _check_names(names: list[str], present: set[str], what: str) -> None:
    if not names:
        raise UserError(f"No {what} are chosen: name some in select=, or leave it out.")
    if len(names) > MAX_CELLS:
        raise UserError(f"At most {MAX_CELLS} {what} fit into one conversation, got {len(names)}.")
    unknown = [name for name in names if name not in present]
    if unknown:
        raise UserError(f"There are no {what} {unknown}; there are for example {sorted(present)[:5]}.")


def _most_typical(verb: Verb, members: np.ndarray, num_looked_at: int = 256) -> int:
    """The cell nearest to the mean of a cluster, among a few hundred of it."""
    looked_at = members[np.linspace(0, len(members) - 1, min(num_looked_at, len(members))).astype(int)]
    features = dict(verb.loaded.processor.gene_tokenizer(verb.cells.rows(looked_at), return_tensors="np"))
    embeds = run_chunk(features, embed_batch(verb.loaded), verb.batches, verb.loaded.device)["embeds"]
    return int(looked_at[(embeds @ embeds.mean(axis=0)).argmax()])


def talk_at_the_terminal(conversation: Conversation) -> None:
    """Answer questions at the terminal until an empty line."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"About: {', '.join(conversation.names)}. An empty line ends.", markup=False)
    console.print(conversation.limits, style="dim", markup=False)
    while True:
        try:
            question = console.input("[bold]you[/bold]: ").strip()
        except EOFError:
            return
        if not question:
            return
        console.print("scmmgpt: ", end="", style="bold")
        for piece in conversation.stream(question):
            console.print(piece, end="", markup=False)
        console.print()
