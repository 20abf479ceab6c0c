"""Words that authors use for cell types and the Cell Ontology does not: without spaces, and without "cell" where it may lack."""

from dataclasses import dataclass
from typing import Any

# What the ontology does not spell out, or spells for another cell as well.
ABBREVIATIONS = {
    "adipo": "adipocyte",
    "alphacell": "pancreatic A cell",
    "asdc": "Axl+ dendritic cell, human",
    "astro": "astrocyte",
    "at1": "pulmonary alveolar type 1 cell",
    "at2": "pulmonary alveolar type 2 cell",
    "b": "B cell",
    "baso": "basophil",
    "bcell": "B cell",
    "betacell": "type B pancreatic cell",
    "cd14mono": "CD14-positive monocyte",
    "cd16mono": "CD14-low, CD16-positive monocyte",
    "cd16monocyte": "CD14-low, CD16-positive monocyte",
    "cd16positivemonocyte": "CD14-low, CD16-positive monocyte",
    "cd34positive": "hematopoietic precursor cell",
    "cd4": "CD4-positive, alpha-beta T cell",
    "cd4positivet": "CD4-positive, alpha-beta T cell",
    "cd4t": "CD4-positive, alpha-beta T cell",
    "cd8": "CD8-positive, alpha-beta T cell",
    "cd8positivet": "CD8-positive, alpha-beta T cell",
    "cd8t": "CD8-positive, alpha-beta T cell",
    "cdc": "conventional dendritic cell",
    "cdc1": "CD141-positive myeloid dendritic cell",
    "cdc2": "CD1c-positive myeloid dendritic cell",
    "cholangio": "cholangiocyte",
    "classicalmono": "classical monocyte",
    "clp": "common lymphoid progenitor",
    "cm": "cardiac muscle cell",
    "cmono": "classical monocyte",
    "cmp": "common myeloid progenitor",
    "dc": "dendritic cell",
    "deltacell": "pancreatic D cell",
    "ec": "endothelial cell",
    "eec": "enteroendocrine cell",
    "endo": "endothelial cell",
    "endothelia": "endothelial cell",
    "eos": "eosinophil",
    "epi": "epithelial cell",
    "epithelia": "epithelial cell",
    "ery": "erythrocyte",
    "eryth": "erythrocyte",
    "evt": "extravillous trophoblast",
    "exc": "glutamatergic neuron",
    "excitatory": "glutamatergic neuron",
    "excitatoryneuron": "glutamatergic neuron",
    "exn": "glutamatergic neuron",
    "fb": "fibroblast",
    "fcgr3apositivemonocyte": "CD14-low, CD16-positive monocyte",
    "fib": "fibroblast",
    "fibro": "fibroblast",
    "gdt": "gamma-delta T cell",
    "glia": "glial cell",
    "gmp": "granulocyte monocyte progenitor cell",
    "gran": "granulocyte",
    "hep": "hepatocyte",
    "hsc": "hematopoietic stem cell",
    "hspc": "hematopoietic precursor cell",
    "ilc": "innate lymphoid cell",
    "imono": "intermediate monocyte",
    "inh": "GABAergic neuron",
    "inhibitory": "GABAergic neuron",
    "inhibitoryneuron": "GABAergic neuron",
    "inn": "GABAergic neuron",
    "intermediatemono": "intermediate monocyte",
    "intmono": "intermediate monocyte",
    "isc": "intestinal crypt stem cell",
    "lec": "endothelial cell of lymphatic vessel",
    "lymphaticendothelial": "endothelial cell of lymphatic vessel",
    "lymphoid": "lymphocyte",
    "mac": "macrophage",
    "mait": "mucosal invariant T cell",
    "mega": "megakaryocyte",
    "mep": "megakaryocyte-erythroid progenitor cell",
    "mesothelium": "mesothelial cell",
    "mg": "microglial cell",
    "micro": "microglial cell",
    "microglia": "microglial cell",
    "mk": "megakaryocyte",
    "mono": "monocyte",
    "monocd14": "CD14-positive monocyte",
    "monocd16": "CD14-low, CD16-positive monocyte",
    "mphage": "macrophage",
    "muller": "Mueller cell",
    "mullerglia": "Mueller cell",
    "multiciliated": "multiciliated epithelial cell",
    "ncmono": "non-classical monocyte",
    "neu": "neutrophil",
    "neuronal": "neuron",
    "neut": "neutrophil",
    "nk": "natural killer cell",
    "nkbright": "CD16-negative, CD56-bright natural killer cell, human",
    "nkcd56bright": "CD16-negative, CD56-bright natural killer cell, human",
    "nkcd56dim": "CD16-positive, CD56-dim natural killer cell, human",
    "nkt": "mature NK T cell",
    "nonclassicalmono": "non-classical monocyte",
    "nonclassicalmonocyte": "non-classical monocyte",
    "oligo": "oligodendrocyte",
    "opc": "oligodendrocyte precursor cell",
    "pc": "plasma cell",
    "pdc": "plasmacytoid dendritic cell",
    "peri": "pericyte",
    "plt": "platelet",
    "pneumocyte": "pneumocyte",
    "rbc": "erythrocyte",
    "rgc": "retinal ganglion cell",
    "smc": "smooth muscle cell",
    "t": "T cell",
    "ta": "transit amplifying cell",
    "tcd4": "CD4-positive, alpha-beta T cell",
    "tcd8": "CD8-positive, alpha-beta T cell",
    "tcell": "T cell",
    "tconv": "CD4-positive, alpha-beta T cell",
    "tfh": "T follicular helper cell",
    "tnk": "lymphocyte",
    "treg": "regulatory T cell",
    "vsmc": "vascular associated smooth muscle cell",
}
# What means a type only where nothing stands beside it, and no tissue is named: blood may be "PB" as well.
ALONE = {"pb": "plasmablast"}
# Other words for the same, wherever they stand.
SAME_WORDS = {"dividing": "cycling", "prolif": "cycling", "proliferating": "cycling", "proliferative": "cycling"}

