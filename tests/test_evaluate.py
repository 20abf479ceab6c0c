"""Evaluation end to end on small cells: a perfect system scores as it should, controls fall to chance, input is checked."""

import json
import warnings
from dataclasses import asdict, replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from huggingface_hub import EvalResult

from scmmgpt.errors import UserError
from scmmgpt.training import eval_suite
from scmmgpt.training.evaluate import ALL_TASKS, evaluate, leakage_record, study_records
from scmmgpt.training.evaluation import task_annotation
from scmmgpt.training.evaluation.baselines import TrainingCells
from scmmgpt.training.evaluation.expression import log_expression
from scmmgpt.training.evaluation.results import provenance, read_records
from scmmgpt.training.evaluation.results_table import draw, markdown_table, mean_table
from scmmgpt.training.evaluation.study import open_study
from scmmgpt.training.evaluation.systems import System
from scmmgpt.training.evaluation.task_generation import generate_study
from scmmgpt.training.evaluation.task_text import describe_study
from scmmgpt.training.evaluation.type_tree import TypeTree

pytest.importorskip("sklearn")

TYPES = ["B cell", "natural killer cell", "monocyte", "hepatocyte"]
TREE = TypeTree.load()


def cells_of(types, seed=0, num_genes=60, donors=8):
    """Each type has ten genes far up, so that the right answer can be read off the counts."""
    generator = np.random.default_rng(seed)
    types = np.asarray(types)
    rate = np.full((len(types), num_genes), 0.7)
    for i, name in enumerate(types):
        start = 10 * TYPES.index(name)
        rate[i, start : start + 10] = 15
    obs = pd.DataFrame(
        {
            "cell_type": types,
            "tissue": "blood",
            "donor_id": [f"donor{i // len(TYPES) % donors}" for i in range(len(types))],
        },
        index=[f"cell{i}" for i in range(len(types))],
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(num_genes)])
    return anndata.AnnData(sp.csr_matrix(generator.poisson(rate), dtype=np.float32), obs=obs, var=var)


def programs(cells):
    """The mean of each type's ten genes, cells x types."""
    expression = log_expression(cells).toarray()
    return np.stack([expression[:, 10 * i : 10 * i + 10].mean(1) for i in range(len(TYPES))], axis=1)


def meaning_of(label):
    """Which type a name, synonym or definition means, as a perfect reader would know."""
    for name in TYPES:
        if TREE.find(label) == TREE.find(name) or label in (
            TREE.definition_without_name(name),
            f"cells of the type {name}",
        ):
            return TYPES.index(name)
    return None


def read_perfectly(cells, labels):
    """Probabilities that follow the cell's own genes; labels that mean none of the types share a little."""
    evidence = programs(cells) * 4
    scores = np.full((cells.n_obs, len(labels)), -2.0)
    for column, label in enumerate(labels):
        if (index := meaning_of(label)) is not None:
            scores[:, column] = evidence[:, index]
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def tell_perfectly(cells):
    best = programs(cells).argmax(1)
    return [f"This cell is a {TYPES[i]} from blood. It expresses GENE{10 * i}." for i in best]


def draw_perfectly(text, num_cells, seed):
    return cells_of([text] * num_cells, seed=1000 + seed)


PERFECT = System(
    "perfect",
    read_perfectly,
    programs,
    lambda texts: np.eye(4)[[_in(t) for t in texts]],
    tell_perfectly,
    draw_perfectly,
)


def _in(text):
    return next((i for i, name in enumerate(TYPES) if name in text), 0)


def guess(cells, labels):
    return np.random.default_rng(0).dirichlet(np.ones(len(labels)), size=cells.n_obs)


@pytest.fixture(scope="module")
def study():
    return open_study(cells_of(TYPES * 45), "cell_type", name="small", tree=TREE)


@pytest.fixture(scope="module")
def records(study):
    return study_records(
        [PERFECT, System("guess", guess)], study, TREE, tasks=[t for t in ALL_TASKS if t != "generation"]
    )


def values(records, task, system="perfect", **conditions):
    found = [
        r
        for r in records
        if (r.task, r.system) == (task, system) and all(r.conditions.get(k) == v for k, v in conditions.items())
    ]
    assert len(found) == 1, f"{len(found)} records of {task}, {system}, {conditions}"
    return found[0].values


