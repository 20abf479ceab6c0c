"""The page that works in the browser: its rules are Python's, it is published whole, and a visitor gets what Python gives."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from fake_hub import running_hub

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.hub_cards import push as push_module
from scmmgpt.hub_cards import static_space
from scmmgpt.hub_cards.page_accessibility import contrast, nameless, overhang, tab_to
from scmmgpt.hub_cards.page_visitor import ARGUMENTS, CHROMIUM, Visitor, chromium, served
from scmmgpt.hub_cards.push_space import check_page, push_page
from scmmgpt.hub_cards.static_space import SOURCES, build_page, find_npm

CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
NAME = "tester/page"
LABELS = ["B cell", "CD14-positive monocyte", "T cell", "natural killer cell", "hematopoietic stem cell"]

needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="Node with npm is not installed")
needs_packages = pytest.mark.skipif(
    not (SOURCES / "node_modules").is_dir(),
    reason="the page's packages are not installed: npm ci in hub_cards/space_static",
)


# The rules


@needs_node
@needs_packages
def test_the_rules_in_typescript_give_what_python_gives(tmp_path):
    golden = tmp_path / "golden"
    made = [sys.executable, "-m", "scmmgpt.hub_cards.page_golden", str(golden), str(CELLS)]
    subprocess.run(made, check=True, capture_output=True)

    done = subprocess.run(
        ["npx", "vitest", "run"],
        cwd=SOURCES,
        env={**os.environ, "SCMMGPT_GOLDEN": str(golden)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@needs_node
@needs_packages
def test_the_page_has_no_type_errors():
    done = subprocess.run(["npx", "tsc", "--noEmit"], cwd=SOURCES, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_building_without_node_says_what_to_install(monkeypatch):
    monkeypatch.setattr(static_space.shutil, "which", lambda name: None)

    with pytest.raises(UserError, match="needs Node 20 or newer with npm"):
        find_npm()


def test_a_page_is_never_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(static_space, "find_npm", lambda: "npm")

    with pytest.raises(UserError, match="nothing is ever written over"):
        build_page(tmp_path)


def test_the_policy_of_the_page_allows_no_other_origin():
    page = (SOURCES / "index.html").read_text(encoding="utf-8")
    policy = page.partition('content="default-src')[2].partition('"')[0]

    assert policy.startswith(" 'none'")
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy


# What is published


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch) as hub:
        monkeypatch.setattr(push_module, "FIRST_WAIT", 0.01)
        yield hub


@pytest.fixture
def folder(tmp_path):
    """A page as `build_page` writes it, with nearly nothing in it."""
    files = {
        "index.html": "<!doctype html>",
        "README.md": "---\nsdk: static\n---\n",
        "assets/page-1.js": "1",
        "model/manifest.json": "{}",
        "model/cell_tower.onnx": "weights",
    }
    for name, content in files.items():
        path = tmp_path / "page" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path / "page"


def published(hub):
    return {name: content.decode() for name, content in hub.files(NAME).items() if name != ".gitattributes"}


def test_a_page_is_published_whole_in_one_commit(hub, folder):
    outcome = push_page(NAME, folder)

    assert set(published(hub)) == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert len(hub.titles(NAME)) == 2, "the empty first commit and ours"
    assert outcome["url"].endswith(f"/spaces/{NAME}")


def test_scripts_of_an_earlier_build_vanish_from_the_hub(hub, folder):
    push_page(NAME, folder)
    (folder / "assets/page-1.js").rename(folder / "assets/page-2.js")

    outcome = push_page(NAME, folder)

    assert outcome["deleted"] == ["assets/page-1.js"]
    assert "assets/page-1.js" not in published(hub)


def test_a_page_that_is_there_already_makes_no_commit(hub, folder):
    push_page(NAME, folder)

    assert "Nothing to publish" in push_page(NAME, folder)["note"]
    assert len(hub.titles(NAME)) == 2


def test_a_dry_run_publishes_nothing(hub, folder):
    outcome = push_page(NAME, folder, dry_run=True)

    assert NAME not in hub.repositories
    assert "index.html" in outcome["added"]


def test_a_space_of_somebody_else_is_left_alone(hub, folder):
    push_page(NAME, folder)
    files = hub.repositories[NAME].branches["main"][-1].files
    files["app.py"] = b"print()"
    del files["model/manifest.json"]

    with pytest.raises(UserError, match="is another Space"):
        push_page(NAME, folder)


def test_a_folder_that_is_no_page_is_refused(folder):
    (folder / "index.html").unlink()

    with pytest.raises(UserError, match="no page.*index.html is missing"):
        check_page(folder)


# A visitor


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page that SCMMGPT_PAGE names, else one that is built for these tests."""
    if "SCMMGPT_PAGE" in os.environ:
        return Path(os.environ["SCMMGPT_PAGE"])
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    directory = tmp_path_factory.mktemp("built") / "page"
    build_page(directory, cells=CELLS)
    return directory


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed")
    with chromium() as browser:
        yield browser


