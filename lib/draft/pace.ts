// How long drafts are, and when drafting rests.
import { Average, Line, LONG_MEMORY, Times, Undisturbed, Usual } from './averages.ts';

/** The chance that a draft is right so far at which one id more is worth its time, while times are not known. */
const WORTH = 0.3;
/** How fast the exponent follows, in its logarithm, and its limits. */
const RATE = 0.02;
const LEAST_POWER = 0.05;
const MOST_POWER = 8;
/** Plain ids between failing trials: at first, how they grow, and at most. */
const REST = 8;
const REST_GROWTH = 4;
/** Texts that begin with plain ids, to know what these cost. */
const FIRST_TEXTS = 3;
const LONGEST_REST = 1024;
/** Most plain ids after a drafter had nothing to propose. */
const SILENT_REST = 16;
/** Drafts after a rest before it is judged whether they pay. */
const TRIAL = 10;
/**
 * Passes of a pair whose times say nothing of those to come: plans are compiled, memory is touched for the first time, and
 * JS is still being optimised, on one of the cores.
 */
const WARMING = 24;
/** Weight of the past in the speed of drafting: passes make one id or ten, so that it takes many to know. */
const MEMORY = 0.95;
/** Limits of what an id more is worth, and of the share of ids that are right. */
const LEAST_WORTH = 0.02;
const MOST_WORTH = 0.95;
const MOST_RIGHT = 0.98;

/** Milliseconds that a draft took, its verify pass, and both with what comes between them. */
interface PassMs {
  drafting: number;
  verifying: number;
  all: number;
}

/** Plain ids after the next trial that fails. */
interface Rests {
  next: number;
}

/** What drafting with one drafter for one verifier costs. The next text goes on with what is known. */
export class DraftCosts {
  /** Milliseconds of an id of plain decoding. */
  readonly plain = new Undisturbed();
  /** Of a draft by its ids, and of a verify pass by the ids that it reads. */
  readonly drafting = new Line();
  readonly verifying = new Times();
  /** Passes so far. */
  passes = 0;
  readonly rests: Rests = { next: REST };
  readonly #draft = new Usual();
  readonly #pass = new Usual();

  /** A draft of so many ids was made and verified. Returns what it took, as far as that says something of the next. */
  pass(ids: number, ms: PassMs): number {
    this.passes++;
    this.drafting.add(ids, this.#draft.add(ms.drafting));
    this.verifying.add(ids + 1, ms.verifying);
    return this.#pass.add(ms.all);
  }
}

/**
 * Decides how long drafts are from how the recent ones fared. An id of which a drafter is sure with probability p is right
 * with about p^a; a is fitted as drafts are judged (by gradient steps on the logarithmic loss). A draft goes on as long as
 * the chance that all of it is right is worth the time of further ids; when drafts surely make fewer ids in the same time
 * than plain decoding does, they rest.
 *
 * Times are measured where they cannot change the output. Elsewhere all depends on ids alone, so that runs repeat.
 */
export class Pace {
  readonly #costs: DraftCosts | undefined;
  #power = 1;
  #failures = 0;
  #trial = 0;
  #rest = 0;
  readonly #rests: Rests;
  /** Of ids that were judged, how many were right. */
  readonly #right = new Average();
  /** Ids made, and milliseconds taken, by a draft and its pass. */
  readonly #made = new Average(MEMORY);
  readonly #taken = new Average(MEMORY);
  /** Milliseconds that plain decoding takes longer for the ids of a pass. */
  #gain = new Average(LONG_MEMORY);

  /** @param costs what is known of them; undefined: the output may not depend on times */
  constructor(costs: DraftCosts | undefined) {
    this.#costs = costs;
    this.#rest = costs && costs.plain.samples < FIRST_TEXTS ? REST : 0;
    this.#rests = costs?.rests ?? { next: REST };
  }

  /**
   * By the ids of a draft so far, up to `most`: the least product of a drafter's probabilities at which it goes on.
   *
   * One id more may be worth little and yet bring others with it: a pass of eight may cost what one of five does. So it counts
   * whether any number of further ids makes up for its time, in ids that are made meanwhile.
   */
  leastUpTo(most: number): Float64Array {
    const least = this.#worthUpTo(most).map((worth) => worth ** (1 / this.#power));
    least[0] = 0;
    return least;
  }

  /** Ids to decode plainly before the next draft. */
  get rest(): number {
    return this.#rest;
  }

  /** `ids` were made by plain decoding. */
  plain(ids: number, ms: number): void {
    this.#rest = Math.max(0, this.#rest - ids);
    if (ids > 0) this.#costs?.plain.add(ms / ids);
  }

  /** The drafter had nothing to propose. */
  silent(): void {
    this.#rest = Math.min(this.#rests.next, SILENT_REST);
    this.#rests.next = Math.max(this.#rests.next, SILENT_REST);
  }

  /** What became of a draft: how sure the drafter was of each id, how many were right, and how long it all took. */
  learn(confidence: readonly number[], right: number, ms: PassMs): void {
    const ids = confidence.length;
    const judged = Math.min(right + 1, ids);
    for (let i = 0; i < judged; i++) this.#fit(confidence[i] ?? 1, i < right);
    this.#right.add(right / judged);
    this.#failures = right > 0 ? 0 : this.#failures + 1;
    const taken = this.#costs?.pass(ids, ms);
    const warming = this.#costs !== undefined && this.#costs.passes <= WARMING;
    if (!warming) this.#count(right + 1, taken);
    if (this.#failures >= TRIAL) this.#takeRest();
    else if (this.#trial >= TRIAL) this.#judge();
  }

  #count(made: number, taken: number | undefined): void {
    this.#trial++;
    if (taken === undefined) return;
    this.#made.add(made);
    this.#taken.add(taken);
    const plain = this.#costs?.plain.value;
    if (plain !== undefined) this.#gain.add(made * plain - taken);
  }

  #worthUpTo(most: number): Float64Array {
    const least = new Float64Array(most + 1).fill(WORTH);
    const [made, taken] = [this.#made.value, this.#taken.value];
    const drafting = this.#costs?.drafting.slope;
    const verifying = this.#costs?.verifying.upTo(most + 1);
    if (!made || !taken || drafting === undefined || !verifying) return least;
    const right = Math.min(MOST_RIGHT, this.#right.value ?? 0);
    for (let n = 1; n < most; n++) {
      let worth = MOST_WORTH;
      let chance = 1;
      let gain = 0;
      for (let m = n + 1; m <= most; m++) {
        gain += chance;
        chance *= right;
        const ms = (verifying[m + 1] ?? 0) - (verifying[n + 1] ?? 0) + drafting * (m - n);
        worth = Math.min(worth, (ms * made) / taken / gain);
      }
      least[n] = Math.max(LEAST_WORTH, worth);
    }
    return least;
  }

  /** Passes differ too much to be judged by the mean of a few: rests only where that is short by more than its error. */
  #judge(): void {
    const { value: mean = 0, error } = this.#gain;
    if (mean + error < 0) this.#takeRest();
    else if (mean >= 0) this.#rests.next = REST;
  }

  #takeRest(): void {
    this.#rest = this.#rests.next;
    this.#rests.next = Math.min(LONGEST_REST, REST_GROWTH * this.#rests.next);
    this.#gain = new Average(LONG_MEMORY);
    this.#trial = 0;
    this.#failures = 0;
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
