// The page: what the visitor sees and does. The work itself is the worker's.

import { colourOf, isDark, type Rgb, shade, UNKNOWN_COLOUR } from "./colours";
import { dot, element, meter } from "./elements";
import { UserError } from "./errors";
import { parseLabels } from "./labels";
import type { Answer, Column, Opened, Request, Shown } from "./messages";
import { Scatter } from "./scatter";
import type { Account, Asked } from "./study";
import workerUrl from "./worker?worker&url";

const UNKNOWN = "unknown", CALLS = "names by scmmgpt", CONFIDENCE = "confidence", FOUND = "fit to the search";
const MOST_CORES = 4, MOST_NAMES = 40;

const byId = <Element extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as Element;
const status = byId("status"), progress = byId<HTMLProgressElement>("progress"), cancel = byId<HTMLButtonElement>("cancel");
const mapChoice = byId<HTMLSelectElement>("map"), colourChoice = byId<HTMLSelectElement>("colour");

let worker: Worker;
let sample: Promise<Blob>;
let opened: Opened | null = null, shown: Shown | null = null, scores: Float32Array | null = null;
let coloured: { name: string; column: Column } | null = null;
let selected = new Int32Array(0);
let isReady = false, isBusy = false;

const scatter = new Scatter(byId<HTMLCanvasElement>("points"), byId<HTMLCanvasElement>("lasso"), (cells) => select(cells, "on the map"));

// ---- the worker

/** A worker that is begun from a blob has the page's own Content-Security-Policy; one from a file would have none. */
function begin(): void {
  sample = fetch("sample.h5ad").then((response) => response.blob()); // now, so that nothing is asked for later
  const begun = `import ${JSON.stringify(new URL(workerUrl, document.baseURI).href)};`;
  worker = new Worker(URL.createObjectURL(new Blob([begun], { type: "text/javascript" })), { type: "module" });
  worker.onmessage = ({ data }: MessageEvent<Answer>) => receive(data);
  worker.onerror = (event) => fail(`The page could not start its work (${event.message || "a file of it is missing"}). Reload it.`);
  ask({ do: "start", base: document.baseURI, cores: Math.min(MOST_CORES, navigator.hardwareConcurrency || 1) });
}

function ask(request: Request): void {
  if (request.do !== "cancel") {
    isBusy = true;
    byId("error").hidden = true;
    delete document.documentElement.dataset.failed;
    cancel.hidden = !isReady;
    showControls();
  }
  worker.postMessage(request);
}

function receive(said: Answer): void {
  if (said.is === "progress") {
    status.textContent = `${said.what} … ${Math.round(100 * said.done)} %`;
    progress.value = said.done;
    return;
  }
  isBusy = false;
  cancel.hidden = true;
  progress.value = 0;
  (receivers[said.is] as (said: Answer) => void)(said);
  showControls();
}

const receivers: { [Is in Exclude<Answer["is"], "progress">]: (said: Answer & { is: Is }) => void } = {
  ready: ({ engine, bytes, model }) => {
    isReady = true;
    status.textContent = "Ready. Open a file of cells.";
    byId("about").textContent = `Model of ${(bytes / 1e6).toFixed(0)} MB loaded; ${model}; computing with ${engine}.`;
    document.documentElement.dataset.ready = "true";
  },
  opened: (said) => showOpened(said.opened),
  annotated: (said) => showAnnotated(said.shown, said.account),
  found: ({ scores: found, cells, cellNames }) => showFound(found, cells, cellNames),
  map: ({ places }) => {
    scatter.setPlaces(places);
    byId("no-map").hidden = true;
    status.textContent = shown ? "The cells are named, and the map is drawn." : "The map is drawn.";
    paint();
  },
  column: ({ name, column }) => {
    coloured = { name, column };
    status.textContent = `The map is coloured by ${name}.`;
    paint();
  },
  genes: ({ genes, number }) => showGenes(genes, number),
  file: ({ name, blob, note }) => download(name, blob, note),
  cancelled: () => {
    status.textContent = "Cancelled. What was there before is still there.";
  },
  failed: ({ message }) => fail(message),
};

function fail(message: string): void {
  const box = byId("error");
  box.textContent = message;
  box.hidden = false;
  status.textContent = isReady ? "That did not work; see below." : "The page could not be started.";
  document.documentElement.dataset.failed = "true";
}

// ---- opening

function open(file: File): void {
  [opened, shown, scores, coloured] = [null, null, null, null];
  selected = new Int32Array(0);
  for (const id of ["account", "warnings"]) byId(id).hidden = true;
  for (const id of ["legend", "types", "hits"]) byId(id).replaceChildren();
  byId("decided").textContent = "Not named yet.";
  byId("figures").hidden = true;
  byId("no-map").hidden = false;
  scatter.setPlaces(new Float32Array(0));
  ask({ do: "open", file });
}

