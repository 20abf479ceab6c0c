"""Other people's methods as systems: CellConsensus for names without labels, scVI for embeddings.

CellConsensus (MIT, a table of consensus markers) is installed from PyPI into an environment of its own, in the user's
cache; cells go there as h5ad and names come back as csv. scVI comes with the extra `scvi` and is trained on the study
itself.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from huggingface_hub.constants import HF_HOME

from scmmgpt.errors import UserError, require

from .expression import upper_symbols
from .systems import Annotation, System
from .type_tree import TypeTree

if TYPE_CHECKING:
    from anndata import AnnData

CELL_CONSENSUS = "cellconsensus==1.2.0"
SCVI_SECONDS = 300
# Runs in the other environment. Its markers are human symbols; level 3, the finest, is its default.
_ADAPTER = """
import sys
import anndata, numpy, pandas
from cellconsensus import CellConsensus

cells = anndata.read_h5ad(sys.argv[1])
numpy.random.seed(0)
fitted = CellConsensus().fit(cells, verbose=False)
said = {output: fitted.predict(output=output).to_numpy() for output in ("key", "name", "cl_id")}
pandas.DataFrame(said).to_csv(sys.argv[2], index=False)
"""
# What CellConsensus' types mean in the Cell Ontology where its own ids are absent or one of several; the first is what
# the name means by itself, the others are as right where they are a type of the study. All of this is in its favour.
_MEANINGS = {
    "acinar": ("acinar cell", "pancreatic acinar cell"),
    "absorptive_epithelial_other": ("enterocyte", "epithelial cell"),
    "b_cell_other": ("B cell",),
    "b_plasma_other": ("lymphocyte of B lineage", "B cell", "plasma cell"),
    "cd4_t_other": ("CD4-positive, alpha-beta T cell",),
    "cd8_t_other": ("CD8-positive, alpha-beta T cell",),
    "cdc1": ("CD141-positive myeloid dendritic cell", "conventional dendritic cell"),
    "cdc2": ("CD1c-positive myeloid dendritic cell", "conventional dendritic cell"),
    "classical_mono": ("classical monocyte", "CD14-positive monocyte"),
    "dendritic_cell_other": ("dendritic cell",),
    "endocrine_epithelial_other": ("endocrine cell",),
    "endothelial_other": ("endothelial cell",),
    "enterocyte": ("enterocyte", "enterocyte of epithelium of large intestine"),
    "eosinophil_basophil": ("eosinophil", "basophil"),
    "epithelial_other": ("epithelial cell",),
    "erythroid_megakaryocyte_other": ("megakaryocyte-erythroid progenitor cell",),
    "erythroid_other": ("erythroid lineage cell", "erythrocyte", "erythroblast"),
    "excitatory_neuron": ("glutamatergic neuron", "pyramidal neuron"),
    "goblet": ("goblet cell", "intestine goblet cell", "large intestine goblet cell"),
    "hsc": ("hematopoietic stem cell", "hematopoietic precursor cell"),
    "inhibitory_neuron": ("GABAergic neuron", "interneuron"),
    "mature_erythroid": ("erythrocyte", "reticulocyte"),
    "megakaryocyte": ("megakaryocyte", "platelet"),
    "monocyte_other": ("monocyte",),
    "myeloid_other": ("myeloid cell",),
    "neural_other": ("neural cell",),
    "neuron_other": ("neuron",),
    "nonclassical_mono": ("non-classical monocyte", "CD14-low, CD16-positive monocyte"),
    "other": ("unknown",),
    "progenitor_erythroid": ("erythroblast", "erythroid progenitor cell"),
    "secretory_epithelial_other": ("secretory epithelial cell",),
    "smc_pericyte_other": ("mural cell", "pericyte", "smooth muscle cell", "vascular associated smooth muscle cell"),
    "smooth_muscle": ("smooth muscle cell", "vascular associated smooth muscle cell"),
    "stem_other": ("stem cell",),
    "t_other": ("T cell", "lymphocyte"),
}


def cell_consensus(tree: TypeTree, folder: Path | None = None) -> System:
    """CellConsensus in an environment of its own, which is made in `folder` the first time; refused without a registry."""
    python = environment(CELL_CONSENSUS, folder or peers_folder())

    def annotate(cells: AnnData, labels: Sequence[str] | None) -> Annotation:
        if labels is not None:
            raise TypeError("CellConsensus takes no labels.")
        said = _ask(python, cells)
        meanings = {row.key: _meanings(row, tree) for row in said.drop_duplicates().itertuples()}
        names = np.array([meanings[key][0] for key in said["key"]], object).astype(str)
        return Annotation(names, synonyms={first: others for first, *others in meanings.values()})

    return System(f"CellConsensus {CELL_CONSENSUS.partition('==')[2]}", annotate=annotate, is_baseline=True)


def peers_folder() -> Path:
    """Where the environments of other people's methods lie."""
    return Path(HF_HOME) / "scmmgpt" / "peers"


def environment(requirement: str, folder: Path, *beside: str) -> Path:
    """The Python of a virtual environment that holds one package; `beside` are requirements that it does not state itself."""
    home = folder / requirement.replace("==", "-")
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not (home / "complete").exists():
        venv.create(home, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement, *beside]
        installed = subprocess.run(command, capture_output=True, text=True)
        if installed.returncode:
            why = (installed.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"{requirement} could not be installed from the package registry: {why}")
        (home / "complete").touch()
    return python


def _ask(python: Path, cells: AnnData) -> pd.DataFrame:
    """What CellConsensus says of each cell: its own key, name and Cell Ontology id."""
    from anndata import AnnData

    plain = AnnData(cells.X, var=pd.DataFrame(index=pd.Index(upper_symbols(cells).astype(str))))
    plain.var_names_make_unique()
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "cells.h5ad", Path(folder) / "names.csv"
        plain.write_h5ad(asked)
        done = subprocess.run([python, "-c", _ADAPTER, asked, answer], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"CellConsensus failed: {done.stderr.strip()[-500:]}")
        return pd.read_csv(answer, dtype=str)


def _meanings(row, tree: TypeTree) -> tuple[str, ...]:
    """Labels of the Cell Ontology that a type of CellConsensus means: by hand, by its own id, by its name."""
    if row.key in _MEANINGS:
        return _MEANINGS[row.key]
    term = tree.term(row.cl_id) or tree.term(row.name)
    return (term.label if term else row.name,)


def scvi_system(seed: int = 0, seconds: int = SCVI_SECONDS) -> System:
    """scVI trained on the study itself, with its own defaults, until the time is up: the embedding it finds of it."""
    require("scvi")

    def embed(cells: AnnData) -> np.ndarray:
        import scvi
        from lightning.pytorch.callbacks import LambdaCallback

        began = time.process_time()

        def stop_in_time(trainer, _):
            # Of the processor's time: a busy machine must not shorten its training.
            trainer.should_stop = trainer.should_stop or time.process_time() - began > seconds

        scvi.settings.seed = seed
        copied = cells.copy()
        batch = "donor_id" if "donor_id" in copied.obs and copied.obs["donor_id"].nunique() > 1 else None
        scvi.model.SCVI.setup_anndata(copied, batch_key=batch)
        model = scvi.model.SCVI(copied)
        watch = LambdaCallback(on_train_epoch_end=stop_in_time)
        model.train(callbacks=[watch], enable_progress_bar=False, logger=False)
        return np.asarray(model.get_latent_representation())

    return System("scVI, trained on the study", embed=embed, is_baseline=True, needs_counts=True)
