"""AnnData and text in, tensors out, and back."""

from .gene_tokenization_scmmgpt import ScMMGPTGeneTokenizer
