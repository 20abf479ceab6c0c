"""The same few cells in every form that users bring: containers, values, gene names, dtypes and species."""

from contextlib import nullcontext
from importlib.resources import files

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from scipy import sparse

from scmmgpt.processing.gene_identity_scmmgpt import GENE_NAMES_FILE, GeneNames
from scmmgpt.processing.gene_tokenization_scmmgpt import ScMMGPTGeneTokenizer

TABLE = files("scmmgpt.hub_cards") / "scmmgpt-mini" / GENE_NAMES_FILE
SPECIES = ("human", "mouse", "rat", "rhesus macaque", "crab-eating macaque", "pig")
DTYPES = ("float32", "float64", "int32", "int64", "uint16")


def gene_tokenizer(num_genes: int = 400, **settings) -> ScMMGPTGeneTokenizer:
    """A tokenizer of genes that every species of the table has, with made-up statistics."""
    names = GeneNames.read(TABLE)
    shared = set.intersection(*({gene.human_gene for gene in complete(names, species)} for species in SPECIES))
    genes = [gene for gene in names.genes("human") if gene.symbol in shared and gene.synonyms][:num_genes]
    random = np.random.default_rng(0)
    return ScMMGPTGeneTokenizer(
        [gene.symbol for gene in genes],
        [gene.ensembl_id for gene in genes],
        medians=random.lognormal(1, 0.5, num_genes),
        masses=random.lognormal(0, 1, num_genes),
        gene_names=names,
        **settings,
    )


def complete(names: GeneNames, species: str) -> list:
    """Genes of a species that have both a symbol and an id."""
    return [gene for gene in names.genes(species) if gene.symbol and gene.ensembl_id]


def counts_of(num_cells: int, num_genes: int, seed: int = 0) -> np.ndarray:
    """Whole numbers with many zeros and many ties; every cell expresses some genes."""
    random = np.random.default_rng(seed)
    mean = random.lognormal(-1, 1.5, num_genes)
    counts = random.poisson(random.gamma(2, 0.5, (num_cells, num_genes)) * mean)
    counts[:, 0] += 1
    counts[:, 1] += 2
    return counts.astype(np.int64)


def adata_of(counts, names) -> ad.AnnData:
    """Counts as csr in X, under the given names."""
    adata = ad.AnnData(sparse.csr_matrix(np.asarray(counts, dtype=np.float32)))
    adata.var_names = [str(name) for name in names]
    adata.obs_names = [f"cell{number}" for number in range(adata.n_obs)]
    return adata


# ---- values: what X may hold; the counts may be in a layer or in raw


def _scaled(counts, total):
    return counts / counts.sum(axis=1, keepdims=True) * total


def _z_scores(counts):
    logged = np.log1p(_scaled(counts, 1e4))
    return (logged - logged.mean(0)) / np.maximum(logged.std(0), 1e-3)


def _with_layer(adata, name, counts):
    adata.layers[name] = sparse.csr_matrix(np.asarray(counts, dtype=np.float32))
    return adata


def _with_raw(adata, counts):
    adata.raw = adata_of(counts, adata.var_names)
    return adata


VALUES = {
    "counts": lambda counts, names: adata_of(counts, names),
    "log1p of CP10k": lambda counts, names: adata_of(np.log1p(_scaled(counts, 1e4)), names),
    "log2 of CPM": lambda counts, names: adata_of(np.log2(1 + _scaled(counts, 1e6)), names),
    "log1p without scaling": lambda counts, names: adata_of(np.log1p(counts), names),
    "CP10k": lambda counts, names: adata_of(_scaled(counts, 1e4), names),
    "CPM": lambda counts, names: adata_of(_scaled(counts, 1e6), names),
    "z-scores, counts in a layer": lambda counts, names: _with_layer(
        adata_of(_z_scores(counts), names), "counts", counts
    ),
    "z-scores, counts in raw": lambda counts, names: _with_raw(adata_of(_z_scores(counts), names), counts),
    "log1p, counts in a layer": lambda counts, names: _with_layer(
        adata_of(np.log1p(_scaled(counts, 3e3)), names), "raw_counts", counts
    ),
    "bins and counts in layers": lambda counts, names: _with_layer(
        _with_layer(adata_of(np.log1p(_scaled(counts, 1e4)), names), "X_binned", counts % 51), "umi", counts
    ),
}


