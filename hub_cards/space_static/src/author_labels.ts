// What authors call cell types, read as terms of the ontology (processing/author_labels_scmmgpt.py).

import { type Ontology, plainName, type Term } from "./ontology";

/** The words of processing/author_words_scmmgpt.py, which come with the page. */
export interface AuthorWords {
  abbreviations: Record<string, string>;
  same_words: Record<string, string>;
  t_cell_states: [signs: string[], name: string][];
  tissues: { signs: string[]; names: Record<string, string> }[];
  generic: string[];
  unassigned: string[];
}

export interface NamedTerm {
  term: Term | null;
  how: "name" | "synonym" | "abbreviation" | "part" | "no type" | "not found";
}

type Short = ReadonlyMap<string, string>;

/** The term that each label of one study names: labels say of each other which tissue they are from. */
export function namedTerms(labels: string[], ontology: Ontology): NamedTerm[] {
  const words = new Set(labels.flatMap((label) => wordsOf(label, ontology.words)));
  const ofTissue = new Map<string, string>();
  for (const tissue of ontology.words.tissues) {
    if (tissue.signs.filter((sign) => words.has(sign)).length < 2) continue;
    for (const [word, name] of Object.entries(tissue.names)) ofTissue.set(word, name);
  }
  return labels.map((label) => byName(label, ontology, ofTissue));
}

function byName(label: string, ontology: Ontology, ofTissue: Short): NamedTerm {
  const known = ontology.words, words = wordsOf(label, known);
  if (!words.length || words.some((word) => known.unassigned.includes(word))) return { term: null, how: "no type" };
  const isOfTissue = ofTissue.has(squeezed(plainName(label)));
  if (isGeneric(words, known) && !isOfTissue) return { term: null, how: "no type" };
  const own = isOfTissue ? null : ontology.find(label);
  if (own) return { term: own, how: label.trim() === own.id || plainName(label) === plainName(own.label) ? "name" : "synonym" };
  const short: Short = new Map([...Object.entries(known.abbreviations), ...ofTissue]);
  const whole = byWhole(label, words, short, ontology);
  if (whole) return { term: whole, how: "abbreviation" };
  for (const phrase of phrases(words, known)) {
    const term = byPart(phrase, short, ontology);
    if (term) return { term, how: "part" };
  }
  return { term: null, how: "not found" };
}

/** The term that all words of a label name together. */
function byWhole(label: string, words: string[], short: Short, ontology: Ontology): Term | null {
  const said = words.join(" "), writtenOut = words.map((word) => plainName(short.get(word) ?? word)).join(" ");
  for (const phrase of [plainName(label), said, writtenOut]) {
    const name = short.get(squeezed(phrase));
    if (name !== undefined) return ontology.find(name);
  }
  const state = stateOfTCell(words, ontology.words);
  if (state !== null) return ontology.find(state);
  for (const phrase of [said, writtenOut]) {
    const term = phrase.length > 3 ? (ontology.find(phrase) ?? ontology.find(`${phrase} cell`)) : null;
    if (term) return term;
  }
  return ontology.ofWords(writtenOut);
}

/** Synonyms of two or three letters are those of other cells. */
function byPart(phrase: string, short: Short, ontology: Ontology): Term | null {
  const name = short.get(squeezed(phrase));
  if (name !== undefined) return ontology.find(name);
  const names = phrase.length > 3 ? [phrase, `${phrase} cell`] : phrase.length > 1 ? [`${phrase} cell`] : [];
  return names.map((one) => ontology.find(one)).find((term) => term !== null) ?? null;
}

function stateOfTCell(words: string[], known: AuthorWords): string | null {
  const said = new Set(words);
  const lineages = ["4", "8"].filter((number) => said.has(`cd${number}`));
  if (lineages.length !== 1 || ["nk", "nkt", "monocyte", "dc"].some((other) => said.has(other))) return null;
  if (said.has("effector") && said.delete("memory")) said.add("tem");
  const state = known.t_cell_states.find(([signs]) => signs.some((sign) => said.has(sign)));
  return state?.[1].replace("{}", lineages[0]!) ?? null;
}

/** Words of a label, without cluster numbers, marker genes ("Stromal cell Acta2 high") and camel case. */
function wordsOf(label: string, known: AuthorWords): string[] {
  const spaced = label
    .replace(/\b[A-Za-z0-9]+ (high|low|hi|lo)\b/g, " ")
    .replace(/(?<=[a-z]{3})(?=[A-Z][a-z]{2})/g, " ")
    .replace(/[_./|:]/g, " ");
  const words = plainName(spaced).split(" ").filter(Boolean).map((word) => word.replace(/(?<=[a-z]{3})\d+$/, ""));
  const kept = words.filter((word, at) => word !== "negative" && words[at + 1] !== "negative");
  const named = kept.filter((word) => !/^\d+$/.test(word) && word !== "cluster" && word !== "like");
  return named.map((word) => known.same_words[word] ?? word);
}

/** Runs of words, those that end last first, for the noun stands last; among these the longest first. */
function* phrases(words: string[], known: AuthorWords): Generator<string> {
  for (let end = words.length; end > 0; end--) {
    for (let start = 0; start < end; start++) {
      const run = words.slice(start, end);
      if (!isGeneric(run, known)) yield run.join(" ");
    }
  }
}

const isGeneric = (words: string[], known: AuthorWords) => words.every((word) => known.generic.includes(word));
const squeezed = (name: string) => name.replace(/ cell$/, "").replaceAll(" ", "");
