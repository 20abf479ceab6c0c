# Copyright 2026 The scmmgpt authors.
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
"""scMMGPT: a cell encoder and a Q-Former beside any causal LM, and back from text to cells.

- `ScMMGPTModel`: the towers. Embeds cells and texts into one space.
- `ScMMGPTForPreTraining`: stage 1, discriminative: contrast, matching, captioning, masked values.
- `ScMMGPTForConditionalGeneration`: stage 2, generative, both directions.

Both stages name the towers' weights alike (`model.cell_encoder`, `model.qformer`, ...), so that a checkpoint of either
loads into every class without a mapping, and `AutoModel` never reads the LLM.
"""

# Shape letters: B cells, N texts, Q query tokens, S text tokens, D embedding size.

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .auto_classes_scmmgpt import AUTO_MAP, custom_pipelines
from .cell_generation_scmmgpt import ScMMGPTCellGenerationMixin
from .cell_prompts_scmmgpt import ScMMGPTCellTokenProjector, ScMMGPTPromptGenerationMixin, ScMMGPTPromptMixin
from .configuration_scmmgpt import ScMMGPTConfig
from .losses_scmmgpt import caption_loss, contrast_loss, relations, sample_negatives, scaled_similarity
from .modeling_cell_encoder import (
    ScMMGPTCellEncoder,
    ScMMGPTCellEncoderOutput,
    ScMMGPTValueHead,
    check_cells,
    gene_states,
    masked_value_loss,
    summary_tokens,
    unpack_cells,
)
from .modeling_factor_decoder import CellDecoder, cell_decoder_of
from .modeling_qformer import ScMMGPTCaptionHead, ScMMGPTQFormer
from .outputs_scmmgpt import (
    CACHE,
    ScMMGPTCausalLMOutput,
    ScMMGPTCellFeatures,
    ScMMGPTModelOutputWithPast,
    ScMMGPTOutput,
    ScMMGPTPreTrainingOutput,
    requested_states,
)
from .tower_scmmgpt import ScMMGPTTower, ScMMGPTTowersMixin, own_weights_at_hand

# Parts of a checkpoint that a class of the other stage leaves unread.
STAGE_1_HEADS = [r"^caption_head\.", r"^value_head\."]
STAGE_2_PARTS = [r"language_model\.", r"cell_token_projector\.", r"^lm_head\.", r"^cell_decoder\."]


class ScMMGPTPreTrainedModel(ScMMGPTTower):
    config: ScMMGPTConfig
    base_model_prefix = "model"
    main_input_name = "gene_ids"
    input_modalities = ["cell", "text"]
    # Trainer divides the losses by the accumulation steps itself. A contrast is over the pairs of one batch: accumulated,
    # small batches never give the loss of a large one.
    accepts_loss_kwargs = False
    _no_split_modules = ["ScMMGPTCellLayer", "ScMMGPTQFormerLayer"]
    _skip_keys_device_placement = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ScMMGPTModel):
            init.constant_(module.logit_scale, -torch.log(torch.tensor(self.config.initial_temperature)).item())
            if module.pooled_shortcut:  # the queries' part of the embedding grows from nothing
                init.zeros_(module.cell_projection.weight)

    def save_pretrained(self, save_directory, *args, **kwargs):
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **AUTO_MAP}
        self.config.custom_pipelines = custom_pipelines(self.can_generate())
        return super().save_pretrained(save_directory, *args, **kwargs)

    def resize_gene_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """`resize_token_embeddings` for genes: the encoder's table, and what a cell decoder knows of each gene."""
        table = getattr(self, "model", self).cell_encoder.resize_token_embeddings(*args, **kwargs)  # type: ignore[union-attr, operator]
        if isinstance(decoder := getattr(self, "cell_decoder", None), CellDecoder):
            decoder.resize(table.num_embeddings)
        return table


