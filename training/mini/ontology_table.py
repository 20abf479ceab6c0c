"""The Cell Ontology and the names of UBERON as one small table that travels with the model.

python -m scmmgpt.training.mini.ontology_table FOLDER --output hub_cards/scmmgpt-mini/cell_ontology.json.gz

FOLDER holds the term files of the PyPI package cellxgene-ontology-guide: `cl_terms_VERSION.json.gz`
and `uberon_terms_VERSION.json.gz`. The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import typer

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing.ontology_scmmgpt import FILE_NAME

LICENCE = "Cell Ontology: CC BY 4.0 (the OBO Cell Ontology developers). UBERON: CC BY 3.0 (the UBERON developers)."
SOURCE = "PyPI cellxgene-ontology-guide, files {files}; labels, synonyms, definitions and direct parents, unaltered"


def ontology_table(folder: Path) -> dict:
    """The table: living CL terms, replacements of obsolete ones, and UBERON names."""
    cells_file = _only_file(folder, "cl_terms_*.json.gz")
    tissues_file = _only_file(folder, "uberon_terms_*.json.gz")
    cells = json.loads(gzip.decompress(cells_file.read_bytes()))
    tissues = json.loads(gzip.decompress(tissues_file.read_bytes()))
    return {
        "version": f"CL {_version(cells_file)}, UBERON {_version(tissues_file)}",
        "licence": LICENCE,
        "source": SOURCE.format(files=f"{cells_file.name} and {tissues_file.name}"),
        "terms": {term["id"]: _slim(term) for term in _by_id(cells) if not term["deprecated"]},
        "replaced": {term["id"]: term["replaced_by"] for term in _by_id(cells) if _is_replaced(term)},
        "tissues": {term["id"]: term["label"] for term in _by_id(tissues)},
    }


def write_table(table: dict, output: Path) -> None:
    """Write `table` as compressed JSON, byte for byte the same for the same table."""
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _slim(term: dict) -> dict:
    parents = sorted(parent for parent, distance in term["ancestors"].items() if distance == 1)
    return {
        "label": term["label"],
        "synonyms": sorted(set(term["synonyms"]) - {term["label"]}),
        "definition": term["definition"],
        "parents": parents,
    }


def _is_replaced(term: dict) -> bool:
    return term["deprecated"] and term["replaced_by"].startswith("CL:")


def _by_id(terms: list[dict]) -> list[dict]:
    return sorted(terms, key=lambda term: term["id"])


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = [path.name for path in found]
        raise FileNotFoundError(f"{folder} must hold exactly one file {pattern}, found {names or 'none'}.")
    return found[0]


def _version(path: Path) -> str:
    return path.name.removesuffix(".json.gz").rsplit("_", 1)[1]


def main(folder: Path, output: Path = EMBEDDED_MODEL / FILE_NAME) -> None:
    """Write the Cell Ontology and the names of UBERON as one small table."""
    table = ontology_table(folder)
    write_table(table, output)
    size = output.stat().st_size / 1e6
    print(f"{output}: {len(table['terms'])} cell types, {len(table['tissues'])} tissues, {size:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
