// A matrix of cells x genes, wherever it lies, read as csr blocks of rows (processing/cell_matrix_scmmgpt.py).

import { UserError } from "./errors";

export type Numbers = Float32Array | Float64Array | Int32Array;

/** Some rows of a csr matrix; `indptr` begins at 0. */
export interface CsrRows {
  indptr: Int32Array;
  indices: Int32Array;
  data: Numbers;
}

/** One matrix that a file holds, and how to read some of its rows. */
export interface Matrix {
  name: string;
  shape: [number, number];
  read(start: number, stop: number): CsrRows;
  /** Names of the genes by the column of `var` that has them; the index is first. */
  names: Map<string, string[]>;
  /** What `var` says of the kinds of features, by the name of the column that says it. */
  types: Map<string, string[]>;
}

/** An array of a file, of which a part is read at a time. */
export interface ArrayOnDisk {
  length: number;
  read(start: number, stop: number): Numbers;
}

// Entries that are turned into csr rows at a time: about 50 MB.
const WINDOW_ENTRIES = 4_000_000;

/** Rows of a dense array, of which only some lie in memory as they are. */
export function denseReader(read: (start: number, stop: number) => Numbers, numColumns: number): Matrix["read"] {
  const most = Math.max(1, Math.floor(WINDOW_ENTRIES / numColumns));
  return (start, stop) => {
    const blocks: CsrRows[] = [];
    for (let from = start; from < stop; from += most) {
      const to = Math.min(from + most, stop);
      blocks.push(rowsOfDense(read(from, to), to - from, numColumns));
    }
    return joined(blocks);
  };
}

/** Blocks of rows as one. */
export function joined(blocks: CsrRows[]): CsrRows {
  if (blocks.length === 1) return blocks[0];
  const numRows = blocks.reduce((sum, { indptr }) => sum + indptr.length - 1, 0), numEntries = blocks.reduce((sum, { data }) => sum + data.length, 0);
  const indptr = new Int32Array(numRows + 1), indices = new Int32Array(numEntries), data = new Float64Array(numEntries);
  let row = 0, entry = 0;
  for (const block of blocks) {
    indices.set(block.indices, entry);
    data.set(block.data, entry);
    for (let own = 1; own < block.indptr.length; own++) indptr[++row] = entry + block.indptr[own];
    entry += block.data.length;
  }
  return { indptr, indices, data };
}

function rowsOfDense(values: Numbers, numRows: number, numColumns: number): CsrRows {
  const indptr = new Int32Array(numRows + 1);
  let filled = 0;
  for (let place = 0; place < values.length; place++) if (values[place] !== 0) filled++;
  const indices = new Int32Array(filled), data = new Float64Array(filled);
  filled = 0;
  for (let row = 0; row < numRows; row++) {
    for (let column = 0; column < numColumns; column++) {
      const value = values[row * numColumns + column];
      if (value === 0) continue;
      indices[filled] = column;
      data[filled++] = value;
    }
    indptr[row + 1] = filled;
  }
  return { indptr, indices, data };
}

/** Rows of a csr matrix on disk, or of the columns of 10x's features x cells. */
export class RowWise {
  constructor(private bounds: Float64Array, private indices: ArrayOnDisk, private data: ArrayOnDisk, private numColumns: number) {
    checkBounds(bounds, Math.min(indices.length, data.length));
  }

  rows(start: number, stop: number): CsrRows {
    const first = this.bounds[start], last = this.bounds[stop];
    const indptr = Int32Array.from(this.bounds.subarray(start, stop + 1), (bound) => bound - first);
    const indices = Int32Array.from(this.indices.read(first, last));
    checkPlaces(indices, this.numColumns);
    return { indptr, indices, data: this.data.read(first, last) };
  }
}

/** Rows of a csc matrix on disk, gathered in one pass over the file for a window of many rows. */
export class ColumnWise {
  private first = 0;
  private window: CsrRows = { indptr: new Int32Array(1), indices: new Int32Array(0), data: new Float64Array(0) };
  private windowRows: number;

  constructor(private bounds: Float64Array, private indices: ArrayOnDisk, private data: ArrayOnDisk, private shape: [number, number]) {
    checkBounds(bounds, Math.min(indices.length, data.length));
    const numEntries = Math.max(bounds[bounds.length - 1], 1);
    this.windowRows = Math.max(1, Math.floor(shape[0] * Math.min(1, WINDOW_ENTRIES / numEntries)));
  }

