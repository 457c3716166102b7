// What proposes the next ids of a text for a verifier to judge (Leviathan et al. 2023).
import type { SamplingSettings } from '../session.ts';

/** What a drafter is asked for. */
export interface DraftRequest {
  /** Most ids to propose, at least 1. */
  readonly most: number;
  /** Propose no id once the probability that all before it are right has fallen below this. */
  readonly least: number;
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
  /** What the verifier made of the last draft, or put in its place: the text goes on with these. */
  push(ids: ArrayLike<number>): void;
  propose(request: DraftRequest): Promise<Draft> | Draft;
  /** Frees what it holds. It is not used again. */
  dispose(): void;
}
