// The cells of a study as one: each averaged with its neighbours, all divided into communities (src/scmmgpt/consensus.py).

import { type CellEvidence, DIMENSION } from "./calling";
import type { CsrRows } from "./cell_matrix";
import { argmax, dot, largestEigen, products } from "./linear_algebra";

export const MIN_CELLS = 100;
const NUM_NEIGHBOURS = 8, NUM_DIRECTIONS = 30, WEIGHT_OF_PROFILES = 2;
const CELLS_PER_COMMUNITY = 10, MIN_CELLS_OF_COMMUNITY = 6, MIN_COMMUNITIES = 4, MAX_COMMUNITIES = 60;
const CELLS_PER_BLOCK = 4096, ROUNDS = 8;

/** Rows of numbers, end to end. */
export interface Rows {
  values: Float32Array;
  width: number;
}

export type Graph = (start: number, stop: number) => CsrRows;
/** Told how far the work is, from 0 to 1; it throws where the visitor has cancelled. */
export type Tick = (done: number) => Promise<void>;

/** Average the evidence of each cell with that of its neighbours, in place; gives the number of each cell's community. */
export async function overNeighbours(cells: CellEvidence, norms: Float64Array | null, graph: Graph | null, tick: Tick): Promise<Int32Array> {
  const places = placesOf(cells, norms), found: Rows[] = [{ values: cells.embeds, width: DIMENSION }, places];
  if (cells.agreement && norms) found.push({ values: cells.agreement, width: norms.length });
  if (places.values === cells.embeds) found.shift();
  await tick(0.1);
  if (graph) smoothOverGraph(found, cells, graph);
  else await smoothOverNearest(found, places, tick);
  if (places.values === cells.embeds) cells.embeds = places.values;
  const number = Math.min(Math.max(Math.floor(cells.numCells / CELLS_PER_COMMUNITY), MIN_COMMUNITIES), MAX_COMMUNITIES);
  const communities = new Int32Array(cells.numCells);
  divided(places, number).forEach((rows, community) => rows.forEach((row) => (communities[row] = community)));
  await tick(1);
  return communities;
}

/** Unit vectors that lie near one another for cells of one type: what embeddings and type profiles say. */
export function placesOf(cells: CellEvidence, norms: Float64Array | null): Rows {
  if (!cells.agreement || !norms) return { values: cells.embeds, width: DIMENSION };
  const types = norms.length, agreement = { values: cells.agreement, width: types };
  const { mean, scatter } = meanAndScatter(agreement, norms.map((norm) => 1 / norm));
  const { values, vectors } = largestEigen(scatter, types, NUM_DIRECTIONS), number = values.length;
  const spread = Math.sqrt(values.reduce((sum, value) => sum + value, 0) / cells.numCells);
  const axes = Float64Array.from({ length: types * number }, (_, at) => {
    const type = Math.floor(at / number);
    return vectors[at % number][type] / norms[type] / Math.max(spread, 1e-9);
  });
  const { mean: centre, trace } = meanAndTrace({ values: cells.embeds, width: DIMENSION });
  const embedsSpread = Math.max(Math.sqrt(trace / cells.numCells), 1e-9), width = DIMENSION + number;
  const places = new Float32Array(cells.numCells * width), own = new Float64Array(width);
  for (let cell = 0; cell < cells.numCells; cell++) {
    for (let at = 0; at < DIMENSION; at++) own[at] = (cells.embeds[cell * DIMENSION + at] - centre[at]) / embedsSpread;
    own.fill(0, DIMENSION);
    for (let type = 0; type < types; type++) {
      const value = WEIGHT_OF_PROFILES * (cells.agreement[cell * types + type] - mean[type]);
      for (let axis = 0; axis < number; axis++) own[DIMENSION + axis] += value * axes[type * number + axis];
    }
    let squares = 0;
    for (const value of own) squares += value * value;
    const length = Math.max(Math.sqrt(squares), 1e-9);
    for (let at = 0; at < width; at++) places[cell * width + at] = own[at] / length;
  }
  return { values: places, width };
}

function meanAndTrace({ values, width }: Rows): { mean: Float64Array; trace: number } {
  const numRows = values.length / width, mean = new Float64Array(width);
  for (let at = 0; at < values.length; at++) mean[at % width] += values[at] / numRows;
  let trace = 0;
  for (let at = 0; at < values.length; at++) trace += (values[at] - mean[at % width]) ** 2;
  return { mean, trace };
}

