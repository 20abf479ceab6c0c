"""Models for the verbs: the embedded one, a directory, or a repository of the Hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .device import choose_device
from .errors import UserError, first_line
from .hashes import hash_of_files
from .hub_cards import CHAT_MODEL, EMBEDDED_MODEL
from .on_first_use import imports
from .processing.calling_scmmgpt import ONTOLOGY_FILE, CellAnnotator, annotation_files
from .processing.encoding_scmmgpt import check_vocabularies, embed_texts
from .processing.ontology_scmmgpt import Ontology

if TYPE_CHECKING:
    import numpy as np
    import torch

_REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its processor, on its device, and what its directory says about it."""

    name: str
    directory: Path
    model: Any
    processor: Any
    device: torch.device

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def training_summary(self) -> dict | None:
        """What the model was trained on; None when it is untrained."""
        return getattr(self.config, "training_summary", None) or None

    @property
    def reads_contexts(self) -> bool:
        """Whether its language model was trained with what is known of a cell in the prompt."""
        return bool((self.training_summary or {}).get("chat"))

    @cached_property
    def annotator(self) -> CellAnnotator:
        """How its scores become names; a directory without an ontology uses the embedded model's."""
        files = annotation_files(EMBEDDED_MODEL)
        own = {ONTOLOGY_FILE: files[ONTOLOGY_FILE], **annotation_files(self.directory)}
        return CellAnnotator.of_files(own, self.training_summary)

    @property
    def ontology(self) -> Ontology:
        return self.annotator.ontology

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """One unit vector per text, (N, D)."""
        return embed_texts(self.model, self.processor, texts)

    @cached_property
    def weights_hash(self) -> str:
        return hash_of_files(sorted(self.directory.glob("*.safetensors")))

    def describe(self) -> dict[str, Any]:
        """What a result records about the model that made it."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_hash,
            "trained": self.training_summary is not None,
            "ontology": self.ontology.version,
        }


# What every verb takes as `model=`.
ModelSource: TypeAlias = str | os.PathLike | LoadedModel | None


def load(
    model: ModelSource = None,
    *,
    device: str | torch.device | None = None,
    generative: bool = False,
) -> LoadedModel:
    """Load a model once, to pass as `model=` to the other functions.

    Parameters
    ----------
    model
        A directory, a Hub repository ("org/name"), or None for the model that comes with the package.
    device
        "cpu", "cuda", "cuda:1", ...; None takes the best there is.
    generative
        Load the language model and the cell decoder too.
    """
    if isinstance(model, LoadedModel):
        return _with_generation(model) if generative else model
    from . import modeling_scmmgpt, processing

    directory = find_model(model)
    chosen = choose_device(device)
    model_class = modeling_scmmgpt.ScMMGPTForConditionalGeneration if generative else modeling_scmmgpt.ScMMGPTModel
    if directory != EMBEDDED_MODEL:
        imports.real("torch._meta_registrations")  # layers of others may be begun in ways that ours are not
    with damage_refused(directory), _no_bar_of_weights(directory):
        network = model_class.from_pretrained(directory)
        processor = processing.ScMMGPTProcessor.from_pretrained(directory)
        check_vocabularies(network, processor)
    name = EMBEDDED_MODEL.name if directory == EMBEDDED_MODEL else str(model)
    network = network.eval().to(chosen)
    if not generative and chosen.type == "cpu":
        from .bf16 import has_units
        from .packed_linears import pack_linears, pays

        if pays() or has_units():
            pack_linears(network)
    return LoadedModel(name, directory, network, processor, chosen)


@contextmanager
def damage_refused(directory: Path) -> Iterator[None]:
    """Whatever cannot be read from a model directory, as a reason that names the directory."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        message = f"The model directory {str(directory)!r} is incomplete or damaged: {first_line(error)}"
        raise UserError(message) from error


@contextmanager
def _no_bar_of_weights(directory: Path) -> Iterator[None]:
    """Hide transformers' bar for the embedded model, which is loaded before a bar could be read."""
    if directory != EMBEDDED_MODEL:
        yield
        return
    from transformers.utils.logging import set_tqdm_hook

    before = set_tqdm_hook(lambda make, given, options: make(*given, **options | {"disable": True}))
    try:
        yield
    finally:
        set_tqdm_hook(before)


def _with_generation(loaded: LoadedModel) -> LoadedModel:
    if hasattr(loaded.model, "generate_cells"):
        return loaded
    return load(loaded.directory, device=loaded.device, generative=True)


def find_model(model: str | os.PathLike | None = None) -> Path:
    """The local directory of a model, downloaded when it is a Hub repository."""
    if model is None:
        return _checked(EMBEDDED_MODEL)
    path = Path(model)
    if path.exists() or path.name == model == CHAT_MODEL.name:
        return _checked(path if path.exists() else CHAT_MODEL)
    if isinstance(model, str) and _REPOSITORY.match(model):
        return _checked(_download(model))
    raise UserError(f"There is no model directory {str(model)!r}, and it is not a repository name (org/name).")


def _checked(directory: Path) -> Path:
    from .chat_model import assembled, is_chat_repository

    if is_chat_repository(directory):
        return assembled(directory)
    config = directory / "config.json"
    if not config.is_file() and (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{str(directory)!r} holds adapters, not a whole model. Train with `lora: {{merge: true}}`, which writes "
            "one, or write it from these: `PeftModel.from_pretrained(base, ...).merge_and_unload().save_pretrained(...)`."
        )
    if not config.is_file():
        raise UserError(f"{str(directory)!r} is not a model directory: it has no config.json.")
    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{str(config)!r} is not valid JSON: {first_line(error)}") from error
    if model_type != "scmmgpt":
        raise UserError(f"{str(directory)!r} holds a model of type {model_type!r}; expected 'scmmgpt'.")
    return directory


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(repository))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"There is no directory {repository!r}, and it could not be fetched from the Hub: {first_line(error)}"
        ) from error
