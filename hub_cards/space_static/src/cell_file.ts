// A file of cells, opened but not read: h5ad, h5mu or 10x h5 (processing/cell_files_scmmgpt.py, cell_reading_scmmgpt.py).

import type { File, Group } from "h5wasm";
import { ColumnWise, type CsrRows, denseReader, joined, type Matrix, RowWise } from "./cell_matrix";
import { UserError } from "./errors";
import { onlyGenes, type SetAside, TYPE_COLUMNS } from "./features";
import { NAME_COLUMNS } from "./gene_identity";
import { allNumbers, attribute, child, denseRows, groupOf, indexOf, isDataset, isGroup, numbersOf, texts } from "./hdf5";
import { countBadValues, filtered, hasBadValues, linearValues, type MatrixState, recognise, recoverCounts } from "./matrix_state";

const SAMPLE_BLOCKS = 4, SAMPLE_ROWS = 32;
const RNA_NAMES = ["rna", "gex", "gene expression", "mrna"];
const OTHER_INTEGER_LAYERS = ["unspliced", "ambiguous", "spanning", "rank", "ranks", "mask"];
const COUNT_LAYERS = ["counts", "raw_counts", "count", "raw", "umi", "umis", "umi_counts", "rawcounts", "soupx_counts"];

export type FileKind = "h5ad" | "h5mu" | "10x";

/** The matrix to read and what it holds. */
export interface ChosenMatrix {
  matrix: Matrix;
  state: MatrixState;
  setAside: SetAside[];
}

export class CellFile {
  readonly kind: FileKind;
  readonly cellNames: string[];
  readonly numCells: number;
  readonly maps: string[];
  readonly columns: string[];
  private matrices: Matrix[];
  private root: Group;
  private logBase: number | null;

  constructor(file: File) {
    const tenx = tenxGroups(file), modalities = groupOf(file, "mod");
    this.kind = tenx.length ? "10x" : modalities ? "h5mu" : "h5ad";
    if (tenx.length > 1) {
      throw new UserError(`The file holds several genomes (${tenx.map((group) => group.path.slice(1)).join(", ")}): give one of them.`);
    }
    this.root = tenx[0] ?? (modalities ? rnaOf(modalities) : file);
    if (!tenx.length && !(child(this.root, "obs") && child(this.root, "var"))) {
      throw new UserError(
        "This is an HDF5 file, but no file of cells: it has no tables `obs` and `var`. Open an h5ad, or the .h5 of Cell Ranger.",
      );
    }
    this.cellNames = tenx.length ? texts(child(this.root, "barcodes"))! : indexOf(child(this.root, "obs"), "obs");
    this.numCells = this.cellNames.length;
    if (this.numCells === 0) throw new UserError("There are no cells in this file.");
    this.matrices = tenx.length ? [tenxMatrix(this.root, this.cellNames)] : matricesOf(this.root, this.numCells);
    if (!this.matrices.length) throw new UserError("There is no matrix of cells x genes in this file: `X`, `layers` and `raw` are empty.");
    this.logBase = tenx.length ? null : logBaseOf(this.root);
    this.maps = this.mapNames();
    const obs = tenx.length ? null : groupOf(this.root, "obs");
    this.columns = obs ? obs.keys().filter((name) => name !== attribute(obs, "_index") && name !== "__categories") : [];
  }

  /** Raw counts wherever they lie, else the next best; refused where only z-scores are found. */
  choose(): ChosenMatrix {
    const lookedAt: string[] = [];
    let best: { rank: number; chosen: ChosenMatrix } | null = null;
    for (const whole of inOrder(this.matrices)) {
      const { genes: matrix, setAside } = onlyGenes(whole);
      const state = recognise(sample(matrix), matrix.shape[1], this.logBase);
      lookedAt.push(`${matrix.name}: ${state.kind} (${state.detail})`);
      const rank = rankOf(state);
      if (rank !== null && (!best || rank < best.rank)) best = { rank, chosen: { matrix, state, setAside } };
      if (rank === 0) break;
    }
    if (best) return best.chosen;
    throw new UserError(
      `No raw counts were found, and z-scored values cannot be turned back into expression. Looked at ${lookedAt.join("; ")}. ` +
        'Put the counts in a layer, in Python: adata.layers["counts"].',
    );
  }

  /** Whether these are gene activities, computed from chromatin. */
  get isActivity(): boolean {
    const uns = this.kind === "10x" ? null : groupOf(this.root, "uns"), marked = uns && child(uns, "scmmgpt_modality");
    return isDataset(marked) && String(marked.value) === "gene activity";
  }

  column(name: string): string[] {
    return texts(child(groupOf(this.root, "obs")!, name)) ?? [];
  }

  /** Coordinates of the cells on a map that the file brings. */
  map(name: string): Float64Array | null {
    const found = child(groupOf(this.root, "obsm")!, name);
    if (!isDataset(found) || found.shape?.length !== 2) return null;
    const values = denseRows(found, name)(0, this.numCells), width = found.shape[1];
    return Float64Array.from({ length: 2 * this.numCells }, (_, at) => values[Math.floor(at / 2) * width + (at % 2)]);
  }

