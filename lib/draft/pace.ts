/** The least chance that a draft is right so far at which one id more is worth drafting and verifying. */
const WORTH = 0.3;
/** How fast the exponent follows, in its logarithm, and its limits. */
const RATE = 0.02;
const LEAST_POWER = 0.05;
const MOST_POWER = 8;
/** Drafts in a row without a right id after which drafting rests; ids of plain decoding then, at first and at most. */
const FAILURES = 3;
const REST = 8;
const LONGEST_REST = 128;

/**
 * How long drafts should be, from how the recent ones fared. An id of which a drafter is sure with probability p is right
 * with about p^a; the exponent a is fitted as drafts are judged (by gradient steps on the logarithmic loss), and a draft
 * goes on as long as the chance that all of it is right is worth the time of one id more. Depends on ids alone, never on
 * time, so that runs repeat.
 */
export class Pace {
  #power = 1;
  #failures = 0;
  #rest = REST;

  /** The least product of a drafter's probabilities at which its draft goes on. */
  get least(): number {
    return WORTH ** (1 / this.#power);
  }

  /** Ids to decode plainly before the next draft. */
  get rest(): number {
    return this.#failures < FAILURES ? 0 : this.#rest;
  }

  /** What became of a draft: how sure the drafter was of each id, and how many ids were right. */
  learn(confidence: readonly number[], right: number): void {
    for (let i = 0; i < Math.min(right + 1, confidence.length); i++) this.#fit(confidence[i] ?? 1, i < right);
    if (this.#failures >= FAILURES) this.#rest = Math.min(LONGEST_REST, 2 * this.#rest);
    this.#failures = right > 0 ? 0 : this.#failures + 1;
    if (right > 0) this.#rest = REST;
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
