"""Generate pseudo-cells from text, and check whether `annotate` gives them the requested label."""

import anndata as ad

import scmmgpt

wanted = ["B cell", "monocyte"]
groups = [scmmgpt.generate_cells(f"a {name} from blood", num_cells=20, seed=0) for name in wanted]
cells = ad.concat(groups, label="wanted", keys=wanted, index_unique="-")

annotated = scmmgpt.annotate(cells, labels=wanted, min_confidence=0)
print(annotated.obs.groupby(["wanted", "scmmgpt_cell_type"], observed=True).size())
