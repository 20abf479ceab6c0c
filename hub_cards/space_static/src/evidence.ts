// The genes that speak for a call against its runner-up, and whether they speak for any call at all (src/scmmgpt/evidence.py).

import type { Calls } from "./back_off";
import type { Tokens } from "./gene_tokenizer";
import { FIRST_GENE_ID, type Vocabulary } from "./gene_vocabulary";
import { UNKNOWN } from "./labels";
import type { Ontology } from "./ontology";
import type { TypeProfiles } from "./type_profiles";

const NUM_GENES = 6, NUM_SHUFFLES = 20;
// Calls of fewer cells than this share say nearly nothing of the study's mean, and cost as much as others.
const LEAST_SHARE = 0.02;
const MOST_CELLS = 4_000;

/** Tokens of some cells, spread over the study, for means of genes. */
export class TokenSample {
  private cells: { cell: number; ids: Uint16Array; values: Float32Array }[] = [];

  constructor(private numCells: number) {}

  add(firstCell: number, tokens: Tokens): void {
    const share = Math.min(1, MOST_CELLS / this.numCells);
    for (let place = 0; place < tokens.totals.length; place++) {
      const cell = firstCell + place;
      if (Math.floor((cell + 1) * share) === Math.floor(cell * share)) continue;
      const [from, to] = [tokens.bounds[place], tokens.bounds[place + 1]];
      const ids = Uint16Array.from(tokens.ids.subarray(from, to), (id) => id - FIRST_GENE_ID);
      this.cells.push({ cell, ids, values: tokens.values.slice(from, to) });
    }
  }

  /** Sums of the values of each gene over the cells of each group, and how many cells those are. */
  sums(groupOf: (cell: number) => number, numGroups: number, numGenes: number): GroupSums {
    const sums = Array.from({ length: numGroups }, () => new Float64Array(numGenes)), numCells = new Float64Array(numGroups);
    for (const { cell, ids, values } of this.cells) {
      const group = groupOf(cell);
      if (group < 0) continue;
      numCells[group]++;
      for (let at = 0; at < ids.length; at++) sums[group][ids[at]] += values[at];
    }
    return { sums, numCells };
  }
}

interface GroupSums {
  sums: Float64Array[];
  numCells: Float64Array;
}

export interface SpeakingGenes {
  cellType: string;
  against: string;
  genes: string[];
}

export interface StudyEvidence {
  table: SpeakingGenes[];
  /** How much better the genes agree with types than under shuffled names, in standard deviations. */
  support(): number;
}

export function evidenceOf(
  sample: TokenSample, calls: Calls, vocabulary: Vocabulary, profiles: TypeProfiles, ontology: Ontology,
): StudyEvidence {
  const names = [...new Set(calls.labels)].sort(), placeOf = new Map(names.map((name, place) => [name, place]));
  const groups = sample.sums((cell) => placeOf.get(calls.labels[cell])!, names.length, vocabulary.genes.length);
  const table = names.flatMap((cellType, group) => {
    const against = cellType === UNKNOWN ? null : runnerUp(calls, cellType);
    return against === null ? [] : [{ cellType, against, genes: speaking(groups, group, cellType, against, vocabulary, profiles, ontology) }];
  });
  const numCalled = names.map((name) => calls.labels.filter((label) => label === name).length);
  return { table, support: () => supportOf(groups, names, numCalled, profiles) };
}

function runnerUp(calls: Calls, name: string): string | null {
  const times = new Map<string, number>();
  calls.second.forEach((second, cell) => {
    if (calls.labels[cell] === name && second !== name) times.set(second, (times.get(second) ?? 0) + 1);
  });
  return [...times].sort(([one], [other]) => (one < other ? -1 : 1)).reduce<[string, number] | null>((most, one) => (!most || one[1] > most[1] ? one : most), null)?.[0] ?? null;
}

