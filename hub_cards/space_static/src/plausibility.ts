// Cells that look like no cell: noise, or counts under wrong names (processing/plausibility_scmmgpt.py).

import type { Tokens } from "./gene_tokenizer";
import { FIRST_GENE_ID, type Vocabulary } from "./gene_vocabulary";
import { recoverCounts } from "./matrix_state";
import type { TypeProfiles } from "./type_profiles";

const MIN_GENES = 100, MIN_AGREEMENT = 0.15, STANDARD_ERRORS = 2, MIN_RESEMBLANCE = 0.06, CHANCE_ERRORS = 4.1, SATURATION = 0.5;
const MIN_CELLS = 100, NUM_HIGHEST = 100, NOISE_DISPERSION = 1.05, NOISE_SPREAD = 0.02;

export class Plausibility {
  private places: Int32Array;

  constructor(private vocabulary: Vocabulary, private profiles: TypeProfiles) {
    this.places = profiles.places(vocabulary.genes.length);
  }

  /** Which of some cells, not cut to their first genes, look like no cell. */
  implausible(tokens: Tokens): boolean[] {
    return Array.from(tokens.totals, (_, cell) => this.isSuspect(tokens, cell) && !this.resemblesAType(tokens, cell));
  }

  private isSuspect(tokens: Tokens, cell: number): boolean {
    const [from, to] = [tokens.bounds[cell], tokens.bounds[cell + 1]], numGenes = to - from;
    if (numGenes < MIN_GENES) return false;
    let sum = 0, otherSum = 0;
    for (let at = from; at < to; at++) {
      sum += tokens.values[at];
      otherSum += this.vocabulary.logMedians[tokens.ids[at] - FIRST_GENE_ID];
    }
    const mean = sum / numGenes, otherMean = otherSum / numGenes;
    let squares = 0, otherSquares = 0, shared = 0;
    for (let at = from; at < to; at++) {
      const one = tokens.values[at] - mean, other = this.vocabulary.logMedians[tokens.ids[at] - FIRST_GENE_ID] - otherMean;
      squares += one * one;
      otherSquares += other * other;
      shared += one * other;
    }
    const spread = Math.sqrt(squares * otherSquares), agreement = spread > 1e-9 ? shared / spread : 1;
    return agreement + STANDARD_ERRORS / Math.sqrt(numGenes) < MIN_AGREEMENT;
  }

  private resemblesAType(tokens: Tokens, cell: number): boolean {
    const [from, to] = [tokens.bounds[cell], tokens.bounds[cell + 1]], numGenes = to - from, numTypes = this.profiles.numTypes;
    const mean = tokens.values.subarray(from, to).reduce((sum, value) => sum + value, 0) / numGenes;
    const products = new Float64Array(numTypes), squares = new Float64Array(numTypes);
    let length = 0;
    for (let at = from; at < to; at++) {
      const height = tokens.values[at] - mean, gene = this.places[tokens.ids[at] - FIRST_GENE_ID];
      length += height * height;
      if (gene < 0) continue;
      for (let type = 0; type < numTypes; type++) {
        const difference = Math.tanh(this.profiles.difference(gene, type) / SATURATION);
        products[type] += height * difference;
        squares[type] += difference * difference;
      }
    }
    let best = -Infinity;
    for (let type = 0; type < numTypes; type++) best = Math.max(best, products[type] / Math.max(Math.sqrt(length * squares[type]), 1e-6));
    return best >= Math.max(MIN_RESEMBLANCE, CHANCE_ERRORS / Math.sqrt(numGenes));
  }
}

/** How much cells vary, see src/scmmgpt/cell_variation.py; null where it cannot be told. */
export interface Variation { dispersion: number | null; spread: number | null }

export const isNoise = (found: Variation, cameAsCounts: boolean, isScaled: boolean): boolean =>
  found.dispersion !== null ? cameAsCounts && found.dispersion < NOISE_DISPERSION : found.spread !== null && !isScaled && found.spread < NOISE_SPREAD;

export function variation(tokens: Tokens): Variation {
  const linear = Float64Array.from(tokens.values, Math.expm1), { counts, found } = recoverCounts(tokens.bounds, linear);
  const filled = found.flatMap((_, cell) => (tokens.bounds[cell + 1] > tokens.bounds[cell] ? [cell] : []));
  const countable = filled.filter((cell) => found[cell]);
  if (countable.length >= MIN_CELLS) return { dispersion: dispersion(tokens, counts, countable), spread: null };
  return { dispersion: null, spread: filled.length >= MIN_CELLS ? spread(tokens, linear, filled) : null };
}

/** Variance of the highest genes' counts beside that of chance alone, which is 1. */
function dispersion(tokens: Tokens, counts: Float64Array, cells: number[]): number {
  const { sums, squares, all } = summed(tokens, counts, cells, (count) => count, (count, total) => count ** 2 / Math.max(total, 1));
  return median(highest(sums).map((gene) => (squares.get(gene)! * all) / sums.get(gene)! - sums.get(gene)!)) / cells.length;
}

/** Variance of the highest genes' shares beside the square of their mean. */
function spread(tokens: Tokens, values: Float64Array, cells: number[]): number {
  const { sums, squares } = summed(tokens, values, cells, (value, total) => value / total, (value, total) => (value / total) ** 2);
  return median(highest(sums).map((gene) => (cells.length * squares.get(gene)!) / sums.get(gene)! ** 2 - 1));
}

type OfValue = (value: number, total: number) => number;

function summed(tokens: Tokens, values: Float64Array, cells: number[], first: OfValue, second: OfValue) {
  const sums = new Map<number, number>(), squares = new Map<number, number>();
  let all = 0;
  for (const cell of cells) {
    const [from, to] = [tokens.bounds[cell], tokens.bounds[cell + 1]];
    const total = values.subarray(from, to).reduce((sum, value) => sum + value, 0);
    all += total;
    for (let at = from; at < to; at++) {
      sums.set(tokens.ids[at], (sums.get(tokens.ids[at]) ?? 0) + first(values[at], total));
      squares.set(tokens.ids[at], (squares.get(tokens.ids[at]) ?? 0) + second(values[at], total));
    }
  }
  return { sums, squares, all };
}

const highest = (sums: Map<number, number>): number[] => [...sums.keys()].sort((one, other) => sums.get(other)! - sums.get(one)!).slice(0, NUM_HIGHEST);

function median(values: number[]): number {
  const sorted = values.sort((one, other) => one - other);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}
