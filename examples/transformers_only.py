"""Score cells against texts with transformers alone, without scmmgpt installed.

Argument: the directory of a saved model, or a Hub repository.
"""

import sys

import scanpy as sc
from transformers import AutoModel, AutoProcessor

repository = sys.argv[1]
model = AutoModel.from_pretrained(repository, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)

cells = sc.datasets.pbmc68k_reduced()[:5]
texts = ["a B cell", "a monocyte", "a natural killer cell"]

cell_embeds = model.get_cell_features(**processor(cells=cells, return_tensors="pt")).pooler_output
text_embeds = model.get_text_features(**processor(text=texts, padding=True, return_tensors="pt")).pooler_output

for name, similarities in zip(cells.obs_names, (cell_embeds @ text_embeds.T).tolist(), strict=True):
    print(name, {text: round(similarity, 2) for text, similarity in zip(texts, similarities, strict=True)})
