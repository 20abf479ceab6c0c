"""What the base LLM answers by itself: general instructions to replay, and what cells of each type do.

    python -m scmmgpt.training.chat.self_distillation --base DIR --output training/chat/own_answers.json

A fine-tuned LLM that trains on its own former answers keeps them. Those about cell types are kept where they share
words with the Cell Ontology's definition.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME, Ontology

TOPICS = (
    *("photosynthesis", "DNA replication", "evolution", "vaccines", "the heart", "mitochondria", "blood clotting"),
    *("a transcription factor", "bacteria", "rainbows", "the Roman Empire", "a for loop", "machine learning"),
    *("the liver", "the pancreas", "the spleen", "the skin", "the small intestine", "lung alveoli", "bone marrow"),
    *("the immune system", "inflammation", "viruses", "antibodies", "hormones", "enzymes", "proteins", "RNA"),
    *("a chromosome", "a mutation", "cell division", "stem cells", "cancer", "nerve impulses", "muscle contraction"),
    *("digestion", "the cell membrane", "the nucleus", "haemoglobin", "insulin", "an allergy", "wound healing"),
    *("the lymph nodes", "platelets", "phagocytosis", "gene expression", "sequencing", "a microscope", "statistics"),
    *(
        "gravity",
        "the moon",
        "volcanoes",
        "the water cycle",
        "electricity",
        "the alphabet",
        "bees",
        "a sorting algorithm",
    ),
)
REQUESTS = (
    "Explain {} in two sentences.",
    "What should a beginner know about {}?",
    "What comes to your mind first about {}? Answer in a few words.",
)
OTHER_REQUESTS = (
    "Hello, who are you?",
    "Thank you for your help.",
    "Write a short poem about the sea.",
    "Translate 'good morning' into French.",
    "What is 12 plus 30?",
    "List three uses of a paper clip.",
    "Summarise in one sentence: The cat sat on the mat because it was warm.",
    "What is the capital of Italy?",
    "Write a polite e-mail that declines an invitation.",
    "Give me a synonym for 'happy'.",
    "How do I boil an egg?",
    "Name three colours.",
)
FUNCTION_REQUEST = "In one or two sentences: what does a {} do in the body?"
MAX_NEW_TOKENS = 56
BATCH_SIZE = 24
NUM_TYPES = 120
_WORDS = re.compile(r"[a-z]{5,}")
_SAY_NOTHING = frozenset(
    [
        "cells",
        "which",
        "crucial",
        "human",
        "found",
        "within",
        "their",
        "other",
        "tissue",
        "tissues",
        "function",
        "functions",
        "specialized",
        "immune",
        "system",
    ]
)


@torch.inference_mode()
def answers_of(model, tokenizer, questions: Sequence[str]) -> list[str]:
    """Greedy answers, cut after the last whole sentence; "" where there is none."""
    answers: list[str] = []
    tokenizer.padding_side = "left"
    for start in range(0, len(questions), BATCH_SIZE):
        chats = [[{"role": "user", "content": question}] for question in questions[start : start + BATCH_SIZE]]
        prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, repetition_penalty=1.05)
        said = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [whole_sentences(text) for text in said]
        print(f"{len(answers)} of {len(questions)}", flush=True)
    return answers


def whole_sentences(text: str) -> str:
    """The text up to its last full stop, on one line."""
    text = " ".join(text.split())
    return text[: max(text.rfind(mark) for mark in ".!?") + 1]


def agrees(label: str, answer: str, definition: str, least: int = 2) -> bool:
    """Whether an answer names a type, and shares so many of the longer words of its definition that tell it from others.

    Examples
    --------
    >>> agrees("hepatocyte", "A hepatocyte is a cell that plays a crucial role in the body.", "A cell of the body.")
    False
    """
    said, defined = (set(_WORDS.findall(text.lower())) for text in (answer, definition))
    telling = (said & defined) - _SAY_NOTHING - set(_WORDS.findall(label.lower()))
    return label.lower() in answer.lower() and len(telling) >= least


def types_of_embedded_model(ontology: Ontology) -> list[str]:
    """The types that it was trained on, the best known first: short names with many synonyms."""
    summary = json.loads((EMBEDDED_MODEL / "config.json").read_text(encoding="utf-8"))["training_summary"]

    def how_known(label: str) -> tuple[int, int]:
        term = ontology.find(label)
        return len(label.split()), -len(term.synonyms if term else ())

    return sorted((ontology.terms[term].label for term in summary["cell_types"]), key=how_known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="the base LLM's directory")
    parser.add_argument("--output", required=True, type=Path)
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.base)
    ontology = Ontology.read(EMBEDDED_MODEL / FILE_NAME)
    general = [request.format(topic) for topic in TOPICS for request in REQUESTS] + list(OTHER_REQUESTS)
    said = dict(zip(general, answers_of(model, tokenizer, general), strict=True))
    types = types_of_embedded_model(ontology)[:NUM_TYPES]
    functions = answers_of(model, tokenizer, [FUNCTION_REQUEST.format(label) for label in types])
    kept = {}
    for label, answer in zip(types, functions, strict=True):
        term = ontology.find(label)
        if answer and term is not None and agrees(label, answer, term.definition or ""):
            kept[label] = answer
    found = {"general": {question: answer for question, answer in said.items() if answer}, "functions": kept}
    given.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
