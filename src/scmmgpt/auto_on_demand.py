"""Lets transformers find the package's classes without importing them: they are registered when somebody looks.

`import scmmgpt` imports neither torch nor transformers. The Auto classes and pipelines keep what others register in
dictionaries of four modules. Once such a module is loaded, its dictionary is replaced by one that imports
`scmmgpt.auto` or `scmmgpt.auto_pipelines` at the first look for something of ours. Functions of transformers stay as
they are.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

# Module -> the object that holds a dictionary, the dictionary's name, how the keys start that may be ours (the name of
# a task may be any), and who registers them. Models need no place: their key is a config's class, whose import does.
_CLASSES = ("_extra_content", "scmmgpt", "scmmgpt.auto")
_PLACES = {
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING", *_CLASSES),
    "transformers.models.auto.processing_auto": ("PROCESSOR_MAPPING", *_CLASSES),
    "transformers.models.auto.feature_extraction_auto": ("FEATURE_EXTRACTOR_MAPPING", *_CLASSES),
    "transformers.pipelines": ("PIPELINE_REGISTRY", "supported_tasks", "", "scmmgpt.auto_pipelines"),
}


class _WithOurs(dict):
    """A dictionary to which the package adds what it has when somebody looks for it."""

    def __init__(self, entries: dict, start: str, ours: str):
        super().__init__(entries)
        self.start, self.ours = start, ours

    def _is_here(self, key: Any) -> bool:
        """Whether there is such a key; a config's class is ours when its module is."""
        if not super().__contains__(key) and str(getattr(key, "__module__", key)).startswith(self.start):
            import_module(self.ours)
        return super().__contains__(key)

    def __contains__(self, key: Any) -> bool:
        return self._is_here(key)

    def __missing__(self, key: Any) -> Any:
        if self._is_here(key):
            return self[key]
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if self._is_here(key) else default

    def __iter__(self) -> Iterator:
        import_module(self.ours)
        return super().__iter__()

    def keys(self):
        import_module(self.ours)
        return super().keys()

    def values(self):
        import_module(self.ours)
        return super().values()

    def items(self):
        import_module(self.ours)
        return super().items()


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _offer(module)


class _Finder(MetaPathFinder):
    """Finds the modules of `_PLACES` as Python does, and makes the offer once they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _PLACES else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _offer(module: ModuleType) -> None:
    holder_name, name, *ours = _PLACES[module.__name__]
    holder = getattr(module, holder_name)
    setattr(holder, name, _WithOurs(getattr(holder, name), *ours))


def register_on_demand() -> None:
    """Make the classes known to transformers, whether it was imported before or will be later."""
    sys.meta_path.insert(0, _Finder())
    for name in _PLACES.keys() & sys.modules.keys():
        _offer(sys.modules[name])
