"""The prompts of the verbs, from the templates of the training: `processing/prompting_scmmgpt.py`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from .loading import LoadedModel
    from .processing.labels_scmmgpt import LabelSet

_ARTICLE = re.compile(r"^(an?|the|some)\s+", re.IGNORECASE)


def label_texts(labels: LabelSet, tissue: str | None = None) -> list[str]:
    """The text of each label, which cells are compared with."""
    from .processing.prompting_scmmgpt import cell_text

    where = {"tissue": tissue} if tissue else {}
    pairs = zip(labels.labels, labels.descriptions, strict=True)
    return [cell_text({"cell_type": label, **where}, description) for label, description in pairs]


def query_text(text: str) -> str:
    """A search text, as it is compared with cells."""
    return text.strip()


def generation_text(text: str) -> str:
    """The text that generated cells are asked for with."""
    from .processing.prompting_scmmgpt import cell_request

    return cell_request({"cell_type": _ARTICLE.sub("", text.strip())})


def question_about_type() -> str:
    """The question that a name of a type answers."""
    from .processing.prompting_scmmgpt import annotation_question

    return annotation_question()


def question_about_cells(loaded: LoadedModel, question: str | None = None) -> str:
    """A prompt with one `<cell>`, up to where the answer begins; without a question it asks for a description."""
    from .processing.prompting_scmmgpt import conversation, description_question

    messages = conversation(checked_question(loaded, question or description_question()))
    return loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def checked_question(loaded: LoadedModel, question: str) -> str:
    """The question; refused when it is empty or places cells itself."""
    if not question.strip():
        raise UserError("The question is empty.")
    if loaded.processor.cell_token in question:
        raise UserError(f"The question must not hold {loaded.processor.cell_token!r}: the cells are put before it.")
    return question
