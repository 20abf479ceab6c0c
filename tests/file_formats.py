"""The same cells in every format that people have, antibodies among the genes."""

import gzip

import h5py
import input_variants
import mudata
import numpy as np
from scipy.io import mmwrite


def write_h5ad(cells, folder):
    cells.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def write_column_wise_h5ad(cells, folder):
    other = cells.copy()
    other.X = other.X.tocsc()
    return write_h5ad(other, folder)


def write_zarr(cells, folder):
    return input_variants.write_zarr(cells, folder / "cells.zarr")


def as_mudata(cells) -> mudata.MuData:
    is_gene = (cells.var["feature_types"] == "Gene Expression").to_numpy()
    with input_variants.without_pulling():
        return mudata.MuData({"prot": cells[:, ~is_gene].copy(), "rna": cells[:, is_gene].copy()})


def write_h5mu(cells, folder):
    with input_variants.without_pulling():
        as_mudata(cells).write(folder / "cells.h5mu")
    return folder / "cells.h5mu"


def _write_matrix(group, cells):
    matrix = cells.X.tocsr().astype(np.int32)
    group["barcodes"] = np.array(cells.obs_names, dtype="S")
    group["shape"] = np.array(cells.shape[::-1], dtype=np.int32)
    group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices.astype(np.int64), matrix.indptr


def write_h5_of_version_3(cells, folder):
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        _write_matrix(group, cells)
        for name, column in {"id": "gene_ids", "feature_type": "feature_types"}.items():
            group[f"features/{name}"] = cells.var[column].to_numpy(dtype="S")
        group["features/name"] = np.array(cells.var_names, dtype="S")
    return folder / "filtered_feature_bc_matrix.h5"


def write_h5_of_version_2(cells, folder):
    with h5py.File(folder / "filtered_gene_bc_matrices_h5.h5", "w") as file:
        group = file.create_group("GRCh38")
        _write_matrix(group, cells)
        group["genes"] = cells.var["gene_ids"].to_numpy(dtype="S")
        group["gene_names"] = np.array(cells.var_names, dtype="S")
    return folder / "filtered_gene_bc_matrices_h5.h5"


def write_lines(path, lines):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def write_matrix_folder(cells, folder, prefix="", features="features.tsv", packed=".gz"):
    folder = folder / "filtered_feature_bc_matrix"
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", cells.X.T.astype(np.int32))
    text = (folder / "matrix.mtx").read_text()
    (folder / "matrix.mtx").unlink()
    write_lines(folder / f"{prefix}matrix.mtx{packed}", text.splitlines())
    write_lines(folder / f"{prefix}barcodes.tsv{packed}", cells.obs_names)
    columns = [cells.var["gene_ids"], cells.var_names, cells.var["feature_types"]]
    columns = columns if features == "features.tsv" else columns[:2]
    write_lines(folder / f"{prefix}{features}{packed}", map("\t".join, zip(*columns, strict=True)))
    return folder


WRITERS = {
    "h5ad": write_h5ad,
    "column-wise h5ad": write_column_wise_h5ad,
    "zarr": write_zarr,
    "h5mu": write_h5mu,
    "10x h5, version 3": write_h5_of_version_3,
    "10x h5, version 2": write_h5_of_version_2,
    "10x folder": write_matrix_folder,
    "10x folder of version 2": lambda cells, folder: write_matrix_folder(cells, folder, "", "genes.tsv", ""),
    "10x folder with a prefix": lambda cells, folder: write_matrix_folder(cells, folder, "GSM1_blood_"),
}
