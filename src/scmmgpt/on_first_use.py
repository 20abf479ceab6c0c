"""Imports that wait until what they bring is used, as `lazy import` does in Python 3.15, for modules of others.

A module that waits is in `sys.modules` as a stand-in. What others import from it stands for the real thing until it is
called, subclassed, subscripted or asked for an attribute: then the real module takes the stand-in's place.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from threading import RLock
from types import ModuleType
from typing import Any

# Marks on functions for a compiler: as long as it waits, they leave functions as they are.
MARKS = {"torch._dynamo": ("allow_in_graph", "assume_constant_result", "disable", "disallow_in_graph")}


class Awaited:
    """A name of a module that waits."""

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name

    def _real(self) -> Any:
        home = imports.home_of(self._module, self._name)
        return home if home is not None else getattr(imports.real(self._module), self._name)

    def __call__(self, *given: Any, **options: Any) -> Any:
        if self._name in MARKS.get(self._module, ()) and imports.waits(self._module):
            return given[0] if given and callable(given[0]) else lambda function: function
        return self._real()(*given, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __mro_entries__(self, bases: tuple) -> tuple:
        return (self._real(),)

    def __instancecheck__(self, instance: Any) -> bool:
        home = imports.home_of(self._module, self._name)
        if home is None and imports.waits(self._module):
            return False  # of a class that nobody has there are no instances
        return isinstance(instance, home or self._real())

    def __getitem__(self, key: Any) -> Any:
        return self._real()[key]

    def __contains__(self, key: Any) -> bool:
        return key in self._real()

    def __iter__(self) -> Iterator:
        return iter(self._real())

    def __or__(self, other: Any) -> Any:  # in annotations
        return self

    __ror__ = __or__


class StandIn(ModuleType):
    """A module that waits; of a package that only skips its own code, submodules are imported as ever."""

    __version__: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (home := imports.home_of(self.__name__, name)) is not None:
            return home
        is_mark = name in MARKS.get(self.__name__, ()) and imports.waits(self.__name__)
        if not (imports.is_starting or is_mark):  # who asks now is about to use it
            return getattr(imports.real(self.__name__), name)
        return imports.awaited.setdefault((self.__name__, name), Awaited(self.__name__, name))


class Imports(MetaPathFinder, Loader):
    """Finds the modules that wait.

    `waiting` are packages that wait with all that is in them; `together` are those of them that one package imports at
    its own start, which become real in this order before any other part of it does. `hollow`, {package: {name: the
    module that has it}}, are packages of which only the code of the package itself waits.
    """

    def __init__(self) -> None:
        self.is_starting = False
        self.waiting: set[str] = set()
        self.together: list[str] = []
        self.hollow: dict[str, Mapping[str, str]] = {}
        self.awaited: dict[tuple[str, str], Awaited] = {}
        self._lock = RLock()

    def waits(self, module: str) -> bool:
        """Whether the real module was not imported yet."""
        return module in self.hollow or self._package(module) is not None

    def _package(self, module: str) -> str | None:
        parts = module.split(".")
        return next((name for end in range(len(parts)) if (name := ".".join(parts[: end + 1])) in self.waiting), None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self.waits(fullname):
            return None
        if not self.is_starting:
            return self._real_spec(fullname)
        if self._package(fullname) not in (None, fullname):  # beneath a stand-in
            return ModuleSpec(fullname, self, is_package=True)
        found = PathFinder.find_spec(fullname, path, target)
        if found is None:
            return None
        spec = ModuleSpec(fullname, self, origin=found.origin, is_package=True)
        if fullname in self.hollow:
            spec.submodule_search_locations = found.submodule_search_locations
        return spec

    def _real_spec(self, fullname: str) -> ModuleSpec | None:
        """Of a module that somebody imports who is about to use it."""
        package, parent = self._package(fullname), fullname.rpartition(".")[0]
        if package in (None, fullname):
            self.waiting.discard(fullname)
            self.hollow.pop(fullname, None)
            return None  # found as ever
        self.real(package)
        return PathFinder.find_spec(fullname, sys.modules[parent].__path__)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = StandIn(spec.name)
        module.__file__ = spec.origin
        if spec.name in self.hollow and "." not in spec.name:
            module.__version__ = version(spec.name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass

    def home_of(self, package: str, name: str) -> Any:
        """What a hollow package has by this name: a submodule, or what one defines; None where only itself knows."""
        if package not in self.hollow:
            return None
        if (home := self.hollow[package].get(name)) is not None:
            return getattr(import_module(f"{package}.{home}"), name)
        if PathFinder.find_spec(f"{package}.{name}", sys.modules[package].__path__):
            return import_module(f"{package}.{name}")
        for submodule, found in list(sys.modules.items()):
            defined = vars(found).get(name) if submodule.startswith(f"{package}.") else None
            if getattr(defined, "__module__", None) == submodule:
                return defined
        return None

    def real(self, module: str) -> ModuleType:
        """The module itself, which takes the place of its stand-in."""
        with self._lock:
            if self.waits(module):
                package = module.partition(".")[0]
                first = [name for name in self.together if name.startswith(f"{package}.")]
                self.together = [name for name in self.together if name not in first]
                self.waiting -= {*first, self._package(module)}
                self.hollow.pop(module, None)
                self._clear()
                for name in first:
                    import_module(name)
            return import_module(module)

    def _clear(self) -> None:
        gone = [name for name, found in sys.modules.items() if type(found) is StandIn and not self.waits(name)]
        for name in gone:
            del sys.modules[name]

    @contextmanager
    def on_first_use(
        self, waiting: Collection[str], together: Sequence[str], hollow: Mapping[str, Mapping[str, str]]
    ) -> Iterator[None]:
        """Let these modules wait where they are imported inside, and only there: whoever imports them later gets them.

        When that fails, nothing waits afterwards.
        """
        here = sys.modules.keys()
        self.waiting |= {name for name in (*waiting, *together) if name not in here}
        self.together = [name for name in together if name not in here]
        self.hollow |= {name: homes for name, homes in hollow.items() if name not in here}
        sys.meta_path.insert(0, self)
        self.is_starting = True
        try:
            yield
        except BaseException:
            self.waiting.clear()
            self.hollow.clear()
            self._clear()
            raise
        finally:
            self.is_starting = False


imports = Imports()
