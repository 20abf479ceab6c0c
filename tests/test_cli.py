"""The shell command answers at once, says what went wrong in a few lines, and ends with the right code."""

import json
import os
import shutil
import subprocess
import sys

import anndata
import numpy as np
import pytest
from tiny_corpus import gene_tokenizer, make_cells, write_cells
from tiny_models import tiny_cells, write_tiny_model

from scmmgpt import errors
from scmmgpt.cli import app
from scmmgpt.console import run_to_exit_code, say_table

VERBS = [
    "demo",
    "info",
    "doctor",
    "annotate",
    "embed",
    "describe",
    "chat",
    "search",
    "index",
    "generate",
    "corpus",
    "convert",
    "finetune",
    "eval",
    "export",
    "audit",
    "harmonise",
    "mcp",
    "push",
    "serve",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    write_tiny_model(folder / "model", is_trained=False)
    tiny_cells().write_h5ad(folder / "cells.h5ad")
    (folder / "labels.txt").write_text("T cell\nB cell\nmonocyte\n")
    return folder


@pytest.fixture
def shell(folder, monkeypatch, capsys):
    """Run the command in a folder with cells and a model: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def run(*arguments: str, debug: bool = False) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_to_exit_code(lambda: app(list(arguments), prog_name="scmmgpt", standalone_mode=False), debug=debug)
        return code, *capsys.readouterr()

    return run


# ---- help


def test_help_answers_within_a_second_and_without_torch():
    program = (
        "import sys; sys.argv = ['scmmgpt', '--help']\n"
        "from scmmgpt.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'anndata', 'numpy', 'pandas', 'scanpy'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} were imported' if heavy else 0)"
    )

    def processor_seconds():  # a busy machine is no fault of ours
        used = os.times()
        return used.children_user + used.children_system

    seconds = []
    for _ in range(3):
        before = processor_seconds()
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        seconds.append(processor_seconds() - before)
        assert result.returncode == 0, result.stderr

    assert min(seconds) < 1
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", [*VERBS, "index build", "index push", "corpus build", "corpus audit", "export onnx"])
def test_every_verb_explains_itself(verb, shell):
    code, out, _ = shell(*verb.split(), "--help")

    assert code == 0
    assert "Usage: scmmgpt" in out
    assert verb in ("index", "corpus", "export") or "Example" in out


def test_the_version_is_told(shell):
    code, out, _ = shell("--version")

    assert code == 0
    assert out.strip().count(".") == 2


def test_completion_is_offered(shell):
    assert "--show-completion" in shell("--help")[1]


# ---- verbs


def test_a_corpus_is_built_and_audited_in_the_shell(shell, tmp_path):
    cells, corpus = write_cells(tmp_path / "cells", one=1, two=2), str(tmp_path / "corpus")
    gene_tokenizer().save_pretrained(tmp_path / "genes")
    (tmp_path / "recipe.yaml").write_text("shard_rows: 64\n")
    (cells / "broken.h5ad").write_bytes(b"no cells")
    build = "corpus", "build", str(cells), "--output", corpus, "--recipe", str(tmp_path / "recipe.yaml")
    build = *build, "--processor", str(tmp_path / "genes"), "--num-processes", "1"

    code, _, err = shell(*build)
    assert (code, "broken.h5ad" in err) == (2, True)

    code, out, err = shell(*build, "--on-error", "skip", "--json")
    assert code == 0, err
    assert json.loads(out) == {"output": corpus, "cells": 180}

    code, out, err = shell("corpus", "audit", corpus, "--scheme", "donor", "--json")
    assert code == 0, err
    assert json.loads(out)["scheme"] == "donor"


def test_an_audit_that_fails_says_so(shell, tmp_path):
    cells, corpus = make_cells(num_cells=150), str(tmp_path / "corpus")
    cells.obs["cell_type"] = np.random.default_rng(3).permutation(cells.obs["cell_type"])
    del cells.obs["cell_type_ontology_term_id"]
    cells.write_h5ad(tmp_path / "shuffled.h5ad")
    gene_tokenizer().save_pretrained(tmp_path / "genes")
    (tmp_path / "recipe.yaml").write_text("labels_at_chance: keep\n")
    build = "corpus", "build", str(tmp_path / "shuffled.h5ad"), "--recipe", str(tmp_path / "recipe.yaml")
    shell(*build, "--output", corpus, "--processor", str(tmp_path / "genes"))

    code, out, err = shell("corpus", "audit", corpus)

    assert code == 2
    assert "'at_chance': True" in out
    assert "fails the audit" in err


def test_an_audit_names_the_split_schemes_that_there_are(shell, tmp_path):
    cells, corpus = write_cells(tmp_path / "cells", one=1), str(tmp_path / "corpus")
    gene_tokenizer().save_pretrained(tmp_path / "genes")
    shell("corpus", "build", str(cells), "--output", corpus, "--processor", str(tmp_path / "genes"))

    code, _, err = shell("corpus", "audit", corpus, "--scheme", "weekday")

    assert code == 2
    assert "cell_type, donor, study, tissue" in err


def test_annotate_writes_the_columns_of_the_contract_and_says_what_it_found(shell, folder, tmp_path):
    output, report = tmp_path / "out.h5ad", tmp_path / "report.html"

    code, out, err = shell(
        *("annotate", "cells.h5ad", "--output", str(output), "--model", "model", "--labels", "labels.txt"),
        *("--min-confidence", "0", "--report", str(report)),
    )

    assert code == 0, err
    adata = anndata.read_h5ad(output)
    assert set(adata.obs) == {
        "leiden",
        "scmmgpt_candidates",
        "scmmgpt_cell_type",
        "scmmgpt_cell_type_ontology_term_id",
        "scmmgpt_confidence",
        "scmmgpt_second_choice",
    }
    assert set(adata.obs["scmmgpt_cell_type"]) <= {"T cell", "B cell", "monocyte"}
    assert "scmmgpt" in adata.uns
    assert "100 of 100 human genes" in out
    assert "untrained" in err
    assert report.read_text().startswith("<!doctype html>")


def test_json_is_one_document_and_nothing_else(shell, tmp_path):
    output = tmp_path / "out.h5ad"

    _, out, _ = shell(
        *("annotate", "cells.h5ad", "--output", str(output), "--model", "model", "--labels", "labels.txt", "--json"),
        *("--min-confidence", "0"),
    )

    result = json.loads(out)
    assert result["cells"] == 60
    assert sum(row["cells"] for row in result["cell_types"]) == 60
    assert result["output"] == str(output)


def test_embed_says_where_the_vectors_are(shell, tmp_path):
    code, out, _ = shell("embed", "cells.h5ad", "--output", str(tmp_path / "out.zarr"), "--model", "model", "--json")

    assert code == 0
    assert json.loads(out)["shape"] == [60, 16]
    assert "X_scmmgpt" in anndata.read_zarr(tmp_path / "out.zarr").obsm


def test_describe_writes_a_text_per_cell(shell, tmp_path):
    output = tmp_path / "out.h5ad"

    code, _, err = shell(
        *("describe", "cells.h5ad", "--output", str(output), "--model", "model", "--cluster-key", "leiden"),
        *("--max-new-tokens", "4"),
    )

    assert code == 0, err
    assert anndata.read_h5ad(output).obs["scmmgpt_description"].notna().all()


def test_search_prints_a_table_or_json(shell):
    code, out, _ = shell("search", "cells.h5ad", "a T cell", "--top", "3", "--model", "model")
    _, as_json, _ = shell("search", "cells.h5ad", "a T cell", "--top", "3", "--model", "model", "--json")

    assert code == 0
    rows = json.loads(as_json)
    assert len(rows) == 3
    assert rows[0]["score"] >= rows[1]["score"]
    assert rows[0]["cell"] in out


def test_columns_that_do_not_fit_are_named_instead_of_squeezed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    rows = [{"cell": "AACACTCTTCCCGT-2", "score": 0.5, "note": "long " * 20, "tissue": "blood", "assay": "10x 3' v3"}]

    say_table(rows, as_json=False)

    table, _, left_out = capsys.readouterr().out.partition("Not shown here")
    assert "AACACTCTTCCCGT-2" in table
    assert "blood" in table
    assert left_out.strip().endswith("note")


def test_a_table_that_is_cut_says_how_many_rows_are_missing(capsys):
    rows = [{"cell_type": f"type {number}", "cells": 1} for number in range(27)]

    say_table(rows, as_json=False, most=20)

    out = capsys.readouterr().out
    assert "type 19" in out
    assert "type 20" not in out
    assert out.splitlines()[-1].startswith("and 7 more")


def test_generate_is_the_same_for_the_same_seed(shell, tmp_path):
    files = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    for file in files:
        code, _, err = shell(
            *("generate", "a B cell", "--num-cells", "4", "--seed", "5", "--output", str(file), "--model", "model")
        )
        assert code == 0, err

    one, two = map(anndata.read_h5ad, files)
    assert (one.X != two.X).nnz == 0
    assert {"feature_name", "feature_id"} <= set(one.var)


def test_chat_answers_each_question(shell):
    code, out, err = shell("chat", "cells.h5ad", "--model", "model", "--ask", "What is it?", "--ask", "Why?", "--json")

    assert code == 0, err
    assert [turn["question"] for turn in json.loads(out)["turns"]] == ["What is it?", "Why?"]


def test_doctor_says_what_would_be_read(shell):
    code, out, _ = shell("doctor", "cells.h5ad", "--model", "model", "--json")

    account = json.loads(out)
    assert code == 0
    assert (account["matrix"], account["matrix_state"], account["num_matched"]) == ("X", "counts", 100)
    assert account["warnings"] == []


def test_doctor_gives_people_a_line_for_each_thing_and_none_for_what_is_empty(shell):
    _, out, _ = shell("doctor", "cells.h5ad", "--model", "model")

    lines = out.splitlines()
    assert "matched, direct: 100" in lines
    assert not [line for line in lines if line.startswith(("several_species", "alternative_species", "warnings"))]
    assert not set("{}[]") & set(out)


def test_info_tells_versions_and_what_the_model_is(shell):
    code, out, _ = shell("info", "model", "--json")

    assert code == 0
    assert json.loads(out)["trained"] is False


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(
            ["chat", "--cluster-key", "leiden", "--select", "99"], "no clusters of 'leiden' ['99']", id="cluster"
        ),
        pytest.param(["chat", "--select", "99"], "no cells ['99']", id="cell"),
        pytest.param(["chat", "--cluster-key", "nocol"], "no column 'nocol'", id="column of chat"),
        pytest.param(["chat", "--ask", " "], "question is empty", id="question"),
        pytest.param(["describe", "--output", "o.h5ad", "--cluster-key", "nocol"], "no column 'nocol'", id="column"),
    ],
)
def test_what_a_language_model_cannot_be_asked_is_refused_before_one_is_looked_for(
    shell, monkeypatch, arguments, reason
):
    monkeypatch.setattr("scmmgpt.chat_model.language_source", lambda model: pytest.fail("a model was looked for"))

    code, _, err = shell(*arguments, "cells.h5ad", *(["--ask", "hi"] if arguments[0] == "chat" else []))

    assert code == 2
    assert reason in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(["anotate"], "Did you mean", id="unknown verb"),
        pytest.param(["annotate"], "Missing", id="no file"),
        pytest.param(["annotate", "cells.h5ad"], "--output", id="no output"),
        pytest.param(["annotate", "nothing.h5ad", "--output", "o.h5ad"], "There is no file", id="no such file"),
        pytest.param(["embed", "cells.h5ad", "--output", "cells.h5ad"], "never overwritten", id="output is input"),
        pytest.param(["embed", "cells.h5ad", "--output", "./../{here}/cells.h5ad"], "never", id="the same by detour"),
        pytest.param(["embed", "cells.h5ad", "--output", "no/where.h5ad"], "does not exist", id="unwritable"),
        pytest.param(["embed", "cells.h5ad", "--output", "o.h5ad", "--model", "."], "not a model", id="no model"),
        pytest.param(["annotate", "cells.h5ad", "--output", "o.h5ad", "--labels", "x"], "label file", id="no labels"),
        pytest.param(
            ["annotate", "cells.h5ad", "--output", "o.h5ad", "--min-confidence", "7"], "--min-confidence", id="range"
        ),
        pytest.param(
            ["embed", "cells.h5ad", "--output", "o.h5ad", "--key-added", "a/b"], 'no "/"', id="key is a path"
        ),
        pytest.param(["embed", "cells.h5ad", "--output", "o.h5ad", "--key-added", ""], "not empty", id="key is empty"),
        pytest.param(
            ["annotate", "cells.h5ad", "--output", "o.h5ad", "--library-key", "foo"],
            "no column 'foo'",
            id="no section",
        ),
        pytest.param(["search", "cells.h5ad", " "], "empty", id="empty text"),
        pytest.param(["search", "cells.h5ad", "a", "--where", "b=1"], "leiden", id="unknown column"),
        pytest.param(["index", "build", "cells.h5ad", "--output", "model"], "already there", id="index exists"),
    ],
)
def test_a_mistake_is_told_in_a_few_lines_and_leaves_everything_as_it_was(shell, folder, arguments, reason):
    before = {path.name for path in folder.iterdir()}
    arguments = [argument.replace("{here}", folder.name) for argument in arguments]
    if arguments[0] in ("annotate", "embed", "search") and "--model" not in arguments and len(arguments) > 2:
        arguments += ["--model", "model"]

    code, out, err = shell(*arguments)

    assert code == 2
    assert out == ""
    assert reason in err
    assert len(err.splitlines()) <= 6
    assert "Traceback" not in err
    assert {path.name for path in folder.iterdir()} == before


def test_a_task_that_cannot_be_measured_is_told_with_those_that_can(shell):
    code, _, err = shell("eval", "cells.h5ad", "--label", "cell_type", "--output", "results", "--task", "taste")

    assert code == 2
    assert "description" in err


def test_data_that_the_processor_refuses_are_the_users_mistake(shell, folder, tmp_path):
    cells = tiny_cells(5)
    cells.X[0, 0] = float("nan")
    cells.write_h5ad(tmp_path / "nan.h5ad")

    code, _, err = shell("embed", str(tmp_path / "nan.h5ad"), "--output", str(tmp_path / "o.h5ad"), "--model", "model")

    assert code == 2
    assert "nan" in err.lower()
    assert [path.name for path in tmp_path.iterdir()] == ["nan.h5ad"]


def test_debug_shows_where_it_happened(shell):
    _, _, err = shell("embed", "nothing.h5ad", "--output", "o.h5ad", debug=True)

    assert "Traceback" in err
    assert "There is no file" in err.splitlines()[-1]


def test_our_own_fault_ends_with_one(capsys):
    def broken():
        return [][0]

    assert run_to_exit_code(broken) == 1
    assert "IndexError" in capsys.readouterr().err


def test_an_operation_that_fails_inside_our_code_is_no_mistake_of_the_user(capsys):
    import numpy as np

    from scmmgpt.index import best_rows

    assert run_to_exit_code(lambda: best_rows(np.ones((3, 4)), np.ones(5), 1)) == 1
    assert "not yours" in capsys.readouterr().err


def test_a_check_of_our_own_that_fails_is_no_mistake_of_the_user(capsys):
    from scmmgpt.training.evaluation.metrics import accuracy

    assert run_to_exit_code(lambda: accuracy(["T cell"], [])) == 1
    assert "not yours" in capsys.readouterr().err


def test_the_processor_raises_user_errors_alone():
    """Whatever `processing` refuses is for the person to mend, so that nobody has to guess who raised an error."""
    cells = tiny_cells(3)
    cells.var_names = [f"nothing{number}" for number in range(cells.n_vars)]

    with pytest.raises(errors.UserError, match="in the vocabulary"):
        gene_tokenizer()(cells)


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "damaged"],
        ["doctor", "cells.h5ad", "--model", "damaged"],
        ["search", "cells.h5ad", "a", "--model", "damaged"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_damaged_model_is_named(arguments, shell, folder):
    if not (folder / "damaged").exists():
        shutil.copytree(folder / "model", folder / "damaged")
        config = json.loads((folder / "damaged" / "config.json").read_text())
        config["qformer_config"]["num_query_tokens"] = 0
        (folder / "damaged" / "config.json").write_text(json.dumps(config))

    code, _, err = shell(*arguments)

    assert code == 2
    assert "'damaged' is incomplete or damaged" in err


def test_a_question_leaves_the_place_of_the_cells_to_us(shell):
    code, _, err = shell("chat", "cells.h5ad", "--model", "model", "--ask", "What is <cell>?")

    assert code == 2
    assert "must not hold '<cell>'" in err


def test_an_interruption_says_how_to_go_on(shell, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("scmmgpt.api.embed", interrupted)

    code, _, err = shell("embed", "cells.h5ad", "--output", "interrupted.h5ad")

    assert code == 130
    assert "same command" in err


def test_a_missing_extra_is_named_in_one_line(shell, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(errors, "import_module", absent)

    code, _, err = shell("demo", "--model", "model")

    assert code == 2
    assert err.splitlines() == ['scmmgpt: This needs the package `scanpy`: pip install "scmmgpt[eval]"']
