"""The tests that transformers has for every model, out of the sdist of the installed version.

They are fetched once, by pip, into the user's cache, and are never part of this repository. The sdist holds
`tests/test_*.py` alone: what these import from folders below has a stand-in here, and `GenerationTesterMixin` and
`ExportTesterMixin`, which lie in such folders, are empty.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from filelock import FileLock

PACKAGE = "transformers_own_tests"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scmmgpt-tests"
PARAMETERIZED = "parameterized==0.9.0"  # which those tests import
SECONDS = 60


class OutOfReach(Exception):
    """The package index did not give what was asked for."""


def own_tests(name: str) -> ModuleType:
    """A module of transformers' tests; the tests of the module that asks are skipped where it cannot be had."""
    try:
        folder = fetched(transformers.__version__)
    except OutOfReach as reason:
        pytest.skip(f"transformers' own tests are out of reach: {reason}", allow_module_level=True)
    _make_importable(folder)
    return importlib.import_module(f"{PACKAGE}.{name}")


@cache
def fetched(version: str) -> Path:
    """The folder with transformers' tests and what they import, complete."""
    folder = CACHE / f"transformers-{version}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        if not folder.exists():
            ready = Path(scratch, "ready")
            # pip compares every file with the hash that the index gives for it.
            _pip("install", "--target", str(ready), PARAMETERIZED)
            _pip("download", "--no-binary", "transformers", "--dest", scratch, f"transformers=={version}")
            with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as sdist:
                for member in sdist.getmembers():
                    folders, _, file = member.name.partition("/tests/")
                    if folders == f"transformers-{version}" and file.endswith(".py"):
                        member.name = f"{PACKAGE}/{file}"
                        sdist.extract(member, ready, filter="data")
            (ready / PACKAGE / "__init__.py").touch()
            ready.rename(folder)
    return folder


def _pip(verb: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", verb, "--no-deps", "--no-build-isolation", "--retries", "0"]
    command += ["--timeout", "10", "--disable-pip-version-check", "--quiet", *arguments]
    try:
        subprocess.run(command, check=True, timeout=SECONDS, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        raise OutOfReach(f"pip took more than {SECONDS} seconds") from None
    except subprocess.CalledProcessError as failed:
        raise OutOfReach(f"pip says {(failed.stderr.strip().splitlines() or ['nothing'])[-1]}") from None


def _make_importable(folder: Path) -> None:
    if PACKAGE in sys.modules:
        return
    sys.path.append(str(folder))
    importlib.import_module(PACKAGE)
    _stand_in("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    _stand_in("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _stand_in("utils.test_configuration_utils", config_common_kwargs=COMMON_FIELDS)
    _stand_in("distributed_testing_utils", run_distributed=_needs_processes)
    sys.modules["fetch_hub_objects_for_ci"] = module = ModuleType("fetch_hub_objects_for_ci")
    module.url_to_local_path = str  # type: ignore[attr-defined]


def _stand_in(name: str, **contents) -> None:
    parts = f"{PACKAGE}.{name}".split(".")
    for depth in range(2, len(parts) + 1):
        full_name = ".".join(parts[:depth])
        sys.modules.setdefault(full_name, ModuleType(full_name))
    vars(sys.modules[full_name]).update(contents)


def _needs_processes(**_options):
    pytest.skip("the code that starts processes for a distributed test is not in the sdist")


# Fields that every config takes, with values that are not the defaults.
COMMON_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
