"""What a process pays for `import scmmgpt`, and that transformers still finds every class."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import scmmgpt
from scmmgpt.hub_cards import EMBEDDED_MODEL

HEAVY = ["torch", "transformers", "anndata", "pandas", "scipy", "numba", "numpy", "scanpy", "sklearn"]
FOUND = {
    "AutoConfig": "ScMMGPTConfig",
    "AutoModel": "ScMMGPTModel",
    "AutoModelForPreTraining": "ScMMGPTForPreTraining",
    "AutoProcessor": "ScMMGPTProcessor",
    "AutoFeatureExtractor": "ScMMGPTGeneTokenizer",
    "AutoTokenizer": "TokenizersBackend",
}
IMPORTS = {
    "scmmgpt first": "import scmmgpt, transformers",
    "transformers first": "import transformers, scmmgpt",
    "the classes first": "from transformers import AutoModel, AutoProcessor, pipelines; import scmmgpt, transformers",
}
LOAD = """
import sys
for name in sys.argv[2:]:
    print(type(getattr(transformers, name).from_pretrained(sys.argv[1])).__name__)
"""


def run_python(code: str, *arguments: str) -> list[str]:
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=offline)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_import_brings_nothing_heavy():
    (loaded,) = run_python("import json, sys, scmmgpt; print(json.dumps(list(sys.modules)))")

    assert {name.partition(".")[0] for name in json.loads(loaded)}.isdisjoint(HEAVY)


def test_an_auto_class_for_other_models_brings_none_of_ours():
    code = (
        "import sys, scmmgpt, transformers; transformers.AutoConfig.for_model('bert'); print('\\n'.join(sys.modules))"
    )

    assert [name for name in run_python(code) if name.startswith("scmmgpt.")] == [
        "scmmgpt.auto_on_demand",
        "scmmgpt.version",
    ]


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS.keys())
def test_transformers_knows_our_classes_in_either_order_of_imports(imports):
    task = "\nprint(transformers.pipelines.check_task('cell-annotation')[1]['impl'].__name__)"

    found = run_python(imports + LOAD + task, str(EMBEDDED_MODEL), *reversed(FOUND))

    assert found == [*reversed(FOUND.values()), "CellAnnotationPipeline"]


@pytest.mark.slow
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS.keys())
@pytest.mark.parametrize("name", FOUND)
def test_an_auto_class_finds_ours_when_it_is_the_first_that_looks(name, imports):
    assert run_python(imports + LOAD, str(EMBEDDED_MODEL), name) == [FOUND[name]]


@pytest.mark.slow
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS.keys())
def test_a_task_is_found_when_it_is_the_first_that_is_looked_for(imports):
    code = imports + "\nprint(transformers.pipelines.check_task('cell-annotation')[1]['impl'].__name__)"

    assert run_python(code) == ["CellAnnotationPipeline"]


def test_a_type_checker_sees_every_public_name_where_it_comes_from():
    tree = ast.parse(Path(scmmgpt.__file__).read_text(encoding="utf-8"))
    (for_checkers,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {name.name: line.module for line in for_checkers.body for name in line.names}

    assert seen == scmmgpt._HOME


def test_loading_the_embedded_model_shows_no_bar(capfd):
    scmmgpt.load()

    assert capfd.readouterr().err == ""


LEAN = "from scmmgpt.lean_start import api; import sys, torch; api.load()\n"


def test_the_annotate_command_starts_without_the_compiler_and_what_it_brings():
    (loaded,) = run_python(LEAN + "print(' '.join(sys.modules))")

    heavy = {"torch._dynamo.utils", "torch._inductor", "torch.distributed.tensor", "sympy", "scipy.optimize"}
    assert heavy.isdisjoint(loaded.split())


def test_after_a_lean_start_whoever_compiles_gets_the_real_compiler():
    code = (
        LEAN + "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item(), torch._dynamo.__file__)"
    )

    (line,) = run_python(code)

    assert line.startswith("2.0 ")
    assert line.endswith("__init__.py")


ANNOTATE = """
import resource, sys
from scmmgpt.cli import app
app(["annotate", *sys.argv[1:], "--json"], standalone_mode=False)
print(" ".join({name.partition(".")[0] for name in sys.modules}))
print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
"""
FLOOR = """
import resource, torch, transformers.modeling_utils, anndata
print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
"""


@pytest.mark.slow
def test_annotation_costs_less_than_twice_the_imports_it_cannot_do_without(tmp_path):
    scanpy = pytest.importorskip("scanpy")
    scanpy.datasets.pbmc68k_reduced().write_h5ad(tmp_path / "cells.h5ad")
    call = [str(tmp_path / "cells.h5ad"), "--output", str(tmp_path / "out.h5ad")]
    run_python(ANNOTATE, *call, "--overwrite")  # compiles what is compiled once

    floor = float(run_python(FLOOR)[0])
    *_, modules, seconds = run_python(ANNOTATE, *call[:2], str(tmp_path / "again.h5ad"))

    assert set(modules.split()).isdisjoint(
        {"scanpy", "sklearn", "matplotlib", "trl", "peft", "datasets", "jinja2.ext"}
    )
    assert float(seconds) < 2 * floor
