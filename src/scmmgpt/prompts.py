"""Which words the verbs use. All templates are those of training: `processing/prompting_scmmgpt.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loading import LoadedModel


def question_about_type(tissue: str | None = None) -> str:
    """The question that a name of a type answers."""
    from .processing.prompting_scmmgpt import annotation_question

    return annotation_question(tissue=tissue)


def question_about_cells(loaded: LoadedModel, question: str | None = None, num_cells: int = 1) -> str:
    """A prompt with one `<cell>` for each cell, up to where the answer begins."""
    from .processing.prompting_scmmgpt import conversation, description_question

    messages = conversation(question or description_question(), num_cells=num_cells)
    return loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
