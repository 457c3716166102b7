// Speculative decoding: a drafter proposes, one pass of the model verifies (Leviathan et al. 2023; Wang et al. 2024).
import { performance } from 'node:perf_hooks';
import type { ResolvedOptions } from '../generate/options.ts';
import { DecodeSteps, longestOf, type MadeIds, type Steps } from '../generate/steps.ts';
import type { SamplingSettings, Session, Verified } from '../session.ts';
import { VERIFY_STEPS } from '../session.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { checkDraft, type Draft, type Drafter } from './drafter.ts';
import { type DraftCosts, Pace } from './pace.ts';

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
  readonly #tokenizer: Tokenizer | undefined;
  readonly #pace: Pace;
  /** Ids that a repetition penalty counts; undefined where there is none. */
  readonly #seen: Set<number> | undefined;
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
  /** Ids of it that the session has yet to go back to; 0: none. */
  #owed = 0;
  #last: MadeIds = { ids: new Int32Array(0), logprobs: [] };
  /** The ids before it, as far as a stop sequence may begin there. */
  #tail: number[] = [];
  #draft: Draft = { ids: [], confidence: [] };
  #draftingMs = 0;
  /** Plain decoding, which goes on where it was as long as no pass comes in between. */
  #loop: DecodeSteps | undefined;
  /** What the drafter has yet to hear of. */
  #news: number[] = [];
  unsettled = false;

  /**
   * @param costs what drafting was found to cost
   * @param tokenizer what ids are; undefined: bytes
   */
  constructor(
    session: Session,
    drafter: Drafter,
    costs: DraftCosts,
    options: ResolvedOptions,
    text: TextStart,
    tokenizer: Tokenizer | undefined,
  ) {
    this.#session = session;
    this.#drafter = drafter;
    this.#options = options;
    this.#tokenizer = tokenizer;
    // Only lossless output does not depend on how long drafts are.
    this.#pace = new Pace(options.speculation.beta === undefined ? costs : undefined);
    this.#pending = text.pending;
    this.#seen = options.settings.repetitionPenalty === 1 ? undefined : new Set(Array.from(text.seen));
  }

  get stats(): DraftStats {
    const { verified, ...stats } = this.#stats;
    return { ...stats, meanLength: stats.passes > 0 ? verified / stats.passes : 0 };
  }

  async next(most: number): Promise<MadeIds> {
    const started = performance.now();
    const rests = this.#options.speculation.draftLength === undefined && this.#pace.rest > 0;
    const accepting = this.#accept();
    accepting.catch(() => undefined); // seen below, but perhaps not at once
    this.#draft = { ids: [], confidence: [] };
    try {
      if (!rests) await this.#propose(most - 1);
    } finally {
      // Going back takes its time while the drafter thinks: only what is left of it counts.
      const start = performance.now();
      await accepting;
      this.#stats.verifierMs += performance.now() - start;
    }
    // How much a pass can read may follow from the place that the session went back to.
    const draft = this.#draft.ids.slice(0, this.#session.verifiable - 1);
    this.#last = draft.length > 0 ? await this.#verify(draft, started) : await this.#decode(most);
    return this.#last;
  }

  settle(used: number): void {
    if (this.#read > 0 && used > 0 && used < this.#read) this.#owed = used;
    const ids = this.#last.ids.subarray(0, used);
    this.#pending = ids.at(-1) ?? this.#pending;
    this.#made += used;
    for (const id of ids) this.#seen?.add(id);
    this.#tail = [...this.#tail, ...ids].slice(-longestOf(this.#options.stops));
    this.#news.push(...ids);
    this.unsettled = false;
  }

  end(): Promise<void> {
    return this.#accept();
  }

  cancel(): void {
    this.#loop?.cancel();
  }

  async #accept(): Promise<void> {
    if (this.#owed === 0) return;
    this.unsettled = true;
    await this.#session.accept(this.#owed);
    this.#owed = 0;
    this.unsettled = false;
  }

  async #propose(most: number): Promise<void> {
    const { settings, speculation } = this.#options;
    const fixed = speculation.draftLength;
    const limit = Math.min(most, fixed ?? VERIFY_STEPS - 1);
    if (limit < 1) return;
    const start = performance.now();
    const least = fixed === undefined ? this.#pace.leastUpTo(limit) : new Float64Array(limit + 1);
    this.#drafter.push(this.#news.splice(0));
    const draft = await this.#drafter.propose({ most: limit, least, settings, drawn: this.#made });
    this.#draft = checkDraft(draft, limit, this.#session.vocab);
    this.#draftingMs = performance.now() - start;
    this.#stats.drafterMs += this.#draftingMs;
    if (this.#draft.ids.length === 0) this.#pace.silent();
  }

  /** @param begun when the draft was begun */
  async #verify(draft: readonly number[], begun: number): Promise<MadeIds> {
    const { settings, logprobs, speculation } = this.#options;
    const ids = [this.#pending, ...draft];
    const started = performance.now();
    this.unsettled = true;
    this.#loop = undefined;
    const verified = await this.#session.verify(ids, { settings, seen: [...(this.#seen ?? [])], drawn: this.#made });
    const judged = speculation.beta === undefined ? undefined : verified.logits();
    let right = 0;
    while (right < draft.length && this.#stands(verified, judged, right, draft)) right++;
    this.#read = ids.length;
    const made = Int32Array.from([...draft.slice(0, right), verified.drawn[right] ?? 0]);
    this.#stats.passes++;
    this.#stats.drafted += draft.length;
    this.#stats.accepted += right;
    this.#stats.verified += made.length;
    const end = performance.now();
    this.#stats.verifierMs += end - started;
    const ms = { drafting: this.#draftingMs, verifying: verified.ms, all: end - begun };
    this.#pace.learn(this.#draft.confidence.slice(0, draft.length), right, ms);
    if (!logprobs) return { ids: made, logprobs: [] };
    return {
      ids: made,
      logprobs: judged ? logprobsOf(judged, ids.length, made) : verified.logprobs().slice(0, right + 1),
    };
  }

  #stands(verified: Verified, logits: Float32Array | undefined, row: number, draft: readonly number[]): boolean {
    const id = draft[row] ?? 0;
    if (verified.drawn[row] === id) return true;
    const { settings, speculation } = this.#options;
    if (logits === undefined || speculation.beta === undefined) return false;
    const V = this.#session.vocab;
    const seen = [...(this.#seen ?? []), ...draft.slice(0, row)];
    return rank(scoresOf(logits.slice(row * V, (row + 1) * V), seen, settings), id) < speculation.beta;
  }

  #startLoop(): Promise<DecodeSteps> {
    const text = { pending: this.#pending, seen: [...(this.#seen ?? [])], made: this.#made, tail: this.#tail };
    return DecodeSteps.start(this.#session, this.#options, text, this.#tokenizer);
  }

  async #decode(most: number): Promise<MadeIds> {
    this.#read = 0;
    this.unsettled = true;
    const started = performance.now();
    this.#loop ??= await this.#startLoop();
    const ready = performance.now();
    const made = await this.#loop.next(most, this.#pace.rest || 1);
    const end = performance.now();
    this.#stats.plainMs += end - started;
    this.#stats.plain += made.ids.length;
    this.#pace.plain(made.ids.length, end - ready);
    return made;
  }
}

/** What draws begin with: the logits after penalty and bias (native/core/sample_row.h), in their place. */
function scoresOf(logits: Float32Array, seen: readonly number[], settings: SamplingSettings): Float32Array {
  const { repetitionPenalty: penalty, bias } = settings;
  if (penalty !== 1) {
    for (const id of new Set(seen)) {
      const x = logits[id] ?? 0;
      logits[id] = x > 0 ? x / penalty : x * penalty;
    }
  }
  bias?.forEach((b, id) => {
    logits[id] = (logits[id] ?? 0) + b;
  });
  return logits;
}

/** How many classes are more probable than `id`; Infinity for one that has no chance at all. */
function rank(scores: Float32Array, id: number): number {
  const own = scores[id] ?? Number.NaN;
  let above = 0;
  let max = own;
  for (const x of scores) {
    if (x > own) above++;
    if (x > max) max = x;
  }
  return Math.exp(own - max) > 0 ? above : Infinity;
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
