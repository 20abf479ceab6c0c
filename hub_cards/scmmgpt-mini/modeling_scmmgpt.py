"""scMMGPT: a cell encoder and a Q-Former beside any causal LM, and back from text to cells.

- `ScMMGPTModel`: the towers. Embeds cells and texts into one space.
- `ScMMGPTForPreTraining`: stage 1, discriminative: contrast, matching, captioning, masked values.
- `ScMMGPTForConditionalGeneration`: stage 2, generative, both directions.

Both stages name the towers' weights alike (`model.cell_encoder`, `model.qformer`, ...), so that a checkpoint of either
loads into every class without a mapping, and `AutoModel` never reads the LLM.
"""

# Shape letters: B cells, N texts, Q query tokens, S text tokens, D embedding size.

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, torch_compilable_check

from .cell_generation_scmmgpt import ScMMGPTCellGenerationMixin
from .configuration_scmmgpt import ScMMGPTConfig
from .losses_scmmgpt import caption_loss, contrast_loss, relations, sample_negatives, scaled_similarity
from .modeling_cell_decoder import ScMMGPTCellDecoder
from .modeling_cell_encoder import (
    ScMMGPTCellEncoder,
    ScMMGPTValueHead,
    check_cells,
    gene_states,
    masked_value_loss,
    summary_tokens,
    unpack_cells,
)
from .modeling_qformer import ScMMGPTCaptionHead, ScMMGPTQFormer

# What every saved checkpoint tells the Auto classes, whichever class saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_scmmgpt.ScMMGPTConfig",
    "AutoModel": "modeling_scmmgpt.ScMMGPTModel",
    "AutoModelForPreTraining": "modeling_scmmgpt.ScMMGPTForPreTraining",
    "AutoModelForMultimodalLM": "modeling_scmmgpt.ScMMGPTForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_scmmgpt.ScMMGPTForConditionalGeneration",
    "AutoProcessor": "processing_scmmgpt.ScMMGPTProcessor",
    "AutoFeatureExtractor": "gene_tokenization_scmmgpt.ScMMGPTGeneTokenizer",
}
# Parts of a checkpoint that a class of the other stage leaves unread.
STAGE_1_HEADS = [r"^caption_head\.", r"^value_head\."]
STAGE_2_PARTS = [r"language_model\.", r"cell_token_projector\.", r"^lm_head\.", r"^cell_decoder\."]
CELL_INPUTS = ("gene_ids", "gene_values", "gene_mask", "cell_cu_seqlens")


@dataclass
class ScMMGPTOutput(ModelOutput):
    """Unit-length embeddings of cells (B, D) and texts (N, D), and their scaled similarities (B, N)."""

    cell_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    logits_per_cell: torch.Tensor | None = None


@dataclass
class ScMMGPTPreTrainingOutput(ModelOutput):
    """The weighted sum of the stage-1 losses, and each by its name; a loss of weight 0 is None."""

    loss: torch.Tensor | None = None
    contrast_loss: torch.Tensor | None = None
    match_loss: torch.Tensor | None = None
    caption_loss: torch.Tensor | None = None
    value_loss: torch.Tensor | None = None
    cell_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


@dataclass
class ScMMGPTCausalLMOutput(CausalLMOutputWithPast):
    """A causal LM's output, the two losses of stage 2, and the cell tokens that stood in the prompt."""

    language_loss: torch.Tensor | None = None
    cell_generation_loss: torch.Tensor | None = None
    cell_hidden_states: torch.Tensor | None = None


