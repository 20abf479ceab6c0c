// Candidate labels and the texts that cells are compared with (processing/labels_scmmgpt.py, prompting_scmmgpt.py).

import { namedTerms } from "./author_labels";
import { UserError } from "./errors";
import { type Ontology, type Term, UNINFORMATIVE_TERMS } from "./ontology";

export const UNKNOWN = "unknown";
const MISSING = new Set(["", "unknown", "na", "n/a", "nan", "none", "null", "not applicable", "unassigned", "other"]);

/**
 * `source` says where labels are from: the training, the whole ontology, or a person's own list. `names` are the labels in
 * words of the training: of an abbreviation its term.
 */
export interface LabelSet {
  labels: string[];
  names: string[];
  termIds: (string | null)[];
  descriptions: string[];
  source: "trained types" | "cell-ontology" | "list";
  notes: string[];
}

/** Labels, one a line; "name: description" gives a description of one's own. */
export function readLabels(names: string[], ontology: Ontology, given: Record<string, string> = {}): LabelSet {
  if (!names.length) throw new UserError("No labels were given: write at least one.");
  const repeated = names.find((name, place) => names.indexOf(name) < place);
  if (repeated !== undefined) throw new UserError(`The label “${repeated}” is given twice.`);
  const { terms, said } = termsAndNames(names, ontology);
  const read = names.flatMap((name, place) => (name === said[place] ? [] : [`“${name}” as “${said[place]}”`]));
  const notes = names.flatMap((name, place) => {
    if (terms[place]) return [];
    const nearest = ontology.suggest(name);
    return [`“${name}” is not in the Cell Ontology and is used as free text${nearest ? `; did you mean “${nearest}”?` : ""}`];
  });
  return {
    labels: names,
    names: said,
    termIds: terms.map((term) => term?.id ?? null),
    descriptions: names.map((name, place) => given[name] || terms[place]?.definition || ""),
    source: "list",
    notes: [...(read.length ? [`read as types of the Cell Ontology: ${read.slice(0, 20).join(", ")}`] : []), ...notes.slice(0, 20)],
  };
}

/** What has a name of its own goes before abbreviations; abbreviations of one term keep their words, which may part them. */
function termsAndNames(labels: string[], ontology: Ontology): { terms: (Term | null)[]; said: string[] } {
  const read = namedTerms(labels, ontology), isOwn = read.map(({ how }) => how === "name" || how === "synonym");
  const taken = new Set(read.filter((_, place) => isOwn[place]).map(({ term }) => term!.id));
  const terms = read.map(({ term }, place) => (isOwn[place] || (term && !taken.has(term.id)) ? term : ontology.find(labels[place]!)));
  const times = (id: string) => terms.filter((term) => term?.id === id).length;
  const said = labels.map((label, place) => {
    const term = terms[place];
    return term && !isOwn[place] && times(term.id) === 1 ? term.label : label;
  });
  return { terms, said };
}

/** A person's lines as names and descriptions. */
export function parseLabels(text: string): { names: string[]; descriptions: Record<string, string> } {
  const lines = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const descriptions: Record<string, string> = {};
  const names = lines.map((line) => {
    const [name, description] = /^CL:\d{7}$/.test(line) ? [line] : (line.match(/^([^:]+):\s+(.+)$/)?.slice(1) ?? [line]);
    if (description) descriptions[name.trim()] = description.trim();
    return name.trim();
  });
  return { names, descriptions };
}

export function ontologyLabels(ontology: Ontology): LabelSet {
  const terms = [...ontology.terms.values()].filter((term) => !UNINFORMATIVE_TERMS.has(term.id));
  return {
    labels: terms.map((term) => term.label),
    names: terms.map((term) => term.label),
    termIds: terms.map((term) => term.id),
    descriptions: terms.map((term) => term.definition),
    source: "cell-ontology",
    notes: [],
  };
}

/** The types of the training, under the names of the ontology. */
export function trainedLabels(types: string[], ontology: Ontology): LabelSet {
  const names = types.map((name) => ontology.find(name)?.label ?? name);
  return { ...readLabels([...new Set(names)], ontology), source: "trained types", notes: [] };
}

export function textsOf(labels: LabelSet, tissue = ""): string[] {
  return labels.names.map((name, place) => labelText(name, labels.descriptions[place], tissue));
}

/** What a label says about itself: the text that cells are compared with. */
export function labelText(label: string, definition = "", tissue = ""): string {
  const where = isMissing(tissue) ? "" : ` from ${tissue.trim()}`;
  // A label that says nothing, "other" say, leaves a cell without a type.
  const text = isMissing(label) ? `This is a cell${where}.` : `This cell is ${withArticle(label.trim())}${where}.`;
  return isMissing(definition) ? text : `${text} ${sentence(definition)}`;
}

const isMissing = (value: string) => MISSING.has(value.trim().toLowerCase());

function withArticle(noun: string): string {
  const isSpelledOut = /^[FHLMNRSX][\p{Lu}\p{Nd}]/u.test(noun);
  const isVowel = isSpelledOut || (/^[aeiou]/i.test(noun) && !/^(uni|eu|one)/i.test(noun));
  return `${isVowel ? "an" : "a"} ${noun}`;
}

function sentence(text: string): string {
  const plain = text.trim();
  return /[.!?]$/.test(plain) ? plain : `${plain}.`;
}
