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
"""Every architecture number, typed, with its rule: one nested config per tower."""

import difflib
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

# Modules outside of the language model, by a pattern as quantisers take them.
ALL_BUT_THE_LLM = r"(?!(model\.)?language_model\.).*"

# What BERT and BLIP-2 call these fields, and tools that switch dropout off.
BERT_NAMES = {"hidden_dropout_prob": "hidden_dropout", "attention_probs_dropout_prob": "attention_dropout"}


class SpellingConfig(PreTrainedConfig):
    """transformers keeps unknown fields in silence, so that a typo becomes a default: name the field that was meant."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = [field.name for field in fields(self)]
        is_known = name in known or name in self.attribute_map or hasattr(type(self), name)
        nearest = [] if is_known or name.startswith("_") else difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if nearest:
            raise ValueError(f"`{name}` is not a field of {type(self).__name__}. Did you mean `{nearest[0]}`?")
        super().__setattr__(name, value)


def check_heads(config: Any) -> None:
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"`hidden_size` must be a multiple of `num_attention_heads`, got {config.hidden_size} and "
            f"{config.num_attention_heads}."
        )


@strict
class ScMMGPTCellConfig(SpellingConfig):
    """The cell encoder. The defaults are scGPT's whole-human model."""

    model_type = "scmmgpt_cell"
    attribute_map = BERT_NAMES
    base_config_key = "cell_config"

    vocab_size: int = 60_697
    hidden_size: int = 512
    # Width of the gene table; None = hidden_size. A small model affords a wide table over narrow layers.
    if TYPE_CHECKING:  # a finished config holds a number
        embedding_size: int = 512
    else:
        embedding_size: int | None = None
    intermediate_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "relu"
    hidden_dropout: float | int = 0.2
    attention_dropout: float | int = 0.0
    layer_norm_eps: float | int = 1e-5
    value_encoding: Literal["continuous", "bins", "none"] = "continuous"
    num_bins: int = 51
    max_value: float | int = 512
    # What stands in the place of a value that the model has to predict.
    mask_value: float | int = -1
    # The value that `<cls>` is read with; None = the processor's. scGPT's weights expect -2.
    cls_value: float | int | None = None
    # Tokens that summarise *all* genes of the cell, so that none is cut; 0 = none, as in scGPT.
    num_pooled_tokens: int = 0
    pooled_intermediate_size: int = 512
    # The pooled tokens pass by the layers unchanged, start the queries, and go straight into the cell's embedding.
    pooled_shortcut: bool = False
    # Only the first genes take part in attention; None = all that the processor gives.
    num_attended_genes: int | None = None
    pad_token_id: int | None = 60_694
    cls_token_id: int | None = 60_695
    mask_token_id: int | None = None
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size

    def validate_sizes(self):
        check_heads(self)
        if self.pooled_shortcut and not self.num_pooled_tokens:
            raise ValueError("`pooled_shortcut` needs pooled tokens: set `num_pooled_tokens` to at least 1.")
        if self.num_attended_genes is not None and self.num_attended_genes < 1:
            raise ValueError(f"`num_attended_genes` must be at least 1 or None, got {self.num_attended_genes}.")


@strict
class ScMMGPTQFormerConfig(SpellingConfig):
    """The Q-Former: a BERT whose query branch looks at the cell every `cross_attention_frequency` layers."""

    model_type = "scmmgpt_qformer"
    attribute_map = BERT_NAMES
    base_config_key = "qformer_config"

    num_query_tokens: int = 32
    vocab_size: int = 30_522
    hidden_size: int = 768
    encoder_hidden_size: int = 512
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    cross_attention_frequency: int = 2
    # Cell states behind `<cls>` that the queries start from, beside what they learn. Set by the cell encoder's config.
    num_summary_tokens: int = 0
    max_position_embeddings: int = 512
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float | int = 1e-12
    pad_token_id: int | None = 0
    # The first token of a caption, in the place of [CLS]: BLIP-2's [DEC]. None = the text's own first token.
    caption_start_token_id: int | None = None
    initializer_range: float | int = 0.02

    def validate_sizes(self):
        if self.num_query_tokens < 1:
            raise ValueError(f"`num_query_tokens` must be at least 1, got {self.num_query_tokens}.")
        check_heads(self)


@strict
class ScMMGPTCellDecoderConfig(SpellingConfig):
    """The cell decoder: a cross-attention projector, then a flow over latents or states with factors; counts per gene."""

    model_type = "scmmgpt_cell_decoder"
    base_config_key = "cell_decoder_config"

    kind: Literal["flow", "factors"] = "flow"

    # Text features that the projector reads off the LLM's hidden states.
    num_text_tokens: int = 8
    num_attention_heads: int = 8
    latent_size: int = 64
    flow_hidden_size: int = 512
    num_flow_layers: int = 4
    num_flow_steps: int = 32
    # Tokens that the latent becomes: beside the text features, what every gene reads its counts off.
    num_memory_tokens: int = 8
    # Numbers that each gene has for itself, beside what it reads off by its vector: 0 for none. Training begins from the
    # leading components of the corpus, in which most of what sets cell types apart is said already.
    num_gene_loadings: int = 0
    # Share of texts hidden in training, so that the empty text means the mixture of all cells (guidance needs both).
    text_dropout: float | int = 0.1
    guidance_scale: float | int = 1.0
    # Of the kind "factors": numbers that a text sets; by which cells differ, and how many of them in cells of one kind;
    # kinds that were counted; how many values each fact of a text may have (type, organism, tissue, stage, disease),
    # populations whose facts and means are known, and genes of each whose level is its own.
    num_states: int = 64
    num_factors: int = 16
    factor_rank: int = 16
    num_kinds: int = 1
    state_hidden_size: int = 512
    if TYPE_CHECKING:  # a finished config holds numbers
        fact_sizes: list[int]
    else:
        fact_sizes: list[int] | None = None
    num_populations: int = 1
    num_own_genes: int = 1
    # Whose effects on genes it knows; the first is meant where none is named.
    if TYPE_CHECKING:  # a finished config holds names
        platforms: list[str]
    else:
        platforms: list[str] | None = None
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.platforms = self.platforms or ["10x"]
        self.fact_sizes = self.fact_sizes or [1] * 5


