"""A disk of a few kilobytes, real enough to be full: a file system in memory that only this process sees."""

import ctypes
import os
from pathlib import Path

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x20000
_REMOUNT, _PRIVATE = 32, 0x44000  # the second: and everything below


def mount(folder: Path, num_bytes: int) -> None:
    """Put an empty disk of so many bytes over a folder; an OSError says that this is not allowed here."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_USER | _NEW_MOUNTS)
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(line)
    _call("mount", b"none", b"/", None, _PRIVATE, None)
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={num_bytes}".encode())


def enlarge(folder: Path, num_bytes: int) -> None:
    """Make room on that disk."""
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", _REMOUNT, f"size={num_bytes}".encode())


def _call(name: str, *arguments) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*(ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments)):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
