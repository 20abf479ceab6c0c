"""All prompt templates: text from labels, metadata and definitions, for training and inference."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

CELL_TOKEN = "<cell>"
_SHARES = re.compile(r"\d\s*%.*\d\s*%", re.DOTALL)
_ARTICLE = re.compile(r"^(an?|the|some)\s+", re.IGNORECASE)
MISSING = frozenset({"", "unknown", "na", "n/a", "nan", "none", "null", "not applicable", "unassigned", "other"})

# What an obs table may call each field; the first that is present and filled counts.
FIELD_COLUMNS = {
    "cell_type": ("cell_type", "celltype", "cell_label"),
    "tissue": ("tissue", "tissue_general", "organ", "tissue_type_name"),
    "disease": ("disease", "condition", "diagnosis"),
    "assay": ("assay", "technology", "platform"),
    "sex": ("sex", "gender"),
    "stage": ("development_stage", "stage", "age", "age_group"),
    "donor": ("donor_id", "donor", "individual"),
    "organism": ("organism", "species"),
}

# {type} comes with its article, {where} and {who} bring their own leading space or are empty. The first is the plain
# one that evaluation uses.
DESCRIPTIONS = (
    "This cell is {type}{where}{who}.",
    "A single cell identified as {type}{where}{who}.",
    "{Type}{where}{who}.",
    "Its expression profile is that of {type}{where}{who}.",
    "The transcriptome of {type}{where}{who}.",
)
TYPELESS_DESCRIPTIONS = (
    "This is a cell{where}{who}.",
    "A single cell{where}{who}.",
    "An unlabelled cell{where}{who}.",
)
ANNOTATION_QUESTIONS = (
    "What type of cell is this?",
    "Which cell type does this cell belong to?",
    "Name the type of this cell.",
    "Identify this cell.",
)
DESCRIPTION_QUESTIONS = (
    "Describe this cell.",
    "What can you say about this cell?",
    "Give a description of this cell.",
    "Tell me about this cell.",
)
FIELD_QUESTIONS = {
    "tissue": "Which tissue does this cell come from?",
    "disease": "Is this cell from a healthy donor or from one with a disease?",
    "sex": "What is the sex of the donor of this cell?",
    "stage": "At what stage of development was the donor of this cell?",
    "assay": "With which assay was this cell measured?",
}
CELL_REQUESTS = (
    "Generate {type}{where}{who}.",
    "Write the expression profile of {type}{where}{who}.",
    "Simulate {type}{where}{who}.",
)

# What a language model that reads cells is told first; its context stands behind every cell.
READER = "You are a biologist who reads single cells."
NUM_RAISED_GENES = 6

# For a text tokenizer that brings no chat template of its own.
PLAIN_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- 'assistant: ' -}}{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}{{- '\\n' -}}"
    "{%- else -%}{{- message['role'] + ': ' + message['content'] + '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
)
# Put before a chat template that knows only strings: lists of blocks become strings with `<cell>` in them.
_FLATTEN_CELLS = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set flat.messages = flat.messages + [message] -%}"
    "{%- else -%}{%- set said = namespace(text='') -%}"
    "{%- for block in message['content'] -%}"
    "{%- if block['type'] == 'cell' -%}{%- set said.text = said.text + '<cell>' -%}"
    "{%- elif block['type'] == 'text' -%}{%- set said.text = said.text + block['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': said.text}] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)


def chat_template_with_cells(chat_template: str | None) -> str:
    """A chat template that takes `{"type": "cell"}` blocks, made from one that takes strings, or from nothing."""
    template = chat_template or PLAIN_CHAT_TEMPLATE
    return template if template.startswith(_FLATTEN_CELLS) else _FLATTEN_CELLS + template


def is_missing(value: Any) -> bool:
    """Whether a metadata value says nothing: None, NaN, "unknown" and the like."""
    return value is None or value != value or str(value).strip().lower() in MISSING


def metadata_fields(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields a text can mention, taken from one row of `obs`; missing values are dropped.

    Examples
    --------
    >>> metadata_fields({"cell_type": "B cell", "tissue": "unknown", "sex": "female"})
    {'cell_type': 'B cell', 'sex': 'female'}
    """
    fields = {}
    for field, columns in FIELD_COLUMNS.items():
        values = [row[column] for column in columns if column in row]
        value = next((value for value in values if not is_missing(value)), None)
        if value is not None:
            fields[field] = str(value).strip()
    return fields


