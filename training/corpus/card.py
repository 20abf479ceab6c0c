"""The card of a corpus: a Hugging Face dataset README, written from its manifest and from nothing else."""

from __future__ import annotations

from collections import Counter

import yaml

from .splits import SCHEMES, SPLITS

_MOST_TYPES = 25


def render_card(manifest: dict, splits: dict, label_counts: dict[str, int]) -> str:
    """The README of a corpus, front matter included."""
    front = {
        "pretty_name": "Single-cell corpus",
        "tags": ["biology", "single-cell", "transcriptomics", "scmmgpt"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.arrow"}]}],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        "# Single-cell corpus",
        _summary(manifest),
        "## Sources\n\n" + _source_table(manifest),
        "## Splits\n\n" + _split_table(splits, manifest),
        "## Cell types\n\n" + _type_table(label_counts),
        "## Columns\n\n" + _COLUMNS,
    ]
    if manifest["left_out"]:
        parts.append(
            "## Left out\n\n" + _bullets(f"{number:,} cells: {why}" for why, number in manifest["left_out"].items())
        )
    if manifest["skipped"]:
        parts.append(
            "## Skipped sources\n\n" + _bullets(f"`{name}`: {why}" for name, why in manifest["skipped"].items())
        )
    if manifest["findings"]:
        parts.append("## Findings\n\n" + _findings(manifest["findings"]))
    return "\n\n".join(parts) + "\n"


_COLUMNS = """`gene_ids` and `gene_values` are the tokens of a cell in the order of the gene tokenizer in `tables/`;
`library_size` is empty where a source holds no counts; `row` is the place of the cell in its source; `cell_hash` is
equal for cells with equal tokens; every other column is text, "unknown" where the source is silent. The splits are
written down in `splits.json`, marker genes in `markers.json`, and everything else about this build in `manifest.json`.

```python
from scmmgpt.training.corpus.reading import Corpus, Selection

corpus = Corpus.open("this/folder")
train = corpus.select(Selection("train", "study"))  # a datasets.Dataset
```

`datasets.load_dataset("this/folder", streaming=True)` reads the rows of all splits without scmmgpt."""


def _summary(manifest: dict) -> str:
    rows = [
        ("cells", f"{manifest['num_rows']:,}"),
        ("tokens", f"{manifest['num_tokens']:,}"),
        ("exact duplicates, never selected", f"{manifest['num_duplicates']:,}"),
        ("values", manifest["value_mode"]),
        ("vocabulary", f"{manifest['vocabulary_size']:,} genes and special tokens"),
        ("ontology", manifest["ontology_version"]),
        ("gene tables", "; ".join(manifest["gene_tables"]) or "none"),
        ("settings", f"`{manifest['settings_hash']}`"),
    ]
    return _table(("", ""), rows)


def _source_table(manifest: dict) -> str:
    rows = [
        (
            source["name"],
            f"{source['num_rows']:,} of {source['num_cells']:,}",
            f"`{source['matrix']}`, {source['matrix_state']}",
            _label_verdict(source["label_check"]),
            source["facts"].get("licence") or source["facts"].get("license") or "not stated",
            source["facts"].get("source", "not stated"),
            f"`{source['content_hash'][:12]}`",
        )
        for source in manifest["sources"]
    ]
    return _table(("source", "cells", "matrix", "labels against chance", "licence", "origin", "sha256"), rows)


def _label_verdict(check: dict | None) -> str:
    if check is None:
        return "no two types to tell apart"
    verdict = f"{check['accuracy']:.2f} against {check['shuffled_accuracy']:.2f}"
    if check["refused"]:
        return f"{verdict}: at chance, labels refused"
    return f"{verdict}: at chance, kept as asked" if check["at_chance"] else verdict


def _split_table(splits: dict, manifest: dict) -> str:
    rows = [(scheme, *(_few(splits["schemes"][scheme][split]) for split in SPLITS)) for scheme in SCHEMES]
    families = _bullets(f"{family}: {', '.join(members)}" for family, members in splits["families"].items())
    text = _table(("by", *SPLITS), rows)
    return f"{text}\n\nFiles of one study:\n\n{families}" if families else text


def _few(groups: list[str]) -> str:
    shown = ", ".join(groups[:4])
    return f"{len(groups)}: {shown}, ..." if len(groups) > 4 else f"{len(groups)}: {shown}" if groups else "0"


def _type_table(label_counts: dict[str, int]) -> str:
    items = list(label_counts.items())
    text = _table(("cell type", "cells"), [(name, f"{number:,}") for name, number in items[:_MOST_TYPES]])
    return text if len(items) <= _MOST_TYPES else f"{text}\n\nand {len(items) - _MOST_TYPES} more."


def _findings(findings: list[dict]) -> str:
    kinds = Counter(finding["kind"] for finding in findings)
    lines = [
        f"{finding['source']}: {finding['kind']}, {finding['detail']} ({finding['num_cells']:,} cells)"
        for finding in findings
    ]
    head = ", ".join(f"{number} x {kind}" for kind, number in sorted(kinds.items()))
    return f"{head}.\n\n{_bullets(lines)}"


def _bullets(lines) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    cells = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)
