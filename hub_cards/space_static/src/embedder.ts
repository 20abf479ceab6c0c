// One core that embeds: runs the towers for the worker that has begun it.

import { type Engine, openEngine } from "./engine";
import type { Tokens } from "./gene_tokenizer";

/** What an embedder is asked for. */
export type Job =
  | { do: "start"; base: string; kind: "wasm" | "jspi"; withTexts: boolean; numGenes: number }
  | { do: "cells"; tokens: Tokens }
  | { do: "texts"; texts: string[] };

/** The answer to the job of that number. */
export type Reply = { number: number; found: unknown } | { number: number; error: string };

let engine: Promise<Engine>;
let queue: Promise<void> = Promise.resolve();

self.onmessage = ({ data: { number, job } }: MessageEvent<{ number: number; job: Job }>) => {
  queue = queue.then(async () => {
    try {
      self.postMessage({ number, found: await serve(job) } satisfies Reply);
    } catch (error) {
      self.postMessage({ number, error: String((error as Error)?.message ?? error) } satisfies Reply);
    }
  });
};

async function serve(job: Job): Promise<unknown> {
  if (job.do === "start") {
    engine = openEngine(job);
    const { isGpu, bytes } = await engine;
    return { isGpu, bytes };
  }
  const { towers } = await engine;
  return job.do === "cells" ? towers.cells(job.tokens) : towers.texts(job.texts);
}
