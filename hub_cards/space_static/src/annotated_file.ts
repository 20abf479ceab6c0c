// The copy of a file with the results in it, as `scmmgpt annotate --output` writes them; the opened file stays as it is.

import type { Dataset, File as HdfFile, Group } from "h5wasm";
import { DIMENSION } from "./calling";
import { unique } from "./cell_file";
import { UserError } from "./errors";
import { attribute, child, groupOf, texts } from "./hdf5";
import type { Column, Shown } from "./messages";

export const MOST_BYTES = 1_000_000_000;
const VERSIONS: Record<string, string> = { dataframe: "0.2.0", categorical: "0.2.0", dict: "0.1.0", csr_matrix: "0.1.0" };

type Values = Float32Array | Int32Array | Int8Array | Int16Array | Float64Array;

/** Add the results to the copy of an h5ad; gives the name that they got. */
export function addResults(file: HdfFile, shown: Shown, embeds: Float32Array, settings: Record<string, string>): string {
  const obs = groupOf(file, "obs");
  if (!obs || !attribute(obs, "encoding-type")) {
    throw new UserError("The tables of this file are as anndata wrote them before version 0.7, to which nothing can be added: download the CSV.");
  }
  const taken = [...obs.keys(), ...(groupOf(file, "uns")?.keys() ?? [])];
  let key = "scmmgpt";
  for (let number = 2; taken.some((name) => name === key || name.startsWith(`${key}_`)); number++) key = `scmmgpt${number}`;
  const order = columnOrder(obs), added = writeColumns(obs, shown, key);
  obs.delete_attribute("column-order");
  obs.create_attribute("column-order", [...order, ...added], null, "S");
  writeArray(dictOf(file, "obsm"), `X_${key}`, embeds, [embeds.length / DIMENSION, DIMENSION]);
  const record = dictOf(dictOf(file, "uns"), key);
  for (const [name, value] of Object.entries(settings)) writeText(record, name, value);
  return key;
}

/** Write the cells of a 10x file as an h5ad, ready for results. */
export function writeTenx(file: HdfFile, tenx: Group): void {
  encoded(file, "anndata", "0.1.0");
  const features = groupOf(tenx, "features"), read = (name: string) => (tenx.get(name) as Dataset).value;
  const barcodes = texts(child(tenx, "barcodes"))!, ids = texts(features ? child(features, "id") : child(tenx, "genes"))!;
  const names = texts(features ? child(features, "name") : child(tenx, "gene_names")) ?? ids;
  const X = encoded(file.create_group("X"), "csr_matrix");
  X.create_attribute("shape", new BigInt64Array([BigInt(barcodes.length), BigInt(ids.length)]));
  for (const name of ["indptr", "indices"]) X.create_dataset({ name, data: read(name) as never });
  X.create_dataset({ name: "data", data: Float32Array.from(read("data") as ArrayLike<number>, Number) });
  table(file, "obs", barcodes, {});
  const types = features && texts(child(features, "feature_type"));
  table(file, "var", unique(names), { gene_ids: ids, ...(types ? { feature_types: types } : {}) });
}

function table(file: HdfFile, name: string, index: string[], columns: Record<string, string[]>): void {
  const group = encoded(file.create_group(name), "dataframe");
  group.create_attribute("_index", "_index", null, "S");
  if (Object.keys(columns).length) group.create_attribute("column-order", Object.keys(columns), null, "S");
  else group.create_attribute("column-order", new Float64Array(0), [0], "<d");
  writeTexts(group, "_index", index);
  for (const [column, values] of Object.entries(columns)) writeTexts(group, column, values);
}

function columnOrder(obs: Group): string[] {
  const order = attribute(obs, "column-order");
  return Array.isArray(order) ? order.map(String) : typeof order === "string" ? [order] : [];
}

function writeColumns(obs: Group, shown: Shown, key: string): string[] {
  const texts: Record<string, Column> = {
    cell_type: shown.cellType, cell_type_ontology_term_id: shown.termId, second_choice: shown.second, candidates: shown.candidates,
  };
  for (const [name, column] of Object.entries(texts)) writeCategorical(obs, `${key}_${name}`, column);
  writeArray(obs, `${key}_confidence`, shown.confidence, [shown.confidence.length]);
  return ["cell_type", "cell_type_ontology_term_id", "confidence", "second_choice", "candidates"].map((name) => `${key}_${name}`);
}

function writeCategorical(obs: Group, name: string, { names, codes }: Column): void {
  const order = Array.from(names.keys()).sort((one, other) => (names[one] < names[other] ? -1 : 1)), place = new Int32Array(names.length);
  order.forEach((code, at) => (place[code] = at));
  const group = encoded(obs.create_group(name), "categorical");
  group.create_attribute("ordered", 0, [], "<b");
  writeTexts(group, "categories", order.map((code) => names[code]));
  const inOrder = codes.map((code) => place[code]);
  const narrow = names.length < 128 ? new Int8Array(inOrder) : names.length < 32768 ? new Int16Array(inOrder) : inOrder;
  writeArray(group, "codes", narrow, [codes.length]);
}

function writeArray(group: Group, name: string, values: Values, shape: number[]): void {
  const isLarge = values.length > 10_000, chunks = isLarge ? [Math.min(shape[0], 4096), ...shape.slice(1)] : null;
  encoded(group.create_dataset({ name, data: values as never, shape, ...(chunks ? { chunks, compression: "gzip", compression_opts: 4 } : {}) }), "array");
}

function writeTexts(group: Group, name: string, values: string[]): void {
  encoded(group.create_dataset({ name, data: values, shape: [values.length], dtype: "S" }), "string-array");
}

function writeText(group: Group, name: string, value: string): void {
  encoded(group.create_dataset({ name, data: value, shape: [], dtype: "S" }), "string");
}

function dictOf(group: Group | HdfFile, name: string): Group {
  return groupOf(group, name) ?? encoded(group.create_group(name), "dict");
}

/** Say in the words of anndata what an element is. */
function encoded<Element extends Group | Dataset>(element: Element, type: string, version = VERSIONS[type] ?? "0.2.0"): Element {
  element.create_attribute("encoding-type", type, null, "S");
  element.create_attribute("encoding-version", version, null, "S");
  return element;
}

