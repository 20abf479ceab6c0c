// The species that a matrix is from, told by its genes (processing/species_scmmgpt.py).

import { UserError } from "./errors";

export const HUMAN = "human";

const SPECIES_OF_PREFIX: Record<string, string> = {
  ENSG: HUMAN, ENSMUSG: "mouse", ENSRNOG: "rat", ENSMMUG: "rhesus macaque", ENSMFAG: "crab-eating macaque", ENSSSCG: "pig",
  ENSDARG: "zebrafish", ENSPTRG: "chimpanzee", ENSCJAG: "marmoset", ENSMICG: "mouse lemur", ENSBTAG: "cow",
  ENSGALG: "chicken", ENSXETG: "western clawed frog", ENSOCUG: "rabbit", FBgn: "fruit fly", WBGene: "roundworm",
};
export const ENSEMBL_ID = /(ENS[A-Z]*G)\d{11}|(FBgn)\d{7}|(WBGene)\d{8}/;
export const GENOME_PREFIX = /^(GRCh3[78]|GRCm3[89]|hg19|hg38|mm10|mm39|GRCz11|mRatBN7|Rnor6)_+/;
const SPECIES_OF_GENOME: Record<string, string> = {
  GRCh: HUMAN, hg: HUMAN, GRCm: "mouse", mm: "mouse", GRCz: "zebrafish", mRat: "rat", Rnor: "rat",
};
const OTHER_KINGDOMS: [string, RegExp][] = [
  ["thale cress, a plant", /^AT[1-5MC]G\d{5}(\.\d+)?$/i],
  ["rice, a plant", /^(LOC_)?Os\d{2}g\d{5,7}$/i],
  ["maize, a plant", /^(Zm\d{5}[a-z]+\d{6}|GRMZM\w+)$/i],
  ["baker's yeast, a fungus", /^(Y[A-P][LR]\d{3}[WC](-[A-Z])?|Q0\d{3})$/],
  ["fission yeast, a fungus", /^SP[ABC]\w*\d+\.\d+c?$/],
];
const LEAST_SHARE_OF_OTHER_KINGDOM = 0.2;
export const MILLION_YEARS: Record<string, number> = {
  [HUMAN]: 0, chimpanzee: 6, "rhesus macaque": 29, "crab-eating macaque": 29, marmoset: 43, "mouse lemur": 74, mouse: 87,
  rat: 87, rabbit: 87, pig: 94, chicken: 319, zebrafish: 429, "fruit fly": 686, roundworm: 686,
};
const MILLION_YEARS_TO_HALF = 550, LEAST_SHARE_OF_SECOND = 0.1;
export const REACH_OF_CALIBRATION = 0.6, LEAST_REACH = 0.25;

/** The species that knows most names, and of each species that is there the names that no species before it knows. */
export interface SpeciesFound {
  species: string;
  names: Map<string, Set<string>>;
}

/** `speciesOf` gives the species whose genes have a symbol, by their numbers in `known`. */
export function recogniseSpecies(columns: string[][], known: string[], speciesOf: (symbol: string) => number[]): SpeciesFound {
  const found = new Map<string, Set<string>>(known.map((species) => [species, new Set()]));
  for (const name of new Set(columns.flat())) {
    const byId = speciesOfId(name);
    if (byId && !found.has(byId)) found.set(byId, new Set());
    for (const species of byId ? [byId] : speciesOf(name).map((number) => known[number])) found.get(species)!.add(name);
  }
  const winner = largest(found);
  const names = new Map([[winner, found.get(winner)!]]), taken = new Set(found.get(winner)!);
  for (;;) {
    for (const own of found.values()) if (own !== found.get(winner)) for (const name of taken) own.delete(name);
    const left = new Map([...found].map(([species, own]) => [species, species === winner ? new Set<string>() : own]));
    const second = largest(left), own = left.get(second)!;
    if (own.size < LEAST_SHARE_OF_SECOND * taken.size || !own.size) return { species: winner, names };
    names.set(second, new Set(own));
    for (const name of names.get(second)!) taken.add(name);
  }
}

function largest(sets: Map<string, Set<string>>): string {
  let best = "", most = -1;
  for (const [species, names] of sets) if (names.size > most) [best, most] = [species, names.size];
  return best;
}

function speciesOfId(name: string): string | null {
  const genome = GENOME_PREFIX.exec(name)?.[1];
  if (genome) return SPECIES_OF_GENOME[Object.keys(SPECIES_OF_GENOME).find((start) => genome.startsWith(start))!];
  const id = ENSEMBL_ID.exec(name);
  const prefix = id?.[1] ?? id?.[2] ?? id?.[3];
  return prefix ? SPECIES_OF_PREFIX[prefix] ?? `the species with ids ${prefix}...` : null;
}

export function refuseOtherKingdoms(columns: string[][]): void {
  for (const names of columns) {
    for (const [kingdom, form] of OTHER_KINGDOMS) {
      const number = names.filter((name) => form.test(name)).length;
      if (number && number >= LEAST_SHARE_OF_OTHER_KINGDOM * names.length) {
        throw new UserError(
          `${number} of ${names.length} genes are those of ${kingdom}. The model knows cells of animals, through orthologs of ` +
            "human genes; what it would say about these cells means nothing.",
        );
      }
    }
  }
}

export function reach(shareOfCounts: number, species: string): number {
  return Math.round(1000 * shareOfCounts * 0.5 ** ((MILLION_YEARS[species] ?? 0) / MILLION_YEARS_TO_HALF)) / 1000;
}

/** What confidences are multiplied by. */
export const trust = (reached: number) => Math.min(reached / REACH_OF_CALIBRATION, 1) ** 0.5;