function showOpened(found: Opened): void {
  opened = found;
  showAccount(found.account);
  fillChoice(mapChoice, found.maps);
  status.textContent = `${found.name} is open: ${found.account.numCells.toLocaleString("en")} cells. Name them, or search.`;
  fillColours();
  if (found.maps.length > 1) ask({ do: "map", name: found.maps[0] });
}

function showAccount(account: Account): void {
  const number = (value: number) => value.toLocaleString("en");
  const covered = account.shareOfCounts ? `, which hold ${(100 * account.shareOfCounts).toFixed(1)} % of the counts` : "";
  const aside = account.setAside.map(({ kind, number: own }) => ` ${number(own)} rows of kind ${kind} are not read.`).join("");
  byId("account").textContent =
    `${number(account.numCells)} cells of ${account.species}; ${number(account.numMatched)} of ${number(account.numGenes)} genes ` +
    `(${account.scheme}) are known to the model${covered}. Read from ${account.matrix}: ${account.matrixDetail}.${aside}`;
  byId("account").hidden = false;
}

function fillChoice(choice: HTMLSelectElement, names: string[]): void {
  choice.replaceChildren(...names.map((name) => new Option(name, name)));
}

function fillColours(): void {
  const own = shown ? [CALLS, CONFIDENCE] : [], before = colourChoice.value;
  const names = [...own, ...(scores ? [FOUND] : []), ...(opened?.columns ?? [])];
  fillChoice(colourChoice, names);
  if (names.includes(before)) colourChoice.value = before;
}

// ---- naming

byId<HTMLFormElement>("label-part").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    ask({ do: "annotate", asked: asked() });
  } catch (error) {
    fail((error as Error).message);
  }
});

function asked(): Asked {
  const which = document.querySelector<HTMLInputElement>("input[name=which]:checked")!.value;
  const tissue = byId<HTMLInputElement>("tissue").value.trim(), isTogether = byId<HTMLInputElement>("consensus").checked;
  if (which !== "own") return { labels: which === "known" ? null : "cell-ontology", tissue, consensus: isTogether };
  const { names, descriptions } = parseLabels(byId<HTMLTextAreaElement>("labels").value);
  if (!names.length) throw new UserError("Write at least one name, one a line.");
  return { labels: names, descriptions, tissue, consensus: isTogether };
}

function showAnnotated(found: Shown, account: Account): void {
  shown = found;
  showAccount(account);
  const number = account.numCells.toLocaleString("en");
  status.textContent = `${number} cells are named.`;
  byId("decided").textContent = found.together
    ? `${number} cells named in ${found.seconds.toFixed(1)} s. The study decided together: neighbours spoke for one another, and of ` +
      `${found.labels} types only those are called that it holds (annotate() in Python, without antibodies).`
    : `${number} cells named in ${found.seconds.toFixed(1)} s. Each cell was judged among ${found.labels} names by its own evidence ` +
      "(annotate(consensus=False) in Python, without antibodies).";
  byId("warnings").replaceChildren(...found.warnings.map((warning) => element("li", warning)));
  byId("warnings").hidden = !found.warnings.length;
  fillColours();
  colourChoice.value = CALLS;
  showFigures(found, account);
  showTypes(found);
  paint();
  if (!byId("no-map").hidden) ask({ do: "map", name: mapChoice.value });
}

function showFigures({ cellType: { names, codes }, confidence, seconds }: Shown, { numCells }: Account): void {
  const unknown = codes.reduce((number, code) => number + Number(names[code] === UNKNOWN), 0);
  const figures = {
    cells: numCells.toLocaleString("en"), names: String(names.filter((name) => name !== UNKNOWN).length),
    unknown: percent(unknown / numCells), "mean confidence": percent(mean(Int32Array.from(codes.keys()), confidence)), seconds: seconds.toFixed(1),
  };
  byId("figures").replaceChildren(...Object.entries(figures).map(([title, figure]) => {
    const pair = document.createElement("div");
    pair.append(element("dt", title), element("dd", figure));
    return pair;
  }));
  byId("figures").hidden = false;
}

const percent = (share: number) => `${Math.round(100 * share)} %`;

