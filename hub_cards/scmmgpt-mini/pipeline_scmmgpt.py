"""Custom `pipeline(...)` tasks: AnnData in, AnnData out; or lists, when the cells come from a file or as a matrix."""

# A step of a pipeline takes what its task needs, which transformers' signatures do not foresee.
# mypy: disable-error-code="override"

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForMultimodalLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .back_off_scmmgpt import check_min_confidence
from .encoding_scmmgpt import TextEmbedder, check_vocabularies, similarity_scale
from .errors_scmmgpt import UserError
from .labels_scmmgpt import Labels
from .processing_scmmgpt import ScMMGPTProcessor
from .prompting_scmmgpt import asks_for_shares, generation_text
from .result_keys_scmmgpt import ResultKeys

CELLS_AT_A_TIME = 256
PROMPTS_AT_A_TIME = 16
KEYS = ResultKeys()


class CellPipeline(Pipeline):
    """Runs over any number of cells, some at a time, and returns them with what was found.

    The processor recognises matrix and genes by itself; its options (`layer=`, `gene_column=`, ...) may be passed on.
    """

    model: Any  # its class lies in the folder of the model, which this one must not import
    processor: ScMMGPTProcessor
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    # Which step takes an option: 0 reads cells or text, 1 runs the model, 2 puts the outputs together.
    _step_of: Mapping[str, int] = {}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_vocabularies(self.model, self.processor)

    def __call__(self, inputs: Any, **kwargs) -> Any:
        """Process all cells; keyword arguments take the place of those given when the pipeline was made."""
        given = self._preprocess_params, self._forward_params, self._postprocess_params
        now = self._sanitize_parameters(**kwargs)
        reading, forward, after = ({**before, **after} for before, after in zip(given, now, strict=True))
        outputs: Any = [self.forward(chunk, **forward) for chunk in self.preprocess(inputs, **reading)]
        return self.postprocess(outputs, cells=inputs, **after)

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        steps: tuple[dict, dict, dict] = {}, {}, {}
        for name, value in kwargs.items():
            steps[self._step_of.get(name, 0)][name] = value
        return steps

    def preprocess(self, cells: Any, chunk_size: int = CELLS_AT_A_TIME, **options) -> Iterator[dict]:
        """Tensors of some cells at a time."""
        if chunk_size < 1:
            raise UserError(f"chunk_size must be at least 1, got {chunk_size}.")
        for chunk in self.processor.gene_tokenizer.iter_chunks(cells, chunk_size, return_tensors="pt", **options):
            yield dict(chunk)

    def cell_embeds(self, chunk: dict) -> torch.Tensor:
        """One unit-length embedding per cell."""
        return self.model.get_cell_features(**chunk).pooler_output

    def save_pretrained(self, save_directory: Any, **kwargs) -> None:
        """Save model and processor as one repository, from which every pipeline of the model loads."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    @cached_property
    def embed_texts(self) -> TextEmbedder:
        """Texts -> one unit-length embedding each."""
        return TextEmbedder(self.model, self.processor)

    def with_obs(self, cells: Any, columns: Mapping[str, Sequence]) -> Any:
        """A copy of the AnnData with new columns in `obs` and the account in `uns`; rows of a dict otherwise."""
        if not (hasattr(cells, "obs") and hasattr(cells, "var_names")):
            return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        annotated = cells.to_memory() if getattr(cells, "isbacked", False) else cells.copy()
        for name, values in columns.items():
            annotated.obs[KEYS.of(name)] = list(values)
        annotated.uns[KEYS.name] = {**annotated.uns.get(KEYS.name, {}), "genes": self.processor.account}
        return annotated


class CellAnnotationPipeline(CellPipeline):
    """Zero-shot cell-type annotation with any candidate labels.

    The calls are those of `scmmgpt.annotate(..., prior_share=0)`: every cell is judged by itself, whatever else is in
    the same call. `prior_share=None` compares the cells with each other, as `scmmgpt.annotate` does by default.

    `labels` is a list of names, a mapping from names to definitions, or None for the types of the model's training.
    `tissue` and `min_confidence` are those of `scmmgpt.annotate`.
    """

    _step_of = {"min_confidence": 2}

    def preprocess(
        self,
        cells: Any,
        labels: Labels | None = None,
        tissue: str | None = None,
        prior_share: float | None = 0.0,
        **options,
    ) -> Iterator[dict]:
        """Tensors of some cells at a time, with what the tokens themselves say about the cells."""
        gene_tokenizer, annotator = self.processor.gene_tokenizer, self.processor.annotator(self.model.config)
        candidates = annotator.candidates(
            annotator.label_set(labels), self.embed_texts, tissue=tissue, with_profiles=prior_share != 0
        )
        measured = gene_tokenizer.measured_genes(cells) if candidates.profiles else None
        read_tokens = annotator.token_evidence(gene_tokenizer, candidates)
        question = {"annotator": annotator, "candidates": candidates, "measured": measured, "prior_share": prior_share}
        for tokens in super().preprocess(cells, **options):
            yield {"tokens": tokens, "evidence": read_tokens(tokens), "question": question}

    def _forward(self, chunk: dict) -> dict:
        embeds = self.cell_embeds(chunk.pop("tokens"))
        return {**chunk, "embeds": embeds}

    def postprocess(self, outputs: list[dict], cells: Any, min_confidence: float | None = None) -> Any:
        """The call, its ontology term and confidence, and the second choice of each cell."""
        check_min_confidence(min_confidence)
        arrays = [{"embeds": output["embeds"].float().numpy(), **output["evidence"]} for output in outputs]
        evidence = {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}
        question = outputs[0]["question"]
        scorer = question["annotator"].scorer(
            evidence,
            question["candidates"],
            scale=similarity_scale(self.model),
            measured_genes=question["measured"],
            prior_share=question["prior_share"],
            reach=self.processor.gene_tokenizer.account.get("reach", 1.0),
        )
        calls = question["annotator"].call(scorer, min_confidence=min_confidence)
        return self.with_obs(cells, {name: values.tolist() for name, values in calls.columns.items()})


class CellRetrievalPipeline(CellPipeline):
    """Finds the cells that a text describes: for every query the best cells, best first."""

    _step_of = {"query": 2, "top": 2}

    def _forward(self, chunk: dict) -> dict:
        return {"embeds": self.cell_embeds(chunk)}

    def postprocess(self, outputs: list[dict], cells: Any, query: str | Sequence[str] = "", top: int = 20) -> list:
        """Rows with the cell's place, its name where it has one, and its cosine similarity."""
        queries = [query] if isinstance(query, str) else list(query)
        if not queries or any(not one.strip() for one in queries):
            raise UserError("The text to look for is empty: name it in query=.")
        if top < 1:
            raise UserError(f"top must be at least 1, got {top}.")
        embeds = torch.cat([output["embeds"] for output in outputs])
        scores = self.embed_texts([self.processor.searched_words(one) for one in queries]) @ embeds.float().numpy().T
        names = list(getattr(cells, "obs_names", range(len(embeds))))
        found = [
            [
                {"cell": names[place], "place": int(place), "score": float(row[place])}
                for place in np.argsort(-row, kind="stable")[:top]
            ]
            for row in scores
        ]
        return found[0] if isinstance(query, str) else found


