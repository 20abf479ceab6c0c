"""AnnData and text in, tensors out, and back."""

from .gene_tokenization_scmmgpt import ScMMGPTGeneTokenizer
from .processing_scmmgpt import ScMMGPTProcessor

# Every save carries the code: whatever is written can be loaded as a Hub repository.
ScMMGPTGeneTokenizer.register_for_auto_class("AutoFeatureExtractor")
ScMMGPTProcessor.register_for_auto_class("AutoProcessor")
