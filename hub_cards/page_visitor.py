"""A visitor of the page in a headless Chromium, for tests and measurements: opens files, names cells, searches."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--use-gl=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic"]
ARGUMENTS += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 900.0


class _Quiet(http.server.SimpleHTTPRequestHandler):
    headers_sent: dict[str, str] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def end_headers(self) -> None:
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path, *, headers: dict[str, str] | None = None, asked: list[str] | None = None) -> Iterator[str]:
    """The address of a plain server of a folder; what it is asked for is added to `asked`."""
    own = {"headers_sent": headers or {}, "asked": [] if asked is None else asked}
    handler = type("Handler", (_Quiet,), own)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """A headless browser, with more arguments of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments])
        yield browser
        browser.close()


class Visitor:
    """One person before the page: a window of some size, light or dark."""

    def __init__(self, browser: Any, url: str, *, width: int = 1280, height: int = 1000, scheme: Any = "light"):
        size = {"width": width, "height": height}
        self.context = browser.new_context(viewport=size, accept_downloads=True, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(url, wait_until="load")

    def _note(self, kind: str, text: str) -> None:
        """Keep what went wrong; the HDF5 library itself prints why it cannot open a damaged file."""
        if kind == "error" and not text.startswith(("HDF5-DIAG", " ")):
            self.problems.append(text)

    def wait(self) -> None:
        """Until the work that was asked for is done."""
        self._until("html[data-busy=false]")

    def _until(self, selector: str) -> None:
        """The page's policy forbids what `wait_for_function` does."""
        self.page.locator(selector).first.wait_for(state="attached")

    def until_ready(self) -> Visitor:
        """Until the model is loaded."""
        self._until("html[data-ready], html[data-failed]")
        self.wait()
        return self

    def open(self, path: Path) -> str:
        """Open a file; what the page says of it, or against it."""
        self.page.set_input_files("#file", str(path))
        self.wait()
        return self.error or self.text("#account")

    def name_cells(self, labels: list[str] | None = None, *, consensus: bool | None = None) -> float:
        """Name the cells; the seconds that it took."""
        if labels is not None:
            self.page.check("input[name=which][value=own]")
            self.page.fill("#labels", "\n".join(labels))
        if consensus is not None:
            self.page.set_checked("#consensus", consensus)
        before = time.perf_counter()
        self.page.click("#annotate")
        self.wait()
        seconds = time.perf_counter() - before
        return seconds

    def download(self, button: str, path: Path) -> Path:
        """Press a button that gives a file, and keep the file."""
        with self.page.expect_download() as waiting:
            self.page.click(button)
        waiting.value.save_as(path)
        self.wait()
        return path

    def search(self, text: str) -> list[str]:
        """The cells that fit a sentence, as the page lists them."""
        self.page.fill("#query", text)
        self.page.click("#search")
        self.wait()
        return self.page.locator("#hits button").all_inner_texts()

    def draw_around(self, left: float, top: float, right: float, bottom: float) -> None:
        """Draw a rectangle on the map, in shares of its size."""
        self.page.locator("#points").scroll_into_view_if_needed()
        box = self.page.locator("#points").bounding_box()
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in [*places[1:], places[0]]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()
        self.wait()

    @property
    def error(self) -> str:
        """What the page says against what was asked."""
        return "" if self.page.locator("#error").is_hidden() else self.text("#error")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def close(self) -> None:
        self.context.close()
