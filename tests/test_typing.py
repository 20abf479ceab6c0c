"""The type checker sees the package as it is installed: a name that one folder lacks is an error in every other."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
PLACES = PROJECT["setuptools"]["package-dir"]
PLANTED = """
from scmmgpt.processing.gene_identity_scmmgpt import GeneNames


def first(names: GeneNames) -> str:
    return names.frist
"""


@pytest.fixture
def tree(tmp_path):
    """The code and its configuration, and the checker's cache, which saves it a minute."""
    for place in ("typings", ".mypy_cache", *PLACES.values()):
        if (ROOT / place).exists():
            ignored = shutil.ignore_patterns("__pycache__", "scmmgpt-mini")
            shutil.copytree(ROOT / place, tmp_path / place, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_an_attribute_that_another_folder_lacks_is_an_error(tree):
    packages = [package for package in PLACES if package != "scmmgpt.processing"]
    for package in packages:
        (tree / PLACES[package] / "planted.py").write_text(PLANTED)
    modules = [argument for package in packages for argument in ("--module", f"{package}.planted")]

    checked = subprocess.run([sys.executable, "-m", "mypy", *modules], cwd=tree, capture_output=True, text=True)

    assert checked.stdout.count('planted.py:6: error: "GeneNames" has no attribute "frist"') == len(packages)
    assert checked.returncode == 1


def test_the_checker_reads_every_folder_of_the_package_where_it_lies():
    search = [ROOT / place for place in PROJECT["mypy"]["mypy_path"]]

    for package, place in PLACES.items():
        found = [folder / package.replace(".", "/") for folder in search]
        assert package in PROJECT["mypy"]["packages"]
        assert next(path for path in found if path.exists()).resolve() == ROOT / place
