// Cells to tokens: ids of expressed genes and their values (processing/gene_kernels_scmmgpt.py, gene_layout_scmmgpt.py).

import type { CsrRows } from "./cell_matrix";
import { FIRST_GENE_ID, type Vocabulary } from "./gene_vocabulary";

/** Genes of some cells, end to end, without `<cls>`: cell i has those from `bounds[i]` to `bounds[i + 1]`. */
export interface Tokens {
  bounds: Int32Array;
  ids: Int32Array;
  values: Float32Array;
  /** Sum of each cell's counts in genes of the vocabulary. */
  totals: Float64Array;
}

export interface TokenizerSettings {
  value_mode: string;
  gene_order: string;
  target_sum: number;
  max_genes: number | null;
  panel_scaling: boolean;
  add_cls: boolean;
  include_zero_genes: boolean;
}

const SLOTS = 65536; // a gene's place in its cell must fit beside 32 bits of a key

export function tokenize(
  rows: CsrRows, geneRows: Int32Array, vocabulary: Vocabulary, settings: TokenizerSettings, panelShare: number,
): Tokens {
  const numCells = rows.indptr.length - 1, target = settings.target_sum * panelShare;
  const bounds = new Int32Array(numCells + 1), totals = new Float64Array(numCells);
  const ids = new Int32Array(rows.data.length), values = new Float32Array(rows.data.length);
  const cell = new CellOrder(vocabulary, settings.gene_order === "median_ratio");
  let filled = 0;
  for (let row = 0; row < numCells; row++) {
    const length = cell.read(rows, rows.indptr[row], rows.indptr[row + 1], geneRows);
    let total = 0;
    for (let gene = 0; gene < length; gene++) total += cell.raw[gene];
    totals[row] = total;
    const scale = total ? Math.fround(target / total) : 1;
    const order = cell.order(length), kept = Math.min(length, settings.max_genes ?? length);
    for (let place = 0; place < kept; place++) {
      const gene = order[place];
      ids[filled] = cell.genes[gene] + FIRST_GENE_ID;
      values[filled++] = Math.log1p(Math.fround(cell.raw[gene] * scale));
    }
    bounds[row + 1] = filled;
  }
  return { bounds, ids: ids.slice(0, filled), values: values.slice(0, filled), totals };
}

/** The genes of one cell by vocabulary row, and their order: descending by value over median, ties by id. */
class CellOrder {
  genes = new Int32Array(0);
  raw = new Float32Array(0);
  private keys = new Float64Array(0);
  private sums: Float32Array;
  private seen: Uint8Array;
  private weights: Float64Array;
  private bits = new Uint32Array(1);
  private float = new Float32Array(this.bits.buffer);
  private places = new Int32Array(0);

  constructor(vocabulary: Vocabulary, byMedian: boolean) {
    this.sums = new Float32Array(vocabulary.genes.length);
    this.seen = new Uint8Array(vocabulary.genes.length);
    this.weights = Float64Array.from(vocabulary.medians, (median) => (byMedian ? 1 / median : 1));
  }

  /** Read one cell; columns that are one gene are added up. Gives the number of genes. */
  read(rows: CsrRows, from: number, to: number, geneRows: Int32Array): number {
    if (to - from > this.genes.length) {
      this.genes = new Int32Array(to - from);
      this.raw = new Float32Array(to - from);
      this.keys = new Float64Array(to - from);
      this.places = new Int32Array(to - from);
    }
    let length = 0;
    for (let entry = from; entry < to; entry++) {
      const gene = geneRows[rows.indices[entry]], value = Math.fround(rows.data[entry]);
      if (gene < 0 || value === 0) continue;
      if (!this.seen[gene]) {
        this.seen[gene] = 1;
        this.genes[length++] = gene;
      }
      this.sums[gene] += value;
    }
    this.genes.subarray(0, length).sort();
    for (let place = 0; place < length; place++) {
      const gene = this.genes[place];
      this.raw[place] = this.sums[gene];
      this.sums[gene] = this.seen[gene] = 0;
    }
    return length;
  }

  order(length: number): Int32Array {
    const keys = this.keys.subarray(0, length);
    for (let place = 0; place < length; place++) {
      this.float[0] = this.raw[place] * this.weights[this.genes[place]];
      // The bits of positive floats order as the floats do; measured down from the highest they descend.
      keys[place] = (0xffffffff - this.bits[0]) * SLOTS + place;
    }
    keys.sort();
    const places = this.places.subarray(0, length);
    for (let place = 0; place < length; place++) places[place] = keys[place] % SLOTS;
    // Keys that are one in single precision are settled in double precision.
    for (let place = 1; place < length; place++) {
      const gene = places[place];
      let before = place - 1;
      while (before >= 0 && this.isBehind(places[before], gene)) {
        places[before + 1] = places[before];
        before--;
      }
      places[before + 1] = gene;
    }
    return places;
  }

  private isBehind(place: number, other: number): boolean {
    return this.raw[place] * this.weights[this.genes[place]] < this.raw[other] * this.weights[this.genes[other]];
  }
}
