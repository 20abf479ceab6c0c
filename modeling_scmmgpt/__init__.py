"""Tensors in, tensors out: the models, their configs, and their places in the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
)

from .configuration_scmmgpt import (
    ScMMGPTCellConfig,
    ScMMGPTCellDecoderConfig,
    ScMMGPTConfig,
    ScMMGPTQFormerConfig,
)
from .modeling_cell_encoder import ScMMGPTCellEncoder, ScMMGPTCellEncoderForMaskedValues
from .modeling_qformer import ScMMGPTQFormer
from .modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining, ScMMGPTModel

for _config in (ScMMGPTConfig, ScMMGPTCellConfig, ScMMGPTQFormerConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
AutoModel.register(ScMMGPTConfig, ScMMGPTModel, exist_ok=True)
AutoModel.register(ScMMGPTCellConfig, ScMMGPTCellEncoder, exist_ok=True)
AutoModel.register(ScMMGPTQFormerConfig, ScMMGPTQFormer, exist_ok=True)
AutoModelForPreTraining.register(ScMMGPTConfig, ScMMGPTForPreTraining, exist_ok=True)
AutoModelForPreTraining.register(ScMMGPTCellConfig, ScMMGPTCellEncoderForMaskedValues, exist_ok=True)
AutoModelForMultimodalLM.register(ScMMGPTConfig, ScMMGPTForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(ScMMGPTConfig, ScMMGPTForConditionalGeneration, exist_ok=True)

# Every save, each Trainer checkpoint too, carries the code: whatever is written can be loaded as a Hub repository.
ScMMGPTConfig.register_for_auto_class()
ScMMGPTModel.register_for_auto_class("AutoModel")
ScMMGPTForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ScMMGPTForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")

__all__ = [
    "ScMMGPTCellConfig",
    "ScMMGPTCellDecoderConfig",
    "ScMMGPTCellEncoder",
    "ScMMGPTCellEncoderForMaskedValues",
    "ScMMGPTConfig",
    "ScMMGPTForConditionalGeneration",
    "ScMMGPTForPreTraining",
    "ScMMGPTModel",
    "ScMMGPTQFormer",
    "ScMMGPTQFormerConfig",
]