@strict
class ScMMGPTConfig(SpellingConfig):
    """A cell encoder, a Q-Former, any causal LM and a cell decoder.

    Examples
    --------
    >>> config = ScMMGPTConfig(qformer_config={"num_query_tokens": 8, "encoder_hidden_size": 512})
    >>> config.qformer_config.num_query_tokens
    8
    >>> ScMMGPTConfig(projection_dims=64)
    Traceback (most recent call last):
        ...
    ValueError: `projection_dims` is not a field of ScMMGPTConfig. Did you mean `projection_dim`?
    """

    model_type = "scmmgpt"
    sub_configs_defaults = {
        "cell_config": SubConfigSpec(config_class=ScMMGPTCellConfig),
        "qformer_config": SubConfigSpec(config_class=ScMMGPTQFormerConfig),
        "cell_decoder_config": SubConfigSpec(config_class=ScMMGPTCellDecoderConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }
    attribute_map = {"image_token_id": "cell_token_id"}  # by which TRL's GRPO, RLOO and distillation ask for it
    keys_to_ignore_at_inference = ["past_key_values", "cell_hidden_states"]

    if TYPE_CHECKING:  # a finished config holds configs, whichever form was given
        cell_config: ScMMGPTCellConfig
        qformer_config: ScMMGPTQFormerConfig
        cell_decoder_config: ScMMGPTCellDecoderConfig
        text_config: PreTrainedConfig

        def __init__(self, **fields: object) -> None: ...
    else:
        cell_config: dict | PreTrainedConfig | None = None
        qformer_config: dict | PreTrainedConfig | None = None
        cell_decoder_config: dict | PreTrainedConfig | None = None
        text_config: dict | PreTrainedConfig | None = None

    cell_token_id: int | None = None
    projection_dim: int = 256
    projector_hidden_size: int = 256
    # A learnt vector for each query token before the projector: where queries agree, only it tells a cell's tokens apart.
    projector_positions: bool = False
    initial_temperature: float | int = 0.1
    # Stage 1: weights of the four losses. Stage 2: weight of text -> cell beside the language model's loss.
    contrast_weight: float | int = 1.0
    match_weight: float | int = 1.0
    caption_weight: float | int = 1.0
    value_weight: float | int = 0.0
    cell_generation_weight: float | int = 1.0
    # Softness of contrast targets where a similarity between texts (an ontology's) is given.
    target_temperature: float | int = 0.1
    tie_word_embeddings: bool = False
    initializer_range: float | int = 0.02
    # What the weights have seen; None = untrained.
    training_summary: dict | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.cell_config, dict) and self.cell_config.get("model_type", "scmmgpt_cell") != "scmmgpt_cell":
            self.cell_config = AutoConfig.for_model(**self.cell_config)  # type: ignore[assignment] # another encoder
        super().__post_init__(**kwargs)
        self.qformer_config.encoder_hidden_size = self.cell_config.hidden_size
        if getattr(self.cell_config, "pooled_shortcut", False):
            self.qformer_config.num_summary_tokens = self.cell_config.num_pooled_tokens
        # The head class reads the top level, an LLM's config says it below: either may ask for tying.
        if not self.tie_word_embeddings and getattr(self.text_config, "tie_word_embeddings", False):
            self.tie_word_embeddings = True

    def take_llm(self, llm_config: PreTrainedConfig) -> None:
        """Make an LLM's config the text config. If that LLM is quantised, it stays the only part that is.

        transformers quantises all that a checkpoint with such a config holds, the towers too, even without the LLM.
        """
        self.text_config = llm_config.get_text_config()
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        quantization: Any = vars(self.text_config).pop("quantization_config", None)
        if quantization is not None:
            is_bitsandbytes = hasattr(quantization, "llm_int8_skip_modules")
            skipped = "llm_int8_skip_modules" if is_bitsandbytes else "modules_to_not_convert"
            setattr(quantization, skipped, [*(getattr(quantization, skipped, None) or []), ALL_BUT_THE_LLM])
            self.quantization_config = quantization

    @property
    def num_query_tokens(self) -> int:
        return self.qformer_config.num_query_tokens


__all__ = ["ScMMGPTCellConfig", "ScMMGPTCellDecoderConfig", "ScMMGPTConfig", "ScMMGPTQFormerConfig"]