  /** Rows of the graph of neighbours that the file brings; null where it brings none. */
  get graph(): ((start: number, stop: number) => CsrRows) | null {
    const obsp = this.kind === "10x" ? null : groupOf(this.root, "obsp");
    const graph = obsp && child(obsp, "connectivities");
    if (isGroup(graph)) return sparseReader(graph, [this.numCells, this.numCells]);
    if (!isDataset(graph)) return null;
    return denseReader(denseRows(graph, "connectivities"), this.numCells);
  }

  private mapNames(): string[] {
    const obsm = this.kind === "10x" ? null : groupOf(this.root, "obsm");
    const names = obsm ? obsm.keys().filter((name) => this.isMap(obsm, name)) : [];
    const rank = (name: string) => ["umap", "tsne", "spatial", "phate", "pca"].findIndex((word) => name.toLowerCase().includes(word));
    return names.sort((one, other) => ((rank(one) + 6) % 6) - ((rank(other) + 6) % 6));
  }

  private isMap(obsm: Group, name: string): boolean {
    const found = child(obsm, name);
    return isDataset(found) && found.shape?.length === 2 && found.shape[1] >= 2 && found.shape[0] === this.numCells;
  }
}

/** Rows as counts or linear values, checked, and how many cells were turned back into counts. */
export function linearRows({ matrix, state }: ChosenMatrix, start: number, stop: number): { rows: CsrRows; recovered: number } {
  const rows = matrix.read(start, stop);
  if (hasBadValues(rows.data)) refuseBadValues(matrix, rows, start);
  if (state.kind !== "log1p" && state.kind !== "normalised") return { rows, recovered: 0 };
  let linear: CsrRows = { ...rows, data: linearValues(rows.data, state) };
  if (!state.exact) return { rows: linear, recovered: 0 };
  linear = filtered(linear, (value) => value !== 0);
  const { counts, found } = recoverCounts(linear.indptr, linear.data);
  return { rows: { ...linear, data: counts }, recovered: found.filter(Boolean).length };
}

function refuseBadValues(matrix: Matrix, rows: CsrRows, start: number): never {
  const entry = rows.data.findIndex((value: number) => !(value >= 0 && value < Infinity));
  const cell = start + rows.indptr.findIndex((bound) => bound > entry) - 1;
  const found = [...countBadValues(rows.data)].map(([name, number]) => `${number} ${name}`).join(", ");
  throw new UserError(
    `\`${matrix.name}\` holds ${found} values among the cells from number ${start} on (first in cell ${cell}, gene ` +
      `“${matrix.names.get("index")![rows.indices[entry]]}”). Expression values must be finite and not negative: fix them, or ` +
      'put the counts in a layer, in Python: adata.layers["counts"].',
  );
}

function rankOf(state: MatrixState): number | null {
  if (state.kind === "scaled") return null;
  if (state.kind === "empty") return 9;
  const order = ["counts", "log1p", "normalised"];
  return order.indexOf(state.kind) + (state.kind === "counts" || state.exact ? 0 : order.length);
}

const plain = (name: string) => name.replace(/^layers\['(.*)'\]$/, "$1").toLowerCase();

/** The order in which to look: X, layers that are called counts, raw, other layers. */
function inOrder(matrices: Matrix[]): Matrix[] {
  const place = (matrix: Matrix) => {
    if (!matrix.name.startsWith("layers[")) return matrix.name === "raw" ? 2 : 0;
    return COUNT_LAYERS.includes(plain(matrix.name)) ? 1 : 3;
  };
  const kept = matrices.filter((one) => !plain(one.name).includes("bin") && !OTHER_INTEGER_LAYERS.includes(plain(one.name)));
  return (kept.length ? kept : [...matrices]).sort((one, other) => place(one) - place(other));
}

/** A few blocks of neighbouring cells, spread over the matrix. */
function sample(matrix: Matrix): CsrRows {
  const numCells = matrix.shape[0], starts: number[] = [];
  if (numCells <= SAMPLE_BLOCKS * SAMPLE_ROWS) for (let start = 0; start < numCells; start += SAMPLE_ROWS) starts.push(start);
  else for (let block = 0; block < SAMPLE_BLOCKS; block++) starts.push(Math.floor((block * (numCells - SAMPLE_ROWS)) / (SAMPLE_BLOCKS - 1)));
  return joined(starts.map((start) => matrix.read(start, Math.min(start + SAMPLE_ROWS, numCells))));
}

