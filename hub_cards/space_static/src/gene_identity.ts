// Columns of a matrix to genes of the vocabulary (processing/gene_identity_scmmgpt.py).

import { UserError } from "./errors";
import type { Vocabulary } from "./gene_vocabulary";
import { ENSEMBL_ID, GENOME_PREFIX, HUMAN, recogniseSpecies, refuseOtherKingdoms, type SpeciesFound } from "./species";

export const NAME_COLUMNS = [
  "feature_name", "gene_symbols", "gene_symbol", "symbol", "gene_name", "gene_names", "gene_short_name", "feature_id",
  "gene_ids", "gene_id", "ensembl_id", "ensembl",
];
const MADE_UNIQUE = /[-.]\d{1,2}$/;
const MIN_MATCHED_GENES = 20, LEAST_KNOWN_SHARE = 0.01;

interface NamedGene {
  id: string;
  symbol: string;
  human: string;
  synonyms: string[];
}

/** The offline table of gene names: ids, symbols, synonyms, and the human gene that each stands for. */
export class GeneNames {
  readonly species: string[] = [];
  private lines: string[][] = [];

  constructor(table: string) {
    let place = 0;
    const next = () => {
      const end = table.indexOf("\n", place);
      const line = table.slice(place, end < 0 ? table.length : end);
      place = end < 0 ? table.length : end + 1;
      return line;
    };
    while (next().startsWith("# "));
    while (place < table.length) {
      const line = next(), species = line.slice(0, line.indexOf("\t"));
      if (this.species[this.species.length - 1] !== species && !this.species.includes(species)) {
        this.species.push(species);
        this.lines.push([]);
      }
      this.lines[this.species.indexOf(species)].push(line);
    }
  }

  genes(species: string): NamedGene[] {
    return (this.lines[this.species.indexOf(species)] ?? []).map((line) => {
      const [, id, symbol, human, synonyms] = line.split("\t");
      const own = species === HUMAN ? symbol : symbol.toUpperCase();
      return { id, symbol, human: human || own, synonyms: synonyms.split("|").filter(Boolean) };
    });
  }

  /** Of some names those that are symbols: the numbers of the species that have each. */
  speciesOf(names: Set<string>): Map<string, number[]> {
    const found = new Map<string, number[]>();
    this.lines.forEach((lines, number) => {
      const isHuman = this.species[number] === HUMAN;
      for (const line of lines) {
        const fields = line.split("\t");
        for (const symbol of isHuman ? [fields[2]] : [fields[2], fields[4]]) {
          if (!symbol || !names.has(symbol)) continue;
          const own = found.get(symbol);
          if (!own) found.set(symbol, [number]);
          else if (own[own.length - 1] !== number) own.push(number);
        }
      }
    });
    return found;
  }
}

/** Vocabulary row of each column, -1 for none. */
export interface GeneMatch {
  rows: Int32Array;
  species: string;
  severalSpecies: Map<string, number>;
  scheme: string;
  numMatched: number;
  numDistinct: number;
}

export class GeneIdentifier {
  private lookups = new Map<string, Map<string, number>>();

  constructor(private vocabulary: Vocabulary, private geneNames: GeneNames) {}

  match(columns: Map<string, string[]>, species: string | null = null): GeneMatch {
    const all = [...columns.values()];
    let found: SpeciesFound;
    if (species) {
      found = { species, names: new Map([[species, new Set()]]) };
    } else {
      refuseOtherKingdoms(all);
      const speciesOf = this.geneNames.speciesOf(new Set(all.flat()));
      found = recogniseSpecies(all, this.geneNames.species, (name) => speciesOf.get(name) ?? []);
    }
    if (!this.geneNames.species.includes(found.species)) {
      throw new UserError(
        `The genes are those of ${found.species}, for which there is no table of orthologs. Known species: ` +
          `${this.geneNames.species.join(", ")}. Map the genes to human Ensembl ids or symbols first.`,
      );
    }
    const matches = all.map((names) => this.matchNames(names, found));
    const known = matches.map((rows) => rows.reduce((number, row) => number + Number(row >= 0), 0));
    const order = matches.map((_, place) => place).sort((one, other) => known[other] - known[one]);
    const rows = matches[order[0]].slice();
    for (const place of order.slice(1)) {
      matches[place].forEach((row, gene) => {
        if (rows[gene] < 0) rows[gene] = row;
      });
    }
    const matched = rows.filter((row) => row >= 0);
    const match: GeneMatch = {
      rows,
      species: found.species,
      severalSpecies: found.names.size > 1 ? new Map([...found.names].map(([name, names]) => [name, names.size])) : new Map(),
      scheme: schemeOf(all[order[0]]),
      numMatched: matched.length,
      numDistinct: new Set(matched).size,
    };
    this.refuseTooFew(match, all[0]);
    return match;
  }

