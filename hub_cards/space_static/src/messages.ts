// What page and worker say to each other.

import type { SpeakingGenes } from "./evidence";
import type { Account, Asked } from "./study";

/** Values of a column of text: the names that there are, and the number of each cell's name. */
export interface Column {
  names: string[];
  codes: Int32Array;
}

/** The calls of all cells, fit to be shown. */
export interface Shown {
  cellType: Column;
  termId: Column;
  confidence: Float32Array;
  second: Column;
  candidates: Column;
  together: boolean;
  /** How many names cells could get. */
  labels: number;
  evidence: SpeakingGenes[];
  warnings: string[];
  seconds: number;
}

export interface Opened {
  account: Account;
  maps: string[];
  columns: string[];
  kind: string;
  name: string;
}

export type Request =
  | { do: "start"; base: string; cores: number }
  | { do: "open"; file: File }
  | { do: "annotate"; asked: Asked }
  | { do: "search"; text: string }
  | { do: "map"; name: string }
  | { do: "column"; name: string }
  | { do: "genes"; cells: Int32Array }
  | { do: "csv" }
  | { do: "h5ad" }
  | { do: "cancel" };

export type Answer =
  | { is: "progress"; what: string; done: number }
  | { is: "failed"; message: string; isUser: boolean }
  | { is: "cancelled" }
  | { is: "ready"; model: string; engine: string; bytes: number }
  | { is: "opened"; opened: Opened }
  | { is: "annotated"; shown: Shown; account: Account }
  | { is: "found"; scores: Float32Array; cellNames: string[]; cells: Int32Array }
  | { is: "map"; name: string; places: Float32Array }
  | { is: "column"; name: string; column: Column }
  | { is: "genes"; genes: { gene: string; mean: number; elsewhere: number }[]; number: number }
  | { is: "file"; name: string; blob: Blob; note: string };
