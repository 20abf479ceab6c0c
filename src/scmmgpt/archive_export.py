"""Cells in the forms that archives take: the fields of CELLxGENE's schema 7, and the keys of CAP (CAS).

Nothing is invented: what an archive demands and the file does not say has to be given as a fact, or the export is
refused by the names of what is missing. Genes without a current Ensembl id are left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import UserError
from .version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

    from .label_audit import Audit
    from .loading import LoadedModel

Schema = Literal["cellxgene", "cap"]
SCHEMAS: tuple[Schema, ...] = ("cellxgene", "cap")
_TAXA = {"human": "NCBITaxon:9606", "mouse": "NCBITaxon:10090"}
_ORGANISMS = {"human": "Homo sapiens", "mouse": "Mus musculus"}
_TERM = re.compile(r"^[A-Za-z]+:[A-Za-z0-9_]+$")
# Fields of obs that only the authors know, with what may stand there.
_ASKED = {
    "assay_ontology_term_id": "EFO:0009899",
    "disease_ontology_term_id": "PATO:0000461 for healthy",
    "tissue_ontology_term_id": "UBERON:0000178",
    "tissue_type": "tissue, organoid, cell line or primary cell culture",
    "suspension_type": "cell, nucleus or na",
    "donor_id": "a name of each donor",
    "is_primary_data": "True or False",
}
_ASKED_BY_CAP = ("assay_ontology_term_id", "disease_ontology_term_id", "tissue_ontology_term_id")
# What may be unknown, and is said to be so.
_MAY_BE_UNKNOWN = ("sex_ontology_term_id", "development_stage_ontology_term_id")
_ETHNICITY = "self_reported_ethnicity_ontology_term_id"
_CHOICES = {
    "tissue_type": ("tissue", "organoid", "cell line", "primary cell culture"),
    "suspension_type": ("cell", "nucleus", "na"),
    "is_primary_data": ("True", "False"),
}


@dataclass(frozen=True)
class Facts:
    """What is known about all cells: columns of obs, and values that were given for all of them."""

    obs: Any
    given: Mapping[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.given or (name in self.obs and not self.obs[name].isna().any())

    def column(self, name: str, default: str = "unknown") -> Any:
        import pandas as pd

        if name in self.given:
            values = pd.Series(self.given[name], index=self.obs.index)
        else:
            values = self.obs[name] if name in self else pd.Series(default, index=self.obs.index)
        values = values.astype(str)
        allowed = _CHOICES.get(name)
        wrong = next((value for value in values.unique() if not _fits(name, value, allowed)), None)
        if wrong is not None:
            expected = f"one of {', '.join(allowed)}" if allowed else "an id such as UBERON:0000178"
            raise UserError(f"{name} is {wrong[:80]!r}; expected {expected}.")
        return values == "True" if name == "is_primary_data" else values.astype("category")


def _fits(name: str, value: str, allowed: Sequence[str] | None) -> bool:
    if allowed is not None:
        return value in allowed
    is_term = name.endswith("_ontology_term_id")
    return not is_term or value in ("unknown", "na") or all(_TERM.match(one) for one in value.split(" || "))


def missing_fields(facts: Facts, schema: Schema = "cellxgene") -> list[str]:
    """Obligatory fields that the file does not hold and that nobody gave."""
    asked = [*_ASKED, "title"] if schema == "cellxgene" else [*_ASKED_BY_CAP, "title"]
    return [name for name in asked if name not in facts]


def parse_facts(pairs: Sequence[str]) -> dict[str, str]:
    """{name: value} of "NAME=VALUE"."""
    facts = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not value.strip():
            raise UserError(f"A fact must be NAME=VALUE, such as tissue_type=tissue, got {pair[:80]!r}.")
        facts[name.strip()] = value.strip()
    return facts


def asked_facts(source: Any, given: Mapping[str, str], schema: Schema) -> Facts:
    """What an archive asks about the cells; refused where something is missing or has a value that cannot be."""
    if schema not in SCHEMAS:
        raise UserError(f"There is no schema {schema!r}; there are {' and '.join(SCHEMAS)}.")
    facts = _facts(source, given)
    if missing := missing_fields(facts, schema):
        examples = "; ".join(f"{name} ({_ASKED[name]})" if name in _ASKED else name for name in missing)
        raise UserError(f"For {schema} this is missing: {examples}. Add columns to obs, or give --fact NAME=VALUE.")
    for name in _ASKED if schema == "cellxgene" else _ASKED_BY_CAP:
        facts.column(name)
    return facts


def export(
    source: Any, audit: Audit, label: str, loaded: LoadedModel, *, schema: Schema, given: Mapping[str, str]
) -> tuple[AnnData, list[str]]:
    """The cells as an archive takes them, and what was left out, in sentences. `source` is AnnData or a path."""
    from anndata import AnnData

    facts = asked_facts(source, given, schema)
    obs = facts.obs
    species = str(audit.gene_account.get("species"))
    if species not in _TAXA:
        raise UserError(f"Genes of human and mouse can be exported, these are of {species}.")
    counts, var, notes = _counts(source, species, loaded)
    make: Callable[..., AnnData] = _for_cellxgene if schema == "cellxgene" else _for_cap
    adata = make(AnnData(counts, obs=obs[[]].copy(), var=var), facts, audit, label, species)
    adata.obsm["X_scmmgpt"] = np.asarray(audit.embeds, dtype=np.float32)
    adata.obsm["X_scmmgpt_2d"] = _plane(audit.embeds)
    adata.uns["title"] = facts.given["title"]
    return adata, notes


def missing_fields_of(source: Any, given: Mapping[str, str], schema: Schema) -> list[str]:
    """Obligatory fields of an archive that cells, or their file, do not hold and nobody gave."""
    return missing_fields(_facts(source, given), schema)


def write_export(
    source: Any, audit: Audit, label: str, loaded: LoadedModel, output: Any, schema: Any, given: Mapping[str, str]
) -> list[str]:
    """Write what `export` makes, and give back what it says."""
    from .storage import check_output, save_cells

    target = check_output(output, suffixes=(".h5ad",))
    adata, notes = export(source, audit, label, loaded, schema=schema, given=given)
    save_cells(adata, target)
    return notes


def _facts(source: Any, given: Mapping[str, str]) -> Facts:
    title = given.get("title") or str(_uns_of(source).get("title", ""))
    return Facts(_obs_of(source), {**given, **({"title": title} if title else {})})


def _obs_of(source: Any) -> Any:
    from .cells import open_cells

    return open_cells(source).obs


def _uns_of(source: Any) -> Mapping[str, Any]:
    if hasattr(source, "uns"):
        return source.uns
    from .storage import read_summary

    return read_summary(source).uns


def _counts(source: Any, species: str, loaded: LoadedModel) -> tuple[Any, Any, list[str]]:
    """Raw counts of the genes that have a current Ensembl id, summed where names share one."""
    import pandas as pd
    from scipy import sparse

    from .processing.cell_reading_scmmgpt import choose_matrix, open_cells

    cells = open_cells(source)
    try:
        chosen = choose_matrix(cells)
        num_cells, num_genes = chosen.matrix.shape
        rows, recovered = chosen.linear_rows(0, num_cells)
        if chosen.state.kind != "counts" and recovered < num_cells:
            raise UserError("Archives take raw counts, and this file holds none: put them into layers['counts'].")
        matrix = sparse.csr_matrix(
            (rows.data, rows.indices, rows.indptr - rows.indptr[0]), shape=(num_cells, num_genes)
        )
        names = {"": [str(name) for name in chosen.matrix.var_names]}
        for column in ("feature_id", "gene_ids", "ensembl_id"):
            if chosen.matrix.var is not None and column in chosen.matrix.var:
                names[column] = [str(name) for name in chosen.matrix.var[column]]
    finally:
        cells.close()
    ids = _ensembl_ids(names, loaded.processor.gene_tokenizer.gene_names.genes(species))
    kept, places = np.unique([found for found in ids if found], return_inverse=True)
    columns = np.flatnonzero([bool(found) for found in ids])
    join = sparse.csr_matrix((np.ones(len(columns)), (columns, places)), shape=(num_genes, len(kept)))
    left_out = num_genes - len(columns)
    notes = [f"{left_out} of {num_genes} genes have no current Ensembl id and were left out."] * bool(left_out)
    var = pd.DataFrame({"feature_is_filtered": np.zeros(len(kept), dtype=bool)}, index=pd.Index(kept, dtype=object))
    return sparse.csr_matrix(matrix @ join, dtype=np.float32), var, notes


def _ensembl_ids(names: Mapping[str, Sequence[str]], known: Sequence[Any]) -> list[str]:
    """The current id of each gene by its id, else by its symbol; "" where there is none."""
    ids = {gene.ensembl_id for gene in known}
    of_symbol: dict[str, str | None] = {}
    for gene in known:
        of_symbol[gene.symbol] = None if gene.symbol in of_symbol else gene.ensembl_id
    found = []
    for spellings in zip(*names.values(), strict=True):
        plain = [spelling.split(".")[0] for spelling in spellings]
        by_id = next((one for one in plain if one in ids), "")
        found.append(by_id or next((of_symbol[one] or "" for one in spellings if of_symbol.get(one)), ""))
    return found


def _plane(embeds: np.ndarray) -> np.ndarray:
    """Two main axes of the embeddings: archives want a picture."""
    centred = np.asarray(embeds, dtype=np.float64) - np.mean(embeds, axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(2)])
    return (centred @ axes).astype(np.float32)


def _for_cellxgene(adata: AnnData, facts: Facts, audit: Audit, label: str, species: str) -> AnnData:
    import pandas as pd

    for name in _ASKED:
        adata.obs[name] = facts.column(name)
    for name in _MAY_BE_UNKNOWN:
        adata.obs[name] = facts.column(name)
    adata.obs[_ETHNICITY] = facts.column(_ETHNICITY) if species == "human" else pd.Categorical(["na"] * adata.n_obs)
    adata.obs["cell_type_ontology_term_id"] = pd.Categorical(audit.term_ids())
    adata.obs["author_cell_type"] = pd.Categorical(_names(audit))
    adata.obs["scmmgpt_audit_doubted"] = audit.is_doubted
    adata.uns["organism_ontology_term_id"] = _TAXA[species]
    adata.uns["default_embedding"] = "X_scmmgpt_2d"
    return adata


def _for_cap(adata: AnnData, facts: Facts, audit: Audit, label: str, species: str) -> AnnData:
    import pandas as pd

    def column(values: Iterable[str]) -> Any:
        return pd.Categorical(np.array(list(values), dtype=object)[audit.codes])

    for name in _ASKED_BY_CAP:
        adata.obs[name] = facts.column(name)
    adata.obs["organism"] = pd.Categorical([_ORGANISMS[species]] * adata.n_obs)
    adata.obs["organism_ontology_term_id"] = pd.Categorical([_TAXA[species]] * adata.n_obs)
    sure = [one.term_id if one.confidence >= 0.5 else "" for one in audit.labels]
    name = re.sub(r"[^A-Za-z0-9_]+", "_", label)
    adata.obs[name] = column([one.label for one in audit.labels])
    adata.obs[f"{name}--cell_fullname"] = column([one.term or one.label for one in audit.labels])
    adata.obs[f"{name}--cell_ontology_exists"] = np.array([bool(one) for one in sure])[audit.codes]
    adata.obs[f"{name}--cell_ontology_term_id"] = column(one or "skip" for one in sure)
    adata.obs[f"{name}--cell_ontology_term"] = column(
        one.term if term else "skip" for one, term in zip(audit.labels, sure, strict=True)
    )
    adata.obs[f"{name}--rationale"] = column(
        f"author label; term found by {one.how}, confidence {one.confidence:.2f}" for one in audit.labels
    )
    for key in ("rationale_dois", "marker_gene_evidence", "canonical_marker_genes", "synonyms"):
        adata.obs[f"{name}--{key}"] = pd.Categorical(["skip"] * adata.n_obs)
    adata.uns["cellannotation_schema_version"] = "1.0.0"
    adata.uns["cellannotation_metadata"] = {
        name: {
            "name": name,
            "description": "Cell types of the authors, with terms of the Cell Ontology.",
            "annotation_method": "manual",
            "algorithm_name": "scmmgpt audit",
            "algorithm_version": __version__,
        }
    }
    return adata


def _names(audit: Audit) -> np.ndarray:
    return np.array([one.label for one in audit.labels], dtype=object)[audit.codes]
