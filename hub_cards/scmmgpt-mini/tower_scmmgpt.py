# Copyright 2026 The scmmgpt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What every model of ours shares: which attention it runs, and the first values of parameters that are no layer's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention_scmmgpt import register_torch_varlen
from .outputs_scmmgpt import ScMMGPTCellFeatures


class ScMMGPTTower(PreTrainedModel):
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: PreTrainedConfig, *args, **kwargs):
        _register_what_is_named(_chosen_attentions(config))
        super().__init__(config, *args, **kwargs)  # `post_init` is for each class, when it has its layers

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs):
        _register_what_is_named(_named_attentions(attn_implementation))
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        for name, value in getattr(module, "constant_parameters", {}).items():
            init.constant_(getattr(module, name), value)
        for name in getattr(module, "random_parameters", ()):
            init.normal_(getattr(module, name), std=self.config.initializer_range)


class ScMMGPTTowersMixin:
    """The towers' own methods, on the classes that hold the towers as `model`."""

    model: Any

    def get_cell_features(self, *args, **kwargs: Unpack[TransformersKwargs]) -> ScMMGPTCellFeatures:
        """See `ScMMGPTModel.get_cell_features`."""
        return self.model.get_cell_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """See `ScMMGPTModel.get_text_features`."""
        return self.model.get_text_features(*args, **kwargs)

    def get_match_scores(self, *args, **kwargs) -> torch.Tensor:
        """See `ScMMGPTModel.get_match_scores`."""
        return self.model.get_match_scores(*args, **kwargs)


@contextmanager
def own_weights_at_hand(module: nn.Module) -> Iterator[None]:
    """The module's own weights outside of its `forward`, which is all that accelerate brings offloaded ones for."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    yield
    if hook is not None:
        hook.post_forward(module, None)


def with_rows(weight: nn.Parameter, num_rows: int) -> nn.Parameter:
    """As many rows of a weight: new ones begin at the mean of the old."""
    added = weight.data.mean(0, keepdim=True).expand(max(0, num_rows - len(weight)), *weight.shape[1:])
    return nn.Parameter(torch.cat([weight.data[:num_rows], added]), requires_grad=weight.requires_grad)


def _register_what_is_named(attentions: Iterator[str | None]) -> None:
    """transformers checks the name before any attention runs, the LLM's too: this is where it has to be known."""
    if "torch_varlen" in attentions:
        register_torch_varlen()


def _chosen_attentions(config: PreTrainedConfig) -> Iterator[str | None]:
    yield config._attn_implementation
    for name in config.sub_configs:
        yield getattr(config, name)._attn_implementation


def _named_attentions(attn_implementation: str | dict) -> Iterator[str | None]:
    if not isinstance(attn_implementation, dict):
        yield attn_implementation
        return
    for part in attn_implementation.values():
        yield from _named_attentions(part)


__all__ = ["ScMMGPTTower", "ScMMGPTTowersMixin", "own_weights_at_hand", "with_rows"]
