// Where the next ids of a generation come from.
import type { DecodeLoop, Session } from '../session.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { ResolvedOptions } from './options.ts';

/** Ids that were made together, in order. */
export interface MadeIds {
  ids: Int32Array;
  /** Of each id, where they were asked for. */
  logprobs: Float32Array | readonly number[];
}

/** Makes ids one run after another. Every run is followed by one `settle`. */
export interface Steps {
  /** Whether the session has read ids that are not settled: after a failure, nobody knows how many. */
  readonly unsettled: boolean;
  /** Makes at least one id, unless it is cancelled, for at most `most` bytes; the last token may have more. */
  next(most: number): Promise<MadeIds>;
  /** Only the first `used` of the ids just made are wanted. */
  settle(used: number): void;
  /** After the last `settle`: the session's state becomes the one before the last id that is wanted. */
  end(): Promise<void>;
  /** Ends the current run early. */
  cancel(): void;
}

/** The longest that native code runs before it hands over what it has: how often a reader hears of progress. */
export const CHUNK_MS = 16;
export const CHUNK_STEPS = 4096;

/** Plain decoding: the native decode loop, a while at a time. */
export class DecodeSteps implements Steps {
  readonly #loop: DecodeLoop;
  readonly #options: ResolvedOptions;
  /** Stop sequences are found by native code, which leaves the state right after one. */
  readonly #stops: Int32Array[];
  readonly #tail: number[] = [];
  readonly #single: boolean;
  /** Most bytes that an id may have for a run to end where its state is wanted. */
  readonly #longest: number;
  unsettled = false;

  private constructor(loop: DecodeLoop, options: ResolvedOptions, tokenizer: Tokenizer | undefined) {
    this.#loop = loop;
    this.#options = options;
    this.#stops = tokenizer ? [] : options.stops.map((stop) => Int32Array.from(stop));
    this.#longest = (options.state && tokenizer?.longest) ?? 1;
    // Tokens may end behind a stop sequence, and log-probabilities are those of the last step.
    this.#single = options.logprobs || (tokenizer !== undefined && options.stops.length > 0);
  }

  /** @param text.made ids that were drawn with this seed before; `tail`: the last of them, as far as a stop may begin there */
  static async start(
    session: Session,
    options: ResolvedOptions,
    text: { pending: number; seen: ArrayLike<number>; made: number; tail: readonly number[] },
    tokenizer: Tokenizer | undefined,
  ): Promise<DecodeSteps> {
    const { pending, seen, made } = text;
    const loop = await session.startDecoding([{ settings: options.settings, pending, seen, drawn: made }]);
    const steps = new DecodeSteps(loop, options, tokenizer);
    steps.#remember(text.tail);
    return steps;
  }

  /** @param mostIds ids to make at most */
  async next(most: number, mostIds = CHUNK_STEPS): Promise<MadeIds> {
    this.unsettled = true;
    // A state cannot go back, so a run whose state is kept makes no token after the one with the last byte.
    const steps = this.#single ? 1 : Math.max(1, Math.floor(most / this.#longest));
    const { watched } = await this.#loop.run({
      steps: Math.min(steps, mostIds, CHUNK_STEPS),
      maxMs: CHUNK_MS,
      stops: this.#stops,
      history: Int32Array.from(this.#tail),
    });
    this.#remember(watched.subarray(-longestOf(this.#stops)));
    return { ids: watched, logprobs: this.#options.logprobs && watched.length > 0 ? this.#loop.logprobs() : [] };
  }

  /** The loop ends with the last id that is wanted. */
  settle(): void {
    this.unsettled = false;
  }
  async end(): Promise<void> {}

  cancel(): void {
    this.#loop.cancel();
  }

  #remember(ids: Iterable<number>): void {
    this.#tail.push(...ids);
    this.#tail.splice(0, Math.max(0, this.#tail.length - (longestOf(this.#stops) - 1)));
  }
}

/** Length of the longest stop sequence, at least 1. */
export function longestOf(stops: readonly ArrayLike<number>[]): number {
  return stops.reduce((max, stop) => Math.max(max, stop.length), 1);
}