def test_the_perfect_system_is_right_and_the_guesser_at_chance(records):
    perfect, guesser = values(records, "annotation"), values(records, "annotation", "guess")

    assert perfect["accuracy"] == perfect["macro_f1"] == perfect["exact_or_parent"] == 1
    assert perfect["ontology_distance"] == 0
    assert perfect["ece"] < 0.1
    assert guesser["accuracy"] == pytest.approx(0.25, abs=0.08)
    assert guesser["ece"] > 0.1


def test_the_interval_is_over_donors_and_holds_the_value(records):
    guesser = next(r for r in records if (r.task, r.system) == ("annotation", "guess"))
    low, high, unit = guesser.intervals["accuracy"]

    assert unit == "donors"
    assert low <= guesser.values["accuracy"] <= high


def test_candidates_grow_to_the_whole_ontology_around_the_same_own_types(records):
    numbers = sorted(r.conditions["candidates"] for r in records if (r.task, r.system) == ("candidates", "perfect"))

    assert numbers[:3] == [10, 50, 200]
    assert numbers[3] == len(set(TREE.labels) | set(TYPES)) > 3000
    assert values(records, "candidates", candidates=numbers[3])["accuracy"] == 1


@pytest.mark.parametrize("wording", ["synonym", "definition without the name", "paraphrase", "other order"])
def test_a_reader_of_meaning_loses_nothing_by_other_words(records, wording):
    assert values(records, "wording", wording=wording)["accuracy"] == 1


def test_shuffled_names_bring_the_perfect_reader_to_chance(study):
    runs = [task_annotation.reword(study.types, "shuffled names", TREE, seed=seed) for seed in range(200)]

    kept = np.mean([[new == old for new, old in zip(run, study.types, strict=True)] for run in runs])

    assert kept == pytest.approx(0.25, abs=0.05)


def test_each_wording_really_changes_the_words():
    synonyms = task_annotation.reword(TYPES, "synonym", TREE)
    definitions = task_annotation.reword(TYPES, "definition without the name", TREE)

    assert sum(new != old for new, old in zip(synonyms, TYPES, strict=True)) == 2
    assert all(name.lower() not in text.lower() for name, text in zip(TYPES, definitions, strict=True))


def test_cells_that_hold_nothing_bring_accuracy_to_chance(records):
    shuffled, blank = (values(records, "controls", control=name) for name in ("shuffled genes", "blank"))

    assert shuffled["accuracy"] == pytest.approx(0.25, abs=0.12)
    assert blank["balanced_accuracy"] == 0.25


def test_shuffled_genes_keep_every_cells_values():
    cells = cells_of(TYPES)

    shuffled = task_annotation.shuffled_genes(cells)

    np.testing.assert_array_equal(np.sort(cells.X.toarray(), axis=1), np.sort(shuffled.X.toarray(), axis=1))
    assert (cells.X != shuffled.X).nnz > 0


def test_a_type_that_is_no_candidate_lowers_the_confidence_of_a_system_that_knows(records):
    assert values(records, "unknown types")["unknown_auroc"] > 0.95
    assert values(records, "unknown types", "guess")["unknown_auroc"] == pytest.approx(0.5, abs=0.1)


def test_types_without_training_cells_are_named_among_each_other_and_among_all(study):
    trained = TYPES[:2]

    records = task_annotation.name_untrained(PERFECT, study, trained, TREE)

    assert [(r.conditions["among"], r.conditions["candidates"]) for r in records] == [
        ("each other", 2),
        ("all types", 4),
    ] * 2
    assert all(r.values["accuracy"] > 0.95 and r.values["cells_of_untrained_types"] == 90 for r in records)
    guesser = System("guess", guess)
    guessed = [r.values["accuracy"] for r in task_annotation.name_untrained(guesser, study, trained, TREE)]
    assert guessed == pytest.approx([0.5, 0.25] * 2, abs=0.15)


def test_a_study_of_trained_types_says_nothing_about_others(study):
    assert task_annotation.name_untrained(PERFECT, study, TYPES[:3], TREE) == []


def test_clusters_retrieval_and_few_shots_of_the_perfect_embedding_are_perfect(records):
    assert values(records, "clustering")["ari"] > 0.95
    assert values(records, "retrieval")["cell_to_text_r@1"] == 1
    assert values(records, "retrieval")["text_to_cell_precision@20"] == 1
    assert values(records, "retrieval")["text_to_cell_r@1_blind"] == pytest.approx(0.25)
    assert values(records, "few-shot", shots=5)["macro_f1"] > 0.98