function meanAndScatter({ values, width }: Rows, scale: Float64Array): { mean: Float64Array; scatter: Float64Array } {
  const numRows = values.length / width, mean = new Float64Array(width);
  for (let row = 0; row < numRows; row++) for (let at = 0; at < width; at++) mean[at] += values[row * width + at];
  for (let at = 0; at < width; at++) mean[at] /= numRows;
  return { mean, scatter: scatterOf({ values, width }, null, mean, scale) };
}

/** (D, D): products of the differences of rows from the mean, summed. */
function scatterOf({ values, width }: Rows, rows: Int32Array | null, mean: Float64Array, scale: Float64Array | null): Float64Array {
  const numRows = rows ? rows.length : values.length / width, scatter = new Float64Array(width * width), BLOCK = 512;
  for (let start = 0; start < numRows; start += BLOCK) {
    const size = Math.min(BLOCK, numRows - start), columns = new Float32Array(width * size);
    for (let row = 0; row < size; row++) {
      const from = (rows ? rows[start + row] : start + row) * width;
      for (let at = 0; at < width; at++) columns[at * size + row] = (values[from + at] - mean[at]) * (scale ? scale[at] : 1);
    }
    const found = products(columns, columns, size);
    for (let at = 0; at < found.length; at++) scatter[at] += found[at];
  }
  return scatter;
}

/** The file's own graph: neighbours may lie anywhere, so that the result has arrays of its own. */
function smoothOverGraph(found: Rows[], cells: CellEvidence, graph: Graph): void {
  const own = 1 / (NUM_NEIGHBOURS + 1), before = found.map(({ values }) => values.slice());
  for (let start = 0; start < cells.numCells; start += CELLS_PER_BLOCK) {
    const stop = Math.min(start + CELLS_PER_BLOCK, cells.numCells), rows = graph(start, stop);
    const weights = Float64Array.from(rows.data, (weight) => (weight > 0 && Number.isFinite(weight) ? weight : 0));
    for (let cell = start; cell < stop; cell++) {
      const from = rows.indptr[cell - start], to = rows.indptr[cell - start + 1];
      const total = weights.subarray(from, to).reduce((sum, weight) => sum + weight, 0);
      if (!total) continue;
      found.forEach(({ values, width }, place) => {
        for (let at = 0; at < width; at++) values[cell * width + at] *= own;
        for (let entry = from; entry < to; entry++) {
          const other = rows.indices[entry] * width, share = ((1 - own) * weights[entry]) / total;
          for (let at = 0; at < width; at++) values[cell * width + at] += share * before[place][other + at];
        }
      });
    }
  }
}

/** Nearest neighbours are looked for within blocks of like cells, so that a block at a time can be replaced. */
async function smoothOverNearest(found: Rows[], places: Rows, tick: Tick): Promise<void> {
  const numCells = places.values.length / places.width;
  let done = 0;
  for (const block of divided(places, 1, CELLS_PER_BLOCK)) {
    for (let from = 0; from < block.length; from += CELLS_PER_BLOCK) {
      const rows = block.subarray(from, from + CELLS_PER_BLOCK);
      const neighbours = await nearest(rowsOf(places, rows), places.width, NUM_NEIGHBOURS, (share) =>
        tick(0.1 + (0.8 * (done + share * rows.length)) / numCells));
      for (const { values, width } of found) averageWithin({ values, width }, rows, neighbours);
      done += rows.length;
    }
  }
}

function rowsOf({ values, width }: Rows, rows: Int32Array): Float32Array {
  const result = new Float32Array(rows.length * width);
  rows.forEach((row, place) => result.set(values.subarray(row * width, (row + 1) * width), place * width));
  return result;
}

/** Of each row itself and its most similar others, by place, end to end. */
async function nearest(values: Float32Array, width: number, number: number, tick: Tick): Promise<Int32Array> {
  const numRows = values.length / width, most = Math.min(number + 1, numRows), result = new Int32Array(numRows * most), PART = 128;
  for (let start = 0; start < numRows; start += PART) {
    const stop = Math.min(start + PART, numRows);
    const similarity = products(values.subarray(start * width, stop * width), values, width);
    for (let row = start; row < stop; row++) {
      bestOf(similarity.subarray((row - start) * numRows, (row - start + 1) * numRows), result.subarray(row * most, (row + 1) * most));
    }
    await tick(stop / numRows);
  }
  return result;
}

