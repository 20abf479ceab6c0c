"""SHA-256 of what files hold, or of what the file system says of them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def hash_of_files(paths: Iterable[Path]) -> str:
    """One SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def stamp_of(path: Path) -> str:
    """Another one whenever a file, or one of those below a folder, was written: of their names, sizes and times."""
    digest = hashlib.sha256(os.fsencode(path.resolve()))
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        state = file.stat()
        if not stat.S_ISDIR(state.st_mode):
            digest.update(os.fsencode(file.relative_to(path)) + f" {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
