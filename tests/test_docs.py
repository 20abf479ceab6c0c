"""The documentation names only what exists: tests of the fault table, pages, files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


@pytest.mark.parametrize("name", re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
def test_each_row_of_the_fault_table_has_its_test(name):
    assert f"def {name}(" in TESTS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_inside_the_documentation_lead_somewhere(page):
    targets = re.findall(r"\]\(((?!http)[^)#]+\.md)\)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page):
    named = set(re.findall(r"(?:training|benchmarks|examples|hub_cards)/[\w/]+\.(?:py|yaml)", page.read_text()))

    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"scmmgpt (\w+)", "\n".join(page.read_text() for page in PAGES))))
)
def test_verbs_that_a_page_names_exist(command):
    from scmmgpt.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    verbs |= {group.name for group in app.registered_groups}
    assert command in verbs or command in {"is", "does"}
