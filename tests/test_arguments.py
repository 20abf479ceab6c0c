"""A person can see what a verb takes, in the same words everywhere, and hears at once of a misspelt argument."""

import inspect

import pytest
from tiny_models import tiny_cells, write_tiny_model

import scmmgpt
from scmmgpt import index
from scmmgpt.arguments import SHARED_ARGUMENTS
from scmmgpt.console import USERS_MISTAKE, run_to_exit_code
from scmmgpt.errors import UserError

VERBS = [
    scmmgpt.annotate,
    scmmgpt.chat,
    scmmgpt.describe,
    scmmgpt.embed,
    scmmgpt.evaluate,
    scmmgpt.finetune,
    scmmgpt.generate_cells,
    scmmgpt.search,
    index.build_index,
]
every_verb = pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def parameters(verb):
    return inspect.signature(verb).parameters


@every_verb
def test_every_argument_stands_in_the_signature_with_its_type(verb):
    kinds = {parameter.kind for parameter in parameters(verb).values()}

    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters(verb).values())


@every_verb
def test_help_describes_every_argument_once(verb):
    lines = inspect.getdoc(verb).splitlines()

    assert [lines.count(name) for name in parameters(verb)] == [1] * len(parameters(verb))


@every_verb
def test_shared_arguments_have_one_order_and_one_default(verb):
    shared = [name for name in parameters(verb) if name in SHARED_ARGUMENTS]
    optional = [name for name in shared if parameters(verb)[name].default is not inspect.Parameter.empty]
    defaults = {name: parameters(scmmgpt.annotate)[name].default for name in optional}

    assert [name for name in shared if name != "output"] == [
        name for name in SHARED_ARGUMENTS if name in shared and name != "output"
    ]
    assert {name: parameters(verb)[name].default for name in optional} == defaults


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        pytest.param(lambda: scmmgpt.annotate("x", label=["T cell"]), "labels", id="annotate"),
        pytest.param(lambda: scmmgpt.embed("x", keyadded="mine"), "key_added", id="embed"),
        pytest.param(lambda: scmmgpt.describe("x", max_tokens=3), "max_new_tokens", id="describe"),
        pytest.param(lambda: scmmgpt.generate_cells("x", sed=3), "seed", id="generate_cells"),
        pytest.param(lambda: scmmgpt.chat("x", clusterkey="leiden"), "cluster_key", id="chat"),
        pytest.param(lambda: scmmgpt.evaluate("x", "y", output="z", donors="d"), "donor", id="evaluate"),
        pytest.param(lambda: scmmgpt.finetune("x", "y", output="z", shot=3), "shots", id="finetune"),
        pytest.param(lambda: scmmgpt.search("x", "y", bach_size=1), "batch_size", id="search"),
        pytest.param(lambda: index.build_index("x", "y", devise="cpu"), "device", id="build_index"),
    ],
)
def test_a_misspelt_argument_is_refused_with_the_nearest_name(call, nearest):
    with pytest.raises(UserError, match=f"did you mean '{nearest}'") as refused:
        call()

    assert isinstance(refused.value, TypeError)


def test_a_search_in_an_index_refuses_what_it_does_not_know(directory, tmp_path):
    index.build_index(tiny_cells(), tmp_path / "index", model=directory, progress=False)

    with pytest.raises(TypeError, match="batch_size"):
        scmmgpt.search(tmp_path / "index", "a T cell", model=directory, bach_size=1)
    with pytest.raises(TypeError, match="no argument 'nonsense'; it takes cells, text, top"):
        scmmgpt.search(tmp_path / "index", "a T cell", model=directory, nonsense=True)


def test_an_argument_of_another_verb_is_refused_before_any_work():
    with pytest.raises(TypeError, match="describe.. has no argument 'engine'"):
        scmmgpt.describe("cells.h5ad", model="no/such-model", engine="ray")


def test_a_misspelt_argument_is_the_callers_mistake(capsys):
    assert run_to_exit_code(lambda: scmmgpt.embed("x", devise="cpu")) == USERS_MISTAKE
    assert "device" in capsys.readouterr().err