class CellToTextPipeline(CellPipeline):
    """Writes a text about each cell: the answer to `question`, or a description."""

    _pipeline_calls_generate = True
    _step_of = {"max_new_tokens": 1, "generate_kwargs": 1}

    def preprocess(self, cells: Any, question: str | None = None, **options) -> Iterator[dict]:
        """Prompts with cells, some at a time."""
        prompt = self.processor.cell_prompt(question)
        options.setdefault("chunk_size", PROMPTS_AT_A_TIME)
        for chunk in super().preprocess(cells, **options):
            # The template writes every special token itself.
            yield {**self.processor.prompts(prompt, len(chunk["gene_ids"]), add_special_tokens=False), **chunk}

    def _forward(self, inputs: dict, max_new_tokens: int = 64, generate_kwargs: dict | None = None) -> dict:
        written = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **(generate_kwargs or {}))
        return {"written": written[:, inputs["input_ids"].shape[1] :]}

    def postprocess(self, outputs: list[dict], cells: Any) -> Any:
        """The text written about each cell."""
        texts = [
            text.strip()
            for output in outputs
            for text in self.processor.batch_decode(output["written"], skip_special_tokens=True)
        ]
        return self.with_obs(cells, {"description": texts})


class TextToCellPipeline(CellPipeline):
    """Generates pseudo-cells from one or more texts, as an AnnData of counts."""

    _step_of = {"num_cells": 1, "seed": 1, "guidance_scale": 1, "gene_ids": 1}

    def preprocess(self, texts: str | Sequence[str], **options) -> Iterator[dict]:
        """The request, in the words of training."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if any(map(asks_for_shares, texts)):
            raise UserError(
                "Shares of several texts are read by `scmmgpt.generate_cells`; here ask for each text by itself."
            )
        asked = [self.processor.asked_cells(text) for text in texts]
        for note in dict.fromkeys(note for one in asked for note in one.notes):
            warnings.warn(note, UserWarning, stacklevel=2)
        yield dict(self.processor(text=[generation_text(one.words) for one in asked], **options))

    def _forward(self, inputs: dict, num_cells: int = 1, **kwargs) -> dict:
        cells = self.model.generate_cells(**inputs, num_cells=num_cells, **kwargs)
        return {"counts": cells.counts, "gene_ids": cells.gene_ids, "num_cells": num_cells}

    def postprocess(self, outputs: list[dict], cells: str | Sequence[str]) -> Any:
        """Counts with the names of genes, and the text of each cell in `obs`."""
        texts = [cells] if isinstance(cells, str) else list(cells)
        (output,) = outputs
        repeated = [text for text in texts for _ in range(output["num_cells"])]
        return self.processor.post_process_cells(output["counts"], output["gene_ids"], repeated)


# Task -> pipeline, and the Auto class of the model that it runs.
PIPELINES = {
    "cell-annotation": (CellAnnotationPipeline, "AutoModel"),
    "cell-retrieval": (CellRetrievalPipeline, "AutoModel"),
    "cell-to-text": (CellToTextPipeline, "AutoModelForMultimodalLM"),
    "text-to-cell": (TextToCellPipeline, "AutoModelForMultimodalLM"),
}
AUTO_MODELS = {"AutoModel": AutoModel, "AutoModelForMultimodalLM": AutoModelForMultimodalLM}


def register_pipelines() -> None:
    """Make `pipeline("cell-annotation", ...)` and the others known to transformers."""
    for task, (pipeline_class, auto_model) in PIPELINES.items():
        PIPELINE_REGISTRY.register_pipeline(
            task, pipeline_class=pipeline_class, pt_model=AUTO_MODELS[auto_model], type="multimodal"
        )


__all__ = [
    "CellAnnotationPipeline",
    "CellRetrievalPipeline",
    "CellToTextPipeline",
    "TextToCellPipeline",
]
