"""The page that annotates cells in the browser: a folder for any static server, and for a static Space of the Hub.

The page is written in TypeScript (`space_static/`) and built by npm; the weights are those of `scmmgpt export onnx`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from scmmgpt.errors import UserError
from scmmgpt.loading import LoadedModel, ModelSource, load
from scmmgpt.processing.author_words_scmmgpt import author_words
from scmmgpt.processing.labels_scmmgpt import ontology_labels
from scmmgpt.progress import progress_bar
from scmmgpt.storage import written_by_rename
from scmmgpt.version import __version__

SOURCES = Path(__file__).parent / "space_static"
MODEL_FOLDER = "model"
PAGE_FILE, EMBEDS_FILE = "page.json", "ontology_embeds.f32"
LEAST_NODE = 20
MOST_BYTES = 60_000_000
# What npm and the tests leave in the folder of the sources.
_NOT_SOURCES = ("node_modules", "dist", "golden", "public")


def build_page(
    directory: str | os.PathLike, *, model: ModelSource = None, cells: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Write the page with a model; return its manifest.

    Parameters
    ----------
    directory
        A folder to write, which must not exist.
    model
        A directory, a Hub repository ("org/name"), a loaded model, or None for the model that comes with the package.
    cells
        Cells on which the export is checked, see `scmmgpt.onnx_export.export_onnx`.
    """
    from scmmgpt.onnx_export import export_onnx

    directory, npm = Path(directory), find_npm()
    if directory.exists():
        raise UserError(f"{str(directory)!r} exists: name a new folder, nothing is ever written over.")
    loaded = load(model)
    with written_by_rename(directory) as folder, tempfile.TemporaryDirectory() as workshop:
        with ThreadPoolExecutor(1) as beside, progress_bar("page", 3) as advance:
            built = beside.submit(_run_npm, npm, Path(workshop), folder)
            tables = Path(workshop) / MODEL_FOLDER
            manifest = export_onnx(tables, model=loaded, cells=cells)
            advance(1)
            write_page_tables(loaded, tables)
            _keep_what_is_read(tables)
            advance(1)
            built.result()
            shutil.move(tables, folder / MODEL_FOLDER)
            advance(1)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        size = sum(files.values())
        if size > MOST_BYTES:
            raise UserError(f"The page would have {size / 1e6:.0f} MB; {MOST_BYTES / 1e6:.0f} MB is the most.")
    return {"bytes": size, "files": files, "checked": manifest["checked"], "model": manifest["model"]}


def write_page_tables(loaded: LoadedModel, folder: Path) -> None:
    """What the page needs beside the export: the types of the training, and embeddings of the ontology's labels."""
    types = (getattr(loaded.config, "training_summary", None) or {}).get("cell_types") or ()
    name = loaded.describe()["name"]
    page = {"trained_types": list(types), "model": name, "version": __version__, "author_words": author_words()}
    (folder / PAGE_FILE).write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    embeds = loaded.embed_texts(ontology_labels(loaded.ontology).texts())
    (folder / EMBEDS_FILE).write_bytes(np.ascontiguousarray(embeds, dtype="<f4").tobytes())


def find_npm() -> str:
    """The path of npm, beside a Node that is new enough; refused in words where there is none."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise UserError(
            f"Building the page needs Node {LEAST_NODE} or newer with npm: https://nodejs.org, or your packages."
        )
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < LEAST_NODE:
        raise UserError(f"Building the page needs Node {LEAST_NODE} or newer; {node} is {version}.")
    return npm


def _run_npm(npm: str, workshop: Path, folder: Path) -> None:
    """Install what the lock file names into a folder that is thrown away, and build from it."""
    sources = workshop / "page"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns(*_NOT_SOURCES))
    for command in (
        ["ci", "--omit=dev", "--no-audit", "--no-fund"],
        ["run", "build", "--", "--outDir", str(folder.resolve())],
    ):
        done = subprocess.run([npm, *command], cwd=sources, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-5:]
            raise UserError(f"`npm {command[0]}` failed, so no page was written: {' '.join(said)}")


def _keep_what_is_read(folder: Path) -> None:
    """The page is small: what only Python reads stays out of it."""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