# States of T cells, of which a label may name several: those that come first count. {} is 4 or 8.
T_CELL_STATES = (
    (frozenset(("cycling",)), "cycling CD{}-positive, alpha-beta T cell"),
    (frozenset(("naive", "tn", "tnaive")), "naive thymus-derived CD{}-positive, alpha-beta T cell"),
    (frozenset(("reg", "treg", "regulatory")), "regulatory T cell"),
    (frozenset(("central", "tcm")), "central memory CD{}-positive, alpha-beta T cell"),
    (frozenset(("temra",)), "effector memory CD{}-positive, alpha-beta T cell, terminally differentiated"),
    (frozenset(("em", "tem")), "effector memory CD{}-positive, alpha-beta T cell"),
    (frozenset(("memory", "mem", "tmem")), "CD{}-positive, alpha-beta memory T cell"),
    (frozenset(("ctl", "cytotoxic", "effector", "gzmb", "gzmk")), "CD{}-positive, alpha-beta cytotoxic T cell"),
    (frozenset(("helper", "th")), "CD{}-positive helper T cell"),
)


@dataclass(frozen=True)
class TissueWords:
    """What short words mean among the labels of one tissue, which one of the `places` tells, or two of the `signs`."""

    places: frozenset[str]
    signs: frozenset[str]
    names: dict[str, str]


