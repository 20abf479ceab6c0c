"""Targets of the fuzzer: each takes bytes, and may end in nothing but an answer or a reason.

`tests/fuzz/run.py` feeds them with what a coverage-guided fuzzer invents, `tests/test_fuzz.py` with what it found.
"""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

from scmmgpt.errors import UserError

ROOT = Path(__file__).parents[2]
SEEDS = Path(__file__).parent / "seeds"


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="scmmgpt-fuzz-"))


def written(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


@cache
def ontology():
    from scmmgpt.hub_cards import EMBEDDED_MODEL
    from scmmgpt.processing.ontology_scmmgpt import read_ontology

    return read_ontology(EMBEDDED_MODEL)


@cache
def tokenizer():
    from tiny_models import make_processor

    return make_processor().feature_extractor


def label_file(content: bytes) -> None:
    """One label a line, or JSON."""
    from scmmgpt.processing.labels_scmmgpt import read_labels

    for name in ("labels.txt", "labels.json"):
        try:
            labels = read_labels(written(name, content), ontology()).labels
        except UserError:
            continue
        assert all(isinstance(label, str) and label.strip() for label in labels)


def gene_names(content: bytes) -> None:
    """Names of genes as a stranger's file spells them."""
    names = content.decode("utf-8", "replace").split("\n")
    try:
        match = tokenizer()._identifier.match({"index": names})
    except ValueError:
        return
    assert len(match.rows) == len(names)
    assert match.rows.max(initial=-1) < len(tokenizer().genes)
    json.dumps(match.account)


def gene_table(content: bytes) -> None:
    """The vocabulary and the table of names that lie in a model directory."""
    from scmmgpt.processing.gene_vocabulary_scmmgpt import GeneVocabulary

    try:
        vocabulary = GeneVocabulary.read(written("gene_vocabulary.tsv.gz", content))
    except (ValueError, csv_error()):
        return
    assert len(set(vocabulary.genes)) == len(vocabulary.genes)


def csv_error() -> type[Exception]:
    import csv

    return csv.Error


def request_body(content: bytes) -> None:
    """What somebody posts to the endpoint."""
    from scmmgpt.hub_cards.request_cells_scmmgpt import opened_cells
    from scmmgpt.hub_cards.schema_scmmgpt import BadRequest, read_request

    try:
        decoded = json.loads(content)
    except (ValueError, RecursionError):
        return
    try:
        request = read_request(decoded)
        if hasattr(request, "cells"):
            with opened_cells(request.cells) as source:
                read_cells(source)
    except BadRequest:
        return


def h5ad(content: bytes) -> None:
    """A file that says it is AnnData: in a request, and on the disk of a user.

    The endpoint checks it in another process first, as the library itself hangs or crashes on some damaged files.
    """
    from scmmgpt.cells import CellsInFile
    from scmmgpt.hub_cards.request_cells_scmmgpt import check_h5ad
    from scmmgpt.hub_cards.schema_scmmgpt import BadRequest

    path = written("cells.h5ad", content)
    try:
        check_h5ad(str(path))
        read_cells(str(path))
        CellsInFile(path)
    except (BadRequest, UserError):
        return


def read_cells(source: object) -> None:
    """As the endpoint reads them: every error of a damaged file is the sender's, a crash of the process is ours."""
    from scmmgpt.hub_cards.handler import _explained

    with _explained():
        features = tokenizer()(source, packed=True)
    assert features["gene_ids"].min(initial=0) >= 0
    assert features["gene_ids"].max(initial=0) < tokenizer().vocab_size


def recipe(content: bytes) -> None:
    """A recipe of training, of a corpus, of an evaluation."""
    from scmmgpt.training.corpus.recipe import CorpusRecipe
    from scmmgpt.training.eval_suite import Suite
    from scmmgpt.training.mini.recipe import MiniRecipe
    from scmmgpt.training.settings import Stage1Settings, Stage2Settings
    from scmmgpt.training.strict_yaml import read_settings

    path = written("recipe.yaml", content)
    for kind in (Stage1Settings, Stage2Settings, CorpusRecipe, Suite, MiniRecipe):
        try:
            read_settings(path, kind)
        except UserError:
            continue


def calibration(content: bytes) -> None:
    """What a model directory says about its confidences."""
    from scmmgpt.processing.calibration_scmmgpt import FILE_NAME, Calibration

    path = written(FILE_NAME, content)
    try:
        assert Calibration.read(path).temperature(7) == Calibration.read(path).temperature(7)
    except UserError:
        return


def card(content: bytes) -> None:
    """The card of a model that is to be published."""
    from scmmgpt.hub_cards.repository_check import _check_card

    try:
        _check_card({"README.md": written("README.md", content)}, folder())
    except UserError:
        return


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (label_file, gene_names, gene_table, request_body, h5ad, recipe, calibration, card)
}


def small_h5ad() -> bytes:
    """A whole file of three cells: what mutations begin with."""
    from tiny_models import tiny_cells

    buffer = io.BytesIO()
    path = folder() / "seed.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny_cells(3).write_h5ad(path)
    buffer.write(path.read_bytes())
    return buffer.getvalue()


def seeds(name: str) -> list[bytes]:
    """Well-formed inputs of a target."""
    recipes = [path.read_bytes() for path in (ROOT / "training" / "recipes").glob("tiny*.yaml")]
    model = ROOT / "hub_cards" / "scmmgpt-mini"
    one_cell = [{"CD79A": 4, "MS4A1": 3}]
    csr = {"genes": ["CD79A", "LYZ"], "indptr": [0, 2], "indices": [0, 1], "data": [1.0, 2.0]}
    return {
        "label_file": [b"T cell\r\nB cell\nmonocyte\n", b'{"T cell": "a cell", "B cell": ""}', b'["T cell"]'],
        "gene_names": [b"CD3D\nENSG00000141510.18\nGRCh38_TP53\nTP53-1\nRPL3", b"ENSMUSG00000059552\nTrp53"],
        "gene_table": [b"gene\tensembl_id\tmedian\tmass\nCD3D\tENSG00000167286\t2.5\t0.5\nLYZ\t\t1.0\t0.5\n"],
        "request_body": [
            json.dumps({"task": task, "cells": cells, "text": "B cells", "labels": ["B cell"]}).encode()
            for task in ("annotate", "embed", "search", "describe", "generate")
            for cells in (one_cell, csr)
        ],
        "h5ad": [small_h5ad()],
        "recipe": [*recipes, b"a: &a [1]\nb: [*a, *a]\n", b"output: x\ndata: {corpus: corpus}\n"],
        "calibration": [(model / "calibration.json").read_bytes()],
        "card": [(model / "README.md").read_bytes()[:4000], b"---\nlicense: mit\n---\n# x\n"],
    }[name]
