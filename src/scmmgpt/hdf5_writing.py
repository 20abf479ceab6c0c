"""HDF5 files to write to, on disks that may be full.

Where a write fails, HDF5 cannot close what it has open: it prints a traceback for each object, and crashes the process
when the next file is written. Here it is told that all is well, and the first failure is raised when it has closed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import h5py


@contextmanager
def hdf5_to_write(path: Path, mode: Literal["w", "r+"] = "w") -> Iterator[h5py.File]:
    """An open file; an OSError of the disk comes at the end of the block, in place of what followed from it."""
    import h5py

    with path.open("w+b" if mode == "w" else "r+b", buffering=0) as disk, _PatientFile(disk) as file:
        try:
            with h5py.File(file, mode) as store:
                yield store
        except Exception:
            if file.failure is not None:
                raise file.failure from None
            raise
        if file.failure is not None:
            raise file.failure


class _PatientFile(io.RawIOBase):
    """A file that keeps its first failure to itself; afterwards nothing is written any more."""

    def __init__(self, disk: Any):
        self._disk = disk
        self.failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._disk.seek(offset, whence)

    def tell(self) -> int:
        return self._disk.tell()

    def readinto(self, buffer: Any) -> int | None:
        """What was not written is read as zeros."""
        number = self._disk.readinto(buffer)
        if self.failure is not None and number < len(buffer):
            memoryview(buffer).cast("B")[number:] = bytes(len(buffer) - number)
            return len(buffer)
        return number

    def write(self, content: Any) -> int:
        whole, done = memoryview(content).cast("B"), 0
        while done < len(whole) and self.failure is None:
            done += self._try(self._disk.write, whole[done:]) or 0
        return len(whole)

    def truncate(self, size: int | None = None) -> int:
        self._try(self._disk.truncate, size)
        return self._disk.tell() if size is None else size

    def flush(self) -> None:
        self._try(self._disk.flush)

    def _try(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return work(*arguments) if self.failure is None else None
        except OSError as error:
            self.failure = error
            return None
