"""Annotate blood cells with your own labels: names, or names with a description."""

import scanpy as sc

import scmmgpt

cells = sc.datasets.pbmc68k_reduced()

labels = {
    "B cell": "A lymphocyte that makes antibodies; it expresses CD79A and MS4A1.",
    "cytotoxic cell": "A natural killer cell or CD8 T cell that kills by granzymes; it expresses NKG7 and GNLY.",
    "monocyte": "A myeloid cell of blood; it expresses LYZ and S100A8.",
    "dendritic cell": "An antigen-presenting myeloid cell; it expresses FCER1A and HLA-DRA.",
}
annotated = scmmgpt.annotate(cells, labels=labels)

print(annotated.obs.groupby("scmmgpt_cell_type", observed=True)["scmmgpt_confidence"].agg(["size", "mean"]))
print(annotated.uns["scmmgpt"]["genes"])