@pytest.fixture
def asked():
    """What the server of the page was asked for."""
    return []


@pytest.fixture
def visitor(page, browser, asked):
    with served(page, asked=asked) as url:
        visitor = Visitor(browser, url).until_ready()
        yield visitor
        assert visitor.problems == []
        visitor.close()


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_a_visitor_names_selects_searches_and_downloads(visitor, asked, tmp_path):
    expected = scmmgpt.annotate(anndata.read_h5ad(CELLS), proteins=False, progress=False)
    of_browser, of_server = len(visitor.requests), len(asked)

    assert "300 cells of human" in visitor.open(CELLS)
    visitor.name_cells()
    found = anndata.read_h5ad(visitor.download("#h5ad", tmp_path / "annotated.h5ad"))
    table = pd.read_csv(visitor.download("#csv", tmp_path / "labels.csv"), index_col="cell")
    hits = visitor.search("a B cell")
    visitor.draw_around(0.01, 0.01, 0.99, 0.99)

    assert_same_calls(found.obs, expected.obs)
    assert table.index.tolist() == found.obs_names.tolist()
    assert table["scmmgpt_cell_type"].tolist() == found.obs["scmmgpt_cell_type"].tolist()
    assert (found.X != anndata.read_h5ad(CELLS).X).nnz == 0, "counts stay as they were"
    assert set(expected.obs.loc[hits[:10], "cell_type"]) == {"B cell"}
    assert visitor.text("#chosen").startswith("300 cells on the map")
    assert visitor.requests[of_browser:] == [], "nothing leaves, and nothing comes, after the page has loaded"
    assert asked[of_server:] == []


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_labels_by_hand_give_what_python_gives(visitor, tmp_path):
    expected = scmmgpt.annotate(anndata.read_h5ad(CELLS), LABELS, proteins=False, progress=False)

    visitor.open(CELLS)
    visitor.name_cells(LABELS)
    table = pd.read_csv(visitor.download("#csv", tmp_path / "labels.csv"), index_col="cell")

    assert_same_calls(table, expected.obs)


def assert_same_calls(found, expected):
    same = found["scmmgpt_cell_type"].astype(str).to_numpy() == expected["scmmgpt_cell_type"].astype(str).to_numpy()
    assert same.mean() >= 0.999
    difference = found["scmmgpt_confidence"].to_numpy() - expected["scmmgpt_confidence"].to_numpy()
    assert np.abs(difference).max() < 5e-3


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_wrong_files_each_get_a_sentence(visitor, tmp_path):
    cells = anndata.read_h5ad(CELLS)
    wrong = {
        "notes.h5ad": ("no HDF5 file", lambda path: path.write_text("cells", encoding="utf-8")),
        "cut.h5ad": ("cut off or damaged", lambda path: path.write_bytes(CELLS.read_bytes()[:20_000])),
        "nan.h5ad": ("NaN", lambda path: with_values(cells, np.nan).write_h5ad(path)),
        "z.h5ad": ("No raw counts were found", lambda path: z_scores(cells).write_h5ad(path)),
        "none.h5ad": ("no cells", lambda path: cells[:0].copy().write_h5ad(path)),
        "plant.h5ad": ("thale cress", lambda path: named(cells, "AT1G{:05d}").write_h5ad(path)),
        "odd.h5ad": ("of the 7869 genes are in the vocabulary", lambda path: named(cells, "thing{}").write_h5ad(path)),
        "lzf.h5ad": ("compressed with lzf", lambda path: cells.write_h5ad(path, compression="lzf")),
    }
    for name, (said, write) in wrong.items():
        write(tmp_path / name)
        answer = visitor.open(tmp_path / name)
        if not visitor.error:
            visitor.name_cells()
            answer = visitor.error
        assert said in answer, name

    assert "300 cells" in visitor.open(CELLS), "the page still works"


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_a_file_above_two_gigabytes_is_read_and_only_its_copy_is_refused(visitor, tmp_path):
    path = shutil.copy(CELLS, tmp_path / "large.h5ad")
    with h5py.File(path, "a") as file:
        large = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        large.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        large.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((2_200_000_000,))
        h5py.h5d.create(file["uns"].id, b"large", h5py.h5t.NATIVE_INT8, space, large)
    assert path.stat().st_size > 2**31

    assert "300 cells" in visitor.open(path)
    visitor.name_cells()
    visitor.page.click("#h5ad")
    visitor.wait()

    assert "does not fit into the memory of a browser: download the CSV" in visitor.error
    assert len(pd.read_csv(visitor.download("#csv", tmp_path / "labels.csv"))) == 300


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_what_is_cancelled_leaves_the_page_as_it_was(visitor):
    visitor.open(CELLS)

    visitor.page.click("#annotate")
    visitor.page.click("#cancel")
    visitor.wait()

    assert visitor.text("#status").startswith("Cancelled")
    visitor.name_cells()
    assert "CD14-positive monocyte" in visitor.text("#types")


