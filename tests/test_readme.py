"""Every block of the README runs: Python as written, in order; shell blocks as far as they need no network."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("scanpy", reason="the README's data comes with scanpy: pip install 'scmmgpt[eval]'")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str, heading: str | None = None) -> list[str]:
    text = README if heading is None else README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_python_blocks_run_in_order(tmp_path):
    code = "\n".join(blocks("python"))

    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-3000:]
    assert "scmmgpt_cell_type" in result.stdout


@pytest.fixture(scope="module")
def folder_with_cells(tmp_path_factory):
    import scanpy as sc

    folder = tmp_path_factory.mktemp("readme")
    sc.datasets.pbmc68k_reduced()[:40].copy().write_h5ad(folder / "cells.h5ad")
    return folder


@pytest.mark.parametrize("command", "".join(blocks("sh", "In a shell")).splitlines())
def test_shell_command_runs(command, folder_with_cells):
    program, *arguments = shlex.split(command)
    script = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    result = subprocess.run([script, *arguments], cwd=folder_with_cells, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", re.findall(r"training/\w+\.(?:py|yaml)|training/recipes/\w+\.yaml", README))
def test_named_files_exist(script):
    assert (ROOT / script).exists()


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
def test_named_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
