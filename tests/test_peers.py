"""Other people's methods: names in the Cell Ontology's words, an environment of their own, and a plain refusal."""

from types import SimpleNamespace

import pytest

from scmmgpt.errors import UserError
from scmmgpt.training.evaluation import peers
from scmmgpt.training.evaluation.type_tree import TypeTree

TREE = TypeTree.load()


def test_every_meaning_given_by_hand_is_a_term_of_the_ontology():
    labels = {TREE.term(name).label for names in peers._MEANINGS.values() for name in names if TREE.find(name)}

    assert {name for names in peers._MEANINGS.values() for name in names} - labels == {"unknown"}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        pytest.param(("cdc2", "", ""), "CD1c-positive myeloid dendritic cell", id="by hand"),
        pytest.param(("treg", "regulatory T cell", "CL:0000815"), "regulatory T cell", id="by its own id"),
        pytest.param(("new", "Schwann cell", "new"), "Schwann cell", id="by its name"),
        pytest.param(("new", "odd cell", "new"), "odd cell", id="not at all"),
    ],
)
def test_a_name_of_cellconsensus_means_a_term(said, meant):
    row = SimpleNamespace(**dict(zip(("key", "name", "cl_id"), said, strict=True)))

    assert peers._meanings(row, TREE)[0] == meant


@pytest.mark.slow  # makes an environment
def test_a_registry_out_of_reach_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(UserError, match="no-such-peer==9 could not be installed from the package registry: ERROR"):
        peers.environment("no-such-peer==9", tmp_path)

    assert not (tmp_path / "no-such-peer-9" / "complete").exists()
