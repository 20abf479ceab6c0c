"""What a server of LLMs is handed gives the same answers as the whole model."""

import pytest
import torch
import transformers

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.processing.prompting_scmmgpt import annotation_question
from scmmgpt.text_generation import decode, generate_ids, tokenize_prompt
from scmmgpt.text_server import prompt_vectors, save_language_model


@pytest.fixture(scope="module")
def loaded():
    return scmmgpt.load(generative=True)


@pytest.fixture(scope="module")
def cells():
    scanpy = pytest.importorskip("scanpy", reason="the cells come with scanpy: pip install 'scmmgpt[eval]'")
    return scanpy.datasets.pbmc68k_reduced()[:6].copy()


def test_the_llm_alone_answers_as_the_whole_model_does(loaded, cells, tmp_path):
    question = annotation_question()
    llm = transformers.AutoModelForCausalLM.from_pretrained(save_language_model(loaded, tmp_path / "llm")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llm")

    vectors = prompt_vectors(loaded, cells, question)
    with torch.inference_mode():
        alone = llm.generate(inputs_embeds=vectors, max_new_tokens=16, do_sample=False)
        inputs = loaded.processor(cells=cells, return_tensors="pt")
        prompt = tokenize_prompt(loaded, loaded.processor.cell_prompt(question)).expand(len(cells), -1)
        whole = generate_ids(loaded, prompt, loaded.model.model.get_cell_tokens(**inputs), 16)

    answers = [text.strip() for text in tokenizer.batch_decode(alone, skip_special_tokens=True)]
    assert answers == decode(loaded, whole)
    assert len(set(answers)) > 1


def test_a_model_without_its_llm_is_refused(cells, tmp_path):
    with pytest.raises(UserError, match="generative=True"):
        save_language_model(scmmgpt.load(), tmp_path / "llm")
