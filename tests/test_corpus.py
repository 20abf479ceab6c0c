"""Building a corpus: the same rows from any source, after any interruption, with every label traced and split."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pytest
from input_variants import write_zarr
from tiny_corpus import GENES, TYPES, files_of, gene_tokenizer, make_cells, write_cells

from scmmgpt.cli import app
from scmmgpt.console import run_to_exit_code
from scmmgpt.errors import UserError
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.corpus import build as corpus_module
from scmmgpt.training.corpus import shards as corpus_shards
from scmmgpt.training.corpus.audit import audit_corpus
from scmmgpt.training.corpus.build import build_corpus
from scmmgpt.training.corpus.metadata import resolve_label
from scmmgpt.training.corpus.reading import Corpus, Selection
from scmmgpt.training.corpus.recipe import CorpusRecipe, Quality
from scmmgpt.training.corpus.shards import CorpusError, to_model_values
from scmmgpt.training.corpus.sources import SourceError
from scmmgpt.training.corpus.splits import SplitSettings, split_scheme

ONTOLOGY = Ontology.read(Path(corpus_module.EMBEDDED_MODEL) / "cell_ontology.json.gz")
SMALL = CorpusRecipe(shard_rows=32, chunk_rows=10)
TOKENS = ["gene_ids", "gene_values"]


def build(source, output, recipe=SMALL, **options):
    options.setdefault("processor", gene_tokenizer())
    options.setdefault("say", lambda line: None)
    return build_corpus([str(source)], output, recipe=recipe, **options)


@pytest.fixture
def cells_folder(tmp_path):
    return write_cells(tmp_path / "cells", one=1, two=2)


def test_every_row_holds_the_tokens_of_its_cell(cells_folder, tmp_path):
    corpus = build(cells_folder, tmp_path / "corpus")

    cells = anndata.read_h5ad(cells_folder / "two.h5ad")
    expected = gene_tokenizer()(cells, packed=True)
    bounds = expected["cell_cu_seqlens"]
    rows = [row for row in corpus.dataset.with_format("numpy") if row["source"] == "two"]
    assert len(rows) == cells.n_obs
    for row in rows:
        mine = slice(bounds[row["row"]], bounds[row["row"] + 1])
        values = to_model_values(row["gene_values"], "log1p")
        assert row["gene_ids"].tolist() == expected["gene_ids"][0, mine].tolist()
        np.testing.assert_allclose(values, expected["gene_values"][0, mine], atol=1.3e-4)


def test_every_label_is_traced_to_its_source(cells_folder, tmp_path):
    corpus = build(cells_folder, tmp_path / "corpus")

    for row in corpus.dataset.remove_columns(TOKENS):
        obs = anndata.read_h5ad(cells_folder / f"{row['source']}.h5ad", backed="r").obs.iloc[row["row"]]
        assert (row["cell_id"], row["cell_type"], row["tissue"]) == (obs.name, obs["cell_type"], obs["tissue"])
        assert row["cell_type_ontology_term_id"] == TYPES[row["cell_type"]]
        assert row["donor"] == obs["donor_id"]


def test_datasets_reads_the_folder_by_itself(cells_folder, tmp_path):
    import datasets

    corpus = build(cells_folder, tmp_path / "corpus")

    rows = datasets.load_dataset(str(corpus.path), split="train", streaming=True)

    assert [row["cell_hash"] for row in rows] == corpus.dataset["cell_hash"][:]


def test_the_card_names_sources_licences_hashes_and_versions(cells_folder, tmp_path):
    corpus = build(cells_folder, tmp_path / "corpus")

    card = (corpus.path / "README.md").read_text()

    for source in corpus.manifest["sources"]:
        assert source["name"] in card
        assert source["content_hash"][:12] in card
    assert "CC0 (made for a test)" in card
    assert ONTOLOGY.version in card


def test_a_second_build_does_nothing(cells_folder, tmp_path):
    said = []
    corpus = build(cells_folder, tmp_path / "corpus")
    times = {path: path.stat().st_mtime_ns for path in (corpus.path / "data").iterdir()}

    build(cells_folder, tmp_path / "corpus", say=said.append)

    assert said == [f"{corpus.path} is complete and up to date: nothing to do."]
    assert times == {path: path.stat().st_mtime_ns for path in (corpus.path / "data").iterdir()}


@pytest.mark.parametrize("container", ["zarr", "csc", "dense", "soma"])
def test_other_containers_give_the_same_tokens_as_h5ad(container, cells_folder, tmp_path):
    expected = build(cells_folder / "one.h5ad", tmp_path / "expected")

    cells = anndata.read_h5ad(cells_folder / "one.h5ad")
    place = tmp_path / "one"
    if container == "zarr":
        write_zarr(cells, place)
    elif container == "soma":
        tiledbsoma_io = pytest.importorskip("tiledbsoma.io", reason="needs the census extra")
        tiledbsoma_io.from_h5ad(str(place), str(cells_folder / "one.h5ad"), measurement_name="RNA")
    else:
        cells.X = cells.X.tocsc() if container == "csc" else cells.X.toarray()
        place = place.with_suffix(".h5ad")
        cells.write_h5ad(place)
    corpus = build(place, tmp_path / "corpus")

    assert corpus.dataset.to_dict() == expected.dataset.to_dict()


def test_several_processes_build_what_one_builds(cells_folder, tmp_path):
    one = build(cells_folder, tmp_path / "one")

    two = build(cells_folder, tmp_path / "two", num_processes=2)

    assert files_of(one.path) == files_of(two.path)


def num_files(folder):
    """Files below a folder, which may come and go while they are counted."""
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_build_killed_ten_times_ends_with_the_same_bytes(num_processes, cells_folder, tmp_path):
    whole = tmp_path / "whole"
    command = [sys.executable, str(Path(__file__).with_name("tiny_corpus.py")), str(cells_folder)]
    subprocess.run([*command, str(whole), "1"], check=True, stdout=subprocess.DEVNULL)
    generator = np.random.default_rng(num_processes)
    killed = tmp_path / "killed"

    num_kills = 0
    while num_kills < 10:
        process = subprocess.Popen([*command, str(killed), str(num_processes)], stdout=subprocess.DEVNULL)
        # A random moment: before the first shard, among the shards, or while finishing.
        stop_after = generator.integers(1, 30)
        seen = num_files(killed)
        while process.poll() is None:
            if num_files(killed) >= seen + stop_after:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        if process.wait() == -signal.SIGKILL:
            num_kills += 1
        else:
            shutil.rmtree(killed)
    subprocess.run([*command, str(killed), str(num_processes)], check=True, stdout=subprocess.DEVNULL)

    assert files_of(killed) == files_of(whole)


def test_a_shard_deleted_by_hand_is_noticed_and_made_again(cells_folder, tmp_path):
    corpus = build(cells_folder, tmp_path / "corpus")
    before = files_of(corpus.path)
    (corpus.path / corpus.manifest["shards"][1]["file"]).unlink()

    with pytest.raises(CorpusError, match=r"is missing: run the same `scmmgpt corpus build` again"):
        Corpus.open(corpus.path)
    build(cells_folder, corpus.path)

    assert files_of(corpus.path) == before


def test_a_full_disk_is_said_clearly_and_the_build_goes_on_later(cells_folder, tmp_path, monkeypatch):
    expected = files_of(build(cells_folder, tmp_path / "expected").path)
    write_shard, calls = corpus_shards.write_shard, []

    def run_out_of_room(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_shard(*arguments)

    monkeypatch.setattr("scmmgpt.training.corpus.shard_building.write_shard", run_out_of_room)
    with pytest.raises(CorpusError, match="disk of .* is full. What is built is kept"):
        build(cells_folder, tmp_path / "corpus")
    assert len(list((tmp_path / "corpus" / "data").iterdir())) == 2
    build(cells_folder, tmp_path / "corpus")

    assert files_of(tmp_path / "corpus") == expected


def test_other_settings_are_refused_for_a_folder_that_was_begun(cells_folder, tmp_path):
    build(cells_folder, tmp_path / "corpus")

    with pytest.raises(CorpusError, match="started with other settings"):
        build(cells_folder, tmp_path / "corpus", CorpusRecipe(shard_rows=16))


def test_a_changed_source_is_built_again(cells_folder, tmp_path):
    build(cells_folder, tmp_path / "corpus")
    make_cells(num_cells=20, seed=5).write_h5ad(cells_folder / "two.h5ad")

    corpus = build(cells_folder, tmp_path / "corpus")

    assert corpus.dataset["source"][:].count("two") == 20


@pytest.mark.parametrize("damage", ["cut short", "broken halfway"])
def test_a_corrupt_source_stops_the_build_or_is_skipped_whole(damage, cells_folder, tmp_path):
    broken = cells_folder / "two.h5ad"
    if damage == "cut short":
        broken.write_bytes(broken.read_bytes()[:3000])
    else:
        cells = anndata.read_h5ad(broken)
        cells.X[77, 3] = np.nan
        cells.write_h5ad(broken)

    with pytest.raises(SourceError, match=r"two\.h5ad.*--on-error skip"):
        build(cells_folder, tmp_path / "stopped")
    corpus = build(cells_folder, tmp_path / "skipped", on_error="skip")

    assert not (tmp_path / "stopped" / "manifest.json").exists()
    assert set(corpus.dataset["source"][:]) == {"one"}
    assert list(corpus.manifest["skipped"]) == ["two"]
    assert not [path for path in corpus.path.rglob("*") if "two-" in path.name or path.suffix == ".partial"]


def test_no_usable_cell_is_an_error(tmp_path):
    make_cells(num_cells=20).write_h5ad(tmp_path / "few.h5ad")

    with pytest.raises(CorpusError, match="20 left out \\(few genes\\)"):
        build(tmp_path / "few.h5ad", tmp_path / "corpus", CorpusRecipe(quality=Quality(min_genes=1000)))


def test_z_scores_without_counts_are_refused(tmp_path):
    cells = make_cells()
    dense = cells.X.toarray()
    cells.X = (dense - dense.mean(0)) / (dense.std(0) + 1e-6)
    cells.write_h5ad(tmp_path / "scaled.h5ad")

    with pytest.raises(SourceError, match="No raw counts were found"):
        build(tmp_path / "scaled.h5ad", tmp_path / "corpus")


def test_a_corpus_of_counts_refuses_a_source_without_counts(tmp_path):
    cells = make_cells()
    cells.X = cells.X.multiply(np.random.default_rng(0).random(cells.shape) + 0.5).tocsr()
    cells.write_h5ad(tmp_path / "normalised.h5ad")

    with pytest.raises(SourceError, match="holds no counts"):
        build(tmp_path / "normalised.h5ad", tmp_path / "corpus", CorpusRecipe(tokens={"value_mode": "counts"}))


def test_clashing_metadata_types_become_text(tmp_path):
    cells = make_cells(num_cells=30)
    cells.obs["donor_id"] = np.arange(30) % 3
    cells.obs["disease"] = [np.nan, "normal", "lupus"] * 10
    cells.write_h5ad(tmp_path / "numbers.h5ad")
    make_cells(num_cells=30, seed=1, donor="person").write_h5ad(tmp_path / "words.h5ad")

    corpus = build(tmp_path, tmp_path / "corpus")

    assert set(corpus.dataset["donor"][:]) == {"0", "1", "2", "person0", "person1", "person2"}
    assert corpus.dataset["disease"][:3] == ["unknown", "normal", "lupus"]


def test_cells_without_a_type_are_kept_unlabelled_and_reported(tmp_path):
    cells = make_cells(num_cells=30)
    del cells.obs["cell_type"], cells.obs["cell_type_ontology_term_id"]
    cells.write_h5ad(tmp_path / "plain.h5ad")

    corpus = build(tmp_path / "plain.h5ad", tmp_path / "corpus")

    assert set(corpus.dataset["cell_type"][:]) == {"unknown"}
    assert [(finding["kind"], finding["num_cells"]) for finding in corpus.manifest["findings"]] == [
        ("no cell type", 30)
    ]


@pytest.mark.parametrize(
    ("term_id", "name", "term", "problem", "detail"),
    [
        pytest.param("CL:0000084", "T cell", "CL:0000084", "", "", id="known"),
        pytest.param("CL:9999999", "T cel", "unknown", "unknown term", "nearest term: T cell", id="unknown id"),
        pytest.param("", "B cells", "CL:0000236", "", "", id="name alone"),
        pytest.param("", "monocytte", "unknown", "free text label", "nearest term: monocyte", id="misspelt name"),
        pytest.param("CL:0000236", "neuron", "unknown", "clashing label", "treated as unlabelled", id="clash"),
        pytest.param("unknown", "nan", "unknown", "", "", id="nothing"),
    ],
)
def test_labels_are_looked_up_in_the_ontology(term_id, name, term, problem, detail):
    label = resolve_label(term_id, name, ONTOLOGY)

    assert (label.term_id, label.problem) == (term, problem)
    assert detail in label.detail


def test_tissues_are_looked_up_in_uberon(tmp_path):
    cells = make_cells(num_cells=30)
    cells.obs["tissue"] = ["Blood", "left big toe cellar", "unknown"] * 10
    cells.write_h5ad(tmp_path / "cells.h5ad")

    corpus = build(tmp_path / "cells.h5ad", tmp_path / "corpus")

    assert corpus.dataset["tissue"][:3] == ["blood", "left big toe cellar", "unknown"]
    assert corpus.dataset["tissue_ontology_term_id"][:3] == ["UBERON:0000178", "unknown", "unknown"]
    assert [finding["num_cells"] for finding in corpus.manifest["findings"]] == [10]


def test_labels_at_chance_are_refused(tmp_path):
    cells = make_cells(num_cells=150)
    cells.obs["cell_type"] = np.random.default_rng(3).permutation(cells.obs["cell_type"])
    cells.obs["cell_type_ontology_term_id"] = [TYPES[name] for name in cells.obs["cell_type"]]
    cells.write_h5ad(tmp_path / "shuffled.h5ad")

    refused = build(tmp_path / "shuffled.h5ad", tmp_path / "refused")
    kept = build(tmp_path / "shuffled.h5ad", tmp_path / "kept", CorpusRecipe(labels_at_chance="keep"))

    assert set(refused.dataset["cell_type"][:]) == {"unknown"}
    assert set(kept.dataset["cell_type"][:]) == set(TYPES)
    assert "at chance, labels refused" in (refused.path / "README.md").read_text()


def test_quality_filters_count_what_they_leave_out(tmp_path):
    cells = make_cells(num_cells=40)
    cells.obs["is_doublet"] = np.arange(40) < 4
    cells.obs["is_primary_data"] = np.arange(40) != 10
    cells.obs["suspension_type"] = np.where(np.arange(40) < 20, "cell", "nucleus")
    cells.write_h5ad(tmp_path / "cells.h5ad")

    recipe = CorpusRecipe(quality=Quality(suspension_types=("cell",)))
    corpus = build(tmp_path / "cells.h5ad", tmp_path / "corpus", recipe)

    assert corpus.manifest["left_out"] == {"doublet": 4, "not primary data": 1, "suspension type": 20}
    assert len(corpus) == 15


def test_equal_cells_are_selected_once(tmp_path):
    cells = make_cells(num_cells=30)
    cells.write_h5ad(tmp_path / "one.h5ad")
    cells[:10].copy().write_h5ad(tmp_path / "two.h5ad")

    corpus = build(tmp_path, tmp_path / "corpus")

    assert len(corpus) == 40
    assert len(corpus.rows(Selection("all"))) == 30


def test_cells_of_a_small_panel_may_agree_by_chance(tmp_path):
    cells = make_cells(num_cells=30)[:, :40].copy()
    cells.write_h5ad(tmp_path / "one.h5ad")
    cells[:10].copy().write_h5ad(tmp_path / "two.h5ad")

    corpus = build(tmp_path, tmp_path / "corpus")

    assert corpus.manifest["num_duplicates"] == 0


@pytest.mark.parametrize("scheme", ["donor", "study", "tissue", "cell_type"])
def test_no_group_lies_on_two_sides_of_a_split(scheme, tmp_path):
    folder = write_cells(tmp_path / "cells", **{f"study{number}": number for number in range(6)})
    recipe = CorpusRecipe(splits=SplitSettings(validation=0.2, test=0.34))
    corpus = build(folder, tmp_path / "corpus", recipe)
    column = {"cell_type": "cell_type_ontology_term_id"}.get(scheme, scheme)

    groups = {}
    for split in ("train", "validation", "test"):
        rows = corpus.select(Selection(split, scheme))
        groups[split] = set(zip(rows["study"], rows["donor"], strict=True)) if scheme == "donor" else set(rows[column])

    assert groups["train"]
    assert groups["validation"] | groups["test"] or scheme == "tissue"
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]


def test_files_of_one_study_stay_together(tmp_path):
    folder = write_cells(tmp_path / "cells", pbmc_facs=1, zheng68k=2, kang=3, other=4, more=5)
    settings = SplitSettings(test=0.3, held_out={"study": {"test": ["zheng2017"]}})
    recipe = CorpusRecipe(families={"zheng2017": ["pbmc_facs", "zheng68k"]}, splits=settings)

    corpus = build(folder, tmp_path / "corpus", recipe)

    assert {"pbmc_facs", "zheng68k"} == set(corpus.select(Selection("test", "study"))["source"])


def test_an_unseen_type_takes_its_finer_types_with_it():
    t_cell, cd4, b_cell = "CL:0000084", "CL:0000624", "CL:0000236"
    settings = SplitSettings(validation=0, test=0, held_out={"cell_type": {"test": [t_cell]}})

    splits = split_scheme({t_cell: 10, cd4: 10, b_cell: 10}, "cell_type", settings, ONTOLOGY)

    assert splits == {"train": [b_cell], "validation": [], "test": [t_cell, cd4]}


def test_markers_come_from_training_cells_and_tell_the_types_apart(cells_folder, tmp_path):
    corpus = build(cells_folder, tmp_path / "corpus")

    for number, term_id in enumerate(TYPES.values()):
        own = set(GENES[20 * number : 20 * number + 20])
        assert len(own & set(corpus.markers[term_id])) >= 15


def test_a_misspelt_recipe_key_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("shard_rowz: 5\n")

    with pytest.raises(UserError, match=r"recipe\.yaml(.|\n)*`shard_rowz` does not exist. Did you mean `shard_rows`"):
        CorpusRecipe.read(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", ["corpus_dev", "corpus_census"])
def test_the_recipes_that_ship_are_valid(name):
    recipe = CorpusRecipe.read(Path(corpus_module.__file__).parents[1] / "recipes" / f"{name}.yaml")

    assert recipe.shard_rows > 0


def test_the_command_line_reports_a_users_mistake_in_one_line(tmp_path, capsys):
    command = ["corpus", "build", str(tmp_path / "nowhere"), "--output", str(tmp_path / "corpus")]

    code = run_to_exit_code(lambda: app(command, standalone_mode=False))

    assert code == 2
    assert capsys.readouterr().err == f"scmmgpt: {tmp_path / 'nowhere'} does not exist.\n"


def test_a_processor_that_is_nowhere_is_the_users_mistake(cells_folder, tmp_path, capsys):
    command = [
        "corpus",
        "build",
        str(cells_folder),
        "--output",
        str(tmp_path / "corpus"),
        "--processor",
        str(tmp_path),
    ]

    code = run_to_exit_code(lambda: app(command, standalone_mode=False))

    assert code == 2
    assert "is no folder or Hub repository with a gene tokenizer" in capsys.readouterr().err


def test_splits_are_written_down_with_the_corpus(cells_folder, tmp_path):
    corpus = build(cells_folder, tmp_path / "corpus")

    written = json.loads((corpus.path / "splits.json").read_text())

    assert set(written["schemes"]) == {"donor", "study", "tissue", "cell_type"}
    for scheme in written["schemes"].values():
        assert set(scheme) == {"train", "validation", "test"}


@pytest.mark.parametrize("place", [0, 0.5])
def test_a_shard_that_was_damaged_is_named_and_made_anew(cells_folder, tmp_path, place):
    built = build(cells_folder, tmp_path / "corpus")
    shard = built.path / built.manifest["shards"][0]["file"]
    whole = shard.read_bytes()
    at = int(place * len(whole))
    shard.write_bytes(whole[:at] + bytes(reversed(whole[at : at + 64])) + whole[at + 64 :])

    with pytest.raises(CorpusError, match=f"{shard.name} is damaged"):
        audit_corpus(built.path)
    shard.unlink()

    assert files_of(build(cells_folder, built.path).path)[str(shard.relative_to(built.path))] == whole


@pytest.mark.parametrize("name", ["manifest.json", "splits.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_corpus_is_refused_by_its_folder(cells_folder, tmp_path, name, content):
    built = build(cells_folder, tmp_path / "corpus")
    (built.path / name).write_text(content)

    with pytest.raises(CorpusError, match="corpus"):
        audit_corpus(built.path)
