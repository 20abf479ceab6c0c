// A whole study is called as Python calls it, from the embeddings that Python gave.

import { beforeAll, describe, expect, it } from "vitest";
import type { CellFile, ChosenMatrix } from "../src/cell_file";
import { DIMENSION } from "../src/calling";
import { type Annotated, Study } from "../src/study";
import { golden, goldenTables, goldenTexts, readFile, textFile } from "./golden";

interface GoldenStudy {
  asked: { labels: string[] | null; consensus?: boolean; min_confidence?: number; tissue?: string };
  obs: Record<string, (string | number)[]>;
  held: string[];
  evidence: Record<string, string[]>;
}

const noTick = async () => {};

/** The file of the golden cells, its matrix in memory. */
async function goldenFile(): Promise<CellFile> {
  const indptr = new Int32Array(await readFile("indptr.i32")), indices = new Int32Array(await readFile("indices.i32"));
  const data = new Float32Array(await readFile("data.f32")), columns: Record<string, string[]> = JSON.parse(textFile("var.json"));
  const read = (start: number, stop: number) => ({
    indptr: indptr.slice(start, stop + 1).map((bound) => bound - indptr[start]),
    indices: indices.subarray(indptr[start], indptr[stop]),
    data: data.subarray(indptr[start], indptr[stop]),
  });
  const chosen: ChosenMatrix = {
    matrix: { name: "X", shape: [indptr.length - 1, columns.index.length], read, names: new Map(Object.entries(columns)), types: new Map() },
    state: { kind: "counts", detail: "whole numbers", base: 0, exact: false },
    setAside: [],
  };
  return { numCells: indptr.length - 1, graph: null, choose: () => chosen } as unknown as CellFile;
}

describe("a study", () => {
  let study: Study;

  beforeAll(async () => {
    study = new Study(await goldenTables(), await goldenFile());
    const embeds = new Float32Array(await readFile("embeds.f32"));
    let next = 0;
    await study.read(async (tokens) => {
      const from = next;
      next += tokens.totals.length * DIMENSION;
      return embeds.slice(from, next);
    }, noTick);
  });

  it.each((golden.studies as GoldenStudy[]).map((one) => [JSON.stringify(one.asked), one] as const))("%s", async (_, { asked, obs, held, evidence }) => {
    const found = await study.annotate(
      { labels: asked.labels, consensus: asked.consensus, minConfidence: asked.min_confidence, tissue: asked.tissue }, await goldenTexts(), noTick,
    );

    expect(found.held).toEqual(held);
    expect(shareAlike(found.calls.labels, obs.cell_type)).toBeGreaterThanOrEqual(0.999);
    expect(shareAlike(found.calls.termIds, obs.cell_type_ontology_term_id)).toBeGreaterThanOrEqual(0.999);
    expect(shareAlike(found.calls.second, obs.second_choice)).toBeGreaterThanOrEqual(0.99);
    expect(shareAlike(found.sets, obs.candidates)).toBeGreaterThanOrEqual(0.99);
    obs.confidence.forEach((confidence, cell) => expect(Math.abs(found.calls.confidence[cell] - (confidence as number))).toBeLessThan(2e-3));
    expectSameEvidence(found, evidence);
  });

  it("does not change with a second call", async () => {
    const texts = await goldenTexts(), first = await study.annotate({ labels: null }, texts, noTick);
    await study.annotate({ labels: ["B cell", "platelet"] }, texts, noTick).catch(() => {});

    const second = await study.annotate({ labels: null }, texts, noTick);

    expect(second.calls).toEqual(first.calls);
  });
});

const shareAlike = (found: string[], expected: (string | number)[]) => found.filter((one, place) => one === expected[place]).length / expected.length;

function expectSameEvidence(found: Annotated, evidence: Record<string, string[]>): void {
  expect(found.evidence.map((row) => row.cellType)).toEqual(evidence.cell_type);
  expect(found.evidence.map((row) => row.genes.join(", "))).toEqual(evidence.genes);
}
