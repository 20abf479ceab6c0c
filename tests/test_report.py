"""The report is one page that needs nothing else, and shows what people typed without obeying it."""

import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from scmmgpt.report import (
    GroupGenes,
    Report,
    cluster_unknown,
    drawn_cells,
    find_embedding,
    points_of,
    type_rows,
)

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def report() -> Report:
    rng = np.random.default_rng(0)
    labels = np.array(["T cell", HOSTILE, "unknown"], dtype=object)[rng.integers(0, 3, 60)]
    confidence = rng.random(60)
    rows = type_rows(labels, np.full(60, "CL:0000084", dtype=object), confidence)
    for row in rows:
        row["genes"] = [{"gene": HOSTILE, "percent": 90, "elsewhere": 3}]
        row["evidence"], row["against"], row["candidates"] = HOSTILE, HOSTILE, (HOSTILE, 80)
    return Report(
        title=HOSTILE,
        num_cells=60,
        points=points_of(rng.normal(size=(60, 2)), "obsm['X_umap']", labels, confidence),
        types=rows,
        unknown_clusters=[{"cluster": HOSTILE, "cells": 4, "nearest": [(HOSTILE, 0.2)], "genes": []}],
        gene_account={"matched": 17, HOSTILE: HOSTILE},
        settings={"unknown_percent": 3.0, "median_confidence": 0.5, "num_candidates": 3},
        versions={"scmmgpt": "0"},
        warnings=[HOSTILE],
    )


def test_the_page_loads_nothing_from_elsewhere(report):
    page = report.html()
    addresses = []
    parser = HTMLParser()
    parser.handle_starttag = lambda _tag, attributes: addresses.extend(
        value for name, value in attributes if name in ("src", "href", "data", "action")
    )

    parser.feed(page)

    assert addresses == []
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_hostile_names_are_shown_as_text(report):
    page = report.html()

    assert HOSTILE not in page
    assert "<script>document.title" not in page
    assert page.count("<script") == 2


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_the_page_and_runs_no_hostile_name(report, tmp_path):
    page = tmp_path / "report.html"
    report.write(page)

    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    result = subprocess.run(
        [*command, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert result.stdout.count('<button type="button" aria-pressed') == 3
    assert "<title>owned" not in result.stdout


def test_a_report_replaces_nothing_when_it_fails(report, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("before")
    report.points = {"x": object()}

    with pytest.raises(Exception, match="source"):
        report.write(page)

    assert page.read_text() == "before"
    assert list(tmp_path.iterdir()) == [page]


def test_the_most_frequent_label_is_number_zero():
    labels = np.array(["a", "b", "b", "b"], dtype=object)

    points = points_of(np.zeros((4, 2)), "x", labels, np.ones(4))

    assert points["names"] == ["b", "a"]
    assert points["label"] == [1, 0, 0, 0]


def test_coordinates_that_are_not_numbers_do_not_break_the_page():
    points = points_of(np.array([[np.nan, 1.0], [0.0, np.inf]]), "x", np.array(["a", "b"]), np.ones(2))

    assert np.isfinite([*points["x"], *points["y"]]).all()


def test_type_rows_count_each_cell_once():
    labels = np.array(["a", "b", "a"], dtype=object)

    rows = type_rows(labels, labels, np.array([0.2, 0.9, 0.4]))

    assert [(row["label"], row["cells"], row["percent"]) for row in rows] == [("a", 2, 66.7), ("b", 1, 33.3)]
    assert rows[0]["confidence"] == pytest.approx(0.3)


def test_only_genes_that_the_group_really_expresses_are_named():
    genes = GroupGenes.empty(["CD3D", "MS4A1", "ACTB"], 2)
    values = np.array([[3.0, 0, 1], [3.0, 0, 1], [0, 2.0, 1], [0, 2.0, 1]])
    cells, columns = values.nonzero()

    genes.add(np.array([0, 0, 1, 1]), columns, values[cells, columns], cells)

    assert [gene["gene"] for gene in genes.top(0)] == ["CD3D"]
    assert genes.top(1) == [{"gene": "MS4A1", "percent": 100, "elsewhere": 0}]


def test_the_data_bring_their_own_map_when_they_have_one():
    assert find_embedding(["X_pca", "X_umap", "X_scVI"]) == "X_umap"
    assert find_embedding(["X_pca"]) == "X_pca"
    assert find_embedding(["X_scVI"]) is None


def test_the_same_cells_are_drawn_every_time():
    assert np.array_equal(drawn_cells(50_000), drawn_cells(50_000))
    assert len(drawn_cells(50_000)) == 20_000


def test_unknown_cells_fall_into_clusters_of_similar_ones():
    centres = np.eye(2)[np.repeat([0, 1], 60)]
    embeds = centres + np.random.default_rng(0).normal(scale=0.01, size=(120, 2))

    clusters = cluster_unknown(embeds)

    assert len(set(clusters[:60])) == len(set(clusters[60:])) == 1
    assert clusters[0] != clusters[-1]