def with_values(cells, value):
    changed = cells.copy()
    changed.X.data[[3, 70_000]] = value
    return changed


def z_scores(cells):
    values = np.random.default_rng(0).normal(size=cells.shape).astype(np.float32)
    return anndata.AnnData(values, obs=cells.obs[[]], var=cells.var[[]])


def named(cells, form):
    changed = anndata.AnnData(cells.X, obs=cells.obs[[]])
    changed.var_names = [form.format(number) for number in range(cells.n_vars)]
    return changed


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_the_page_works_without_a_connection_once_it_was_loaded(page, browser):
    with served(page) as url:
        first = Visitor(browser, url).until_ready()
        first.page.reload()
        first.until_ready()
    first.page.reload()
    first.until_ready()

    assert "300 cells" in first.open(CELLS)
    first.close()


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_the_policy_binds_the_workers_too(page, browser):
    open_to_all = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    with served(page) as url, served(page, headers=open_to_all) as other:
        visitor = Visitor(browser, url).until_ready()
        workers = [worker for worker in visitor.page.workers if worker.url.startswith("blob:")]
        assert len(workers) >= 2, "one that reads and calls, and one for each core"
        for one in (*workers, visitor.page):
            said = one.evaluate("url => fetch(url).then(() => 'answered', error => String(error))", other)
            assert "Failed to fetch" in said
        visitor.close()


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_memory_that_is_not_enough_gets_a_sentence(page, browser):
    little = [*ARGUMENTS, "--js-flags=--wasm-max-mem-pages=1000"]  # of 64 KiB each
    small = browser.browser_type.launch(executable_path=CHROMIUM, args=little)
    with served(page) as url:
        visitor = Visitor(small, url).until_ready()

    assert visitor.error.startswith("The browser ran out of memory. Close other tabs")
    assert visitor.problems == []
    small.close()


@pytest.mark.slow
@pytest.mark.browser
@needs_node
def test_a_whole_visit_needs_no_mouse(visitor, tmp_path):
    press, page = visitor.page.keyboard.press, visitor.page
    for name in ("sample", "annotate"):
        tab_to(page, name)
        press("Enter")
        visitor.wait()
    tab_to(page, "points")
    for key in ("ArrowLeft", "+", "-", "Home"):
        press(key)
    press("Tab")
    press("Enter")  # the first name of the legend
    visitor.wait()
    assert "cells called" in visitor.text("#chosen")
    page.focus("#annotate")
    tab_to(page, "query")
    page.keyboard.type("a cell that makes antibodies")
    press("Enter")
    visitor.wait()
    tab_to(page, "csv")
    with page.expect_download() as waiting:
        press("Enter")

    assert page.locator("#hits li").count() == 50
    assert len(pd.read_csv(waiting.value.path())) == 300


@pytest.mark.slow
@pytest.mark.browser
@needs_node
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_can_be_read_and_named_and_fits_a_narrow_screen(page, browser, scheme):
    with served(page) as url:
        visitor = Visitor(browser, url, width=320, height=640, scheme=scheme).until_ready()
        before = contrast(visitor.page)
        visitor.open(CELLS)
        visitor.name_cells()
        after = contrast(visitor.page)

        assert before["too_low"] == after["too_low"] == []
        assert after["texts_and_parts"] > before["texts_and_parts"] > 20
        assert nameless(visitor.page) == []
        assert overhang(visitor.page) <= 0
        visitor.close()


@pytest.mark.browser
def test_a_contrast_that_is_too_low_is_found(browser):
    page = browser.new_page()
    page.set_content("<body><p style='color: #999; background: #fff'>pale</p><input id='x' aria-label='x'></body>")

    assert [one["what"] for one in contrast(page)["too_low"]] == ["pale"]
    assert contrast(page)["lowest_of_text"] == 2.85, "as WCAG's own formula gives it for #999 on white"
    page.close()
