// The few operations on dense matrices that the calling rule needs. Matrices are rows end to end.

import { KERNEL } from "./kernel";

const LANES = 4;
const compiled = new WebAssembly.Module(Uint8Array.from(atob(KERNEL), (letter) => letter.charCodeAt(0)));

interface Kernel {
  memory: WebAssembly.Memory;
  products(left: number, right: number, out: number, n: number, m: number, bytes: number): void;
  addRows(table: number, bytes: number, rows: number, weights: number, number: number, out: number): void;
}

/** The kernel with a memory of its own. */
const newKernel = () => new WebAssembly.Instance(compiled).exports as unknown as Kernel;

function grownTo(memory: WebAssembly.Memory, bytes: number): ArrayBuffer {
  const missing = bytes - memory.buffer.byteLength;
  if (missing > 0) memory.grow(Math.ceil(missing / 65536));
  return memory.buffer;
}

const kernel = newKernel();

/** (n, m): products of rows of `left` (n, d) with rows of `right` (m, d). */
export function products(left: Float32Array, right: Float32Array, depth: number): Float32Array {
  const n = left.length / depth, m = right.length / depth, width = padded(depth), columns = padded(m);
  const places = [0, n * width, (n + columns) * width].map((place) => 4 * place), needed = places[2] + 4 * n * columns;
  const memory = new Float32Array(grownTo(kernel.memory, needed));
  lay(memory, 0, left, depth, width, n);
  lay(memory, n * width, right, depth, width, columns);
  kernel.products(places[0], places[1], places[2], n, columns, 4 * width);
  const found = memory.subarray(places[2] / 4, needed / 4), result = new Float32Array(n * m);
  for (let row = 0; row < n; row++) result.set(found.subarray(row * columns, row * columns + m), row * m);
  return result;
}

/** Weighted sums of rows of a table of small whole numbers, which stays in the kernel's memory. */
export class RowSums {
  private kernel = newKernel();
  private bytes: number;
  private table: number;

  constructor(values: Int8Array, private width: number) {
    const numRows = values.length / width;
    this.bytes = 16 * Math.ceil(width / 16);
    this.table = numRows * this.bytes;
    const memory = new Int8Array(grownTo(this.kernel.memory, this.table));
    for (let row = 0; row < numRows; row++) memory.set(values.subarray(row * width, (row + 1) * width), row * this.bytes);
  }

  /** The sum of some rows, each times its weight. */
  of(rows: Int32Array, weights: Float32Array): Float32Array {
    const number = rows.length, ofWeights = this.table + 4 * number, out = this.table + 16 * Math.ceil(number / 2), wide = 4 * this.bytes;
    const buffer = grownTo(this.kernel.memory, out + wide), sums = new Float32Array(buffer, out, this.bytes).fill(0);
    new Int32Array(buffer).set(rows, this.table / 4);
    new Float32Array(buffer).set(weights, ofWeights / 4);
    this.kernel.addRows(0, this.bytes, this.table, ofWeights, number, out);
    return sums.subarray(0, this.width);
  }
}

const padded = (number: number) => Math.ceil(number / LANES) * LANES;

/** Rows side by side, filled up with zeros. */
function lay(memory: Float32Array, from: number, values: Float32Array, depth: number, width: number, numRows: number): void {
  if (depth === width && values.length === numRows * depth) return memory.set(values, from);
  memory.fill(0, from, from + numRows * width);
  for (let row = 0; row * depth < values.length; row++) memory.set(values.subarray(row * depth, (row + 1) * depth), from + row * width);
}

/** Rows of probabilities from rows of logits, in place. */
export function softmax(logits: Float32Array, width: number, temperature = 1): Float32Array {
  for (let from = 0; from < logits.length; from += width) {
    let most = -Infinity, sum = 0;
    for (let at = from; at < from + width; at++) most = Math.max(most, logits[at]);
    for (let at = from; at < from + width; at++) sum += logits[at] = Math.exp((logits[at] - most) / temperature);
    for (let at = from; at < from + width; at++) logits[at] /= sum;
  }
  return logits;
}

export function argmax(values: ArrayLike<number>, from = 0, to = values.length): number {
  let best = from;
  for (let at = from + 1; at < to; at++) if (values[at] > values[best]) best = at;
  return best - from;
}

/** The largest eigenvalues of a symmetric matrix (n, n), descending, with their vectors (number, n); fewer where its rank is lower.
 *
 * Lanczos' method, every vector made orthogonal to all before it, until the vectors that are asked for stand still.
 */
