// What proposes the next ids of a text for a verifier to judge (Leviathan et al. 2023).
import { checkInteger, checkNumber, describe, expected } from '../errors.ts';
import type { SamplingSettings } from '../session.ts';

/** What a drafter is asked for. */
export interface DraftRequest {
  /** Most ids to propose, at least 1. */
  readonly most: number;
  /** least[n], 0 <= n <= most: propose no id after the first n if the probability that all of those are right is below this. */
  readonly least: ArrayLike<number>;
  /** How the verifier draws. A drafter that draws alike, with the same random numbers, is right more often. */
  readonly settings: SamplingSettings;
  /** The next id is the verifier's draw of this number: it uses that random number of the seed. */
  readonly drawn: number;
}

export interface Draft {
  /** May be empty: nothing comes to mind. */
  readonly ids: number[];
  /** By id, the probability that it is right where all before it are, as the drafter sees it. */
  readonly confidence: number[];
}

/**
 * Proposes what a text goes on with. Ids are the verifier's: bytes, or the tokens of a subword model. A wrong proposal
 * costs time and never changes the output of a lossless run.
 */
export interface Drafter {
  /** Begins a text; it may be empty. */
  reset(ids: ArrayLike<number>, signal?: AbortSignal): Promise<void> | void;
  /** The text goes on with these: what the verifier made of the last draft, and what it made since. */
  push(ids: ArrayLike<number>): void;
  propose(request: DraftRequest): Promise<Draft> | Draft;
  /** Frees what it holds. It is not used again. Who made a drafter calls this; a generation does not. */
  dispose(): void;
}

/**
 * Anyone may write a drafter, so what it says is checked.
 * @throws TypeError or RangeError for what is no draft of at most `most` ids below `vocab`
 */
export function checkDraft(draft: Draft, most: number, vocab: number): Draft {
  const where = 'drafter.propose';
  const { ids, confidence }: Partial<Draft> = draft ?? {};
  if (!Array.isArray(ids) || !Array.isArray(confidence)) {
    throw new TypeError(expected(where, 'the draft', 'hold the arrays ids and confidence', describe(draft)));
  }
  checkInteger(where, 'the number of ids', ids.length, { max: most });
  checkInteger(where, 'the number of confidences', confidence.length, { min: ids.length, max: ids.length });
  for (const id of ids) checkInteger(where, 'an id', id, { min: 0, max: vocab - 1 });
  for (const sure of confidence) checkNumber(where, 'a confidence', sure, { min: 0, max: 1 });
  return draft;
}
