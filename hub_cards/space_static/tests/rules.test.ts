// Each rule gives what Python gives, on what the golden files hold.

import { describe, expect, it } from "vitest";
import { inNamesOfTypes } from "../src/author_labels";
import type { CsrRows, Matrix } from "../src/cell_matrix";
import { kindsOf } from "../src/features";
import { tokenize } from "../src/gene_tokenizer";
import { labelText, readLabels } from "../src/labels";
import { recognise } from "../src/matrix_state";
import { plainName } from "../src/ontology";
import { TextTokenizer } from "../src/text_tokenizer";
import { golden, goldenTables, readFile } from "./golden";

interface Csr { indptr: number[]; indices: number[]; data: number[]; num_columns: number }

const rowsOf = (csr: Csr): CsrRows => ({
  indptr: Int32Array.from(csr.indptr), indices: Int32Array.from(csr.indices), data: Float64Array.from(csr.data),
});

describe("texts", () => {
  it.each(golden.plain_names as [string, string][])("%s is plainly %s", (name, plain) => {
    expect(plainName(name)).toBe(plain);
  });

  it.each(golden.label_texts as string[][])("the label %s says what it says in Python", (label, said, tissue, text) => {
    expect(labelText(label, said, tissue)).toBe(text);
  });

  it.each(golden.label_sets as { given: string[]; labels: string[]; names: string[]; term_ids: (string | null)[] }[])("authors' words $given mean the same", async (expected) => {
    const { annotator } = await goldenTables();
    const found = readLabels(expected.given, annotator.ontology);
    expect(found.labels).toEqual(expected.labels);
    expect(found.termIds).toEqual(expected.term_ids);
    expect(found.names).toEqual(expected.names);
  });

  it("an id that the ontology does not have, and unknown alone, are refused", async () => {
    const { annotator } = await goldenTables();
    expect(() => readLabels(["B cell", "CL:9999999"], annotator.ontology)).toThrow("CL:9999999 is no term");
    expect(() => readLabels(["unknown"], annotator.ontology)).toThrow("cells without a call");
  });

  it.each(golden.queries as [string, string][])("%s is searched as %s", async (text, named) => {
    const { annotator } = await goldenTables();
    expect(inNamesOfTypes(text, annotator.ontology)).toBe(named);
  });

  it("words become the same ids", async () => {
    const words = new TextTokenizer(JSON.parse(new TextDecoder().decode(await readFile("tokenizer.json"))), 512);
    for (const [text, ids] of golden.text_ids as [string, number[]][]) expect(words.encode(text), text).toEqual(ids);
  });
});

describe("matrices", () => {
  it.each((golden.states as (Csr & { kind: string; detail: string; base: number; exact: boolean })[]).map((one) => [one.detail, one] as const))(
    "%s is recognised",
    (_, { kind, detail, base, exact, ...csr }) => {
      const found = recognise(rowsOf(csr), csr.num_columns, null);
      expect(found.kind).toBe(kind);
      expect(found.exact).toBe(exact);
      expect(found.base).toBeCloseTo(base, 12);
      expect(found.detail.replace(/\d+%/, "")).toBe(detail.replace(/\d+%/, ""));
    },
  );

  it("columns are genes or what they are in Python", () => {
    for (const { names, kinds } of golden.features) {
      expect(kindsOf({ names: new Map([["index", names]]), types: new Map() } as unknown as Matrix)).toEqual(kinds);
    }
  });
});

describe("genes", () => {
  it("are found under every name and in every species as Python finds them", async () => {
    const { identifier } = await goldenTables();
    for (const { columns, species, rows, scheme } of golden.genes) {
      const match = identifier.match(new Map(Object.entries(columns)));
      expect(match.species).toBe(species);
      expect(match.scheme).toBe(scheme);
      expect(Array.from(match.rows)).toEqual(rows);
    }
  });

  it("become the same tokens in the same order", async () => {
    const { vocabulary, identifier, settings } = await goldenTables(), { names, bounds, ids, values, ...csr } = golden.tokens;
    const { rows } = identifier.match(new Map([["index", names as string[]]]));
    const tokens = tokenize(rowsOf(csr), rows, vocabulary, settings, vocabulary.panelShare(rows.filter((row) => row >= 0)));
    expect(Array.from(tokens.bounds)).toEqual(bounds);
    expect(Array.from(tokens.ids)).toEqual(ids);
    (values as number[]).forEach((value, at) => expect(tokens.values[at]).toBeCloseTo(value, 6));
  });
});
