// The Cell Ontology: find a term, walk to its ancestors, suggest the nearest name (processing/ontology_scmmgpt.py).

import type { AuthorWords } from "./author_labels";

export const UNINFORMATIVE_TERMS = new Set([
  "CL:0000000", "CL:0000003", "CL:0000211", "CL:0000219", "CL:0000225", "CL:0000226", "CL:0000255", "CL:0000325",
  "CL:0000393", "CL:0000404", "CL:0000548", "CL:0002242", "CL:0002371",
]);

export interface Term {
  id: string;
  label: string;
  definition: string;
  parents: string[];
}

interface Table {
  version?: string;
  replaced?: Record<string, string>;
  terms: Record<string, { label: string; definition?: string; synonyms?: string[]; parents?: string[] }>;
}

/** A name without the spellings that do not matter: case, punctuation, plural. */
export function plainName(name: string): string {
  const signs = name.toLowerCase().replaceAll("+", " positive ").replace(/(?<=\d)-(?=[^\p{L}\p{N}_]|$)/gu, " negative ");
  const words = signs.replace(/[^a-z0-9]+/g, " ").split(" ").filter(Boolean);
  return words.map((word) => (word.length > 3 && word.endsWith("s") && word.at(-2) !== "s" ? word.slice(0, -1) : word)).join(" ");
}

export class Ontology {
  readonly terms = new Map<string, Term>();
  readonly version: string;
  private replaced: Record<string, string>;
  private termOfName = new Map<string, string>();
  private labelOfName = new Map<string, string>();
  private ancestorsOf = new Map<string, string[]>();
  private termOfWords: Map<string, string> | null = null;

  constructor(table: Table, readonly words: AuthorWords) {
    this.version = table.version ?? "";
    this.replaced = table.replaced ?? {};
    const ambiguous = new Set<string>();
    for (const [id, { label, definition, synonyms, parents }] of Object.entries(table.terms)) {
      this.terms.set(id, { id, label, definition: definition ?? "", parents: parents ?? [] });
      for (const synonym of (synonyms ?? []).map(plainName)) {
        if (!this.termOfName.has(synonym)) this.termOfName.set(synonym, id);
        if (this.termOfName.get(synonym) !== id) ambiguous.add(synonym);
      }
    }
    for (const name of ambiguous) this.termOfName.delete(name);
    for (const { id, label } of this.terms.values()) {
      this.termOfName.set(plainName(label), id);
      this.labelOfName.set(plainName(label), label);
    }
  }

  find(name: string): Term | null {
    const id = this.replaced[name.trim()] ?? name.trim();
    return this.terms.get(id) ?? this.terms.get(this.termOfName.get(plainName(name)) ?? "") ?? null;
  }

  /** Ids above a term, nearest first, without the term itself. */
  ancestors(id: string): string[] {
    const known = this.ancestorsOf.get(id);
    if (known) return known;
    const found = new Set<string>();
    let level = this.parents([id]);
    while (level.length) {
      level = level.filter((parent) => !found.has(parent));
      for (const parent of level) found.add(parent);
      level = this.parents(level);
    }
    this.ancestorsOf.set(id, [...found]);
    return [...found];
  }

  private parents(ids: string[]): string[] {
    return [...new Set(ids.flatMap((id) => this.terms.get(id)?.parents ?? []))];
  }

  /** The term whose name has the same words in another order. */
  ofWords(name: string): Term | null {
    this.termOfWords ??= this.allWords();
    return this.terms.get(this.termOfWords.get(wordsKey(plainName(name))) ?? "") ?? null;
  }

  private allWords(): Map<string, string> {
    const found = new Map<string, Set<string>>();
    for (const [name, id] of this.termOfName) {
      const key = wordsKey(name);
      if (key.includes(" ")) found.set(key, (found.get(key) ?? new Set()).add(id));
    }
    return new Map([...found].filter(([, ids]) => ids.size === 1).map(([key, ids]) => [key, [...ids][0]!]));
  }

  /**
   * The shortest label that says all words of a name; else the one that shares most pairs of letters with it, if it shares
   * most of them. The numbers of a name mean something: CD4 is no misspelt CD25.
   */
  suggest(name: string): string | null {
    const plainWords = plainName(name), words = new Set(plainWords.split(" "));
    const saying = words.size > 1 ? [...this.labelOfName.keys()].filter((plain) => hasAll(plain, words)) : [];
    if (saying.length) return this.labelOfName.get(saying.sort((one, other) => one.length - other.length || (one < other ? -1 : 1))[0]!)!;
    const wanted = pairsOf(plainWords), numbers = numbersOf(name);
    let best: string | null = null, most = 0.75;
    for (const [plain, label] of this.labelOfName) {
      if (numbersOf(plain) !== numbers) continue;
      const own = pairsOf(plain);
      let shared = 0;
      for (const pair of wanted) if (own.has(pair)) shared++;
      const likeness = (2 * shared) / (wanted.size + own.size);
      if (likeness > most) [best, most] = [label, likeness];
    }
    return best;
  }
}

const hasAll = (name: string, words: Set<string>) => [...words].every((word) => name.split(" ").includes(word));
const numbersOf = (name: string) => (name.match(/[0-9]+/g) ?? []).join(" ");
const wordsKey = (name: string) => [...new Set(name.split(" "))].filter((word) => word && word !== "cell").sort().join(" ");
const pairsOf = (name: string) => new Set(Array.from({ length: Math.max(name.length - 1, 0) }, (_, at) => name.slice(at, at + 2)));
