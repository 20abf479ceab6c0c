"""What the endpoint takes and gives, with its limits: the one schema of `handler.py` and of `scmmgpt serve`.

A Hub file: it lies beside `handler.py` in every published repository and needs pydantic only.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

MAX_REQUESTS = 32  # in one body
MAX_BODY_BYTES = 32 * 1024**2
MAX_CELLS = 1024
MAX_CELLS_TO_DESCRIBE = 64
MAX_CELLS_TO_GENERATE = 256
MAX_GENES = 65_536
MAX_VALUES = 4_000_000  # non-zero values of all cells together
MAX_LABELS = 5_000
MAX_TEXT = 4_000  # characters
MAX_NEW_TOKENS = 256
MAX_H5AD_BYTES = 16 * 1024**2
MAX_H5AD_UNPACKED_BYTES = 128 * 1024**2

Count = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
GeneName = Annotated[str, Field(min_length=1, max_length=100)]
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")]


class _Strict(BaseModel):
    """A misspelt field is an error, never a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _not_too_many_values(cells: list[dict[str, float]]) -> list[dict[str, float]]:
    num_values = sum(map(len, cells))
    if num_values > MAX_VALUES:
        raise ValueError(f"{num_values} values are more than {MAX_VALUES}; send fewer cells at a time")
    return cells


SparseCells = Annotated[
    list[Annotated[dict[GeneName, Count], Field(max_length=MAX_GENES)]],
    Field(min_length=1, max_length=MAX_CELLS, description="Cells as {gene: count}; all counts, or all scaled alike."),
    AfterValidator(_not_too_many_values),
]


class CsrCells(_Strict):
    """Cells as the rows of a compressed sparse matrix: row i is `data[indptr[i]:indptr[i + 1]]`."""

    genes: Annotated[list[GeneName], Field(min_length=1, max_length=MAX_GENES)]
    indptr: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=MAX_CELLS + 1)]
    indices: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_VALUES)]
    data: Annotated[list[Count], Field(max_length=MAX_VALUES)]

    @model_validator(mode="after")
    def _rows_fit(self) -> "CsrCells":
        if len(self.indices) != len(self.data):
            raise ValueError(f"`indices` has {len(self.indices)} entries and `data` {len(self.data)}")
        if self.indptr[0] != 0 or self.indptr[-1] != len(self.data):
            raise ValueError(f"`indptr` must run from 0 to {len(self.data)}, the number of values")
        if any(start > stop for start, stop in zip(self.indptr, self.indptr[1:], strict=False)):
            raise ValueError("`indptr` must not fall")
        if max(self.indices, default=0) >= len(self.genes):
            raise ValueError(f"`indices` names gene {max(self.indices)}, but there are {len(self.genes)} genes")
        return self


class H5adCells(_Strict):
    """A small h5ad file in base64."""

    h5ad: Annotated[str, Field(min_length=8, max_length=4 * MAX_H5AD_BYTES // 3 + 4, description="base64")]


def _kind_of_cells(cells: Any) -> str:
    if isinstance(cells, list):
        return "SparseCells"
    has_file = "h5ad" in cells if isinstance(cells, dict) else hasattr(cells, "h5ad")
    return "H5adCells" if has_file else "CsrCells"


Cells = Annotated[
    Annotated[SparseCells, Tag("SparseCells")]
    | Annotated[CsrCells, Tag("CsrCells")]
    | Annotated[H5adCells, Tag("H5adCells")],
    Discriminator(_kind_of_cells),
]
_B_CELL = ("CD74", "CD79A", "MS4A1", "CD79B", "CD37", "BANK1", "TCL1A", "LTB", "CD19", "FCER2", "IGHM", "IGHD")
_MONOCYTE = ("LYZ", "S100A9", "S100A8", "FCN1", "VCAN", "CST3", "TYROBP", "CTSS", "MNDA", "AIF1", "LGALS1", "CD14")
_TWO_CELLS = [{gene: len(genes) - place for place, gene in enumerate(genes)} for genes in (_B_CELL, _MONOCYTE)]


class AnnotateRequest(_Strict):
    """Name the type of each cell."""

    task: Literal["annotate"] = "annotate"
    cells: Cells = Field(examples=[_TWO_CELLS])
    labels: Annotated[list[Label], Field(min_length=1, max_length=MAX_LABELS)] | None = Field(
        None, description="Candidates; without them, the types that the model was trained on."
    )
    tissue: Annotated[str, Field(max_length=200)] | None = None
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Below it the call moves to a parent term, then to `unknown`. 0 never does."
    )

    @model_validator(mode="after")
    def _no_label_twice(self) -> "AnnotateRequest":
        if self.labels and len(set(self.labels)) < len(self.labels):
            repeated = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"the label {repeated!r} is given more than once")
        return self