def label_text(label: str, definition: str | None = None, paraphrase: int = 0) -> str:
    """What a cell type says about itself, its ontology definition included: the text that cells are compared with.

    `paraphrase` is the wording; 0 is the plain one, used wherever no choice is made.

    Examples
    --------
    >>> label_text("B cell", "A lymphocyte of B lineage.")
    'This cell is a B cell. A lymphocyte of B lineage.'
    """
    return cell_text({"cell_type": label}, definition, paraphrase)


def cell_text(metadata: Mapping[str, Any], definition: str | None = None, paraphrase: int = 0) -> str:
    """A sentence about one cell from its metadata, followed by the definition of its type.

    Examples
    --------
    >>> cell_text({"cell_type": "alveolar macrophage", "tissue": "lung", "disease": "normal", "sex": "male"})
    'This cell is an alveolar macrophage from lung of a healthy male donor.'
    """
    fields = metadata_fields(metadata)
    templates = DESCRIPTIONS if "cell_type" in fields else TYPELESS_DESCRIPTIONS
    text = _fill(templates[paraphrase % len(templates)], fields)
    return text if is_missing(definition) else f"{text} {_sentence(definition)}"


def annotation_question(
    candidates: Sequence[str] | None = None, tissue: str | None = None, paraphrase: int = 0
) -> str:
    """Ask for the type of a cell, optionally among candidates and with the tissue it comes from."""
    question = ANNOTATION_QUESTIONS[paraphrase % len(ANNOTATION_QUESTIONS)]
    if not is_missing(tissue):
        question = f"This cell comes from {tissue}. {question}"
    if candidates:
        question = f"{question} Choose one of: {'; '.join(candidates)}."
    return question


def description_question(paraphrase: int = 0) -> str:
    """Ask for a description of a cell."""
    return DESCRIPTION_QUESTIONS[paraphrase % len(DESCRIPTION_QUESTIONS)]


def cell_request(metadata: Mapping[str, Any], definition: str | None = None, paraphrase: int = 0) -> str:
    """Ask for cells of some description: the text that pseudo-cells are generated from."""
    fields = metadata_fields(metadata)
    text = _fill(CELL_REQUESTS[paraphrase % len(CELL_REQUESTS)], {"cell_type": "cell", **fields})
    return text if is_missing(definition) else f"{text} {_sentence(definition)}"


def generation_text(text: str) -> str:
    """A person's words for the cells to make, as the request that pseudo-cells are generated from.

    Examples
    --------
    >>> generation_text("a naive B cell")
    'Generate a naive B cell.'
    """
    return cell_request({"cell_type": _ARTICLE.sub("", text.strip())})


def asks_for_shares(text: str) -> bool:
    """Whether a text is of several, each with its share, which is more than one request.

    Examples
    --------
    >>> asks_for_shares("60 % B cell, 40 % monocyte"), asks_for_shares("a B cell")
    (True, False)
    """
    return bool(_SHARES.search(text))


def query_text(text: str) -> str:
    """A person's words for the cells to look for, as they are compared with cells."""
    return text.strip()


def questions(
    metadata: Mapping[str, Any], definition: str | None = None, paraphrase: int = 0
) -> list[tuple[str, str]]:
    """Every question that this cell's metadata can answer, with the answer."""
    fields = metadata_fields(metadata)
    pairs = [(description_question(paraphrase), cell_text(metadata, definition))]
    if "cell_type" in fields:
        pairs.append((annotation_question(paraphrase=paraphrase), fields["cell_type"]))
    pairs += [
        (question, _field_answer(field, fields[field]))
        for field, question in FIELD_QUESTIONS.items()
        if field in fields
    ]
    return pairs


