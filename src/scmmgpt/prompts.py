"""The prompts of the verbs, from the templates of the training: `processing/prompting_scmmgpt.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from .loading import LoadedModel


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