class EmbedRequest(_Strict):
    """One unit vector per cell, in the space that text shares."""

    task: Literal["embed"] = "embed"
    cells: Cells = Field(examples=[_TWO_CELLS])


class DescribeRequest(_Strict):
    """Let the language model describe each cell from the cell's own tokens."""

    task: Literal["describe"] = "describe"
    cells: Cells = Field(examples=[_TWO_CELLS])
    prompt: Text | None = Field(None, description="What to ask about each cell.")
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] = 64


class SearchRequest(_Strict):
    """The cells that fit a text best."""

    task: Literal["search"] = "search"
    cells: Cells = Field(examples=[_TWO_CELLS])
    text: Text = Field(examples=["cells that make antibodies"])
    top: Annotated[int, Field(ge=1, le=MAX_CELLS)] = 20


class GenerateRequest(_Strict):
    """Make pseudo-cells, with whole counts, from a text."""

    task: Literal["generate"] = "generate"
    text: Text = Field(examples=["a naive B cell from lymph node"])
    num_cells: Annotated[int, Field(ge=1, le=MAX_CELLS_TO_GENERATE)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


Request = Annotated[
    AnnotateRequest | EmbedRequest | DescribeRequest | SearchRequest | GenerateRequest, Discriminator("task")
]
_REQUEST: TypeAdapter = TypeAdapter(Request)


class CellCall(BaseModel):
    """The type of one cell."""

    cell_type: str
    cell_type_ontology_term_id: str
    confidence: float
    second_choice: str


class GenesRead(BaseModel):
    """Which genes were read, and how far what the model learnt carries."""

    species: str
    num_genes: int
    num_matched: int
    share_of_counts: float = Field(description="Share of the counts in genes that the model knows, 0 to 1.")
    reach: float = Field(description="Under 0.6 confidences are lowered, under 0.25 every cell is `unknown`.")
    set_aside: dict[str, int] = Field(
        description="Features that are no genes, by kind, and are not read. Antibodies too: their two levels show only in "
        "a study, and here every cell is judged by itself."
    )


class AnnotateResponse(BaseModel):
    calls: list[CellCall]
    genes: GenesRead


class EmbedResponse(BaseModel):
    embeddings: list[list[float]]


class DescribeResponse(BaseModel):
    descriptions: list[str]


class Hit(BaseModel):
    """A cell, by its place in the request, and how well it fits (cosine, -1 to 1)."""

    cell: int
    score: float


class SearchResponse(BaseModel):
    hits: list[Hit]


class GenerateResponse(BaseModel):
    """Pseudo-cells in the form of `CsrCells`; genes that no cell expresses are left out."""

    cells: CsrCells
    notes: list[str] = Field(description="What of the text was not heeded: what was done to cells, say.")


class Refusal(BaseModel):
    """Why a request was not answered."""

    error: str


class BadRequest(ValueError):
    """What was sent cannot be answered; the message says what is wrong and where."""


def read_body(body: Any) -> tuple[list[Any], bool]:
    """The checked requests of {"inputs": one request or several, "parameters": ...}, and whether a list was sent.

    `BadRequest` says what is wrong with the body or with the first faulty request.
    """
    if not isinstance(body, dict):
        raise BadRequest('The body is an object: {"inputs": {"task": ..., "cells": ...}}.')
    inputs, parameters = body.get("inputs", body), body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequest("`parameters` is an object.")
    contents = inputs if isinstance(inputs, list) else [inputs]
    if len(contents) > MAX_REQUESTS:
        raise BadRequest(f"{len(contents)} requests are too many for one body; at most {MAX_REQUESTS}.")
    requests = [
        read_request({**content, **parameters} if isinstance(content, dict) else content) for content in contents
    ]
    return requests, isinstance(inputs, list)


def read_request(content: Any) -> Any:
    """A checked request from decoded JSON; `BadRequest` names the first few faults with their places."""
    if not isinstance(content, dict):
        raise BadRequest("A request is an object with `task` and, for most tasks, `cells`.")
    try:
        return _REQUEST.validate_python(content)
    except ValidationError as error:
        raise BadRequest(explain(error.errors(include_url=False, include_input=False))) from None


def explain(faults: list[Any]) -> str:
    """Faults as pydantic lists them, in one line."""
    shown = []
    for fault in faults[:3]:
        place = ".".join(str(part)[:60] for part in fault["loc"] if part not in _TAGS)
        shown.append(f"{place}: {fault['msg']}" if place else fault["msg"])
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return "; ".join(shown) + more


_TAGS = ("annotate", "embed", "describe", "search", "generate", "body", "SparseCells", "CsrCells", "H5adCells")
