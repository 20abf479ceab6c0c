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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scmmgpt.errors import UserError
from scmmgpt.training.evaluation.baselines import METHODS, TrainingCells, baseline_systems, components_system
from scmmgpt.training.evaluation.results import Record, provenance, write_results
from scmmgpt.training.evaluation.study import NO_LABEL, Study, open_study
from scmmgpt.training.evaluation.systems import System
from scmmgpt.training.evaluation.type_tree import TypeTree

from .evaluate import ALL_TASKS, device_kind, leakage_record, study_records
from .settings import parse_yaml, read_text

if TYPE_CHECKING:
    from anndata import AnnData

SIMULATED_PREFIX = "sim_"


@dataclass(frozen=True)
class Suite:
    """A suite as its recipe says it."""

    name: str
    label: str
    training_recipe: str
    parts: list[dict[str, Any]]
    tasks: list[str]
    slow_tasks: list[str]
    slow_studies: list[str]
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> Suite:
        """The suite in a yaml file; keys and tasks that do not exist are refused."""
        content = parse_yaml(read_text(path), path)
        known = {field.name for field in fields(cls)}
        if strange := sorted(set(content) - known):
            raise UserError(f"{path} has no key {strange[0]!r}; keys: {', '.join(sorted(known))}.")
        required = {"name", "label", "training_recipe", "parts", "tasks", "slow_tasks", "slow_studies"}
        if missing := sorted(required - set(content)):
            raise UserError(f"{path} lacks the key {missing[0]!r}.")
        if wrong := [name for name in ("parts", "tasks", "slow_tasks", "slow_studies") if not _is_list(content[name])]:
            raise UserError(f"{path}: {wrong[0]!r} must be a list.")
        suite = cls(**content)
        if strange := sorted({*map(str, suite.tasks), *map(str, suite.slow_tasks)} - set(ALL_TASKS)):
            raise UserError(f"{path} names the task {strange[0]!r}; there are: {', '.join(ALL_TASKS)}.")
        return suite

    def tasks_of(self, study: str) -> list[str]:
        """The tasks for one study."""
        return self.tasks + (self.slow_tasks if study in self.slow_studies else [])


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str | dict) for item in value)


def run_suite(
    recipe: Path,
    data: Path,
    output: Path,
    models: dict[str, System],
    *,
    only: Sequence[str] = (),
    studies: Sequence[str] = (),
) -> list[Record]:
    """Run a suite and write its results.

    Parameters
    ----------
    recipe
        The suite's yaml; the training recipe that it names lies beside it.
    data
        The folder that the recipe's files lie in.
    output
        The folder of the results.
    models
        Part -> the model to test there.
    only
        Tasks to run; all of the recipe without any.
    studies
        Studies to run; all of the recipe without any.
    """
    suite, tree = Suite.read(recipe), TypeTree.load()
    records: list[Record] = []
    for part in suite.parts:
        chosen = [entry for entry in part["studies"] if not studies or _name_of(entry) in studies]
        if chosen:
            training = training_cells(recipe.parent / suite.training_recipe, data, part, suite.label)
            systems = _systems(models.get(part["name"]), training, tree)
            opened = (_open(entry, suite.label, data, tree) for entry in chosen)
            records += _run_part(suite, part["name"], opened, training, systems, tree, output, only)
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
        tasks = [task for task in suite.tasks_of(study.name) if not only or task in only]
        records += study_records(systems, study, tree, tasks=tasks, training=training, seed=suite.seed)
        records.append(leakage_record(training, study))
        tested.append(study)
        models = [system.name for system in systems if not system.is_baseline]
        run = provenance(seed=suite.seed, device=device_kind(), models=models, training_cells=training.num_cells)
        # After every study, so that an interrupted run leaves what it has.
        write_results(records, tested, output, run, prefix=f"{suite.name}_{part}")
        print(f"{study.name}: {len(tasks)} tasks in {time.perf_counter() - start:.0f} s", flush=True)
    return records


def training_cells(recipe: Path, data: Path, part: dict[str, Any], label: str) -> TrainingCells:
    """The labelled cells of the training recipe's sources, for the baselines of one part.

    Parameters
    ----------
    recipe
        The training recipe: `sources` with a `file` each, and `development_studies`.
    data
        The folder that the files lie in.
    part
        Of the suite; the studies that it tests never train, and with `leave_out_development_studies` neither do the
        recipe's development studies.
    label
        The column of `obs` with the types.
    """
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    left_out = {_name_of(entry) for entry in part["studies"]}
    if part.get("leave_out_development_studies"):
        left_out |= set(content["development_studies"])
    sources = []
    for source in content["sources"]:
        path = data / source["file"]
        if path.stem not in left_out:
            sources.append(_labelled(_read(path), label, left_out))
    return TrainingCells([source for source in sources if source.n_obs], label)


def _labelled(adata: AnnData, label: str, left_out: set[str]) -> AnnData:
    keep = ~adata.obs[label].astype(str).str.lower().isin(NO_LABEL)
    if "study_profile" in adata.obs:
        keep &= ~adata.obs["study_profile"].astype(str).isin(left_out)
    return adata[keep.to_numpy()].copy()


def _name_of(entry: dict) -> str:
    return entry.get("study_profile") or Path(entry["file"]).stem


def _open(entry: dict, label: str, data: Path, tree: TypeTree) -> Study:
    path = data / entry["file"]
    cells: AnnData | Path = path
    if profile := entry.get("study_profile"):
        cells = _read(path)
        cells = cells[(cells.obs["study_profile"].astype(str) == profile).to_numpy()].copy()
    is_simulated = path.stem.startswith(SIMULATED_PREFIX)
    return open_study(cells, label, name=_name_of(entry), is_simulated=is_simulated, tree=tree)


def _systems(model: System | None, training: TrainingCells, tree: TypeTree) -> list[System]:
    exact = {name: METHODS[name] for name in ("nearest class mean", "HVG + logistic regression")}
    baselines = baseline_systems(training, tree) + baseline_systems(training, tree, exact, exact_labels=True)
    return [*([model] if model else []), *baselines, components_system()]


def _read(path: Path) -> AnnData:
    from anndata import read_h5ad

    return read_h5ad(path)


def main() -> None:
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
        models[part] = _model(directory)
    run_suite(arguments.recipe, data, arguments.output, models, only=arguments.only, studies=arguments.study)


def _model(directory: str) -> System:
    from scmmgpt.loading import load
    from scmmgpt.training.evaluation.model_system import model_system

    loaded = load(directory)
    summary: dict[str, Any] = loaded.training_summary or {}
    return model_system(loaded, "development model" if summary.get("development") else Path(directory).name)


if __name__ == "__main__":
    main()
