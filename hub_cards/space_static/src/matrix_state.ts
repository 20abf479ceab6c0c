// What a matrix of expression values is, judged by its entries (processing/matrix_state_scmmgpt.py).

import type { CsrRows, Numbers } from "./cell_matrix";

const MAX_NATURAL_LOG = Math.log1p(1e6), MAX_LOG2 = Math.log2(1 + 1e6) + 1;
const LOG_BASES = [Math.E, 2, 10];
const SMALLEST_COUNTS = [1, 2, 3, 4, 5];
const MAX_SHARE_OF_STRAY_NEGATIVES = 0.1, ROWS_THAT_MUST_AGREE = 0.95;

export type Kind = "counts" | "normalised" | "log1p" | "scaled" | "empty";

/** `base` is the logarithm's; `exact` says that the counts behind the values can be told exactly. */
export interface MatrixState {
  kind: Kind;
  detail: string;
  base: number;
  exact: boolean;
}

const state = (kind: Kind, detail: string, base = 0, exact = false): MatrixState => ({ kind, detail, base, exact });
const COUNTS = state("counts", "whole numbers");

/** The rows without entries that are zero or not finite, in double precision. */
function usable(rows: CsrRows): CsrRows {
  return filtered(rows, (value) => Number.isFinite(value) && value !== 0);
}

export function filtered(rows: CsrRows, keep: (value: number) => boolean): CsrRows {
  const indptr = new Int32Array(rows.indptr.length), indices: number[] = [], data: number[] = [];
  for (let row = 0; row + 1 < indptr.length; row++) {
    for (let entry = rows.indptr[row]; entry < rows.indptr[row + 1]; entry++) {
      if (!keep(rows.data[entry])) continue;
      indices.push(rows.indices[entry]);
      data.push(rows.data[entry]);
    }
    indptr[row + 1] = data.length;
  }
  return { indptr, indices: Int32Array.from(indices), data: Float64Array.from(data) };
}

export function recognise(sample: CsrRows, numColumns: number, logBase: number | null): MatrixState {
  const values = sample.data;
  if (counted(values, (value) => value !== 0) && !hasBadValues(values) && counted(values, isWhole) === values.length) return COUNTS;
  let block = usable(sample);
  if (block.data.length === 0) return state("empty", "no entry but zeros");
  const numNegative = counted(block.data, (value) => value < 0);
  const shareNegative = numNegative / block.data.length;
  if (shareNegative > MAX_SHARE_OF_STRAY_NEGATIVES && counted(block.data, isWhole) < block.data.length) {
    return state("scaled", `${Math.round(100 * shareNegative)}% of its entries are negative`);
  }
  if (numNegative) block = filtered(block, (value) => value > 0);
  if (block.data.length === 0) return COUNTS;
  const shareWhole = counted(block.data, isWhole) / block.data.length;
  return shareWhole === 1 ? COUNTS : recogniseFractions(block, numColumns, shareWhole, logBase);
}

function recogniseFractions(block: CsrRows, numColumns: number, shareWhole: number, logBase: number | null): MatrixState {
  const largest = maximum(block.data);
  if (largest <= MAX_LOG2) {
    for (const base of logBase ? [logBase] : LOG_BASES) {
      if (largest * Math.log(base) <= Math.log(1e8) && holdsCounts(unlogged(block, base))) {
        return state("log1p", `log${baseName(base)}(1 + x) of scaled counts`, base, true);
      }
    }
  }
  if (holdsCounts(block)) return state("normalised", `scaled counts, ${scaleName(block)}`, 0, true);
  if (shareWhole > ROWS_THAT_MUST_AGREE) return state("normalised", "nearly all whole numbers: expected or corrected counts");
  if (hasConstantSums(block) || largest > MAX_LOG2) return state("normalised", `linear, ${scaleName(block)}`);
  if (hasUnitVariance(block, numColumns)) return state("scaled", "every gene has unit variance");
  const likely = largest <= MAX_NATURAL_LOG ? LOG_BASES[0] : LOG_BASES[1];
  const base = logBase ?? LOG_BASES.find((one) => hasConstantSums(unlogged(block, one))) ?? likely;
  return state("log1p", `log${baseName(base)}(1 + x)`, base);
}

export function linearValues(data: Numbers, of: MatrixState): Float64Array {
  if (of.kind !== "log1p") return Float64Array.from(data);
  const factor = Math.log(of.base);
  return Float64Array.from(data, (value) => Math.expm1(value * factor));
}

/** Whole numbers that each cell's scaled values are multiples of, and which cells they were found for. */
export function recoverCounts(indptr: Int32Array, data: Numbers): { counts: Float64Array; found: boolean[] } {
  const counts = Float64Array.from(data), found: boolean[] = [];
  for (let row = 0; row + 1 < indptr.length; row++) {
    const own = counts.subarray(indptr[row], indptr[row + 1]);
    found.push(own.length === 0 || SMALLEST_COUNTS.some((smallest) => recoverCell(own, smallest)));
  }
  return { counts, found };
}

