"""A complete model directory, tiny and untrained, and cells for it: what the front door's tests run on."""

from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor

MARKERS = ["CD3D", "CD3E", "CD4", "CD8A", "MS4A1", "CD79A", "LYZ", "CD14", "NKG7", "GNLY"]
GENES = [*MARKERS, *(f"GENE{number}" for number in range(90))]
NUM_QUERIES = 4


def write_tiny_model(directory: Path, seed: int = 0) -> Path:
    """Save a model with every part, and its processor."""
    torch.manual_seed(seed)
    tokenizer = _text_tokenizer()
    genes = ScMMGPTGeneTokenizer(
        GENES, ensembl_ids=[f"ENSG{number:011d}" for number in range(len(GENES))], max_genes=None
    )
    processor = ScMMGPTProcessor(genes, tokenizer, num_query_tokens=NUM_QUERIES)
    narrow = {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    config = ScMMGPTConfig(
        cell_config={
            **narrow,
            "vocab_size": genes.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "pad_token_id": genes.vocabulary["<pad>"],
            "cls_token_id": genes.vocabulary["<cls>"],
            "mask_token_id": genes.vocabulary["<mask>"],
        },
        qformer_config={
            **narrow,
            "num_query_tokens": NUM_QUERIES,
            "vocab_size": len(tokenizer),
            "hidden_size": 24,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
        },
        cell_decoder_config={
            "num_text_tokens": 3,
            "num_attention_heads": 4,
            "latent_size": 8,
            "flow_hidden_size": 16,
            "num_flow_layers": 2,
            "num_flow_steps": 4,
            "num_memory_tokens": 3,
        },
        text_config={
            "model_type": "llama",
            **narrow,
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        cell_token_id=processor.cell_token_id,
        projection_dim=16,
        projector_hidden_size=24,
        initializer_range=0.2,
    )
    ScMMGPTForConditionalGeneration(config).eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def _text_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<cell>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["This cell is a T cell. This cell is a B cell of a healthy donor."] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<cell>"],
        padding_side="left",
        model_max_length=256,
    )


def tiny_cells(num_cells: int = 60, seed: int = 0) -> AnnData:
    """Counts of two kinds of cells, with clusters and a map."""
    rng = np.random.default_rng(seed)
    rate = np.full((2, len(GENES)), 0.6)
    rate[0, :4], rate[1, 4:8] = 8, 8
    kind = np.arange(num_cells) % 2
    counts = sparse.csr_matrix(rng.poisson(rate[kind]).astype(np.float32))
    adata = AnnData(counts)
    adata.var_names = GENES
    adata.obs_names = [f"cell{number}" for number in range(num_cells)]
    adata.obs["leiden"] = kind.astype(str)
    adata.obsm["X_umap"] = rng.normal(size=(num_cells, 2)) + 4 * kind[:, None]
    return adata
