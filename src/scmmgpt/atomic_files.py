"""Atomic file replacement: data is synced to disk before the rename."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


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
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    # Some file systems cannot sync a folder, and no other system than POSIX can.
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
