// Does the work beside the page: reads the file, runs the towers, calls, searches, writes the results.

import h5wasm, { type File as HdfFile, FS, type Group, ready as h5wasmReady } from "h5wasm";
import { addResults, MOST_BYTES, writeTenx } from "./annotated_file";
import { CellFile } from "./cell_file";
import { isOfMemory, UserError } from "./errors";
import { mapOf } from "./layout";
import type { Answer, Column, Request, Shown } from "./messages";
import { reader, readOntologyEmbeds, readTables, type Tables, TextEmbeds } from "./model";
import { type Annotated, Study } from "./study";
import { TowerPool } from "./tower_pool";

const INPUT = "/input", COPY = "/annotated.h5ad", NUM_BEST = 50;
const OWN_MAP = "similarity";

/** The visitor has cancelled: what was begun is given up, what was there stays. */
class Cancelled extends Error {}

let tables: Tables, towers: TowerPool, texts: TextEmbeds;
let opened: { file: File; hdf: HdfFile; cells: CellFile; study: Study } | null = null;
let shown: Shown | null = null;
let isCancelled = false;
let queue = Promise.resolve();

const answer = (said: Answer, transfer: Transferable[] = []) => self.postMessage(said, { transfer });

self.onmessage = ({ data }: MessageEvent<Request>) => {
  if (data.do === "cancel") isCancelled = true;
  else queue = queue.then(() => serve(data));
};

async function serve(request: Request): Promise<void> {
  isCancelled = false;
  try {
    await handlers[request.do](request as never);
  } catch (error) {
    if (error instanceof Cancelled) answer({ is: "cancelled" });
    else answer({ is: "failed", ...explained(error as Error) });
  }
}

const handlers: Record<Request["do"], (request: never) => Promise<void>> = {
  start: async ({ base, cores }: Request & { do: "start" }) => start(base, cores),
  open: async ({ file }: Request & { do: "open" }) => open(file),
  annotate: async ({ asked }: Request & { do: "annotate" }) => {
    const { study } = needed(), before = performance.now();
    await study.read((tokens) => towers.cells(tokens), (done) => step("Reading and embedding the cells", 0.8 * done));
    const found = await study.annotate(asked, texts, (done) => step("Naming the cells", 0.8 + 0.2 * done));
    shown = shownOf(found, (performance.now() - before) / 1000);
    answer({ is: "annotated", shown, account: study.account });
  },
  search: async ({ text }: Request & { do: "search" }) => {
    const { study, cells } = needed();
    await study.read((tokens) => towers.cells(tokens), (done) => step("Reading and embedding the cells", done));
    const scores = await study.search(text, texts);
    const best = Int32Array.from(scores.keys()).sort((one, other) => scores[other] - scores[one]).slice(0, NUM_BEST);
    answer({ is: "found", scores, cells: best, cellNames: Array.from(best, (cell) => cells.cellNames[cell]) });
  },
  map: async ({ name }: Request & { do: "map" }) => {
    const { study, cells } = needed(), own = cells.maps.includes(name) ? cells.map(name) : null;
    const places = own ?? (await mapOf(study.embeds!, (done) => step("Drawing the map", done)));
    answer({ is: "map", name, places: Float32Array.from(places) });
  },
  column: async ({ name }: Request & { do: "column" }) => answer({ is: "column", name, column: columnOf(needed().cells.column(name)) }),
  genes: async ({ cells }: Request & { do: "genes" }) => answer({ is: "genes", genes: needed().study.raisedGenes(cells), number: cells.length }),
  csv: async () => {
    const blob = new Blob([...csvLines(needed().cells.cellNames, results())], { type: "text/csv" });
    answer({ is: "file", name: `${stem()}_labels.csv`, blob, note: "" });
  },
  h5ad: async () => writeCopy(),
  cancel: async () => {},
};

async function start(base: string, cores: number): Promise<void> {
  await step("Loading the model", 0.1);
  const { read, total } = reader(base);
  tables = await readTables(read);
  const known = await readOntologyEmbeds(read, tables.annotator.ontology);
  await step("Loading the model", 0.5);
  towers = await TowerPool.open(base, cores, tables.vocabulary.genes.length);
  texts = new TextEmbeds(towers, known.texts, known.embeds);
  await h5wasmReady;
  answer({ is: "ready", model: tables.annotator.ontology.version, engine: towers.name, bytes: total() + towers.bytes });
}

async function open(file: File): Promise<void> {
  close();
  await step("Opening the file", 0.1);
  await refuseWhatIsNoHdf5(file);
  const module = await h5wasmReady, fs = FS as unknown as EmscriptenFS;
  if (!fs.analyzePath(INPUT).exists) fs.mkdir(INPUT);
  fs.mount((module as unknown as { WORKERFS: unknown }).WORKERFS ?? fs.filesystems.WORKERFS, { files: [file] }, INPUT);
  let hdf: HdfFile | null = null;
  try {
    hdf = new h5wasm.File(`${INPUT}/${file.name}`, "r");
    if (hdf.file_id < 0n) throw new UserError(DAMAGED);
    const cells = new CellFile(hdf), study = new Study(tables, cells);
    opened = { file, hdf, cells, study };
    const maps = [...cells.maps, OWN_MAP];
    answer({ is: "opened", opened: { account: study.account, maps, columns: cells.columns, kind: cells.kind, name: file.name } });
  } catch (error) {
    hdf?.close();
    fs.unmount(INPUT);
    throw error;
  }
}

const DAMAGED = "The file is cut off or damaged: HDF5 cannot open it. Copy or download it again.";

function close(): void {
  shown = null;
  if (!opened) return;
  opened.hdf.close();
  (FS as unknown as EmscriptenFS).unmount(INPUT);
  opened = null;
}

