// One file of cells at work: read once, called and searched as often as one likes.

import { inNamesOfTypes } from "./author_labels";
import type { Calls } from "./back_off";
import { type Annotator, type Called, callCells, type CellEvidence, candidatesOf, DIMENSION, keepHeld, makeUnknown, profilesOf, Scorer } from "./calling";
import type { CellFile, ChosenMatrix } from "./cell_file";
import { linearRows } from "./cell_file";
import { MIN_CELLS, overNeighbours, type Tick } from "./consensus";
import { UserError } from "./errors";
import { evidenceOf, type SpeakingGenes, TokenSample } from "./evidence";
import type { GeneMatch } from "./gene_identity";
import { type Tokens, tokenize } from "./gene_tokenizer";
import { type LabelSet, ontologyLabels, readLabels, trainedLabels } from "./labels";
import type { Tables, TextEmbeds } from "./model";
import { UNINFORMATIVE_TERMS } from "./ontology";
import { isNoise, variation, type Variation } from "./plausibility";
import { HUMAN, LEAST_REACH, MILLION_YEARS, REACH_OF_CALIBRATION, reach, trust } from "./species";
import { AgreementReader } from "./type_profiles";

const CELLS_PER_CHUNK = 1024, LEAST_SUPPORT = 2, LEAST_PROFILE_REACH = 0.3, MOST_IMPLAUSIBLE = 0.5, FEW_COVERED = 0.5, NUM_RAISED = 12;

/** What was read, in plain numbers. */
export interface Account {
  numCells: number;
  numGenes: number;
  numMatched: number;
  species: string;
  severalSpecies: Map<string, number>;
  scheme: string;
  matrix: string;
  matrixDetail: string;
  isCounts: boolean;
  isScaled: boolean;
  recovered: number;
  emptyCells: number;
  shareOfCounts: number;
  reach: number;
  setAside: { kind: string; number: number; names: string[] }[];
  hasGraph: boolean;
}

export interface Asked {
  /** None: the types that the model knows. "cell-ontology": all types. */
  labels: string[] | "cell-ontology" | null;
  descriptions?: Record<string, string>;
  tissue?: string;
  minConfidence?: number | null;
  /** None: as the labels suggest. */
  consensus?: boolean | null;
}

export interface Annotated extends Called {
  together: boolean;
  labels: LabelSet;
  held: string[];
  evidence: SpeakingGenes[];
  warnings: string[];
  numImplausible: number;
}

type EmbedCells = (tokens: Tokens) => Promise<Float32Array>;

export class Study {
  readonly chosen: ChosenMatrix;
  readonly match: GeneMatch;
  readonly account: Account;
  embeds: Float32Array | null = null;
  private agreement!: Float32Array;
  private isEmpty: boolean[] = [];
  private isImplausible: boolean[] = [];
  private sample: TokenSample;
  private variation: Variation = { dispersion: null, spread: null };
  private panelShare: number;

  constructor(private tables: Tables, readonly file: CellFile) {
    this.chosen = file.choose();
    const { matrix, state, setAside } = this.chosen;
    this.match = tables.identifier.match(matrix.names);
    this.panelShare = tables.settings.panel_scaling ? tables.vocabulary.panelShare(this.match.rows.filter((row) => row >= 0)) : 1;
    this.sample = new TokenSample(file.numCells);
    this.account = {
      numCells: file.numCells,
      numGenes: matrix.shape[1],
      numMatched: this.match.numMatched,
      species: this.match.species,
      severalSpecies: this.match.severalSpecies,
      scheme: this.match.scheme,
      matrix: matrix.name,
      matrixDetail: state.detail,
      isCounts: state.kind === "counts",
      isScaled: state.kind === "scaled",
      recovered: 0,
      emptyCells: 0,
      shareOfCounts: 0,
      reach: 1,
      setAside: setAside.map(({ kind, names }) => ({ kind, number: names.length, names: names.slice(0, 5) })),
      hasGraph: file.graph !== null,
    };
  }

  /** Tokens of some cells, and the sum of all their counts. */
  tokens(start: number, stop: number): { tokens: Tokens; total: number; recovered: number } {
    const { rows, recovered } = linearRows(this.chosen, start, stop);
    let total = 0;
    for (let at = 0; at < rows.data.length; at++) total += rows.data[at];
    return { tokens: tokenize(rows, this.match.rows, this.tables.vocabulary, this.tables.settings, this.panelShare), total, recovered };
  }