def test_descriptions_hold_their_facts_and_those_dealt_to_other_cells_do_not(records):
    own, dealt = (
        values(records, "description", control="none"),
        values(records, "description", control="texts of other cells"),
    )

    assert own["type_exact_precision"] == own["tissue_precision"] == 1
    assert own["gene_precision"] > 0.99
    assert dealt["type_exact_precision"] == pytest.approx(0.25, abs=0.1)
    assert values(records, "description", control="blank cells")["type_exact_precision"] == pytest.approx(
        0.25, abs=0.01
    )


def test_pseudo_cells_of_the_true_process_are_at_the_ceiling_and_shuffled_text_is_not(study):
    training = TrainingCells([cells_of(TYPES * 20, seed=5)])

    records = generate_study([PERFECT], study, training=training, tree=TREE)

    perfect = values(records, "generation", control="none")
    ceiling = values(records, "generation", "real cells, other third", control="none")
    assert perfect["knn_5"] == ceiling["knn_5"] == 1
    assert perfect["real_or_generated_auc_linear"] < 0.65
    assert perfect["mmd"] < 0.02
    assert perfect["nearest_training_ratio"] == pytest.approx(1, abs=0.15)
    assert values(records, "generation", control="shuffled text")["knn_5"] == 0
    floors = {r.system for r in records if "negative binomial" in r.system}
    assert floors == {"negative binomial of this study", "negative binomial of training cells"}
    others = values(records, "generation", "real cells of training studies", control="none")
    assert others["real_or_generated_auc_linear"] < 0.65
    assert others["nearest_training_ratio"] == pytest.approx(0, abs=1e-3)  # they are the training cells


def test_test_cells_that_stand_in_the_training_cells_are_found(study):
    rich = cells_of(TYPES * 10, seed=1, num_genes=400)
    rich.X = sp.csr_matrix(np.random.default_rng(0).poisson(0.6, size=rich.shape), dtype=np.float32)
    tested = open_study(rich, "cell_type", tree=TREE)

    half = leakage_record(TrainingCells([rich[:20].copy()]), tested).values
    fresh = leakage_record(TrainingCells([cells_of(TYPES * 10, seed=9, num_genes=400)]), tested).values

    assert half == {"test_cells_in_training": 20, "test_cells_judged": 40}
    assert fresh["test_cells_in_training"] == 0


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    path = folder / "mine.h5ad"
    cells_of(TYPES * 40).write_h5ad(path)
    outcome = evaluate(
        path, "cell_type", output=folder / "out", model=PERFECT, tasks=("annotation", "candidates", "controls")
    )
    return folder / "out", outcome


def test_a_persons_own_file_gives_a_page_and_a_json_table_and_picture_a_task(own_run):
    folder, outcome = own_run

    for task in ("annotation", "candidates", "controls"):
        assert {f"{task}.json", f"{task}.md", f"{task}.png"} <= {path.name for path in folder.iterdir()}
    page = (folder / "report.html").read_text()
    assert "named 100% of them right" in page
    assert "natural killer cell" in page
    assert outcome["accuracy"]["perfect"] == 1
    assert "http" not in page.replace("http-equiv", "")


def test_own_baselines_learn_from_other_donors_than_they_are_tested_on(own_run):
    _, records = read_records(own_run[0] / "annotation.json")

    learnt = [r for r in records if "trained on 80 of these cells" in r.system]
    assert len(learnt) == 5
    assert records[0].conditions["cells"] == 80
    assert next(r for r in learnt if "logistic" in r.system).values["accuracy"] > 0.95


def test_results_are_in_the_form_of_the_hub_with_all_it_takes_to_run_again(own_run):
    content = json.loads((own_run[0] / "annotation.json").read_text())

    results = [EvalResult(**row) for row in content["results"]]
    accuracy = next(r for r in results if r.metric_type == "accuracy" and r.metric_args["system"] == "perfect")
    assert accuracy.metric_value == 1
    assert len(accuracy.dataset_revision) == 64
    assert {"command", "commit", "device", "seed", "versions"} <= set(content["run"])