function matricesOf(root: Group, numCells: number): Matrix[] {
  const var_ = child(root, "var"), found: Matrix[] = [];
  const add = (name: string, element: unknown, table: unknown) => element && found.push(onDisk(name, element, table, numCells));
  add("X", child(root, "X"), var_);
  const layers = groupOf(root, "layers"), raw = groupOf(root, "raw");
  for (const name of layers?.keys() ?? []) add(`layers['${name}']`, child(layers!, name), var_);
  if (raw) add("raw", child(raw, "X"), child(raw, "var"));
  for (const matrix of found) if (!matrix.types.size) matrix.types = typesOfOther(matrix, found[0]);
  return found;
}

/** What `raw` does not say of its features, `X` may. */
function typesOfOther(matrix: Matrix, other: Matrix): Map<string, string[]> {
  const names = other.names.get("index")!;
  const typesOf = (types: string[]) => {
    const typeOf = new Map(names.map((name, place) => [name, types[place]]));
    return matrix.names.get("index")!.map((name) => typeOf.get(name) ?? "");
  };
  return new Set(names).size < names.length ? new Map() : new Map([...other.types].map(([column, types]) => [column, typesOf(types)]));
}

function onDisk(name: string, element: unknown, table: unknown, numCells: number): Matrix {
  const names = namesOf(table, NAME_COLUMNS), types = namesOf(table, TYPE_COLUMNS);
  const ordered = new Map([["index", indexOf(table, "var")], ...names]);
  const shape: [number, number] = [numCells, ordered.get("index")!.length];
  if (isGroup(element)) return { name, shape, names: ordered, types, read: sparseReader(element, shape) };
  if (!isDataset(element) || element.shape?.length !== 2) throw new UserError(`\`${name}\` is no matrix of cells x genes.`);
  return { name, shape, names: ordered, types, read: denseReader(denseRows(element, name), shape[1]) };
}

function namesOf(table: unknown, columns: string[]): Map<string, string[]> {
  const found = new Map<string, string[]>();
  if (!isGroup(table)) return found;
  const present = table.keys();
  for (const column of columns) {
    const values = present.includes(column) ? texts(table.get(column)) : null;
    if (values) found.set(column, values);
  }
  return found;
}

function sparseReader(group: Group, shape: [number, number]): (start: number, stop: number) => CsrRows {
  const format = String(attribute(group, "encoding-type") ?? attribute(group, "h5sparse_format") ?? "csr");
  const size = format.startsWith("csc") ? shape[1] : shape[0];
  const bounds = Float64Array.from(allNumbers(group.get("indptr") as never, "indptr"));
  if (bounds.length !== size + 1) throw new UserError(`The matrix is damaged: its \`indptr\` has ${bounds.length} entries, not ${size + 1}.`);
  const indices = numbersOf(group, "indices"), data = numbersOf(group, "data");
  const reader = format.startsWith("csc") ? new ColumnWise(bounds, indices, data, shape) : new RowWise(bounds, indices, data, shape[1]);
  return (start, stop) => reader.rows(start, stop);
}

function rnaOf(modalities: Group): Group {
  const names = modalities.keys(), chosen = names.find((name) => RNA_NAMES.includes(name.toLowerCase()));
  if (!chosen) throw new UserError(`None of the modalities ${names.join(", ")} is called rna; give the one that holds gene expression.`);
  return modalities.get(chosen) as Group;
}

function tenxGroups(file: File): Group[] {
  const wanted = ["barcodes", "indptr", "indices", "data", "shape"];
  return file.keys().map((name) => file.get(name)).filter(isGroup).filter((group) => wanted.every((name) => group.keys().includes(name)));
}

function tenxMatrix(group: Group, cellNames: string[]): Matrix {
  const features = groupOf(group, "features");
  const ids = texts(features ? child(features, "id") : child(group, "genes")) ?? [];
  const names = texts(features ? child(features, "name") : child(group, "gene_names")) ?? ids;
  const types = features && texts(child(features, "feature_type"));
  const shape: [number, number] = [cellNames.length, ids.length];
  const bounds = allNumbers(child(group, "indptr") as never, "indptr");
  const reader = new RowWise(bounds, numbersOf(group, "indices"), numbersOf(group, "data"), shape[1]);
  return {
    name: "X",
    shape,
    names: new Map([["index", unique(names)], ["gene_ids", ids]]),
    types: new Map(types ? [["feature_types", types]] : []),
    read: (start, stop) => reader.rows(start, stop),
  };
}

/** Repeated names with a number behind all but the first, as anndata makes them unique. */
export function unique(names: string[]): string[] {
  const taken = new Set(names), times = new Map<string, number>();
  return names.map((name) => {
    if (!times.has(name)) {
      times.set(name, 0);
      return name;
    }
    let number = times.get(name)!;
    do number++;
    while (taken.has(`${name}-${number}`));
    times.set(name, number);
    taken.add(`${name}-${number}`);
    return `${name}-${number}`;
  });
}

function logBaseOf(root: Group): number | null {
  const uns = groupOf(root, "uns"), log1p = uns && groupOf(uns, "log1p");
  const base = log1p && child(log1p, "base");
  const value = isDataset(base) ? Number(base.value) : NaN;
  return Number.isFinite(value) && value > 0 ? value : null;
}
