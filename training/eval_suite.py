"""Run a whole suite from its recipe: studies, training cells of the baselines, tasks, one JSON a task and part.

    python -m scmmgpt.training.eval_suite --recipe training/recipes/eval_dev.yaml --output hub_cards/results \\
        [--model test=hub_cards/scmmgpt-mini] [--model development=DIR] [--only annotation] [--study NAME]

Without `--model` the baselines run alone. `SCMMGPT_DATA` names the folder with the cells.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from scmmgpt.training.evaluation.baselines import METHODS, TrainingCells, baseline_systems, components_system
from scmmgpt.training.evaluation.model_system import model_system
from scmmgpt.training.evaluation.results import Record, provenance, write_results
from scmmgpt.training.evaluation.study import NO_LABEL, Study, open_study, read_cells
from scmmgpt.training.evaluation.systems import System
from scmmgpt.training.evaluation.type_tree import TypeTree

from .evaluate import ALL_TASKS, Task, device_kind, leakage_record, study_records
from .strict_yaml import CHECKED, RecipeError, read_settings, read_yaml

if TYPE_CHECKING:
    from anndata import AnnData

SIMULATED_PREFIX = "sim_"


@dataclass(config=CHECKED, frozen=True)
class SuiteStudy:
    """A file of cells, or those of its cells that one `study_profile` names."""

    file: str
    study_profile: str | None = None

    @property
    def name(self) -> str:
        return self.study_profile or Path(self.file).stem


@dataclass(config=CHECKED, frozen=True)
class SuitePart:
    """Studies that are tested with one model.

    Attributes
    ----------
    leave_out_development_studies
        The baselines do not learn from the training recipe's development studies either.
    """

    name: str
    studies: list[SuiteStudy]
    leave_out_development_studies: bool = False


@dataclass(config=CHECKED, frozen=True)
class Suite:
    """A suite as its recipe says it."""

    name: str
    label: str
    training_recipe: str
    parts: list[SuitePart]
    tasks: list[Task]
    slow_tasks: list[Task]
    slow_studies: list[str]
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> Suite:
        """The suite in a yaml file; keys and tasks that do not exist are refused."""
        return read_settings(path, cls)


def run_suite(
    recipe: Path,
    data: Path,
    output: Path,
    models: dict[str, System],
    *,
    only: Sequence[str] = (),
    studies: Sequence[str] = (),
) -> list[Record]:
    """Run a suite, or only some of its tasks and studies, and write its results to `output`.

    The recipe is the suite's yaml; the training recipe that it names lies beside it, the files of both lie in `data`.
    `models` names the model to test in each part.
    """
    suite, tree = Suite.read(recipe), TypeTree.load()
    records: list[Record] = []
    for part in suite.parts:
        chosen = [study for study in part.studies if not studies or study.name in studies]
        if chosen:
            training = training_cells(recipe.parent / suite.training_recipe, data, part, suite.label)
            systems = _systems(models.get(part.name), training, tree)
            opened = (_open(study, suite.label, data, tree) for study in chosen)
            records += _run_part(suite, part.name, opened, training, systems, tree, output, only)
    return records


def _run_part(
    suite: Suite,
    part: str,
    studies: Iterable[Study],
    training: TrainingCells,
    systems: list[System],
    tree: TypeTree,
    output: Path,
    only: Sequence[str],
) -> list[Record]:
    records: list[Record] = []
    tested: list[Study] = []
    for study in studies:
        start = time.perf_counter()
        of_study = suite.tasks + (suite.slow_tasks if study.name in suite.slow_studies else [])
        tasks = [task for task in of_study if not only or task in only]
        records += study_records(systems, study, tree, tasks=tasks, training=training, seed=suite.seed)
        records.append(leakage_record(training, study))
        tested.append(study)
        models = [system.name for system in systems if not system.is_baseline]
        run = provenance(seed=suite.seed, device=device_kind(), models=models, training_cells=training.num_cells)
        # After every study, so that an interrupted run leaves what it has.
        write_results(records, tested, output, run, prefix=f"{suite.name}_{part}")
        print(f"{study.name}: {len(tasks)} tasks in {time.perf_counter() - start:.0f} s", flush=True)
    return records


def training_cells(recipe: Path, data: Path, part: SuitePart, label: str) -> TrainingCells:
    """The labelled cells of the training recipe's sources in `data`, for the baselines of one part of the suite.

    The studies that the part tests never train, and with `leave_out_development_studies` neither do the recipe's
    development studies. `label` is the column of `obs` with the types.
    """
    content = read_yaml(recipe)
    if missing := [key for key in ("sources", "development_studies") if key not in content]:
        raise RecipeError(f"{recipe}: `{missing[0]}` is missing.")
    left_out = {study.name for study in part.studies}
    if part.leave_out_development_studies:
        left_out |= set(content["development_studies"])
    sources = []
    for source in content["sources"]:
        path = data / source["file"]
        if path.stem not in left_out:
            sources.append(_labelled(read_cells(path), label, left_out))
    return TrainingCells([source for source in sources if source.n_obs], label)


def _labelled(adata: AnnData, label: str, left_out: set[str]) -> AnnData:
    keep = ~adata.obs[label].astype(str).str.lower().isin(NO_LABEL)
    if "study_profile" in adata.obs:
        keep &= ~adata.obs["study_profile"].astype(str).isin(left_out)
    return adata[keep.to_numpy()].copy()


def _open(study: SuiteStudy, label: str, data: Path, tree: TypeTree) -> Study:
    path = data / study.file
    cells: AnnData | Path = path
    if study.study_profile:
        cells = read_cells(path)
        cells = cells[(cells.obs["study_profile"].astype(str) == study.study_profile).to_numpy()].copy()
    is_simulated = path.stem.startswith(SIMULATED_PREFIX)
    return open_study(cells, label, name=study.name, is_simulated=is_simulated, tree=tree)


def _systems(model: System | None, training: TrainingCells, tree: TypeTree) -> list[System]:
    exact = {name: METHODS[name] for name in ("nearest class mean", "HVG + logistic regression")}
    baselines = baseline_systems(training, tree) + baseline_systems(training, tree, exact, exact_labels=True)
    return [*([model] if model else []), *baselines, components_system()]


def main() -> None:
    from scmmgpt.loading import load

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes" / "eval_dev.yaml")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="PART=DIR")
    parser.add_argument("--only", nargs="*", default=[], choices=ALL_TASKS)
    parser.add_argument("--study", nargs="*", default=[])
    arguments = parser.parse_args()
    if "SCMMGPT_DATA" not in os.environ:
        raise SystemExit("SCMMGPT_DATA is not set: name the folder that the recipe's files lie in.")
    data = Path(os.environ["SCMMGPT_DATA"])
    models = {}
    for given in arguments.model:
        part, _, directory = given.partition("=")
        loaded = load(directory)
        is_development = (loaded.training_summary or {}).get("development")
        models[part] = model_system(loaded, "development model" if is_development else Path(directory).name)
    run_suite(arguments.recipe, data, arguments.output, models, only=arguments.only, studies=arguments.study)


if __name__ == "__main__":
    main()
