"""Stage 2 of the embedded model: a small language model learns to speak of cells, and text to become cells.

The towers stay as stage 1 left them. Cells are redrawn at every step, as there; questions and answers come from the
templates of `processing/prompting_scmmgpt.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedModel

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTProcessor
from scmmgpt.processing.gene_vocabulary_scmmgpt import FIRST_GENE_ID
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.processing.prompting_scmmgpt import (
    annotation_answer,
    annotation_question,
    cell_request,
    conversation,
    questions,
)
from scmmgpt.training.decoder_start import begin_with
from scmmgpt.training.towers import parameter_groups

from .cell_simulator import CellSimulator, DrawnCell, SimulatedBatches, pad_cells
from .measured_cells import MeasuredCells
from .profiles import WHOLE_TRANSCRIPTOME
from .recipe import MiniRecipe, Stage2Settings
from .stage1 import StreamTrainer, training_arguments

IGNORE = -100


@dataclass
class Stage2Batch:
    """Composes a batch: cells with a question and its answer, and cells that a request should lead to."""

    simulator: CellSimulator
    ontology: Ontology
    processor: ScMMGPTProcessor
    settings: Stage2Settings
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
        return annotation_question(list(candidates), paraphrase=paraphrase), annotation_answer(label)

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
        length = max(len(prompt) + len(answer) for prompt, answer in sequences)
        ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
        for i, (prompt, answer) in enumerate(sequences):
            end = len(prompt) + len(answer)
            ids[i, :end] = torch.tensor(prompt + answer)
            mask[i, :end] = 1
            labels[i, len(prompt) : end] = torch.tensor(answer)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _requests(self, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Whole cells of one family of studies, which measured the same genes, with the texts that ask for them."""
        family, tokens, cells = self.requested_cells(generator)
        genes = self._some_genes(family, generator)
        counts = np.zeros((len(cells), self.simulator.profiles.share.shape[1]), np.int64)
        for i, cell in enumerate(cells):
            counts[i, cell.genes] = cell.counts
        drawn = {f"request_{name}": value for name, value in pad_cells(cells).items()}
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


class Stage2Trainer(StreamTrainer):
    """Both directions in one step, each with cells of its own."""

    def __init__(self, *arguments, cell_decoder_learning_rate: float, **keywords):
        super().__init__(*arguments, **keywords)
        self.tower_rates = {"cell_decoder": cell_decoder_learning_rate}

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            trained = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            groups = parameter_groups(
                trained,
                self.get_decay_parameter_names(trained),
                self.tower_rates,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
            )
            self.optimizer = kind(groups, **options)
        return super().create_optimizer(model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        asked, wanted = {}, {}
        for name in list(inputs):
            if name.startswith("request_"):
                asked[name.removeprefix("request_")] = inputs.pop(name)
            elif name.startswith(("target_", "cell_prompt_")):
                wanted[name] = inputs.pop(name)
        loss = model(**inputs).loss + model(**asked, **wanted).loss
        return (loss, {}) if return_outputs else loss


def train_stage2(
    towers: PreTrainedModel,
    recipe: MiniRecipe,
    compose: Stage2Batch,
) -> tuple[ScMMGPTForConditionalGeneration, list[dict]]:
    """A language model and a cell decoder around the frozen towers; returns the model and the logged losses."""
    settings, simulator = recipe.stage2, compose.simulator
    torch.manual_seed(recipe.seed)
    model = ScMMGPTForConditionalGeneration(towers.config)
    model.model.load_state_dict(towers.model.state_dict(), strict=False)
    whole = simulator.profiles.measured.sum(1) >= WHOLE_TRANSCRIPTOME
    shares, is_measured = simulator.profiles.share[whole], simulator.profiles.measured[whole]
    begin_with(model.cell_decoder, shares, is_measured, np.arange(shares.shape[1]) + FIRST_GENE_ID)
    trained = ("model.language_model", "model.cell_token_projector", "lm_head", "cell_decoder")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    seed = recipe.seed * 100 + 50
    trainer = Stage2Trainer(
        model=model,
        args=training_arguments(settings.steps, settings.learning_rate, seed),
        train_dataset=SimulatedBatches(simulator, compose, settings.batch_size, seed),
        cell_decoder_learning_rate=settings.cell_decoder_learning_rate,
    )
    trainer.train()
    model.requires_grad_(True)
    return model, [entry for entry in trainer.state.log_history if "loss" in entry]
