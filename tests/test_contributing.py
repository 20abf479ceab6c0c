"""CONTRIBUTING names files that exist, and its file map leaves no Python file out."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def mapped_files() -> dict[str, str]:
    """{path: what the map says of it}."""
    found, folder = {}, ""
    for line in PAGE.split("## File map")[1].split("```")[1].splitlines()[1:]:
        name, _, what = line.partition("#")
        if name[0] in "├└":
            found[folder + name[4:].strip()] = what.strip()
        else:
            folder = name.strip()
    return found


MAP = mapped_files()
FOLDERS = sorted({str(Path(name).parent) for name in MAP})


def test_every_file_of_the_map_exists():
    assert [name for name in MAP if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_map_names_every_python_file(folder):
    files = {path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"}
    helpers = {path for path in files if not path.name.startswith("test_")}

    assert sorted(str(path.relative_to(ROOT)) for path in helpers if str(path.relative_to(ROOT)) not in MAP) == []


def test_the_map_leaves_no_folder_out():
    named = {"modeling_scmmgpt", "processing", "training", "hub_cards", "benchmarks", "tests", "src"}
    folders = {
        path.parent.relative_to(ROOT)
        for name in named
        for path in (ROOT / name).rglob("*.py")
        if "node_modules" not in path.parts
    }

    copies = Path("hub_cards/scmmgpt-mini")
    assert sorted(str(folder) for folder in folders - {copies} if str(folder) not in FOLDERS) == []


def test_every_line_of_the_map_says_what_the_file_is():
    assert [name for name, what in MAP.items() if not what] == []


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:[\w.-]+/)+[\w.*-]*)`", PAGE))))
def test_files_that_a_change_goes_to_exist(path):
    assert list(ROOT.glob(path.rstrip("/"))) != []
