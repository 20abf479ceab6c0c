// Probabilities to calls, backing off in the ontology (processing/back_off_scmmgpt.py), and label sets
// (processing/label_sets_scmmgpt.py).

import { type LabelSet, UNKNOWN } from "./labels";
import { argmax } from "./linear_algebra";
import { type Ontology, UNINFORMATIVE_TERMS } from "./ontology";

const MOST_LABELS = 5;
export const ROOT = "cell", BETWEEN = " | ";

/** One call for each cell: parallel arrays. */
export interface Calls {
  labels: string[];
  termIds: string[];
  confidence: Float32Array;
  second: string[];
}

/** Types that several of the labels belong to, but not all, the most specific first, with the labels of each. */
export class Groups {
  readonly termIds: string[];
  readonly members: number[][];
  readonly names: string[];
  private isMember: Uint8Array;
  private size: number;

  constructor(labels: LabelSet, ontology: Ontology) {
    const members = new Map<string, number[]>();
    labels.termIds.forEach((id, index) => {
      for (const ancestor of id ? [id, ...ontology.ancestors(id)] : []) {
        if (members.has(ancestor)) members.get(ancestor)!.push(index);
        else members.set(ancestor, [index]);
      }
    });
    const isGroup = (id: string) =>
      members.get(id)!.length > 1 && members.get(id)!.length < labels.labels.length && !UNINFORMATIVE_TERMS.has(id) && ontology.terms.has(id);
    const size = (id: string) => members.get(id)!.length, depth = (id: string) => ontology.ancestors(id).length;
    this.termIds = [...members.keys()].filter(isGroup);
    this.termIds.sort((one, other) => size(one) - size(other) || depth(other) - depth(one) || (one < other ? -1 : 1));
    this.members = this.termIds.map((id) => members.get(id)!);
    this.size = labels.labels.length;
    this.isMember = new Uint8Array(this.members.length * this.size);
    this.members.forEach((own, group) => own.forEach((label) => (this.isMember[group * this.size + label] = 1)));
    // Of two names for one term the first counts.
    this.names = this.termIds.map((id) => labels.labels[labels.termIds.indexOf(id)] ?? ontology.terms.get(id)!.label);
  }

  /** The most specific group that holds some labels, -1 for none. */
  holding(labels: number[]): number {
    for (let group = 0; group < this.members.length; group++) {
      if (labels.every((label) => this.isMember[group * this.size + label])) return group;
    }
    return -1;
  }
}

export class BackOff {
  private groups: Groups;
  private groupsOf: number[][];

  constructor(private labels: LabelSet, ontology: Ontology, private minConfidence: number) {
    this.groups = new Groups(labels, ontology);
    this.groupsOf = labels.labels.map(() => []);
    this.groups.members.forEach((members, group) => members.forEach((label) => this.groupsOf[label].push(group)));
  }

  /** Add the call for each row of probabilities. */
  add(calls: Calls, start: number, probabilities: Float32Array): void {
    const width = this.labels.labels.length;
    for (let from = 0, cell = start; from < probabilities.length; from += width, cell++) {
      const row = probabilities.subarray(from, from + width), best = argmax(row), most = row[best];
      row[best] = -1;
      calls.second[cell] = width > 1 ? this.labels.labels[argmax(row)] : UNKNOWN;
      row[best] = most;
      calls.labels[cell] = this.labels.labels[best];
      calls.termIds[cell] = this.labels.termIds[best] ?? UNKNOWN;
      calls.confidence[cell] = most;
      if (most < this.minConfidence) this.backOff(calls, cell, row, best);
    }
  }

  private backOff(calls: Calls, cell: number, row: Float32Array, best: number): void {
    calls.labels[cell] = calls.termIds[cell] = UNKNOWN;
    for (const group of this.groupsOf[best]) {
      const members = this.groups.members[group], chance = members.length / row.length;
      const mass = members.reduce((sum, label) => sum + row[label], 0);
      if ((mass - chance) / (1 - chance) < this.minConfidence) continue;
      calls.labels[cell] = this.groups.names[group];
      calls.termIds[cell] = this.groups.termIds[group];
      calls.confidence[cell] = mass;
      return;
    }
  }
}

/** The labels of each row's set, the most probable first, or the type or root that holds them. */
export function labelSets(probabilities: Float32Array, labels: LabelSet, groups: Groups, gap: number): string[] {
  const width = labels.labels.length, sets: string[] = [];
  for (let from = 0; from < probabilities.length; from += width) {
    const row = probabilities.subarray(from, from + width), logarithm = (label: number) => Math.log(Math.max(row[label], 1e-30));
    const best = logarithm(argmax(row)), within = labels.labels.map((_, label) => label).filter((label) => logarithm(label) >= best - gap);
    if (gap === Infinity) sets.push(ROOT);
    else if (within.length <= MOST_LABELS) sets.push(within.sort((one, other) => row[other] - row[one]).map((label) => labels.labels[label]).join(BETWEEN));
    else {
      const group = groups.holding(within);
      sets.push(group < 0 ? ROOT : groups.names[group]);
    }
  }
  return sets;
}
