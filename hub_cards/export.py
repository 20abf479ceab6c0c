"""Write a model as one complete, flat Hub repository that works where this package was never installed.

    python -m scmmgpt.hub_cards.export --refresh-code [DIRECTORY]

brings the code of a model directory, the embedded one by default, up to date with the islands.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scmmgpt import modeling_scmmgpt, processing
from scmmgpt.atomic_files import whole_or_removed
from scmmgpt.errors import UserError
from scmmgpt.modeling_scmmgpt.auto_classes_scmmgpt import AUTO_MAP, custom_pipelines
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME as ONTOLOGY_FILE

from . import EMBEDDED_MODEL
from .repository_check import ENDPOINT_FILES
from .sentence_transformer_scmmgpt import MODULES

if TYPE_CHECKING:
    import torch

MAX_SHARD_SIZE = "4GB"
HERE = Path(__file__).parent
ISLANDS = (Path(modeling_scmmgpt.__file__).parent, Path(processing.__file__).parent)
# What an endpoint installs; the Auto classes need none of it.
REQUIREMENTS = "anndata>=0.12\nh5py\nnumpy\npydantic>=2\nscipy\n"
# Tables that any model may use and that training does not write.
TABLES = (ONTOLOGY_FILE,)
EXAMPLE_TEXT = "a B cell from blood"
# Counts as they might be measured in a B cell, among genes that every blood cell expresses.
EXAMPLE_CELL = {
    **{"MS4A1": 4, "CD79A": 6, "CD79B": 5, "CD74": 38, "HLA-DRA": 21, "CD37": 6, "BANK1": 2, "LTB": 4, "IGHM": 5},
    **{"RPL13": 42, "RPS27": 40, "RPL10": 44, "MALAT1": 90, "TMSB4X": 30, "B2M": 48, "ACTB": 11, "EEF1A1": 31},
    **{"RPL3": 22, "RPLP1": 36, "RPS12": 33, "FTL": 8, "FTH1": 9, "TPT1": 20, "GAPDH": 5, "H3F3B": 6, "UBA52": 7},
}


def export(
    model: Any,
    processor: Any,
    directory: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> Path:
    """Write weights, config, processor, tables, code, endpoint handler and card; return the directory.

    Parameters
    ----------
    model
        A `ScMMGPTModel`, `ScMMGPTForPreTraining` or `ScMMGPTForConditionalGeneration`. Not changed.
    processor
        Its `ScMMGPTProcessor`.
    directory
        Where to write. Files of the same name are replaced.
    dtype
        Store the weights in this type; they are still loaded in the model's own. None stores them as they are.
    max_shard_size
        Weights above it are split into several files.
    """
    directory = Path(directory)
    if getattr(model.config, "model_type", None) != "scmmgpt":
        raise UserError(f"Only scmmgpt models can be exported, got {type(model).__name__}.")
    words = getattr(processor.tokenizer, "backend_tokenizer", None)
    if words is not None:  # what the last call cut and padded is no property of the tokenizer
        words.no_truncation()
        words.no_padding()
    state = model.state_dict() if dtype is None else stored_as(model.state_dict(), dtype)
    with whole_or_removed(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for stale in (*directory.glob("*.safetensors"), *directory.glob("*.safetensors.index.json")):
            stale.unlink()
        model.save_pretrained(directory, state_dict=state, max_shard_size=max_shard_size)
        processor.save_pretrained(directory)
        for name in TABLES:
            if not (directory / name).exists():
                shutil.copyfile(EMBEDDED_MODEL / name, directory / name)
        refresh_code(directory)
        write_card(directory)
    return directory


def stored_as(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights in another type; tied ones stay one tensor, or both would be written."""
    stored: dict[int, torch.Tensor] = {}
    return {
        name: stored.setdefault(part.data_ptr(), part.to(dtype)) if part.is_floating_point() else part
        for name, part in state.items()
    }


def code_files() -> dict[str, Path]:
    """{name in a repository: its source} of all code that travels."""
    islands = {
        path.name: path for island in ISLANDS for path in sorted(island.glob("*.py")) if path.stem != "__init__"
    }
    return {**islands, **{name: HERE / name for name in ENDPOINT_FILES}}


def refresh_code(directory: Path) -> list[str]:
    """Bring code and the references to it up to date; return the names of the files that changed."""
    wanted = {name: source.read_bytes() for name, source in code_files().items()}
    wanted["requirements.txt"] = REQUIREMENTS.encode()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = dict(AUTO_MAP)
    config["custom_pipelines"] = custom_pipelines("ScMMGPTForConditionalGeneration" in config["architectures"])
    wanted["modules.json"] = (json.dumps(MODULES, indent=2) + "\n").encode()
    wanted["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    stale = [path for path in directory.glob("*.py") if path.name not in wanted]
    for path in stale:
        path.unlink()
    changed = [
        name
        for name, content in wanted.items()
        if not (directory / name).exists() or (directory / name).read_bytes() != content
    ]
    for name in changed:
        (directory / name).write_bytes(wanted[name])
    return sorted(changed + [path.name for path in stale])


def write_card(directory: Path) -> None:
    """Render README.md, with the results that were measured for this model and with answers that it really gives."""
    from .render import render_model_card

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    examples = widget_examples(directory) if config.get("training_summary") else []
    (directory / "README.md").write_text(render_model_card(directory, examples=examples), encoding="utf-8")


def widget_examples(directory: Path) -> list[dict[str, str]]:
    """What the model answers to a cell and to a text, for the page of the repository."""
    from .handler import EndpointHandler

    handler = EndpointHandler(str(directory), device="cpu")
    called = handler({"task": "annotate", "cells": [EXAMPLE_CELL], "min_confidence": 0})["calls"][0]
    examples = [{"text": f"Cell: {json.dumps(EXAMPLE_CELL)}", "output": called["cell_type"]}]
    if handler.is_generative:
        described = handler({"task": "describe", "cells": [EXAMPLE_CELL]})["descriptions"][0]
        examples.append({"text": f"Describe this cell. Cell: {json.dumps(EXAMPLE_CELL)}", "output": described})
        made = handler({"task": "generate", "text": EXAMPLE_TEXT, "num_cells": 8})["cells"]
        examples.append({"text": EXAMPLE_TEXT, "output": f"Highest genes: {', '.join(_highest_genes(made))}"})
    return examples


def _highest_genes(cells: dict[str, Any], num: int = 10) -> list[str]:
    totals = np.bincount(cells["indices"], weights=cells["data"], minlength=len(cells["genes"]))
    return [cells["genes"][column] for column in np.argsort(-totals, kind="stable")[:num]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=EMBEDDED_MODEL)
    parser.add_argument("--refresh-code", action="store_true", help="bring the code files up to date")
    parser.add_argument("--refresh-card", action="store_true", help="render README.md anew")
    arguments = parser.parse_args()
    if not (arguments.directory / "config.json").is_file():
        parser.error(f"{arguments.directory} is not a model directory: it has no config.json")
    if arguments.refresh_code:
        print(*refresh_code(arguments.directory) or ["nothing changed"], sep="\n")  # noqa: T201
    if arguments.refresh_card:
        write_card(arguments.directory)


if __name__ == "__main__":
    main()
