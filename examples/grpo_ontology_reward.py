"""Train a stage-2 model with GRPO on verifiable rewards: is the named type right, are the named genes expressed?

    python examples/grpo_ontology_reward.py --model MODEL --cells my.h5ad --label cell_type --steps 200

Two rewards, computed without another model: how near the named type is to the true one in the Cell Ontology, and the share
of the genes named in the answer that the cell expresses. TRL's GRPO trainer passes a fixed list of arguments when it scores
completions, so it would silently score them without the cells; the subclass below adds the cells.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import anndata
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

import scmmgpt
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.ontology_scmmgpt import Ontology, plain_name
from scmmgpt.processing.prompting_scmmgpt import conversation, description_question
from scmmgpt.training.towers import LORA_TARGETS

CELL_INPUTS = ("gene_ids", "gene_values", "gene_mask")


class CellGRPOTrainer(GRPOTrainer):
    """GRPO in which both the sampling and the scoring of answers see the cells."""

    def _tokenize_prompts(self, prompts):
        ids, images, inputs = super()._tokenize_prompts(prompts)
        device = self.accelerator.device
        self._cells = {name: torch.as_tensor(np.asarray(inputs[name])).to(device) for name in CELL_INPUTS}
        return ids, images, inputs

    def _generate_and_score_completions(self, inputs):
        # Batch first, so that TRL splits and shuffles the cells with everything else.
        return {**super()._generate_and_score_completions(inputs), **self._cells}

    def _compute_loss(self, model, inputs):
        self._cells = {name: inputs[name] for name in CELL_INPUTS}
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        start, cells = 0, self._cells

        def with_cells(**batch):
            nonlocal start
            rows = slice(start, start + len(batch["input_ids"]))
            start = rows.stop
            return model(**batch, **{name: value[rows] for name, value in cells.items()})

        return super()._get_per_token_logps_and_entropies(with_cells, *args, **kwargs)


def type_reward(completions: Sequence, cell_type: Sequence[str], *, ontology: Ontology, **others) -> list[float]:
    """1 for the right type, less for a relative in the ontology, 0 where no type is named."""
    return [closeness(said(text), true, ontology) for text, true in zip(completions, cell_type, strict=True)]


def closeness(answer: str, true: str, ontology: Ontology) -> float:
    """1 / (1 + steps between the named and the true type through their nearest common ancestor)."""
    words, target = f" {plain_name(answer)} ", ontology.find(true)
    if f" {plain_name(true)} " in words:
        return 1.0
    named = max(
        (term for term in ontology.terms.values() if len(term.label) > 4 and f" {plain_name(term.label)} " in words),
        key=lambda term: len(term.label),
        default=None,
    )
    if named is None or target is None:
        return 0.0
    above = [{term.id, *ontology.ancestors(term.id)} for term in (named, target)]
    return 1.0 / (1 + len(above[0] ^ above[1]))


def gene_reward(
    completions: Sequence, expressed: Sequence[list[str]], *, known: frozenset[str], **others
) -> list[float]:
    """Share of the genes named that the cell expresses; 0 where none is named."""
    rewards = []
    for text, genes in zip(completions, expressed, strict=True):
        named = set(re.findall(r"[A-Z][A-Z0-9-]+", said(text))) & known
        rewards.append(len(named & set(genes)) / len(named) if named else 0.0)
    return rewards


def said(completion) -> str:
    """The words of a completion, conversational or plain."""
    if isinstance(completion, str):
        return completion
    content = completion[0]["content"]
    return content if isinstance(content, str) else "".join(block.get("text") or "" for block in content)


def rows_of(adata: anndata.AnnData, label: str) -> Dataset:
    """One prompt a cell; the cell itself as plain lists, which is what a column of `datasets` can hold."""
    rows = []
    for number in range(adata.n_obs):
        cell = adata[number]
        values = np.asarray(cell.X.todense() if hasattr(cell.X, "todense") else cell.X).ravel()
        genes = np.flatnonzero(values)
        content = {"genes": adata.var_names[genes].tolist(), "values": values[genes].tolist()}
        prompt = conversation(description_question(), cell=content)
        for block in prompt[0]["content"]:  # one shape for all blocks, as Arrow wants it
            block.setdefault("text", None)
            block.setdefault("cell", None)
        rows.append({"prompt": prompt, "cell_type": str(adata.obs[label].iloc[number]), "expressed": content["genes"]})
    return Dataset.from_list(rows)


class PlainCellProcessor(ScMMGPTProcessor):
    """The model's processor for cells that come as the plain lists of `rows_of`."""

    def _multimodal_inputs_from_conversations(self, *args, **kwargs):
        *others, inputs = super()._multimodal_inputs_from_conversations(*args, **kwargs)
        pairs = [(np.array([cell["values"]], dtype=np.float32), cell["genes"]) for cell in inputs.get("cells", [])]
        return *others, {**inputs, "cells": pairs}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a stage-2 model; the embedded one by default")
    parser.add_argument("--cells", help="an h5ad with labelled cells; by default blood cells that come with scanpy")
    parser.add_argument("--label", default="bulk_labels")
    parser.add_argument("--output", default="runs/grpo")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--group", type=int, default=4, help="answers to each prompt")
    given = parser.parse_args(arguments)
    loaded = scmmgpt.load(given.model, generative=True, device="cuda" if torch.cuda.is_available() else "cpu")
    processor = PlainCellProcessor.from_pretrained(loaded.directory)
    processor.tokenizer.padding_side = "left"
    known = frozenset(processor.gene_tokenizer.genes)

    def names_the_type(completions, cell_type, **others):
        return type_reward(completions, cell_type, ontology=loaded.ontology)

    def names_expressed_genes(completions, expressed, **others):
        return gene_reward(completions, expressed, known=known)

    trainer = CellGRPOTrainer(
        model=loaded.model,
        processing_class=processor,
        reward_funcs=[names_the_type, names_expressed_genes],
        train_dataset=rows_of(read_cells(given.cells), given.label),
        peft_config=LoraConfig(r=8, target_modules=LORA_TARGETS["language_model"]),
        args=GRPOConfig(
            output_dir=given.output,
            per_device_train_batch_size=given.group,
            num_generations=given.group,
            max_completion_length=24,
            max_steps=given.steps,
            logging_steps=1,
            learning_rate=1e-5,
            beta=0.04,
            activation_checkpointing=False,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
        ),
    )
    trainer.train()
    trainer.model.save_pretrained(given.output)
    for entry in trainer.state.log_history:
        if "reward" in entry:
            print(f"step {entry['step']}: reward {entry['reward']:.3f}")
    print(f"Adapters in {given.output}")


def read_cells(path: str | None) -> anndata.AnnData:
    """The cells to learn from, a few dozen of them."""
    if path is not None:
        return anndata.read_h5ad(path)
    import scanpy

    return scanpy.datasets.pbmc68k_reduced().raw.to_adata()[:32]


if __name__ == "__main__":
    main()
