"""Who may import whom, and that the islands load from a flat Hub repository: we ask the Hub loader itself."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).parents[1]
ISLANDS = ("modeling_scmmgpt", "processing")
FOLDERS = {
    "modeling_scmmgpt": ROOT / "modeling_scmmgpt",
    "processing": ROOT / "processing",
    "training": ROOT / "training",
    "hub_cards": ROOT / "hub_cards",
    "": ROOT / "src" / "scmmgpt",
}
REMOTE_PACKAGES = {"huggingface_hub", "numpy", "safetensors", "scipy", "torch", "transformers"} | set(
    sys.stdlib_module_names
)
# The front door's ground floor knows no verbs, so that whoever stands below may build on it.
GROUND_FLOOR = {
    *(
        "arguments",
        "errors",
        "hashes",
        "progress",
        "atomic_files",
        "storage",
        "device",
        "version",
        "loading",
    )
}
# These measure the finished model through the very functions that people call.
MEASURES_THE_FRONT_DOOR = (
    "author_words.py",
    "model_system.py",
    "eval_suite.py",
    "out_of_distribution.py",
    "planted_swaps.py",
    "proteins.py",
    "perturbation.py",
    "renamed_species.py",
    "space.py",
    "species_calibration.py",
    "context_pictures.py",
)
# What each room of the training code may import of training. What a person runs stands above the rooms of conversion,
# of corpora and of evaluation, and the embedded model above all of them.
READER = "strict_yaml"
ROOMS = {"conversion": {"conversion"}, "corpus": {"corpus", READER}, "evaluation": {"evaluation", "corpus", READER}}
# The makers of the models in the package may use all that is built, as a person would.
TOP_ROOMS = {"mini", "chat"}
MAX_LINES = 450
# The Hub gets the file of the saved class and its siblings: all classes of the model stand together, so that every
# checkpoint serves every Auto class.
LONGER = {"modeling_scmmgpt.py": 700}


def python_files(folder):
    return sorted(file for file in folder.rglob("*.py") if "scmmgpt-mini" not in file.parts)


REMOTE_FILES = [file for island in ISLANDS for file in python_files(FOLDERS[island]) if file.name[0] != "_"]
ALL_FILES = [(folder, file) for folder, place in FOLDERS.items() for file in python_files(place)]


# ---- the rules, each a function of a file that names what breaks it


def hidden_from_the_hub(file):
    """Relative imports that the Hub loader does not see, sees where there are none, or that name no sibling."""
    tree = ast.parse(file.read_text())
    written = {
        ("." * node.level)[1:] + (node.module or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    }
    found = set(get_relative_imports(file))
    return sorted((found ^ written) | {name for name in written if not (file.parent / f"{name}.py").exists()})


def extra_packages(file):
    """Packages that every user of the Hub repository would have to install."""
    return sorted(set(get_imports(file)) - REMOTE_PACKAGES)


def imports(file, folder):
    """(module below scmmgpt, whether it is loaded with the file) for everything of scmmgpt that a file imports."""
    source = ast.parse(file.read_text())
    later = {
        node for function in ast.walk(source) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    } | {node for test in ast.walk(source) if isinstance(test, ast.If) for node in ast.walk(test)}
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, folder, file)
            names = (
                [f"{module}.{alias.name}" for alias in node.names]
                if module in ("scmmgpt", "", "scmmgpt.training")
                else [module]
            )
        else:
            continue
        for name in names:
            if name == "scmmgpt" or name.startswith("scmmgpt."):
                yield name.removeprefix("scmmgpt").removeprefix("."), node not in later


def absolute(node, folder, file):
    if not node.level:
        return node.module
    package = ["scmmgpt", *filter(None, [folder]), *file.relative_to(FOLDERS[folder]).parent.parts]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *filter(None, [node.module])])


def forbidden_imports(file, folder):
    """Imports against the arrows: front door -> training, hub_cards -> islands; islands -> nobody."""
    return sorted({name for name, at_once in imports(file, folder) if not may_import(file, folder, name, at_once)})


def against_the_rooms(file):
    """Imports of a room of training from one that stands above it."""
    place = file.relative_to(FOLDERS["training"]).parts
    room = place[0] if len(place) > 1 else ""
    of_training = {name.split(".")[1] for name, _ in imports(file, "training") if name.startswith("training.")}
    return sorted(
        name
        for name in of_training
        if room not in TOP_ROOMS and (name in TOP_ROOMS or name not in ROOMS.get(room, {name}))
    )


def may_import(file, folder, name, at_once):
    first = name.partition(".")[0]
    if folder in ISLANDS:
        return first == folder
    if folder == "training":
        if first in ("cli", ""):
            return False
        below = {"training", "hub_cards", *ISLANDS, *GROUND_FLOOR}
        return first in below or file.name in MEASURES_THE_FRONT_DOOR or file.parent.name in TOP_ROOMS
    if folder == "hub_cards":
        return first != "cli"
    # The front door loads what trains and what publishes only when a verb needs it.
    return first != "training" and (first != "hub_cards" or name == "hub_cards") or not at_once


# ---- the rules hold


@pytest.mark.parametrize("file", REMOTE_FILES, ids=lambda file: file.name)
def test_a_remote_file_imports_only_siblings_that_the_loader_can_see(file):
    assert hidden_from_the_hub(file) == []


@pytest.mark.parametrize("file", REMOTE_FILES, ids=lambda file: file.name)
def test_a_remote_file_asks_hub_users_for_no_extra_package(file):
    assert extra_packages(file) == []


def test_remote_file_names_are_unique():
    names = [file.name for file in REMOTE_FILES] + [file.name for file in FOLDERS["hub_cards"].glob("*_scmmgpt.py")]

    assert [name for name, count in Counter(names).items() if count > 1] == []


@pytest.mark.parametrize("island", ISLANDS)
def test_islands_are_flat(island):
    assert [file for file in python_files(FOLDERS[island]) if file.parent != FOLDERS[island]] == []


def test_every_import_follows_the_arrows():
    against = {file.name: forbidden_imports(file, folder) for folder, file in ALL_FILES}

    assert {name: modules for name, modules in against.items() if modules} == {}


def test_no_room_of_training_imports_from_above():
    against = {file.name: against_the_rooms(file) for file in python_files(FOLDERS["training"])}

    assert {name: rooms for name, rooms in against.items() if rooms} == {}


def test_no_file_is_longer_than_one_reads_in_one_go():
    lengths = {file.name: len(file.read_text().splitlines()) for _, file in ALL_FILES}

    assert {name: length for name, length in lengths.items() if length > LONGER.get(name, MAX_LINES)} == {}


# ---- breaking a rule on purpose is noticed


@pytest.mark.parametrize(
    ("source", "what"),
    [
        pytest.param("from . import sibling", "", id="a sibling by its package"),
        pytest.param("from ..processing.x import y", ".processing.x", id="the other island"),
        pytest.param("from .sub.x import y", "sub.x", id="a folder"),
        pytest.param("from .ghost import y", "ghost", id="a file that is not there"),
        pytest.param('"""Text\n    from .ghost import y\n"""', "ghost", id="prose that reads like an import"),
    ],
)
def test_an_import_that_breaks_on_the_hub_is_found(tmp_path, source, what):
    (tmp_path / "sibling.py").write_text("")
    (tmp_path / "file.py").write_text(source)

    assert what in hidden_from_the_hub(tmp_path / "file.py")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import anndata", id="at the top"),
        pytest.param("def f():\n    import anndata", id="in a function"),
        pytest.param(
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import anndata", id="for type checkers"
        ),
    ],
)
def test_a_package_that_hub_users_would_need_is_found(tmp_path, source):
    (tmp_path / "file.py").write_text(source)

    assert extra_packages(tmp_path / "file.py") == ["anndata"]


def test_what_the_hub_allows_is_allowed(tmp_path):
    (tmp_path / "sibling.py").write_text("")
    (tmp_path / "file.py").write_text(
        "from .sibling import (\n    y,\n)\ntry:\n    import anndata\nexcept ImportError: ..."
    )

    assert hidden_from_the_hub(tmp_path / "file.py") == extra_packages(tmp_path / "file.py") == []


@pytest.mark.parametrize(
    ("folder", "source", "found"),
    [
        ("modeling_scmmgpt", "from scmmgpt.processing import x", "processing"),
        ("modeling_scmmgpt", "from ..processing.y import x", "processing.y"),
        ("modeling_scmmgpt", "def f():\n    import scmmgpt.errors", "errors"),
        ("processing", "from ..modeling_scmmgpt import x", "modeling_scmmgpt"),
        ("processing", "from scmmgpt import errors", "errors"),
        ("processing", "from ..training import x", "training.x"),
        ("training", "def f():\n    from scmmgpt.api import annotate", "api"),
        ("training", "from ..cli import main", "cli"),
        ("training", "from scmmgpt import annotate", "annotate"),
        ("hub_cards", "from ..cli import main", "cli"),
        ("", "from .training.corpus.build import build", "training.corpus.build"),
        ("", "from . import training", "training"),
        ("", "from .hub_cards.push import push", "hub_cards.push"),
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path, monkeypatch, folder, source, found):
    monkeypatch.setitem(FOLDERS, folder, tmp_path)
    (tmp_path / "file.py").write_text(source)

    assert forbidden_imports(tmp_path / "file.py", folder) == [found]


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("modeling_scmmgpt", "from .sibling import x\nfrom transformers import AutoModel"),
        (
            "training",
            "from scmmgpt.processing import x\nfrom ..modeling_scmmgpt.y import z\nfrom ..errors import UserError",
        ),
        ("hub_cards", "from ..api import annotate"),
        ("", "def f():\n    from .training.corpus.build import build"),
    ],
)
def test_an_import_along_the_arrows_is_allowed(tmp_path, monkeypatch, folder, source):
    monkeypatch.setitem(FOLDERS, folder, tmp_path)
    (tmp_path / "file.py").write_text(source)

    assert forbidden_imports(tmp_path / "file.py", folder) == []


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("corpus", "from ..settings import x", ["settings"]),
        ("corpus", "from ..strict_yaml import x\nfrom .reading import y", []),
        ("corpus", "def f():\n    from scmmgpt.training.evaluation.metrics import x", ["evaluation"]),
        ("evaluation", "from ..corpus.checks import x", []),
        ("evaluation", "from scmmgpt.training import stage1", ["stage1"]),
        (".", "from .mini.recipe import x", ["mini"]),
        (".", "from .evaluation.metrics import x\nfrom .settings import y", []),
        ("mini", "from ..stage1 import x\nfrom ..evaluation.metrics import y", []),
    ],
)
def test_an_import_from_a_room_above_is_found(tmp_path, monkeypatch, room, source, found):
    monkeypatch.setitem(FOLDERS, "training", tmp_path)
    (tmp_path / room).mkdir(exist_ok=True)
    (tmp_path / room / "file.py").write_text(source)

    assert against_the_rooms(tmp_path / room / "file.py") == found


def dangerous_calls(file):
    """Calls that run what a file or a person says."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if name in ("eval", "exec", "os.system", "os.popen", "yaml.load", "pickle.load"):
            yield f"{file.name}: {name}"
        if options.get("shell") == "True":
            yield f"{file.name}: {name} through a shell"
        if name == "torch.load" and options.get("weights_only") != "True":
            yield f"{file.name}: torch.load of more than weights"


def test_nothing_is_evaluated_unpickled_or_given_to_a_shell():
    folders = [*FOLDERS.values(), ROOT / "benchmarks", ROOT / "examples"]

    assert [call for folder in folders for file in python_files(folder) for call in dangerous_calls(file)] == []


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("eval(text)", id="eval"),
        pytest.param("subprocess.run(command, shell=True)", id="shell"),
        pytest.param("torch.load(path)", id="pickle-of-torch"),
        pytest.param("yaml.load(text, Loader)", id="yaml"),
    ],
)
def test_a_dangerous_call_is_found(tmp_path, source):
    (tmp_path / "module.py").write_text(source)

    assert len(list(dangerous_calls(tmp_path / "module.py"))) == 1


def test_a_warning_is_an_error_but_for_messages_of_other_packages_named_one_by_one(pytestconfig):
    first, *ignored = pytestconfig.getini("filterwarnings")

    assert first == "error"
    for rule in ignored:
        action, message, category, module = rule.split(":")
        assert action == "ignore"
        assert message
        assert category.endswith("Warning")
        assert module
        assert not module.startswith("scmmgpt")
