# /// script
# requires-python = ">=3.11"
# dependencies = ["scmmgpt[train,eval]"]
# ///
"""Run a whole suite from its recipe: studies, training cells of the baselines, tasks, one JSON a task and part.

    python -m scmmgpt.training.eval_suite --recipe training/recipes/eval_dev.yaml --output hub_cards/results \\
        [--model test=hub_cards/scmmgpt-mini] [--model development=DIR] [--only annotation] [--study NAME] [--peers]

Without `--model` the baselines run alone; `--peers` adds other people's methods, as far as they can be installed.
`SCMMGPT_DATA` names the folder with the cells.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass

from scmmgpt.errors import UserError
from scmmgpt.training.evaluation.baselines import (
    METHODS,
    TrainingCells,
    baseline_systems,
    components_system,
    naming_system,
)
from scmmgpt.training.evaluation.expression import linear_expression, log_normalised, upper_symbols
from scmmgpt.training.evaluation.model_system import annotating_system, model_system
from scmmgpt.training.evaluation.peers import cell_consensus, scvi_system
from scmmgpt.training.evaluation.results import Record, provenance, write_results
from scmmgpt.training.evaluation.study import NO_LABEL, Study, open_study, read_cells, study_of_cells
from scmmgpt.training.evaluation.systems import System
from scmmgpt.training.evaluation.type_tree import TypeTree

from .evaluate import ALL_TASKS, Task, device_kind, leakage_record, study_records
from .strict_yaml import CHECKED, RecipeError, read_settings, read_yaml

if TYPE_CHECKING:
    from anndata import AnnData

    from scmmgpt.loading import LoadedModel

SIMULATED_PREFIX = "sim_"
# No baseline learns from training cells in these.
WITHOUT_TRAINING = {"clustering", "few-shot", "description"}


@dataclass(config=CHECKED, frozen=True)
class SuiteStudy:
    """A file of cells, or those of its cells whose study is called `study_profile`.

    Attributes
    ----------
    joined_with
        Files whose cells come to those, on the genes that all measured; each file is a batch. Then it is `called`
        something.
    """

    file: str
    study_profile: str | None = None
    joined_with: list[str] = Field(default_factory=list)
    called: str | None = None

    @property
    def name(self) -> str:
        return self.called or self.study_profile or Path(self.file).stem

    @property
    def parts(self) -> list[str]:
        """The names of the studies whose cells it holds."""
        return [self.study_profile or Path(self.file).stem, *(Path(file).stem for file in self.joined_with)]


@dataclass(config=CHECKED, frozen=True)
class SuitePart:
    """Studies that are tested with one model.

    Attributes
    ----------
    leave_out_development_studies
        The baselines do not learn from the training recipe's development studies either.
    only
        The tasks of the suite that are run on it; all when there are none.
    """

    name: str
    studies: list[SuiteStudy]
    leave_out_development_studies: bool = False
    only: list[Task] = Field(default_factory=list)


@dataclass(config=CHECKED, frozen=True)
class Suite:
    """A suite as its recipe says it.

    Attributes
    ----------
    training_recipe
        The recipe whose sources the baselines learn from.
    more_sources
        Files that they learn from as well.
    """

    name: str
    label: str
    training_recipe: str
    parts: list[SuitePart]
    tasks: list[Task]
    slow_tasks: list[Task]
    slow_studies: list[str]
    more_sources: list[str] = Field(default_factory=list)
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> Suite:
        """The suite in a yaml file; keys and tasks that do not exist are refused."""
        return read_settings(path, cls)


def run_suite(
    recipe: Path,
    data: Path,
    output: Path,
    models: dict[str, Sequence[System]],
    *,
    peers: Sequence[System] = (),
    only: Sequence[str] = (),
    studies: Sequence[str] = (),
) -> list[Record]:
    """Run a suite, or only some of its tasks and studies, and write its results to `output`.

    The recipe is the suite's yaml; the training recipe that it names lies beside it, the files of both lie in `data`.
    `models` names the systems to test in each part, `peers` are tested in all.
    """
    suite, tree = Suite.read(recipe), TypeTree.load()
    records: list[Record] = []
    for part in suite.parts:
        chosen = [study for study in part.studies if not studies or study.name in studies]
        if chosen:
            wanted = {task for study in chosen for task in _tasks_of(suite, part, only, study.name)}
            learns = not WITHOUT_TRAINING.issuperset(wanted)
            training = training_cells(suite, recipe.parent, data, part) if learns else TrainingCells([], suite.label)
            systems = [*models.get(part.name, ()), *_baselines(training, tree), *peers]
            opened = (_open(study, suite.label, data, tree) for study in chosen)
            records += _run_part(suite, part, opened, training, systems, tree, output, only)
    return records


def _run_part(
    suite: Suite,
    part: SuitePart,
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
        tasks = _tasks_of(suite, part, only, study.name)
        records += study_records(systems, study, tree, tasks=tasks, training=training, seed=suite.seed)
        if training.num_cells:
            records.append(leakage_record(training, study))
        tested.append(study)
        models = [system.name for system in systems if not system.is_baseline]
        run = provenance(seed=suite.seed, device=device_kind(), models=models, training_cells=training.num_cells)
        # After every study, so that an interrupted run leaves what it has.
        write_results(records, tested, output, run, prefix=f"{suite.name}_{part.name}")
        print(f"{study.name}: {len(tasks)} tasks in {time.perf_counter() - start:.0f} s", flush=True)
    return records


def _tasks_of(suite: Suite, part: SuitePart, only: Sequence[str], study: str) -> list[Task]:
    """What is run on a study."""
    tasks = suite.tasks + (suite.slow_tasks if study in suite.slow_studies else [])
    return [task for task in tasks if (not only or task in only) and (not part.only or task in part.only)]


def training_cells(suite: Suite, recipes: Path, data: Path, part: SuitePart) -> TrainingCells:
    """The labelled cells of a suite's sources in `data`, for the baselines of one of its parts.

    The studies that the part tests never train, and with `leave_out_development_studies` neither do the development
    studies of the training recipe, which lies in the folder `recipes`.
    """
    content = read_yaml(recipes / suite.training_recipe)
    if missing := [key for key in ("sources", "development_studies") if key not in content]:
        raise RecipeError(f"{recipes / suite.training_recipe}: `{missing[0]}` is missing.")
    left_out = {name for study in part.studies for name in study.parts}
    if part.leave_out_development_studies:
        left_out |= set(content["development_studies"])
    files = [source["file"] for source in content["sources"]] + suite.more_sources
    sources = []
    # A recipe of training may name tables of mean profiles too.
    for path in [data / file for file in dict.fromkeys(files) if file.endswith(".h5ad")]:
        cells = read_cells(path)
        keep = ~cells.obs[suite.label].astype(str).str.lower().isin(NO_LABEL)
        keep &= ~np.isin(study_of_cells(cells.obs, path.stem).astype(str), sorted(left_out))
        sources.append(cells[keep.to_numpy()].copy())
    return TrainingCells([source for source in sources if source.n_obs], suite.label)


def _open(study: SuiteStudy, label: str, data: Path, tree: TypeTree) -> Study:
    path = data / study.file
    cells: AnnData | Path = path
    if study.study_profile:
        cells = read_cells(path)
        cells = cells[study_of_cells(cells.obs, path.stem) == study.study_profile].copy()
    if study.joined_with:
        cells = joined(
            [
                cells if study.study_profile else read_cells(path),
                *(read_cells(data / file) for file in study.joined_with),
            ],
            study.parts,
        )
    is_simulated = path.stem.startswith(SIMULATED_PREFIX)
    return open_study(cells, label, name=study.name, is_simulated=is_simulated, tree=tree)


def joined(parts: Sequence[AnnData], names: Sequence[str]) -> AnnData:
    """The cells of several studies on the genes that all measured, as log1p values; `donor_id` is the study's name."""
    from anndata import AnnData, concat

    on_symbols = []
    for cells in parts:
        symbols = pd.Index(upper_symbols(cells).astype(str))
        plain = AnnData(linear_expression(cells), obs=cells.obs, var=pd.DataFrame(index=symbols))
        on_symbols.append(plain[:, ~symbols.duplicated()])
    together = concat(dict(zip(names, on_symbols, strict=True)), label="donor_id", index_unique="-")
    together.X = log_normalised(together.X)
    return together