class ScMMGPTPreTrainedModel(PreTrainedModel):
    config: ScMMGPTConfig
    base_model_prefix = "model"
    main_input_name = "gene_ids"
    input_modalities = ["cell", "text"]
    supports_gradient_checkpointing = True
    # Trainer divides the losses by the accumulation steps itself. A contrast is over the pairs of one batch: accumulated,
    # small batches never give the loss of a large one.
    accepts_loss_kwargs = False
    _no_split_modules = ["ScMMGPTCellLayer", "ScMMGPTQFormerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ScMMGPTModel):
            init.constant_(module.logit_scale, -torch.log(torch.tensor(self.config.initial_temperature)).item())
            if module.pooled_shortcut:  # the queries' part of the embedding grows from nothing
                init.zeros_(module.cell_projection.weight)
        for name, value in getattr(module, "constant_parameters", {}).items():
            init.constant_(getattr(module, name), value)
        for name in getattr(module, "random_parameters", ()):
            init.normal_(getattr(module, name), std=self.config.initializer_range)

    def save_pretrained(self, save_directory, *args, **kwargs):
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **AUTO_MAP}
        return super().save_pretrained(save_directory, *args, **kwargs)

    def generate(self, *args, **kwargs):
        raise AttributeError(
            f"{type(self).__name__} has no language model to generate with. Load the checkpoint with "
            "`AutoModelForMultimodalLM.from_pretrained(...)`, which gives ScMMGPTForConditionalGeneration."
        )


class ScMMGPTModel(ScMMGPTPreTrainedModel):
    """Cell encoder, Q-Former and the shared space of cells and texts, without the LLM."""

    _keys_to_ignore_on_load_unexpected = [*STAGE_1_HEADS, *STAGE_2_PARTS]

    def __init__(self, config: ScMMGPTConfig):
        super().__init__(config)
        width = config.qformer_config.hidden_size
        # Our own encoder by its class, so that remote code needs no registration; any other by the Auto class.
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

    def encode_cells(self, gene_ids, gene_values, gene_mask=None, cell_cu_seqlens=None):
        """States of the cell encoder (B, L, hidden) and their mask."""
        if isinstance(self.cell_encoder, ScMMGPTCellEncoder):
            outputs = self.cell_encoder(gene_ids, gene_values, gene_mask, cell_cu_seqlens)
            return outputs.last_hidden_state, outputs.state_mask
        check_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens, self.config.cell_config.vocab_size)
        if cell_cu_seqlens is not None:
            gene_ids, gene_mask = unpack_cells(gene_ids, cell_cu_seqlens)
        # An encoder of ranked genes: the order of the ids is the expression.
        states = self.cell_encoder(input_ids=gene_ids, attention_mask=gene_mask).last_hidden_state
        return states, torch.ones_like(gene_ids) if gene_mask is None else gene_mask

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
    ) -> BaseModelOutputWithPooling:
        """Query states (B, Q, hidden) and one unit-length float32 embedding per cell (B, D)."""
        cell_states, state_mask = self.encode_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens)
        queries = self.qformer(cell_states=cell_states, cell_mask=state_mask).query_states
        return BaseModelOutputWithPooling(
            last_hidden_state=queries, pooler_output=self.project_cells(queries, cell_states)
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
    ) -> BaseModelOutputWithPooling:
        """Text states (N, S, hidden) and one unit-length float32 embedding per text (N, D)."""
        input_ids, attention_mask = _qformer_text(input_ids, attention_mask, qformer_input_ids, qformer_attention_mask)
        states = self.qformer(input_ids=input_ids, attention_mask=attention_mask).text_states
        first = torch.zeros_like(input_ids[:, 0]) if attention_mask is None else attention_mask.argmax(1)
        pooled = self.text_projection(states[torch.arange(len(states), device=states.device), first]).float()
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=F.normalize(pooled, dim=-1))

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
        """Probability that text i describes cell i, for as many texts as cells."""
        cells = self.encode_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens)
        text = _qformer_text(input_ids, attention_mask, qformer_input_ids, qformer_attention_mask)
        return self.match_logits(*cells, *text).softmax(-1)[:, 1]

    def similarity_scale(self) -> torch.Tensor:
        return self.logit_scale.float().exp().clamp(max=100).squeeze()

    def forward(self, gene_ids=None, gene_values=None, gene_mask=None, cell_cu_seqlens=None, **text) -> ScMMGPTOutput:
        """Embed cells, texts or both. Text comes as the processor names it: `input_ids`, `attention_mask`, ..."""
        cell_embeds = text_embeds = logits = None
        if gene_ids is not None:
            cell_embeds = self.get_cell_features(gene_ids, gene_values, gene_mask, cell_cu_seqlens).pooler_output
        if text.get("input_ids") is not None or text.get("qformer_input_ids") is not None:
            text_embeds = self.get_text_features(**text).pooler_output
        if cell_embeds is not None and text_embeds is not None:
            logits = scaled_similarity(cell_embeds, text_embeds, self.similarity_scale())
        return ScMMGPTOutput(cell_embeds=cell_embeds, text_embeds=text_embeds, logits_per_cell=logits)


