// The towers on all cores: each embedder is a worker of its own, which needs neither shared memory nor the headers for it.

import type { Job, Reply } from "./embedder";
import embedderUrl from "./embedder?worker&url";
import { DIMENSION } from "./calling";
import type { Tokens } from "./gene_tokenizer";

interface Started {
  isGpu: boolean;
  bytes: number;
}

class Embedder {
  private worker: Worker;
  private waiting = new Map<number, { resolve(found: never): void; reject(error: Error): void }>();
  private number = 0;

  constructor(base: string) {
    const begun = `import ${JSON.stringify(new URL(embedderUrl, base).href)};`;
    this.worker = new Worker(URL.createObjectURL(new Blob([begun], { type: "text/javascript" })), { type: "module" });
    this.worker.onmessage = ({ data }: MessageEvent<Reply>) => {
      const asked = this.waiting.get(data.number)!;
      this.waiting.delete(data.number);
      if ("error" in data) asked.reject(new Error(data.error));
      else asked.resolve(data.found as never);
    };
    this.worker.onerror = (event) => {
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "a file of the page is missing"));
      this.waiting.clear();
    };
  }

  ask<Found>(job: Job): Promise<Found> {
    const number = this.number++;
    this.worker.postMessage({ number, job });
    return new Promise((resolve, reject) => this.waiting.set(number, { resolve, reject }));
  }
}

export class TowerPool {
  private constructor(private embedders: Embedder[], readonly name: string, readonly bytes: number) {}

  /** One embedder on WebGPU where there is one that is better, else as many as there are cores. */
  static async open(base: string, cores: number, numGenes: number): Promise<TowerPool> {
    const start = (kind: "wasm" | "jspi", place: number) => {
      const embedder = new Embedder(base);
      return { embedder, started: embedder.ask<Started>({ do: "start", base, kind, withTexts: place === 0, numGenes }) };
    };
    const begun = [start((await hasWebGpu()) ? "jspi" : "wasm", 0)], { isGpu, bytes } = await begun[0].started;
    if (!isGpu) for (let place = 1; place < cores; place++) begun.push(start("wasm", place));
    await Promise.all(begun.map(({ started }) => started));
    const name = isGpu ? "WebGPU" : `WASM on ${cores} core${cores > 1 ? "s" : ""}`;
    return new TowerPool(begun.map(({ embedder }) => embedder), name, bytes);
  }

  /** Unit vectors of cells, (N, D): each embedder gets a share. */
  async cells(tokens: Tokens): Promise<Float32Array> {
    const numCells = tokens.totals.length, share = Math.ceil(numCells / this.embedders.length), embeds = new Float32Array(numCells * DIMENSION);
    await Promise.all(
      this.embedders.map(async (embedder, place) => {
        const start = place * share, stop = Math.min(start + share, numCells);
        if (start < stop) embeds.set(await embedder.ask<Float32Array>({ do: "cells", tokens: some(tokens, start, stop) }), start * DIMENSION);
      }),
    );
    return embeds;
  }

  /** Unit vectors of texts, (N, D). */
  texts(texts: string[]): Promise<Float32Array> {
    return this.embedders[0].ask({ do: "texts", texts });
  }
}

/** Tokens of some of the cells. */
function some({ bounds, ids, values, totals }: Tokens, start: number, stop: number): Tokens {
  const [from, to] = [bounds[start], bounds[stop]];
  return {
    bounds: bounds.slice(start, stop + 1).map((bound) => bound - from),
    ids: ids.slice(from, to),
    values: values.slice(from, to),
    totals: totals.slice(start, stop),
  };
}

/** WebGPU, and the suspension of WASM that its runtime needs. */
async function hasWebGpu(): Promise<boolean> {
  const gpu = (navigator as { gpu?: { requestAdapter(): Promise<unknown> } }).gpu;
  if (!gpu || !("Suspending" in WebAssembly)) return false;
  return Boolean(await gpu.requestAdapter().catch(() => null));
}