  rows(start: number, stop: number): CsrRows {
    const held = this.window.indptr.length - 1;
    if (start < this.first || stop > this.first + held) {
      this.first = start;
      this.window = this.readWindow(start, Math.min(Math.max(stop, start + this.windowRows), this.shape[0]));
    }
    const bounds = this.window.indptr.subarray(start - this.first, stop - this.first + 1);
    const indptr = bounds.map((bound) => bound - bounds[0]);
    return {
      indptr,
      indices: this.window.indices.subarray(bounds[0], bounds[bounds.length - 1]),
      data: this.window.data.subarray(bounds[0], bounds[bounds.length - 1]),
    };
  }

  private readWindow(start: number, stop: number): CsrRows {
    const counts = new Int32Array(stop - start + 1);
    const spans: { rows: Int32Array; columns: Int32Array; values: Float64Array }[] = [];
    for (let column = 0; column < this.shape[1]; ) {
      let after = column + 1;
      while (after < this.shape[1] && this.bounds[after + 1] - this.bounds[column] <= WINDOW_ENTRIES) after++;
      const from = this.bounds[column], to = this.bounds[after];
      const rows = this.indices.read(from, to), values = this.data.read(from, to);
      const places: number[] = [], columns: number[] = [];
      let own = column;
      for (let entry = 0; entry < rows.length; entry++) {
        while (this.bounds[own + 1] - from <= entry) own++;
        const row = rows[entry];
        if (row < 0 || row >= this.shape[0]) checkPlaces(rows, this.shape[0]);
        if (row < start || row >= stop) continue;
        counts[row - start + 1]++;
        places.push(entry);
        columns.push(own);
      }
      spans.push({
        rows: Int32Array.from(places, (entry) => rows[entry] - start),
        columns: Int32Array.from(columns),
        values: Float64Array.from(places, (entry) => values[entry]),
      });
      column = after;
    }
    for (let row = 0; row < stop - start; row++) counts[row + 1] += counts[row];
    const next = counts.slice(), total = counts[stop - start];
    const indices = new Int32Array(total), data = new Float64Array(total);
    for (const span of spans) {
      for (let entry = 0; entry < span.rows.length; entry++) {
        const place = next[span.rows[entry]]++;
        indices[place] = span.columns[entry];
        data[place] = span.values[entry];
      }
    }
    return { indptr: counts, indices, data };
  }
}

/** The matrix of some columns alone. */
export function withColumns(matrix: Matrix, kept: boolean[]): Matrix {
  const newPlace = new Int32Array(kept.length);
  let number = 0;
  for (let column = 0; column < kept.length; column++) newPlace[column] = kept[column] ? number++ : -1;
  const chosen = (names: string[]) => names.filter((_, column) => kept[column]);
  return {
    name: matrix.name,
    shape: [matrix.shape[0], number],
    names: new Map([...matrix.names].map(([column, names]) => [column, chosen(names)])),
    types: new Map([...matrix.types].map(([column, types]) => [column, chosen(types)])),
    read(start, stop) {
      const rows = matrix.read(start, stop);
      const indptr = new Int32Array(rows.indptr.length), indices: number[] = [], data: number[] = [];
      for (let row = 0; row + 1 < indptr.length; row++) {
        for (let entry = rows.indptr[row]; entry < rows.indptr[row + 1]; entry++) {
          const place = newPlace[rows.indices[entry]];
          if (place < 0) continue;
          indices.push(place);
          data.push(rows.data[entry]);
        }
        indptr[row + 1] = indices.length;
      }
      return { indptr, indices: Int32Array.from(indices), data: Float64Array.from(data) };
    },
  };
}

function checkBounds(bounds: Float64Array, numEntries: number): void {
  let isDamaged = bounds.length === 0 || bounds[0] !== 0 || bounds[bounds.length - 1] > numEntries;
  for (let place = 1; place < bounds.length; place++) isDamaged ||= bounds[place] < bounds[place - 1];
  if (isDamaged) throw new UserError("The matrix is damaged: its `indptr` does not run from 0 upwards to the number of its entries.");
}

function checkPlaces(indices: Numbers, size: number): void {
  for (let entry = 0; entry < indices.length; entry++) {
    if (indices[entry] < 0 || indices[entry] >= size) {
      throw new UserError(`The matrix is damaged: its \`indices\` reach to ${indices[entry]} of ${size}.`);
    }
  }
}
