"""The model as a module of sentence-transformers: texts and cells to vectors in one space.

A Hub file: `modules.json` beside it names it, so that `SentenceTransformer(repository, trust_remote_code=True)` loads the
repository. `encode` takes texts, cells as {gene: count}, AnnData, or lists of these.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformer_scmmgpt.ScMMGPTEncoder"}]
_TEXT, _CELL = "text_inputs.", "cell_inputs."


class ScMMGPTEncoder(torch.nn.Module):
    """Unit vectors of texts and of cells, as `get_text_features` and `get_cell_features` make them."""

    save_in_root = True
    modalities = ("text",)

    def __init__(self, model: Any, processor: Any):
        super().__init__()
        self.model, self.processor = model.eval(), processor

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> ScMMGPTEncoder:
        """The towers and the processor of a repository; the weights of a language model are not read."""
        where: dict[str, Any] = {"token": token, "cache_dir": cache_folder, "revision": revision}
        where |= {"local_files_only": local_files_only, "trust_remote_code": trust_remote_code}
        model = AutoModel.from_pretrained(model_name_or_path, **where, **(model_kwargs or {}))
        return cls(model, AutoProcessor.from_pretrained(model_name_or_path, **where))

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def max_seq_length(self) -> int:
        return self.model.config.qformer_config.max_position_embeddings

    def get_embedding_dimension(self) -> int:
        """The width of the vectors, whatever they are of."""
        return int(self.model.config.projection_dim)

    get_sentence_embedding_dimension = get_embedding_dimension

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Inputs of both towers, and which of the `inputs` are cells."""
        is_cell = [not isinstance(one, str) for one in inputs]
        texts = [f"{prompt or ''}{one}" for one in inputs if isinstance(one, str)]
        cells = [one for one in inputs if not isinstance(one, str)]
        features = {"is_cell": torch.tensor(is_cell)}
        if texts:
            how: dict[str, Any] = {"padding": True, "truncation": True, "max_length": self.max_seq_length}
            found = self.processor(text=texts, return_tensors="pt", **how)
            features |= {_TEXT + name: values for name, values in found.items()}
        if cells:
            features |= {_CELL + name: values for name, values in self._cell_inputs(cells).items()}
        return features

    def _cell_inputs(self, cells: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Cells as `processor` reads them; those of other genes apart, so that none depends on its batch."""
        groups: dict[Any, list[int]] = {}
        for place, cell in enumerate(cells):
            groups.setdefault(_genes_of(cell), []).append(place)
        parts = [self.processor(cells=_joined([cells[place] for place in places])) for places in groups.values()]
        order = np.argsort([place for places in groups.values() for place in places])
        inputs = {}
        for name in parts[0]:
            rows = [np.asarray(part[name]) for part in parts]
            longest = max(part.shape[1] for part in rows)
            padded = [np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in rows]
            inputs[name] = torch.from_numpy(np.concatenate(padded)[order])
        return inputs

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        """The same features with `sentence_embedding`, one unit vector for each input."""
        is_cell, parts = features["is_cell"], {}
        for prefix, encode in ((_TEXT, self.model.get_text_features), (_CELL, self.model.get_cell_features)):
            inputs = {
                name.removeprefix(prefix): values for name, values in features.items() if name.startswith(prefix)
            }
            if inputs:
                parts[prefix] = encode(**inputs).pooler_output.float()
        first = next(iter(parts.values()))
        vectors = first.new_empty(len(is_cell), first.shape[1])
        for prefix, rows in ((_TEXT, ~is_cell), (_CELL, is_cell)):
            if prefix in parts:
                vectors[rows] = parts[prefix]
        return {**features, "sentence_embedding": vectors}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write a whole repository, this file included."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        target = Path(output_path) / "sentence_transformer_scmmgpt.py"
        if not (target.exists() and target.samefile(__file__)):
            shutil.copyfile(__file__, target)


def _genes_of(cell: Any) -> tuple[str, ...]:
    """The genes that a cell was measured for; whatever is no cell is refused."""
    if isinstance(cell, Mapping):
        return tuple(cell)
    if not hasattr(cell, "var_names"):
        raise TypeError(
            f"Give texts, cells as {{gene: count}}, or AnnData of one cell each, not {type(cell).__name__}."
        )
    if cell.n_obs != 1:
        raise TypeError("Give AnnData of one cell each: `encode([cells[row] for row in range(cells.n_obs)])`.")
    return ("AnnData", *cell.var_names)


def _joined(cells: Sequence[Any]) -> Any:
    """Cells of the same genes as one matrix."""
    if isinstance(cells[0], Mapping):
        return np.array([list(cell.values()) for cell in cells], dtype=np.float32), list(cells[0])
    if len(cells) == 1:
        return cells[0].copy()
    from anndata import concat

    return concat([cell.copy() for cell in cells], merge="same", index_unique="-", keys=range(len(cells)))
