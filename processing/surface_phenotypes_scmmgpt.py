"""Which surface proteins a cell type has and which it lacks, by the textbook and by the words of the Cell Ontology.

The table holds the phenotypes that flow cytometry sorts by (those of the Human Cell Differentiation Molecules workshops
and of the OMIP panels). The ontology adds what its labels and definitions say, such as "CCR7-positive". A type inherits
what is said of its ancestors unless it is contradicted nearer by. Last comes what an author's own words add to the type:
"CD56bright NK", "CD4 TCM".
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from .ontology_scmmgpt import Ontology
from .protein_names_scmmgpt import ProteinNames

PHENOTYPES = {
    "CL:0000738": "CD45+",  # leukocyte
    "CL:0000084": "CD3+ CD5+ CD2+ CD19- CD20- CD14- CD33- CD11b- CD123- CD11c-",  # T cell
    "CL:0000789": "TCRab+ TCRgd-",  # alpha-beta T cell
    "CL:0000624": "CD4+ CD8-",  # CD4-positive, alpha-beta T cell
    "CL:0000625": "CD8+ CD4-",  # CD8-positive, alpha-beta T cell
    "CL:0000798": "TCRgd+ TCRab- CD4-",  # gamma-delta T cell
    "CL:0000940": "CD161+ TCR_Va7.2+ CD4- CD26+",  # mucosal-associated invariant T cell
    "CL:0000814": "CD56+",  # mature NK T cell
    "CL:0000815": "CD4+ CD8- CD25+ CD127-",  # regulatory T cell
    "CL:0000898": "CD45RA+ CD45RO- CCR7+ CD62L+ CD27+",  # naive T cell
    "CL:0000813": "CD45RO+ CD45RA-",  # memory T cell
    "CL:0000904": "CCR7+ CD62L+ CD27+",  # central memory CD4-positive, alpha-beta T cell
    "CL:0000907": "CCR7+ CD62L+ CD27+",  # central memory CD8-positive, alpha-beta T cell
    "CL:0000905": "CCR7- CD62L-",  # effector memory CD4-positive, alpha-beta T cell
    "CL:0000913": "CCR7- CD62L-",  # effector memory CD8-positive, alpha-beta T cell
    "CL:0001087": "CD45RA+ CD45RO- CCR7- CD62L- CD57+",  # the same, terminally differentiated
    "CL:0001062": "CD45RA+ CD45RO- CCR7- CD62L- CD57+",
    "CL:0001050": "CCR7- CD62L- CD57+",  # effector CD8-positive, alpha-beta T cell
    "CL:0000809": "CD4+ CD8+",  # double-positive, alpha-beta thymocyte
    "CL:0002489": "CD4- CD8-",  # double-negative thymocyte
    "CL:0000236": "CD19+ CD20+ CD22+ HLA-DR+ CD3- CD14- CD56- CD4- CD8- CD123- CD11b-",  # B cell
    "CL:0000788": "IgD+ IgM+ CD27-",  # naive B cell
    "CL:0000787": "CD27+",  # memory B cell
    "CL:0000972": "IgD- IgM-",  # class switched memory B cell
    "CL:0000844": "CD38+ CD10+ IgD-",  # germinal center B cell
    "CL:0000817": "CD10+",  # precursor B cell
    "CL:0000946": "CD38+ CD27+ CD20- IgD-",  # antibody secreting cell
    "CL:0000980": "CD38+ CD27+ CD20- CD138-",  # plasmablast
    "CL:0000786": "CD38+ CD27+ CD138+ CD20-",  # plasma cell
    "CL:0000623": "CD56+ CD16+ CD335+ CD7+ CD3- CD5- CD4- CD19- CD20- CD14- CD123-",  # natural killer cell
    "CL:0000938": "CD56+ CD16-",  # CD16-negative, CD56-bright natural killer cell
    "CL:0001065": "CD3- CD19- CD14-",  # innate lymphoid cell
    "CL:0000576": "CD33+ CD11b+ CD11c+ HLA-DR+ CD86+ CD3- CD5- CD19- CD20- CD56- CD8-",  # monocyte
    "CL:0001054": "CD14+ CD16- CD64+ CD36+",  # CD14-positive monocyte
    "CL:0000860": "CD14+ CD16- CD64+ CD36+",  # classical monocyte
    "CL:0000875": "CD16+ CD14- CX3CR1+",  # non-classical monocyte
    "CL:0002396": "CD16+ CD14- CX3CR1+",  # CD14-low, CD16-positive monocyte
    "CL:0002393": "CD14+ CD16+",  # intermediate monocyte
    "CL:0002397": "CD14+ CD16+",  # CD14-positive, CD16-positive monocyte
    "CL:0000235": "CD11b+ CD64+ CD163+ CD206+ HLA-DR+ CD3- CD19- CD56-",  # macrophage
    "CL:0000451": "HLA-DR+ CD86+ CD3- CD19- CD20- CD56- CD14- CD16- CD8-",  # dendritic cell
    "CL:0000990": "CD11c+ CD33+",  # conventional dendritic cell
    "CL:0002399": "CD1c+",  # CD1c-positive myeloid dendritic cell
    "CL:0002394": "CD141+ CD370+",  # CD141-positive myeloid dendritic cell
    "CL:0000784": "CD123+ CD303+ CD304+ CD4+ CD45RA+ CD11c- CD33-",  # plasmacytoid dendritic cell
    "CL:0000763": "CD3- CD19-",  # myeloid cell
    "CL:0000094": "CD11b+ CD33+ CD3- CD19- HLA-DR-",  # granulocyte
    "CL:0000775": "CD15+ CD16+ CD66b+",  # neutrophil
    "CL:0000771": "CD193+ Siglec-8+ CD16-",  # eosinophil
    "CL:0000767": "CD123+ CD203c+",  # basophil
    "CL:0000097": "CD117+",  # mast cell
    "CL:0000233": "CD41+ CD61+ CD42b+ CD3- CD19- CD14-",  # platelet
    "CL:0000556": "CD41+ CD61+ CD42b+ CD3- CD19- CD14-",  # megakaryocyte
    "CL:0000764": "CD235a+ CD3- CD19- CD14- CD16- CD56-",  # erythroid lineage cell
    "CL:0000765": "CD71+",  # erythroblast
    "CL:0008001": "CD34+ CD3- CD19- CD14- CD16- CD56-",  # hematopoietic precursor cell
    "CL:0000037": "CD34+ CD90+ CD38-",  # hematopoietic stem cell
    "CL:0000115": "CD31+ CD144+ CD146+ CD105+ CD45- CD3- CD14- CD19-",  # endothelial cell
    "CL:0000057": "CD90+ CD140a+ CD45- CD3- CD14- CD19-",  # fibroblast
    "CL:0000066": "CD326+ CD324+ CD45- CD3- CD14- CD19-",  # epithelial cell
}
# What authors add to the name of a T cell, B cell or natural killer cell, as types of the table.
STATES = {
    "CL:0000084": {
        "naive": ["CL:0000898"],
        "memory": ["CL:0000813"],
        "central": ["CL:0000904"],
        "tcm": ["CL:0000813", "CL:0000904"],
        "effector": ["CL:0000905"],
        "tem": ["CL:0000813", "CL:0000905"],
        "temra": ["CL:0001062"],
        "emra": ["CL:0001062"],
        "ctl": ["CL:0001050"],
    },
    "CL:0000236": {"naive": ["CL:0000788"], "memory": ["CL:0000787"]},
    "CL:0000623": {"bright": ["CL:0000938"]},
}
_AUTHORS_SAY = re.compile(
    r"(CD\d+[A-Za-z]{0,2}?|HLA-DR|[A-Z][A-Z0-9]{2,})[-_ ]?(\+|bright|high|hi\b|pos|dim|low|lo\b|neg|-(?=\W|_|CD\d|$))"
)
_AUTHORS_STRENGTH = {"dim": 0.0, "low": 0.0, "lo": 0.0, "neg": -1.0, "-": -1.0}
# With a hyphen: "expressed in high amounts" speaks of no protein called "in". Not "presents antigen to CD8-positive T
# cells": in the plural these are other cells.
_SAID = re.compile(
    r"\b([A-Za-z][A-Za-z0-9/]*(?:-[A-Z0-9a-z]+)?)-(positive|high|bright|negative|low|dim|lo|hi)\b(?! (?:[BT] )?cells\b)"
)
# Low is not nothing: CD56-low natural killer cells have more of it than others.
_STRENGTH = dict.fromkeys(("positive", "high", "bright", "hi"), 1.0) | dict.fromkeys(("low", "dim", "lo"), 0.0)
_STRENGTH |= {"negative": -1.0}


class SurfacePhenotypes:
    """What is known of proteins on the types of an ontology."""

    def __init__(self, ontology: Ontology, names: ProteinNames):
        self.ontology, self.names = ontology, names

    def table(
        self, term_ids: Sequence[str | None], proteins: Sequence[str | None], labels: Sequence[str] | None = None
    ) -> np.ndarray:
        """(types, proteins): 1 where a type has a protein, -1 where it lacks it, 0 where nothing is said.

        Several antibodies against one protein share its weight. `labels` are the authors' words for the types, "" where
        these are names of the ontology.
        """
        places = {protein: [at for at, one in enumerate(proteins) if one == protein] for protein in set(proteins)}
        result = np.zeros((len(term_ids), len(proteins)), np.float32)
        for row, term_id in enumerate(term_ids):
            lineage = self._from_general_to_special(term_id)
            said = [self._said_of(ancestor) for ancestor in lineage]
            for one in [*said, self._said_by(labels[row] if labels is not None else "", lineage)]:
                for protein, strength in one.items():
                    columns = places.get(protein, [])
                    result[row, columns] = strength / max(len(columns), 1)
        return result

    def _from_general_to_special(self, term_id: str | None) -> list[str]:
        if term_id is None:
            return []
        lineage = [one for one in (term_id, *self.ontology.ancestors(term_id)) if one in self.ontology.terms]
        return sorted(lineage, key=lambda one: (len(self.ontology.ancestors(one)), one))

    def _said_of(self, term_id: str) -> dict[str, float]:
        """Protein -> strength; the table comes before words, which may speak of other stages of a cell."""
        term = self.ontology.terms[term_id]
        words = _SAID.findall(f"{term.label}. {term.definition}")
        return self._known({name: _STRENGTH[level] for name, level in words} | _phenotype(term_id))

    def _said_by(self, label: str, lineage: Sequence[str]) -> dict[str, float]:
        """Protein -> strength, by the words of an author."""
        words = re.findall(r"[a-z]+", label.lower())
        states = [states for cell, states in STATES.items() if cell in lineage]
        terms = [term for word in words for one in states for term in one.get(word, [])]
        found = {name: level for term in terms for name, level in _phenotype(term).items()}
        levels = {name: _AUTHORS_STRENGTH.get(level, 1.0) for name, level in _AUTHORS_SAY.findall(label)}
        return self._known(found | levels)

    def _known(self, strengths: Mapping[str, float]) -> dict[str, float]:
        found = {self.names.protein(name): strength for name, strength in strengths.items()}
        return {protein: strength for protein, strength in found.items() if protein is not None}


def _phenotype(term_id: str) -> dict[str, float]:
    """Name of a protein -> strength, by the table."""
    return {word[:-1]: 1.0 if word[-1] == "+" else -1.0 for word in PHENOTYPES.get(term_id, "").split()}
