// How one model's similarities are read (processing/calibration_scmmgpt.py).

type Pairs = [number, number][];

export interface CalibrationJson {
  temperature_by_candidates: Pairs;
  class_bias?: Record<string, number>;
  prior_share?: number;
  min_confidence?: number;
  profile_weight?: number;
  least_share?: number;
  naming_temperature?: number;
  parent_bias?: number;
  least_part?: number;
  set_gap_by_candidates?: Pairs;
  consensus?: CalibrationJson;
  alone?: CalibrationJson;
}

export class Calibration {
  readonly priorShare: number;
  readonly minConfidence: number;
  readonly profileWeight: number;
  readonly leastShare: number;
  readonly namingTemperature: number;
  readonly parentBias: number;
  readonly leastPart: number;
  readonly ofStudy: Calibration;
  readonly ofSingleCells: Calibration;
  private classBias: Record<string, number>;

  constructor(private json: CalibrationJson, classBias = json.class_bias ?? {}) {
    this.classBias = classBias;
    this.priorShare = json.prior_share ?? 0.5;
    this.minConfidence = json.min_confidence ?? 0.3;
    this.profileWeight = json.profile_weight ?? 0;
    this.leastShare = json.least_share ?? 0.003;
    this.namingTemperature = json.naming_temperature ?? 2;
    this.parentBias = json.parent_bias ?? 0;
    this.leastPart = json.least_part ?? 0.1;
    this.ofStudy = json.consensus ? new Calibration(json.consensus, classBias) : this;
    this.ofSingleCells = json.alone ? new Calibration(json.alone) : this;
  }

  temperature(numCandidates: number): number {
    return between(this.json.temperature_by_candidates, numCandidates);
  }

  /** How far below the best a label of a cell's set may lie. */
  setGap(numCandidates: number): number {
    const gaps = this.json.set_gap_by_candidates ?? [];
    return gaps.length ? between(gaps, numCandidates) : Infinity;
  }

  biasOf(labels: string[], termIds: (string | null)[]): Float32Array {
    return Float32Array.from(labels, (label, place) => this.classBias[termIds[place] ?? label] ?? this.classBias[label] ?? 0);
  }
}

/** The value for a number of candidates: between its neighbours by the logarithm of the number. */
function between(pairs: Pairs, number: number): number {
  const sorted = [...pairs].sort(([one], [other]) => one - other), after = sorted.findIndex(([own]) => own >= number);
  if (after === 0 || sorted.length === 1) return sorted[0][1];
  if (after < 0) return sorted[sorted.length - 1][1];
  const [[low, first], [high, second]] = [sorted[after - 1], sorted[after]];
  return first + ((second - first) * (Math.log(number) - Math.log(low))) / (Math.log(high) - Math.log(low));
}
