"""Joins the two islands where they must meet: Auto classes find a processor by the model's config, and pipelines."""

from transformers import AutoFeatureExtractor, AutoProcessor

from .modeling_scmmgpt import ScMMGPTConfig
from .processing import ScMMGPTGeneTokenizer, ScMMGPTProcessor
from .processing.pipeline_scmmgpt import register_pipelines

AutoProcessor.register(ScMMGPTConfig, ScMMGPTProcessor, exist_ok=True)
AutoFeatureExtractor.register(ScMMGPTConfig, ScMMGPTGeneTokenizer, exist_ok=True)
register_pipelines()
