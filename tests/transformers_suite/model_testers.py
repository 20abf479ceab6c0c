"""A tiny model of each of our classes and its inputs, as transformers' tests ask for them."""

import copy
from abc import ABC, abstractmethod

import torch
from tiny_models import CELL_DECODER, CELL_ENCODER, LANGUAGE_MODEL, NUM_QUERIES, PROJECTIONS, QFORMER, WIDE

from scmmgpt.modeling_scmmgpt import (
    ScMMGPTCellConfig,
    ScMMGPTCellEncoder,
    ScMMGPTCellEncoderForMaskedValues,
    ScMMGPTConfig,
    ScMMGPTForConditionalGeneration,
    ScMMGPTForPreTraining,
    ScMMGPTModel,
    ScMMGPTQFormer,
    ScMMGPTQFormerConfig,
)

NUM_CELLS, NUM_GENES = 3, 9
NUM_GENE_IDS, NUM_WORDS = 60, 99
PAD, CLS = 0, 1
CELL_TOKEN = 5
SPECIAL_WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT_LENGTH = 7

# Nothing random, so that two calls may be compared.
CALM = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
CELL_FIELDS = {**CELL_ENCODER, **CALM, "vocab_size": NUM_GENE_IDS, "pad_token_id": PAD, "cls_token_id": CLS}
# As wide as the LLM: transformers' tests take the states of texts for the LLM's.
QFORMER_FIELDS = {
    **QFORMER,
    **CALM,
    "hidden_size": LANGUAGE_MODEL["hidden_size"],
    "vocab_size": NUM_WORDS,
    "max_position_embeddings": 128,
}


def cell_inputs(num_cells: int = NUM_CELLS) -> dict[str, torch.Tensor]:
    gene_ids = torch.randint(2, NUM_GENE_IDS, (num_cells, NUM_GENES))
    gene_values = torch.rand(num_cells, NUM_GENES) * 5 + 0.1
    gene_ids[:, 0], gene_values[:, 0] = CLS, 0.0
    return {"gene_ids": gene_ids, "gene_values": gene_values, "gene_mask": torch.ones_like(gene_ids)}


def masked_values() -> torch.Tensor:
    values = torch.full((NUM_CELLS, NUM_GENES), -100.0)
    values[:, 1::2] = 1.5
    return values


def text_inputs(length: int = TEXT_LENGTH) -> dict[str, torch.Tensor]:
    input_ids = torch.randint(CELL_TOKEN + 1, NUM_WORDS, (NUM_CELLS, length))
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class ModelTester(ABC):
    """What transformers' mixins read off a `model_tester`."""

    batch_size = NUM_CELLS
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 4

    def __init__(self, parent):
        self.parent = parent

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.get_inputs()

    @abstractmethod
    def get_config(self):
        """A tiny config of the class."""

    @abstractmethod
    def get_inputs(self) -> dict[str, torch.Tensor]:
        """What a call takes."""

    def get_labels(self) -> dict[str, torch.Tensor]:
        """What a call needs beside the inputs to return a loss."""
        return {}

    def complete(self, inputs: dict) -> dict:
        """The inputs as a call takes them, whatever a test left out."""
        return inputs


class CellEncoderTester(ModelTester):
    config_class = ScMMGPTCellConfig
    model_class = ScMMGPTCellEncoder
    hidden_size = CELL_ENCODER["hidden_size"]
    seq_length = NUM_GENES
    is_training = False

    def get_config(self):
        return ScMMGPTCellConfig(**CELL_FIELDS)

    def get_inputs(self):
        return cell_inputs()


class MaskedValuesTester(CellEncoderTester):
    model_class = ScMMGPTCellEncoderForMaskedValues
    is_training = True

    def get_labels(self):
        return {"value_labels": masked_values()}


class QFormerTester(ModelTester):
    config_class = ScMMGPTQFormerConfig
    model_class = ScMMGPTQFormer
    hidden_size = QFORMER_FIELDS["hidden_size"]
    seq_length = NUM_QUERIES + TEXT_LENGTH
    is_training = False

    def get_config(self):
        return ScMMGPTQFormerConfig(**QFORMER_FIELDS, encoder_hidden_size=CELL_ENCODER["hidden_size"])

    def get_inputs(self):
        cell_mask = torch.ones(NUM_CELLS, NUM_GENES, dtype=torch.long)
        states = torch.randn(NUM_CELLS, NUM_GENES, CELL_ENCODER["hidden_size"])
        return {"cell_states": states, "cell_mask": cell_mask, **text_inputs()}


class JointTester(ModelTester):
    """The towers of all joint classes; the LLM is Llama's architecture."""

    config_class = ScMMGPTConfig
    text_model = "llama"
    hidden_size = LANGUAGE_MODEL["hidden_size"]
    num_hidden_states_types = 3  # of three towers

    def get_config(self):
        return ScMMGPTConfig(
            cell_config=dict(CELL_FIELDS),
            qformer_config=dict(QFORMER_FIELDS),
            cell_decoder_config={**CELL_DECODER, "text_dropout": 0.0},
            text_config={
                "model_type": self.text_model,
                **LANGUAGE_MODEL,
                **SPECIAL_WORDS,
                "vocab_size": NUM_WORDS,
                "max_position_embeddings": 128,
            },
            cell_token_id=CELL_TOKEN,
            value_weight=1.0,
            **PROJECTIONS,
            **WIDE,
        )

    def get_inputs(self):
        return {**cell_inputs(), **text_inputs()}


class ModelOfTowersTester(JointTester):
    model_class = ScMMGPTModel
    seq_length = NUM_QUERIES  # of the states that it returns first
    is_training = False


class PreTrainingTester(JointTester):
    model_class = ScMMGPTForPreTraining
    seq_length = NUM_QUERIES  # of the states that it returns first

    def get_labels(self):
        return {"target_values": masked_values()}


class GenerationTester(JointTester):
    model_class = ScMMGPTForConditionalGeneration
    seq_length = TEXT_LENGTH + NUM_QUERIES

    def get_inputs(self):
        prompts = text_inputs(self.seq_length)
        prompts["input_ids"][:, 1 : 1 + NUM_QUERIES] = CELL_TOKEN
        return {**prompts, **cell_inputs()}

    def complete(self, inputs):
        """Cells for the placeholders of prompts that came alone."""
        if "gene_ids" in inputs or "input_ids" not in inputs:
            return inputs
        num_placeholders = int((inputs["input_ids"] == CELL_TOKEN).sum())
        return {**inputs, **cell_inputs(num_placeholders // NUM_QUERIES)} if num_placeholders else inputs

    def get_labels(self):
        return {"labels": torch.arange(self.seq_length).add(CELL_TOKEN + 1).expand(NUM_CELLS, -1)}


class OurModel:
    """Stands before transformers' mixins in the order of bases."""

    model_tester_class: type[ModelTester]
    # Some tests pass the main input alone: what it needs beside it.
    additional_model_inputs = ("gene_values", "input_ids")

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = self.model_tester_class(self)

    @property
    def all_model_classes(self):
        return (self.model_tester_class.model_class,)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = self.model_tester.complete(copy.deepcopy(inputs_dict))
        return {**inputs, **self.model_tester.get_labels()} if return_labels else inputs