def _qformer_text(input_ids, attention_mask, qformer_input_ids, qformer_attention_mask):
    """The Q-Former's own token ids where the processor has a second tokenizer, else the shared ones."""
    if qformer_input_ids is not None:
        return qformer_input_ids, qformer_attention_mask
    if input_ids is None:
        raise ValueError("No text was given: pass what `processor(text=...)` returns.")
    return input_ids, attention_mask


class ScMMGPTForPreTraining(ScMMGPTPreTrainedModel):
    """Stage 1: contrastive, matching (hard negatives), captioning and masked-value losses."""

    _keys_to_ignore_on_load_unexpected = STAGE_2_PARTS

    def __init__(self, config: ScMMGPTConfig):
        super().__init__(config)
        self.model = ScMMGPTModel(config)
        self.caption_head = ScMMGPTCaptionHead(config.qformer_config)
        self.value_head = ScMMGPTValueHead(config.cell_config)
        self.post_init()

    def get_cell_features(self, *args, **kwargs):
        return self.model.get_cell_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs):
        return self.model.get_text_features(*args, **kwargs)

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
        **kwargs,
    ) -> ScMMGPTPreTrainingOutput:
        """The losses of cells, padded or packed as the processor gives them, and of one text per cell.

        Without text only the masked-value loss is computed. `text_groups` (B,): equal numbers mark equal texts.
        `text_lineage` (B, K): the ontology number of each text's cell type, then of all its ancestors, padded with -1.
        `target_values` (B, L): values to be predicted where `gene_values` holds the mask value; -100 elsewhere.
        `return_loss`: False gives the embeddings alone. Trainer evaluates the loss of a model by this argument's name,
        as long as no other argument is called a label.
        """
        config, output = self.config, ScMMGPTPreTrainingOutput()
        cell_states, state_mask = self.model.encode_cells(gene_ids, gene_values, gene_mask, cell_cu_seqlens)
        if target_values is not None and config.value_weight and return_loss:
            predictions = self.value_head(gene_states(cell_states, config.cell_config))
            output.value_loss = masked_value_loss(predictions, target_values[:, : predictions.shape[1]])
        if input_ids is not None or qformer_input_ids is not None:
            text = _qformer_text(input_ids, attention_mask, qformer_input_ids, qformer_attention_mask)
            self._embed(output, cell_states, state_mask, *text)
            if return_loss:
                self._text_losses(output, cell_states, state_mask, text, text_groups, text_lineage)
        return ScMMGPTPreTrainingOutput(loss=self._weighted_sum(output) if return_loss else None, **output)

    def _weighted_sum(self, output: ScMMGPTPreTrainingOutput) -> torch.Tensor:
        parts = [
            getattr(self.config, f"{name}_weight") * output[f"{name}_loss"]
            for name in ("contrast", "match", "caption", "value")
            if output.get(f"{name}_loss") is not None
        ]
        if not parts:
            raise ValueError(
                "Nothing to learn: the batch has neither text nor `target_values` (or their weights are 0)."
            )
        return torch.stack(parts).sum()

    def _embed(self, output, cell_states, state_mask, input_ids, attention_mask):
        queries = self.model.qformer(cell_states=cell_states, cell_mask=state_mask).query_states
        output.cell_embeds = self.model.project_cells(queries, cell_states)
        output.text_embeds = self.model.get_text_features(input_ids, attention_mask).pooler_output

    def _text_losses(self, output, cell_states, state_mask, text, text_groups, text_lineage):
        config, model = self.config, self.model
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
            logits = self.caption_head(states, model.qformer.get_input_embeddings().weight)
            output.caption_loss = caption_loss(logits, input_ids, attention_mask)

    def _match_loss(self, output, cell_states, state_mask, input_ids, attention_mask, text_groups, text_lineage):
        """True pairs against each cell with a hard wrong text and each text with a hard wrong cell.

        Negatives come from this process: sending cell states of thousands of genes around would cost more than it
        brings.
        """
        num = len(input_ids)
        excluded, _ = relations(num, text_groups, text_lineage, input_ids.device)
        logits = scaled_similarity(output.cell_embeds, output.text_embeds, self.model.similarity_scale())
        wrong_text, has_text = sample_negatives(logits.detach(), excluded)
        wrong_cell, has_cell = sample_negatives(logits.detach().T, excluded)
        itself = torch.arange(num, device=input_ids.device)
        cell = torch.cat([itself, itself[has_text], wrong_cell[has_cell]])
        text = torch.cat([itself, wrong_text[has_text], itself[has_cell]])
        scores = self.model.match_logits(cell_states[cell], state_mask[cell], input_ids[text], attention_mask[text])
        return F.cross_entropy(scores, (torch.arange(len(cell), device=cell.device) < num).long())


