// A model folder: what `scmmgpt export onnx` wrote, and beside it what the page was given for quick answers.

import type { AuthorWords } from "./author_labels";
import { Calibration, type CalibrationJson } from "./calibration";
import { type Annotator, DIMENSION, type EmbedTexts } from "./calling";
import { GeneIdentifier, GeneNames } from "./gene_identity";
import type { TokenizerSettings } from "./gene_tokenizer";
import { Vocabulary } from "./gene_vocabulary";
import { ontologyLabels, textsOf } from "./labels";
import { Ontology } from "./ontology";
import { gunzip, textOf } from "./packed_files";
import { Plausibility } from "./plausibility";
import type { Towers } from "./towers";
import { TypeProfiles } from "./type_profiles";

/** A file of the model folder, by name. */
export type ReadFile = (name: string) => Promise<ArrayBuffer>;

/** Reads the model folder beside the page, and counts the bytes. */
export function reader(base: string): { read: ReadFile; total(): number } {
  let bytes = 0;
  const read: ReadFile = async (name) => {
    const response = await fetch(new URL(`model/${name}`, base));
    if (!response.ok) throw new Error(`model/${name} is missing on this server (${response.status}).`);
    const found = await response.arrayBuffer();
    bytes += found.byteLength;
    return found;
  };
  return { read, total: () => bytes };
}

/** What the page's builder writes beside the export. */
export interface PageJson {
  trained_types: string[];
  model: string;
  version: string;
  author_words: AuthorWords;
}

/** All that is not a tower: tables, settings, rules. */
export interface Tables {
  page: PageJson;
  vocabulary: Vocabulary;
  identifier: GeneIdentifier;
  settings: TokenizerSettings;
  annotator: Annotator;
  plausibility: Plausibility;
}

export async function readTables(read: ReadFile): Promise<Tables> {
  const json = async <T>(name: string) => JSON.parse(textOf(await read(name))) as T;
  const unpacked = async (name: string) => gunzip(await read(name));
  const page = await json<PageJson>("page.json");
  const settings = (await json<{ feature_extractor: TokenizerSettings }>("processor_config.json")).feature_extractor;
  if (settings.value_mode !== "log1p" || settings.include_zero_genes || !settings.add_cls) {
    throw new Error("This page reads models whose gene tokenizer shows log1p of the genes that a cell expresses, after <cls>.");
  }
  const vocabulary = new Vocabulary(textOf(await unpacked("gene_vocabulary.tsv.gz")));
  const names = new GeneNames(textOf(await unpacked("gene_names.tsv.gz")));
  const ontology = new Ontology(JSON.parse(textOf(await unpacked("cell_ontology.json.gz"))), page.author_words);
  const profiles = new TypeProfiles(await unpacked("type_profiles.safetensors.gz"));
  const calibration = new Calibration(await json<CalibrationJson>("calibration.json"));
  const scale = (await json<{ similarity_scale: number }>("manifest.json")).similarity_scale;
  const annotator = { ontology, calibration, profiles, trainedTypes: page.trained_types, scale };
  return { page, vocabulary, identifier: new GeneIdentifier(vocabulary, names), settings, annotator, plausibility: new Plausibility(vocabulary, profiles) };
}

/** Embeds of the ontology's own labels, which come with the page. */
export async function readOntologyEmbeds(read: ReadFile, ontology: Ontology): Promise<{ texts: string[]; embeds: Float32Array }> {
  const texts = textsOf(ontologyLabels(ontology)), embeds = new Float32Array(await read("ontology_embeds.f32"));
  if (embeds.length !== texts.length * DIMENSION) throw new Error("ontology_embeds.f32 belongs to another ontology.");
  return { texts, embeds };
}

/** Embeds texts, none twice; some are known from the beginning. */
export class TextEmbeds {
  private known = new Map<string, Float32Array>();

  constructor(private towers: Pick<Towers, "texts">, texts: string[], embeds: Float32Array) {
    texts.forEach((text, place) => this.known.set(text, embeds.subarray(place * DIMENSION, (place + 1) * DIMENSION)));
  }

  embed: EmbedTexts = async (texts) => {
    const missing = [...new Set(texts)].filter((text) => !this.known.has(text));
    if (missing.length) {
      const found = await this.towers.texts(missing);
      missing.forEach((text, place) => this.known.set(text, found.slice(place * DIMENSION, (place + 1) * DIMENSION)));
    }
    const embeds = new Float32Array(texts.length * DIMENSION);
    texts.forEach((text, place) => embeds.set(this.known.get(text)!, place * DIMENSION));
    return embeds;
  };
}
