"""Write the base LLM of scmmgpt-chat as a plain folder, as `training/recipes/chat.yaml` names it.

    python -m scmmgpt.training.chat.base runs/chat_base

From where it is found: `SCMMGPT_BASE_LLM`, the Hub's cache, the Hub, the package of the registry.
"""

from __future__ import annotations

from pathlib import Path

import typer

from scmmgpt.chat_model import CHAT_MODEL, ChatRepository


def main(output: Path) -> None:
    """Write model and tokenizer."""
    base = ChatRepository(CHAT_MODEL).base
    place = base.find()
    llm, tokenizer = base.load(place)
    llm.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(f"{place} is in {output}")


if __name__ == "__main__":
    typer.run(main)
