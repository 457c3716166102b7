// How long drafts are, and when drafting rests.

/** The chance that a draft is right so far at which one id more is worth its time, while times are not known. */
const WORTH = 0.3;
/** How fast the exponent follows, in its logarithm, and its limits. */
const RATE = 0.02;
const LEAST_POWER = 0.05;
const MOST_POWER = 8;
/** Plain ids between failing trials: at first, how they grow, and at most. */
const REST = 8;
const REST_GROWTH = 4;
const LONGEST_REST = 1024;
/** Most plain ids after a drafter had nothing to propose. */
const SILENT_REST = 16;
/** Drafts after a rest before it is judged whether they pay. */
const TRIAL = 6;
/** Weight of the past in averages over passes. */
const MEMORY = 0.9;

/** An average that forgets. */
class Average {
  value: number | undefined;

  add(x: number): void {
    this.value = this.value === undefined ? x : MEMORY * this.value + (1 - MEMORY) * x;
  }
}

/** y = a + b x, fitted to points that are forgotten with time. */
class Line {
  #n = 0;
  #x = 0;
  #y = 0;
  #xx = 0;
  #xy = 0;
  readonly #least: number;
  readonly #unknown: number;

  /** The slope as shares of the mean y / x: the least that is believed, and what is taken while all x are alike. */
  constructor(least: number, unknown: number) {
    this.#least = least;
    this.#unknown = unknown;
  }

  add(x: number, y: number): void {
    this.#n = MEMORY * this.#n + 1;
    this.#x = MEMORY * this.#x + x;
    this.#y = MEMORY * this.#y + y;
    this.#xx = MEMORY * this.#xx + x * x;
    this.#xy = MEMORY * this.#xy + x * y;
  }

  /** b, but no more than if a were 0; undefined before the first point. */
  get slope(): number | undefined {
    if (this.#x === 0) return undefined;
    const mean = this.#y / this.#x;
    const spread = this.#n * this.#xx - this.#x * this.#x;
    if (spread < 1e-9 * this.#n * this.#xx) return mean * this.#unknown;
    return Math.min(mean, Math.max(mean * this.#least, (this.#n * this.#xy - this.#x * this.#y) / spread));
  }
}

/**
 * Decides how long drafts are from how the recent ones fared. An id of which a drafter is sure with probability p is right
 * with about p^a; a is fitted as drafts are judged (by gradient steps on the logarithmic loss). A draft goes on as long as
 * the chance that all of it is right is worth the time of one id more; when drafts make fewer ids in the same time than
 * plain decoding does, they rest.
 *
 * Times are measured where they cannot change the output (`timed`). Elsewhere all depends on ids alone, so that runs
 * repeat.
 */
export class Pace {
  readonly #timed: boolean;
  #power = 1;
  #failures = 0;
  #trial = 0;
  #rest = 0;
  #nextRest = REST;
  /** Milliseconds of plain decoding by its ids: to begin takes time too, and who never drafts begins once. */
  readonly #plain = new Line(0.5, 1);
  /** Milliseconds of a drafted id, and of a verify pass by its ids. */
  readonly #drafting = new Average();
  readonly #verifying = new Line(0, 0.5);
  /** Ids made, and milliseconds taken, by a draft and its pass. */
  readonly #made = new Average();
  readonly #taken = new Average();

  constructor(timed: boolean) {
    this.#timed = timed;
    this.#rest = timed ? REST : 0; // to know what a plain id costs
  }

  /** The least product of a drafter's probabilities at which its draft goes on. */
  get least(): number {
    return this.#worth ** (1 / this.#power);
  }

  /** Ids to decode plainly before the next draft. */
  get rest(): number {
    return this.#rest;
  }

  /** `ids` were made by plain decoding. */
  plain(ids: number, ms: number): void {
    this.#rest = Math.max(0, this.#rest - ids);
    if (this.#timed && ids > 0) this.#plain.add(ids, ms);
  }

  /** The drafter had nothing to propose. */
  silent(): void {
    this.#rest = Math.min(this.#nextRest, SILENT_REST);
    this.#nextRest = Math.max(this.#nextRest, SILENT_REST);
  }

  /** What became of a draft: how sure the drafter was of each id, how many were right, and how long it all took. */
  learn(confidence: readonly number[], right: number, ms: { drafting: number; verifying: number }): void {
    for (let i = 0; i < Math.min(right + 1, confidence.length); i++) this.#fit(confidence[i] ?? 1, i < right);
    const ids = confidence.length;
    if (this.#timed) {
      this.#drafting.add(ms.drafting / ids);
      this.#verifying.add(ids + 1, ms.verifying);
      this.#made.add(right + 1);
      this.#taken.add(ms.drafting + ms.verifying);
    }
    this.#failures = right > 0 ? 0 : this.#failures + 1;
    if (++this.#trial < TRIAL) return;
    if (this.#pays) this.#nextRest = REST;
    else this.#takeRest();
  }

  get #pays(): boolean {
    const { slope: plain } = this.#plain;
    if (!this.#timed || plain === undefined) return this.#failures < TRIAL;
    return (this.#made.value ?? 0) * plain > (this.#taken.value ?? 0);
  }

  #takeRest(): void {
    this.#rest = this.#nextRest;
    this.#nextRest = Math.min(LONGEST_REST, REST_GROWTH * this.#nextRest);
    this.#trial = 0;
    this.#failures = 0;
  }

  /** Milliseconds of one id more, in ids that are made meanwhile. */
  get #worth(): number {
    const [made, taken, drafting] = [this.#made.value, this.#taken.value, this.#drafting.value];
    if (made === undefined || taken === undefined || drafting === undefined) return WORTH;
    return Math.min(0.95, Math.max(0.02, (((this.#verifying.slope ?? 0) + drafting) * made) / taken));
  }

  #fit(confidence: number, right: boolean): void {
    const logP = Math.log(Math.min(0.999, Math.max(1e-3, confidence)));
    const chance = Math.exp(this.#power * logP);
    // d(-log likelihood) / d(log a)
    const slope = this.#power * (right ? -logP : (chance * logP) / (1 - chance));
    const moved = this.#power * Math.exp(-RATE * Math.max(-3, Math.min(3, slope)));
    this.#power = Math.min(MOST_POWER, Math.max(LEAST_POWER, moved));
  }
}
