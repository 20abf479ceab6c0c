"""A model behind an inference endpoint: JSON in, JSON out, for annotate, embed, describe, search and generate.

A Hub file. The endpoint toolkit imports it from the root of the repository, makes one `EndpointHandler(path)` and
calls it with each decoded body:

    {"inputs": {"task": "annotate", "cells": [{"CD3D": 2, "LYZ": 40}]}, "parameters": {"min_confidence": 0}}

`inputs` may be a list of requests, which are answered together. What requests look like: `schema_scmmgpt.py`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

if TYPE_CHECKING or __package__:
    from scmmgpt.processing.encoding_scmmgpt import TextEmbedder, check_vocabularies, similarity_scale
    from scmmgpt.processing.prompting_scmmgpt import asks_for_shares, generation_text

    from .request_cells_scmmgpt import names_expressed_genes, on_panel_of_expressed, opened_cells
    from .schema_scmmgpt import MAX_CELLS_TO_DESCRIBE, BadRequest, read_body, read_request
else:  # in a repository every file lies beside this one
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from encoding_scmmgpt import TextEmbedder, check_vocabularies, similarity_scale
    from prompting_scmmgpt import asks_for_shares, generation_text
    from request_cells_scmmgpt import names_expressed_genes, on_panel_of_expressed, opened_cells
    from schema_scmmgpt import MAX_CELLS_TO_DESCRIBE, BadRequest, read_body, read_request

CELLS_PER_BATCH = 128


class EndpointHandler:
    """A loaded model that answers requests: the one in the folder `path`, by default the handler's own."""

    def __init__(self, path: str = "", device: str | None = None):
        directory = Path(path) if path else Path(__file__).resolve().parent
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
        self.processor.tokenizer.padding_side = "left"
        config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
        self.is_generative = "ScMMGPTForConditionalGeneration" in (config.architectures or ())
        auto_class = AutoModelForMultimodalLM if self.is_generative else AutoModel
        # In the type that the config names, as everywhere else: a GPU gives the same answers as a laptop.
        model = auto_class.from_pretrained(directory, trust_remote_code=True)
        self.model = model.eval().to(self.device)
        check_vocabularies(model, self.processor)
        self.training_summary = getattr(self.model.config, "training_summary", None) or {}
        self.annotator = self.processor.annotator(self.model.config)
        # A fast tokenizer refuses to be used by two threads at once.
        self._tokenizing = Lock()
        self._embed_texts = TextEmbedder(self.model, self._process)
        self._read_tokens = self.annotator.token_evidence(self.processor.gene_tokenizer)
        self._warm_up()

    def __call__(self, data: dict[str, Any]) -> Any:
        """The answer to one decoded body, or answers to a list of requests; a ValueError says why there is none."""
        requests, is_list = read_body(data)
        answers = self.answer(requests)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers if is_list else answers[0]

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """One answer per checked request, cells of all requests going through the model together.

        A request that cannot be answered gets the `BadRequest` that says why, in its own place.
        """
        encoded = self._embed_cells([request if request.task in _EMBEDDED else None for request in requests])
        answers: list[Any] = []
        for request, cells in zip(requests, encoded, strict=True):
            try:
                if isinstance(cells, BadRequest):
                    raise cells
                answers.append(_ACTIONS[request.task](self, request, cells))
            except BadRequest as reason:
                answers.append(reason)
        return answers

    # The tasks

    def _annotate(self, request: Any, cells: dict[str, Any]) -> dict[str, Any]:
        """Each cell by itself: what is said about a cell never depends on the types of the others of a request.

        Whether the values are counts is recognised once for all of them.
        """
        with _explained():
            label_set = self.annotator.label_set(request.labels)
        candidates = self.annotator.candidates(
            label_set, self._embed_texts, tissue=request.tissue, with_profiles=False
        )
        genes = _genes_read(cells.pop("account"))
        scale = similarity_scale(self.model)
        scorer = self.annotator.scorer(cells, candidates, scale=scale, prior_share=0, reach=genes["reach"])
        columns = self.annotator.call(scorer, min_confidence=request.min_confidence).columns
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return {"calls": [dict(zip(columns, row, strict=True)) for row in rows], "genes": genes}

    def _embed(self, request: Any, cells: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"embeddings": cells["embeds"].tolist()}

    def _search(self, request: Any, cells: dict[str, np.ndarray]) -> dict[str, Any]:
        scores = cells["embeds"] @ self._embed_texts([self.processor.searched_words(request.text)])[0]
        best = np.argsort(-scores, kind="stable")[: request.top]
        return {"hits": [{"cell": int(cell), "score": float(scores[cell])} for cell in best]}

    def _describe(self, request: Any, cells: None) -> dict[str, Any]:
        inputs = self._prompts(request)
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=request.max_new_tokens, do_sample=False)
        new_ids = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new_ids, skip_special_tokens=True)
        return {"descriptions": [text.strip() for text in texts]}

    def _generate(self, request: Any, cells: None) -> dict[str, Any]:
        self._require_language_model()
        if asks_for_shares(request.text):
            raise BadRequest("text: shares of several texts are one request each; ask for every text by itself.")
        with _explained():
            asked = self.processor.asked_cells(request.text)
        inputs = self._process(text=[generation_text(asked.words)])
        gene_tokenizer = self.processor.gene_tokenizer
        output = self.model.generate_cells(
            inputs["input_ids"],
            inputs["attention_mask"],
            gene_ids=torch.from_numpy(gene_tokenizer.gene_ids),
            num_cells=request.num_cells,
            seed=request.seed,
        )
        counts, names = output.counts.cpu().numpy(), np.array(gene_tokenizer.genes)
        expressed = counts.any(axis=0)
        matrix = sparse.csr_matrix(counts[:, expressed])
        values = {"indptr": matrix.indptr, "indices": matrix.indices, "data": matrix.data}
        made = {"genes": names[expressed].tolist(), **{key: part.tolist() for key, part in values.items()}}
        return {"cells": made, "notes": asked.notes}

    def stream_description(self, request: Any) -> Iterator[str]:
        """The description of one cell in pieces, as it is written; closing the iterator ends the writing."""
        inputs = self._prompts(request)
        if len(inputs["input_ids"]) != 1:
            raise BadRequest(f"A stream describes one cell, got {len(inputs['input_ids'])}.")
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        given_up = Event()
        options = {
            "max_new_tokens": request.max_new_tokens,
            "do_sample": False,
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([_StopWhen(given_up)]),
        }
        writer = Thread(target=self._write, args=(inputs, options, streamer), daemon=True)
        return _pieces(writer, streamer, given_up)

    def _write(self, inputs: Any, options: dict[str, Any], streamer: Any) -> None:
        try:
            with torch.inference_mode():
                self.model.generate(**inputs, **options)
        finally:
            streamer.end()

    # Cells and texts through the model

    def _prompts(self, request: Any) -> Any:
        """Model inputs of one question about each cell of the request."""
        self._require_language_model()
        question = self.processor.cell_prompt(request.prompt)
        cells, _ = self._tokenize(request.cells)
        num_cells = len(cells)
        if num_cells > MAX_CELLS_TO_DESCRIBE:
            raise BadRequest(f"{num_cells} cells are too many to describe; at most {MAX_CELLS_TO_DESCRIBE} are taken.")
        with _explained(), self._tokenizing:
            inputs = self.processor.prompts(question, num_cells, return_tensors="pt")
        inputs.update({name: torch.from_numpy(values) for name, values in self._padded(cells).items()})
        inputs = inputs.to(self.device)
        room = getattr(self.model.config.text_config, "max_position_embeddings", 1 << 20)
        num_tokens = inputs["input_ids"].shape[1] + request.max_new_tokens
        if num_tokens > room:
            raise BadRequest(f"Prompt and answer need {num_tokens} tokens; the model has room for {room}.")
        return inputs

    def _process(self, **inputs: Any) -> Any:
        with self._tokenizing:
            return self.processor(**{"return_tensors": "pt", **inputs}).to(self.device)

    def _embed_cells(self, requests: Sequence[Any]) -> list[Any]:
        """For each request its cells' vectors and the account of their genes, the reason why there are none, or None
        where none were asked for."""
        results: list[Any] = [None] * len(requests)
        cells: list[tuple[np.ndarray, np.ndarray]] = []
        places: dict[int, tuple[slice, dict[str, Any]]] = {}
        for index, request in enumerate(requests):
            if request is None:
                continue
            try:
                tokens, account = self._tokenize(request.cells)
            except BadRequest as reason:
                results[index] = reason
                continue
            places[index] = slice(len(cells), len(cells) + len(tokens)), account
            cells += tokens
        evidence = self._forward(cells) if cells else {}
        for index, (place, account) in places.items():
            results[index] = {"account": account, **{name: values[place] for name, values in evidence.items()}}
        return results

    def _tokenize(self, cells: Any) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
        """(gene ids, values) of each cell, and the account of what was read."""
        gene_tokenizer = copy(self.processor.gene_tokenizer)  # whose account no other thread replaces
        names_expressed_alone = gene_tokenizer.panel_scaling and names_expressed_genes(cells)
        if names_expressed_alone:
            gene_tokenizer.panel_scaling = False
        with _explained(), opened_cells(cells) as source:
            features = gene_tokenizer(source, packed=True)
        ids, values = np.ravel(features["gene_ids"]), np.ravel(features["gene_values"])
        bounds = np.asarray(features["cell_cu_seqlens"])
        tokens = [(ids[start:stop], values[start:stop]) for start, stop in pairwise(bounds)]
        if names_expressed_alone:
            tokens = [(ids, on_panel_of_expressed(gene_tokenizer, ids, values)) for ids, values in tokens]
        return tokens, gene_tokenizer.account

    def _padded(self, tokens: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        ids, values = zip(*tokens, strict=True)
        lengths = [len(one) for one in ids]
        return self.processor.gene_tokenizer.pad_tokens(np.concatenate(ids), np.concatenate(values), lengths)

    def _forward(self, cells: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays of `CellEvidence`, computed in batches of cells of like length."""
        order = np.argsort([len(ids) for ids, _ in cells], kind="stable")
        batches = []
        for start in range(0, len(order), CELLS_PER_BATCH):
            tokens = self._padded([cells[index] for index in order[start : start + CELLS_PER_BATCH]])
            inputs = {name: torch.from_numpy(array).to(self.device) for name, array in tokens.items()}
            with torch.inference_mode():
                embeds = self.model.get_cell_features(**inputs).pooler_output.float().cpu().numpy()
            batches.append({"embeds": embeds, **self._read_tokens(tokens)})
        place = np.argsort(order)
        return {name: np.concatenate([batch[name] for batch in batches])[place] for name in batches[0]}

    def _require_language_model(self) -> None:
        if not self.is_generative:
            raise BadRequest("This model has no language model: it can annotate, embed and search.")

    def _warm_up(self) -> None:
        """Pay for first allocations, and for the texts of the trained types, now and not in the first request."""
        cell = dict.fromkeys(self.processor.gene_tokenizer.genes[:64], 1.0)
        labels = {} if self.training_summary.get("cell_types") else {"labels": ["cell"]}
        self.answer([read_request({"task": "annotate", "cells": [cell], **labels})])


_EMBEDDED = ("annotate", "embed", "search")
_ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "annotate": EndpointHandler._annotate,
    "embed": EndpointHandler._embed,
    "search": EndpointHandler._search,
    "describe": EndpointHandler._describe,
    "generate": EndpointHandler._generate,
}


def _genes_read(account: dict[str, Any]) -> dict[str, Any]:
    """What of the account the sender of cells should know."""
    told = {name: account[name] for name in ("species", "num_genes", "num_matched", "share_of_counts", "reach")}
    return told | {"set_aside": {kind: entry["number"] for kind, entry in account["set_aside"].items()}}


@contextmanager
def _explained() -> Iterator[None]:
    """What the processor objects to in somebody's cells is the sender's to mend."""
    try:
        yield
    except BadRequest:
        raise
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        raise BadRequest(str(error)[:1000]) from error


class _StopWhen(StoppingCriteria):
    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def _pieces(writer: Thread, streamer: Any, given_up: Event) -> Iterator[str]:
    writer.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        given_up.set()
        if writer is not current_thread():  # which may be the one that throws this away
            writer.join()
