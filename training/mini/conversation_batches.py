"""Stage 2 of the embedded model: a small language model learns to speak of cells, and text to become cells.

The towers stay as stage 1 left them. Cells are redrawn at every step, as there; questions and answers come from the
templates of `processing/prompting_scmmgpt.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import IterableDataset
from transformers import BatchEncoding

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.gene_vocabulary_scmmgpt import FIRST_GENE_ID
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.processing.prompting_scmmgpt import (
    annotation_question,
    cell_request,
    conversation,
    questions,
)
from scmmgpt.training import stage2
from scmmgpt.training.assembly import assemble_config, assemble_generative_model, load_towers
from scmmgpt.training.conversations import padded_prompts
from scmmgpt.training.decoder_start import begin_with
from scmmgpt.training.settings import ModelSettings
from scmmgpt.training.stage2 import Stage2Trainer
from scmmgpt.training.trainer import Rows

from .cell_simulator import CellSimulator, DrawnCell, SimulatedBatches, as_it_is, pad_cells
from .measured_cells import MeasuredCells
from .profiles import WHOLE_TRANSCRIPTOME
from .recipe import MiniRecipe, Stage2Part

PREFIX = "request_"


@dataclass
class ConversationBatches:
    """Composes batches: cells with a question and its answer, and cells that a request should lead to."""

    simulator: CellSimulator
    ontology: Ontology
    processor: ScMMGPTProcessor
    settings: Stage2Part
    tissue_names: dict[str, str]
    measured: dict[str, MeasuredCells]
    target_genes: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self):
        table, tokenizer = self.simulator.profiles.table, self.processor.tokenizer
        self.facts = [profile_facts(row, self.tissue_names) for row in table.to_dict("records")]
        self.definitions = [self.ontology.terms[term].definition for term in table.term_id]
        self.labels = sorted(set(table.label))
        self.end = tokenizer.eos_token
        self.target_genes = self._genes_by_family()

    def __call__(self, rows: np.ndarray, cells: list[DrawnCell], generator: np.random.Generator) -> dict:
        pairs = [self._question(row, generator) for row in rows]
        return {**pad_cells(cells), **self._spell(pairs), **self._requests(generator)}

    def _question(self, row: int, generator: np.random.Generator) -> tuple[str, str]:
        facts, definition = self.facts[row], self.definitions[row]
        paraphrase = int(generator.integers(4)) if generator.random() < 0.5 else 0
        if generator.random() < self.settings.choice_rate:
            return self._choice(facts["cell_type"], paraphrase, generator)
        pairs = questions(facts, definition, paraphrase)
        weights = np.array([3.0, 3.0] + [1.0] * (len(pairs) - 2))
        return pairs[generator.choice(len(pairs), p=weights / weights.sum())]

    def _choice(self, label: str, paraphrase: int, generator: np.random.Generator) -> tuple[str, str]:
        others = generator.choice(self.labels, generator.integers(2, 7), replace=False)
        candidates = generator.permutation(list(dict.fromkeys([label, *others])))
        return annotation_question(list(candidates), paraphrase=paraphrase), label

    def _spell(self, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
        """Prompt and answer as tokens, with labels on the answer alone."""
        tokenizer, sequences = self.processor.tokenizer, []
        for question, answer in pairs:
            prompt = self.processor.apply_chat_template(
                conversation(question), add_generation_prompt=True, tokenize=False
            )
            prompt_ids = tokenizer(self.processor.expand_cell_tokens(prompt))["input_ids"]
            answer_ids = tokenizer(answer + self.end, add_special_tokens=False)["input_ids"]
            sequences.append((prompt_ids, answer_ids[: self.settings.max_answer_tokens]))
        return padded_prompts(sequences, tokenizer.pad_token_id)

    def _requests(self, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Whole cells of one family of studies, which measured the same genes, with the texts that ask for them."""
        family, tokens, cells = self.requested_cells(generator)
        genes = self._some_genes(family, generator)
        counts = np.zeros((len(cells), self.simulator.profiles.share.shape[1]), np.int64)
        for i, cell in enumerate(cells):
            counts[i, cell.genes] = cell.counts
        drawn = {f"{PREFIX}{name}": value for name, value in pad_cells(cells).items()}
        return {
            **drawn,
            "cell_prompt_ids": tokens["input_ids"],
            "cell_prompt_mask": tokens["attention_mask"],
            "target_gene_ids": torch.from_numpy(genes + FIRST_GENE_ID),
            "target_counts": torch.from_numpy(counts[:, genes]),
            "target_library_size": torch.from_numpy(counts.sum(1)),
        }

    def requested_cells(self, generator: np.random.Generator) -> tuple[str, BatchEncoding, list[DrawnCell]]:
        """A family of studies, texts that ask for cells of it as tokens, and these cells."""
        is_measured = generator.random() < self.settings.measured_rate and bool(self.measured)
        family, rows, cells = self._measured(generator) if is_measured else self._redrawn(generator)
        texts = []
        for row in rows:
            definition = self.definitions[row] if generator.random() < 0.3 else None
            facts = self.facts[row] if generator.random() < 0.7 else {"cell_type": self.facts[row]["cell_type"]}
            texts.append(
                cell_request(facts, definition, int(generator.integers(3)) if generator.random() < 0.5 else 0)
            )
        self.processor.tokenizer.padding_side = "right"
        tokens = self.processor.tokenizer(
            texts, padding=True, truncation=True, max_length=self.settings.max_request_tokens, return_tensors="pt"
        )
        return family, tokens, cells

    def _redrawn(self, generator: np.random.Generator) -> tuple[str, np.ndarray, list[DrawnCell]]:
        table, families = self.simulator.profiles.table, list(self.target_genes)
        weights = np.array([(table.family == family).sum() for family in families])
        family = families[generator.choice(len(families), p=weights / weights.sum())]
        rows = generator.choice(np.flatnonzero(table.family == family), self.settings.num_requests)
        return family, rows, [self.simulator.draw_cell(row, generator, whole=True) for row in rows]

    def _measured(self, generator: np.random.Generator) -> tuple[str, np.ndarray, list[DrawnCell]]:
        """Every type as often as any other, whatever its number of cells."""
        families = list(self.measured)
        weights = np.sqrt([len(cells.profiles) for cells in self.measured.values()])
        family = families[generator.choice(len(families), p=weights / weights.sum())]
        cells = self.measured[family]
        _, kind, number = np.unique(cells.profiles, return_inverse=True, return_counts=True)
        drawn = generator.choice(len(kind), self.settings.num_requests, p=1 / number[kind] / len(number))
        rows, picked = cells.profiles[drawn], cells.counts[drawn]
        return (
            family,
            rows,
            [
                self.simulator.as_drawn(
                    cell.indices, cell.data.astype(np.int64), self.simulator.profiles.measured[row]
                )
                for row, cell in zip(rows, picked, strict=True)
            ],
        )

    def _genes_by_family(self) -> dict[str, np.ndarray]:
        """Genes of each family of whole transcriptomes, those that fill its cells first."""
        profiles, genes = self.simulator.profiles, {}
        for family in profiles.table.family.unique():
            rows = (profiles.table.family == family).to_numpy()
            measured = profiles.measured[rows].all(0)
            if measured.sum() >= WHOLE_TRANSCRIPTOME:
                genes[family] = np.argsort(-profiles.share[rows].max(0) * measured, kind="stable")[: measured.sum()]
        return genes

    def _some_genes(self, family: str, generator: np.random.Generator) -> np.ndarray:
        """The genes that hold most counts, and some of the rest."""
        genes, leading = self.target_genes[family], self.settings.num_leading_genes
        rest = generator.choice(
            genes[leading:], min(self.settings.num_other_genes, len(genes) - leading), replace=False
        )
        return np.concatenate([genes[:leading], rest])


