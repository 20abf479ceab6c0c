// From similarities of cells and labels to calls: the one rule, step by step as processing/calling_scmmgpt.py says it.

import { BackOff, type Calls, Groups, labelSets, ROOT } from "./back_off";
import type { Calibration } from "./calibration";
import { heldLabels, Lineages, namesOfHeld } from "./held_labels";
import { type LabelSet, textsOf, trainedLabels, UNKNOWN } from "./labels";
import { argmax, products, softmax } from "./linear_algebra";
import type { Ontology } from "./ontology";
import { LEAST_REACH, trust } from "./species";
import { Agreement, type TypeProfiles } from "./type_profiles";

const MIN_CELLS_FOR_PRIOR = 100, MAX_SHARE_OF_ONE_LABEL = 0.6, MIN_COSINE_OF_FREE_TEXT = 0.9;
export const DIMENSION = 256, CELLS_PER_PART = 512;

export type EmbedTexts = (texts: string[]) => Promise<Float32Array>;

/** What one model says about reading its scores. */
export interface Annotator {
  ontology: Ontology;
  calibration: Calibration;
  profiles: TypeProfiles;
  trainedTypes: string[];
  scale: number;
}

/** The labels that cells may get: their unit vectors (C, D), what they mean, and the label each profile counts for. */
export interface Candidates {
  labels: LabelSet;
  embeds: Float32Array;
  termIds: (string | null)[];
  ofProfile: Int32Array;
}

/** What is known about N cells; `agreement` (N, T) with the profiles that count for some label. */
export interface CellEvidence {
  numCells: number;
  embeds: Float32Array;
  isEmpty: boolean[];
  isImplausible: boolean[];
  agreement: Float32Array | null;
}

export const profilesOf = (candidates: Candidates) => Array.from(candidates.ofProfile.keys()).filter((type) => candidates.ofProfile[type] >= 0);

export async function candidatesOf(annotator: Annotator, labels: LabelSet, embedTexts: EmbedTexts, tissue = ""): Promise<Candidates> {
  const embeds = await embedTexts(textsOf(labels, tissue));
  const termIds = await meantTerms(annotator, labels, embeds, embedTexts);
  return { labels, embeds, termIds, ofProfile: candidateOfProfile(annotator, termIds) };
}

function candidateOfProfile(annotator: Annotator, termIds: (string | null)[]): Int32Array {
  if (!annotator.calibration.profileWeight) return new Int32Array(annotator.profiles.numTypes).fill(-1);
  const found = annotator.profiles.candidates(termIds, annotator.ontology);
  return new Set(found.filter((one) => one >= 0)).size > 1 ? found : found.fill(-1);
}

/** The term of each label; for free text that of the trained type next to it, if one is so near. */
async function meantTerms(annotator: Annotator, labels: LabelSet, embeds: Float32Array, embedTexts: EmbedTexts): Promise<(string | null)[]> {
  const terms = annotator.trainedTypes.map((name) => annotator.ontology.find(name)).filter((term) => term !== null);
  const free = labels.termIds.flatMap((id, index) => (id === null ? [index] : []));
  if (!terms.length || !free.length) return labels.termIds;
  const trained = await embedTexts(textsOf(trainedLabels(annotator.trainedTypes, annotator.ontology)));
  const nearest = free.map((index) => {
    const cosines = products(embeds.subarray(index * DIMENSION, (index + 1) * DIMENSION), trained, DIMENSION);
    const type = argmax(cosines);
    return { index, id: terms[type].id, cosine: cosines[type] };
  });
  const meant = [...labels.termIds], taken = new Set(labels.termIds);
  for (const { index, id, cosine } of nearest.sort((one, other) => other.cosine - one.cosine)) {
    if (cosine < MIN_COSINE_OF_FREE_TEXT || taken.has(id)) continue;
    meant[index] = id;
    taken.add(id);
  }
  return meant;
}

export interface ScorerSettings {
  measured: Set<number>;
  ofStudy: boolean;
  reach: number;
}

/** Calibrated probabilities of the candidates for any rows of the cells. */
export class Scorer {
  readonly width: number;
  readonly agreement: Agreement | null;
  calibration: Calibration;
  temperature: number;
  bias: Float32Array;
  priorShare = 0;
  profileWeight = 0;
  /** The labels that calls may use: all, or by index those that the study holds. */
  columns: number[] | null = null;
  called: LabelSet;
  /** What is taken from the logits of labels where calls are made, and not where sets are. */
  biasOfCalls: Float64Array | null = null;
  readonly reach: number;
  private weights: Float32Array;

