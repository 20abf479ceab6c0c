"""Tiny models with every part, complete on disk, and cells for them: made in a second, on a CPU."""

from pathlib import Path

import numpy as np
from anndata import AnnData
from scipy import sparse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import manual_seed
from transformers import PreTrainedTokenizerFast

from scmmgpt.modeling_scmmgpt import ScMMGPTConfig, ScMMGPTForConditionalGeneration
from scmmgpt.processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor

MARKERS = ["CD3D", "CD3E", "CD4", "CD8A", "MS4A1", "CD79A", "LYZ", "CD14", "NKG7", "GNLY"]
GENES = [*MARKERS, *(f"GENE{number}" for number in range(90))]
NUM_QUERIES = 4

# What each part of a tiny model is but for its vocabulary. The weights are wide, so that a leak of a single token
# shows: at the usual 0.02 everything looks alike.
WIDE = {"initializer_range": 0.2}
LAYERS = {**WIDE, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CELL_ENCODER = {**LAYERS, "hidden_size": 32}
QFORMER = {**LAYERS, "hidden_size": 24, "num_query_tokens": NUM_QUERIES}
LANGUAGE_MODEL = {**LAYERS, "hidden_size": 32, "num_key_value_heads": 2, "head_dim": 8}
CELL_DECODER = {
    **WIDE,
    "num_text_tokens": 3,
    "num_attention_heads": 4,
    "latent_size": 8,
    "flow_hidden_size": 16,
    "num_flow_layers": 2,
    "num_flow_steps": 4,
    "num_memory_tokens": 3,
}
PROJECTIONS = {"projection_dim": 16, "projector_hidden_size": 24}


def make_processor() -> ScMMGPTProcessor:
    generator = np.random.default_rng(0)
    genes = ScMMGPTGeneTokenizer(
        GENES,
        ensembl_ids=[f"ENSG{number:011d}" for number in range(len(GENES))],
        medians=generator.uniform(1, 5, len(GENES)),
        max_genes=None,
    )
    return ScMMGPTProcessor(genes, make_text_tokenizer(), num_query_tokens=NUM_QUERIES)


def make_text_tokenizer() -> PreTrainedTokenizerFast:
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
        model_max_length=512,
    )


def make_model(processor: ScMMGPTProcessor, seed: int = 0) -> ScMMGPTForConditionalGeneration:
    manual_seed(seed)
    genes, text = processor.gene_tokenizer, processor.tokenizer
    config = ScMMGPTConfig(
        cell_config={
            **CELL_ENCODER,
            "vocab_size": genes.vocab_size,
            **{f"{name}_token_id": genes.vocabulary[f"<{name}>"] for name in ("pad", "cls", "mask")},
        },
        qformer_config={**QFORMER, "vocab_size": len(text), "max_position_embeddings": 512},
        cell_decoder_config=CELL_DECODER,
        text_config={
            "model_type": "llama",
            **LANGUAGE_MODEL,
            "vocab_size": len(text),
            "max_position_embeddings": 512,
            **{name: getattr(text, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
        },
        cell_token_id=processor.cell_token_id,
        **PROJECTIONS,
        **WIDE,
    )
    return ScMMGPTForConditionalGeneration(config).eval()


def write_tiny_model(directory: Path, seed: int = 0, is_trained: bool = True) -> Path:
    """A model directory. It says that it is trained, or each verb would warn that its results mean nothing."""
    processor = make_processor()
    model = make_model(processor, seed)
    if is_trained:
        model.config.training_summary = {"note": "random weights, for tests"}
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def make_repository(directory: Path, seed: int = 0, **options) -> Path:
    """A repository as it is published, of an untrained model."""
    from scmmgpt.hub_cards.export import export

    processor = make_processor()
    return export(make_model(processor, seed), processor, directory, **options)


def tiny_cells(num_cells: int = 60, seed: int = 0) -> AnnData:
    """Counts of two kinds of cells, as uneven as real ones, with clusters and a map."""
    generator = np.random.default_rng(seed)
    rate = np.full((2, len(GENES)), 0.6)
    rate[0, :4], rate[1, 4:8] = 8, 8
    kind = np.arange(num_cells) % 2
    counts = generator.poisson(rate[kind] * generator.gamma(2, 0.5, (num_cells, len(GENES))))
    adata = AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = GENES
    adata.obs_names = [f"cell{number}" for number in range(num_cells)]
    adata.obs["leiden"] = kind.astype(str)
    adata.obsm["X_umap"] = generator.normal(size=(num_cells, 2)) + 4 * kind[:, None]
    return adata


def as_dicts(cells: AnnData) -> list[dict[str, float]]:
    """Cells as a request in JSON gives them."""
    return [{GENES[column]: float(row[0, column]) for column in row.indices} for row in cells.X]


def as_csr(cells: AnnData) -> dict:
    """The same in the other form of JSON that a request may have."""
    parts = {"indptr": cells.X.indptr, "indices": cells.X.indices, "data": cells.X.data}
    return {"genes": list(cells.var_names), **{name: part.tolist() for name, part in parts.items()}}
