// The genes a model knows, in id order, with what a corpus taught about each (processing/gene_vocabulary_scmmgpt.py).

export const PAD_ID = 0, CLS_ID = 1, FIRST_GENE_ID = 3;
const PANEL_STEPS_PER_OCTAVE = 4;

export class Vocabulary {
  readonly genes: string[] = [];
  readonly medians: Float64Array;
  readonly logMedians: Float32Array;
  readonly masses: Float64Array;
  readonly rowOf: Map<string, number>;
  readonly rowOfId = new Map<string, number>();

  constructor(table: string) {
    const lines = table.split("\n").slice(1).filter(Boolean);
    this.medians = new Float64Array(lines.length);
    this.masses = new Float64Array(lines.length);
    lines.forEach((line, row) => {
      const [gene, id, median, mass] = line.split("\t");
      this.genes.push(gene);
      if (id) this.rowOfId.set(id, row);
      this.medians[row] = Number(median);
      this.masses[row] = Math.fround(Number(mass));
    });
    this.logMedians = Float32Array.from(this.medians, Math.log);
    this.rowOf = new Map(this.genes.map((gene, row) => [gene, row]));
  }

  get size(): number {
    return FIRST_GENE_ID + this.genes.length;
  }

  /** Usual share of a cell's counts that the measured genes hold, rounded to quarter octaves. */
  panelShare(rows: Iterable<number>): number {
    let mass = 0;
    for (const row of new Set(rows)) mass += this.masses[row];
    return 2 ** (Math.round(Math.log2(Math.max(mass, 1e-6)) * PANEL_STEPS_PER_OCTAVE) / PANEL_STEPS_PER_OCTAVE);
  }
}
