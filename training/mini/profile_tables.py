"""Published tables of mean expression, genes x types, read as if every column were one labelled cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass

from scmmgpt.processing.ontology_scmmgpt import Ontology
from scmmgpt.training.strict_yaml import CHECKED

TOTAL = 1e6  # of each column: no share of it can be taken for a logarithm

# From the table's unit to values proportional to transcripts. A logarithm's floor is what was added before taking it.
LINEAR: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda values: values,
    "log1p": np.expm1,
    "log2": lambda values: np.exp2(values) - np.exp2(min(values.min(), 0)),
}


@dataclass(config=CHECKED, frozen=True)
class ProfileTable:
    """What a table of mean profiles does not say itself.

    Attributes
    ----------
    organism, tissue
        Of all its columns; a column "organ|type" has its own tissue.
    unit
        Of its values: proportional to transcripts, or a logarithm.
    study
        Name of the study; `{}` is where the organ goes. None: the file's name.
    terms
        {column: Cell Ontology id} beside and before those of `NAME.labels.csv`; "" leaves a column out.
    """

    organism: str
    tissue: str = ""
    unit: Literal["linear", "log1p", "log2"] = "linear"
    study: str | None = None
    terms: dict[str, str] = Field(default_factory=dict)


def read_profile_table(path: Path, table: ProfileTable, ontology: Ontology) -> anndata.AnnData:
    """The columns of `NAME.csv.gz` whose type is known, as cells that look like those of any labelled file."""
    name = path.name.removesuffix(".csv.gz")
    values = pd.read_csv(path, index_col=0)
    labels = pd.read_csv(path.with_name(f"{name}.labels.csv"), dtype=str).dropna(subset=["cl_id"])
    terms = {**dict(zip(labels.column, labels.cl_id, strict=True)), **table.terms}
    if strange := sorted(set(table.terms) - set(values.columns)):
        raise ValueError(f"{path.name} has no column {strange[0]!r}. Columns: {', '.join(values.columns)}.")
    columns = [column for column in values.columns if terms.get(column) in ontology.terms]
    organs = [column.split("|")[0] if "|" in column else "" for column in columns]
    linear = LINEAR[table.unit](values[columns].to_numpy(np.float64)).T
    ids = [terms[column] for column in columns]
    obs = pd.DataFrame(
        {
            "cell_type": [ontology.terms[term_id].label for term_id in ids],
            "cell_type_ontology_term_id": ids,
            "cell_type_original": columns,
            "tissue": [organ or table.tissue for organ in organs],
            "study_profile": [(table.study or name).format(organ) for organ in organs],
            "organism": table.organism,
            "is_mean": True,
        },
        index=columns,
    )
    shares = (TOTAL * linear / linear.sum(1, keepdims=True)).astype(np.float32)
    return anndata.AnnData(shares, obs=obs, var=pd.DataFrame(index=values.index.astype(str)))