  /** Read all cells, a chunk at a time, and embed them. */
  async read(embedCells: EmbedCells, tick: Tick): Promise<void> {
    if (this.embeds) return;
    const { numCells } = this.account, { annotator, vocabulary, plausibility } = this.tables;
    const numTypes = annotator.profiles.numTypes, reader = new AgreementReader(annotator.profiles, vocabulary.genes.length);
    const embeds = allocated(numCells, DIMENSION), agreement = allocated(numCells, numTypes);
    const isEmpty: boolean[] = [], isImplausible: boolean[] = [];
    let covered = 0, total = 0, recovered = 0, before = Promise.resolve();
    for (let start = 0; start < numCells; start += CELLS_PER_CHUNK) {
      const stop = Math.min(start + CELLS_PER_CHUNK, numCells), chunk = this.tokens(start, stop), { tokens } = chunk;
      const embedded = embedCells(tokens).then((found) => embeds.set(found, start * DIMENSION));
      agreement.set(reader.read(tokens), start * numTypes);
      isEmpty.push(...Array.from(tokens.totals, (_, cell) => tokens.bounds[cell] === tokens.bounds[cell + 1]));
      isImplausible.push(...plausibility.implausible(tokens));
      this.sample.add(start, tokens);
      covered += tokens.totals.reduce((sum, own) => sum + own, 0);
      total += chunk.total;
      recovered += chunk.recovered;
      if (start === 0) this.variation = variation(tokens);
      await before; // so that one chunk is embedded while the next is read, and no more wait
      before = embedded;
      await tick(stop / numCells);
    }
    await before;
    [this.embeds, this.agreement, this.isEmpty, this.isImplausible] = [embeds, agreement, isEmpty, isImplausible];
    const share = total ? Math.min(covered / total, 1) : 0;
    Object.assign(this.account, {
      recovered,
      emptyCells: isEmpty.filter(Boolean).length,
      shareOfCounts: share,
      reach: reach(Math.round(share * 1e6) / 1e6, this.account.species),
    });
  }

  /** Call every cell; the cells were read before. */
  async annotate(asked: Asked, texts: TextEmbeds, tick: Tick): Promise<Annotated> {
    const { annotator } = this.tables, isOwnList = Array.isArray(asked.labels);
    const together = (asked.consensus ?? !isOwnList) && this.account.numCells >= MIN_CELLS;
    const labels = labelSetOf(annotator, asked, together);
    const candidates = await candidatesOf(annotator, labels, texts.embed, asked.tissue);
    const types = profilesOf(candidates), measured = new Set(this.match.rows.filter((row) => row >= 0));
    const cells: CellEvidence = {
      numCells: this.account.numCells,
      embeds: together ? this.embeds!.slice() : this.embeds!,
      isEmpty: this.isEmpty,
      isImplausible: this.isImplausible,
      agreement: types.length ? this.agreementWith(types, together) : null,
    };
    const norms = types.length ? annotator.profiles.norms(measured) : null;
    const ofTypes = norms && Float64Array.from(types, (type) => norms[type]);
    await tick(0.05);
    const communities = together ? await overNeighbours(cells, ofTypes, this.file.graph, (done) => tick(0.05 + 0.6 * done)) : null;
    const scorer = new Scorer(annotator, cells, candidates, { measured, ofStudy: together, reach: this.account.reach });
    if (communities) keepHeld(annotator, scorer, communities);
    await tick(0.75);
    const called = callCells(annotator, scorer, asked.minConfidence ?? null);
    await tick(0.9);
    const evidence = evidenceOf(this.sample, called.calls, this.tables.vocabulary, annotator.profiles, annotator.ontology);
    const least = asked.minConfidence ?? scorer.calibration.minConfidence;
    const warnings = [...labels.notes, ...this.warnings()];
    const why = together && least > 0 ? this.whyNoStudy(evidence.support, scorer.profileReach) : "";
    if (why) {
      warnings.unshift(`All cells are called unknown: ${why}. Check genes and values.`);
      for (let cell = 0; cell < this.account.numCells; cell++) turnAway(called, cell);
    }
    const numImplausible = why ? this.account.numCells : this.isImplausible.filter(Boolean).length;
    return { ...called, together, labels, held: together ? scorer.called.labels : [], evidence: evidence.table, warnings, numImplausible };
  }

  /** Cosine of every cell with a text. */
  async search(text: string, texts: TextEmbeds): Promise<Float32Array> {
    if (!text.trim()) throw new UserError("Write what to look for.");
    const query = await texts.embed([inNamesOfTypes(text.trim(), this.tables.annotator.ontology)]), scores = new Float32Array(this.account.numCells);
    for (let cell = 0; cell < scores.length; cell++) {
      let sum = 0;
      for (let at = 0; at < DIMENSION; at++) sum += this.embeds![cell * DIMENSION + at] * query[at];
      scores[cell] = sum;
    }
    return scores;
  }