TISSUES = (
    TissueWords(
        frozenset(("islet", "pancrea", "pancreatic")),
        frozenset(("alpha", "beta", "delta", "epsilon")),
        {
            "acinar": "pancreatic acinar cell",
            "alpha": "pancreatic A cell",
            "beta": "type B pancreatic cell",
            "delta": "pancreatic D cell",
            "ductal": "pancreatic ductal cell",
            "epsilon": "pancreatic epsilon cell",
            "gamma": "pancreatic PP cell",
            "pp": "pancreatic PP cell",
            "psc": "pancreatic stellate cell",
            "stellate": "pancreatic stellate cell",
        },
    ),
    TissueWords(
        frozenset(("hepatic", "liver")),
        frozenset(("cholangiocyte", "hep", "hepatocyte", "kupffer", "lsec")),
        {"hsc": "hepatic stellate cell", "stellate": "hepatic stellate cell"},
    ),
    TissueWords(
        frozenset(("colon", "gut", "ileum", "intestinal", "intestine")),
        frozenset(("colonocyte", "enterocyte", "goblet", "paneth", "tuft")),
        {
            "endocrine": "enteroendocrine cell",
            "stem": "intestinal crypt stem cell",
            "tuft": "intestinal tuft cell",
        },
    ),
    TissueWords(
        frozenset(("kidney", "renal")),
        frozenset(("cnt", "dct", "loh", "mesangial", "podocyte", "pt", "tal")),
        {
            "cnt": "kidney connecting tubule epithelial cell",
            "dct": "kidney distal convoluted tubule epithelial cell",
            "ic": "renal intercalated cell",
            "ica": "renal alpha-intercalated cell",
            "icb": "renal beta-intercalated cell",
            "loh": "kidney loop of Henle epithelial cell",
            "pc": "renal principal cell",
            "pec": "parietal epithelial cell",
            "pt": "epithelial cell of proximal tubule",
            "tal": "kidney loop of Henle thick ascending limb epithelial cell",
        },
    ),
    TissueWords(
        frozenset(("retina", "retinal")),
        frozenset(("ac", "amacrine", "bipolar", "cone", "muller", "mullerglia", "rgc", "rod")),
        {
            "ac": "amacrine cell",
            "bc": "retinal bipolar neuron",
            "bipolar": "retinal bipolar neuron",
            "cone": "retinal cone cell",
            "hc": "retina horizontal cell",
            "horizontal": "retina horizontal cell",
            "mg": "Mueller cell",
            "rod": "retinal rod cell",
        },
    ),
    TissueWords(
        frozenset(("brain", "cortex", "cortical", "hippocampu")),
        frozenset(("astro", "astrocyte", "exc", "inh", "lamp5", "microglia", "oligo", "oligodendrocyte", "opc", "sst", "vip")),
        {
            "l6b": "L6b glutamatergic cortical neuron",
            "lamp5": "lamp5 GABAergic interneuron",
            "pvm": "perivascular macrophage",
            "pvalb": "pvalb GABAergic interneuron",
            "sst": "sst GABAergic interneuron",
            "vip": "VIP GABAergic interneuron",
        },
    ),
)  # fmt: skip
# What says little without the word before it.
GENERIC = frozenset(
    ["cell", "early", "immature", "late", "malignant", "mature", "negative", "positive", "precursor", "progenitor", "stem"]
)  # fmt: skip
UNASSIGNED = frozenset(
    [
        *("ambiguous", "doublet", "na", "nan", "none", "other", "quality", "unassigned", "undefined", "unknown"),
        *("unlabeled", "unlabelled"),
    ]
)
# A plain name that says so of a type does not name it; "not otherwise specified" and "cluster no. 3" say nothing of the kind.
DENIAL = r"\b(?:not(?! otherwise| further| specified)|no(?! \d)|neither|without|except|excluding|lacking)\b"
# What stands between two types.
BETWEEN_TYPES = r"\s*[/&]\s*|\s[+]\s|[\s_.](?:and|or)[\s_.]"


def author_words() -> dict[str, Any]:
    """All of these words, for readers in other languages."""
    return {
        "abbreviations": ABBREVIATIONS,
        "alone": ALONE,
        "same_words": SAME_WORDS,
        "t_cell_states": [[sorted(signs), name] for signs, name in T_CELL_STATES],
        "tissues": [
            {"places": sorted(tissue.places), "signs": sorted(tissue.signs), "names": tissue.names}
            for tissue in TISSUES
        ],
        "generic": sorted(GENERIC),
        "unassigned": sorted(UNASSIGNED),
        "denial": DENIAL,
        "between_types": BETWEEN_TYPES,
    }
