"""Joins the two islands where they must meet: Auto classes find a processor by the model's config."""

from transformers import AutoFeatureExtractor, AutoProcessor

from .modeling_scmmgpt import ScMMGPTConfig
from .processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor

AutoProcessor.register(ScMMGPTConfig, ScMMGPTProcessor, exist_ok=True)
AutoFeatureExtractor.register(ScMMGPTConfig, ScMMGPTGeneTokenizer, exist_ok=True)