# ---- names: how the genes may be named


def _names_of(tokenizer, species, pick):
    """One name for each gene of the vocabulary, picked from its entry for a species."""
    entries = {}
    for gene in complete(tokenizer.gene_names, species):
        entries.setdefault(gene.human_gene, gene)
    return [pick(entries[symbol], place) for place, symbol in enumerate(tokenizer.genes)]


NAMES = {
    "symbols": lambda gene, place: gene.symbol,
    "Ensembl ids": lambda gene, place: gene.ensembl_id,
    "versioned ids": lambda gene, place: f"{gene.ensembl_id}.{place % 17 + 1}",
    "ids joined to symbols": lambda gene, place: f"{gene.ensembl_id}_{gene.symbol}",
    "mixed": lambda gene, place: gene.symbol if place % 2 else gene.ensembl_id,
    "genome prefix": lambda gene, place: f"GRCh38_{gene.symbol}",
}
HUMAN_NAMES = {
    "small letters": lambda gene, place: gene.symbol.lower(),
    "former symbols": lambda gene, place: gene.synonyms[0],
    "R's dots": lambda gene, place: gene.symbol.replace("-", "."),
}


def named(tokenizer, species: str, scheme: str) -> list[str]:
    """Names of the vocabulary's genes in one species and scheme."""
    return _names_of(tokenizer, species, {**NAMES, **HUMAN_NAMES}[scheme])


# ---- containers: the objects and files that may hold the cells


def _view(adata, folder):
    wider = ad.concat([adata, adata[:3]], uns_merge="same", merge="same", index_unique="-")
    wider.obs_names = [f"cell{number}" for number in range(wider.n_obs)]
    if adata.raw is not None:
        wider.raw = ad.concat([adata.raw.to_adata(), adata[:3].raw.to_adata()], index_unique="-")
    return wider[: adata.n_obs]


def _h5ad(adata, folder):
    adata.write_h5ad(folder / "cells.h5ad")
    return str(folder / "cells.h5ad")


def _backed(adata, folder):
    return ad.read_h5ad(_h5ad(adata, folder), backed="r")


def write_zarr(adata, path, zarr_format: int = 2):
    """Cells as a zarr store of either format; `adata.write_zarr` warns of any choice between them."""
    with ad.settings.override(auto_shard_zarr_v3=zarr_format == 3):
        write_elem(zarr.open_group(path, mode="w", zarr_format=zarr_format), "/", adata)
    return path


def without_pulling():
    """MuData made without a copy of its parts' columns, which mudata does not make any more from 0.4 on."""
    return mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()


def _mudata(adata, folder):
    protein = ad.AnnData(np.ones((adata.n_obs, 3)), obs=pd.DataFrame(index=adata.obs_names))
    protein.var_names = ["CD3", "CD4", "CD8"]
    with without_pulling():
        return mudata.MuData({"prot": protein, "rna": adata})


def _h5mu(adata, folder):
    cells = _mudata(adata, folder)
    with without_pulling():
        cells.write(folder / "cells.h5mu")
    return folder / "cells.h5mu"


def _with_x(adata, matrix):
    other = adata.copy()
    other.X = matrix
    return other


CONTAINERS = {
    "AnnData with csr": lambda adata, folder: adata,
    "AnnData with csc": lambda adata, folder: _with_x(adata, adata.X.tocsc()),
    "AnnData with dense": lambda adata, folder: _with_x(adata, adata.X.toarray()),
    "view": _view,
    "list of single cells": lambda adata, folder: [adata[cell] for cell in range(adata.n_obs)],
    "backed h5ad": _backed,
    "view of a backed h5ad": lambda adata, folder: _backed(adata, folder)[np.arange(adata.n_obs)],
    "path to h5ad": _h5ad,
    "path to dense h5ad": lambda adata, folder: _h5ad(_with_x(adata, adata.X.toarray()), folder),
    "path to column-wise h5ad": lambda adata, folder: _h5ad(_with_x(adata, adata.X.tocsc()), folder),
    "path to zarr": lambda adata, folder: write_zarr(adata, folder / "cells.zarr"),
    "path to zarr of format 3": lambda adata, folder: write_zarr(adata, folder / "cells.zarr", zarr_format=3),
    "MuData": _mudata,
    "path to h5mu": _h5mu,
}
