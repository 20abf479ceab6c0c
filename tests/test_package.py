"""The package as a newcomer meets it: importable anywhere, quiet, quick, and free of extras."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import scmmgpt
from scmmgpt.errors import _EXTRA_OF_MODULE

ROOT = Path(__file__).parents[1]
EXTRAS = ["datasets", "peft", "trl", "gradio", "fastapi", "scanpy", "matplotlib", "sklearn", "faiss"]


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("place", [ROOT, ROOT / "tests", Path("/")], ids=["root", "subfolder", "elsewhere"])
def test_import_works_from_any_directory_and_prints_nothing(place):
    result = run_python("import scmmgpt; assert scmmgpt.__version__", place)

    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_import_brings_no_extra():
    code = "import json, sys, scmmgpt; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"

    loaded = set(json.loads(run_python(code, ROOT).stdout))

    assert loaded.isdisjoint(EXTRAS)


def test_import_registers_the_auto_classes():
    code = "import scmmgpt; from transformers import AutoConfig; print(AutoConfig.for_model('scmmgpt').model_type)"

    assert run_python(code, Path("/")).stdout.strip() == "scmmgpt"


def test_every_public_name_exists():
    assert [name for name in scmmgpt.__all__ if not hasattr(scmmgpt, name)] == []


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'anotate'"):
        scmmgpt.anotate  # noqa: B018


def test_no_public_name_is_a_module_too():
    """Importing a module sets its name on the package, where it would hide a verb of the same name."""
    modules = {path.stem for path in Path(scmmgpt.__file__).parent.glob("*.py")}

    assert modules.isdisjoint(scmmgpt.__all__)


def test_every_extra_that_an_error_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert set(_EXTRA_OF_MODULE.values()) <= set(extras)


@pytest.mark.parametrize("name", sorted(set(scmmgpt._HOME)))
def test_no_module_hides_the_public_name(name):
    before = getattr(scmmgpt, name)

    assert getattr(scmmgpt, name) is before
    assert not isinstance(before, ModuleType)
