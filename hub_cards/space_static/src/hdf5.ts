// Elements of an AnnData on disk, read from HDF5; what a browser cannot read is named.

import type { Dataset, File, Group } from "h5wasm";
import type { ArrayOnDisk, Numbers } from "./cell_matrix";
import { isOfMemory, UserError } from "./errors";

// Deflate, shuffle, fletcher32, szip, nbit and scale-offset are part of HDF5 itself.
const MOST_OF_HDF5_ITSELF = 6;
const FILTERS: Record<number, string> = { 32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2" };

export const isGroup = (element: unknown): element is Group => (element as Group)?.type === "Group";
export const isDataset = (element: unknown): element is Dataset => (element as Dataset)?.type === "Dataset";

export function child(group: Group | File, name: string): unknown {
  return group.keys().includes(name) ? group.get(name) : null;
}

export function groupOf(group: Group | File, name: string): Group | null {
  const found = child(group, name);
  return isGroup(found) ? found : null;
}

export function attribute(element: Group | Dataset, name: string): unknown {
  return element.attrs[name]?.value ?? null;
}

/** Numbers of an array, a part at a time. */
export class NumbersOnDisk implements ArrayOnDisk {
  readonly length: number;

  constructor(private dataset: Dataset, private name: string) {
    this.length = dataset.shape?.[0] ?? 0;
    refuseUnreadable(dataset, name);
  }

  read(start: number, stop: number): Numbers {
    return start === stop ? new Float64Array(0) : numbers(readSlice(this.dataset, [[start, stop]], this.name), this.name);
  }
}

export function numbersOf(group: Group, name: string): NumbersOnDisk {
  const found = child(group, name);
  if (!isDataset(found)) throw new UserError(`The matrix is damaged: it has no \`${name}\`.`);
  return new NumbersOnDisk(found, name);
}

/** Rows of a dense array. */
export function denseRows(dataset: Dataset, name: string): (start: number, stop: number) => Numbers {
  refuseUnreadable(dataset, name);
  return (start, stop) => numbers(readSlice(dataset, [[start, stop], []], name), name);
}

function readSlice(dataset: Dataset, ranges: ([number, number] | [])[], name: string): unknown {
  try {
    return dataset.slice(ranges);
  } catch (error) {
    throw unreadable(error as Error, name);
  }
}

function numbers(values: unknown, name: string): Numbers {
  if (values instanceof Float32Array || values instanceof Float64Array || values instanceof Int32Array) return values;
  if (values instanceof BigInt64Array || values instanceof BigUint64Array) return Float64Array.from(values, Number);
  if (ArrayBuffer.isView(values)) return Float64Array.from(values as unknown as Uint8Array);
  if (Array.isArray(values)) return Float64Array.from(values as (number | boolean)[], Number);
  throw new UserError(`\`${name}\` holds no numbers that a browser can read.`);
}

export function allNumbers(dataset: Dataset, name: string): Float64Array {
  refuseUnreadable(dataset, name);
  try {
    return Float64Array.from(numbers(dataset.value, name));
  } catch (error) {
    throw unreadable(error as Error, name);
  }
}

/** What a reader is told; too little memory is no fault of the file. */
function unreadable(error: Error, name: string): Error {
  if (error instanceof UserError || isOfMemory(error)) return error;
  return new UserError(`\`${name}\` cannot be read; the file may be damaged or cut off (${error.message}).`);
}

export function refuseUnreadable(dataset: Dataset, name: string): void {
  const foreign = dataset.filters.find((filter) => filter.id > MOST_OF_HDF5_ITSELF);
  if (!foreign) return;
  throw new UserError(
    `\`${name}\` is compressed with ${FILTERS[foreign.id] ?? `HDF5 filter ${foreign.id}`}, which this page cannot read. Save the ` +
      'file again with gzip, in Python: adata.write_h5ad("again.h5ad", compression="gzip").',
  );
}

/** Values of a column of `obs` or `var` as text; null where it is of a kind that is no text. */
export function texts(element: unknown): string[] | null {
  if (isDataset(element)) {
    refuseUnreadable(element, element.path);
    const values = element.value;
    if (Array.isArray(values)) return values.map(String);
    return ArrayBuffer.isView(values) ? Array.from(values as unknown as number[], String) : null;
  }
  if (!isGroup(element)) return null;
  if (element.keys().includes("codes")) {
    const categories = texts(element.get("categories")), codes = element.get("codes");
    return categories && isDataset(codes) ? Array.from(allNumbers(codes, "codes"), (code) => categories[code] ?? "nan") : null;
  }
  if (element.keys().includes("values")) {
    const values = texts(element.get("values")), mask = element.get("mask");
    const isMissing = isDataset(mask) ? allNumbers(mask, "mask") : null;
    return values && values.map((value, place) => (isMissing?.[place] ? "nan" : value));
  }
  return null;
}

/** Names of the rows of a table. */
export function indexOf(table: unknown, name: string): string[] {
  if (!isGroup(table)) {
    throw new UserError(
      `\`${name}\` is a table as anndata wrote it before version 0.7. Save the file again in Python: ` +
        'anndata.read_h5ad("old.h5ad").write_h5ad("new.h5ad").',
    );
  }
  const found = texts(child(table, String(attribute(table, "_index") ?? "_index")));
  if (!found) throw new UserError(`\`${name}\` has no names of its rows; the file may be damaged.`);
  return found;
}
