"""Names of antibodies to proteins: `CD3_TotalSeqB`, `adt_CD3`, `CD3 (UCHT1)` and `UCHT1` are one protein, that of CD3E.

A protein is named by the human gene that makes it, or by its isoform where antibodies tell isoforms of one gene apart.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from .gene_identity_scmmgpt import GeneNames

_MARKS = re.compile(
    r"(?i)^(?:adt|prot(?:ein)?|antibody|abseq|ab)[-_.:| ]+|^anti[-_. ]+"
    r"|^(?:(?:human|mouse|rat|hu|mu|ms|rh)[-_. /]*)+[-_. ]+(?=[a-z])|[-_. ]*total(?:seq)?[-_. ]?[a-d]?(?:[-_. ]+\d+)?$|[-_.:| ]+(?:adt|prot(?:ein)?|antibody|ab|pabo|recombinant)$"
    r"|[-_][ACGT]{12,}$"
)
_CONTROL = re.compile(
    r"(?i).*isotype.*|.*ig[gma]\d?[abck]?[-_. ]?(?:\w+[-_. ])?(?:control|ctrl).*|(?:mouse|rat|hamster).*ig[gma]\d?[abck]?.*"
)
# In a panel of antibodies these alone are controls too; IgM, IgD and a plain IgG may be those of B cells.
_PLAIN_CONTROL = re.compile(r"(?i)ig[g](?:1|2[abc]?|3|4)[abck]?(?:[-_. ](?:fc|k|kappa|lambda))?")

# Proteins of several chains, isoforms, sugars, and those whose name is no synonym of a gene.
_GENES_OF = {
    "CD3": "CD3E",
    "CD8": "CD8A",
    "CD8a": "CD8A",
    "CD8alpha": "CD8A",
    "CD8b": "CD8B",
    "CD15": "FUT4",
    "SSEA-1": "FUT4",
    "CD57": "B3GAT1",
    "CD16": "FCGR3A",
    "CD16/32": "FCGR3A",
    "CD32": "FCGR2A",
    "CD49": "ITGA4",
    "CD66": "CEACAM1",
    "CD66b": "CEACAM8",
    "CD77": "A4GALT",
    "CD45R": "PTPRC",
    "B220": "PTPRC",
    "CD158": "KIR2DL1",
    "CD158b": "KIR2DL3",
    "CD199": "CCR9",
    "CD235ab": "GYPA",
    "GlyA": "GYPA",
    "HLA-DR": "HLA-DRA",
    "HLA-DP": "HLA-DPA1",
    "HLA-DQ": "HLA-DQA1",
    "HLA-ABC": "HLA-A",
    "HLA-A,B,C": "HLA-A",
    "MHCII": "HLA-DRA",
    "MHC-II": "HLA-DRA",
    "MHC class II": "HLA-DRA",
    "I-A/I-E": "HLA-DRA",
    "IgD": "IGHD",
    "IgM": "IGHM",
    "IgA": "IGHA1",
    "IgE": "IGHE",
    "IgG": "IGHG1",
    "Ig light chain k": "IGKC",
    "Ig light chain kappa": "IGKC",
    "Ig light chain l": "IGLC2",
    "Ig light chain lambda": "IGLC2",
    "TCR": "TRAC",
    "TCRab": "TRAC",
    "TCR a/b": "TRAC",
    "TCR alpha/beta": "TRAC",
    "TCR b": "TRAC",
    "TCRgd": "TRDC",
    "TCR g/d": "TRDC",
    "TCR gamma/delta": "TRDC",
    "TCR Va7.2": "TRAV1-2",
    "TCR V 7.2": "TRAV1-2",
    "TCR Valpha7.2": "TRAV1-2",
    "TCR Vd2": "TRDV2",
    "TCR V 2": "TRDV2",
    "TCR Vg9": "TRGV9",
    "TCR V 9": "TRGV9",
    "TCR V 24-J 18": "TRAV10",
    "TCR Va24-Ja18": "TRAV10",
    "integrin 7": "ITGB7",
    "integrin b7": "ITGB7",
    "integrin beta7": "ITGB7",
    "Cadherin11": "CDH11",
    "TIM-3": "HAVCR2",
    "TIM-4": "TIMD4",
    "Podoplanin": "PDPN",
    "Galectin-9": "LGALS9",
    "Folate Receptor": "FOLR2",
    "CLA": "SELPLG",
    "CD301a": "CLEC10A",
    "F4/80": "ADGRE1",
    "NK1.1": "KLRB1",
    "TER-119": "GYPA",
    "T1/ST2": "IL1RL1",
    "Sca-1": "LY6A",
    "CD45.1": "PTPRC",
    "CD45.2": "PTPRC",
}
ISOFORMS = ("CD45RA", "CD45RO", "CD45RB")
_GENE_OF_ISOFORM = dict.fromkeys(ISOFORMS, "PTPRC")
# Clones that panels name without their target.
_TARGETS = {
    "CD3": "UCHT1 OKT3 SK7 HIT3a 17A2 145-2C11",
    "CD4": "RPA-T4 SK3 OKT4 L200 RM4-5 GK1.5",
    "CD8": "SK1 RPA-T8 HIT8a OKT8 53-6.7",
    "CD11b": "ICRF44 M1/70",
    "CD11c": "S-HCL-3 B-ly6 3.9 N418",
    "CD14": "M5E2 MphiP9 63D3 HCD14",
    "CD16": "3G8 B73.1",
    "CD19": "HIB19 SJ25C1 6D5",
    "CD20": "2H7 L27",
    "CD25": "BC96 M-A251 2A3 PC61",
    "CD27": "O323 M-T271 LG.3A10",
    "CD28": "CD28.2",
    "CD34": "581 8G12",
    "CD38": "HIT2 HB7",
    "CD45": "HI30 2D1 30-F11",
    "CD45RA": "HI100",
    "CD45RO": "UCHL1",
    "CD56": "5.1H11 HCD56 NCAM16.2 QA17A16",
    "CD57": "HNK-1 QA17A04 NK-1",
    "CD62L": "DREG-56 MEL-14",
    "CD69": "FN50 H1.2F3",
    "CD123": "6H6 7G3",
    "CD127": "A019D5 HIL-7R-M21 A7R34",
    "CD161": "HP-3G10 DX12",
    "CCR7": "G043H7 2-L1-A",
    "HLA-DR": "L243 G46-6",
    "PD-1": "EH12.2H7 EH12.1",
    "TIGIT": "A15153G MBSA43",
    "TCRgd": "B1 11F2",
    "TCR Va7.2": "3C10",
    "IgD": "IA6-2",
    "IgM": "MHM-88",
}


def plain(name: str) -> str:
    """A name without case and punctuation; what parts two numbers stays, so that CD3-1 is not CD31."""
    return re.sub(r"(?<!\d)\.|\.(?!\d)|[^a-z0-9/,.]", "", re.sub(r"(?<=\d)[-_. ]+(?=\d)", ".", name.lower()))


_SPECIAL = {plain(name): gene for name, gene in _GENES_OF.items()} | {plain(name): name for name in ISOFORMS}
_CLONES = {plain(clone): target for target, clones in _TARGETS.items() for clone in clones.split()}


def is_control(name: str) -> bool:
    """Whether an antibody binds nothing: an isotype control.

    Examples
    --------
    >>> [is_control(name) for name in ("IgG1_control_TotalSeqB", "Mouse-IgG2a", "IgG2b", "IgM", "CD3")]
    [True, True, True, False, False]
    """
    bare = without_marks(name)
    return bool(_CONTROL.fullmatch(bare) or _CONTROL.fullmatch(name) or _PLAIN_CONTROL.fullmatch(bare))


class ProteinNames:
    """Finds the protein that a name of an antibody, or of a text, speaks of."""

    def __init__(self, gene_names: GeneNames | None = None):
        self._genes = _gene_of_name(gene_names) if gene_names is not None else {}

    def protein(self, name: str) -> str | None:
        """The protein, None for controls and for names that no gene is known by.

        Examples
        --------
        >>> [ProteinNames().protein(name) for name in ("CD3_TotalSeqB", "adt_CD8a", "UCHT1", "CD45RA-HI100", "IgG1")]
        ['CD3E', 'CD8A', 'CD3E', 'CD45RA', None]
        """
        if is_control(name):
            return None
        bare = without_marks(re.split(r"[|]|:(?=\w)", name)[0] if "|" in name or ":" in name else name)
        inside = re.findall(r"\(([^)]*)\)", bare)
        outside = re.sub(r"\s*\([^)]*\)", "", bare)
        found = (self._of_words(part) for part in (outside, *inside, bare))
        return next((protein for protein in found if protein), None)

    def gene(self, protein: str) -> str:
        """The human gene that makes a protein."""
        return _GENE_OF_ISOFORM.get(protein, protein)

    def _of_words(self, name: str) -> str | None:
        """The protein of a name, or of its beginning: clones and numbers of lots come last, other chains after `/`."""
        words = re.split(r"([-_. /]+)", name.strip())
        for length in range(len(words), 0, -2):
            if found := self._of_name("".join(words[:length])):
                return found
        return None

    def _of_name(self, name: str) -> str | None:
        key = plain(name)
        return _SPECIAL.get(key) or self._genes.get(key) or (self._of_name(_CLONES[key]) if key in _CLONES else None)


def without_marks(name: str) -> str:
    """The name of an antibody alone: no species, kit, barcode or kind of feature."""
    before = ""
    while before != name:
        before, name = name, _MARKS.sub("", name.strip())
    return name


@lru_cache(maxsize=4)
def _gene_of_name(gene_names: GeneNames) -> Mapping[str, str]:
    """Human genes by symbols and synonyms, without case and punctuation; a symbol comes before a synonym."""
    genes = gene_names.genes("human")
    found = {plain(gene.symbol): gene.symbol for gene in genes}
    for gene in genes:
        for synonym in gene.synonyms:
            found.setdefault(plain(synonym), gene.symbol)
    return found