def profile_facts(row: dict, tissue_names: dict[str, str]) -> dict[str, str]:
    """What a text may say about a profile; tissue names that say nothing are dropped."""
    facts = {"cell_type": row["label"], "tissue": tissue_names.get(row["tissue"], row["tissue"])}
    if row["organism"] == "Mus musculus":
        facts["organism"] = row["organism"]
    if "COVID" in row["stage"]:
        facts["disease"] = "COVID-19"
    return facts


class TwoWayTrainer(Stage2Trainer):
    """Stage 2's trainer for batches in which each direction has cells of its own."""

    def losses_of(self, model, inputs):
        asked = {name.removeprefix(PREFIX): value for name, value in inputs.items() if name.startswith(PREFIX)}
        wanted = {name: value for name, value in inputs.items() if name.startswith(("target_", "cell_prompt_"))}
        said = {name: value for name, value in inputs.items() if name not in wanted and not name.startswith(PREFIX)}
        language, cells = model(**said), model(**asked, **wanted)
        parts = {
            "language_loss": language.language_loss,
            "cell_generation_loss": cells.cell_generation_loss,
        }
        return language.loss + cells.loss, parts


def train_stage2(
    recipe: MiniRecipe, compose: ConversationBatches, start: Path, output: Path
) -> tuple[ScMMGPTForConditionalGeneration, list[dict]]:
    """A language model and a cell decoder around the frozen towers in `start`; the model, and the logged losses."""
    simulator, processor = compose.simulator, compose.processor
    run = recipe.stage2_run(recipe.stage2, output, seed=50)
    torch.manual_seed(recipe.seed)
    # The configuration is the recipe's, not what an earlier recipe said: `start` gives its towers alone.
    model = assemble_generative_model(run, assemble_config(run, processor), processor)
    load_towers(model.model, ModelSettings(start_from=str(start)))
    whole = simulator.profiles.measured.sum(1) >= WHOLE_TRANSCRIPTOME
    shares, is_measured = simulator.profiles.share[whole], simulator.profiles.measured[whole]
    begin_with(model.cell_decoder, shares, is_measured, np.arange(shares.shape[1]) + FIRST_GENE_ID)
    stream = SimulatedBatches(simulator, compose, recipe.stage2.batch_size, run.training["seed"])
    rows = Rows(IterableDataset.from_generator(stream.__iter__), None, as_it_is)
    trainer = stage2.train(run, model, processor, rows, fresh=True, make_trainer=TwoWayTrainer)
    return model, [entry for entry in trainer.state.log_history if "loss" in entry]
