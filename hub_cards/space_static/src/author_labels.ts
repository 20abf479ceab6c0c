// What authors call cell types, read as terms of the ontology (processing/author_labels_scmmgpt.py).

import { type Ontology, plainName, type Term, UNINFORMATIVE_TERMS } from "./ontology";

/** The words of processing/author_words_scmmgpt.py, which come with the page. */
export interface AuthorWords {
  abbreviations: Record<string, string>;
  alone: Record<string, string>;
  same_words: Record<string, string>;
  t_cell_states: [signs: string[], name: string][];
  tissues: { places: string[]; signs: string[]; names: Record<string, string> }[];
  generic: string[];
  unassigned: string[];
  denial: string;
  between_types: string;
}

export interface NamedTerm {
  term: Term | null;
  how: "name" | "synonym" | "abbreviation" | "part" | "no type" | "not found";
}

type Short = ReadonlyMap<string, string>;

/** The term that each label of one study names: labels say of each other which tissue they are from. */
export function namedTerms(labels: string[], ontology: Ontology): NamedTerm[] {
  const ofTissue = shortWords(labels.flatMap((label) => wordsOf(label, ontology.words)), ontology.words);
  return labels.map((label) => byName(label, ontology, ofTissue));
}

/** What short words mean in the tissue that these words are about. */
function shortWords(words: string[], known: AuthorWords): Short {
  const said = new Set(words), short = new Map<string, string>();
  for (const { places, signs, names } of known.tissues) {
    if (!places.some((place) => said.has(place)) && signs.filter((sign) => said.has(sign)).length < 2) continue;
    for (const [word, name] of Object.entries(names)) short.set(word, name);
  }
  return short;
}

function byName(label: string, ontology: Ontology, ofTissue: Short): NamedTerm {
  const known = ontology.words, words = wordsOf(label, known), own = ownTerm(label, ontology);
  const isName = own && (label.trim() === own.id || plainName(label) === plainName(own.label));
  if (isName && !UNINFORMATIVE_TERMS.has(own.id)) return { term: own, how: "name" };
  const isNoType = !words.length || words.some((word) => known.unassigned.includes(word)) || denies(label, known);
  if (isNoType) return { term: null, how: "no type" };
  if (!ofTissue.has(squeezed(plainName(label)))) {
    if (isGeneric(words, known)) return { term: null, how: "no type" };
    if (own) return { term: own, how: "synonym" };
  }
  if (words.length > LONGEST_NAME) return { term: null, how: "not found" }; // a description, which may be as long as it likes
  const short: Short = new Map([...Object.entries(known.abbreviations), ...(ofTissue.size ? ofTissue : Object.entries(known.alone))]);
  const whole = byWhole(label, words, short, ontology);
  if (whole) return { term: whole, how: "abbreviation" };
  if (namesSeveral(label, ontology, ofTissue)) return { term: null, how: "not found" };
  for (const phrase of phrases(words, known)) {
    const term = byPart(phrase, short, ontology);
    if (term) return { term, how: "part" };
  }
  return { term: null, how: "not found" };
}

/** Whether a label says what cells are not. */
const denies = (label: string, known: AuthorWords) => new RegExp(known.denial).test(plainName(label.replace(/[_./|:]/g, " ")));

/** Whether the sides of a slash or an "and" are types of which neither is above the other. */
function namesSeveral(label: string, ontology: Ontology, ofTissue: Short): boolean {
  const sides = label.split(new RegExp(ontology.words.between_types)), last = sides.pop()!;
  if (!sides.length) return false;
  const noun = last.match(/[\p{L}\p{N}_]+(?:[^\p{L}\p{N}_]+cells?)?$/iu)?.[0];
  const found = [byName(last, ontology, ofTissue).term, ...sides.map((side) => {
    const writtenOut = byName(noun === undefined ? side : `${side} ${noun}`, ontology, ofTissue);
    const isWhole = ["name", "synonym", "abbreviation"].includes(writtenOut.how);
    return (isWhole ? writtenOut : byName(side, ontology, ofTissue)).term;
  })].flatMap((term) => term?.id ?? []);
  return found.some((one) => found.some((other) => !areKin(one, other, ontology)));
}

/** Whether of two types one is the other, or above it. */
function areKin(one: string, other: string, ontology: Ontology): boolean {
  return one === other || ontology.ancestors(other).includes(one) || ontology.ancestors(one).includes(other);
}

const LONGEST_NAME = 12, LONGEST_TEXT = 100; // words
const BETWEEN_NAMES = new Set("a an and at by for from in not of on or the to with without".split(" "));