  constructor(annotator: Annotator, readonly cells: CellEvidence, readonly candidates: Candidates, settings: ScorerSettings) {
    this.width = candidates.labels.labels.length;
    this.called = candidates.labels;
    this.reach = settings.reach;
    this.weights = candidates.embeds.map((value) => Math.fround(value * annotator.scale));
    const types = profilesOf(candidates), all = types.length ? annotator.profiles.norms(settings.measured) : null;
    this.agreement =
      cells.agreement && all
        ? new Agreement(cells.agreement, Float64Array.from(types, (type) => all[type]), types.map((type) => candidates.ofProfile[type]))
        : null;
    const calibration = settings.ofStudy ? annotator.calibration.ofStudy : annotator.calibration;
    this.calibration = calibration;
    [this.temperature, this.bias] = this.readBy(calibration);
    const isStudy = this.isStudy();
    if (!isStudy) {
      this.calibration = calibration.ofSingleCells;
      [this.temperature, this.bias] = this.readBy(this.calibration);
    }
    this.priorShare = isStudy ? calibration.priorShare : 0;
    if (this.priorShare) {
      const mean = this.meanLogits();
      this.bias = this.bias.map((bias, label) => bias + this.priorShare * mean[label]);
    }
    if (isStudy && this.agreement) this.profileWeight = calibration.profileWeight;
  }

  private readBy(calibration: Calibration): [number, Float32Array] {
    return [calibration.temperature(this.width), calibration.biasOf(this.candidates.labels.labels, this.candidates.termIds)];
  }

  logits(start: number, stop: number): Float32Array {
    const logits = products(this.cells.embeds.subarray(start * DIMENSION, stop * DIMENSION), this.weights, DIMENSION);
    for (let from = 0; from < logits.length; from += this.width) for (let label = 0; label < this.width; label++) logits[from + label] -= this.bias[label];
    if (this.agreement && this.profileWeight) this.agreement.addTo(logits, this.width, start, stop, this.profileWeight);
    return logits;
  }

  /** (rows, C) of all candidates, from their logits. */
  probabilities(logits: Float32Array): Float32Array {
    const probabilities = softmax(logits.slice(), this.width, this.temperature), trusted = trust(this.reach);
    return trusted < 1 ? probabilities.map((probability) => probability * trusted) : probabilities;
  }

  /** Those of the labels that calls may use. */
  probabilitiesOfCalls(logits: Float32Array): Float32Array {
    const columns = this.columns, bias = this.biasOfCalls;
    if (!columns || !bias) return this.probabilities(logits);
    const probabilities = this.probabilities(logits.map((value, at) => value - bias[at % this.width]));
    const result = new Float32Array((probabilities.length / this.width) * columns.length);
    for (let row = 0; row * this.width < probabilities.length; row++) {
      columns.forEach((label, place) => (result[row * columns.length + place] = probabilities[row * this.width + label]));
    }
    return result;
  }

  get profileReach(): number {
    return this.agreement && this.profileWeight ? this.agreement.reach : 1;
  }

  private meanLogits(): Float32Array {
    const mean = new Float64Array(DIMENSION);
    for (let at = 0; at < this.cells.embeds.length; at++) mean[at % DIMENSION] += this.cells.embeds[at];
    const logits = products(Float32Array.from(mean, (sum) => sum / this.cells.numCells), this.weights, DIMENSION);
    const centred = logits.map((value, label) => value - this.bias[label]);
    const middle = centred.reduce((sum, value) => sum + value, 0) / this.width;
    return centred.map((value) => value - middle);
  }

  /** Whether there are enough cells, of more than one type, to compare them with one another. */
  private isStudy(): boolean {
    const numCells = this.cells.numCells;
    if (numCells < MIN_CELLS_FOR_PRIOR || this.width < 2) return false;
    const wins = new Float64Array(this.width);
    for (const [start, stop] of parts(numCells)) {
      const logits = this.logits(start, stop);
      for (let from = 0; from < logits.length; from += this.width) wins[argmax(logits, from, from + this.width)]++;
    }
    return Math.max(...wins) <= MAX_SHARE_OF_ONE_LABEL * numCells;
  }
}

