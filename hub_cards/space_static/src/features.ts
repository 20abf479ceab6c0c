// What the columns of a matrix are: genes, or what was measured beside them (processing/features_scmmgpt.py).

import { type Matrix, withColumns } from "./cell_matrix";
import { UserError } from "./errors";

type FeatureKind = "gene" | "antibody" | "hashtag" | "guide" | "peak" | "custom feature";

export const TYPE_COLUMNS = ["feature_types", "feature_type", "modality"];
const ID_COLUMNS = ["gene_ids", "feature_id", "gene_id", "feature_name"];
const REMEDIES: Record<FeatureKind, string> = {
  gene: "",
  peak: "Peaks are no genes: compute gene activities first, scmmgpt.gene_activity(peaks) in Python, and give those",
  antibody: "Give the RNA of the same cells; antibodies alone cannot be read",
  hashtag: "Hashtags tell samples apart, not cell types: give the RNA of the same cells",
  guide: "Guides tell perturbations apart, not cell types: give the RNA of the same cells",
  "custom feature": "Give the RNA of the same cells",
};
const WORDS_OF_TYPES: [FeatureKind, string[]][] = [
  ["hashtag", ["multiplexing", "hashtag", "hashtags", "hashing", "hto", "htos", "cmo", "cmos"]],
  ["guide", ["crispr", "guide", "guides", "grna", "sgrna", "grnas", "sgrnas"]],
  ["antibody", ["antibody", "antibodies", "adt", "adts", "abseq", "totalseq", "protein", "proteins", "prot", "ab", "cite"]],
  ["peak", ["peak", "peaks", "atac", "chromatin", "accessibility"]],
  ["custom feature", ["custom", "antigen"]],
];
const GENE_TYPES = ["gene expression", "gene", "genes", "gex", "rna", "mrna"];
// Each kind by what is told in any capitals, and by what only in these.
const MARKS: [FeatureKind, RegExp[]][] = [
  ["hashtag", [
    /^(?:.*hashtag.*|hto[-_. ]\w+|hto\d+|.+[-_. ]hto|multi-?seq[-_ ]?\w*|hash[-_. ]\w+)$/i,
    /^(?:[Hh]ash\d+|CMO3\d\d)$/,
  ]],
  ["guide", [
    /^(?:(?:.*[-_. |:])?s?grna(?:[-_. |:\d].*)?|.+[-_.](?:sg|guide)[-_.]?\d+|guide[-_.]?\w+|crispr[-_. ].+|(?:.*[-_. ])?non[-_. ]?targeting(?:[-_. \d].*)?)$/i,
    /^(?:sg[-_].+|sg[A-Z][A-Z0-9]+[-_.].*)$/,
  ]],
  ["antibody", [
    /^(?:.*[-_. ]total(?:seq)?[-_. ]?[a-d](?:[-_. ].*)?|.*[-_. ]totalseq|.*[|_-]pabo|.*isotype.*|(?:adt|prot|protein|antibody|abseq)[-_.:| ](?!\d+$).+|ab[_:|].+|.+[-_.:| ](?:adt|prot|antibody)|.+[_:|](?:ab|protein)|.*igg\d?[abck]?[-_. ]?(?:\w+[-_. ])?(?:control|ctrl).*)$/i,
    /^(?:[Aa]nti[-_. ].+|(?:[Mm]ouse|[Rr]at|[Hh]amster)[-_ ]Ig[GMA]\d?[abck]?|.+[-_][ACGT]{12,})$/,
  ]],
  ["peak", [/^(?:(?:(?:grch|grcm|hg|mm)\d+_+)?(?:chr[\w.]+?[:_-]\d+[_-]\d+|(?:\d{1,2}|[xy]|mt|[a-z]{2}\d{6}\.\d):\d+-\d+))$/i]],
];
const CD_GENES = new Set(
  ("2 4 5 6 7 9 14 19 22 24 27 28 33 34 36 37 38 40 44 46 47 48 52 53 55 58 59 63 68 69 70 72 74 80 81 82 83 84 86 93 96 97 " +
    "99 101 109 151 160 163 164 177 180 200 207 209 226 244 247 248 274 276 302 320").split(" "),
);
const CD_GENES_WITH_LETTER = new Set(["1", "3", "8", "79", "300"]);
const CD_NAME = /^CD(\d{1,3})(.*)/s;
const PROTEIN_NAME = /^(?:HLA-(?:ABC|A,B,C|DR|DQ)|PD-L?[12]|Ig[DM]|IgG\d?[abck]?|TCR[-_ ]?(?:ab|gd|a\/b|g\/d|V).*|TIM-[34])$/;
const MADE_UNIQUE = /[-_.]\d{1,2}$/;
const BEGINNING_OF_PLAIN_MARK = /^(?:hash|hto|cmo|multi|iso|s?grna|non|guide|igg)/i;
const LONGEST_NAME = 200, LEAST_PANEL = 3, LEAST_SHARE_OF_PANEL = 0.15;

/** Columns that are no genes, by what they are. */
export interface SetAside {
  kind: string;
  names: string[];
}

