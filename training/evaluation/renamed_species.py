"""Human cells renamed to the genes of other animals: do they keep their names, and are confidences still right?

    python -m scmmgpt.training.evaluation.renamed_species CELLS.h5ad ... --label cell_type --output FILE.json

Each human gene becomes a gene of the animal that stands for it, or is lost. What remains is what orthologs alone can
carry: real cells of the animal also differ from human cells, so these figures are upper bounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from scipy import sparse

from scmmgpt.loading import LoadedModel, load
from scmmgpt.processing.gene_identity_scmmgpt import GeneNames
from scmmgpt.processing.labels_scmmgpt import UNKNOWN

from .results import provenance

if TYPE_CHECKING:
    from anndata import AnnData

LOST = "lost-gene-"


def renamed(adata: AnnData, names: GeneNames, species: str) -> AnnData:
    """The same counts under the names of a species; a gene that stands for several human genes has their sum.

    Genes that no gene of the species stands for keep their counts under names that mean nothing.
    """
    import anndata

    own: dict[str, str] = {}
    for gene in names.genes(species):
        own.setdefault(gene.human_gene, gene.ensembl_id or gene.symbol)
    symbols = adata.var.get("feature_name", adata.var_names)
    found = [own.get(str(symbol), f"{LOST}{number}") for number, symbol in enumerate(symbols)]
    new_names, columns = np.unique(found, return_inverse=True)
    shape = (len(found), len(new_names))
    join = sparse.csr_matrix((np.ones(len(found), np.float32), (range(len(found)), columns)), shape=shape)
    result = anndata.AnnData(sparse.csr_matrix(adata.X, dtype=np.float32) @ join, obs=adata.obs.copy())
    result.var_names = new_names.astype(str)
    return result


def agreement_with_human(adata: AnnData, label: str, loaded: LoadedModel) -> Iterator[dict[str, Any]]:
    """For each species: share of counts that remain, names kept, accuracy among the study's own types, confidence."""
    from scmmgpt.api import annotate

    names = loaded.processor.gene_tokenizer.gene_names
    truth = adata.obs[label].astype(str).to_numpy()
    types = sorted(set(truth))
    first: np.ndarray | None = None
    for species in names.species:
        cells = adata if species == names.species[0] else renamed(adata, names, species)
        own = annotate(cells, types, model=loaded, min_confidence=0, progress=False)
        free = annotate(cells, model=loaded, progress=False)
        called = free.obs["scmmgpt_cell_type"].astype(str).to_numpy()
        first = called if first is None else first
        is_right = own.obs["scmmgpt_cell_type"].astype(str).to_numpy() == truth
        account = own.uns["scmmgpt"]["genes"]
        yield {
            "species": species,
            "share_of_counts": round(float(account["share_of_counts"]), 3),
            "reach": float(account["reach"]),
            "accuracy": round(float(is_right.mean()), 3),
            "mean_confidence": round(float(own.obs["scmmgpt_confidence"].mean()), 3),
            "names_kept": round(float((called == first).mean()), 3),
            "unknown": round(float((called == UNKNOWN).mean()), 3),
        }


def main(
    files: Annotated[list[Path], typer.Argument(help="Human cells with raw counts.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    label: Annotated[str, typer.Option(help="The column of obs with the true types.")] = "cell_type",
    max_cells: Annotated[int, typer.Option(help="Cells of each file, chosen at random.")] = 400,
) -> None:
    """Write one row for each study and species."""
    import anndata

    loaded, rows = load(), []
    for file in files:
        adata = anndata.read_h5ad(file)
        chosen = np.random.default_rng(0).permutation(adata.n_obs)[:max_cells]
        for row in agreement_with_human(adata[np.sort(chosen)].copy(), label, loaded):
            rows.append({"study": file.stem} | row)
            print(rows[-1], flush=True)
    content = {"run": provenance(seed=0, device="cpu"), "rows": rows}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
