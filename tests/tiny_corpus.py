"""Small h5ad files with two tissues, three real cell types and genes that tell them apart."""

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgpt.processing import ScMMGPTGeneTokenizer

GENES = [f"GENE{number}" for number in range(120)]
TYPES = {"B cell": "CL:0000236", "T cell": "CL:0000084", "monocyte": "CL:0000576"}


def gene_tokenizer(**settings) -> ScMMGPTGeneTokenizer:
    return ScMMGPTGeneTokenizer(genes=GENES, **{"max_genes": None, "add_cls": True, **settings})


def make_cells(num_cells: int = 90, seed: int = 0, donor: str = "d", **obs) -> anndata.AnnData:
    """Counts in which each type raises its own twenty genes, in a random order of types."""
    generator = np.random.default_rng(seed)
    names = generator.permutation(np.resize(list(TYPES), num_cells))
    rates = generator.gamma(2.0, 0.4, len(GENES)) * np.ones((num_cells, 1))
    for number, name in enumerate(TYPES):
        rates[names == name, 20 * number : 20 * number + 20] += 4
    table = pd.DataFrame(
        {
            "cell_type": names,
            "cell_type_ontology_term_id": [TYPES[name] for name in names],
            "tissue": np.where(np.arange(num_cells) % 2, "blood", "spleen"),
            "donor_id": [f"{donor}{number % 3}" for number in range(num_cells)],
            "organism": "Homo sapiens",
            **obs,
        },
        index=[f"cell{number}" for number in range(num_cells)],
    )
    counts = sp.csr_matrix(generator.poisson(rates).astype(np.float32))
    cells = anndata.AnnData(counts, obs=table, var=pd.DataFrame(index=GENES))
    cells.uns["licence"] = "CC0 (made for a test)"
    return cells


def write_cells(folder: Path, **seeds: int) -> Path:
    """One h5ad per name, made with its seed."""
    folder.mkdir(exist_ok=True)
    for name, seed in seeds.items():
        make_cells(seed=seed, donor=name).write_h5ad(folder / f"{name}.h5ad")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes, but not when or where its sources were read."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "plans"
    }


if __name__ == "__main__":  # a build in a process of its own, to be killed
    from scmmgpt.training.corpus.build import build_corpus
    from scmmgpt.training.corpus.recipe import CorpusRecipe

    source, output, num_processes = sys.argv[1:]
    recipe = CorpusRecipe(shard_rows=8, chunk_rows=4)
    build_corpus([source], output, recipe=recipe, processor=gene_tokenizer(), num_processes=int(num_processes))