/** Genes by how much they are raised in the group, times how much higher the one type has them than the other. */
export function speaking(
  groups: GroupSums, group: number, name: string, against: string, vocabulary: Vocabulary, profiles: TypeProfiles, ontology: Ontology,
): string[] {
  const called = profileOf(name, profiles, ontology), other = profileOf(against, profiles, ontology);
  if (!called || !other) return [];
  const all = groups.numCells.reduce((sum, number) => sum + number, 0), isOnly = groups.numCells.length === 1;
  const speaks = Array.from(profiles.geneRows, (row, gene) => {
    const mean = groups.sums[group][row] / Math.max(groups.numCells[group], 1);
    const elsewhere = groups.sums.reduce((sum, own) => sum + own[row], 0) / Math.max(all, 1);
    return (isOnly ? mean : Math.max(mean - elsewhere, 0)) * (called[gene] - other[gene]);
  });
  const best = Array.from(speaks.keys()).sort((one, two) => speaks[two] - speaks[one]).slice(0, NUM_GENES);
  return best.filter((gene) => speaks[gene] > 0).map((gene) => vocabulary.genes[profiles.geneRows[gene]]);
}

/** The profile of a type, else the mean of those below it. */
function profileOf(name: string, profiles: TypeProfiles, ontology: Ontology): Float64Array | null {
  const term = ontology.find(name);
  if (!term) return null;
  const own = profiles.termIds.flatMap((id, place) => (id === term.id ? [place] : []));
  const below = profiles.termIds.flatMap((id, place) => (ontology.ancestors(id).includes(term.id) ? [place] : []));
  const types = own.length ? own : below;
  if (!types.length) return null;
  return Float64Array.from(profiles.geneRows, (_, gene) => types.reduce((sum, type) => sum + profiles.difference(gene, type), 0) / types.length);
}

function supportOf(groups: GroupSums, names: string[], numCalled: number[], profiles: TypeProfiles): number {
  const ofTypes = names.flatMap((name, group) => (name === UNKNOWN ? [] : [group]));
  if (ofTypes.length < 2) return Infinity;
  const most = Math.max(...ofTypes.map((group) => numCalled[group]));
  const called = ofTypes.filter((group) => numCalled[group] >= LEAST_SHARE * most);
  const rows = Int32Array.from(profiles.geneRows.keys()).filter((gene) => groups.sums.some((own) => own[profiles.geneRows[gene]] > 0));
  const all = Math.max(groups.numCells.reduce((sum, number) => sum + number, 0), 1);
  const differences = called.map((group) =>
    Float32Array.from(rows, (gene) => {
      const row = profiles.geneRows[gene], overall = groups.sums.reduce((sum, own) => sum + own[row], 0) / all;
      return groups.sums[group][row] / Math.max(groups.numCells[group], 1) - overall;
    }),
  );
  const norms = profiles.norms(new Set(Array.from(rows, (gene) => profiles.geneRows[gene])));
  const best = bestAgreement(differences, rows, norms, profiles);
  const random = randomNumbers(0), byChance = Array.from({ length: NUM_SHUFFLES }, () => {
    const order = shuffled(rows.length, random);
    return bestAgreement(differences.map((own) => Float32Array.from(order, (place) => own[place])), rows, norms, profiles);
  });
  const deviations = called.map((_, group) => {
    const values = byChance.map((one) => one[group]), mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const spread = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
    return (best[group] - mean) / Math.max(spread, 1e-9);
  });
  const weights = called.map((group) => numCalled[group]), total = weights.reduce((sum, weight) => sum + weight, 0);
  return deviations.reduce((sum, deviation, group) => sum + deviation * weights[group], 0) / total;
}

/** The best type's agreement with the differences of each group. */
function bestAgreement(differences: Float32Array[], genes: Int32Array, norms: Float64Array, profiles: TypeProfiles): number[] {
  return differences.map((own) => profiles.weighted(genes, own).reduce((most, sum, type) => Math.max(most, sum / norms[type]), -Infinity));
}

/** The same numbers from 0 to 1 for the same seed (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

export function shuffled(size: number, random: () => number): Int32Array {
  const order = Int32Array.from({ length: size }, (_, place) => place);
  for (let place = size - 1; place > 0; place--) {
    const other = Math.floor(random() * (place + 1));
    [order[place], order[other]] = [order[other], order[place]];
  }
  return order;
}