export function largestEigen(matrix: Float64Array, n: number, number: number): { values: number[]; vectors: Float64Array[] } {
  const basis: Float64Array[] = [unit(Float64Array.from({ length: n }, (_, at) => 1 + ((at * 7919) % 101) / 101))];
  const diagonal: number[] = [], beside: number[] = [];
  for (;;) {
    const last = basis[basis.length - 1], next = times(matrix, last, n);
    diagonal.push(dot(next, last));
    for (let pass = 0; pass < 2; pass++) for (const one of basis) subtract(next, one, dot(next, one));
    const length = Math.sqrt(dot(next, next)), size = diagonal.length, isWhole = size === n || length < 1e-12 * Math.abs(diagonal[0]);
    if (isWhole || (size >= number + 10 && size % 10 === 0)) {
      const { values, vectors } = tridiagonalEigen(diagonal, beside), chosen = Math.min(number, size);
      const isStill = vectors.slice(0, chosen).every((one) => Math.abs(one[size - 1]) * length < 1e-10 * values[0]);
      if (isWhole || isStill) {
        return { values: values.slice(0, chosen), vectors: vectors.slice(0, chosen).map((weights) => combined(basis, weights)) };
      }
    }
    beside.push(length);
    basis.push(next.map((value) => value / length));
  }
}

export function dot(one: Float64Array, other: Float64Array): number {
  let sum = 0;
  for (let at = 0; at < one.length; at++) sum += one[at] * other[at];
  return sum;
}

function unit(vector: Float64Array): Float64Array {
  const length = Math.sqrt(dot(vector, vector));
  return vector.map((value) => value / length);
}

function subtract(vector: Float64Array, other: Float64Array, share: number): void {
  for (let at = 0; at < vector.length; at++) vector[at] -= share * other[at];
}

function times(matrix: Float64Array, vector: Float64Array, n: number): Float64Array {
  const result = new Float64Array(n);
  for (let row = 0; row < n; row++) {
    let sum = 0;
    for (let at = 0; at < n; at++) sum += matrix[row * n + at] * vector[at];
    result[row] = sum;
  }
  return result;
}

function combined(basis: Float64Array[], weights: Float64Array): Float64Array {
  const result = new Float64Array(basis[0].length);
  for (let one = 0; one < weights.length; one++) subtract(result, basis[one], -weights[one]);
  return result;
}

/** Eigenvalues, descending, and eigenvectors of a tridiagonal matrix: the QL algorithm, after the public-domain JAMA. */
function tridiagonalEigen(diagonal: number[], beside: number[]): { values: number[]; vectors: Float64Array[] } {
  const n = diagonal.length, d = Float64Array.from(diagonal), e = Float64Array.from([0, ...beside.slice(0, n - 1)]);
  const V = new Float64Array(n * n);
  for (let at = 0; at < n; at++) V[at * n + at] = 1;
  diagonalise(V, d, e, n);
  const order = Array.from(d.keys()).sort((one, other) => d[other] - d[one]);
  return { values: order.map((at) => d[at]), vectors: order.map((column) => Float64Array.from({ length: n }, (_, row) => V[row * n + column])) };
}

function diagonalise(V: Float64Array, d: Float64Array, e: Float64Array, n: number): void {
  for (let i = 1; i < n; i++) e[i - 1] = e[i];
  e[n - 1] = 0;
  let f = 0, tst1 = 0;
  for (let l = 0; l < n; l++) {
    tst1 = Math.max(tst1, Math.abs(d[l]) + Math.abs(e[l]));
    let m = l;
    while (m < n - 1 && Math.abs(e[m]) > Number.EPSILON * tst1) m++;
    if (m > l) {
      do f += iterate(V, d, e, l, m, n);
      while (Math.abs(e[l]) > Number.EPSILON * tst1);
    }
    d[l] += f;
    e[l] = 0;
  }
}

/** One QL step on the block from l to m; gives the shift that was taken from the eigenvalues. */
function iterate(V: Float64Array, d: Float64Array, e: Float64Array, l: number, m: number, n: number): number {
  let g = d[l], p = (d[l + 1] - g) / (2 * e[l]), r = Math.hypot(p, 1);
  if (p < 0) r = -r;
  d[l] = e[l] / (p + r);
  d[l + 1] = e[l] * (p + r);
  const dl1 = d[l + 1], shift = g - d[l], el1 = e[l + 1];
  for (let i = l + 2; i < n; i++) d[i] -= shift;
  p = d[m];
  let c = 1, c2 = 1, c3 = 1, s = 0, s2 = 0;
  for (let i = m - 1; i >= l; i--) {
    c3 = c2;
    c2 = c;
    s2 = s;
    g = c * e[i];
    let h = c * p;
    r = Math.hypot(p, e[i]);
    e[i + 1] = s * r;
    s = e[i] / r;
    c = p / r;
    p = c * d[i] - s * g;
    d[i + 1] = h + s * (c * g + s * d[i]);
    for (let k = 0; k < n; k++) {
      h = V[k * n + i + 1];
      V[k * n + i + 1] = s * V[k * n + i] + c * h;
      V[k * n + i] = c * V[k * n + i] - s * h;
    }
  }
  p = (-s * s2 * c3 * el1 * e[l]) / dl1;
  e[l] = s * p;
  d[l] = c * p;
  return shift;
}
