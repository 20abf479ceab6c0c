"""A complete but tiny and untrained model repository, and cells for it: made in a second, on a CPU."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scmmgpt.hub_cards.export import export
from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor

MARKERS = ["CD3D", "CD8A", "CD79A", "MS4A1", "LYZ", "S100A9", "CD14", "NKG7", "GNLY", "CD74", "PPBP", "FCER1A"]
GENES = MARKERS + [f"RPL{number}" for number in range(3, 40)] + [f"RPS{number}" for number in range(2, 25)]


def make_cells(num_cells: int = 6, seed: int = 0) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(0.4, 4.0, size=(num_cells, len(GENES)))).astype(np.float32))
    obs = pd.DataFrame(index=[f"cell_{number}" for number in range(num_cells)])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))


def as_dicts(cells: anndata.AnnData) -> list[dict[str, float]]:
    return [{GENES[column]: float(row[0, column]) for column in row.indices} for row in cells.X]


def make_processor() -> ScMMGPTProcessor:
    rng = np.random.default_rng(0)
    genes = ScMMGPTGeneTokenizer(
        GENES, medians=rng.uniform(1, 5, len(GENES)), masses=np.full(len(GENES), 1 / len(GENES))
    )
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = {letter: number + 3 for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer.model = models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2, **letters}, [])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    return ScMMGPTProcessor(genes, fast, num_query_tokens=4)


def make_model(processor: ScMMGPTProcessor, seed: int = 0) -> ScMMGPTForConditionalGeneration:
    torch.manual_seed(seed)
    vocabulary, num_words = processor.feature_extractor.vocabulary, len(processor.tokenizer)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "initializer_range": 0.3}
    config = ScMMGPTConfig(
        cell_config={
            **heads,
            "hidden_size": 16,
            "vocab_size": len(vocabulary),
            "pad_token_id": vocabulary["<pad>"],
            "cls_token_id": vocabulary["<cls>"],
            "mask_token_id": vocabulary["<mask>"],
        },
        qformer_config={
            **heads,
            "hidden_size": 16,
            "vocab_size": num_words,
            "num_query_tokens": processor.num_query_tokens,
            "max_position_embeddings": 512,
        },
        cell_decoder_config={
            "num_text_tokens": 2,
            "num_attention_heads": 4,
            "latent_size": 4,
            "flow_hidden_size": 8,
            "num_flow_layers": 1,
            "num_flow_steps": 2,
            "num_memory_tokens": 2,
        },
        text_config={
            "model_type": "llama",
            **heads,
            "hidden_size": 16,
            "num_key_value_heads": 2,
            "vocab_size": num_words,
            "max_position_embeddings": 1024,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        cell_token_id=processor.cell_token_id,
        projection_dim=16,
        projector_hidden_size=16,
    )
    return ScMMGPTForConditionalGeneration(config).eval()


def make_repository(directory: Path, seed: int = 0, **options) -> Path:
    processor = make_processor()
    return export(make_model(processor, seed), processor, directory, **options)