class ScMMGPTGenerativeModel(ScMMGPTModel):
    """The towers and an LLM that reads cells as `num_query_tokens` tokens each, in the place of `<cell>`."""

    _keys_to_ignore_on_load_unexpected = STAGE_1_HEADS

    def __init__(self, config: ScMMGPTConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        if getattr(config.text_config, "is_encoder_decoder", False):
            raise ValueError(
                f"The text model must be a causal LM, {config.text_config.model_type} is an encoder-decoder."
            )
        self.language_model: PreTrainedModel = language_model or AutoModel.from_config(config.text_config)
        self.cell_token_projector = nn.Sequential(
            nn.Linear(config.qformer_config.hidden_size, config.projector_hidden_size),
            nn.GELU(),
            nn.Linear(config.projector_hidden_size, self.get_input_embeddings().embedding_dim),
        )
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_cell_tokens(self, gene_ids, gene_values, gene_mask=None, cell_cu_seqlens=None) -> torch.Tensor:
        """Cells as tokens of the LLM's width (B, Q, LLM hidden)."""
        queries = self.get_cell_features(gene_ids, gene_values, gene_mask, cell_cu_seqlens).last_hidden_state
        return self.cell_token_projector(queries)

    def placeholder_mask(self, input_ids, inputs_embeds=None):
        """(B, S) True where a cell's tokens go: nowhere, where no word of the LLM stands for a cell."""
        if self.config.cell_token_id is None:
            words = inputs_embeds[..., 0] if input_ids is None else input_ids
            return torch.zeros_like(words, dtype=torch.bool)
        if input_ids is not None:
            return input_ids == self.config.cell_token_id
        token = torch.full((), self.config.cell_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def place_cells(self, input_ids, inputs_embeds, cell_tokens):
        """Put the cells' tokens where the prompts hold placeholders, in reading order."""
        is_cell = self.placeholder_mask(input_ids, inputs_embeds)
        num_placeholders, (num_cells, num_queries) = is_cell.sum(), cell_tokens.shape[:2]
        torch_compilable_check(
            num_placeholders == num_cells * num_queries,
            lambda: (
                f"The prompts hold {int(num_placeholders)} <cell> placeholder tokens, that is "
                f"{int(num_placeholders) / num_queries:g} cells of {num_queries} tokens, but {num_cells} cells were passed. "
                "Tokenise prompts and cells in one call, `processor(cells=..., text=...)`."
            ),
        )
        cell_tokens = cell_tokens.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(is_cell.unsqueeze(-1), cell_tokens)

    def refuse_unfilled_placeholders(self, input_ids):
        num_placeholders = self.placeholder_mask(input_ids).sum()
        torch_compilable_check(
            num_placeholders == 0,
            lambda: (
                f"The prompts hold {int(num_placeholders)} <cell> placeholder tokens, that is "
                f"{int(num_placeholders) / self.config.num_query_tokens:g} cells, but 0 cells were passed."
            ),
        )

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if gene_ids is not None:
            cell_tokens = self.get_cell_tokens(gene_ids, gene_values, gene_mask, cell_cu_seqlens)
            inputs_embeds = self.place_cells(input_ids, inputs_embeds, cell_tokens)
        elif input_ids is not None and past_key_values is None:
            self.refuse_unfilled_placeholders(input_ids)
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class ScMMGPTForConditionalGeneration(ScMMGPTPreTrainedModel, ScMMGPTCellGenerationMixin, GenerationMixin):
    """Stage 2: cells and text in, text out (`generate`); text in, cells out (`generate_cells`)."""

    _keys_to_ignore_on_load_unexpected = STAGE_1_HEADS
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # What `generate` takes for the prompt. Were it `gene_ids`, it would swallow the cells and write without them.
    main_input_name = "input_ids"
    generate = GenerationMixin.generate
    accepts_loss_kwargs = True  # the answers of all batches of a step are counted, as they differ in length
    model: "ScMMGPTGenerativeModel"

    def __init__(self, config: ScMMGPTConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.model = ScMMGPTGenerativeModel(config, language_model)
        words = self.model.get_input_embeddings()
        self.lm_head = nn.Linear(words.embedding_dim, config.text_config.vocab_size, bias=False)
        # The LLM's last states are as wide as its words, which need not be its `hidden_size` (OPT 350M).
        self.cell_decoder = ScMMGPTCellDecoder(config.cell_decoder_config, config.cell_config, words.embedding_dim)
        # Every LLM calls its embeddings by another name: tie to whatever they are.
        name = next(name for name, weight in self.model.named_parameters() if weight is words.weight)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}"}
        self.post_init()
        self._never_write_placeholders()

    def _never_write_placeholders(self):
        if self.config.cell_token_id is not None:
            self.generation_config.suppress_tokens = [self.config.cell_token_id]

    def get_cell_features(self, *args, **kwargs):
        return self.model.get_cell_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs):
        return self.model.get_text_features(*args, **kwargs)

    def get_match_scores(self, *args, **kwargs):
        return self.model.get_match_scores(*args, **kwargs)

    def get_cell_tokens(self, *args, **kwargs):
        return self.model.get_cell_tokens(*args, **kwargs)

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

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
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScMMGPTCausalLMOutput:
        """What the LLM says to prompts whose `<cell>` placeholders take the cells in reading order, and the losses.

        `labels` are the answer's tokens, -100 everywhere else. Text -> cell takes one text per cell of the batch in
        `cell_prompt_ids` (an empty one stands for any cell), (G,) `target_gene_ids`, all or a random share of them,
        and the (B, G) raw counts that the text should lead to. `target_library_size` (B,) are total counts of each
        cell over the vocabulary; None: the sum of `target_counts`. `num_items_in_batch` are the answer tokens of all
        batches of an optimiser step, whose losses are to be added up: this one then counts by its share of them.
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
                return_dict=True,
                **kwargs,
            )
            logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
            output = ScMMGPTCausalLMOutput(
                logits=logits,
                past_key_values=outputs.past_key_values,
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            )
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

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, is_first_iteration=False, **kwargs):
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc] # its `self` is a protocol of loaded models
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration and inputs.get("input_ids") is not None and inputs.get("gene_ids") is None:
            self.model.refuse_unfilled_placeholders(inputs["input_ids"])
        if not is_first_iteration and kwargs.get("use_cache", True):  # the cells already stand in the cache
            for name in CELL_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeat each prompt's whole group of cells: cells of all prompts lie flat, one after the other."""
        cells = {name: model_kwargs.pop(name) for name in CELL_INPUTS if model_kwargs.get(name) is not None}
        if "cell_cu_seqlens" in cells:
            starts = cells.pop("cell_cu_seqlens")
            cells["gene_values"], _ = unpack_cells(cells["gene_values"], starts)
            cells["gene_ids"], cells["gene_mask"] = unpack_cells(cells["gene_ids"], starts)
        if cells and expand_size > 1:
            words = input_ids if input_ids is not None and input_ids.shape[1] else None
            is_cell = self.model.placeholder_mask(words, model_kwargs.get("inputs_embeds"))
            per_prompt = is_cell.sum(-1) // self.config.num_query_tokens
            groups = torch.arange(int(per_prompt.sum()), device=is_cell.device).split(per_prompt.tolist())
            order = torch.cat([group.repeat(expand_size) for group in groups])
            cells = {name: value[order] for name, value in cells.items()}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc] # as above
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **cells}

    @classmethod
    def from_parts(cls, config: ScMMGPTConfig, text: str, cell=None, qformer=None, **kwargs):
        """Join pretrained parts: a causal LM's directory or Hub name, a cell encoder, a Q-Former.

        The LLM is loaded by its own class, so that every causal LM of transformers will do, and quantisation touches
        nothing else.

        Parameters
        ----------
        config
            The joint configuration; its `text_config` gives way to the causal LM's.
        text
            Where the causal LM lies. Its tokenizer must know `<cell>`, see `resize_token_embeddings`.
        cell, qformer
            Modules whose weights are taken over; None leaves that part newly initialised.
        **kwargs
            To the LLM's `from_pretrained`: dtype, quantization_config, device_map, ...
        """
        llm = AutoModelForCausalLM.from_pretrained(text, **kwargs)
        head = llm.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise ValueError(
                f"{llm.config.model_type} has a bias in its `lm_head`, which is not supported: choose another language "
                "model."
            )
        config = copy.deepcopy(config)
        config.text_config = llm.config.get_text_config()
        config.tie_word_embeddings = bool(getattr(config.text_config, "tie_word_embeddings", False))
        model = cls(config, cast(PreTrainedModel, llm.base_model))  # which transformers calls a Module
        for name, part in [*model.model.named_children(), ("cell_decoder", model.cell_decoder)]:
            if name != "language_model":
                part.to(head.weight.device, llm.dtype)
        model.lm_head.weight = head.weight
        model.generation_config = llm.generation_config
        model._never_write_placeholders()
        for part, weights in ((model.model.cell_encoder, cell), (model.model.qformer, qformer)):
            if weights is not None:
                part.load_state_dict({k: v for k, v in weights.state_dict().items() if not k.startswith("pooler.")})
        model.eval()._compare_logits(llm)
        return model

    @torch.no_grad()
    def _compare_logits(self, llm: PreTrainedModel):
        """Refuse an LLM that does to its logits what a plain matrix does not, such as Gemma 2's soft cap."""
        words = [token for token in range(4) if token != self.config.cell_token_id]
        input_ids = torch.tensor([words], device=self.lm_head.weight.device)
        ours, theirs = self(input_ids=input_ids).logits, llm(input_ids=input_ids).logits
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2 * theirs.abs().max().item()):
            raise ValueError(
                f"{llm.config.model_type} applies a function to its logits after `lm_head` (such as a soft cap), which "
                "is not supported: choose another language model."
            )


__all__ = [
    "AUTO_MAP",
    "ScMMGPTCausalLMOutput",
    "ScMMGPTForConditionalGeneration",
    "ScMMGPTForPreTraining",
    "ScMMGPTGenerativeModel",
    "ScMMGPTModel",
    "ScMMGPTOutput",
    "ScMMGPTPreTrainedModel",
    "ScMMGPTPreTrainingOutput",
]
