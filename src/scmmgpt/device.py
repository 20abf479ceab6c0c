"""Where the model runs and how many cells at a time: chosen, and halved when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from .errors import UserError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
_BATCH_SIZE = {"cuda": 512, "mps": 128, "cpu": 128}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, else the best one there is."""
    import torch

    if device is None or device == "auto":
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return torch.device(next((name for name, there in available.items() if there), "cpu"))
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(
            f"There is no kind of device {str(device)!r}: give cpu, cuda, cuda:N for the N-th GPU from 0 on, or mps."
        ) from error
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a smaller batch could have worked."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class Batches:
    """Runs a computation over rows in batches; a batch that does not fit is halved, and stays so."""

    def __init__(self, device: torch.device, batch_size: int | None = None):
        self.size = batch_size or _BATCH_SIZE.get(device.type, 128)

    def run(self, num_rows: int, compute: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
        """Yield (rows, result) in order, for all rows."""
        start = 0
        while start < num_rows:
            rows = slice(start, min(start + self.size, num_rows))
            try:
                result = compute(rows)
            except (MemoryError, RuntimeError) as error:
                if self.size == 1 or not is_out_of_memory(error):
                    raise
                self._halve()
                continue
            yield rows, result
            start = rows.stop

    def _halve(self) -> None:
        import torch

        self.size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"Out of memory: continuing with a batch size of {self.size}.", stacklevel=3)