/** The places of the largest values. */
function bestOf(values: Float32Array, best: Int32Array): void {
  const held = new Float64Array(best.length).fill(-Infinity);
  for (let place = 0; place < values.length; place++) {
    if (values[place] <= held[held.length - 1]) continue;
    let at = held.length - 1;
    while (at > 0 && held[at - 1] < values[place]) {
      held[at] = held[at - 1];
      best[at] = best[at - 1];
      at--;
    }
    held[at] = values[place];
    best[at] = place;
  }
}

function averageWithin({ values, width }: Rows, rows: Int32Array, neighbours: Int32Array): void {
  const before = rowsOf({ values, width }, rows), most = neighbours.length / rows.length;
  rows.forEach((row, place) => {
    for (let at = 0; at < width; at++) {
      let sum = 0;
      for (let one = place * most; one < (place + 1) * most; one++) sum += before[neighbours[one] * width + at];
      values[row * width + at] = sum / most;
    }
  });
}

/** Cells that lie together. */
class Group {
  readonly mean: Float64Array;
  readonly spread: number;

  constructor(private all: Rows, readonly rows: Int32Array) {
    const { values, width } = all;
    this.mean = new Float64Array(width);
    for (const row of rows) for (let at = 0; at < width; at++) this.mean[at] += values[row * width + at];
    for (let at = 0; at < width; at++) this.mean[at] /= rows.length;
    let spread = 0;
    for (const row of rows) for (let at = 0; at < width; at++) spread += (values[row * width + at] - this.mean[at]) ** 2;
    this.spread = spread;
  }

  /** Two groups by two-means, begun along the main axis; null where that would split off too few cells. */
  halves(): [Group, Group] | null {
    const { values, width } = this.all, numRows = this.rows.length;
    let axis = this.mainAxis(), threshold = dot(axis, this.mean);
    let side = new Uint8Array(numRows);
    for (let round = 0; round < ROUNDS; round++) {
      const before = side, sums = new Float64Array(width);
      let number = 0;
      side = new Uint8Array(numRows);
      this.rows.forEach((row, place) => {
        let product = 0;
        for (let at = 0; at < width; at++) product += values[row * width + at] * axis[at];
        if (product <= threshold) return;
        side[place] = 1;
        number++;
        for (let at = 0; at < width; at++) sums[at] += values[row * width + at];
      });
      if (Math.min(number, numRows - number) < MIN_CELLS_OF_COMMUNITY) return null;
      if (side.every((is, place) => is === before[place])) break;
      const first = sums.map((sum) => sum / number);
      const second = sums.map((sum, at) => (this.mean[at] * numRows - sum) / (numRows - number));
      axis = first.map((value, at) => value - second[at]);
      threshold = (dot(first, first) - dot(second, second)) / 2;
    }
    const own = (is: number) => new Group(this.all, this.rows.filter((_, place) => side[place] === is));
    return [own(1), own(0)];
  }

  private mainAxis(): Float64Array {
    const { width } = this.all, [axis] = largestEigen(scatterOf(this.all, this.rows, this.mean, null), width, 1).vectors;
    const largest = axis[argmax(axis.map(Math.abs))];
    return largest < 0 ? axis.map((value) => -value) : axis;
  }
}

/** Rows of like cells, in `number` groups, none larger than `mostCells`; the group that is spread most is halved first. */
export function divided(all: Rows, number: number, mostCells = Infinity): Int32Array[] {
  const numRows = all.values.length / all.width;
  let groups = [new Group(all, Int32Array.from({ length: numRows }, (_, row) => row))];
  const whole: Group[] = [];
  while (groups.length) {
    const tooLarge = groups.filter((group) => group.rows.length > mostCells);
    if (!tooLarge.length && groups.length + whole.length >= number) break;
    const chosen = (tooLarge.length ? tooLarge : groups).reduce((most, group) => (group.spread > most.spread ? group : most));
    groups = groups.filter((group) => group !== chosen);
    const halves = chosen.spread > 1e-9 * chosen.rows.length ? chosen.halves() : null;
    if (halves) groups.push(...halves);
    else whole.push(chosen);
  }
  return [...whole, ...groups].map((group) => group.rows);
}
