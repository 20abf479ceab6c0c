// Which labels a study holds: the few names that together say most about its communities (processing/held_labels_scmmgpt.py).

import { argmax } from "./linear_algebra";
import { type Ontology, UNINFORMATIVE_TERMS } from "./ontology";

const RELATED = 5;

/** What C labels have in common in the ontology, (C, C) each: how far two say the same; is the first above the second. */
export class Lineages {
  readonly size: number;
  readonly agreement: Float64Array;
  readonly isAbove: Uint8Array;
  readonly isParent: boolean[];

  constructor(termIds: (string | null)[], ontology: Ontology) {
    const size = (this.size = termIds.length);
    const lineages = termIds.map(
      (id) => new Set(id ? [id, ...ontology.ancestors(id)].filter((ancestor) => !UNINFORMATIVE_TERMS.has(ancestor)) : []),
    );
    this.agreement = new Float64Array(size * size);
    this.isAbove = new Uint8Array(size * size);
    for (let one = 0; one < size; one++) {
      for (let other = 0; other < size; other++) {
        let shared = 0;
        for (const ancestor of lineages[one]) if (lineages[other].has(ancestor)) shared++;
        const [own, theirs] = [lineages[one].size, lineages[other].size];
        this.agreement[one * size + other] = one === other ? 1 : (2 * shared) / Math.max(own + theirs, 1);
        this.isAbove[one * size + other] = Number(shared === own && own > 0 && own < theirs);
      }
    }
    this.isParent = termIds.map((_, label) => this.isAbove.subarray(label * size, (label + 1) * size).some(Boolean));
  }
}

/** The labels that a study holds, by index, in order. Probabilities are (K, C) of K communities of `numCells`. */
export function heldLabels(probabilities: Float64Array, numCells: Float64Array, lineages: Lineages, leastShare: number): number[] {
  const size = lineages.size, numGroups = numCells.length;
  const said = new Float64Array(probabilities.length);
  for (let group = 0; group < numGroups; group++) {
    for (let label = 0; label < size; label++) {
      let expected = 0;
      for (let other = 0; other < size; other++) expected += probabilities[group * size + other] * lineages.agreement[other * size + label];
      said[group * size + label] = (probabilities[group * size + label] + expected) / 2;
    }
  }
  const total = numCells.reduce((sum, number) => sum + number, 0), weight = numCells.map((number) => number / total);
  const bestOf = (group: number, labels: number[]) => labels.reduce((most, label) => Math.max(most, said[group * size + label]), 0);
  const lost = (label: number, others: number[]) =>
    weight.reduce((sum, own, group) => sum + own * Math.max(said[group * size + label] - bestOf(group, others), 0), 0);

  let held: number[] = [];
  for (;;) {
    const best = Array.from(numCells, (_, group) => bestOf(group, held)), gain = new Float64Array(size);
    for (let group = 0; group < numGroups; group++) {
      for (let label = 0; label < size; label++) gain[label] += weight[group] * Math.max(said[group * size + label] - best[group], 0);
    }
    const chosen = argmax(gain);
    if (held.length && gain[chosen] <= leastShare) break;
    for (const label of [...held]) {
      const others = held.filter((one) => one !== label);
      if (lost(label, [...others, chosen]) <= leastShare) held = others;
    }
    held.push(chosen);
  }
  for (;;) {
    const above = (one: number, other: number) => lineages.isAbove[one * size + other];
    const related = held.filter((one) => held.some((other) => above(one, other) || above(other, one))).sort((one, other) => one - other);
    const losses = related.map((one) => lost(one, held.filter((other) => other !== one)));
    const weakest = losses.indexOf(Math.min(...losses));
    if (!related.length || losses[weakest] > RELATED * leastShare) return held.sort((one, other) => one - other);
    held.splice(held.indexOf(related[weakest]), 1);
  }
}

/** The names of held labels: a type above one where that has too small a part of what is said below it. */
export function namesOfHeld(held: number[], probabilities: Float64Array, numCells: Float64Array, lineages: Lineages, leastPart: number): number[] {
  const size = lineages.size, within = (one: number, other: number) => one === other || lineages.isAbove[one * size + other] > 0;
  const best = Array.from(numCells, (_, group) => held[argmax(held.map((label) => probabilities[group * size + label]))]);
  const depths = Array.from({ length: size }, (_, label) => lineages.isAbove.subarray(label * size, (label + 1) * size).reduce((sum, is) => sum + is, 0));
  return held.map((label) => {
    const said = new Float64Array(size);
    best.forEach((own, group) => {
      if (own === label) for (let other = 0; other < size; other++) said[other] += numCells[group] * probabilities[group * size + other];
    });
    const below = (parent: number) => said.reduce((sum, value, other) => sum + (within(parent, other) ? value : 0), 0);
    const above = Array.from({ length: size }, (_, other) => other).filter((other) => lineages.isAbove[other * size + label]);
    let name = label;
    for (const parent of above.sort((one, other) => depths[one] - depths[other])) {
      if (held.filter((other) => within(parent, other)).length > 1) break;
      if (within(parent, name) && below(name) < leastPart * below(parent)) name = parent;
    }
    return name;
  });
}
