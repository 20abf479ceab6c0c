"""A progress bar, and files from which an interrupted run resumes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from . import atomic_files
from .errors import UserError, first_line
from .mapped_arrays import new_array, open_array, read_in_passing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".unfinished"
# Who is told (what, done, total) instead of a terminal, and may raise to stop the work.
listener: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def progress_bar(what: str, total: int, *, shown: bool = True, done: int = 0) -> Iterator[Any]:
    """A function `advance(n)` that moves a bar; nothing is shown where stderr is no terminal."""
    if listener.get() is not None:
        yield _telling(what, total, done)
        return
    if not (shown and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def _telling(what: str, total: int, done: int) -> Callable[[int], None]:
    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell(what, done, total)

    tell(what, done, total)
    return advance


def tell(what: str, done: int, total: int) -> None:
    """Tell the listener, if there is one."""
    if (told := listener.get()) is not None:
        told(what, done, total)


def _running_threads() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate()}


class Workspace:
    """Half-finished arrays of one run.

    With an output they lie in a hidden folder beside it, so that the same call picks them up after an interruption.
    A run with another fingerprint (other settings, input or model) starts afresh. While one process is at work on an
    output another one is refused; the system lets go of what a killed process held.
    """

    _held: ClassVar[dict[Path, tuple[int, int]]] = {}  # handle and thread of folders that this process works on

    def __init__(self, output: Path | None, fingerprint: str = ""):
        self._folder = output.with_name(f".{output.name}{_UNFINISHED}") if output else None
        self._fingerprint = fingerprint
        self._done: dict[str, int] = {}
        self._arrays: list[np.memmap] = []
        self.notes: dict[str, Any] = {}  # what else an interrupted run has to remember, in words and numbers
        if self._folder is not None:
            self._adopt_or_start(self._folder)

    def _adopt_or_start(self, folder: Path) -> None:
        self._hold(folder)
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            is_ours, done, notes = state["run"] == self._fingerprint, dict(state["done"]), dict(state["notes"])
        except (OSError, ValueError, KeyError, TypeError):
            is_ours = False
        if is_ours:
            self._done, self.notes = done, notes
            return
        for left in folder.iterdir():
            atomic_files.remove(left)

    def _hold(self, folder: Path) -> None:
        with atomic_files.room_on_disk(folder):
            folder.mkdir(exist_ok=True)
        held = self._held.get(folder)
        if held is not None and held[1] not in _running_threads() - {threading.get_ident()}:
            self._held[folder] = held[0], threading.get_ident()  # an interruption left it, as a notebook does
            return
        if fcntl is None:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            name = folder.name.removeprefix(".").removesuffix(_UNFINISHED)
            raise UserError(
                f"Another process or thread is writing {str(folder.with_name(name))!r}: wait for it, or choose another name."
            ) from error
        except OSError:  # a file system without locks
            os.close(handle)
            return
        self._held[folder] = handle, threading.get_ident()
        if not folder.exists():  # whoever held it has just finished, and took the folder away
            self.release()
            self._hold(folder)

    def release(self) -> None:
        """Let another process take up what is unfinished."""
        if self._folder is not None and (held := self._held.pop(self._folder, None)) is not None:
            os.close(held[0])

    @property
    def is_resumed(self) -> bool:
        return any(self._done.values())

    def done(self, name: str) -> int:
        """How many rows of an array were finished by this run or the one before."""
        return self._done.get(name, 0)

    def array(self, name: str, shape: tuple[int, ...], dtype: Any, kept: bool = False) -> np.ndarray:
        """An array to fill, on disk when the run can be resumed; `kept` goes on with the one that is there."""
        if self._folder is None:
            return np.zeros(shape, dtype)
        path = self._folder / f"{name}.npy"
        with atomic_files.room_on_disk(path), self._damage_said():
            array = open_array(path, "r+") if kept else new_array(path, shape, dtype)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{path.name} holds {array.dtype} of shape {array.shape}")
        self._arrays.append(array)
        return read_in_passing(array)

    @contextmanager
    def _damage_said(self) -> Iterator[None]:
        """What was finished before an interruption may have been damaged since: say what to do."""
        try:
            yield
        except (FileNotFoundError, ValueError, EOFError) as error:
            raise UserError(
                f"What an interrupted run left in {str(self._folder)!r} is damaged ({first_line(error)}): remove that "
                "folder and run it again."
            ) from error

    def reopen(self, prefix: str) -> dict[str, np.ndarray]:
        """The finished arrays whose names begin with `prefix-`, by the rest of their names."""
        if self._folder is None:
            return {}
        files = self._folder.glob(f"{prefix}-*.npy")
        with self._damage_said():
            return {path.stem.removeprefix(f"{prefix}-"): read_in_passing(open_array(path)) for path in files}

    def lines(self, name: str) -> list[Any]:
        """The values that were appended so far; a line that was cut off by the interruption is dropped."""
        if self._folder is None or not (self._folder / f"{name}.jsonl").exists():
            return []
        path = self._folder / f"{name}.jsonl"
        with self._damage_said():
            kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[: self.done(name)]
            values = [json.loads(line) for line in kept]
            if len(kept) < self.done(name):
                raise ValueError(f"{path.name} has {len(kept)} of {self.done(name)} lines")
        self._write(path, "".join(kept))
        return values

    def append(self, name: str, values: list[Any]) -> None:
        """Keep values that do not fit an array, such as texts."""
        if self._folder is None:
            return
        path = self._folder / f"{name}.jsonl"
        with atomic_files.room_on_disk(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(value) + "\n" for value in values)
        self.finish(name, self.done(name) + len(values))

    def finish(self, name: str, num_rows: int) -> None:
        """Remember that the first `num_rows` rows are final."""
        self._done[name] = num_rows
        if self._folder is None:
            return
        for array in self._arrays:
            array.flush()
        state = {"run": self._fingerprint, "done": self._done, "notes": self.notes}
        self._write(self._folder / "state.json", json.dumps(state))

    @staticmethod
    def _write(path: Path, text: str) -> None:
        temporary = path.with_name(f"{path.name}.new")
        with atomic_files.room_on_disk(path):
            temporary.write_text(text, encoding="utf-8")
            atomic_files.rename(temporary, path)

    def remove(self) -> None:
        """Remove the folder, once the result is written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self.release()

    def remove_if_unused(self) -> None:
        """Leave nothing behind when no row was finished."""
        if not self.is_resumed:
            self.remove()
