// How each known type expresses its genes, compared with the other types (processing/type_profiles_scmmgpt.py).

import type { Tokens } from "./gene_tokenizer";
import { FIRST_GENE_ID } from "./gene_vocabulary";
import { RowSums } from "./linear_algebra";
import type { Ontology } from "./ontology";
import { safetensors } from "./packed_files";

const STEP = 0.2, SHORT = 5;

export class TypeProfiles {
  readonly termIds: string[];
  readonly geneRows: Int32Array;
  /** (genes, types) in whole steps. */
  private steps: Int8Array;
  private rowSums: RowSums | null = null;

  constructor(bytes: ArrayBuffer) {
    const arrays = safetensors(bytes);
    this.termIds = Array.from(arrays.get("terms")!.values, (number) => `CL:${String(number).padStart(7, "0")}`);
    this.geneRows = arrays.get("gene_rows")!.values as Int32Array;
    this.steps = arrays.get("steps")!.values as Int8Array;
  }

  get numTypes(): number {
    return this.termIds.length;
  }

  difference(gene: number, type: number): number {
    return this.steps[gene * this.numTypes + type] * STEP;
  }

  /** The differences of all types in some genes, each times its weight, added up; to be read before the next are asked for. */
  weighted(genes: Int32Array, weights: Float32Array): Float32Array {
    this.rowSums ??= new RowSums(this.steps, this.numTypes);
    return this.rowSums.of(genes, weights.map((weight) => weight * STEP));
  }

  /** Of every row of the vocabulary its place among the genes of the profiles, -1 for none. */
  places(numGenes: number): Int32Array {
    const places = new Int32Array(numGenes).fill(-1);
    this.geneRows.forEach((row, gene) => (places[row] = gene));
    return places;
  }

  /** Length of each type's differences in the genes that were measured, together with a short one. */
  norms(measured: Set<number>): Float64Array {
    const squares = new Float64Array(this.numTypes);
    this.geneRows.forEach((row, gene) => {
      if (!measured.has(row)) return;
      for (let type = 0; type < this.numTypes; type++) squares[type] += this.difference(gene, type) ** 2;
    });
    return squares.map((square) => Math.hypot(Math.sqrt(square), SHORT));
  }

  /** Index of the candidate label for each type: the type itself or its nearest ancestor; -1: none. */
  candidates(termIds: (string | null)[], ontology: Ontology): Int32Array {
    const place = new Map<string, number>();
    termIds.forEach((id, index) => id && !place.has(id) && place.set(id, index));
    return Int32Array.from(this.termIds, (own) => {
      const nearest = [own, ...ontology.ancestors(own)].find((id) => place.has(id));
      return nearest === undefined ? -1 : place.get(nearest)!;
    });
  }
}

/** (cells, types): each cell's values weighted by a type's differences, over the length of the values. */
export class AgreementReader {
  private places: Int32Array;

  constructor(private profiles: TypeProfiles, numGenes: number) {
    this.places = profiles.places(numGenes);
  }

  read(tokens: Tokens): Float32Array {
    const numCells = tokens.totals.length, width = this.profiles.numTypes, result = new Float32Array(numCells * width);
    for (let cell = 0; cell < numCells; cell++) {
      const [from, to] = [tokens.bounds[cell], tokens.bounds[cell + 1]], rows = new Int32Array(to - from), values = new Float32Array(to - from);
      let number = 0, squares = 0;
      for (let at = from; at < to; at++) {
        const value = tokens.values[at], gene = this.places[tokens.ids[at] - FIRST_GENE_ID];
        squares += value * value;
        if (gene < 0) continue;
        rows[number] = gene;
        values[number++] = value;
      }
      const sums = this.profiles.weighted(rows.subarray(0, number), values.subarray(0, number)), length = Math.max(Math.sqrt(squares), 1e-6);
      for (let type = 0; type < width; type++) result[cell * width + type] = sums[type] / length;
    }
    return result;
  }
}

/** How well N cells agree with T types, and which of the candidates each type counts for. */
export class Agreement {
  private mean: Float32Array;
  private groups: number[][];
  private spokenFor: number[];

  constructor(readonly values: Float32Array, private norms: Float64Array, candidates: number[]) {
    const width = norms.length, numCells = values.length / width, sums = new Float64Array(width);
    for (let cell = 0; cell < numCells; cell++) for (let type = 0; type < width; type++) sums[type] += values[cell * width + type];
    this.mean = Float32Array.from(sums, (sum) => sum / numCells);
    this.spokenFor = [...new Set(candidates)].sort((one, other) => one - other);
    this.groups = this.spokenFor.map((one) => candidates.flatMap((candidate, type) => (candidate === one ? [type] : [])));
  }

  /** How much of the types' differences the measured genes can show. */
  get reach(): number {
    const shares = Array.from(this.norms, (norm) => Math.max(1 - (SHORT / Math.max(norm, SHORT)) ** 2, 1e-3)).sort((a, b) => a - b);
    return (shares[(shares.length - 1) >> 1] + shares[shares.length >> 1]) / 2;
  }

  /** Add `weight` times what speaks for each candidate to rows of logits. */
  addTo(logits: Float32Array, numCandidates: number, start: number, stop: number, weight: number): void {
    const width = this.norms.length, best = new Float64Array(this.groups.length);
    if (this.spokenFor.length < 2) return;
    for (let cell = start; cell < stop; cell++) {
      let sum = 0;
      this.groups.forEach((types, group) => {
        let most = -Infinity;
        for (const type of types) {
          const cosine = (this.values[cell * width + type] - this.mean[type]) / Math.max(this.norms[type], 1e-6);
          if (cosine > most) most = cosine;
        }
        best[group] = most;
        sum += most;
      });
      const mean = sum / best.length, from = (cell - start) * numCandidates;
      for (let group = 0; group < best.length; group++) logits[from + this.spokenFor[group]] += weight * (best[group] - mean);
    }
  }
}
