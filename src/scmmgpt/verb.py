"""What every verb does around its own work: check first, record what was decided, write at the end."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .atomic_files import remove
from .bf16 import NOTE
from .cells import CellsInFile, CellsInMemory, open_cells
from .device import Batches
from .embedding import CellRun
from .errors import UserError
from .hashes import stamp_of
from .input_warnings import input_warnings, organism_warnings
from .loading import LoadedModel, ModelSource, load
from .progress import Workspace
from .ray_engine import RayEngine, import_ray
from .spatialdata_tables import table_of
from .storage import Additions, check_output, check_tables, read_cells, read_summary, save_cells, write_with_additions

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

UNTRAINED = "This model is untrained: its results mean nothing and only show that everything runs."


@dataclass(frozen=True)
class Destination:
    """Where results go; see `arguments.SHARED_ARGUMENTS`."""

    output: str | os.PathLike | None = None
    key_added: str = "scmmgpt"
    overwrite: bool = False
    inplace: bool = False
    summary_only: bool = False

    def __post_init__(self):
        check_key_added(self.key_added)


def check_key_added(key: str) -> None:
    """Refuse a name that files of cells cannot hold, or would take for a path."""
    if not key.strip() or "/" in key:
        raise UserError(f'key_added must be a name that is not empty and holds no "/", got {key!r}.')


@dataclass(frozen=True)
class Execution:
    """How a verb computes; see `arguments.SHARED_ARGUMENTS`."""

    device: str | torch.device | None = None
    batch_size: int | None = None
    progress: bool = True
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = None

    def __post_init__(self):
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}.")


@dataclass
class Verb:
    """One verb at work on some cells."""

    name: str
    cells: CellsInMemory | CellsInFile
    loaded: LoadedModel
    execution: Execution
    destination: Destination
    output: Path | None
    batches: Batches
    warnings: list[str] = field(default_factory=list)
    workspace: Workspace | None = None
    given: Any = None
    engine: RayEngine | None = None

    @classmethod
    def begin(
        cls,
        name: str,
        data: Any,
        model: ModelSource,
        execution: Execution,
        destination: Destination | None = None,
        *,
        keys: Additions | None = None,
        generative: bool = False,
    ) -> Verb:
        """Refuse what cannot work, then load the model. Of `keys`, what the verb will add, only the names count."""
        destination = destination or Destination()
        data = table_of(data)
        cells = open_cells(data)
        if cells.num_cells == 0:
            raise UserError("There are no cells.")
        engine = _engine(execution, cells)
        source = cells.path.resolve() if cells.path is not None else None
        output = check_output(destination.output, source) if destination.output is not None else None
        if output is not None and isinstance(cells, CellsInMemory):
            check_tables(cells.adata)
        if keys is not None:
            keys.refuse_existing(cells.present, destination.overwrite)
        loaded = load(model, device=execution.device, generative=generative)
        batches = Batches(loaded.device, execution.batch_size)
        verb = cls(name, cells, loaded, execution, destination, output, batches, given=data, engine=engine)
        if loaded.training_summary is None:
            verb.warn(UNTRAINED)
        return verb

    def warn(self, message: str) -> None:
        """Warn the person now, and keep the warning with the result."""
        self.warnings.append(message)
        warnings.warn(message, UserWarning, stacklevel=5)  # of whoever called the verb

    def start_run(self, **settings: Any) -> CellRun:
        """A run over all cells that can be resumed when it has an output; `settings` tell one run from another."""
        fingerprint = {
            "verb": self.name,
            "weights": self.loaded.weights_hash,
            "cells": self.cells.num_cells,
            **settings,
        }
        if self.cells.path is not None:
            fingerprint["input"] = stamp_of(self.cells.path)
        resumable = self.output if self.cells.path is not None else None
        digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True, default=str).encode()).hexdigest()
        self.workspace = Workspace(resumable, digest)
        return CellRun(
            self.loaded, self.cells, self.batches, self.workspace, self.execution.progress, engine=self.engine
        )

    def record(self, gene_account: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """What `uns` keeps: the genes that were read, and settings, model, versions and warnings of this verb."""
        for warning in [*input_warnings(gene_account), *organism_warnings(self.cells.obs)]:
            self.warn(warning)
        details = {
            "settings": settings,
            "model": self.loaded.describe(),
            "versions": versions(),
            "notes": self.warnings,
            NOTE: self.workspace.notes.get(NOTE) if self.workspace is not None else None,
        }
        return storable({"genes": gene_account, self.name: details})

    def finish(self, additions: Additions) -> AnnData:
        """Write the result where it belongs and give it back as AnnData."""
        if self.output is not None and isinstance(self.given, str | os.PathLike):
            write_with_additions(Path(self.given), self.output, additions)
            try:
                is_short = self.destination.summary_only
                result = read_summary(self.output) if is_short else read_cells(self.output, backed=True)
            except UserError as error:  # parts of the input that the verb did not read are damaged
                remove(self.output)
                raise UserError(f"A copy of {str(self.given)!r} cannot be read back: {error}") from error
        else:
            result = self._own_anndata()
            additions.write_into(result)
            if self.output is not None:
                save_cells(result, self.output)
        if self.workspace is not None:
            self.workspace.remove()
        return result

    def _own_anndata(self) -> AnnData:
        if isinstance(self.given, str | os.PathLike):
            return read_cells(Path(self.given))
        given = self.cells.adata if isinstance(self.cells, CellsInMemory) else self.given
        if self.destination.inplace:
            if given.is_view:
                raise UserError("A view cannot be changed in place; call `.copy()` on it first.")
            return given
        return given.to_memory() if given.isbacked else given.copy()


def _engine(execution: Execution, cells: CellsInMemory | CellsInFile) -> RayEngine | None:
    """The Ray engine, if one is asked for; None computes in this process."""
    if execution.engine not in ("local", "ray"):
        raise UserError(f"The engine must be 'local' or 'ray', got {execution.engine!r}.")
    if execution.engine == "local":
        if execution.address is not None or execution.workers is not None:
            raise UserError("address and workers need engine='ray' (--engine ray).")
        return None
    if cells.path is None:
        raise UserError("engine='ray' needs the path of a file that all workers can read, not an AnnData.")
    import_ray(execution.address)
    return RayEngine(execution.address, execution.workers, execution.device)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("scmmgpt", "torch", "transformers", "anndata", "numpy", "scipy")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def storable(value: Any) -> Any:
    """The same content in the types that h5ad and zarr can hold."""
    if isinstance(value, Mapping):
        return {str(name).replace("/", "|"): storable(item) for name, item in value.items() if item is not None}
    if isinstance(value, str | bool | int | float | np.ndarray | np.generic):
        return value
    if isinstance(value, Sequence) and all(isinstance(item, bool | int | float) for item in value) and value:
        return np.asarray(value)
    if isinstance(value, Sequence):
        return np.array([str(item) for item in value], dtype=object) if value else ""
    return str(value)
