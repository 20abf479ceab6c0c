"""What the package is installed from says the same everywhere: pyproject, conda, container, workflow."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from scmmgpt.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OTHER_NAMES = {"torch": "pytorch"}


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    asked = [one.replace(" ", "") for one in read_yaml("conda/recipe.yaml")["requirements"]["run"]]
    wanted = [
        re.sub(r"^[\w-]+", lambda name: OTHER_NAMES.get(name[0], name[0]), one)
        for one in PROJECT["project"]["dependencies"]
    ]

    assert read_yaml("conda/recipe.yaml")["context"]["version"] == __version__
    assert asked == [f"python{PROJECT['project']['requires-python']}", *wanted]


def test_rattler_build_accepts_the_conda_recipe():
    rattler_build = pytest.importorskip("rattler_build", reason="pip install py-rattler-build")
    recipe = rattler_build.Stage0Recipe.from_file(ROOT / "conda" / "recipe.yaml")

    (built,) = recipe.render(rattler_build.VariantConfig())

    assert built.recipe.to_dict()["package"] == {"name": "scmmgpt", "version": __version__}
    assert (ROOT / "conda" / built.recipe.to_dict()["source"][0]["path"]).resolve() == ROOT


def test_every_supported_python_blocks_in_the_workflow():
    test = read_yaml(".github/workflows/test.yml")["jobs"]["test"]
    named = {one.rsplit(" ", 1)[1] for one in PROJECT["project"]["classifiers"] if "Python :: 3." in one}

    assert named <= set(test["strategy"]["matrix"]["python"])
    assert not test.get("continue-on-error")
    assert {"newest", "lowest", "constraints.txt"} <= {
        *test["strategy"]["matrix"]["pins"],
        *(one["pins"] for one in test["strategy"]["matrix"]["include"]),
    }


def test_the_lowest_versions_are_those_of_pyproject():
    pins = subprocess.run([sys.executable, ROOT / ".ci" / "lowest"], capture_output=True, text=True, check=True).stdout

    for requirement in PROJECT["project"]["dependencies"]:
        name, lowest = re.match(r"([\w.-]+)>=([\w.]+)", requirement).groups()
        assert f"{name}=={lowest}.*" in pins.splitlines()


@pytest.mark.parametrize("group", PROJECT["dependency-groups"].values(), ids=PROJECT["dependency-groups"].keys())
def test_dependency_groups_name_extras_that_exist(group):
    extras = {extra for one in group if isinstance(one, str) for extra in re.search(r"\[(.+)\]", one)[1].split(",")}

    assert extras <= set(PROJECT["project"]["optional-dependencies"])


def test_the_container_runs_as_a_user_without_rights_and_says_whether_it_is_well():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()

    assert "USER scmmgpt" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert any(line.startswith("ARG TORCH") for line in lines)


def test_the_skill_names_commands_that_exist():
    from scmmgpt.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"`scmmgpt (\w+) ", (ROOT / "SKILL.md").read_text(encoding="utf-8")))

    assert named <= names | {"eval"}
    assert len(named) > 8


def test_what_the_core_needs_is_free_for_anybody_to_use_and_pass_on():
    pytest.importorskip("packaging")

    found = subprocess.run([sys.executable, ROOT / ".ci" / "licences"], capture_output=True, text=True)

    assert found.returncode == 0, found.stderr
    assert {"numpy", "scmmgpt", "transformers"} <= {line.partition("\t")[0] for line in found.stdout.splitlines()}