def test_what_was_written_is_read_back_and_rendered(own_run, tmp_path):
    _, records = read_records(own_run[0] / "annotation.json")

    table = markdown_table(records, ["accuracy", "ece"])

    assert table.count("\n") == 1 + len(records)
    assert "| mine | 80 | perfect | **1.000** (1.000–1.000) |" in table
    assert "real | 1 | perfect | 1.000" in mean_table(records, ["accuracy"])
    assert draw(records, tmp_path / "picture.svg").stat().st_size > 1000


def test_simulated_studies_are_called_so_in_the_table(study):
    simulated = open_study(cells_of(TYPES), "cell_type", name="s", is_simulated=True, tree=TREE)

    assert "s (simulated)" in markdown_table([task_annotation.annotate_study(PERFECT, simulated, TREE)])


def test_a_missing_column_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="no column 'celltype'. Did you mean 'cell_type'"):
        open_study(cells_of(TYPES), "celltype", tree=TREE)


def test_one_type_only_is_refused():
    with pytest.raises(UserError, match=r"holds 1 cell type\(s\) \(B cell\)"):
        open_study(cells_of(["B cell"] * 5), "cell_type", tree=TREE)


def test_cells_without_a_label_are_left_out_and_counted():
    cells = cells_of(TYPES * 5)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.iloc[:3, 0] = [np.nan, "unknown", None]

    study = open_study(cells, "cell_type", tree=TREE)

    assert study.cells.n_obs == 17
    assert "3 of 20 cells have no label" in study.notes[0]


def test_absent_donors_and_labels_outside_the_ontology_are_said():
    cells = cells_of(TYPES * 3)
    cells.obs = cells.obs.drop(columns="donor_id").replace({"cell_type": {"B cell": "cluster 7"}})

    notes = " ".join(open_study(cells, "cell_type", tree=TREE).notes)

    assert "intervals are over cells" in notes
    assert "1 of 4 types are not in the Cell Ontology ('cluster 7')" in notes


def test_a_handful_of_cells_still_gives_a_page(tmp_path):
    outcome = evaluate(cells_of(["B cell", "monocyte"] * 2, donors=1), "cell_type", output=tmp_path, model=PERFECT)

    assert outcome["accuracy"]["perfect"] == 1
    assert (tmp_path / "report.html").is_file()


def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="no task 'karaoke'; there are: annotation"):
        evaluate(cells_of(TYPES), "cell_type", output=tmp_path, model=PERFECT, tasks=["karaoke"])


def test_the_callers_cells_are_not_changed(tmp_path):
    cells = cells_of(TYPES * 10)
    before = cells.copy()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluate(cells, "cell_type", output=tmp_path, model=PERFECT, tasks=["annotation", "controls"])

    assert (cells.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(cells.obs, before.obs)


def test_a_suite_keeps_its_test_cells_out_of_the_baselines_training(tmp_path):
    (tmp_path / "data").mkdir()
    cells = cells_of(TYPES * 30)
    cells.obs["study_profile"] = np.repeat(["in", "out", "kept"], 40)
    cells.write_h5ad(tmp_path / "data" / "sim_small.h5ad")
    cells_of(TYPES * 10, seed=3).write_h5ad(tmp_path / "data" / "real.h5ad")
    (tmp_path / "beside").mkdir()
    more = cells_of(TYPES * 10, seed=4)
    more.obs["dataset"] = np.repeat(["out", "another"], 20)
    more.write_h5ad(tmp_path / "beside" / "more.h5ad")
    sources = (
        "sources: [{file: sim_small.h5ad}, {file: real.h5ad}, {file: means.csv.gz}]\ndevelopment_studies: [out]\n"
    )
    (tmp_path / "train.yaml").write_text(sources)
    tested = eval_suite.SuiteStudy(file="sim_small.h5ad", study_profile="in")
    part = eval_suite.SuitePart(name="p", leave_out_development_studies=True, studies=[tested])

    (tmp_path / "suite.yaml").write_text(
        "{name: t, label: cell_type, training_recipe: train.yaml, more_sources: [../beside/more.h5ad, real.h5ad],"
        f" tasks: [annotation], slow_tasks: [], slow_studies: [], parts: [{json.dumps(asdict(part))}]}}"
    )
    suite = eval_suite.Suite.read(tmp_path / "suite.yaml")

    training = eval_suite.training_cells(suite, tmp_path, tmp_path / "data", part)

    # Of the simulated file "kept", the real one once, and of the one beside all but the study that is left out.
    assert training.num_cells == 40 + 40 + 20
    records = eval_suite.run_suite(tmp_path / "suite.yaml", tmp_path / "data", tmp_path / "out", {"p": [PERFECT]})
    assert values(records, "annotation")["accuracy"] == 1
    assert all(record.conditions["simulated"] for record in records)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"t_p_annotation.json", "t_p_leakage.json"}


