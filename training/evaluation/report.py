"""One page that a biologist can read: what was tested, how often it is right, what it confuses, what to be careful of."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Template

from .metrics import Labels, per_type_table
from .results import Record
from .study import Study

PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ study.name }}: evaluation</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin-top: 1.6rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem } td, th { padding: .2rem .5rem; text-align: left; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } img { max-width: 100% } .small { color: #555; font-size: .85rem }
</style></head><body>
<h1>How well are the cells of {{ study.name }} named?</h1>
<p>{{ headline }}</p>
<table><tr><th>method</th><th class="n">right</th><th class="n">95 % interval</th><th class="n">macro-F1</th><th class="n">right or parent type</th></tr>
{% for r in rows %}<tr><td>{{ r.name }}</td><td class="n">{{ r.accuracy }}</td><td class="n">{{ r.interval }}</td><td class="n">{{ r.macro_f1 }}</td><td class="n">{{ r.near }}</td></tr>
{% endfor %}</table>
<p class="small">Right: share of cells given exactly the label in your column. Macro-F1: the same with every cell type counting once, so that
rare types matter. Methods marked “trained on” learnt from labelled cells of this very data set and so show what labels buy you.</p>
{% if types %}<h2>Type by type: {{ best }}</h2>
<table><tr><th>your label</th><th class="n">cells</th><th class="n">found</th><th class="n">correct when named</th><th>most often taken for</th></tr>
{% for t in types %}<tr><td>{{ t.type }}</td><td class="n">{{ t.cells }}</td><td class="n">{{ "%.0f %%" % (100 * t.recall) }}</td><td class="n">{{ "%.0f %%" % (100 * t.precision) }}</td><td>{{ t.most_often_taken_for }}</td></tr>
{% endfor %}</table>{% if hidden %}<p class="small">{{ hidden }} more types are in annotation.json.</p>{% endif %}{% endif %}
{% for line in findings %}{% if loop.first %}<h2>What else was seen</h2><ul>{% endif %}<li>{{ line }}</li>{% if loop.last %}</ul>{% endif %}{% endfor %}
{% if picture %}<img alt="accuracy of each method" src="data:image/png;base64,{{ picture }}">{% endif %}
<h2>Be careful</h2><ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
<p class="small">{{ run.date }} · commit {{ run.commit[:12] or "unknown" }} · {{ run.device }} · seed {{ run.seed }} · data sha256 {{ study.sha256[:12] }}</p>
</body></html>
""",
    autoescape=True,
)
MOST_TYPES = 15


def write_report(
    path: Path,
    study: Study,
    records: Sequence[Record],
    named: Mapping[str, Labels],
    *,
    run: dict,
    picture: Path | None,
) -> Path:
    """Write the page from the records of every task.

    `named` holds each system's labels of the tested cells, best known first; `run` comes from `results.provenance`;
    `picture` is a PNG to put in.
    """
    annotation = [record for record in records if record.task == "annotation"]
    best = next(iter(named), None)
    types = sorted(per_type_table(study.truth, named[best]), key=lambda row: -row["cells"]) if best else []
    page = PAGE.render(
        study=study,
        run=run,
        headline=_headline(study, annotation),
        rows=[_row(record) for record in annotation],
        best=best,
        types=types[:MOST_TYPES],
        hidden=max(len(types) - MOST_TYPES, 0),
        findings=[line for record in records if not record.is_baseline and (line := _finding(record))],
        picture=base64.b64encode(picture.read_bytes()).decode() if picture else None,
        notes=[*study.notes, *(["These cells are simulated."] if study.is_simulated else [])],
    )
    path.write_text(page, encoding="utf-8")
    return path


def _headline(study: Study, annotation: Sequence[Record]) -> str:
    size = f"{study.cells.n_obs:,} cells of {len(study.types)} types were tested; the candidates were these types."
    models = [record for record in annotation if not record.is_baseline]
    if not models:
        return f"{size} No model was tested, only simple methods."
    model = models[0]
    share = model.values["accuracy"]
    rivals = [record for record in annotation if record.is_baseline]
    text = f"{size} Without having seen any of their labels, {model.system} named {share:.0%} of them right."
    if not rivals:
        return text
    rival = max(rivals, key=lambda record: record.values["accuracy"])
    low, high, _ = model.intervals["accuracy"]
    value = rival.values["accuracy"]
    verdict = "within its interval" if low <= value <= high else ("below that" if value < low else "above that")
    return f"{text} The best simple method, {rival.system}, reached {value:.0%}: {verdict}."


def _row(record: Record) -> dict[str, str]:
    low, high, unit = record.intervals["accuracy"]
    return {
        "name": record.system,
        "accuracy": f"{record.values['accuracy']:.1%}",
        "interval": f"{low:.0%} to {high:.0%} (over {unit})",
        "macro_f1": f"{record.values['macro_f1']:.3f}",
        "near": f"{record.values['exact_or_parent']:.1%}",
    }


def _finding(record: Record) -> str | None:
    """A sentence where the record changes how far the labels can be trusted."""
    values, conditions, name = record.values, record.conditions, record.system
    if record.task == "annotation":
        return (
            f"{name}: when it says p % sure, it is off by {values['ece']:.0%} on average; on the 80 % of cells it is surest "
            f"of, {values['accuracy_at_80_coverage']:.0%} are right. Speed: {values['cells_per_second']:,.0f} cells a second."
        )
    if record.task == "candidates" and conditions.get("all_of_the_ontology"):
        return (
            f"{name}, with all {conditions['candidates']:,} types of the Cell Ontology to choose from: {values['accuracy']:.0%} "
            f"exactly right, {values['exact_or_parent']:.0%} right or the parent type."
        )
    if record.task == "controls" and conditions.get("control") == "shuffled genes":
        return (
            f"{name}, on cells whose genes were shuffled: {values['accuracy']:.0%} right by luck, with a confidence of "
            f"{values['mean_confidence']:.0%} on average; it should be low."
        )
    if record.task == "unknown types":
        return (
            f"{name}: a cell of a type that is not among the candidates gets lower confidence {values['unknown_auroc']:.0%} of "
            "the time (50 % would be no warning at all)."
        )
    return None