function showTypes(found: Shown): void {
  const { names, codes } = found.cellType, numbers = counted(codes, names.length), sums = new Float64Array(names.length);
  codes.forEach((code, cell) => (sums[code] += found.confidence[cell]));
  const order = Array.from(names.keys()).sort((one, other) => numbers[other] - numbers[one]);
  byId("types").replaceChildren(
    ...order.map((code) => {
      const evidence = found.evidence.find((row) => row.cellType === names[code]), row = document.createElement("tr");
      const name = element("th", names[code]);
      name.setAttribute("scope", "row");
      name.prepend(dot(colourOfName(names[code], code)), " ");
      const cells = { Cells: numbers[code].toLocaleString("en"), Confidence: percent(sums[code] / numbers[code]) };
      const said = { "Runner-up": evidence?.against ?? "–", "Genes that speak for the name": evidence?.genes.join(", ") || "–" };
      row.append(name, ...Object.entries({ ...cells, ...said }).map(([title, text]) => {
        const cell = element("td", text);
        cell.dataset.title = title;
        if (title === "Confidence") cell.prepend(meter(sums[code] / numbers[code]));
        return cell;
      }));
      return row;
    }),
  );
}

// ---- map

function colourOfName(name: string, code: number): Rgb {
  return name === UNKNOWN || name === "nan" ? UNKNOWN_COLOUR : colourOf(code);
}

function shownColumn(): Column | null {
  if (colourChoice.value === CALLS) return shown?.cellType ?? null;
  return coloured?.name === colourChoice.value ? coloured.column : null;
}

function paint(): void {
  const numCells = opened?.account.numCells ?? 0, colours = new Float32Array(3 * numCells), weights = new Float32Array(numCells).fill(1);
  const column = shownColumn(), palette = column?.names.map(colourOfName);
  const values = colourChoice.value === CONFIDENCE ? shown?.confidence : colourChoice.value === FOUND ? scores : null;
  const [least, most] = values ? bounds(values) : [0, 1];
  for (let cell = 0; cell < numCells; cell++) {
    const colour = palette ? palette[column!.codes[cell]] : values ? shade((values[cell] - least) / (most - least || 1)) : UNKNOWN_COLOUR;
    colours.set(colour, 3 * cell);
  }
  if (selected.length) {
    weights.fill(0);
    for (const cell of selected) weights[cell] = 2;
  }
  scatter.setColours(colours, weights);
  const what = selected.length ? `, ${selected.length} selected` : "";
  byId("points").setAttribute("aria-label", `Map of ${numCells} cells, coloured by ${colourChoice.value || "nothing"}${what}`);
  showLegend(column);
}

function bounds(values: Float32Array): [number, number] {
  const sorted = values.slice().sort();
  return [sorted[Math.floor(0.02 * (sorted.length - 1))], sorted[Math.floor(0.995 * (sorted.length - 1))]];
}

function showLegend(column: Column | null): void {
  if (!column) return byId("legend").replaceChildren();
  const numbers = counted(column.codes, column.names.length);
  const order = Array.from(column.names.keys()).sort((one, other) => numbers[other] - numbers[one]);
  byId("legend").replaceChildren(
    ...order.slice(0, MOST_NAMES).map((code) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(dot(colourOfName(column.names[code], code)), element("span", column.names[code]), element("small", numbers[code].toLocaleString("en")));
      button.addEventListener("click", () => select(cellsOf(column, code), `called ${column.names[code]}`));
      return button;
    }),
    ...(order.length > MOST_NAMES ? [element("span", `and ${order.length - MOST_NAMES} more`)] : []),
  );
}

function cellsOf({ codes }: Column, code: number): Int32Array<ArrayBuffer> {
  return Int32Array.from(codes.keys()).filter((cell) => codes[cell] === code);
}

function counted(codes: Int32Array, number: number): Float64Array {
  const numbers = new Float64Array(number);
  for (const code of codes) numbers[code]++;
  return numbers;
}

// ---- selection

function select(cells: Int32Array, how: string): void {
  selected = Int32Array.from(cells);
  paint();
  const box = byId("chosen");
  if (!selected.length) return box.replaceChildren(element("p", "None. Draw around some on the map, or press a name.", "empty"));
  box.replaceChildren(element("p", `${selected.length.toLocaleString("en")} cells ${how}.`));
  if (shown) box.append(shareTable("Names", shown.cellType), shareTable("Candidates that hold the truth for nine of ten cells", shown.candidates));
  if (shown) box.append(element("p", `Mean confidence ${percent(mean(selected, shown.confidence))}.`));
  if (shown && !isBusy) ask({ do: "genes", cells: selected });
}

function mean(cells: Int32Array, values: Float32Array): number {
  return cells.reduce((sum, cell) => sum + values[cell], 0) / cells.length;
}

function shareTable(title: string, column: Column): HTMLElement {
  const numbers = counted(selected.map((cell) => column.codes[cell]), column.names.length), list = document.createElement("ul");
  const order = Array.from(column.names.keys()).filter((code) => numbers[code]).sort((one, other) => numbers[other] - numbers[one]);
  for (const code of order.slice(0, 6)) list.append(element("li", `${column.names[code]}: ${numbers[code]}`));
  if (order.length > 6) list.append(element("li", `and ${order.length - 6} more`));
  const box = document.createElement("div");
  box.append(element("h3", title), list);
  return box;
}

