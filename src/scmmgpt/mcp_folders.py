"""The folders in which an agent may read and write, and how large a file of its may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError, first_line
from .storage import check_input, check_output

GIGABYTE = 1024**3
_MOST_ITEMS = 100_000  # groups and matrices of one file
_EXPANSION = 20  # what a text shrinks to this part of when it is compressed
_SHOWN = 120


@dataclass(frozen=True)
class Folders:
    """Allowed folders; a relative path starts in the first one."""

    roots: tuple[Path, ...]
    most_bytes: int

    @classmethod
    def of(cls, folders: Sequence[str | Path], most_gigabytes: float = 4) -> Folders:
        roots = []
        for folder in folders:
            if not Path(folder).is_dir():
                raise UserError(f"There is no folder {str(folder)!r} to allow.")
            roots.append(Path(folder).resolve())
        return cls(tuple(roots), int(most_gigabytes * GIGABYTE))

    def inside(self, name: str) -> Path:
        """The place that a name leads to, links followed, if it lies in an allowed folder."""
        try:
            path = (self.roots[0] / name).resolve()
            path.exists()  # finds names that are too long
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{_short(name)} is no path: {first_line(error)}.") from error
        if not any(path.is_relative_to(root) for root in self.roots):
            allowed = ", ".join(map(str, self.roots))
            raise UserError(f"{_short(name)} lies outside of the allowed folders ({allowed}).")
        return path

    def file_to_read(self, name: str) -> Path:
        """Cells inside, small enough, and made of nothing that lies elsewhere."""
        path = self.inside(name)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{_short(name)} is neither a file nor a folder.")
        check_input(path)
        if (size := sum(_sizes(path))) > self.most_bytes:
            raise self._too_large(name, size)
        if (size := _size_in_memory(path)) > _EXPANSION * self.most_bytes:
            raise self._too_large(name, size, " once unpacked", _EXPANSION)
        return path

    def _too_large(self, name: str, size: int, when: str = "", times: int = 1) -> UserError:
        most = times * self.most_bytes / GIGABYTE
        return UserError(f"{_short(name)} has {size / GIGABYTE:.1f} GB{when}; at most {most:.1f} GB are read here.")

    def file_to_write(self, name: str, suffixes: tuple[str, ...] = (".h5ad", ".zarr")) -> Path:
        """A new file inside."""
        path = check_output(self.inside(name), suffixes=suffixes)
        if any(folder.suffix == ".zarr" for folder in path.parents):
            raise UserError(f"{_short(name)} lies in a zarr file: choose another folder.")
        if path.exists():
            raise UserError(f"{_short(name)} exists; choose another name, nothing is replaced here.")
        return path

    def folder_to_write(self, name: str) -> Path:
        """A new or empty folder inside."""
        path = self.inside(name)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UserError(f"{_short(name)} exists; choose another name, nothing is replaced here.")
        return path


def _short(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def _sizes(path: Path) -> Iterator[int]:
    """Bytes on disk of a file, or of everything in a folder, which must hold no links."""
    for number, item in enumerate(path.rglob("*") if path.is_dir() else [path]):
        if item.is_symlink():
            raise UserError(f"{path.name!r} holds a link ({item.name!r}); only folders without links are read here.")
        if number > _MOST_ITEMS:
            raise UserError(f"{path.name!r} holds more than {_MOST_ITEMS} files.")
        yield item.stat().st_size * (_EXPANSION if item.suffix == ".gz" else 1)


def _size_in_memory(path: Path) -> int:
    """Bytes of all matrices of a store when they are unpacked; no part of it may lie in another file."""
    if path.is_dir() and path.suffix != ".zarr":
        return 0
    try:
        return sum(item.nbytes for item in (_zarr_arrays(path) if path.is_dir() else _hdf5_datasets(path)))
    except UserError:
        raise
    except Exception as error:  # h5py and zarr each have their own ways to say "not one of ours"
        raise UserError(f"{path.name!r} cannot be read as AnnData: {first_line(error)}") from error


def _zarr_arrays(path: Path) -> Iterator[Any]:
    import zarr

    for _, item in zarr.open_group(path, mode="r").members(max_depth=None):
        if isinstance(item, zarr.Array):
            yield item


def _hdf5_datasets(path: Path) -> Iterator[Any]:
    import h5py

    with h5py.File(path) as file:
        seen, groups = set(), [file]
        while groups:
            group = groups.pop()
            for name in group:
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.SoftLink):
                    continue  # leads to what is met by its own name, or nowhere
                item = None if isinstance(link, h5py.ExternalLink) else group[name]
                if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
                    raise UserError(f"{path.name!r} takes {_item_name(group, name)!r} from another file.")
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    continue
                seen.add(address)
                if len(seen) > _MOST_ITEMS:
                    raise UserError(f"{path.name!r} holds more than {_MOST_ITEMS} matrices.")
                if isinstance(item, h5py.Group):
                    groups.append(item)
                elif isinstance(item, h5py.Dataset):
                    yield item


def _item_name(group: Any, name: str) -> str:
    """The full name of something in a store, cut to a length that can be shown."""
    return f"{group.name.rstrip('/')}/{name}"[:_SHOWN]