/** Means of the logits over the cells of each group, (groups, C). */
function groupMeans(scorer: Scorer, groups: Int32Array, sizes: Float64Array): Float64Array {
  const width = scorer.width, means = new Float64Array(sizes.length * width);
  for (const [start, stop] of parts(groups.length)) {
    const logits = scorer.logits(start, stop);
    for (let cell = start; cell < stop; cell++) {
      const to = groups[cell] * width, from = (cell - start) * width;
      for (let label = 0; label < width; label++) means[to + label] += logits[from + label];
    }
  }
  return means.map((sum, at) => sum / sizes[Math.floor(at / width)]);
}

/** Leave to the scorer those labels alone that the study holds, by the names that they are called. */
export function keepHeld(annotator: Annotator, scorer: Scorer, communities: Int32Array): void {
  const calibration = scorer.calibration, width = scorer.width;
  const numCells = new Float64Array(communities.reduce((most, one) => Math.max(most, one), 0) + 1);
  for (const community of communities) numCells[community]++;
  const lineages = new Lineages(scorer.candidates.termIds, annotator.ontology);
  const logits = groupMeans(scorer, communities, numCells);
  const bias = Float64Array.from(lineages.isParent, (is) => (is ? calibration.parentBias : 0));
  const chances = softmaxRows(logits.map((value, at) => value - bias[at % width]), width, calibration.namingTemperature);
  const held = heldLabels(chances, numCells, lineages, calibration.leastShare / scorer.profileReach);
  const said = softmaxRows(logits.slice(), width, calibration.namingTemperature);
  const names = namesOfHeld(held, said, numCells, lineages, calibration.leastPart);
  const own = scorer.candidates.labels;
  scorer.columns = held;
  scorer.called = {
    ...own,
    labels: names.map((place) => own.labels[place]),
    termIds: names.map((place) => own.termIds[place]),
    descriptions: names.map((place) => own.descriptions[place]),
  };
  scorer.biasOfCalls = bias;
}

function softmaxRows(logits: Float64Array, width: number, temperature: number): Float64Array {
  for (let from = 0; from < logits.length; from += width) {
    const row = logits.subarray(from, from + width), most = row.reduce((best, value) => Math.max(best, value), -Infinity);
    let sum = 0;
    row.forEach((value, at) => (sum += row[at] = Math.exp((value - most) / temperature)));
    row.forEach((value, at) => (row[at] = value / sum));
  }
  return logits;
}

export interface Called {
  calls: Calls;
  sets: string[];
}

/** The call and the label set of every cell. */
export function callCells(annotator: Annotator, scorer: Scorer, minConfidence: number | null = null): Called {
  const numCells = scorer.cells.numCells, least = minConfidence ?? scorer.calibration.minConfidence;
  const calls: Calls = { labels: [], termIds: [], confidence: new Float32Array(numCells), second: [] }, sets: string[] = [];
  const backOff = new BackOff(scorer.called, annotator.ontology, least);
  const labels = scorer.candidates.labels, groups = new Groups(labels, annotator.ontology);
  const gap = scorer.calibration.setGap(scorer.width) / scorer.profileReach;
  for (const [start, stop] of parts(numCells)) {
    const logits = scorer.logits(start, stop);
    sets.push(...labelSets(scorer.probabilities(logits), labels, groups, gap));
    backOff.add(calls, start, scorer.probabilitiesOfCalls(logits));
  }
  const isFar = scorer.reach < LEAST_REACH;
  for (let cell = 0; cell < numCells; cell++) {
    const isNone = scorer.cells.isEmpty[cell] || scorer.cells.isImplausible[cell] || isFar;
    if (isNone) sets[cell] = ROOT;
    if (isNone && least > 0) makeUnknown(calls, cell);
  }
  return { calls, sets };
}

export function makeUnknown(calls: Calls, cell: number): void {
  calls.labels[cell] = calls.termIds[cell] = UNKNOWN;
  calls.confidence[cell] = 0;
}

export function* parts(numCells: number): Generator<[number, number]> {
  for (let start = 0; start < numCells; start += CELLS_PER_PART) yield [start, Math.min(start + CELLS_PER_PART, numCells)];
}