def test_the_recipe_in_the_repository_tests_eight_real_studies_that_train_nothing():
    from pathlib import Path

    recipe = Path(eval_suite.__file__).parent / "recipes" / "eval_dev.yaml"
    suite = eval_suite.Suite.read(recipe)

    test, development, mixing = (part.studies for part in suite.parts)
    assert [len(test), len(development), len(mixing)] == [8, 17, 1]
    assert not any(study.study_profile for study in test)
    training = (recipe.parent / suite.training_recipe).read_text()
    assert [study.name for study in test if study.name in training or study.file in suite.more_sources] == []


def test_joined_studies_share_their_genes_and_keep_their_names():
    first, second = cells_of(TYPES * 2), cells_of(TYPES, seed=1, num_genes=50)[:, ::-1].copy()
    second.X = second.X.log1p()

    both = eval_suite.joined([first, second], ["first", "second"])

    assert both.shape == (12, 50)
    assert both.obs["donor_id"].tolist() == ["first"] * 8 + ["second"] * 4
    alone = eval_suite.joined([second, first], ["second", "first"])[:4, both.var_names]
    np.testing.assert_allclose(both.X[8:].toarray(), alone.X.toarray(), rtol=1e-4)


def test_a_part_that_only_clusters_needs_no_training_cells(tmp_path):
    for seed, name in enumerate(("first", "second")):
        cells_of(TYPES * 15, seed=seed).write_h5ad(tmp_path / f"{name}.h5ad")
    (tmp_path / "suite.yaml").write_text(
        "{name: t, label: cell_type, training_recipe: absent.yaml, tasks: [annotation, clustering], slow_tasks: [],"
        " slow_studies: [], parts: [{name: mixing, only: [clustering], studies: [{file: first.h5ad,"
        " joined_with: [second.h5ad], called: both}]}]}"
    )

    records = eval_suite.run_suite(tmp_path / "suite.yaml", tmp_path, tmp_path / "out", {"mixing": [PERFECT]})

    assert {(record.task, record.study) for record in records} == {("clustering", "both")}
    assert values(records, "clustering")["graph_connectivity"] == 1
    assert "t_mixing_clustering.json" in {path.name for path in (tmp_path / "out").iterdir()}


def test_a_misspelt_key_of_a_suite_is_refused(tmp_path):
    (tmp_path / "suite.yaml").write_text("{name: t, lable: cell_type}")

    with pytest.raises(UserError, match=r"suite\.yaml(.|\n)*`lable` does not exist. Did you mean `label`"):
        eval_suite.Suite.read(tmp_path / "suite.yaml")


def test_descriptions_are_compared_with_the_words_of_training(study):
    records = describe_study(PERFECT, study, TREE, most=8)

    assert {r.conditions["cells"] for r in records} == {8}


def test_a_system_of_counts_takes_no_part_where_there_are_none(study):
    of_counts = replace(System("of counts", embed=programs), needs_counts=True)
    logged = study.cells.copy()
    logged.X = logged.X.log1p()

    assert len(study_records([of_counts], study, TREE, tasks=["clustering"])) == 1
    assert study_records([of_counts], replace(study, cells=logged), TREE, tasks=["clustering"]) == []


def test_a_task_says_that_a_system_lacks_what_it_asks_for(study):
    with pytest.raises(TypeError, match="lacks the function that this task asks for"):
        describe_study(System("mute"), study, TREE, most=8)


@pytest.mark.parametrize("argument", ["/home/me/models/mini", "part=/home/me/models/mini"])
def test_the_command_of_a_result_names_no_folder_of_the_machine(argument, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["python", argument, "hub_cards/results"])

    command = provenance(seed=0, device="cpu")["command"]

    assert command == f"python {argument.replace('/home/me/models/', '')} hub_cards/results"
