"""Arrays in .npy files that are mapped into memory: whole or refused, and with their room taken beforehand."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .atomic_files import is_no_room


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """An array of zeros to write to. A full disk is an OSError now; later it would end the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))
            except OSError as error:  # not every file system can
                if is_no_room(error):
                    raise
    return array


def open_array(path: Path, mode: Literal["r", "r+"] = "r") -> np.memmap:
    """The array in a file; a ValueError says what is damaged.

    numpy itself fills up what was cut off with zeros, if the map may be written to.
    """
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path.name} is of another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        missing = file.tell() + math.prod(shape) * dtype.itemsize - os.fstat(file.fileno()).st_size
    if missing > 0 or dtype.hasobject:
        raise ValueError(f"{path.name} is cut short" if missing > 0 else f"{path.name} holds objects")
    return np.lib.format.open_memmap(path, mode=mode)
