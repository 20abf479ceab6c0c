"""The card of a model, rendered from what was configured and measured, and from nothing else.

A number that nobody measured cannot be rendered: templates take numbers from the results only, an undefined name is
an error, and a section without results says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scmmgpt.errors import UserError

from . import EMBEDDED_MODEL

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from scmmgpt.training.evaluation.results import Record

RESULTS = Path(__file__).parent / "results"
TAGS = ["single-cell", "transcriptomics", "biology", "cell-type-annotation", "scmmgpt"]
# What a card shows first, and what each table answers.
SECTIONS = {
    "annotation": "Zero-shot annotation: candidates are the study's own types",
    "without labels": "Annotation without labels: names that nobody gave candidates for",
    "watched types": "The same for types that were seen to be missed: share named right, and the commonest other name",
    "label sets": "Label sets: how often they hold the true type, and how large they are",
    "guards": "Guards: real cells turned away, and what is no cell and was caught",
    "candidates": "Annotation among more candidates, up to the whole Cell Ontology",
    "wording": "Labels in other words: synonyms, definitions without the name, shuffled names",
    "unknown types": "Cells of types that are not among the candidates",
    "untrained types": "Cells of types without training cells, named among each other and among all types",
    "controls": "Controls: blank and shuffled cells, shuffled text",
    "few-shot": "Few labelled cells",
    "clustering": "Clustering and batch removal of the embeddings",
    "retrieval": "Search: text to cells and cells to text",
    "description": "Descriptions: share of stated facts that are true, beside the model that sees no cell",
    "generation": "Pseudo-cells from text",
    "leakage": "Test cells found in the training corpus",
}
# Which results enter the metadata, where the Hub shows them beside the card.
INDEXED = {
    "annotation": ("accuracy", "macro_f1", "hierarchical_f1"),
    "without labels": ("accuracy_finer", "macro_f1_finer", "hierarchical_f1"),
    "retrieval": ("text_to_cell_precision@20",),
    "generation": ("knn_5",),
}


class Unmeasured(UserError):
    """A card asked for a number that no results file holds."""


def render_model_card(
    directory: Path, results: Path | None = None, examples: Sequence[dict[str, Any]] = (), repo_id: str | None = None
) -> str:
    """README.md of a model directory.

    Parameters
    ----------
    directory
        The model directory, with its config.json.
    results
        A folder of results JSON; None takes the package's for the embedded model, else the directory's own.
    examples
        Widget examples, each with `text` and the expected `output`.
    repo_id
        The name on the Hub that the snippets use.
    """
    config = _read_json(directory / "config.json")
    name = directory.resolve().name
    measured = Measured.read(results or (RESULTS if _is_embedded(directory) else directory / "results"), name)
    summary = config.get("training_summary") or {}
    data = _model_card_data(config, summary, name, measured, examples)
    return _render(
        "model_card.md.jinja",
        data,
        name=name,
        repo_id=repo_id or f"your-name/{name}",
        config=config,
        summary=summary,
        is_embedded=_is_embedded(directory),
        is_generative="ScMMGPTForConditionalGeneration" in (config.get("architectures") or ()),
        measured=measured,
        sections=SECTIONS,
        size=_size(directory),
        examples=list(examples),
        trained_types=_names_of_types(summary.get("cell_types") or (), directory),
    )


class Measured:
    """What was measured for one model: tables for the card, rows for the metadata.

    Parameters
    ----------
    name
        The model's; systems whose name begins with it are this model.
    files
        (what is said about the run, its records) of each results file.
    """

    def __init__(self, name: str, files: Sequence[tuple[dict[str, Any], list[Record]]] = ()):
        self.name = name
        self._files = [(head, records) for head, records in files if any(self._is_ours(record) for record in records)]

    @classmethod
    def read(cls, folder: Path, name: str) -> Measured:
        """Everything in a folder's results files; nothing where there is no folder."""
        from scmmgpt.training.evaluation.results import read_records

        return cls(name, [read_records(path) for path in sorted(folder.glob("*.json"))])

    def __bool__(self) -> bool:
        return bool(self._files)

    def _is_ours(self, record: Record) -> bool:
        return not record.is_baseline and record.system.startswith(self.name)

    def records(self, task: str) -> list[Record]:
        return [record for _, records in self._files for record in records if record.task == task]

    @property
    def tasks(self) -> list[str]:
        """Tasks with results, in the order of the card."""
        found = {record.task for _, records in self._files for record in records}
        return [task for task in SECTIONS if task in found]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Command, commit, date, device, seed and versions of each distinct run."""
        runs = {json.dumps(head["run"], sort_keys=True): head["run"] for head, _ in self._files}
        return list(runs.values())

    def table(self, task: str) -> str:
        """The Markdown table of one task, baselines included."""
        from scmmgpt.training.evaluation.results_table import markdown_table

        if not self.records(task):
            raise Unmeasured(f"Nothing was measured for {task!r} of {self.name}.")
        return markdown_table(self.records(task))

    def eval_results(self) -> list[EvalResult]:
        """This model's leading numbers in the Hub's form: one per study and metric, the plainest conditions first."""
        from huggingface_hub import EvalResult

        from scmmgpt.training.evaluation.results import eval_results

        chosen: dict[tuple, EvalResult] = {}
        for task, metrics in INDEXED.items():
            for record in self.records(task):
                for row in eval_results(record) if self._is_ours(record) else []:
                    key = (task, record.study, row["metric_type"])
                    if row["metric_type"] in metrics and key not in chosen:
                        simulated = " (simulated cells)" if record.conditions.get("simulated") else ""
                        row |= {"dataset_name": row["dataset_name"] + simulated, "dataset_revision": None}
                        chosen[key] = EvalResult(**row)
        return list(chosen.values())


def _model_card_data(config: dict, summary: dict, name: str, measured: Measured, examples: Sequence[dict]) -> Any:
    from huggingface_hub import ModelCardData

    emissions = summary.get("co2_eq_emissions")
    more = {"co2_eq_emissions": emissions} if emissions else {}
    return ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="any-to-any",
        tags=[*TAGS, "custom_code"],
        base_model=summary.get("base_models") or None,
        datasets=summary.get("datasets") or None,
        metrics=sorted({row.metric_type for row in measured.eval_results()}) or None,
        model_name=name,
        eval_results=measured.eval_results() or None,
        widget=[{"text": one["text"], "output": {"text": one["output"]}} for one in examples] or None,
        **more,
    )


def _render(template: str, data: Any, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(template).render(card_data=data.to_yaml(), **values)
    return text.rstrip() + "\n"


def _names_of_types(types: Sequence[str], directory: Path) -> list[str]:
    from scmmgpt.processing.ontology_scmmgpt import read_ontology

    terms = read_ontology(directory, EMBEDDED_MODEL).terms
    return sorted(terms[name].label if name in terms else name for name in types)


def _is_embedded(directory: Path) -> bool:
    return directory.resolve() == EMBEDDED_MODEL.resolve()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no {path.name} in {str(path.parent)!r}.") from error


def _size(directory: Path) -> dict[str, Any]:
    """Parameters and megabytes, counted in the weights' own headers."""
    from safetensors import safe_open

    num_parameters, num_bytes = 0, 0
    for path in sorted(directory.glob("*.safetensors")):
        num_bytes += path.stat().st_size
        with safe_open(path, "np") as weights:
            num_parameters += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return {"parameters": num_parameters, "megabytes": num_bytes / 1e6}