class ScMMGPTModel(ScMMGPTPreTrainedModel):
    """Cell encoder, Q-Former and the shared space of cells and texts, without the LLM.

    Examples
    --------
    >>> from transformers import AutoModel, AutoProcessor
    >>> model, processor = (auto.from_pretrained("scmmgpt-mini") for auto in (AutoModel, AutoProcessor))
    >>> genes = processor.gene_tokenizer.genes[:40]
    >>> cells = processor(cells=(torch.eye(2, 40), genes), return_tensors="pt")
    >>> texts = processor(text=["B cell", "neuron"], return_tensors="pt")
    """

    _keys_to_ignore_on_load_unexpected = [*STAGE_1_HEADS, *STAGE_2_PARTS]

    def __init__(self, config: ScMMGPTConfig):
        super().__init__(config)
        width = config.qformer_config.hidden_size
        # CODEPATH: our encoder by its class, so that remote code needs no registration; Geneformer, LangCell by Auto's.
        if config.cell_config.model_type == "scmmgpt_cell":
            self.cell_encoder: PreTrainedModel = ScMMGPTCellEncoder(config.cell_config)
        else:
            self.cell_encoder = encoder = AutoModel.from_config(config.cell_config)
            encoder.pooler = None  # BERT's: nobody reads it, so it could never train
        self.qformer = ScMMGPTQFormer(config.qformer_config)
        self.cell_projection = nn.Linear(width, config.projection_dim)
        self.text_projection = nn.Linear(width, config.projection_dim)
        self.match_head = nn.Linear(width, 2)
        self.pooled_shortcut = getattr(config.cell_config, "pooled_shortcut", False)
        if self.pooled_shortcut:
            num_tokens, size = config.cell_config.num_pooled_tokens, config.cell_config.hidden_size
            self.summary_projection = nn.Linear(num_tokens * size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.zeros(1))  # not a scalar: FSDP divides every parameter
        self.post_init()

    def get_input_embeddings(self):
        return self.qformer.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.qformer.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """The Q-Former's words: its config says how many there are, not the LLM's."""
        return self.qformer.resize_token_embeddings(*args, **kwargs)

    def encode_cells(self, gene_ids, gene_values, gene_mask=None, cell_cu_seqlens=None):
        """States of the cell encoder (B, L, hidden) and their mask."""
        encoded = self.run_cell_encoder(gene_ids, gene_values, gene_mask, cell_cu_seqlens)
        return encoded.last_hidden_state, encoded.state_mask

    def run_cell_encoder(
        self, gene_ids, gene_values, gene_mask=None, cell_cu_seqlens=None, **states
    ) -> ScMMGPTCellEncoderOutput:
        """The cell encoder's output, whichever encoder it is."""
        if isinstance(self.cell_encoder, ScMMGPTCellEncoder):
            return self.cell_encoder(gene_ids, gene_values, gene_mask, cell_cu_seqlens, **states)
        check_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens, self.config.cell_config.vocab_size)
        if cell_cu_seqlens is not None:
            gene_ids, gene_mask = unpack_cells(gene_ids, cell_cu_seqlens)
        # An encoder of ranked genes: the order of the ids is the expression.
        encoded = self.cell_encoder(input_ids=gene_ids, attention_mask=gene_mask, **states)
        return ScMMGPTCellEncoderOutput(
            last_hidden_state=encoded.last_hidden_state,
            state_mask=torch.ones_like(gene_ids) if gene_mask is None else gene_mask,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def run_cell_layers(self, states: torch.Tensor) -> torch.Tensor:
        """The cell encoder's transformer over states of any origin."""
        if isinstance(self.cell_encoder, ScMMGPTCellEncoder):
            return self.cell_encoder.run_layers(states)
        return self.cell_encoder(inputs_embeds=states).last_hidden_state

    @can_return_tuple
    def get_cell_features(
        self,
        gene_ids: torch.Tensor,
        gene_values: torch.Tensor,
        gene_mask: torch.Tensor | None = None,
        cell_cu_seqlens: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTCellFeatures:
        """Query states (B, Q, hidden) and one unit-length float32 embedding per cell (B, D).

        Parameters
        ----------
        gene_ids, gene_values, gene_mask, cell_cu_seqlens
            Cells as `processor(cells=...)` gives them: (B, L) each, or packed: (1, T) and where each starts (B + 1).
        **kwargs
            `output_hidden_states`, `output_attentions`, `return_dict`.

        Examples
        --------
        >>> features = model.get_cell_features(**cells, output_hidden_states=True)
        >>> features.pooler_output.shape, len(features.cell_hidden_states)
        (torch.Size([2, 256]), 2)
        """
        states = requested_states(self.config, kwargs)
        encoded = self.run_cell_encoder(gene_ids, gene_values, gene_mask, cell_cu_seqlens, **states)
        return self.query_cells(encoded, **states)

    def query_cells(self, encoded: ScMMGPTCellEncoderOutput, **states) -> ScMMGPTCellFeatures:
        """What the Q-Former's queries read off encoded cells."""
        outputs = self.qformer(cell_states=encoded.last_hidden_state, cell_mask=encoded.state_mask, **states)
        assert encoded.last_hidden_state is not None
        return ScMMGPTCellFeatures(
            last_hidden_state=outputs.query_states,
            pooler_output=self.project_cells(outputs.query_states, encoded.last_hidden_state),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            cell_hidden_states=encoded.hidden_states,
            cell_attentions=encoded.attentions,
        )

    def project_cells(self, queries: torch.Tensor, cell_states: torch.Tensor) -> torch.Tensor:
        """One unit-length float32 embedding per cell (B, D), off its queries and its summary."""
        projected = self.cell_projection(queries).mean(1)
        if self.pooled_shortcut:
            projected = projected + self.project_summary(
                summary_tokens(cell_states, self.config.cell_config.num_pooled_tokens)
            )
        return F.normalize(projected.float(), dim=-1)

    def project_summary(self, pooled_tokens: torch.Tensor) -> torch.Tensor:
        """The shortcut's part of the embedding, not yet of unit length."""
        return self.summary_projection(pooled_tokens.flatten(1))

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Text states (N, S, hidden) and one unit-length float32 embedding per text (N, D).

        Parameters
        ----------
        input_ids, attention_mask, qformer_input_ids, qformer_attention_mask
            Texts as `processor(text=...)` gives them, (N, S).
        **kwargs
            `output_hidden_states`, `output_attentions`, `return_dict`.

        Examples
        --------
        >>> model.get_text_features(**texts).pooler_output.shape
        torch.Size([2, 256])
        """
        states = requested_states(self.config, kwargs)
        input_ids, attention_mask = _qformer_text(input_ids, attention_mask, qformer_input_ids, qformer_attention_mask)
        outputs = self.qformer(input_ids=input_ids, attention_mask=attention_mask, **states)
        first = torch.zeros_like(input_ids[:, 0]) if attention_mask is None else attention_mask.argmax(1)
        first_states = outputs.text_states[torch.arange(first.shape[0], device=first.device), first]
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.text_states,
            pooler_output=F.normalize(self.text_projection(first_states).float(), dim=-1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def match_logits(self, cell_states, state_mask, input_ids, attention_mask) -> torch.Tensor:
        """Matching logits (B, 2) of text i and cell i, averaged over the query tokens."""
        outputs = self.qformer(cell_states, state_mask, input_ids, attention_mask, mode="match")
        return self.match_head(outputs.query_states).float().mean(1)

    def get_match_scores(
        self,
        gene_ids,
        gene_values,
        gene_mask=None,
        input_ids=None,
        attention_mask=None,
        qformer_input_ids=None,
        qformer_attention_mask=None,
        cell_cu_seqlens=None,
    ) -> torch.Tensor:
        """Probability (B,) that text i describes cell i, for as many texts as cells; arguments as in `forward`.

        Examples
        --------
        >>> model.get_match_scores(**cells, **texts).shape
        torch.Size([2])
        """
        cells = self.encode_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens)
        text = _qformer_text(input_ids, attention_mask, qformer_input_ids, qformer_attention_mask)
        return self.match_logits(*cells, *text).softmax(-1)[:, 1]

    def similarity_scale(self) -> torch.Tensor:
        with own_weights_at_hand(self):
            return self.logit_scale.float().exp().clamp(max=100).squeeze()

    @can_return_tuple
    def forward(
        self,
        gene_ids: torch.Tensor | None = None,
        gene_values: torch.Tensor | None = None,
        gene_mask: torch.Tensor | None = None,
        cell_cu_seqlens: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTOutput:
        """Embed cells, texts or both; arguments as in `get_cell_features` and `get_text_features`.

        Examples
        --------
        >>> model(**cells, **texts).logits_per_cell.shape
        torch.Size([2, 2])
        """
        output, states = ScMMGPTOutput(), requested_states(self.config, kwargs)
        if gene_ids is not None:
            cells = self.get_cell_features(gene_ids, gene_values, gene_mask, cell_cu_seqlens, **states)
            output = ScMMGPTOutput(cell_embeds=cells.pooler_output, **cells.states())
        if input_ids is not None or qformer_input_ids is not None:
            text = input_ids, attention_mask, qformer_input_ids, qformer_attention_mask
            output.add_texts(self.get_text_features(*text, **states))
        if output.cell_embeds is not None and output.text_embeds is not None:
            output.logits_per_cell = scaled_similarity(output.cell_embeds, output.text_embeds, self.similarity_scale())
        return ScMMGPTOutput(**output)  # in the order of its fields


def _qformer_text(input_ids, attention_mask, qformer_input_ids, qformer_attention_mask):
    """The Q-Former's own token ids where the processor has a second tokenizer, else the shared ones."""
    if qformer_input_ids is not None:
        return qformer_input_ids, qformer_attention_mask
    if input_ids is None:
        raise ValueError("No text was given: pass what `processor(text=...)` returns.")
    return input_ids, attention_mask


class ScMMGPTForPreTraining(ScMMGPTPreTrainedModel, ScMMGPTTowersMixin):
    """Stage 1: contrastive, matching (hard negatives), captioning and masked-value losses.

    Examples
    --------
    >>> from transformers import AutoModelForPreTraining, AutoProcessor
    >>> model, processor = (auto.from_pretrained("scmmgpt-mini") for auto in (AutoModelForPreTraining, AutoProcessor))
    >>> genes = processor.gene_tokenizer.genes[:40]
    >>> inputs = processor(cells=(torch.eye(2, 40), genes), return_tensors="pt")
    >>> inputs |= processor(text=["B cell", "neuron"], return_tensors="pt")
    """

    _keys_to_ignore_on_load_unexpected = STAGE_2_PARTS

    def __init__(self, config: ScMMGPTConfig):
        super().__init__(config)
        self.model = ScMMGPTModel(config)
        self.caption_head = ScMMGPTCaptionHead(config.qformer_config)
        self.value_head = ScMMGPTValueHead(config.cell_config)
        self.post_init()

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        words = self.model.resize_token_embeddings(*args, **kwargs)
        self.caption_head.resize(words.num_embeddings)
        return words

    @can_return_tuple
    def forward(
        self,
        gene_ids: torch.Tensor,
        gene_values: torch.Tensor,
        gene_mask: torch.Tensor | None = None,
        cell_cu_seqlens: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        text_groups: torch.Tensor | None = None,
        text_lineage: torch.Tensor | None = None,
        target_values: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTPreTrainingOutput:
        """The losses of cells and of one text per cell; without text, of masked values alone.

        Parameters
        ----------
        gene_ids, ..., qformer_attention_mask
            B cells and texts, as in `ScMMGPTModel`.
        text_groups
            (B,): equal numbers mark equal texts.
        text_lineage
            (B, K): the ontology number of each text's cell type, then of all its ancestors, padded with -1.
        target_values
            (B, L): values to be predicted where `gene_values` holds the mask value; -100 elsewhere.
        return_loss
            False gives the embeddings alone. Trainer evaluates the loss of a model by this argument's name, as long as no
            other argument is called a label.
        **kwargs
            `output_hidden_states`, `output_attentions`, `return_dict`.

        Examples
        --------
        >>> [name for name in model(**inputs) if name.endswith("loss")]
        ['loss', 'contrast_loss', 'match_loss', 'caption_loss']
        """
        config, states = self.config, requested_states(self.config, kwargs)
        encoded = self.model.run_cell_encoder(gene_ids, gene_values, gene_mask, cell_cu_seqlens, **states)
        output = ScMMGPTPreTrainingOutput(cell_hidden_states=encoded.hidden_states, cell_attentions=encoded.attentions)
        if input_ids is not None or qformer_input_ids is not None:
            text = _qformer_text(input_ids, attention_mask, qformer_input_ids, qformer_attention_mask)
            cells = self.model.query_cells(encoded, **states)
            output = ScMMGPTPreTrainingOutput(cell_embeds=cells.pooler_output, **cells.states())
            output.add_texts(self.model.get_text_features(*text, **states))
            if return_loss:
                self._text_losses(output, encoded, text, text_groups, text_lineage)
        if target_values is not None and config.value_weight and return_loss:
            predictions = self.value_head(gene_states(encoded.last_hidden_state, config.cell_config))
            output.value_loss = masked_value_loss(predictions, target_values[:, : predictions.shape[1]])
        return ScMMGPTPreTrainingOutput(loss=output.weighted_sum(config) if return_loss else None, **output)

    def _text_losses(self, output, encoded, text, text_groups, text_lineage):
        config, model = self.config, self.model
        cell_states, state_mask = encoded.last_hidden_state, encoded.state_mask
        input_ids, attention_mask = text[0], torch.ones_like(text[0]) if text[1] is None else text[1]
        scale = model.similarity_scale()
        if config.contrast_weight:
            output.contrast_loss = contrast_loss(
                output.cell_embeds, output.text_embeds, scale, text_groups, text_lineage, config.target_temperature
            )
        if config.match_weight:
            output.match_loss = self._match_loss(
                output, cell_states, state_mask, input_ids, attention_mask, text_groups, text_lineage
            )
        if config.caption_weight:
            caption_ids = input_ids
            if config.qformer_config.caption_start_token_id is not None:
                first = torch.arange(input_ids.shape[1], device=input_ids.device) == attention_mask.argmax(1)[:, None]
                caption_ids = input_ids.masked_fill(first, config.qformer_config.caption_start_token_id)
            states = model.qformer(cell_states, state_mask, caption_ids, attention_mask, mode="caption").text_states
            logits = self.caption_head(states, model.qformer.word_vectors(states.device))
            output.caption_loss = caption_loss(logits, input_ids, attention_mask)

    def _match_loss(self, output, cell_states, state_mask, input_ids, attention_mask, text_groups, text_lineage):
        """True pairs against each cell with a hard wrong text and each text with a hard wrong cell.

        Negatives come from this process: sending cell states of thousands of genes around would cost more than it
        brings.
        """
        num = len(input_ids)
        excluded, _ = relations(num, text_groups, text_lineage, input_ids.device)
        logits = scaled_similarity(output.cell_embeds, output.text_embeds, self.model.similarity_scale())
        # Training draws anew each time; a batch that is evaluated has one loss.
        generator = None if self.training else torch.Generator(input_ids.device).manual_seed(0)
        wrong_text, has_text = sample_negatives(logits.detach(), excluded, generator)
        wrong_cell, has_cell = sample_negatives(logits.detach().T, excluded, generator)
        itself = torch.arange(num, device=input_ids.device)
        cell = torch.cat([itself, itself[has_text], wrong_cell[has_cell]])
        text = torch.cat([itself, wrong_text[has_text], itself[has_cell]])
        scores = self.model.match_logits(cell_states[cell], state_mask[cell], input_ids[text], attention_mask[text])
        return F.cross_entropy(scores, (torch.arange(len(cell), device=cell.device) < num).long())


class ScMMGPTGenerativeModel(ScMMGPTModel, ScMMGPTPromptMixin):
    """The towers and an LLM that reads cells as `num_query_tokens` tokens each, in the place of `<cell>`."""

    _keys_to_ignore_on_load_unexpected = STAGE_1_HEADS

    def __init__(self, config: ScMMGPTConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        if getattr(config.text_config, "is_encoder_decoder", False):
            raise ValueError(
                f"The text model must be a causal LM, {config.text_config.model_type} is an encoder-decoder."
            )
        self.language_model: PreTrainedModel = language_model or AutoModel.from_config(config.text_config)
        self.cell_token_projector = ScMMGPTCellTokenProjector(config, self.get_input_embeddings().embedding_dim)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        return ScMMGPTPreTrainedModel.resize_token_embeddings(self, *args, **kwargs)

    def get_cell_tokens(self, gene_ids, gene_values, gene_mask=None, cell_cu_seqlens=None) -> torch.Tensor:
        """Cells as tokens of the LLM's width (B, Q, LLM hidden); arguments as in `get_cell_features`."""
        return self.read_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens)["pooler_output"]

    def read_cells(self, gene_ids, gene_values, gene_mask=None, cell_cu_seqlens=None, **states) -> ScMMGPTCellFeatures:
        """Cells as `mm_encoder_outputs["cell"]` takes them: `pooler_output` are their tokens."""
        states["return_dict"] = True
        cells = self.get_cell_features(gene_ids, gene_values, gene_mask, cell_cu_seqlens, **states)
        return ScMMGPTCellFeatures(**{**cells, "pooler_output": self.cell_token_projector(cells.last_hidden_state)})

    @can_return_tuple
    def forward(  # type: ignore[misc] # TransformersKwargs names `position_ids` as well
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        gene_ids: torch.Tensor | None = None,
        gene_values: torch.Tensor | None = None,
        gene_mask: torch.Tensor | None = None,
        cell_cu_seqlens: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, ScMMGPTCellFeatures] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTModelOutputWithPast:
        """The LLM's states over prompts with cells; arguments as in `ScMMGPTForConditionalGeneration.forward`."""
        cache = kwargs.pop("cache", past_key_values)
        states = requested_states(self.config, kwargs, passes_on=True)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        inputs_embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        cells = (mm_encoder_outputs or {}).get("cell")
        if gene_ids is not None:
            cells = self.read_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens, **states)
        if cells is not None:
            inputs_embeds = self.place_cells(input_ids, inputs_embeds, cells.pooler_output)
        elif input_ids is not None and cache is None:
            self.refuse_unfilled_placeholders(input_ids)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{**kwargs, **states, CACHE: cache},
        )
        return ScMMGPTModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: getattr(outputs, CACHE), **({} if cells is None else cells.states(of_queries="qformer_"))},
        )