function recoverCell(values: Float64Array, smallest: number): boolean {
  const unit = values.reduce((least, value) => Math.min(least, value), Infinity);
  for (const value of values) {
    const multiple = (value / unit) * smallest, whole = rint(multiple);
    if (!(Math.abs(multiple - whole) - 2e-6 * whole < 2e-3) || whole >= 25_000) return false;
  }
  for (let place = 0; place < values.length; place++) values[place] = rint((values[place] / unit) * smallest);
  return true;
}

/** How many entries are NaN, infinite or negative. */
export function countBadValues(data: Numbers): Map<string, number> {
  const bad = new Map<string, number>();
  if (!hasBadValues(data)) return bad;
  const add = (name: string, number: number) => number && bad.set(name, number);
  add("NaN", counted(data, Number.isNaN));
  add("infinite", counted(data, (value) => Math.abs(value) === Infinity));
  add("negative", counted(data, (value) => value < 0));
  return bad;
}

export function hasBadValues(data: Numbers): boolean {
  for (let place = 0; place < data.length; place++) if (!(data[place] >= 0 && data[place] < Infinity)) return true;
  return false;
}

const isWhole = (value: number) => value === Math.round(value);

/** The nearest whole number, halves to even, as numpy rounds. */
export function rint(value: number): number {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

function unlogged(block: CsrRows, base: number): CsrRows {
  const factor = Math.log(base);
  return { ...block, data: Float64Array.from(block.data, (value) => Math.expm1(Math.min(value * factor, 50))) };
}

function holdsCounts(linear: CsrRows): boolean {
  const { found } = recoverCounts(linear.indptr, linear.data);
  const telling = found.filter((_, row) => hasVariety(linear.data.subarray(linear.indptr[row], linear.indptr[row + 1])));
  return telling.length > 0 && telling.filter(Boolean).length / telling.length >= ROWS_THAT_MUST_AGREE;
}

function hasVariety(values: Numbers): boolean {
  const most = maximum(values);
  return values.length > 0 && most - minimum(values) > 1e-6 * most;
}

function rowSums(block: CsrRows): number[] {
  const sums = [];
  for (let row = 0; row + 1 < block.indptr.length; row++) {
    let sum = 0;
    for (let entry = block.indptr[row]; entry < block.indptr[row + 1]; entry++) sum += block.data[entry];
    sums.push(sum);
  }
  return sums;
}

function hasConstantSums(block: CsrRows): boolean {
  const sums = rowSums(block).filter((sum) => sum > 0);
  const mean = sums.reduce((total, sum) => total + sum, 0) / sums.length;
  const variance = sums.reduce((total, sum) => total + (sum - mean) ** 2, 0) / sums.length;
  return sums.length > 1 && Math.sqrt(variance) / mean < 1e-3;
}

function hasUnitVariance(block: CsrRows, numColumns: number): boolean {
  const numRows = block.indptr.length - 1;
  if (numRows < 50) return false;
  const sums = new Float64Array(numColumns), squares = new Float64Array(numColumns);
  block.indices.forEach((column, entry) => {
    sums[column] += block.data[entry];
    squares[column] += block.data[entry] ** 2;
  });
  const spread = [...squares.map((square, column) => square / numRows - (sums[column] / numRows) ** 2)].filter((one) => one > 0);
  spread.sort((one, other) => one - other);
  const percentile = (share: number) => {
    const place = share * (spread.length - 1), below = Math.floor(place);
    const [low, high] = [below, Math.min(below + 1, spread.length - 1)].map((at) => Math.sqrt(spread[at]));
    return low + (high - low) * (place - below);
  };
  return spread.length > 20 && percentile(0.1) > 0.8 && percentile(0.9) < 1.2;
}

function scaleName(block: CsrRows): string {
  if (!hasConstantSums(block)) return "not whole numbers (TPM-like)";
  const sums = rowSums(block).sort((one, other) => one - other);
  const total = (sums[Math.floor((sums.length - 1) / 2)] + sums[Math.ceil((sums.length - 1) / 2)]) / 2;
  if (Math.abs(total / 1e4 - 1) < 1e-2) return "10,000 a cell (CP10k)";
  if (Math.abs(total / 1e6 - 1) < 1e-2) return "1,000,000 a cell (CPM or TPM)";
  return `${Math.round(total).toLocaleString("en")} a cell`;
}

const baseName = (base: number) => (base === LOG_BASES[0] ? "" : String(base));
const maximum = (values: Numbers) => folded(values, Math.max, -Infinity);
const minimum = (values: Numbers) => folded(values, Math.min, Infinity);

function folded(values: Numbers, fold: (one: number, other: number) => number, result: number): number {
  for (let place = 0; place < values.length; place++) result = fold(result, values[place]);
  return result;
}

function counted(values: Numbers, is: (value: number) => boolean): number {
  let number = 0;
  for (let place = 0; place < values.length; place++) if (is(values[place])) number++;
  return number;
}
