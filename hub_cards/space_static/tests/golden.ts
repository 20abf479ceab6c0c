// The golden files that `python -m scmmgpt.hub_cards.page_golden` wrote, and the model's own tables beside them.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { readTables, type Tables, TextEmbeds } from "../src/model";

const GOLDEN = process.env.SCMMGPT_GOLDEN ?? join(import.meta.dirname, "../golden");
const MODEL = process.env.SCMMGPT_MODEL ?? join(import.meta.dirname, "../../scmmgpt-mini");

if (!existsSync(join(GOLDEN, "golden.json"))) {
  throw new Error(
    "There are no golden files. From the root of the repository: .venv/bin/python -m scmmgpt.hub_cards.page_golden " +
      "hub_cards/space_static/golden tests/data/pbmc_facs_300.h5ad",
  );
}

export async function readFile(name: string): Promise<ArrayBuffer> {
  const path = [GOLDEN, MODEL].map((folder) => join(folder, name)).find(existsSync);
  if (!path) throw new Error(`${name} is in neither folder.`);
  const bytes = readFileSync(path);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
}

export const golden = JSON.parse(readFileSync(join(GOLDEN, "golden.json"), "utf8"));
export const textFile = (name: string) => readFileSync(join(GOLDEN, name), "utf8");

let tables: Promise<Tables> | null = null;
export const goldenTables = () => (tables ??= readTables(readFile));

/** Texts whose embeddings Python gave; others are asked for in vain. */
export async function goldenTexts(): Promise<TextEmbeds> {
  const towers = { texts: async (texts: string[]) => { throw new Error(`no golden embedding of: ${texts[0]}`); } };
  return new TextEmbeds(towers, JSON.parse(textFile("texts.json")), new Float32Array(await readFile("texts.f32")));
}
