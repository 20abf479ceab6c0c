"""scmmgpt-chat on this machine: the embedded towers, a projector and adapters on a base LLM, joined once into a directory.

The repository holds what is ours; the base LLM's weights come from elsewhere (`base_llm.py`). What is assembled is a plain
`save_pretrained` directory in the user's cache, whole or absent, and named by the hashes of its parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic_files import is_no_room, remove, rename
from .base_llm import PATH_VARIABLE, BaseLLM, NoBaseLLMError
from .errors import UserError, first_line
from .hashes import hash_of_files
from .hub_cards import CHAT_MODEL, EMBEDDED_MODEL
from .storage import temporary_beside
from .text_cache import cache_folder

if TYPE_CHECKING:
    import torch

    from .loading import ModelSource

RECEIPT = "assembled.json"
SETTINGS_FILE = "chat.json"
ADAPTERS_FILE = "adapter_model.safetensors"
# "embedded" keeps `describe` and `chat` with the small decoder of the embedded model.
CHOICE_VARIABLE = "SCMMGPT_LANGUAGE_MODEL"
_ROOM_NEEDED = 1_000_000_000
_LORA_A, _LORA_B = ".lora_A.weight", ".lora_B.weight"
_said: set[str] = set()


@dataclass(frozen=True)
class ChatRepository:
    """A directory with adapters, a projector and what they belong to."""

    directory: Path

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.directory / SETTINGS_FILE).read_text(encoding="utf-8"))

    @property
    def base(self) -> BaseLLM:
        return BaseLLM(**self.settings["base"])

    def key(self, base: Path) -> str:
        """Of what it is assembled: adapters, settings, towers, and in which precision the base LLM comes."""
        ours = hash_of_files([self.directory / ADAPTERS_FILE, self.directory / SETTINGS_FILE])
        towers = hash_of_files([EMBEDDED_MODEL / "model.safetensors"])
        kind = "gguf" if base.suffix == ".gguf" else "safetensors"
        return hashlib.sha256(f"{ours} {towers} {kind}".encode()).hexdigest()[:16]


def is_chat_repository(directory: Path) -> bool:
    return (directory / SETTINGS_FILE).is_file() and (directory / ADAPTERS_FILE).is_file()


def assembled(directory: Path | None = None, base: str | os.PathLike | None = None, *, download: bool = True) -> Path:
    """The whole model as a directory, assembled if it is not there yet.

    Parameters
    ----------
    directory
        A repository with adapters; None: the package's own.
    base
        The base LLM: a directory or a GGUF file. None looks for it.
    download
        Fetch the base LLM from the Hub if it is not here.
    """
    directory = directory or CHAT_MODEL
    if not is_chat_repository(directory):
        raise UserError(f"{str(directory)!r} holds no adapters of a chat model: it has no {SETTINGS_FILE}.")
    repository = ChatRepository(directory)
    is_named = base is not None or os.environ.get(PATH_VARIABLE)
    if not is_named and (ready := _ready(repository)) is not None:
        return ready
    found = repository.base.find(base, download=download)
    place = folder() / f"{directory.name}-{repository.key(found)}"
    if not is_whole(place):
        _assemble(repository, found, place)
    return place


def folder() -> Path:
    """Where assembled models lie."""
    return cache_folder() / "models"


def _ready(repository: ChatRepository) -> Path | None:
    """A directory that was assembled of these adapters already, whichever copy of the base LLM it was made from."""
    places = (folder() / f"{repository.directory.name}-{repository.key(Path(name))}" for name in ("llm", "llm.gguf"))
    return next((place for place in places if is_whole(place)), None)


def is_whole(place: Path) -> bool:
    """Whether every file of the receipt is there in its size."""
    try:
        files = json.loads((place / RECEIPT).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((place / name).is_file() and (place / name).stat().st_size == size for name, size in files.items())


def _assemble(repository: ChatRepository, base: Path, place: Path) -> None:
    temporary = temporary_beside(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _check_room(place.parent)
        model, processor = joined(repository, base)
        _write(model, processor, temporary)
        if (card := repository.directory / "README.md").is_file():
            shutil.copyfile(card, temporary / card.name)
        files = {path.name: path.stat().st_size for path in temporary.iterdir() if path.is_file()}
        receipt = {"files": files, "base": str(base), "weights_sha256": hash_of_files(_weights(temporary))}
        (temporary / RECEIPT).write_text(json.dumps(receipt, indent=1), encoding="utf-8")
        for weights in _weights(temporary):  # safetensors lets nobody but the user read what it writes
            shutil.copymode(temporary / RECEIPT, weights)
        if not is_whole(place):  # another process may have been faster
            rename(temporary, place)
    except Exception as error:
        if is_whole(place):
            return
        if not (isinstance(error, OSError) or is_no_room(error)):
            raise
        raise UserError(
            f"scmmgpt-chat could not be assembled in {str(place.parent)!r} ({first_line(error)}); HF_HOME moves that folder."
        ) from error
    finally:
        remove(temporary)


def _check_room(place: Path) -> None:
    free = shutil.disk_usage(place).free
    if free < _ROOM_NEEDED:
        raise UserError(
            f"There is no room to assemble scmmgpt-chat in {str(place)!r}: {free / 1e6:.0f} MB are free, "
            f"{_ROOM_NEEDED / 1e6:.0f} MB are needed; HF_HOME moves that folder."
        )


def _weights(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _write(model: Any, processor: Any, place: Path) -> None:
    import torch

    from .hub_cards.export import refresh_code, stored_as

    place.mkdir()
    model.save_pretrained(place, state_dict=stored_as(model.state_dict(), torch.float16))
    processor.save_pretrained(place)
    refresh_code(place)


# ---- joining the parts


def joined(repository: ChatRepository, base: Path, *, with_adapters: bool = True) -> tuple[Any, Any]:
    """Model and processor: the towers, the projector, and the LLM with the adapters in its weights."""
    from safetensors.torch import load_file

    from .modeling_scmmgpt import ScMMGPTConfig, ScMMGPTModel
    from .processing import ScMMGPTProcessor
    from .training.conversion.parts import join_language_model

    settings = repository.settings
    llm, tokenizer = repository.base.load(base)
    tokenizer.padding_side = "left"  # as `generate` wants it
    mini = ScMMGPTProcessor.from_pretrained(EMBEDDED_MODEL)
    processor = ScMMGPTProcessor(
        mini.gene_tokenizer, tokenizer, qformer_tokenizer=mini.tokenizer, num_query_tokens=mini.num_query_tokens
    )
    processor.annotation_files = mini.annotation_files
    config = ScMMGPTConfig.from_pretrained(EMBEDDED_MODEL)
    config.projector_hidden_size = settings["projector_hidden_size"]
    config.projector_positions = settings["projector_positions"]
    config.cell_token_id = processor.cell_token_id
    config.training_summary = {**(config.training_summary or {}), "chat": settings["training"]}
    model = join_language_model(config, llm)
    _grow(model, len(tokenizer))
    towers = ScMMGPTModel.from_pretrained(EMBEDDED_MODEL)
    model.model.load_state_dict(towers.state_dict(), strict=False)
    if with_adapters:
        take_adapters(model, load_file(repository.directory / ADAPTERS_FILE), settings["lora"])
    for parameter in model.cell_decoder.parameters():  # never trained beside this LLM: nothing to keep
        parameter.data.zero_()
    return model.eval(), processor


def _grow(model: Any, size: int) -> None:
    """Room for `<cell>`, whose own vector is never read."""
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)
        model.get_input_embeddings().weight.data[-1].zero_()


def take_adapters(model: Any, weights: dict[str, torch.Tensor], lora: dict[str, Any]) -> None:
    """Put the projector in place and add what the adapters learnt to the LLM's matrices: W + alpha / rank * B A."""
    import torch

    scale, prefix = lora["alpha"] / lora["rank"], "base_model.model."
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            name = name.removeprefix(prefix)
            if name.endswith(_LORA_A):
                target = parameters[f"{name.removesuffix(_LORA_A)}.weight"]
                up = weights[f"{prefix}{name.removesuffix(_LORA_A)}{_LORA_B}"]
                target += scale * (up.float() @ weight.float())
            elif not name.endswith(_LORA_B):
                parameters[name].copy_(weight)


# ---- which model speaks


def language_source(model: ModelSource) -> ModelSource:
    """What `describe` and `chat` load where no model is named: scmmgpt-chat if it can be had, else the embedded one."""
    if model is not None or os.environ.get(CHOICE_VARIABLE) == "embedded" or not is_chat_repository(CHAT_MODEL):
        return model
    try:
        return assembled()
    except NoBaseLLMError as error:
        _say_once(f"The embedded model's small decoder speaks. {error}")
        return None


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, UserWarning, stacklevel=4)


def about() -> dict[str, Any]:
    """Where the chat model is, or would be, and what it needs: for `scmmgpt info`."""
    if not is_chat_repository(CHAT_MODEL):
        return {"chat_model": "not in this package"}
    repository = ChatRepository(CHAT_MODEL)
    ready = _ready(repository)
    base = repository.base
    return {
        "chat_model": str(ready) if ready else f"not assembled yet; it will lie in {folder()}",
        "chat_base_llm": f"{base.repository} at {base.revision[:8]}, or {base.package} {base.package_version}",
    }