/** A text with its longest name or abbreviation of a type written as the ontology's label. */
export function inNamesOfTypes(text: string, ontology: Ontology): string {
  const pieces = text.match(/[^\s,;.()]+|[,;.()]|\s+/g) ?? [];
  const words = pieces.flatMap((piece, place) => (/[\p{L}\p{N}_]/u.test(piece) ? [place] : [])).slice(0, LONGEST_TEXT);
  const ofTissue = shortWords(wordsOf(text, ontology.words), ontology.words);
  for (let length = Math.min(LONGEST_NAME, words.length); length > 0; length--) {
    for (const read of [ownTerm, (phrase: string) => abbreviated(phrase, ontology, ofTissue)]) {
      for (let first = 0; first + length <= words.length; first++) {
        const start = words[first]!, end = words[first + length - 1]! + 1;
        const term = read(pieces.slice(start, end).join(""), ontology);
        if (term && !UNINFORMATIVE_TERMS.has(term.id)) return [...pieces.slice(0, start), term.label, ...pieces.slice(end)].join("");
      }
    }
  }
  return text;
}

/** A single letter is no type by itself in the middle of a text, and no abbreviation holds a preposition. */
function abbreviated(phrase: string, ontology: Ontology, ofTissue: Short): Term | null {
  const holdsPreposition = phrase.toLowerCase().split(/\s+/).some((word) => BETWEEN_NAMES.has(word));
  if (squeezed(plainName(phrase)).length < 2 || holdsPreposition) return null;
  const known = ontology.words, words = wordsOf(phrase, known);
  if (!words.length || words.some((word) => known.unassigned.includes(word)) || isGeneric(words, known)) return null;
  return byWhole(phrase, words, new Map([...Object.entries(known.abbreviations), ...ofTissue]), ontology);
}

/** An abbreviation goes before the synonym of a cell of one species ("... (Mmus)"). */
function ownTerm(name: string, ontology: Ontology): Term | null {
  const term = ontology.find(name), isRare = term?.label.endsWith(")") && plainName(name) !== plainName(term.label);
  return isRare && inShort(plainName(name), new Map(Object.entries(ontology.words.abbreviations))) ? null : term;
}

/** The term that all words of a label name together. */
function byWhole(label: string, words: string[], short: Short, ontology: Ontology): Term | null {
  const said = words.join(" "), writtenOut = words.map((word) => plainName(short.get(word) ?? word)).join(" ");
  for (const phrase of [plainName(label), said, writtenOut]) {
    const name = inShort(phrase, short);
    if (name !== undefined) return ontology.find(name);
  }
  const state = stateOfTCell(words, ontology.words);
  if (state !== null) return ontology.find(state);
  for (const phrase of [said, writtenOut]) {
    const term = phrase.length > 3 ? (ontology.find(phrase) ?? ontology.find(`${phrase} cell`)) : null;
    if (term) return term;
  }
  return new Set(words).size === words.length ? ontology.ofWords(writtenOut) : null;
}

/** Synonyms of two or three letters are those of other cells. */
function byPart(phrase: string, short: Short, ontology: Ontology): Term | null {
  const name = inShort(phrase, short);
  if (name !== undefined && !(phrase in ontology.words.alone)) return ontology.find(name);
  const names = phrase.length > 3 ? [phrase, `${phrase} cell`] : phrase.length > 1 ? [`${phrase} cell`] : [];
  return names.map((one) => ontology.find(one)).find((term) => term !== null) ?? null;
}

function stateOfTCell(words: string[], known: AuthorWords): string | null {
  const said = new Set(words.filter((_, at) => words[at - 1] !== "non"));
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
    .replace(/(?<=\d)-(?=CD\d+[+-])/g, "- ")
    .replace(/[_./|:]/g, " ");
  const words = plainName(spaced).split(" ").filter(Boolean).map((word) => word.replace(/(?<=[a-z]{3})\d+$/, ""));
  const kept = words.filter((word, at) => word !== "negative" && words[at + 1] !== "negative");
  const named = kept.filter((word) => !/^\d+$/.test(word) && word !== "cluster" && word !== "like");
  return named.map((word) => known.same_words[word] ?? word);
}

// A part of a label of more words than this names the whole only if it has its share of them.
const WORDS_OF_A_SENTENCE = 6, LEAST_SHARE = 1 / 3;
const BEFORE_A_PLACE = ["at", "from", "in", "of", "with"];

/**
 * Runs of words, those that end last first, for the noun stands last; among these the longest first. No run begins with what
 * "non" denies, and in a sentence none is short.
 */
function* phrases(words: string[], known: AuthorWords): Generator<string> {
  const place = words.findIndex((word) => BEFORE_A_PLACE.includes(word)), numWords = place < 0 ? words.length : place;
  const shortest = numWords > WORDS_OF_A_SENTENCE ? numWords * LEAST_SHARE : 1;
  for (let end = words.length; end > 0; end--) {
    for (let start = 0; start < end; start++) {
      const run = words.slice(start, end);
      const isDenied = words[start - 1] === "non";
      if (!isDenied && run.length >= shortest && !isGeneric(run, known)) yield run.join(" ");
    }
  }
}

const isGeneric = (words: string[], known: AuthorWords) => words.every((word) => known.generic.includes(word));
const inShort = (phrase: string, short: Short) => short.get(squeezed(phrase)) ?? short.get(phrase.replaceAll(" ", ""));
const squeezed = (name: string) => name.replace(/ cell$/, "").replaceAll(" ", "");
