"""Memory that was freed between what is still in use goes back to the system."""

import ctypes
import sys

import pytest

from scmmgpt import freed_memory
from scmmgpt.freed_memory import give_back

PIECES, BYTES = 3_000, 60_000


def own_megabytes() -> float:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="the C library gives back by itself",
)
def test_what_lies_free_between_pieces_in_use_is_given_back():
    pieces = [b"x" * BYTES for _ in range(PIECES)]
    kept = pieces[::100]
    full = own_megabytes()
    pieces.clear()

    give_back()

    assert len(kept) == PIECES / 100
    assert full - own_megabytes() > 0.8 * PIECES * BYTES / 2**20


def test_a_system_that_cannot_be_asked_is_left_alone(monkeypatch):
    monkeypatch.setattr(freed_memory, "_trim", lambda: None)

    give_back()
