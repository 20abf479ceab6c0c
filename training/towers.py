"""Which tower a parameter belongs to, how each tower is trained (full, LoRA, frozen), and at which learning rate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict

from torch import nn
from transformers import PreTrainedModel

from scmmgpt.errors import require
from scmmgpt.training.settings import LoraSettings, TowerSettings
from scmmgpt.training.strict_yaml import RecipeError

# Where the towers' weights lie, in both stages. What is named nowhere are the heads: projections and loss heads.
PLACES = {
    "cell_encoder": ("model.cell_encoder",),
    "qformer": ("model.qformer",),
    "language_model": ("model.language_model", "lm_head"),
    "cell_decoder": ("cell_decoder",),
}
HEADS = ("cell_projection", "text_projection", "match_head", "cell_token_projector", "caption_head", "value_head")
# Bare names such as "q_proj" would reach into every tower: each pattern names its own. The last four are BERT's.
_OUR_LAYERS = r"(q_proj|k_proj|v_proj|out_proj|linear1|linear2|query|key|value|dense)"
LINEAR_HEADS = (".*cell_projection", ".*text_projection", ".*match_head", r".*cell_token_projector\.[02]")
LORA_TARGETS = {
    "cell_encoder": rf".*cell_encoder\..*\.{_OUR_LAYERS}",
    "qformer": rf".*qformer\..*\.{_OUR_LAYERS}",
    "language_model": r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj)",
    "heads": "|".join(LINEAR_HEADS),
}


def tower_of(name: str) -> str:
    """The tower that holds a parameter, whether or not PEFT has wrapped the model.

    Examples
    --------
    >>> tower_of("model.qformer.query_tokens"), tower_of("base_model.model.model.cell_projection.weight")
    ('qformer', 'heads')
    """
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    return next((tower for tower, places in PLACES.items() if name.startswith(places)), "heads")


def prepare_towers(
    model: PreTrainedModel, towers: TowerSettings, lora: LoraSettings, new_token_ids: Iterable[int] = ()
) -> nn.Module:
    """Freeze what is frozen; where a tower takes LoRA, the same model inside a `PeftModel`.

    Parameters
    ----------
    model
        Either stage's; changed in place.
    towers, lora
        Of the recipe.
    new_token_ids
        Rows of the LLM's embedding that its pretrained weights do not know: trained and saved with its adapters.
    """
    config = lora_config(model, towers, lora, new_token_ids)
    if config is not None:
        return require("peft").get_peft_model(model, config)
    freeze_towers(model, towers)
    return model


def freeze_towers(model: PreTrainedModel, towers: TowerSettings) -> None:
    """Only the towers that train in full keep gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(getattr(towers, tower_of(name)) == "full")


def lora_config(model: PreTrainedModel, towers: TowerSettings, lora: LoraSettings, new_token_ids: Iterable[int] = ()):
    """PEFT's configuration, None where no tower takes LoRA: adapters in linear layers, copies of what trains in full."""
    present = {tower_of(name) for name, _ in model.named_parameters()}
    by_way = {
        way: [tower for tower, chosen in asdict(towers).items() if chosen == way and tower in present]
        for way in ("full", "lora")
    }
    if not by_way["lora"]:
        return None
    for tower in by_way["lora"]:
        if tower not in LORA_TARGETS:
            raise RecipeError(f"`towers.{tower}` cannot take LoRA: choose `full` or `freeze`.")
    if "language_model" in by_way["full"]:
        raise RecipeError("`towers.language_model: full` does not go with LoRA elsewhere: choose `lora` or `freeze`.")
    rows = sorted(new_token_ids) if "language_model" in by_way["lora"] else []
    return require("peft").LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join(f"({_targets(model, tower)})" for tower in by_way["lora"]),
        modules_to_save=[name for tower in by_way["full"] for name in _whole_modules(model, tower)] or None,
        trainable_token_indices={"language_model.embed_tokens": rows} if rows else None,
    )


def _targets(model: PreTrainedModel, tower: str) -> str:
    """Adapters of stage 1 load onto models of stage 2, where a head that was not trained must not be looked for."""
    if tower != "heads":
        return LORA_TARGETS[tower]
    names = [name for name, _ in model.named_modules()]
    return "|".join(head for head in LINEAR_HEADS if any(re.fullmatch(head, name) for name in names))


def _whole_modules(model: PreTrainedModel, tower: str) -> list[str]:
    """Modules of a tower that PEFT keeps a trained copy of."""
    if tower == "heads":
        return [name for name in HEADS if any(path.endswith(name) for path, _ in model.named_modules())]
    if tower != "cell_encoder":
        return [tower]
    # The model asks the encoder for its class, so the encoder's parts are wrapped, not the encoder.
    encoder = model.get_submodule("model.cell_encoder")
    parts = ((name, part) for name, part in encoder.named_children() if any(True for _ in part.parameters()))
    return [
        f"cell_encoder.{name}{place}"
        for name, part in parts
        for place in ([f".{i}" for i in range(len(part))] if isinstance(part, nn.ModuleList) else [""])
    ]


def parameter_groups(
    model: nn.Module,
    decay_names: Iterable[str],
    learning_rates: dict[str, float],
    *,
    learning_rate: float,
    weight_decay: float,
) -> list[dict]:
    """Optimiser groups: one per tower's learning rate, with and without weight decay."""
    decay_names = set(decay_names)
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = learning_rates.get(tower_of(name), learning_rate)
            groups.setdefault((rate, weight_decay if name in decay_names else 0.0), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]
