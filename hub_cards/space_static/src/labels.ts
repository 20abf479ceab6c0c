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
export function readLabels(asked: string[], ontology: Ontology, given: Record<string, string> = {}): LabelSet {
  if (!asked.length) throw new UserError("No labels were given: write at least one.");
  const repeated = asked.find((name, place) => asked.indexOf(name) < place);
  if (repeated !== undefined) throw new UserError(`The label “${repeated}” is given twice.`);
  const strange = asked.find((name) => isUnknownId(name, ontology));
  if (strange !== undefined) throw new UserError(`${strange} is no term of the Cell Ontology ${ontology.version}: write an id of it, or a name.`);
  const names = asked.filter((name) => !isUnknown(name)), leftOut = asked.filter(isUnknown);
  if (!names.length) throw new UserError(`No label but “${asked[0]}” was given, which names cells without a call: write a type.`);
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
    notes: [...leftOut.map(leftOutNote), ...(read.length ? [`read as types of the Cell Ontology: ${read.slice(0, 20).join(", ")}`] : []), ...notes.slice(0, 20)],
  };
}

/** Whether a label is the name of cells without a call, which no cell can be called. */
const isUnknown = (label: string) => label.trim().toLowerCase() === UNKNOWN;
const leftOutNote = (label: string) => `“${label}” was left out of the labels: it names cells without a call`;

/** Whether a label looks like the id of a term that the ontology does not have. */
function isUnknownId(label: string, ontology: Ontology): boolean {
  return /^(CL:\d+|[A-Z]+:\d{7,8})$/i.test(label.trim()) && ontology.terms.size > 0 && !ontology.find(label.toUpperCase());
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