  /** The genes that some cells raise most above the others, of the cells whose tokens were kept. */
  raisedGenes(cells: Int32Array): { gene: string; mean: number; elsewhere: number }[] {
    const chosen = new Set(cells), { genes } = this.tables.vocabulary;
    const { sums, numCells } = this.sample.sums((cell) => Number(!chosen.has(cell)), 2, genes.length);
    if (!numCells[0]) return [];
    const mean = (group: number, row: number) => sums[group][row] / Math.max(numCells[group], 1);
    const difference = Float64Array.from(genes, (_, row) => mean(0, row) - mean(1, row));
    const best = Array.from(difference.keys()).sort((one, other) => difference[other] - difference[one]).slice(0, NUM_RAISED);
    return best.filter((row) => difference[row] > 0).map((row) => ({ gene: genes[row], mean: mean(0, row), elsewhere: mean(1, row) }));
  }

  private agreementWith(types: number[], isChanged: boolean): Float32Array {
    const all = this.tables.annotator.profiles.numTypes, numCells = this.account.numCells;
    if (types.length === all) return isChanged ? this.agreement.slice() : this.agreement;
    const chosen = allocated(numCells, types.length);
    for (let cell = 0; cell < numCells; cell++) {
      for (let place = 0; place < types.length; place++) chosen[cell * types.length + place] = this.agreement[cell * all + types[place]];
    }
    return chosen;
  }

  private get isNoise(): boolean {
    return isNoise(this.variation, this.account.isCounts || this.account.recovered > 0, this.account.isScaled);
  }

  private whyNoStudy(support: () => number, profileReach: number): string {
    if (this.isNoise) return "the cells vary hardly more than random counts";
    const isUnsupported = profileReach >= LEAST_PROFILE_REACH && support() < LEAST_SUPPORT;
    if (isUnsupported) return "their genes agree with the types hardly better than under shuffled gene names";
    const isImplausible = this.isImplausible.filter(Boolean).length > MOST_IMPLAUSIBLE * this.account.numCells;
    return isImplausible ? "in most of them the genes that are usually high are not" : "";
  }

  /** What may spoil the results, each with a remedy (src/scmmgpt/input_warnings.py). */
  private warnings(): string[] {
    const { account } = this, percent = `${Math.round(100 * account.shareOfCounts)}%`, found: string[] = [];
    if (account.shareOfCounts < FEW_COVERED) {
      found.push(`Only ${percent} of the counts are in genes that the model knows: check the species, and that genes have symbols or Ensembl ids.`);
    }
    if (account.reach < LEAST_REACH) {
      found.push(`The cells are of ${account.species}, ${MILLION_YEARS[account.species] ?? 0} million years from human: every cell is called unknown.`);
    } else if (account.species !== HUMAN && account.reach < REACH_OF_CALIBRATION) {
      found.push(`The cells are of ${account.species}; confidences are multiplied by ${trust(account.reach).toFixed(2)} for that.`);
    }
    if (account.severalSpecies.size) {
      found.push(`The file holds genes of several species: ${[...account.severalSpecies].map(([name, number]) => `${name} (${number} genes)`).join(", ")}.`);
    }
    if (account.emptyCells) found.push(`${account.emptyCells} cells express no gene that the model knows; they are called unknown.`);
    if (!account.isCounts && !account.recovered) found.push(`No raw counts were found; ${account.matrix} (${account.matrixDetail}) is used.`);
    const numImplausible = this.isImplausible.filter(Boolean).length;
    if (numImplausible) found.push(`${numImplausible} of ${account.numCells} cells look like noise, or like counts under wrong gene names.`);
    if (this.isNoise) found.push("The cells vary hardly more than random counts from one profile, as in empty droplets.");
    if (this.file.isActivity) found.push("These are gene activities of chromatin, which this page reads as RNA; the Python package has a calibration for them.");
    for (const { kind, number, names } of account.setAside) found.push(`${number} rows of kind ${kind} are not read: ${names.join(", ")}.`);
    return found;
  }
}

function labelSetOf(annotator: Annotator, asked: Asked, together: boolean): LabelSet {
  if (asked.labels === "cell-ontology") return ontologyLabels(annotator.ontology);
  if (asked.labels) return readLabels(asked.labels, annotator.ontology, asked.descriptions);
  const { profiles, ontology, trainedTypes } = annotator;
  const withProfiles = profiles.termIds.filter((id) => ontology.terms.has(id) && !UNINFORMATIVE_TERMS.has(id));
  return trainedLabels(together ? [...trainedTypes, ...withProfiles] : trainedTypes, ontology);
}

function turnAway({ calls, sets }: { calls: Calls; sets: string[] }, cell: number): void {
  makeUnknown(calls, cell);
  sets[cell] = "cell";
}

function allocated(numCells: number, width: number): Float32Array {
  try {
    return new Float32Array(numCells * width);
  } catch {
    throw new UserError(
      `There is not enough memory for ${numCells.toLocaleString("en")} cells: close other tabs, or give a part of the cells. ` +
        "Nothing is lost, because nothing was changed.",
    );
  }
}
