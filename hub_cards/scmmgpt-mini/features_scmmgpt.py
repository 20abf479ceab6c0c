"""What the columns of a matrix are: genes, or what was measured beside them. Only genes go into the RNA.

The column of feature types in `var` is believed where it tells genes from others. A name that only an antibody, hashtag,
guide or peak can have is believed always. Where neither says anything, names of proteins that no gene has, such as CD3
or CD45RA, give away a panel of antibodies, and with it those that have the name of a gene, such as CD19.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .cell_matrix_scmmgpt import Antibodies, Cells
from .errors_scmmgpt import UserError

GENE, ANTIBODY, HASHTAG, GUIDE, PEAK, CUSTOM = "gene", "antibody", "hashtag", "guide", "peak", "custom feature"
TYPE_COLUMNS = ("feature_types", "feature_type", "modality")
# Columns that may carry the mark which the name itself has lost.
_ID_COLUMNS = ("gene_ids", "feature_id", "gene_id", "feature_name")
MOST_NAMES = 300
PANEL_BY_NAMES = "names of proteins that stand together"
REMEDIES = {
    PEAK: "Peaks are no genes: compute gene activities first, scmmgpt.gene_activity(peaks), and give those",
    ANTIBODY: "Give the RNA of the same cells; antibodies alone cannot be read",
    HASHTAG: "Hashtags tell samples apart, not cell types: give the RNA of the same cells",
    GUIDE: "Guides tell perturbations apart, not cell types: give the RNA of the same cells",
    CUSTOM: "Give the RNA of the same cells",
}

_WORDS_OF_TYPES = {
    HASHTAG: {"multiplexing", "hashtag", "hashtags", "hashing", "hto", "htos", "cmo", "cmos"},
    GUIDE: {"crispr", "guide", "guides", "grna", "sgrna", "grnas", "sgrnas"},
    ANTIBODY: {
        "antibody",
        "antibodies",
        "adt",
        "adts",
        "abseq",
        "totalseq",
        "protein",
        "proteins",
        "prot",
        "ab",
        "cite",
    },
    PEAK: {"peak", "peaks", "atac", "chromatin", "accessibility"},
    CUSTOM: {"custom", "antigen"},
}
_GENE_TYPES = {"gene expression", "gene", "genes", "gex", "rna", "mrna"}

_MARKS = {
    HASHTAG: r"(?i:.*hashtag.*|hto[-_. ]\w+|hto\d+|.+[-_. ]hto|multi-?seq[-_ ]?\w*|hash[-_. ]\w+)|[Hh]ash\d+|CMO3\d\d",
    GUIDE: r"(?i:(?:.*[-_. |:])?s?grna(?:[-_. |:\d].*)?|.+[-_.](?:sg|guide)[-_.]?\d+|guide[-_.]?\w+|crispr[-_. ].+"
    r"|(?:.*[-_. ])?non[-_. ]?targeting(?:[-_. \d].*)?)|sg[-_].+|sg[A-Z][A-Z0-9]+[-_.].*",
    # Isotype controls too, and tags named with their barcode, as CITE-seq-Count does.
    ANTIBODY: r"(?i:.*[-_. ]total(?:seq)?[-_. ]?[a-d](?:[-_. ].*)?|.*[-_. ]totalseq|.*[|_-]pabo|.*isotype.*"
    r"|(?:adt|prot|protein|antibody|abseq)[-_.:| ](?!\d+$).+|ab[_:|].+|.+[-_.:| ](?:adt|prot|antibody)"
    r"|.+[_:|](?:ab|protein)|.*igg\d?[abck]?[-_. ]?(?:\w+[-_. ])?(?:control|ctrl).*)"
    r"|[Aa]nti[-_. ].+|(?:[Mm]ouse|[Rr]at|[Hh]amster)[-_ ]Ig[GMA]\d?[abck]?|.+[-_][ACGT]{12,}",
    PEAK: r"(?i:(?:(?:grch|grcm|hg|mm)\d+_+)?(?:chr[\w.]+?[:_-]\d+[_-]\d+|(?:\d{1,2}|[xy]|mt|[a-z]{2}\d{6}\.\d):\d+-\d+))",
}
_MARK = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _MARKS.items()))

# CD numbers that are, or were, the whole symbol of a gene, and those that need a letter for one: CD4, but CD3 of CD3E.
_CD_GENES = re.compile(
    r"2|4|5|6|7|9|14|19|22|24|27|28|33|34|36|37|38|40|44|46|47|48|52|53|55|58|59|63|68|69|70|72|74|80"
    r"|81|82|83|84|86|93|96|97|99|101|109|151|160|163|164|177|180|200|207|209|226|244|247|248|274|276|302|320"
)
_CD_GENES_WITH_LETTER = re.compile(r"1|3|8|79|300")
_CD_NAME = re.compile(r"CD(\d{1,3})(.*)")
_PROTEIN_NAME = re.compile(
    r"HLA-(?:ABC|A,B,C|DR|DQ)|PD-L?[12]|Ig[DM]|IgG\d?[abck]?|TCR[-_ ]?(?:ab|gd|a/b|g/d|V).*|TIM-[34]"
)
_MADE_UNIQUE = re.compile(r"[-_.]\d{1,2}$")
_BEGINNING_OF_PLAIN_MARK = re.compile(r"(?i:hash|hto|cmo|multi|iso|s?grna|non|guide|igg)")
_LONGEST_NAME = 200
_LEAST_PANEL = 3
_LEAST_SHARE_OF_PANEL = 0.15


class Features(NamedTuple):
    """Kind of every column of a matrix, and for each kind beside `GENE` what gave it away."""

    kinds: np.ndarray
    why: dict[str, str]

    @property
    def is_gene(self) -> np.ndarray:
        """Which columns are genes."""
        return self.kinds == GENE


def features_of(var: Any, names: Sequence[str]) -> Features:
    """What the columns of a matrix are, by its table `var`, if it has one, and by their names."""
    columns = [var[column].astype(str) for column in _ID_COLUMNS if var is not None and column in var]
    column = _type_column(var)
    types = None if column is None else tuple(var[column].astype(str))
    return _features((tuple(map(str, names)), *map(tuple, columns)), types, column or "")


def only_genes(cells: Cells) -> Cells:
    """The same cells without the columns that are no genes; refused if none is left."""
    features = [features_of(_with_types(matrix.var, cells), matrix.var_names) for matrix in cells.matrices]
    for matrix, each in zip(cells.matrices, features, strict=True):
        if (is_antibody := each.kinds == ANTIBODY).any():
            cells.antibodies.append(Antibodies(matrix.name, matrix.with_columns(is_antibody, {})))
    if features and not any(each.is_gene.any() for each in features) and len(features[0].kinds):
        _refuse_without_genes(features[0], cells.matrices[0].var_names)
    cells.matrices = [
        matrix if each.is_gene.all() else matrix.with_columns(each.is_gene, _set_aside(each, matrix.var_names))
        for matrix, each in zip(cells.matrices, features, strict=True)
        if each.is_gene.any() or not len(each.kinds)
    ]
    return cells


def _with_types(var: Any, cells: Cells) -> Any:
    """The table of a matrix; what `.raw` does not say of its features, that of `X` may."""
    other = cells.matrices[0].var
    column = _type_column(other)
    if var is None or var is other or column is None or _type_column(var) is not None or not other.index.is_unique:
        return var
    return var.assign(**{column: other[column].astype(str).reindex(var.index).fillna("")})


def entry_of_account(kind: str, why: str, names: Sequence[str], number: int | None = None) -> dict[str, Any]:
    """How the account tells of features that were set aside; by default as many as there are names."""
    number = len(names) if number is None else number
    return {"kind": kind, "number": number, "why": why, "names": list(map(str, names[:MOST_NAMES]))}


def not_read(place: str, key: str, names: Sequence[str], number: int | None = None) -> dict[str, dict[str, Any]]:
    """The entry of a modality, or of a matrix of `obsm`, that is never read as RNA."""
    return {f"{place}[{key!r}]": entry_of_account(kind_of_type(key), f"in {place}[{key!r}]", names, number)}


def _set_aside(features: Features, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    places = {kind: np.flatnonzero(features.kinds == kind).tolist() for kind in features.why}
    return {kind: entry_of_account(kind, features.why[kind], [names[at] for at in places[kind]]) for kind in places}


def _refuse_without_genes(features: Features, names: Sequence[str]) -> None:
    found = _set_aside(features, names)
    listed = "; ".join(
        f"{one['number']} of kind {kind} ({one['why']}): {', '.join(one['names'][:3])}" for kind, one in found.items()
    )
    main = max(found, key=lambda kind: found[kind]["number"])
    raise UserError(f"There are no genes to read, only {listed}. {REMEDIES[main]}.")


def _type_column(var: Any) -> str | None:
    """The column of `var` that tells genes from other features, else one that could."""
    present = [column for column in TYPE_COLUMNS if var is not None and column in var]
    telling = (column for column in present if {kind_of_type(str(value)) for value in set(var[column])} != {GENE})
    return next(telling, present[0] if present else None)


def kind_of_type(value: str) -> str:
    """What kind of feature a type, or the name of a modality, stands for; `GENE` where it is not known."""
    words = set(re.findall(r"[a-z0-9]+", value.lower()))
    if "coding" in words:  # protein_coding: a biotype
        return GENE
    return next((kind for kind, its_words in _WORDS_OF_TYPES.items() if words & its_words), GENE)


@lru_cache(maxsize=8)
def _features(columns: tuple[tuple[str, ...], ...], types: tuple[str, ...] | None, type_column: str) -> Features:
    kinds, why = _kinds_by_type(types, type_column, len(columns[0]))
    is_typed = bool(why)
    for place, names in enumerate(zip(*columns, strict=True)):
        kind = next((kind for name in names if (kind := _marked_kind(name)) != GENE), GENE)
        # 10x calls hashtags "Antibody Capture", as they are.
        if kind != GENE and (kinds[place] == GENE or (kinds[place], kind) == (ANTIBODY, HASHTAG)):
            kinds[place] = kind
            why.setdefault(kind, f"names such as {names[0]}")
    if not is_typed and (panel := _unmarked_panel(columns[0], kinds == GENE)):
        kinds[panel] = ANTIBODY
        why[ANTIBODY] = PANEL_BY_NAMES
    return Features(kinds, {kind: reason for kind, reason in why.items() if (kinds == kind).any()})


def _marked_kind(name: str) -> str:
    if len(name) > _LONGEST_NAME:  # no name, and slow to look through
        return GENE
    if name.isalnum() and not _BEGINNING_OF_PLAIN_MARK.match(name):  # most genes, at little cost
        return GENE
    mark = _MARK.fullmatch(name)
    return mark.lastgroup or GENE if mark else GENE


def _kinds_by_type(types: tuple[str, ...] | None, column: str, num_features: int) -> tuple[np.ndarray, dict[str, str]]:
    kinds = np.full(num_features, GENE, dtype=object)
    if types is None:
        return kinds, {}
    kind_of = {value: kind_of_type(value) for value in set(types)}
    if any(
        value.lower().replace("_", " ") in _GENE_TYPES for value in kind_of
    ):  # the others then say they are no genes
        unknown = [value for value in kind_of if kind_of[value] == GENE and value.lower() not in ("", "nan", "none")]
        kind_of |= {value: CUSTOM for value in unknown if value.lower().replace("_", " ") not in _GENE_TYPES}
    kinds[:] = [kind_of[value] for value in types]
    return kinds, {kind: f"var[{column!r}] says {value}" for value, kind in sorted(kind_of.items()) if kind != GENE}


def _unmarked_panel(names: tuple[str, ...], is_unmarked: np.ndarray) -> list[int]:
    """Columns of a panel of antibodies without marks: a block of rows at either end, with proteins that no gene is.

    Where they are scattered among genes of the same names, nobody can tell one from the other: refused.
    """
    places = np.flatnonzero(is_unmarked)
    only_proteins = [at for at, place in enumerate(places) if _is_protein_only(names[place])]
    if len({names[places[at]] for at in only_proteins}) < _LEAST_PANEL:
        return []
    times = Counter(names)

    def is_repeated(at: int) -> bool:
        name = names[places[at]]
        bare = _MADE_UNIQUE.sub("", name)
        return times[name] > 1 or (bare != name and bare in times)

    def may_belong(at: int) -> bool:
        return _CD_NAME.match(names[places[at]]) is not None or is_repeated(at)

    first, last = only_proteins[0], only_proteins[-1]
    while first > 0 and may_belong(first - 1):
        first -= 1
    while last < len(places) - 1 and may_belong(last + 1):
        last += 1
    size = last + 1 - first
    is_at_start, is_at_end = first <= _LEAST_PANEL, len(places) - 1 - last <= size
    if len(only_proteins) >= _LEAST_SHARE_OF_PANEL * size and (is_at_start or is_at_end):
        return places[0 if is_at_start else first : len(places) if is_at_end else last + 1].tolist()
    repeated = [names[place] for at, place in enumerate(places) if _CD_NAME.match(names[place]) and is_repeated(at)]
    if not repeated:
        return []
    raise UserError(
        f"Antibodies seem to stand among the genes (such as {names[places[only_proteins[0]]]}), so that "
        f"{repeated[0]} may be either. Say what each row is in `var['feature_types']`: \"Gene Expression\" or "
        '"Antibody Capture".'
    )


def _is_protein_only(name: str) -> bool:
    """Whether no gene has this name: CD3, CD8a, CD45RA, HLA-DR, but not CD4 or CD8A."""
    found = _CD_NAME.match(name)
    if not found:
        return _PROTEIN_NAME.fullmatch(name) is not None
    number, rest = found[1], _MADE_UNIQUE.sub("", found[2])
    if _CD_GENES.fullmatch(number):
        return re.fullmatch(r"[a-z]", rest) is not None
    return not (_CD_GENES_WITH_LETTER.fullmatch(number) and rest[:1].isupper())
