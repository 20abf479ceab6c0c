// The runtime of the towers: WebGPU where there is one that gives the same embeddings sooner, else WASM with SIMD on one core.

import { products } from "./linear_algebra";
import { DIMENSION } from "./calling";
import type { Tokens } from "./gene_tokenizer";
import { FIRST_GENE_ID } from "./gene_vocabulary";
import { type ReadFile, reader } from "./model";
import { gunzip, textOf } from "./packed_files";
import { TextTokenizer } from "./text_tokenizer";
import { type Runtime, type TextSide, Towers } from "./towers";

const LEAST_COSINE = 0.9999, NUM_TRIED = 32, GENES_OF_TRIED = 500;

/** What this page uses of the module of onnxruntime-web. */
type Module = Runtime & { env: { wasm: { numThreads: number; wasmBinary?: ArrayBuffer; wasmPaths?: { mjs: string } } } };

export interface Engine {
  towers: Towers;
  isGpu: boolean;
  bytes: number;
}

export interface EngineSettings {
  base: string;
  kind: "wasm" | "jspi";
  withTexts: boolean;
  numGenes: number;
}

export async function openEngine({ base, kind, withTexts, numGenes }: EngineSettings): Promise<Engine> {
  const { read, total } = reader(base), runtime = await load(base, kind), cells = await read("cell_tower.onnx");
  const texts = withTexts ? await textSide(read) : null;
  const plain = await Towers.open(runtime, cells, texts, ["wasm"]);
  if (kind === "wasm") return { towers: plain, isGpu: false, bytes: total() };
  const quick = await Towers.open(runtime, cells, texts, ["webgpu", "wasm"]).catch(() => null);
  const isGpu = quick !== null && (await isSameAndSooner(quick, plain, someTokens(numGenes)).catch(() => false));
  return { towers: isGpu ? quick : plain, isGpu, bytes: total() };
}

async function textSide(read: ReadFile): Promise<TextSide> {
  const longest = (JSON.parse(textOf(await read("manifest.json"))) as { longest_text: number }).longest_text;
  return { tower: await read("text_tower.onnx"), words: new TextTokenizer(JSON.parse(textOf(await read("tokenizer.json"))), longest) };
}

async function load(base: string, kind: "wasm" | "jspi"): Promise<Module> {
  const binary = `ort/ort-wasm-simd-threaded${kind === "jspi" ? ".jspi" : ""}`;
  const packed = await fetch(new URL(`${binary}.wasm.gz`, base));
  if (!packed.ok) throw new Error(`${binary}.wasm.gz is missing on this server (${packed.status}).`);
  const runtime: Module = await import(/* @vite-ignore */ new URL(`ort/ort.${kind}.min.mjs`, base).href);
  runtime.env.wasm.numThreads = 1;
  runtime.env.wasm.wasmBinary = await gunzip(await packed.arrayBuffer());
  runtime.env.wasm.wasmPaths = { mjs: new URL(`${binary}.mjs`, base).href };
  return runtime;
}

/** Whether one engine gives the embeddings of another, for cells of some genes, in less time. */
async function isSameAndSooner(one: Towers, other: Towers, tokens: Tokens): Promise<boolean> {
  const timed = async (towers: Towers) => {
    await towers.cells(tokens); // the first time things are compiled
    const before = performance.now(), embeds = await towers.cells(tokens);
    return { embeds, time: performance.now() - before };
  };
  const [first, second] = [await timed(one), await timed(other)];
  for (let cell = 0; cell < NUM_TRIED; cell++) {
    const row = (embeds: Float32Array) => embeds.subarray(cell * DIMENSION, (cell + 1) * DIMENSION);
    if (!(products(row(first.embeds), row(second.embeds), DIMENSION)[0] >= LEAST_COSINE)) return false;
  }
  return first.time < second.time;
}

function someTokens(numGenes: number): Tokens {
  const numTokens = NUM_TRIED * GENES_OF_TRIED;
  return {
    bounds: Int32Array.from({ length: NUM_TRIED + 1 }, (_, cell) => cell * GENES_OF_TRIED),
    ids: Int32Array.from({ length: numTokens }, (_, at) => FIRST_GENE_ID + ((at * 37) % numGenes)),
    values: Float32Array.from({ length: numTokens }, (_, at) => 0.5 + ((at * 13) % 29) / 10),
    totals: new Float64Array(NUM_TRIED).fill(1e4),
  };
}
