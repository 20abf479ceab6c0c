// A map of cells from their embeddings: neighbours stay near (UMAP by McInnes et al., in its plainest form).

import { DIMENSION } from "./calling";
import type { Tick } from "./consensus";
import { randomNumbers, shuffled } from "./evidence";
import { argmax, dot, largestEigen, products } from "./linear_algebra";

const MOST_LANDMARKS = 2_500, NUM_NEIGHBOURS = 12, ROUNDS = 200, NUM_REPELLED = 5;
// The curve of UMAP for a least distance of 0.3: 1 / (1 + A d^2B).
const A = 0.992, B = 1.112;

/** Two coordinates for each cell. Of many cells some are laid out, and the others lie beside those that are most like them. */
export async function mapOf(embeds: Float32Array, tick: Tick): Promise<Float32Array> {
  const numCells = embeds.length / DIMENSION, random = randomNumbers(1);
  const chosen = numCells <= MOST_LANDMARKS ? null : shuffled(numCells, random).slice(0, MOST_LANDMARKS).sort();
  const landmarks = chosen ? rowsOf(embeds, chosen) : embeds;
  const places = mainAxes(landmarks), neighbours = nearest(landmarks, landmarks, NUM_NEIGHBOURS + 1);
  await tick(0.2);
  for (let round = 0; round < ROUNDS; round++) {
    pull(places, neighbours, 1 - round / ROUNDS, random);
    if (round % 20 === 0) await tick(0.2 + (0.6 * round) / ROUNDS);
  }
  return chosen ? beside(embeds, landmarks, places, random, tick) : places;
}

function rowsOf(values: Float32Array, rows: Int32Array): Float32Array {
  const result = new Float32Array(rows.length * DIMENSION);
  rows.forEach((row, place) => result.set(values.subarray(row * DIMENSION, (row + 1) * DIMENSION), place * DIMENSION));
  return result;
}

function mainAxes(values: Float32Array): Float32Array {
  const numRows = values.length / DIMENSION, mean = new Float64Array(DIMENSION), scatter = new Float64Array(DIMENSION * DIMENSION);
  values.forEach((value, at) => (mean[at % DIMENSION] += value / numRows));
  const row = new Float64Array(DIMENSION);
  for (let from = 0; from < values.length; from += DIMENSION) {
    for (let at = 0; at < DIMENSION; at++) row[at] = values[from + at] - mean[at];
    for (let one = 0; one < DIMENSION; one++) for (let other = 0; other < DIMENSION; other++) scatter[one * DIMENSION + other] += row[one] * row[other];
  }
  const { vectors } = largestEigen(scatter, DIMENSION, 2), places = new Float32Array(2 * numRows);
  for (let cell = 0; cell < numRows; cell++) {
    for (let at = 0; at < DIMENSION; at++) row[at] = values[cell * DIMENSION + at] - mean[at];
    for (let axis = 0; axis < 2; axis++) places[2 * cell + axis] = 12 * (vectors[axis] ? dot(row, vectors[axis]) : 0);
  }
  return places;
}

/** Of each row of `values` the most similar rows of `others`, the nearest first. */
function nearest(values: Float32Array, others: Float32Array, number: number): Int32Array {
  const numRows = values.length / DIMENSION, numOthers = others.length / DIMENSION, most = Math.min(number, numOthers);
  const result = new Int32Array(numRows * most), PART = 128;
  for (let start = 0; start < numRows; start += PART) {
    const stop = Math.min(start + PART, numRows);
    const similarity = products(values.subarray(start * DIMENSION, stop * DIMENSION), others, DIMENSION);
    for (let row = 0; row < stop - start; row++) {
      const own = similarity.subarray(row * numOthers, (row + 1) * numOthers);
      for (let place = 0; place < most; place++) {
        const best = argmax(own);
        result[(start + row) * most + place] = best;
        own[best] = -Infinity;
      }
    }
  }
  return result;
}

/** One round: neighbours attract one another, cells at random repel. */
function pull(places: Float32Array, neighbours: Int32Array, strength: number, random: () => number): void {
  const numCells = places.length / 2, each = neighbours.length / numCells;
  const limited = (value: number) => Math.max(-4, Math.min(4, value));
  for (let cell = 0; cell < numCells; cell++) {
    for (let place = 1; place < each; place++) {
      if (random() > 1 / Math.sqrt(place)) continue; // the nearest attract most
      const other = neighbours[cell * each + place];
      attract(cell, other);
      for (let repelled = 0; repelled < NUM_REPELLED; repelled++) repel(cell, Math.floor(random() * numCells));
    }
  }
  function attract(cell: number, other: number): void {
    const dx = places[2 * cell] - places[2 * other], dy = places[2 * cell + 1] - places[2 * other + 1], square = dx * dx + dy * dy;
    if (!square) return;
    const force = (-2 * A * B * square ** (B - 1)) / (1 + A * square ** B);
    move(cell, force * dx, force * dy);
    move(other, -force * dx, -force * dy);
  }
  function repel(cell: number, other: number): void {
    if (cell === other) return;
    const dx = places[2 * cell] - places[2 * other], dy = places[2 * cell + 1] - places[2 * other + 1], square = dx * dx + dy * dy;
    const force = (2 * B) / ((0.001 + square) * (1 + A * square ** B));
    move(cell, force * dx || 0.1, force * dy || 0.1);
  }
  function move(cell: number, dx: number, dy: number): void {
    places[2 * cell] += strength * limited(dx);
    places[2 * cell + 1] += strength * limited(dy);
  }
}

async function beside(embeds: Float32Array, landmarks: Float32Array, places: Float32Array, random: () => number, tick: Tick): Promise<Float32Array> {
  const numCells = embeds.length / DIMENSION, result = new Float32Array(2 * numCells), NEAR = 3, PART = 2048;
  for (let start = 0; start < numCells; start += PART) {
    const stop = Math.min(start + PART, numCells), near = nearest(embeds.subarray(start * DIMENSION, stop * DIMENSION), landmarks, NEAR);
    for (let cell = start; cell < stop; cell++) {
      for (let axis = 0; axis < 2; axis++) {
        let sum = 0;
        for (let place = 0; place < NEAR; place++) sum += places[2 * near[(cell - start) * NEAR + place] + axis];
        result[2 * cell + axis] = sum / NEAR + 0.3 * (random() - 0.5);
      }
    }
    await tick(0.8 + (0.2 * stop) / numCells);
  }
  return result;
}
