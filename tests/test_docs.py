"""The documentation holds: its blocks run, its links lead somewhere, its numbers come from files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import blocks_of, commands, load_models_once, write_files

from scmmgpt.training.evaluation.metrics import Interval
from scmmgpt.training.evaluation.results import Record, write_results

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
# Pages whose blocks train, or load the model with the code that lies in its directory.
SLOW = {"finetune", "pretrain", "serve", "transformers"}


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS).with_suffix(""))


def parameter(page: Path):
    return pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if page.stem in SLOW else [])


PAGES_THAT_RUN = [page for page in PAGES if any(block.reason is None for block in blocks_of(page))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# docs/howto/own_data.md gives a label of its own and tells of this warning.
@pytest.mark.filterwarnings("ignore:'killer cell' is not in the Cell Ontology:UserWarning")
@pytest.mark.parametrize("page", [parameter(page) for page in PAGES_THAT_RUN])
def test_blocks_of_a_page_run_in_order(page, folder, monkeypatch):
    pytest.importorskip("scanpy", reason="pip install 'scmmgpt[eval]'")
    from scmmgpt.cli import app

    monkeypatch.setattr(sys, "path", list(sys.path))
    load_models_once(monkeypatch)
    names = {}

    for block in blocks_of(page):
        if block.reason is None and block.language == "python":
            exec(compile(block.code, str(page), "exec"), names)
        for program, *arguments in commands(block.code) if block.reason is None and block.language == "sh" else []:
            assert program == "scmmgpt", f"give a reason not to run {program!r}: <!-- not run: ... -->"
            assert not app(arguments, prog_name="scmmgpt", standalone_mode=False)


@pytest.mark.parametrize("name", re.findall(r"`(test_\w+)`", (DOCS / "faults.md").read_text()))
def test_each_row_of_the_fault_table_has_its_test(name):
    assert f"def {name}(" in TESTS


def headings(page: Path) -> set[str]:
    """Anchors of a page, as the site makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_documentation_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())

    for target, anchor in targets:
        found = page if not target else page.parent / target
        if found.parent.name == "notebooks" and found.suffix == ".ipynb":
            found = ROOT / "examples" / found.name
        assert found.exists(), target
        assert not anchor or anchor in headings(found), f"{target}#{anchor}"


def test_every_page_is_in_the_table_of_contents():
    listed = set()
    for page in PAGES:
        for tree in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            lines = [line for line in tree.split() if not line.startswith(":")]
            listed |= {str((page.parent / line).relative_to(DOCS)) for line in lines}

    assert {name_of(page) for page in PAGES} - listed == {"index"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    named = set(re.findall(r"(?:training|benchmarks|examples|hub_cards|tests)/[\w/]+\.(?:py|yaml)", page.read_text()))

    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^scmmgpt (\w+)", "\n".join(page.read_text() for page in PAGES), re.MULTILINE)))
)
def test_verbs_that_a_page_names_exist(command):
    from scmmgpt.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    verbs |= {group.name for group in app.registered_groups}
    assert command in verbs


@pytest.fixture
def measured_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import measured_tables

    return measured_tables


def test_pages_say_plainly_when_nothing_was_measured(measured_tables, tmp_path):
    assert "Nothing has been measured yet" in measured_tables.results_tables(tmp_path)
    assert "Nothing has been measured yet" in measured_tables.measured_table("index", tmp_path)


def test_the_page_of_results_shows_what_the_files_hold(measured_tables, tmp_path):
    record = Record(
        "annotation", "scmmgpt-mini", "a study", {"accuracy": 0.5}, {"accuracy": Interval(0.4, 0.6, "cells")}
    )
    record.conditions.update(cells=100, simulated=True)
    run = {"command": "a command", "commit": "c0ffee", "date": "2026-01-01", "device": "cpu"}
    write_results([record], [], tmp_path, {**run, "processor": "x86_64, 2 cores", "seed": 0})

    page = measured_tables.results_tables(tmp_path)

    assert "0.5" in page
    assert "simulated" in page
    assert "`a command`: commit `c0ffee`" in page


def test_the_table_of_speed_names_the_machine_and_whether_it_was_quiet(measured_tables, tmp_path):
    line = {"task": "embedding", "way": "ours", "unit": "cells/s", "rate": 1500.0, "low": 1400.0, "high": 1600.0}
    machine = {"processor": "a processor", "cores": 2, "torch": "2", "was_quiet": True}
    report = {"date": "2026-01-01", "machines": {"embedding": machine}, "rows": [{**line, "share_of_limit": 0.5}]}
    (tmp_path / "speed.json").write_text(json.dumps(report))

    table = measured_tables.measured_table("speed", tmp_path)

    assert "1,500 cells/s (1,400 to 1,600)" in table
    assert "50%" in table
    assert "a processor, 2 cores" in table
    assert "quiet when these began: embedding" in table


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_placeholder_for_numbers_is_known(page, measured_tables):
    assert "<!-- measured:" not in measured_tables.render_placeholders(page.read_text())


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx_book_theme", reason="pip install 'scmmgpt[docs]'")

    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    result = subprocess.run(build, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "notebooks" / "first_steps.html").exists()


def test_the_readme_says_what_was_measured_beside_other_methods(measured_tables):
    import rivals_table

    page = (ROOT / "README.md").read_text(encoding="utf-8")

    assert rivals_table.with_sentence(page, json.loads(rivals_table.REPORT.read_text())) == page
