"""Arrays in .npy files that are mapped into memory: whole or refused, and with their room taken beforehand."""

from __future__ import annotations

import math
import mmap
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .atomic_files import is_no_room
from .freed_memory import give_back

# How many bytes of files a process may hold in memory before arrays that were read or written once are let go.
_MOST_MAPPED, _SECONDS_BETWEEN = 320 << 20, 0.05
_SECONDS_BETWEEN_TRIMS = 2.0
_PAGES = Path("/proc/self/statm")
_passing: list[weakref.ref[np.memmap]] = []
_guard = threading.Lock()


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


def scattered_rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows; of an array in a file they are asked for all at once."""
    with _without_what_lies_between(array) as mapped:
        if mapped is not None and isinstance(array, np.memmap):
            begin, size = array.offset % mmap.ALLOCATIONGRANULARITY, array.strides[0]
            for start in (begin + rows.astype(np.int64) * size).tolist():
                page = start - start % mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, page, start + size - page)
        return array[rows]


def set_scattered_rows(array: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    """Write some rows. What a page holds beside them may have to be read again, where memory is short."""
    with _without_what_lies_between(array):
        array[rows] = values


@contextmanager
def _without_what_lies_between(array: np.ndarray) -> Iterator[mmap.mmap | None]:
    """The map of an array in a file, of which only those pages are read that are asked for.

    Else the system would read fifty times as much, in the belief that the next rows are wanted too.
    """
    mapped = array.base
    if not (isinstance(array, np.memmap) and isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_RANDOM")):
        yield None
        return
    mapped.madvise(mmap.MADV_RANDOM)
    try:
        yield mapped
    finally:
        mapped.madvise(mmap.MADV_NORMAL)


def read_in_passing(array: np.memmap) -> np.memmap:
    """The same array, whose pages stay in memory only while these are few: it is larger than any that is kept.

    The system would drop them too, but not before memory is short; and it counts them as this process's until then.
    """
    if hasattr(mmap, "MADV_DONTNEED") and _PAGES.exists():
        with _guard:
            is_watched = bool(_passing)
            _passing.append(weakref.ref(array))
        if not is_watched:
            threading.Thread(target=_let_go_while_any, name="let-go", daemon=True).start()
    return array


def _let_go_while_any() -> None:
    page, trimmed = os.sysconf("SC_PAGE_SIZE"), time.monotonic()
    while True:
        with _guard:
            _passing[:] = [one for one in _passing if one() is not None]
            if not _passing:
                return
            arrays = [array for one in _passing if (array := one()) is not None]
        if int(_PAGES.read_text().split()[2]) * page > _MOST_MAPPED:
            for array in arrays:
                array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        array = None
        arrays.clear()
        if time.monotonic() - trimmed > _SECONDS_BETWEEN_TRIMS:
            give_back()
            trimmed = time.monotonic()
        time.sleep(_SECONDS_BETWEEN)
