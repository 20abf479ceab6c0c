"""The embedded model: how its cells are drawn, what it was trained on, and a guard on its committed weights."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from scmmgpt.loading import EMBEDDED_MODEL, load
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.mini import consensus_markers
from scmmgpt.training.mini.cell_simulator import CellSimulator, SimulatedBatches, SimulatorSettings, pad_cells
from scmmgpt.training.mini.consensus_markers import read_consensus_markers
from scmmgpt.training.mini.development import TEST_STUDIES
from scmmgpt.training.mini.gene_tables import FAMILY_FILE, best_orthologs
from scmmgpt.training.mini.guard import guard_numbers
from scmmgpt.training.mini.measured_cells import MeasuredCells, read_measured_cells
from scmmgpt.training.mini.profile_tables import ProfileTable, read_profile_table
from scmmgpt.training.mini.profiles import Profiles, read_profiles
from scmmgpt.training.mini.recipe import read_recipe
from scmmgpt.training.mini.texts import TypeTexts, marker_genes
from scmmgpt.training.mini.type_profiles import LENGTH, steady_differences, type_profiles
from scmmgpt.training.strict_yaml import RecipeError

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "training" / "recipes" / "mini.yaml"
GUARD_CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
NUM_GENES = 6_000
CONFIG = EMBEDDED_MODEL / "config.json"
IS_TRAINED = CONFIG.exists() and json.loads(CONFIG.read_text()).get("training_summary") is not None
needs_weights = pytest.mark.skipif(not IS_TRAINED, reason="the embedded model is not trained yet")


@pytest.fixture(scope="module")
def profiles() -> Profiles:
    generator = np.random.default_rng(0)
    share = generator.lognormal(0, 2, (6, NUM_GENES)).astype(np.float32)
    measured = np.ones((6, NUM_GENES), bool)
    measured[5, 200:] = False  # a panel
    share = np.where(measured, share, 0)
    table = pd.DataFrame(
        {
            "study": ["lung", "lung", "lung", "blood", "blood", "panel"],
            "family": ["tissues", "tissues", "tissues", "tissues", "tissues", "panel"],
            "term_id": ["CL:0000236", "CL:0000084", "CL:0000576", "CL:0000236", "CL:0000084", "CL:0000236"],
            "label": ["B cell", "T cell", "monocyte", "B cell", "T cell", "B cell"],
            "tissue": ["lung"] * 3 + ["blood"] * 3,
        }
    )
    return Profiles(table, share / share.sum(1, keepdims=True), measured, np.ones(NUM_GENES))


def simulator_of(profiles: Profiles, **settings) -> CellSimulator:
    return CellSimulator(profiles, np.ones(NUM_GENES), profiles.masses, SimulatorSettings(**settings))


def drawn(simulator: CellSimulator, row: int, number: int = 20, seed: int = 0):
    generator = np.random.default_rng(seed)
    return [simulator.draw_cell(row, generator) for _ in range(number)]


# ---- the simulator


def test_a_drawn_cell_has_the_counts_of_a_real_one(profiles):
    cells = drawn(simulator_of(profiles, panel_rate=0), row=0)

    totals = np.array([cell.counts.sum() for cell in cells])
    assert totals.min() >= 300
    assert totals.max() <= 10_000
    assert len(set(totals)) > 10


def test_a_drawn_cell_shows_no_gene_that_its_study_did_not_measure(profiles):
    for cell in drawn(simulator_of(profiles), row=5):
        assert cell.genes.max() < 200


def test_a_panel_hides_all_other_genes_and_keeps_its_size(profiles):
    for cell in drawn(simulator_of(profiles, panel_rate=1.0, panel_genes=(300, 900), mixing_rate=0), row=0):
        assert 300 <= cell.measured.sum() <= 900
        assert cell.measured[cell.genes].all()


def test_a_whole_cell_is_never_hidden_behind_a_panel(profiles):
    simulator = simulator_of(profiles, panel_rate=1.0)

    assert simulator.draw_cell(0, np.random.default_rng(0), whole=True).measured.all()


def test_cells_of_one_type_resemble_their_profile_more_than_another(profiles):
    simulator = simulator_of(profiles, panel_rate=0, mixing_rate=0)

    for cell in drawn(simulator, row=0):
        vector = np.zeros(NUM_GENES)
        vector[cell.genes] = cell.values
        own, other = (np.corrcoef(vector, np.log1p(1e4 * profiles.share[row]))[0, 1] for row in (0, 1))
        assert own > other


def test_drawn_cells_look_as_the_processor_would_give_them(profiles):
    """Same ids, values, order and panel scale: what the model learns on is what it will be shown."""
    simulator = simulator_of(profiles, panel_rate=0.5)
    genes = [f"GENE{i}" for i in range(NUM_GENES)]
    tokenizer = ScMMGPTGeneTokenizer(
        genes, None, np.ones(NUM_GENES), profiles.masses, gene_order="median_ratio", max_genes=None, panel_scaling=True
    )

    for cell in drawn(simulator, row=0, number=6):
        counts = np.zeros((1, NUM_GENES), np.float32)
        counts[0, cell.genes] = cell.counts
        columns = np.flatnonzero(cell.measured)
        given = tokenizer((counts[:, columns], [genes[i] for i in columns]), return_tensors="pt")
        ours = pad_cells([cell])
        assert torch.equal(ours["gene_ids"], given["gene_ids"])
        assert torch.equal(ours["gene_mask"], given["gene_mask"])
        torch.testing.assert_close(ours["gene_values"], given["gene_values"], rtol=1e-5, atol=1e-5)


def counted_simulator(profiles, **settings) -> CellSimulator:
    """A simulator that knows three cells of profile 0, of 100 genes each."""
    counts = sp.csr_matrix(
        (np.repeat([50.0, 60.0, 70.0], 100), (np.repeat([0, 1, 2], 100), np.tile(range(100), 3))), (3, NUM_GENES)
    )
    cells = MeasuredCells(counts, np.zeros(3, int), profiles.measured[0])
    return CellSimulator(
        profiles, np.ones(NUM_GENES), profiles.masses, SimulatorSettings(**settings), {"tissues": cells}
    )


def test_some_cells_are_as_they_were_counted(profiles):
    simulator = counted_simulator(profiles, measured_rate=1.0, thinning_rate=0.0, panel_rate=0.0)

    assert {cell.counts.sum() for cell in drawn(simulator, row=0)} == {5_000, 6_000, 7_000}
    assert all(len(cell.genes) > 100 for cell in drawn(simulator, row=1))


def test_a_counted_cell_may_lose_transcripts_and_genes_but_gains_none(profiles):
    simulator = counted_simulator(
        profiles, measured_rate=1.0, thinning_rate=1.0, library_median=500, library_spread=0.1, panel_rate=0.5
    )

    for cell in drawn(simulator, row=0):
        assert 0 < cell.counts.sum() < 1_000
        assert cell.genes.max() < 100
        assert cell.measured[cell.genes].all()


def test_amplified_cells_have_more_counts_of_the_same_number_of_genes(profiles):
    plain, amplified = (drawn(simulator_of(profiles, amplified_rate=rate, panel_rate=0), row=0) for rate in (0.0, 1.0))

    def of(cells, what):
        return np.median([what(cell) for cell in cells])

    assert of(amplified, lambda cell: cell.counts.sum()) > 20 * of(plain, lambda cell: cell.counts.sum())
    assert of(amplified, lambda cell: len(cell.genes)) < 1.5 * of(plain, lambda cell: len(cell.genes))


def test_the_stream_is_the_same_however_many_workers_write_it(profiles):
    def totals(num_workers):
        stream = SimulatedBatches(simulator_of(profiles), lambda rows, cells, _: pad_cells(cells), 3, seed=7)
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=num_workers)
        return [float(batch["gene_values"].sum()) for batch, _ in zip(loader, range(4), strict=False)]

    assert totals(0) == totals(2)


def test_rare_types_are_drawn_more_often_than_their_share_of_profiles(profiles):
    simulator = simulator_of(profiles)

    rows = simulator.draw_rows(6_000, np.random.default_rng(0))

    assert (rows == 2).mean() > 1 / 6 * 1.2  # the only monocyte among six profiles


# ---- profiles and texts


def three_kinds() -> anndata.AnnData:
    counts = sp.csr_matrix(np.array([[4, 0, 0], [0, 4, 4], [2, 2, 0], [9, 9, 9]], np.float32))
    obs = pd.DataFrame(
        {
            "cell_type": ["B cell", "T cell", "B cell", "?"],
            "cell_type_ontology_term_id": ["CL:0000236", "CL:0000084", "CL:0000236", "unknown"],
            "cell_type_original": ["B", "T", "B", "odd"],
            "tissue": "blood",
            "organism": "Homo sapiens",
        },
        index=list("abcd"),
    )
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=["A", "B", "C"]))


@pytest.fixture
def identifier():
    return ScMMGPTGeneTokenizer(["C", "A", "B"], min_matched_genes=1)._identifier


def test_profiles_are_shares_by_study_and_original_label(identifier):
    found = read_profiles([("study", three_kinds())], identifier, 3)

    assert list(found.table.original) == ["B", "T"]
    np.testing.assert_allclose(found.share, [[0, 0.75, 0.25], [0.5, 0, 0.5]])


def test_a_file_of_several_organs_is_several_studies(identifier):
    cells = three_kinds()
    cells.obs["dataset"] = ["lung", "lung", "spleen", "spleen"]

    found = read_profiles([("atlas", cells)], identifier, 3)

    assert set(zip(found.table.study, found.table.original, strict=True)) == {
        ("lung", "B"),
        ("lung", "T"),
        ("spleen", "B"),
    }
    assert set(found.without(["lung"]).table.study) == {"spleen"}
    assert len(found.without(["atlas"]).table) == 0


def test_measured_cells_know_their_profile_and_leave_with_their_study(identifier):
    cells = three_kinds()
    cells.obs["dataset"] = ["lung", "lung", "spleen", "spleen"]
    profiles = read_profiles([("atlas", cells)], identifier, 3)

    found = read_measured_cells([("atlas", cells)], identifier, profiles)["atlas"]
    rest = read_measured_cells([("atlas", cells)], identifier, profiles.without(["lung"]))["atlas"]

    assert [profiles.table.original[row] for row in found.profiles] == ["B", "T", "B"]
    np.testing.assert_allclose(rest.counts.toarray(), [[0, 2, 2]])
    assert not found.are_whole


def write_table(folder: Path, values: pd.DataFrame, labels: str) -> Path:
    path = folder / "table.csv.gz"
    values.to_csv(path)
    (folder / "table.labels.csv").write_text(f"column,cl_id,cl_label\n{labels}")
    return path


@pytest.mark.parametrize("unit", ["linear", "log1p", "log2"])
def test_a_table_of_means_gives_the_same_profiles_in_any_unit(tmp_path, unit):
    ontology = Ontology.read(EMBEDDED_MODEL / "cell_ontology.json.gz")
    linear = pd.DataFrame({"B": [4.0, 0.0, 4.0], "odd": [1.0, 1.0, 1.0], "T": [0.0, 3.0, 1.0]}, index=list("XYZ"))
    written = {"linear": linear, "log1p": np.log1p(linear), "log2": np.log2(linear + 0.1)}[unit]
    path = write_table(tmp_path, written, "B,CL:0000236,B cell\nodd,,\nT,,\n")

    table = ProfileTable("Homo sapiens", "blood", unit, terms={"T": "CL:0000084"})
    found = read_profile_table(path, table, ontology)

    assert list(found.obs.cell_type) == ["B cell", "T cell"]
    np.testing.assert_allclose(found.X / found.X.sum(1, keepdims=True), [[0.5, 0, 0.5], [0, 0.75, 0.25]], atol=1e-6)


def test_a_table_of_organs_names_the_study_of_each_column(tmp_path):
    ontology = Ontology.read(EMBEDDED_MODEL / "cell_ontology.json.gz")
    values = pd.DataFrame({"lung|B cell": [1.0, 2.0], "spleen|B cell": [2.0, 1.0]}, index=list("XY"))
    path = write_table(tmp_path, values, "lung|B cell,CL:0000236,B cell\nspleen|B cell,CL:0000236,B cell\n")

    found = read_profile_table(path, ProfileTable("Mus musculus", study="mouse_{}_atlas"), ontology)

    assert list(found.obs.study_profile) == ["mouse_lung_atlas", "mouse_spleen_atlas"]
    assert list(found.obs.tissue) == ["lung", "spleen"]


def test_a_term_for_a_column_that_does_not_exist_is_refused(tmp_path):
    ontology = Ontology.read(EMBEDDED_MODEL / "cell_ontology.json.gz")
    path = write_table(tmp_path, pd.DataFrame({"B": [1.0]}, index=["X"]), "B,CL:0000236,B cell\n")

    with pytest.raises(ValueError, match=r"no column 'NK'.*Columns: B"):
        read_profile_table(path, ProfileTable("Homo sapiens", terms={"NK": "CL:0000623"}), ontology)


def test_mouse_genes_of_a_family_stand_for_the_human_gene_that_most_databases_name(tmp_path):
    pairs = [
        ("INS", "Ins2", 11),
        ("INS", "Ins1", 8),
        ("HBB", "Hbb-bt", 7),
        ("HBD", "Hbb-bt", 3),
        ("HBA2", "Hba2", 5),
        ("HBA1", "Hba2", 5),
        ("LY6H", "Ly6a", 2),
        ("OUTSIDE", "Far", 9),
    ]
    table = pd.DataFrame(pairs, columns=["human_symbol", "species_symbol", "support_n"]).assign(species_ensembl="")
    source = tmp_path / "cells"
    source.mkdir()
    path = source / FAMILY_FILE.format("mouse")
    path.parent.mkdir(parents=True)
    table.to_csv(path, sep="\t", index=False)

    found = best_orthologs(source, "mouse", {"INS", "HBB", "HBD", "HBA1", "HBA2", "LY6H"})

    assert dict(zip(found.species_symbol, found.human_symbol, strict=True)) == {
        "Ins2": "INS",
        "Ins1": "INS",
        "Hbb-bt": "HBB",
        "Hba2": "HBA2",
    }


def test_leaving_out_a_family_leaves_out_all_its_studies(profiles):
    assert set(profiles.without(["tissues"]).table.study) == {"panel"}


def test_leaving_out_a_study_that_does_not_exist_is_refused(profiles):
    with pytest.raises(ValueError, match="'lungs'"):
        profiles.without(["lungs"])


def test_markers_are_the_genes_that_set_a_type_apart(profiles):
    share = np.full((6, NUM_GENES), 1e-4, np.float32)
    share[[0, 3], 17] = 0.2
    planted = Profiles(profiles.table, share, np.ones_like(profiles.measured), profiles.medians)

    markers = marker_genes(planted, [f"GENE{i}" for i in range(NUM_GENES)])

    assert markers["CL:0000236"][0] == "GENE17"


def test_texts_of_a_type_vary_and_some_do_not_give_its_name_away():
    texts = TypeTexts(Ontology.read(EMBEDDED_MODEL / "cell_ontology.json.gz"))
    generator = np.random.default_rng(0)

    drawn_texts = {texts.draw("CL:0000084", generator) for _ in range(200)}

    assert len(drawn_texts) > 8
    assert any("T cell" in text for text in drawn_texts)
    assert any("T cell" not in text and "T-cell" not in text and "T lymphocyte" not in text for text in drawn_texts)


# ---- type profiles


def profiles_of_two_studies() -> Profiles:
    """Two types in two studies; gene 0 tells the types apart, gene 1 the studies."""
    share = np.full((4, NUM_GENES), 1e-4, np.float32)
    share[[0, 1], 0] = 5e-3
    share[[0, 2], 1] = 0.3
    table = pd.DataFrame(
        {"study": ["one", "two", "one", "two"], "term_id": ["CL:0000236", "CL:0000236", "CL:0000084", "CL:0000084"]}
    )
    return Profiles(table, share, np.ones_like(share, bool), np.ones(NUM_GENES))


def test_what_differs_between_the_studies_of_a_type_does_not_speak_for_it():
    types, differences = steady_differences(profiles_of_two_studies())

    assert types == ["CL:0000084", "CL:0000236"]
    assert differences[1, 0] > 1
    assert abs(differences[1, 1]) < 0.05 * differences[1, 0]


def test_markers_speak_for_types_beside_their_profiles_and_for_those_without():
    markers = {}
    for term_id, gene in (("CL:0000236", 7), ("CL:0000576", 8)):
        markers[term_id] = np.zeros(NUM_GENES, np.float32)
        markers[term_id][gene] = 1.0

    found = type_profiles(profiles_of_two_studies(), markers, num_genes=NUM_GENES)

    row = dict(zip(found.term_ids, found.differences, strict=True))
    assert set(row) == {"CL:0000084", "CL:0000236", "CL:0000576"}
    assert row["CL:0000236"][0] > 0
    assert row["CL:0000576"][8] == row["CL:0000576"].max() > 0
    np.testing.assert_allclose(np.linalg.norm(found.differences, axis=1), LENGTH, rtol=1e-5)


def write_wheel(path: Path, content) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(consensus_markers.TABLE, pickle.dumps(content))
    return path


def test_consensus_markers_are_weighted_and_those_of_a_single_source_left_out(tmp_path):
    scores = {"CD19": 16.0, "MS4A1": 9.0, "ABSENT": 4.0}
    content = {
        "consensus": {"CL:0000236": scores, "CL:0000084": {"CD3D": 5.0}},
        "n_sources": {"CL:0000236": 5, "CL:0000084": 1},
    }

    found = read_consensus_markers(write_wheel(tmp_path / "table.whl", content), ["CD3D", "CD19", "MS4A1"])

    assert set(found) == {"CL:0000236"}
    np.testing.assert_allclose(found["CL:0000236"], [0, 0.8, 0.6])


def test_a_marker_table_that_would_run_something_is_refused(tmp_path):
    path = write_wheel(tmp_path / "table.whl", {"consensus": Path("home")})

    with pytest.raises(pickle.UnpicklingError, match="not just numbers and names"):
        read_consensus_markers(path, ["CD3D"])


# ---- what it was trained on


def test_no_test_study_and_no_closed_licence_is_among_the_sources():
    recipe = read_recipe(RECIPE)

    assert not {Path(source.file).stem for source in recipe.sources} & set(TEST_STUDIES)
    open_licences = ("CC BY", "MIT", "BSD", "Apache")
    assert all(source.licence.startswith(open_licences) for source in recipe.sources)
    assert all(source.simulated == source.file.startswith("sim/") for source in recipe.sources)
    # Means of a test study's cells are that study too.
    assert "cpl_hist_somatic_adult_pancreas_ss2" not in {source.family for source in recipe.sources}


def test_every_part_of_the_training_is_a_run_of_a_stage(tmp_path):
    recipe = read_recipe(RECIPE)

    first, second = (recipe.stage1_run(number, tmp_path) for number in range(2))
    last = recipe.stage2_run(recipe.stage2, tmp_path, seed=50)

    assert first.training["max_steps"] == 1000
    assert (first.model.config["match_weight"], second.model.config["match_weight"]) == (0, 0.5)
    assert last.learning_rates == {"cell_decoder": 3e-3}
    assert last.towers.cell_encoder == "freeze"


def test_a_part_that_is_cut_warms_up_over_the_same_share_of_its_steps():
    cut = read_recipe(RECIPE).cut_to(80)

    for part in (*cut.stage1, cut.stage2, cut.factors):
        assert (part.training["max_steps"], part.training["warmup_steps"]) == (80, 10)


def test_a_misspelt_key_of_the_recipe_is_refused(tmp_path):
    path = tmp_path / "mini.yaml"
    path.write_text(RECIPE.read_text().replace("tokenizer_size", "tokeniser_size"))

    with pytest.raises(RecipeError, match=r"mini\.yaml(.|\n)*`model\.tokeniser_size`.*Did you mean `tokenizer_size`"):
        read_recipe(path)


# ---- the committed weights


def test_the_directory_stays_within_forty_megabytes_and_holds_no_pickle():
    files = [path for path in EMBEDDED_MODEL.rglob("*") if path.is_file() and "__pycache__" not in path.parts]

    assert sum(path.stat().st_size for path in files) <= 40e6
    assert not [path.name for path in files if path.suffix in {".bin", ".pt", ".pkl", ".pth"}]


@needs_weights
def test_weights_lie_in_sixteen_bits_and_load_in_thirty_two():
    with safe_open(EMBEDDED_MODEL / "model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118

    assert kinds == {"F16", "I32"}  # and numbers of genes
    assert load().model.dtype == torch.float32


@needs_weights
def test_annotation_costs_a_tenth_of_a_gigaflop_a_cell():
    loaded = load()
    gene_ids = torch.randint(3, loaded.processor.feature_extractor.vocab_size, (8, 2_001))
    gene_ids[:, 0] = 1

    with FlopCounterMode(display=False) as counter:
        loaded.model.get_cell_features(gene_ids, torch.rand(8, 2_001), torch.ones_like(gene_ids))

    assert counter.get_total_flops() / 8 <= 1.05e8


@needs_weights
def test_the_weights_say_what_they_have_seen():
    summary = load().training_summary

    assert not set(summary["studies"]) & set(TEST_STUDIES)
    assert not summary["development"]
    assert len(summary["cell_types"]) > 100
    assert summary["simulated_sources"]
    assert {"recipe_sha256", "corpus_sha256", "code_sha256", "date", "sources"} <= set(summary)


@needs_weights
def test_the_weights_do_on_known_cells_what_the_card_says():
    loaded = load(generative=True)
    promised = loaded.training_summary["guard"]

    found = guard_numbers(loaded, anndata.read_h5ad(GUARD_CELLS))

    for name, value in promised.items():
        assert found[name] >= value - 0.05, f"{name} fell from {value} to {found[name]}"


@pytest.mark.slow
@pytest.mark.skipif("SCMMGPT_DATA" not in os.environ, reason="SCMMGPT_DATA names no cells to train on")
def test_a_short_training_run_gives_the_same_losses_twice(tmp_path, monkeypatch, capsys):
    from scmmgpt.training.mini import train as mini

    def losses(name):
        mini.main(Path(os.environ["SCMMGPT_DATA"]), steps=10, output=tmp_path / name)
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('{"losses"'))
        return json.loads(line)["losses"]

    monkeypatch.chdir(ROOT)
    assert losses("one") == losses("two")