function showGenes(genes: { gene: string; mean: number; elsewhere: number }[], number: number): void {
  status.textContent = `${number.toLocaleString("en")} cells are selected.`;
  if (number !== selected.length) return;
  const said = genes.map(({ gene }) => gene).join(", ");
  byId("chosen").append(element("h3", "Genes raised above the other cells"), element("p", said || "None that stand out."));
}

// ---- search

byId<HTMLFormElement>("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ do: "search", text: byId<HTMLInputElement>("query").value });
});

function showFound(found: Float32Array, cells: Int32Array, names: string[]): void {
  scores = found;
  byId("hits").replaceChildren(
    ...names.map((name, place) => {
      const item = document.createElement("li"), button = element("button", name) as HTMLButtonElement, cell = cells[place];
      button.type = "button";
      button.addEventListener("click", () => select(Int32Array.of(cell), "chosen among the cells that were found"));
      const called = shown ? `, ${shown.cellType.names[shown.cellType.codes[cell]]}` : "";
      item.append(button, ` ${found[cell].toFixed(3)}${called}`);
      return item;
    }),
  );
  fillColours();
  colourChoice.value = FOUND;
  status.textContent = `The ${names.length} best cells are listed; the map shows how well each cell fits.`;
  select(cells, "fit the sentence best");
  if (!byId("no-map").hidden) ask({ do: "map", name: mapChoice.value });
}

// ---- files and controls

function download(name: string, blob: Blob, note: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  status.textContent = `${name} is in your downloads. ${note}`;
}

function showControls(): void {
  const isFree = isReady && !isBusy, set = (ids: string[], isOn: boolean) => {
    for (const id of ids) byId<HTMLButtonElement>(id).disabled = !isOn;
  };
  set(["file", "sample"], isFree);
  set(["label-fields", "query", "search", "map", "colour"], isFree && opened !== null);
  set(["csv", "h5ad"], isFree && shown !== null);
  document.documentElement.dataset.busy = String(isBusy);
}

function listen(): void {
  const drop = byId("drop"), chosen = byId<HTMLInputElement>("file");
  chosen.addEventListener("change", () => chosen.files?.[0] && open(chosen.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      const file = kind === "drop" && (event as DragEvent).dataTransfer?.files[0];
      if (file && isReady && !isBusy) open(file);
    });
  }
  byId("sample").addEventListener("click", async () => open(new File([await sample], "sample.h5ad")));
  for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=which]")) {
    radio.addEventListener("change", () => {
      byId("own-labels").hidden = radio.value !== "own";
      byId<HTMLInputElement>("consensus").checked = radio.value !== "own";
    });
  }
  cancel.addEventListener("click", () => ask({ do: "cancel" }));
  mapChoice.addEventListener("change", () => ask({ do: "map", name: mapChoice.value }));
  colourChoice.addEventListener("change", () => {
    const isOwn = [CALLS, CONFIDENCE, FOUND].includes(colourChoice.value);
    if (isOwn) paint();
    else ask({ do: "column", name: colourChoice.value });
  });
  for (const tool of ["lasso", "move"] as const) {
    byId(`tool-${tool}`).addEventListener("click", () => {
      scatter.tool = tool;
      for (const other of ["lasso", "move"]) byId(`tool-${other}`).setAttribute("aria-pressed", String(other === tool));
    });
  }
  byId("zoom-in").addEventListener("click", () => scatter.zoomBy(1.4));
  byId("zoom-out").addEventListener("click", () => scatter.zoomBy(1 / 1.4));
  byId("whole").addEventListener("click", () => scatter.fit());
  byId("none").addEventListener("click", () => select(new Int32Array(0), ""));
  byId("csv").addEventListener("click", () => ask({ do: "csv" }));
  byId("h5ad").addEventListener("click", () => ask({ do: "h5ad" }));
  isDark.addEventListener("change", () => {
    if (shown) showTypes(shown);
    paint();
  });
  window.addEventListener("beforeunload", (event) => isBusy && isReady && event.preventDefault());
}

/** What keeps the page for the next visit, online or not. */
async function keepForLater(): Promise<void> {
  if (!("serviceWorker" in navigator)) return;
  try {
    await navigator.serviceWorker.register("./sw.js");
    const isInCharge = navigator.serviceWorker.ready.then(() => navigator.serviceWorker.controller ?? taken());
    await Promise.race([isInCharge, new Promise((resolve) => setTimeout(resolve, 4000))]);
  } catch {
    // Without it the page works all the same, while there is a connection.
  }
}

const taken = () => new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true }));

listen();
if (!scatter.isPossible) byId("no-map").textContent = "This browser has no WebGL, so there is no map; all else works.";
void keepForLater().then(begin);
