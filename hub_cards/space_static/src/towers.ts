// The cell tower and the text tower, as `scmmgpt export onnx` writes them, run by onnxruntime-web.

import type { InferenceSession, Tensor, TypedTensor } from "onnxruntime-web";
import { DIMENSION } from "./calling";
import type { Tokens } from "./gene_tokenizer";
import { CLS_ID, PAD_ID } from "./gene_vocabulary";
import type { TextTokenizer } from "./text_tokenizer";

/** What this page uses of onnxruntime-web. */
export interface Runtime {
  InferenceSession: { create(model: ArrayBuffer | Uint8Array, options: InferenceSession.SessionOptions): Promise<InferenceSession> };
  Tensor: new (type: never, data: never, dims: number[]) => Tensor;
}

const CELLS_PER_BATCH = 32, TEXTS_PER_BATCH = 32;

/** The text tower, and what turns words into its tokens. */
export interface TextSide {
  tower: ArrayBuffer;
  words: TextTokenizer;
}

export class Towers {
  private constructor(
    private runtime: Runtime, private cellTower: InferenceSession, private textTower: InferenceSession | null, private words: TextTokenizer | null,
  ) {}

  static async open(runtime: Runtime, cells: ArrayBuffer, texts: TextSide | null, providers: string[]): Promise<Towers> {
    const options: InferenceSession.SessionOptions = { executionProviders: providers, graphOptimizationLevel: "all" };
    const cellTower = await runtime.InferenceSession.create(new Uint8Array(cells), options);
    const onCpu = { ...options, executionProviders: ["wasm"] };
    const textTower = texts && (await runtime.InferenceSession.create(new Uint8Array(texts.tower), onCpu));
    return new Towers(runtime, cellTower, textTower, texts && texts.words);
  }

  /** Unit vectors of cells, (N, D). */
  async cells(tokens: Tokens): Promise<Float32Array> {
    const numCells = tokens.totals.length, length = (cell: number) => tokens.bounds[cell + 1] - tokens.bounds[cell];
    const order = Array.from({ length: numCells }, (_, cell) => cell).sort((one, other) => length(one) - length(other));
    const embeds = new Float32Array(numCells * DIMENSION);
    for (let start = 0; start < numCells; start += CELLS_PER_BATCH) {
      const batch = order.slice(start, start + CELLS_PER_BATCH), width = 1 + length(batch[batch.length - 1]);
      const values = new Float32Array(batch.length * width), ids = words64(values.length), mask = words64(values.length);
      batch.forEach((cell, row) => {
        const from = tokens.bounds[cell], own = length(cell), to = row * width;
        for (let at = 0; at < width; at++) {
          ids.low[2 * (to + at)] = at === 0 ? CLS_ID : at <= own ? tokens.ids[from + at - 1] : PAD_ID;
          mask.low[2 * (to + at)] = Number(at <= own);
        }
        values.set(tokens.values.subarray(from, from + own), to + 1);
      });
      const found = await this.run(this.cellTower, [batch.length, width], { gene_ids: ids.words, gene_values: values, gene_mask: mask.words });
      batch.forEach((cell, row) => embeds.set(found.subarray(row * DIMENSION, (row + 1) * DIMENSION), cell * DIMENSION));
    }
    return embeds;
  }

  /** Unit vectors of texts, (N, D). */
  async texts(texts: string[]): Promise<Float32Array> {
    const encoded = texts.map((text) => this.words!.encode(text)), embeds = new Float32Array(texts.length * DIMENSION);
    const order = Array.from(encoded.keys()).sort((one, other) => encoded[one].length - encoded[other].length);
    for (let start = 0; start < order.length; start += TEXTS_PER_BATCH) {
      const batch = order.slice(start, start + TEXTS_PER_BATCH), width = encoded[batch[batch.length - 1]].length;
      const ids = words64(batch.length * width), mask = words64(batch.length * width);
      batch.forEach((text, row) => encoded[text].forEach((id, at) => {
        ids.low[2 * (row * width + at)] = id;
        mask.low[2 * (row * width + at)] = 1;
      }));
      const found = await this.run(this.textTower!, [batch.length, width], { input_ids: ids.words, attention_mask: mask.words });
      batch.forEach((text, row) => embeds.set(found.subarray(row * DIMENSION, (row + 1) * DIMENSION), text * DIMENSION));
    }
    return embeds;
  }

  private async run(session: InferenceSession, shape: number[], inputs: Record<string, BigInt64Array | Float32Array>): Promise<Float32Array> {
    const feeds: Record<string, Tensor> = {};
    for (const [name, data] of Object.entries(inputs)) {
      feeds[name] = new this.runtime.Tensor((data instanceof Float32Array ? "float32" : "int64") as never, data as never, shape);
    }
    const results = await session.run(feeds), [output] = Object.values(results) as TypedTensor<"float32">[];
    const found = output.data.slice();
    output.dispose();
    return found;
  }
}

/** Whole numbers of 64 bits, zero at first, and their lower halves, to be written without one bigint each. */
function words64(size: number): { words: BigInt64Array; low: Int32Array } {
  const words = new BigInt64Array(size);
  return { words, low: new Int32Array(words.buffer) };
}