  private refuseTooFew(match: GeneMatch, names: string[]): void {
    const share = Math.min(Math.floor(LEAST_KNOWN_SHARE * names.length), Math.floor(this.vocabulary.genes.length / 2));
    const needed = Math.max(MIN_MATCHED_GENES, 1, share);
    if (match.numDistinct >= needed) return;
    throw new UserError(
      `${match.numDistinct ? `Only ${match.numDistinct}` : "None"} of the ${names.length} genes are in the vocabulary; at ` +
        `least ${needed} are needed. The names look like ${match.scheme}; the first are ${names.slice(0, 3).join(", ")}. ` +
        "The names of the genes should be symbols or Ensembl ids.",
    );
  }

  private matchNames(names: string[], found: SpeciesFound): Int32Array {
    const present = new Set(names), first = this.lookup(found.species);
    const lookupOf = new Map<string, Map<string, number>>();
    for (const [species, own] of found.names) {
      if (species === found.species || !this.geneNames.species.includes(species)) continue;
      for (const name of own) lookupOf.set(name, this.lookup(species));
    }
    return Int32Array.from(names, (name) => find(name, lookupOf.get(name) ?? first, present));
  }

  /** Every known name of the species' genes -> vocabulary row; the surer way to it wins. */
  private lookup(species: string): Map<string, number> {
    let lookup = this.lookups.get(species);
    if (lookup) return lookup;
    lookup = species === HUMAN ? new Map([...this.vocabulary.rowOf, ...this.vocabulary.rowOfId]) : new Map<string, number>();
    const setDefault = (name: string, row: number) => name && !lookup!.has(name) && lookup!.set(name, row);
    const humanId = new Map<string, string>();
    for (const gene of this.geneNames.genes(HUMAN)) if (!humanId.has(gene.symbol)) humanId.set(gene.symbol, gene.id);
    const genes = this.geneNames.genes(species).map((gene) => ({ gene, row: this.row(gene, species, humanId) }));
    const known = genes.filter(({ row }) => row >= 0);
    for (const { gene, row } of known) {
      setDefault(gene.id, row);
      setDefault(gene.symbol, row);
    }
    for (const { gene, row } of known) for (const synonym of gene.synonyms) setDefault(synonym, row);
    for (const [name, row] of [...lookup]) setDefault(name.toUpperCase(), row);
    this.lookups.set(species, lookup);
    return lookup;
  }

  private row(gene: NamedGene, species: string, humanId: Map<string, string>): number {
    const { rowOf, rowOfId } = this.vocabulary;
    const byName = rowOf.get(gene.human);
    if (byName !== undefined) return byName;
    const isHuman = species === HUMAN;
    for (const id of [isHuman ? gene.id : "", humanId.get(gene.human) ?? ""]) {
      const row = id ? rowOfId.get(id) : undefined;
      if (row !== undefined) return row;
    }
    const synonym = isHuman ? gene.synonyms.find((name) => rowOf.has(name)) : undefined;
    return synonym === undefined ? -1 : rowOf.get(synonym)!;
  }
}

function find(name: string, lookup: Map<string, number>, present: Set<string>): number {
  const own = lookup.get(name);
  if (own !== undefined) return own;
  const id = ENSEMBL_ID.exec(name)?.[0];
  if (id && lookup.has(id)) return lookup.get(id)!;
  const bare = name.replace(GENOME_PREFIX, ""), madeUnique = bare.replace(MADE_UNIQUE, ""), dashed = bare.replaceAll(".", "-");
  const spellings = [bare, bare.toUpperCase(), dashed, dashed.toUpperCase()];
  if (present.has(madeUnique)) spellings.push(madeUnique);
  for (const spelling of spellings) if (lookup.has(spelling)) return lookup.get(spelling)!;
  return -1;
}

function schemeOf(names: string[]): string {
  const share = names.filter((name) => ENSEMBL_ID.test(name)).length / Math.max(names.length, 1);
  if (share > 0.9) return "Ensembl ids";
  if (share > 0.1) return "Ensembl ids and symbols";
  return names.every((name) => /^\d+$/.test(name)) ? "row numbers" : "symbols";
}
