// Cells that look like no cell: noise, or counts under wrong names (processing/plausibility_scmmgpt.py).

import type { Tokens } from "./gene_tokenizer";
import { FIRST_GENE_ID, type Vocabulary } from "./gene_vocabulary";
import { recoverCounts } from "./matrix_state";
import type { TypeProfiles } from "./type_profiles";

const MIN_GENES = 100, MIN_AGREEMENT = 0.15, STANDARD_ERRORS = 2, MIN_RESEMBLANCE = 0.06, CHANCE_ERRORS = 4.1, SATURATION = 0.5;
const MIN_CELLS_FOR_DISPERSION = 100, GENES_FOR_DISPERSION = 100;
export const NOISE_DISPERSION = 1.05;

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

/** Variance of the highest genes' counts beside that of chance alone, which is 1; null where it cannot be told. */
export function dispersion(tokens: Tokens): number | null {
  const linear = Float64Array.from(tokens.values, Math.expm1), { counts, found } = recoverCounts(tokens.bounds, linear);
  const usable = found.flatMap((is, cell) => (is && tokens.bounds[cell + 1] > tokens.bounds[cell] ? [cell] : []));
  if (usable.length < MIN_CELLS_FOR_DISPERSION) return null;
  const sums = new Map<number, number>(), squares = new Map<number, number>();
  let all = 0;
  for (const cell of usable) {
    const [from, to] = [tokens.bounds[cell], tokens.bounds[cell + 1]];
    const total = counts.subarray(from, to).reduce((sum, count) => sum + count, 0);
    all += total;
    for (let at = from; at < to; at++) {
      sums.set(tokens.ids[at], (sums.get(tokens.ids[at]) ?? 0) + counts[at]);
      squares.set(tokens.ids[at], (squares.get(tokens.ids[at]) ?? 0) + counts[at] ** 2 / Math.max(total, 1));
    }
  }
  const highest = [...sums.keys()].sort((one, other) => sums.get(other)! - sums.get(one)!).slice(0, GENES_FOR_DISPERSION);
  const ratios = highest.map((gene) => (squares.get(gene)! * all) / sums.get(gene)! - sums.get(gene)!).sort((a, b) => a - b);
  return (ratios[(ratios.length - 1) >> 1] + ratios[ratios.length >> 1]) / 2 / usable.length;
}