def conversation(question: str, answer: str | None = None, cell: Any = None, num_cells: int = 1) -> list[dict]:
    """Messages for `apply_chat_template`: cells, a question about them and, for training, the answer."""
    block = {"type": "cell"} if cell is None else {"type": "cell", "cell": cell}
    blocks = [*[dict(block) for _ in range(num_cells)], {"type": "text", "text": question}]
    messages: list[dict] = [{"role": "user", "content": blocks}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def cell_context(
    species: str | None = None,
    tissue: str | None = None,
    genes: tuple[int, int] | None = None,
    raised: Sequence[str] = (),
) -> str:
    """What is known of a cell beside its tokens: what the language model must never contradict.

    `genes` are how many were detected, of how many that were measured; `raised` are higher than in the study.

    Examples
    --------
    >>> cell_context("human", "blood", (812, 20074), ["CD3D", "IL7R"])
    'Species: human. Tissue: blood. 812 of 20074 genes detected. Raised genes: CD3D, IL7R.'
    """
    known = [
        "" if is_missing(species) else f"Species: {species}.",
        "" if is_missing(tissue) else f"Tissue: {tissue}.",
        "" if genes is None else f"{genes[0]} of {genes[1]} genes detected.",
        f"Raised genes: {', '.join(raised)}." if raised else "",
    ]
    return " ".join(part for part in known if part)


def reading(question: str, contexts: Sequence[str]) -> list[dict]:
    """Messages that open a conversation about cells with their contexts, each after its cell."""
    blocks: list[dict] = []
    for number, context in enumerate(contexts, 1):
        name = f"Cell {number}: " if len(contexts) > 1 else ""
        blocks += [
            *([{"type": "text", "text": name}] if name else []),
            {"type": "cell"},
            {"type": "text", "text": f" {context}\n" if context else "\n"},
        ]
    return [
        {"role": "system", "content": READER},
        {"role": "user", "content": [*blocks, {"type": "text", "text": question}]},
    ]


def _field_answer(field: str, value: str) -> str:
    if field == "disease":
        return "A healthy donor." if _is_healthy(value) else f"A donor with {value}."
    return f"{value[:1].upper()}{value[1:]}."


def _fill(template: str, fields: Mapping[str, str]) -> str:
    kind = with_article(fields.get("cell_type", "cell"))
    where = f" from {fields['tissue']}" if "tissue" in fields else ""
    return template.format(type=kind, Type=kind[:1].upper() + kind[1:], where=where, who=_who(fields))


def _who(fields: Mapping[str, str]) -> str:
    """The donor in words, then how the cell was measured."""
    adjectives = []
    if "disease" in fields and _is_healthy(fields["disease"]):
        adjectives.append("healthy")
    if "sex" in fields:
        adjectives.append(fields["sex"])
    owner = "mouse" if "mus" in fields.get("organism", "").lower().split() else "donor"
    parts = []
    if adjectives or owner == "mouse" or {"disease", "stage"} & set(fields):
        parts.append(f" of {with_article(' '.join([*adjectives, owner]))}")
    if "disease" in fields and not _is_healthy(fields["disease"]):
        parts.append(f" with {fields['disease']}")
    if "stage" in fields:
        parts.append(f" at {fields['stage']}")
    if "assay" in fields:
        parts.append(f", measured with {fields['assay']}")
    return "".join(parts)


def _is_healthy(disease: str) -> bool:
    return disease.lower() in ("normal", "healthy", "control", "healthy control")


def with_article(noun: str) -> str:
    """ "a" or "an" before a noun, by its sound as far as letters tell."""
    first = noun[:1].lower()
    spelled_out = len(noun) > 1 and noun[0] in "FHLMNRSX" and (noun[1].isupper() or noun[1].isdigit())
    vowel = spelled_out or (first in "aeiou" and not noun.lower().startswith(("uni", "eu", "one")))
    return f"{'an' if vowel else 'a'} {noun}"


def _sentence(text: str | None) -> str:
    text = str(text).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
