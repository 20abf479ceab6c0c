"""Atomic file replacement: data is synced to disk before the rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError, first_line

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_no_room(error: BaseException | None) -> bool:
    """Whether an error says, or came of one that says, that there is no room on the disk."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return True
    # Libraries written in other languages put the words into errors of their own.
    return os.strerror(errno.ENOSPC) in str(error) or is_no_room(error.__cause__ or error.__context__)


@contextmanager
def room_on_disk(path: Path) -> Iterator[None]:
    """Say that there is no room for what is written to `path` in the block, and what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_no_room(error):
            raise
        message = f"{path} could not be written: no space is left on that disk ({first_line(error)}); make room and run it again."
        raise UserError(message) from error


@contextmanager
def whole_or_removed(folder: Path) -> Iterator[None]:
    """Remove a folder that was not there before when the block, which fills it, fails; say it where there is no room."""
    existed = folder.exists()
    try:
        with room_on_disk(folder):
            yield
    except BaseException:
        if not existed:
            remove(folder)
        raise


def rename(temporary: Path, path: Path) -> None:
    """Let a finished file or folder take its name; whoever looks finds the old one or the new one, whole.

    A folder cannot be replaced in one step: the old one steps aside first, so that its name is never half of it.
    """
    for file in [temporary] if temporary.is_file() else temporary.rglob("*"):
        _sync(file)
    if path.is_dir():
        aside = path.with_name(f".{path.name}.replaced")
        remove(aside)
        path.rename(aside)
        temporary.rename(path)
        remove(aside)
    else:
        temporary.replace(path)
    _sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_try_again)
    else:
        path.unlink(missing_ok=True)


def _try_again(function: Any, name: str, _: Any) -> None:
    """What lies in a folder that nobody may write to can be removed by its owner all the same."""
    with suppress(OSError):
        Path(name).parent.chmod(0o700)
        function(name)


def make_writable(folder: Path) -> None:
    """Let the owner write to a folder and those below, which `copytree` gives the rights of those that it read."""
    for one in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        one.chmod(one.stat().st_mode | 0o700)


def _sync(path: Path) -> None:
    # Some file systems cannot sync a folder, and no other system than POSIX can.
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