/** The matrix without the columns that are no genes, and those; refused if none is left. */
export function onlyGenes(matrix: Matrix): { genes: Matrix; setAside: SetAside[] } {
  const names = matrix.names.get("index")!, kinds = kindsOf(matrix);
  const others = [...new Set(kinds)].filter((kind) => kind !== "gene");
  const setAside = others.map((kind) => ({ kind, names: names.filter((_, place) => kinds[place] === kind) }));
  if (!setAside.length) return { genes: matrix, setAside };
  if (!kinds.includes("gene")) {
    const listed = setAside.map(({ kind, names: own }) => `${own.length} of kind ${kind}: ${own.slice(0, 3).join(", ")}`).join("; ");
    const main = setAside.reduce((most, one) => (one.names.length > most.names.length ? one : most));
    throw new UserError(`There are no genes to read, only ${listed}. ${REMEDIES[main.kind as FeatureKind]}.`);
  }
  return { genes: withColumns(matrix, kinds.map((kind) => kind === "gene")), setAside };
}

export function kindsOf(matrix: Matrix): FeatureKind[] {
  const names = matrix.names.get("index")!;
  const types = typesThatTell(matrix);
  const kinds = kindsByType(types, names.length);
  const isTyped = kinds.some((kind) => kind !== "gene");
  const idColumns = [names, ...ID_COLUMNS.map((column) => matrix.names.get(column)).filter((one): one is string[] => !!one)];
  for (let place = 0; place < names.length; place++) {
    if (kinds[place] !== "gene") continue;
    for (const column of idColumns) {
      const kind = markedKind(column[place]);
      if (kind === "gene") continue;
      kinds[place] = kind;
      break;
    }
  }
  if (!isTyped) for (const place of unmarkedPanel(names, kinds)) kinds[place] = "antibody";
  return kinds;
}

function typesThatTell(matrix: Matrix): string[] | null {
  const present = [...matrix.types.values()];
  return present.find((types) => [...new Set(types)].some((type) => kindOfType(type) !== "gene")) ?? present[0] ?? null;
}

export function kindOfType(value: string): FeatureKind {
  const words = new Set(value.toLowerCase().match(/[a-z0-9]+/g) ?? []);
  if (words.has("coding")) return "gene";
  return WORDS_OF_TYPES.find(([, own]) => own.some((word) => words.has(word)))?.[0] ?? "gene";
}

function kindsByType(types: string[] | null, numFeatures: number): FeatureKind[] {
  if (!types) return new Array(numFeatures).fill("gene");
  const plain = (value: string) => value.toLowerCase().replaceAll("_", " ");
  const values = new Set(types), kindOf = new Map([...values].map((value) => [value, kindOfType(value)]));
  if ([...values].some((value) => GENE_TYPES.includes(plain(value)))) {
    for (const value of values) {
      const saysNothing = ["", "nan", "none"].includes(value.toLowerCase());
      if (kindOf.get(value) === "gene" && !saysNothing && !GENE_TYPES.includes(plain(value))) kindOf.set(value, "custom feature");
    }
  }
  return types.map((value) => kindOf.get(value)!);
}

function markedKind(name: string): FeatureKind {
  if (name.length > LONGEST_NAME) return "gene";
  if (/^[\p{L}\p{N}]+$/u.test(name) && !BEGINNING_OF_PLAIN_MARK.test(name)) return "gene";
  return MARKS.find(([, forms]) => forms.some((form) => form.test(name)))?.[0] ?? "gene";
}

/** Columns of a panel of antibodies without marks: a block of rows at either end, with proteins that no gene is. */
function unmarkedPanel(names: string[], kinds: FeatureKind[]): number[] {
  const places = names.map((_, place) => place).filter((place) => kinds[place] === "gene");
  const onlyProteins = places.map((_, at) => at).filter((at) => isProteinOnly(names[places[at]]));
  if (new Set(onlyProteins.map((at) => names[places[at]])).size < LEAST_PANEL) return [];
  const times = new Map<string, number>();
  for (const name of names) times.set(name, (times.get(name) ?? 0) + 1);
  const isRepeated = (at: number) => {
    const name = names[places[at]], bare = name.replace(MADE_UNIQUE, "");
    return times.get(name)! > 1 || (bare !== name && times.has(bare));
  };
  const isCd = (at: number) => CD_NAME.test(names[places[at]]);
  let first = onlyProteins[0], last = onlyProteins[onlyProteins.length - 1];
  while (first > 0 && (isCd(first - 1) || isRepeated(first - 1))) first--;
  while (last < places.length - 1 && (isCd(last + 1) || isRepeated(last + 1))) last++;
  const size = last + 1 - first, isAtStart = first <= LEAST_PANEL, isAtEnd = places.length - 1 - last <= size;
  if (onlyProteins.length >= LEAST_SHARE_OF_PANEL * size && (isAtStart || isAtEnd)) {
    return places.slice(isAtStart ? 0 : first, isAtEnd ? places.length : last + 1);
  }
  const repeated = places.map((_, at) => at).find((at) => isCd(at) && isRepeated(at));
  if (repeated === undefined) return [];
  throw new UserError(
    `Antibodies seem to stand among the genes (such as ${names[places[onlyProteins[0]]]}), so that ${names[places[repeated]]} ` +
      'may be either. Say what each row is in var["feature_types"]: "Gene Expression" or "Antibody Capture".',
  );
}

function isProteinOnly(name: string): boolean {
  const found = CD_NAME.exec(name);
  if (!found) return PROTEIN_NAME.test(name);
  const rest = found[2].replace(MADE_UNIQUE, "");
  if (CD_GENES.has(found[1])) return /^[a-z]$/.test(rest);
  return !(CD_GENES_WITH_LETTER.has(found[1]) && /^\p{Lu}/u.test(rest));
}
