"""The Space: what a visitor can do, what visitors cannot see of each other, and the page in a real browser."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import anndata
import pytest

pytest.importorskip("gradio")

import scmmgpt
from scmmgpt import hub_cards
from scmmgpt.errors import UserError

sys.path.insert(0, str(Path(hub_cards.__file__).parent / "space"))
from session import MAX_LABELS, MAX_TEXT, Session
from tiny_models import tiny_cells, write_tiny_model

SPACE = Path(hub_cards.__file__).parent / "space"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
LABELS = "B cell\nmonocyte\nT cell"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("repository") / "model")


@pytest.fixture(scope="module")
def model(repository):
    return scmmgpt.load(repository, device="cpu", generative=True)


@pytest.fixture
def cells_file(tmp_path):
    tiny_cells(60).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def session(model, cells_file):
    session = Session(model)
    session.open_file(str(cells_file))
    yield session
    session.close()


# What a visitor can do


def test_cells_get_names_a_map_and_a_table(session):
    rows = session.annotate(LABELS, 0.0)
    points = session.points()

    assert sum(count for _, count, _ in rows) == 60
    assert {name for name, _, _ in rows} <= set(LABELS.splitlines())
    assert len(points["x"]) == len(points["y"]) == len(points["label"]) == 60
    json.dumps(points)


def test_selected_cells_are_counted_described_compared_and_talked_about(session):
    session.annotate(LABELS, 0.0)

    assert session.select([3, 4, 5, 5, 99_999, -1]).startswith("3 cells are selected")
    assert "most typical of 3 cells" in session.describe()
    genes = session.compare()
    assert genes
    assert all(percent > 0 for _, percent, _ in genes)
    answers = list(session.chat("What is this?"))
    assert answers
    assert all(later.startswith(earlier) for earlier, later in zip(answers, answers[1:], strict=False))


def test_a_search_highlights_the_best_cells_best_first(session):
    rows = session.search("B cells")

    assert session.points()["highlighted"] == [int(name.removeprefix("cell")) for name, _, _ in rows]
    scores = [score for _, _, score in rows]
    assert scores == sorted(scores, reverse=True)


def test_generated_cells_can_be_downloaded(session):
    summary, path = session.generate("a B cell", 3, 0)

    assert "3 pseudo-cells" in summary
    assert anndata.read_h5ad(path).n_obs == 3


def test_results_hold_the_names_and_a_report(session):
    session.annotate(LABELS, 0.0)

    cells, report = session.write_results()

    assert "scmmgpt_cell_type" in anndata.read_h5ad(cells).obs
    assert "<html" in Path(report).read_text()


def test_two_visitors_have_nothing_in_common(model, cells_file):
    one, other = Session(model), Session(model)
    one.open_file(str(cells_file))
    one.annotate(LABELS, 0.0)

    assert other.adata is None
    assert one.folder != other.folder
    assert list(other.folder.iterdir()) == []
    for session in (one, other):
        session.close()
    assert not one.folder.exists()


# What a visitor cannot do

BAD = [
    pytest.param(lambda session: session.open_file("/etc/passwd"), "Upload an .h5ad", id="another kind of file"),
    pytest.param(lambda session: session.search(" "), "is empty", id="blank text"),
    pytest.param(lambda session: session.search("x" * (MAX_TEXT + 1)), "at most", id="a long text"),
    pytest.param(lambda session: session.generate("x" * 1_000_000, 1, 0), "at most", id="a megabyte of text"),
    pytest.param(lambda session: session.describe(), "Select cells first", id="nothing selected"),
    pytest.param(lambda session: session.write_results(), "press Annotate first", id="nothing annotated"),
    pytest.param(
        lambda session: session.annotate("\n".join(map(str, range(MAX_LABELS + 1))), 0), "too many", id="many labels"
    ),
    pytest.param(lambda session: session.annotate("B cell\nB cell", 0), "2 times", id="a label twice"),
]


@pytest.mark.parametrize(("action", "reason"), BAD)
def test_a_mistake_is_explained(session, action, reason):
    with pytest.raises(UserError, match=reason):
        action(session)


def test_a_file_that_would_unpack_into_gigabytes_is_refused(model, tmp_path):
    import h5py

    with h5py.File(tmp_path / "bomb.h5ad", "w") as file:
        file.create_dataset("X", shape=(10_000, 60_000), dtype="f4", chunks=True, compression="gzip")
        file.create_group("obs")
        file.create_group("var")
    session = Session(model)

    with pytest.raises(ValueError, match="bytes of content"):
        session.open_file(str(tmp_path / "bomb.h5ad"))


# The page, in a browser


@contextmanager
def running_space(repository: Path, folder: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "SCMMGPT_MODEL": str(repository),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
    }
    log = (folder / "space.log").open("w")
    server = subprocess.Popen([sys.executable, str(SPACE / "app.py")], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert server.poll() is None, (folder / "space.log").read_text()
            try:
                urllib.request.urlopen(url, timeout=2).close()
                break
            except OSError:
                time.sleep(0.25)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visitor:
    """Somebody at the page, who notes every error that the page reports."""

    def __init__(self, browser, url: str, width: int = 1280, height: int = 1000):
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(180_000)
        self.errors: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#map canvas")
        self.page.wait_for_timeout(1500)

    def upload(self, path: Path, num_cells: int) -> None:
        self.page.set_input_files("input[type=file]", str(path))
        self.wait_for("#status", f"{num_cells} cells x")

    def annotate(self, labels: str) -> None:
        self.page.fill("#labels textarea", labels)
        self.page.click("#annotate")
        self.wait_for("#status", "names")

    def lasso(self, share: float = 1.0) -> None:
        """Draw around a part of the map, from its left."""
        self.page.locator("#map canvas").scroll_into_view_if_needed()
        box = self.page.locator("#map canvas").bounding_box()
        left, top = box["x"] + 2, box["y"] + 2
        right, bottom = left + (box["width"] - 4) * share, top + box["height"] - 4
        self.page.mouse.move(left, top)
        self.page.mouse.down()
        for corner in ((right, top), (right, bottom), (left, bottom), (left, top + 3)):
            self.page.mouse.move(*corner, steps=4)
        self.page.mouse.up()
        self.wait_for("#selection", "selected")

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def wait_for(self, place: str, text: str) -> None:
        self.page.locator(place).filter(has_text=text).wait_for()

    def text(self, place: str) -> str:
        return self.page.locator(place).inner_text()

    def picture(self, folder: Path, name: str) -> None:
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)

    def download(self, place: str) -> Path:
        with self.page.expect_download() as started:
            self.page.click(place)
        return Path(started.value.path())

    def own_errors(self) -> list[str]:
        """Errors of the page; without a network, fonts and the like of other hosts cannot be loaded."""
        return [error for error in self.errors if "ERR_NAME_NOT_RESOLVED" not in error and "ERR_INTERNET" not in error]


@pytest.fixture
def pictures(tmp_path):
    """Where screenshots go: SCMMGPT_SCREENSHOTS, to be looked at, or a folder that goes away."""
    folder = Path(os.environ.get("SCMMGPT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.browser
@pytest.mark.slow
def test_a_visitor_goes_all_the_way_and_another_sees_nothing_of_it(
    repository, browser, cells_file, tmp_path, pictures
):
    with running_space(repository, tmp_path) as url:
        visitor = Visitor(browser, url)
        visitor.upload(cells_file, 60)
        visitor.annotate(LABELS)
        visitor.picture(pictures, "annotated")
        ask_about_selected_cells(visitor, pictures)
        search_and_generate(visitor, pictures)

        other = Visitor(browser, url, width=390, height=844)
        assert "Upload a file" in other.text("#status")
        assert other.page.evaluate("document.querySelectorAll('#map .legend span').length") == 0
        tiny_cells(30, seed=9).write_h5ad(tmp_path / "other.h5ad")
        other.upload(tmp_path / "other.h5ad", 30)
        other.annotate("natural killer cell\nplatelet")
        other.picture(pictures, "narrow")
        assert "60 cells" in visitor.text("#status")
        assert "30 cells" in other.text("#status")
        width = other.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, "nothing is wider than a telephone"
        assert visitor.own_errors() == []
        assert other.own_errors() == []


def ask_about_selected_cells(visitor: Visitor, pictures: Path) -> None:
    visitor.lasso(0.5)
    visitor.open_tab("Selected cells")
    visitor.page.click("#describe")
    visitor.wait_for("#description", "ell")
    visitor.page.click("#compare")
    visitor.page.wait_for_function("document.querySelectorAll('#genes tbody tr').length > 0")
    visitor.picture(pictures, "selected")
    visitor.open_tab("Chat")
    visitor.page.fill("#question textarea, #question input", "What is this?")
    visitor.page.keyboard.press("Enter")
    visitor.wait_for("#chat", "What is this?")


def search_and_generate(visitor: Visitor, pictures: Path) -> None:
    visitor.open_tab("Search")
    visitor.page.fill("#query textarea, #query input", "cells that make antibodies")
    visitor.page.click("#search")
    visitor.page.wait_for_function("document.querySelector('#hits').innerText.includes('cell_')")
    visitor.picture(pictures, "search")
    visitor.open_tab("Generate")
    visitor.page.click("#generate")
    visitor.wait_for("#summary", "pseudo-cells")
    assert anndata.read_h5ad(visitor.download("#made")).n_obs == 50
    visitor.picture(pictures, "generate")
    visitor.open_tab("Download")
    visitor.page.click("#download")
    visitor.wait_for("#files", "annotated")
    visitor.picture(pictures, "download")