/** HDF5 begins with its signature at byte 0, or at 512 and its doubles. */
async function refuseWhatIsNoHdf5(file: File): Promise<void> {
  if (file.size === 0) throw new UserError("The file is empty.");
  for (let place = 0; place === 0 || place < Math.min(file.size, 1 << 20); place = place ? 2 * place : 512) {
    const head = new Uint8Array(await file.slice(place, place + 8).arrayBuffer());
    if (String.fromCharCode(...head) === "\x89HDF\r\n\x1a\n") return;
  }
  throw new UserError(`“${file.name}” is no HDF5 file. Open an .h5ad as AnnData or scanpy write it, or the .h5 of Cell Ranger.`);
}

async function writeCopy(): Promise<void> {
  const { file, cells, study, hdf } = needed(), found = results(), fs = FS as unknown as EmscriptenFS;
  if (cells.kind === "h5mu") throw new UserError("Results are not written into an .h5mu here: download the CSV, whose rows are the cells of the RNA.");
  if (file.size > MOST_BYTES) {
    throw new UserError(
      `A copy of ${(file.size / 1e9).toFixed(1)} GB does not fit into the memory of a browser: download the CSV and join it in Python, ` +
        'adata.obs.join(pandas.read_csv("labels.csv", index_col=0)).',
    );
  }
  await step("Writing the h5ad", 0.2);
  if (cells.kind === "h5ad") fs.writeFile(COPY, new Uint8Array(await file.arrayBuffer()));
  await step("Writing the h5ad", 0.5);
  const copy = new h5wasm.File(COPY, cells.kind === "h5ad" ? "a" : "w");
  let key: string;
  try {
    if (cells.kind === "10x") writeTenx(copy, hdf.keys().map((name) => hdf.get(name)).find((one) => (one as Group)?.keys?.().includes("barcodes")) as Group);
    key = addResults(copy, found, study.embeds!, recordOf(found));
  } finally {
    copy.close();
  }
  await step("Writing the h5ad", 0.9);
  const blob = new Blob([fs.readFile(COPY) as Uint8Array<ArrayBuffer>], { type: "application/x-hdf5" });
  fs.unlink(COPY);
  answer({ is: "file", name: `${stem()}_annotated.h5ad`, blob, note: key === "scmmgpt" ? "" : `The file had results already; the new ones are called ${key}.` });
}

function recordOf(found: Shown): Record<string, string> {
  const { account } = needed().study;
  return {
    written_by: "the scmmgpt page, in a browser",
    model: tables.page.model,
    version: tables.page.version,
    consensus: String(found.together),
    species: account.species,
    matrix: `${account.matrix}: ${account.matrixDetail}`,
    genes: `${account.numMatched} of ${account.numGenes} matched`,
    notes: found.warnings.join("\n"),
  };
}

function shownOf(found: Annotated, seconds: number): Shown {
  const { calls, sets, together, labels, evidence, warnings } = found;
  return {
    cellType: columnOf(calls.labels), termId: columnOf(calls.termIds), confidence: calls.confidence, second: columnOf(calls.second),
    candidates: columnOf(sets), together, labels: labels.labels.length, evidence, warnings, seconds,
  };
}

function columnOf(values: string[]): Column {
  const codeOf = new Map<string, number>();
  const codes = Int32Array.from(values, (value) => {
    if (!codeOf.has(value)) codeOf.set(value, codeOf.size);
    return codeOf.get(value)!;
  });
  return { names: [...codeOf.keys()], codes };
}

function* csvLines(cellNames: string[], found: Shown): Generator<string> {
  const quoted = (text: string) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const columns = ["cell_type", "cell_type_ontology_term_id", "confidence", "second_choice", "candidates"];
  yield `cell,${columns.map((name) => `scmmgpt_${name}`).join(",")}\n`;
  const name = ({ names, codes }: Column, cell: number) => quoted(names[codes[cell]]);
  for (let cell = 0; cell < cellNames.length; cell++) {
    const confidence = found.confidence[cell].toFixed(4);
    yield `${quoted(cellNames[cell])},${name(found.cellType, cell)},${name(found.termId, cell)},${confidence},` +
      `${name(found.second, cell)},${name(found.candidates, cell)}\n`;
  }
}

function needed() {
  if (!opened) throw new UserError("Open a file first.");
  return opened;
}

function results(): Shown {
  if (!shown) throw new UserError("Name the cells first.");
  return shown;
}

const stem = () => needed().file.name.replace(/\.[^.]*$/, "");

/** Say how far the work is, and give up where the visitor wants it: a moment is left for that message to arrive. */
async function step(what: string, done: number): Promise<void> {
  answer({ is: "progress", what, done });
  await new Promise((resolve) => setTimeout(resolve));
  if (isCancelled) throw new Cancelled();
}

function explained(error: Error): { message: string; isUser: boolean } {
  if (error instanceof UserError) return { message: error.message, isUser: true };
  const said = String(error?.message ?? error);
  if (isOfMemory(error)) {
    return {
      message: "The browser ran out of memory. Close other tabs, or give a part of the cells. Nothing is lost, because nothing was changed.",
      isUser: true,
    };
  }
  return { message: `Something went wrong that should not: ${said}. The file was not changed.`, isUser: false };
}

/** What this worker uses of Emscripten's files. */
interface EmscriptenFS {
  analyzePath(path: string): { exists: boolean };
  mkdir(path: string): void;
  mount(type: unknown, options: object, path: string): void;
  unmount(path: string): void;
  readFile(path: string): Uint8Array;
  writeFile(path: string, data: Uint8Array): void;
  unlink(path: string): void;
  filesystems: Record<string, unknown>;
}