def model_systems(loaded: LoadedModel, name: str) -> list[System]:
    """The model as it is, what it names when it never backs off, and when each cell is judged alone."""
    return [
        model_system(loaded, name),
        annotating_system(loaded, f"{name}, min_confidence 0", min_confidence=0.0),
        annotating_system(loaded, f"{name}, consensus off", consensus=False),
    ]


def peer_systems(tree: TypeTree) -> list[System]:
    """Other people's methods, as far as they can be installed here; of the others it is said why not."""
    found = []
    for make in (lambda: cell_consensus(tree), scvi_system):
        try:
            found.append(make())
        except UserError as error:
            print(f"Left out: {error}", flush=True)
    return found


def _baselines(training: TrainingCells, tree: TypeTree) -> list[System]:
    exact = {name: METHODS[name] for name in ("nearest class mean", "HVG + logistic regression")}
    baselines = baseline_systems(training, tree) + baseline_systems(training, tree, exact, exact_labels=True)
    return [*baselines, naming_system(training, tree), components_system()]


def main() -> None:
    from scmmgpt.loading import load

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes" / "eval_dev.yaml")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="PART=DIR")
    parser.add_argument("--only", nargs="*", default=[], choices=ALL_TASKS)
    parser.add_argument("--study", nargs="*", default=[])
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    if "SCMMGPT_DATA" not in os.environ:
        raise SystemExit("SCMMGPT_DATA is not set: name the folder that the recipe's files lie in.")
    data = Path(os.environ["SCMMGPT_DATA"])
    models: dict[str, Sequence[System]] = {}
    for given in arguments.model:
        part, _, directory = given.partition("=")
        loaded = load(directory)
        is_development = (loaded.training_summary or {}).get("development")
        models[part] = model_systems(loaded, "development model" if is_development else Path(directory).name)
    peers = peer_systems(TypeTree.load()) if arguments.peers else []
    asked = {"only": arguments.only, "studies": arguments.study, "peers": peers}
    run_suite(arguments.recipe, data, arguments.output, models, **asked)


if __name__ == "__main__":
    main()