class ScMMGPTForConditionalGeneration(
    ScMMGPTPreTrainedModel,
    ScMMGPTTowersMixin,
    ScMMGPTCellGenerationMixin,
    ScMMGPTPromptGenerationMixin,
    GenerationMixin,
):
    """Stage 2: cells and text in, text out (`generate`); text in, cells out (`generate_cells`).

    Examples
    --------
    >>> from transformers import AutoModelForMultimodalLM, AutoProcessor
    >>> model, processor = (auto.from_pretrained("scmmgpt-mini") for auto in (AutoModelForMultimodalLM, AutoProcessor))
    >>> cells = torch.eye(2, 40), processor.gene_tokenizer.genes[:40]
    >>> inputs = processor(cells=cells, text="<cell> Which type of cell is it?", return_tensors="pt")
    >>> model.generate(**inputs, max_new_tokens=4).shape[1] - inputs["input_ids"].shape[1]
    4
    """

    _keys_to_ignore_on_load_unexpected = STAGE_1_HEADS
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # What `generate` takes for the prompt. Were it `gene_ids`, it would swallow the cells and write without them.
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # the answers of all batches of a step are counted, as they differ in length
    model: "ScMMGPTGenerativeModel"

    def __init__(self, config: ScMMGPTConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.model = ScMMGPTGenerativeModel(config, language_model)
        words = self.model.get_input_embeddings()
        self.lm_head = nn.Linear(words.embedding_dim, config.text_config.vocab_size, bias=False)
        # The LLM's last states are as wide as its words, which need not be its `hidden_size` (OPT 350M).
        self.cell_decoder = cell_decoder_of(config.cell_decoder_config, config.cell_config, words.embedding_dim)
        # Where the LLM calls its embeddings by another name. Not a pattern for all: PEFT takes the name as it stands.
        name = next(name for name, weight in self.model.named_parameters() if weight is words.weight)
        if f"model.{name}" not in self._tied_weights_keys.values():
            self._tied_weights_keys = {"lm_head.weight": f"model.{name}"}
        self.post_init()
        self.never_write_placeholders()

    def never_write_placeholders(self):
        """Keep `generate` from writing the word that stands for a cell."""
        if self.config.cell_token_id is not None:
            self.generation_config.suppress_tokens = [self.config.cell_token_id]

    def get_cell_tokens(self, *args, **kwargs) -> torch.Tensor:
        """Cells as tokens of the LLM's width (B, Q, LLM hidden); arguments as in `get_cell_features`."""
        return self.model.get_cell_tokens(*args, **kwargs)

    def get_submodule(self, target: str):
        # PEFT's prompt tuning asks for this name; unanswered, it takes the Q-Former's words for the LLM's.
        return self.get_input_embeddings() if target == "embeddings.word_embeddings" else super().get_submodule(target)

    @can_return_tuple
    def forward(  # type: ignore[misc] # TransformersKwargs names `position_ids` as well
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        gene_ids: torch.Tensor | None = None,
        gene_values: torch.Tensor | None = None,
        gene_mask: torch.Tensor | None = None,
        cell_cu_seqlens: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cell_prompt_ids: torch.Tensor | None = None,
        cell_prompt_mask: torch.Tensor | None = None,
        target_gene_ids: torch.Tensor | None = None,
        target_counts: torch.Tensor | None = None,
        target_library_size: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, ScMMGPTCellFeatures] | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTCausalLMOutput:
        """What the LLM says to prompts whose `<cell>` placeholders take the cells in reading order, and the losses.

        Parameters
        ----------
        input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, logits_to_keep
            The LLM's, (prompts, S); prompts on their left padded as `processor(cells=..., text=...)` gives them.
        gene_ids, gene_values, gene_mask, cell_cu_seqlens
            Cells as `processor(cells=...)` gives them: (B, L) each, or packed: (1, T) and where each starts (B + 1).
        labels
            (prompts, S): the answer's tokens, -100 everywhere else.
        cell_prompt_ids, cell_prompt_mask
            (B, S): a text for each cell of the batch, that should lead to it; an empty one stands for any cell.
        target_gene_ids, target_counts
            (G,) genes, all or a random share, and (B, G) the raw counts that the texts should lead to.
        target_library_size
            (B,): total counts of each cell over the vocabulary; None: the sum of `target_counts`.
        mm_encoder_outputs
            {"cell": what `model.read_cells` gave} instead of the cells: `generate` encodes them once.
        num_items_in_batch
            The answer tokens of all batches of an optimiser step, whose losses are to be added up: this one then counts by
            its share of them.
        **kwargs
            `output_hidden_states`, `output_attentions`, `return_dict`, and what else the LLM takes.

        Examples
        --------
        >>> model(**inputs, labels=inputs["input_ids"]).loss.shape
        torch.Size([])
        """
        output = ScMMGPTCausalLMOutput()
        if input_ids is not None or inputs_embeds is not None:
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                gene_ids=gene_ids,
                gene_values=gene_values,
                gene_mask=gene_mask,
                cell_cu_seqlens=cell_cu_seqlens,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                mm_encoder_outputs=mm_encoder_outputs,
                return_dict=True,
                **kwargs,
            )
            logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
            states = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
            output = ScMMGPTCausalLMOutput(logits=logits, **states)
            if labels is not None:
                vocab_size = self.config.text_config.vocab_size
                output.language_loss = self.loss_function(
                    logits, labels, vocab_size, num_items_in_batch=num_items_in_batch, **kwargs
                )
        if target_counts is not None:
            cells = (gene_ids, gene_values, gene_mask, cell_cu_seqlens)
            output.cell_generation_loss = self.cell_generation_loss(
                cells, cell_prompt_ids, cell_prompt_mask, target_gene_ids, target_counts, target_library_size
            ).loss
        share: float | torch.Tensor = 1.0
        if labels is not None and num_items_in_batch is not None:
            share = (labels[..., 1:] != -100).sum() / num_items_in_batch
        parts = [
            weight * part
            for weight, part in (
                (1.0, output.language_loss),
                (share * self.config.cell_generation_weight, output.cell_generation_loss),
            )
            if part is not None
        ]
        return ScMMGPTCausalLMOutput(loss=torch.stack(parts).sum() if parts else None, **output)


__all__ = [
    "ScMMGPTCausalLMOutput",
    "ScMMGPTForConditionalGeneration",
    "ScMMGPTForPreTraining",
    "ScMMGPTGenerativeModel",
    "ScMMGPTModel",
    "ScMMGPTOutput",
    "ScMMGPTPreTrainedModel",
    "ScMMGPTPreTrainingOutput",
]
