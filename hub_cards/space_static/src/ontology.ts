// The Cell Ontology: find a term, walk to its ancestors, suggest the nearest name (processing/ontology_scmmgpt.py).

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

  constructor(table: Table) {
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

  /** The label that shares most pairs of letters with a name, if it shares most of them. */
  suggest(name: string): string | null {
    const wanted = pairsOf(plainName(name));
    let best: string | null = null, most = 0.75;
    for (const [plain, label] of this.labelOfName) {
      const own = pairsOf(plain);
      let shared = 0;
      for (const pair of wanted) if (own.has(pair)) shared++;
      const likeness = (2 * shared) / (wanted.size + own.size);
      if (likeness > most) [best, most] = [label, likeness];
    }
    return best;
  }
}

const pairsOf = (name: string) => new Set(Array.from({ length: Math.max(name.length - 1, 0) }, (_, at) => name.slice(at, at + 2)));
