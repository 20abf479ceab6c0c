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


def test_the_annotate_command_starts_without_what_it_does_not_use():
    stands_in = "from scmmgpt.on_first_use import StandIn\n"
    (loaded,) = run_python(LEAN + stands_in + "print(*(n for n, m in sys.modules.items() if type(m) is not StandIn))")

    heavy = {"numba", "sympy", "scipy.optimize", "scipy.special", "torch._inductor", "torch._dynamo.utils"}
    assert heavy.isdisjoint(loaded.split())


def test_after_a_lean_start_whoever_compiles_gets_the_real_compiler():
    code = (
        LEAN + "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item(), torch._dynamo.__file__)"
    )

    (line,) = run_python(code)

    assert line.startswith("2.0 ")
    assert line.endswith("__init__.py")


def test_after_a_lean_start_models_train_and_auto_classes_work():
    code = (
        LEAN
        + """
import transformers
model = api.load(generative=True).model
loss = sum(parameter.float().square().sum() for parameter in model.parameters())
loss.backward()
torch.optim.AdamW(model.parameters()).step()
print(type(transformers.AutoModel.from_pretrained(sys.argv[1])).__name__, transformers.pipelines.__name__)
print(transformers.BertConfig().model_type, torch.export.Dim("rows").__name__, torch.empty(3, device="meta").exp().shape[0])
"""
    )

    assert run_python(code, str(EMBEDDED_MODEL)) == ["ScMMGPTModel transformers.pipelines", "bert rows 3"]


def test_a_lean_start_gives_the_weights_of_any_other():
    code = "l = api.load()\nfor name, value in l.model.state_dict().items(): print(name, value.double().sum().item())"

    assert run_python(LEAN + code) == run_python("from scmmgpt import api\n" + code)


def test_after_a_lean_start_the_old_names_of_weights_of_others_are_still_read(tmp_path):
    code = (
        LEAN
        + """
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel
folder = Path(sys.argv[1])
config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
BertModel(config).save_pretrained(folder)
weights = load_file(folder / "model.safetensors")
old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value + 2 for name, value in weights.items()}
save_file(old, folder / "model.safetensors", {"format": "pt"})
read = BertModel.from_pretrained(folder).state_dict()
print(all(torch.equal(read[name], value + 2) for name, value in weights.items()), len(old.keys() - weights.keys()))
"""
    )

    assert run_python(code, str(tmp_path)) == ["True 3"]


def test_what_waits_exists_and_can_be_called_or_looked_up():
    code = (
        LEAN
        + """
from importlib import import_module
from scmmgpt.on_first_use import imports
handed_out = list(imports.awaited)
for module, name in handed_out:
    real = getattr(imports.real(module), name)
    if not (callable(real) or hasattr(real, "__getitem__") or hasattr(real, "__dict__")):
        print(module, name, real)
print(len(handed_out) > 20)
"""
    )

    assert run_python(code) == ["True"]


ANNOTATE = """
import sys
from scmmgpt.cli import app
app(["annotate", *sys.argv[1:], "--json"], standalone_mode=False)
"""


def test_the_command_writes_its_report_after_a_lean_start(tmp_path):
    cells = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
    call = [str(cells), "--output", str(tmp_path / "out.h5ad"), "--report", str(tmp_path / "page.html")]

    loaded = run_python(ANNOTATE + "print(*sys.modules, sep='\\n')", *call)

    assert "numba" not in loaded  # compiling a map took six seconds
    assert "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.fixture
def start_up(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks import start_up

    return start_up


def test_a_budget_that_is_exceeded_by_a_fifth_is_warned_of(start_up):
    (name, *_) = start_up.BUDGETS

    (said,) = start_up.warnings_of({name: 1.21 * start_up.BUDGETS[name]})

    assert name in said
    assert start_up.warnings_of({name: 1.19 * start_up.BUDGETS[name]}) == []


@pytest.mark.slow
def test_the_start_keeps_its_budgets(start_up, tmp_path):
    pytest.importorskip("scanpy")
    start_up.write_cells(tmp_path)

    found = start_up.ratios(tmp_path, 3)

    assert start_up.warnings_of(found) == []


@pytest.mark.slow
def test_the_annotate_command_imports_no_package_that_it_does_not_use(start_up, tmp_path):
    pytest.importorskip("scanpy")
    start_up.write_cells(tmp_path)

    _, packages = start_up.annotate(tmp_path)

    assert set(packages).isdisjoint({"scanpy", "sklearn", "matplotlib", "trl", "peft", "datasets", "numba"})
