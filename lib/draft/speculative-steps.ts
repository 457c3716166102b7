// Speculative decoding: a drafter proposes, one pass of the model verifies (Leviathan et al. 2023; Wang et al. 2024).
import { performance } from 'node:perf_hooks';
import type { ResolvedOptions } from '../generate/options.ts';
import { DecodeSteps, longestOf, type MadeIds, type Steps } from '../generate/steps.ts';
import type { Session, Verified } from '../session.ts';
import { VERIFY_STEPS } from '../session.ts';
import type { Draft, Drafter } from './drafter.ts';
import { Pace } from './pace.ts';

/** How a speculative run went. */
export interface DraftStats {
  /** Ids that were proposed. */
  drafted: number;
  /** Of these, ids that were right. */
  accepted: number;
  /** Verify passes, each of which makes one id more than it accepts. */
  passes: number;
  /** Ids made per verify pass, the verifier's own one counted. */
  meanLength: number;
  /** Ids made by plain decoding, where there was no draft. */
  plain: number;
  drafterMs: number;
  verifierMs: number;
  plainMs: number;
}

/** What is known at the start: the last id, which is not read yet, and the ids that a repetition penalty counts. */
interface TextStart {
  pending: number;
  seen: ArrayLike<number>;
}

/**
 * Verifies drafts with one session. Lossless: every id is the one that plain decoding draws there, with the same random
 * number, so a draft only decides how many are made at once. Top-beta: a drafted id also stands when it is among the beta
 * most probable ones.
 */
export class SpeculativeSteps implements Steps {
  readonly #session: Session;
  readonly #drafter: Drafter;
  readonly #options: ResolvedOptions;
  readonly #bytewise: boolean;
  readonly #pace: Pace;
  readonly #seen: Set<number>;
  readonly #stats = {
    drafted: 0,
    accepted: 0,
    passes: 0,
    plain: 0,
    verified: 0,
    drafterMs: 0,
    verifierMs: 0,
    plainMs: 0,
  };
  #pending: number;
  #made = 0;
  /** Ids of the current verify pass, or 0: what was made came from plain decoding. */
  #read = 0;
  #last: MadeIds = { ids: new Int32Array(0), logprobs: [] };
  /** The ids before it, as far as a stop sequence may begin there. */
  #tail: number[] = [];
  #draft: Draft = { ids: [], confidence: [] };
  #draftingMs = 0;
  #loop: DecodeSteps | undefined;

  /** @param bytewise whether ids are bytes */
  constructor(session: Session, drafter: Drafter, options: ResolvedOptions, text: TextStart, bytewise: boolean) {
    this.#session = session;
    this.#drafter = drafter;
    this.#options = options;
    this.#bytewise = bytewise;
    // Only lossless output does not depend on how long drafts are.
    this.#pace = new Pace(options.speculation.beta === undefined);
    this.#pending = text.pending;
    this.#seen = new Set(Array.from(text.seen));
  }

  get stats(): DraftStats {
    const { verified, ...stats } = this.#stats;
    return { ...stats, meanLength: stats.passes > 0 ? verified / stats.passes : 0 };
  }

  async next(most: number): Promise<MadeIds> {
    const rests = this.#options.speculation.draftLength === undefined && this.#pace.rest > 0;
    const draft = rests ? [] : await this.#propose(most - 1);
    this.#last = draft.length > 0 ? await this.#verify(draft) : await this.#decode(most);
    return this.#last;
  }

  async settle(used: number): Promise<void> {
    if (this.#read > 0 && used > 0 && used < this.#read) {
      const start = performance.now();
      await this.#session.accept(used);
      this.#stats.verifierMs += performance.now() - start;
    }
    const ids = this.#last.ids.subarray(0, used);
    this.#pending = ids.at(-1) ?? this.#pending;
    this.#made += used;
    for (const id of ids) this.#seen.add(id);
    this.#tail = [...this.#tail, ...ids].slice(-longestOf(this.#options.stops));
    this.#drafter.push(ids);
  }

  cancel(): void {
    this.#loop?.cancel();
  }

  async #propose(most: number): Promise<number[]> {
    const { settings, speculation } = this.#options;
    const fixed = speculation.draftLength;
    const limit = Math.min(most, VERIFY_STEPS - 1, fixed ?? VERIFY_STEPS - 1);
    if (limit < 1) return [];
    const start = performance.now();
    const least = fixed === undefined ? this.#pace.least : 0;
    this.#draft = await this.#drafter.propose({ most: limit, least, settings, drawn: this.#made });
    this.#draftingMs = performance.now() - start;
    this.#stats.drafterMs += this.#draftingMs;
    if (this.#draft.ids.length === 0) this.#pace.silent();
    return this.#draft.ids;
  }

  async #verify(draft: readonly number[]): Promise<MadeIds> {
    const { settings, logprobs, speculation } = this.#options;
    const ids = [this.#pending, ...draft];
    const started = performance.now();
    const verified = await this.#session.verify(ids, { settings, seen: [...this.#seen], drawn: this.#made });
    const judged = speculation.beta === undefined ? undefined : verified.logits();
    let right = 0;
    while (right < draft.length && this.#stands(verified, judged, right, draft[right] ?? 0)) right++;
    this.#read = ids.length;
    const made = Int32Array.from([...draft.slice(0, right), verified.drawn[right] ?? 0]);
    this.#stats.passes++;
    this.#stats.drafted += draft.length;
    this.#stats.accepted += right;
    this.#stats.verified += made.length;
    const verifying = performance.now() - started;
    this.#stats.verifierMs += verifying;
    this.#pace.learn(this.#draft.confidence, right, { drafting: this.#draftingMs, verifying });
    if (!logprobs) return { ids: made, logprobs: [] };
    return {
      ids: made,
      logprobs: judged ? logprobsOf(judged, ids.length, made) : verified.logprobs().slice(0, right + 1),
    };
  }

  #stands(verified: Verified, logits: Float32Array | undefined, row: number, id: number): boolean {
    if (verified.drawn[row] === id) return true;
    const { beta } = this.#options.speculation;
    return logits !== undefined && beta !== undefined && rank(logits, verified.drawn.length, row, id) < beta;
  }

  async #decode(most: number): Promise<MadeIds> {
    this.#read = 0;
    const text = { pending: this.#pending, seen: [...this.#seen], made: this.#made, tail: this.#tail };
    const started = performance.now();
    this.#loop = await DecodeSteps.start(this.#session, this.#options, text, this.#bytewise);
    const made = await this.#loop.next(Math.min(most, this.#pace.rest || 1));
    const ms = performance.now() - started;
    this.#stats.plainMs += ms;
    this.#stats.plain += made.ids.length;
    this.#pace.plain(made.ids.length, ms);
    return made;
  }
}

/** How many classes are more probable than `id` after row `row` of (rows, V). */
function rank(logits: Float32Array, rows: number, row: number, id: number): number {
  const V = logits.length / rows;
  const own = logits[row * V + id] ?? 0;
  let above = 0;
  for (let v = row * V; v < (row + 1) * V; v++) if ((logits[v] ?? 0) > own) above++;
  return above;
}

/** log softmax of each row of (rows, V) at the id that follows it, in nats. */
function logprobsOf(logits: Float32Array, rows: number, ids: Int32Array): number[] {
  const V = logits.length / rows;
  return Array.from(ids, (id, row) => {
    const own = logits.subarray(row * V, (row + 1) * V);
    const max = own.reduce((a, b) => Math.max(a, b), -Infinity);
    return (own[id] ?? 0) - max - Math.log(own.reduce((sum, x) => sum + Math.exp(x - max), 0));
  });
}
