import type { Device } from './device.ts';
import { checkInteger, expected, OutOfMemoryError } from './errors.ts';
import type { Memory, Trail } from './memory/memory.ts';
import type { Weights } from './models/architecture.ts';
import { architectureOf, type ModelConfig } from './models/architectures.ts';
import type { RunResult } from './native.ts';
import { SAMPLE_COLUMNS, SAMPLE_PARAMS } from './ops/sample.ts';
import { type ChunkOutput, cachesOf, type DrawTensors, SessionPlans } from './session-plans.ts';
import type { Tensor } from './tensor.ts';

/** Most bytes that one verify pass reads. */
export const VERIFY_STEPS = 32;

export interface SamplingSettings {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  seed: number;
  /** (vocab), added to the logits. */
  bias?: Float32Array | undefined;
}

/** One sequence at the start of decoding. */
export interface SequenceStart {
  settings: SamplingSettings;
  /** The last id of the sequence: known, but not yet read. */
  pending: number;
  /** Ids that the repetition penalty counts as seen; default: none. */
  seen?: ArrayLike<number> | undefined;
  /** Ids drawn with this seed before; default 0. */
  drawn?: number;
}

/** How the ids after a verify pass would be drawn. */
export type DrawStart = Omit<SequenceStart, 'pending'>;

/** What one verify pass of K ids found. */
export interface Verified {
  /** (K): what plain decoding draws after each id, given that all ids up to it were accepted. */
  drawn: Int32Array;
  /** What the pass took, without the time to compile its plan. */
  ms: number;
  /** (K): log-probabilities of the drawn ids. Of the last pass of its length. */
  logprobs(): Float32Array;
  /** (K, vocab): row k predicts what follows ids[k]. Of the last pass of its length. */
  logits(): Float32Array;
}

const GREEDY: DrawStart = {
  settings: { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 },
};

/** Native memory and plans for B sequences that advance together: their state, and the plans that read and update it. */
export class Session {
  readonly batch: number;
  /** Called where memory is short: true if some was given back, so that it pays to try again. */
  onShort: (() => boolean) | undefined;
  readonly #device: Device;
  readonly #config: ModelConfig;
  readonly #memory: Memory;
  readonly #plans: SessionPlans;
  /** Steps of the last verify pass, until something else moves the state. */
  #verified = 0;
  /** What the parameters of verify passes hold, by the tensor. Nobody changes settings in their place. */
  readonly #settings = new WeakMap<Tensor, SamplingSettings>();

  constructor(device: Device, config: ModelConfig, weights: Weights, batch: number) {
    this.#device = device;
    this.#config = config;
    this.batch = batch;
    const dtype = cachesOf(device, config, weights);
    this.#memory = architectureOf(config).memory(device, config, { batch, mostVerified: VERIFY_STEPS, dtype });
    this.#plans = new SessionPlans(device, config, weights, batch, this.#memory.period);
  }

  /** Number of classes of an id. */
  get vocab(): number {
    return this.#config.vocab;
  }
  /** Floats in the state of a text not yet begun. */
  get stateFloats(): number {
    return this.#memory.emptyFloats;
  }
  /** The state of a single sequence, as `State.data`. */
  readState(): Float32Array {
    return this.#memory.read(0);
  }
  /** Takes over the state of a single sequence. */
  writeState(data: Float32Array): Promise<void> {
    return this.writeSequence(0, data);
  }
  /** Forgets everything: the state of texts not yet begun. */
  async clear(): Promise<void> {
    this.#verified = 0;
    await this.#memory.clear();
  }
  /** Takes over the state of a single sequence as sequence `b` of this batch. */
  async writeSequence(b: number, data: Float32Array): Promise<void> {
    await this.makeWay(b, this.#memory.stepsIn(data));
    this.#memory.write(b, data);
  }
  /** Takes over the state of the only sequence of another session of the model as sequence `b` of this batch. */
  async takeSequence(b: number, from: Session): Promise<void> {
    if (!this.#memory.take) return this.writeSequence(b, from.readState());
    await this.makeWay(b, from.#memory.longest);
    await this.#memory.take(b, from.#memory);
  }
  /** The states of all sequences, each as `writeSequence` takes it. */
  readSequences(): Float32Array[] {
    return this.#memory.readAll();
  }
  /** Nobody reads sequence `b` any more, until `writeSequence` gives it another state. */
  leave(b: number): void {
    this.#memory.leave(b);
  }

  /** Reads one sequence of ids in chunks; `signal` ends it between two of them. */
  async consume(ids: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    await this.read('state', [ids], ids.length, signal);
  }

  /** Reads up to `batch` sequences of any lengths, each from the state of its own. Of architectures that pad. */
  async consumeAll(rows: readonly ArrayLike<number>[], signal?: AbortSignal): Promise<void> {
    const longest = Math.max(0, ...rows.map((ids) => ids.length));
    await this.read('state', rows, longest, signal, { ends: true });
  }

  /** Reads one sequence of ids and returns the logits after each: (T, vocab). */
  async logits(ids: ArrayLike<number>, signal?: AbortSignal): Promise<Float32Array> {
    const V = this.#config.vocab;
    const out = new Float32Array(ids.length * V);
    const use = (at: number, logits: Float32Array) => {
      out.set(logits.subarray(0, (ids.length - at) * V), at * V);
    };
    await this.read('logits', [ids], ids.length, signal, { use });
    return out;
  }

  /** Reads all ids of one sequence but the last and returns -log p(ids[t + 1] | ids[..t]) in nats for each. */
  async nll(ids: ArrayLike<number>, signal?: AbortSignal): Promise<Float32Array> {
    const [out = new Float32Array(0)] = await this.nllOfAll([ids], 0, signal);
    return out;
  }

  /**
   * The same for up to `batch` sequences of any lengths that all start from the state of theirs. Afterwards only the
   * states of the longest are of use: shorter ones are read as if zeros followed.
   * @param skip leave out the first `skip` predictions of each, which costs less than making them
   */
  async nllOfAll(rows: readonly ArrayLike<number>[], skip = 0, signal?: AbortSignal): Promise<Float32Array[]> {
    const steps = Math.max(0, ...rows.map((ids) => ids.length - 1));
    const out = rows.map((ids) => new Float32Array(Math.max(0, ids.length - 1 - skip)));
    await this.read('state', rows, Math.min(skip, steps), signal);
    const rest = rows.map((ids) => Array.prototype.slice.call(ids, skip) as number[]);
    const use = (at: number, nll: Float32Array) => {
      const size = nll.length / this.batch;
      out.forEach((own, b) => {
        if (at < own.length) own.set(nll.subarray(b * size, b * size + Math.min(size, own.length - at)), at);
      });
    };
    await this.read('nll', rest, Math.max(0, steps - skip), signal, { use });
    return out;
  }

  /** Most ids that a verify pass can read from the current state. */
  get verifiable(): number {
    return Math.min(VERIFY_STEPS, this.stretch);
  }

  /**
   * Reads K <= `verifiable` ids in one pass from the current state, and draws what would follow each of them. The state moves on
   * by all of them, and the states in between are kept for `accept`.
   * @param start how the id after ids[0] is drawn; the one after ids[k] is drawn as the k-th after that
   * @throws RangeError for no ids or too many; TypeError for a session of several sequences
   */
  async verify(ids: ArrayLike<number>, start: DrawStart = GREEDY): Promise<Verified> {
    const where = 'session.verify';
    if (this.batch !== 1) throw new TypeError(expected(where, 'the session', 'be of one sequence', `${this.batch}`));
    const steps = checkInteger(where, 'the number of ids', ids.length, { min: 1, max: this.verifiable });
    const { settings, seen = [], drawn = 0 } = start;
    const penalty = settings.repetitionPenalty !== 1;
    await this.reserve(steps);
    await this.prepare();
    const from = this.#memory.verifying(steps);
    const made = await this.#plans.verify(steps, penalty, settings.bias !== undefined, from);
    const { plan, draw, logits } = made;
    const started = performance.now();
    this.#device.write(made.ids, Int32Array.from(ids));
    const rows = Array.from({ length: steps }, (_, k) => ({
      settings,
      seen: penalty ? [...Array.from(seen), ...Array.from(ids).slice(1, k + 1)] : [],
      drawn: drawn + k,
    }));
    // Settings are those of a whole text, so most passes find them there.
    if (this.#settings.get(draw.params) !== settings) {
      this.writeSettings(draw, 0, rows);
      this.#settings.set(draw.params, settings);
    }
    this.writeDraws(draw, 0, rows);
    this.#verified = 0;
    const next = new Int32Array(steps);
    await plan.runBrief({ watch: draw.ids, out: next });
    this.#memory.advanced(steps);
    this.#verified = steps;
    return {
      drawn: next,
      ms: performance.now() - started,
      logprobs: () => this.#device.read(draw.logprob) as Float32Array,
      logits: () => plan.read(logits) as Float32Array,
    };
  }

  /**
   * Goes back to the state after the first `steps` ids of the last verify pass: one copy on the device. May be called
   * again with another count, until something else moves the state.
   * @throws RangeError unless 1 <= steps <= ids of that pass; Error when there was none
   */
  async accept(steps: number): Promise<void> {
    const where = 'session.accept';
    if (this.#verified === 0) throw new Error(expected(where, 'a verify pass', 'come before', 'none'));
    checkInteger(where, 'steps', steps, { min: 1, max: this.#verified });
    await this.#memory.accept(steps);
  }

  /** Up to `slots` states of this session's only sequence, from the one that it has when the trail begins. */
  trail(slots: number): Trail {
    return architectureOf(this.#config).trail(this.#device, this.#config, slots, this.#memory);
  }
  /** Reads one id from a position of a trail; the logits after it go to `logits` (vocab). */
  async step(id: number, trail: Trail, position: number, logits: Float32Array): Promise<void> {
    this.#verified = 0;
    await this.reserve(1);
    const step = await this.#plans.step(trail.at(position));
    this.#device.write(step.ids, Int32Array.of(id));
    await this.prepare();
    await step.plan.runBrief({ watch: step.logits, out: logits });
    this.#memory.advanced(1);
  }

  /** Prepares the decode loop: sampling settings and the last, not yet read id of every sequence. */
  async startDecoding(rows: readonly SequenceStart[]): Promise<DecodeLoop> {
    const penalty = rows.some((row) => row.settings.repetitionPenalty !== 1);
    const bias = rows.some((row) => row.settings.bias);
    await this.reserve(1);
    const next = () => this.#plans.decode(penalty, bias, this.#memory.reading(1));
    let decode = await next();
    const { plan: _, ...draw } = decode;
    this.writeRows(draw, 0, rows);
    this.writePending(draw, 0, rows);
    return {
      run: async (options) => {
        this.#verified = 0;
        await this.reserve(1);
        decode = await next();
        await this.prepare();
        const steps = Math.min(options.steps, this.#memory.room, this.stretch);
        const result = await decode.plan.runStepsBrief({ ...options, steps, watch: draw.ids });
        this.#memory.advanced(result.steps);
        return result;
      },
      cancel: () => decode.plan.cancel(),
      logprobs: () => this.#device.read(draw.logprob) as Float32Array,
      setRow: (b, row) => {
        this.writeRows(draw, b, [row]);
        this.writePending(draw, b, [row]);
      },
    };
  }

  /** Makes room for a state of `steps` ids as sequence `b`, whose own is lost. */
  private async makeWay(b: number, steps: number): Promise<void> {
    this.#verified = 0;
    if (steps === 0) return;
    this.#memory.leave(b);
    await this.reserve(Math.max(0, steps - this.#memory.longest));
  }

  /** Makes room for `steps` more ids of every sequence. */
  private async reserve(steps: number): Promise<void> {
    try {
      await this.makeRoom(steps);
    } catch (error) {
      if (!(error instanceof OutOfMemoryError) || !this.onShort?.()) throw error;
      await this.makeRoom(steps);
    }
  }
  private async makeRoom(steps: number): Promise<void> {
    if (await this.#memory.reserve(steps)) await this.#plans.forget();
  }

  /** Ids that can be read, once prepared, before the memory must be prepared again. */
  private get stretch(): number {
    return this.#memory.stretch ?? Infinity;
  }
  private async prepare(): Promise<void> {
    await this.#memory.prepare?.(this.#plans.run);
  }

  /** Sets the ids that the sequences from `b` on go on from. */
  private writePending(plan: DrawTensors, b: number, rows: readonly SequenceStart[]): void {
    const pending = Int32Array.from(rows, (row) => row.pending);
    this.#device.write(plan.ids.slice(b, rows.length), pending);
  }

  /** Sets what the sequences from `b` on draw with. */
  private writeRows(plan: DrawTensors, b: number, rows: readonly DrawStart[]): void {
    this.writeSettings(plan, b, rows);
    this.writeDraws(plan, b, rows);
  }

  /** What of it is the same for all of a text. */
  private writeSettings(plan: DrawTensors, b: number, rows: readonly DrawStart[]): void {
    const V = this.#config.vocab;
    const n = rows.length;
    const params = new Float32Array(n * SAMPLE_COLUMNS);
    const bias = new Float32Array(plan.bias ? n * V : 0);
    for (const [i, { settings }] of rows.entries()) {
      for (const [column, name] of SAMPLE_PARAMS.entries()) params[i * SAMPLE_COLUMNS + column] = settings[name];
      if (plan.bias && settings.bias) bias.set(settings.bias, i * V);
    }
    this.#device.write(plan.params.slice(b, n), params);
    if (plan.bias) this.#device.write(plan.bias.slice(b, n), bias);
  }

  /** Which random numbers come next, and which ids a repetition penalty counts. */
  private writeDraws(plan: DrawTensors, b: number, rows: readonly DrawStart[]): void {
    const V = this.#config.vocab;
    const n = rows.length;
    const rng = new Int32Array(n * 4);
    const seen = new Uint8Array(plan.seen ? n * V : 0);
    for (const [i, { settings, drawn = 0, seen: ids = [] }] of rows.entries()) {
      const halves = [settings.seed, drawn].flatMap((x) => [x | 0, Math.floor(x / 2 ** 32) | 0]);
      rng.set(halves, i * 4);
      if (plan.seen) for (const id of Array.from(ids)) seen[i * V + id] = 1;
    }
    this.#device.write(plan.rng.slice(b, n), rng);
    if (plan.seen) this.#device.write(plan.seen.slice(b, n), seen);
  }

  dispose(): void {
    this.#plans.dispose();
    this.#memory.dispose();
  }

  /**
   * Reads the first `steps` ids of every sequence, in chunks.
   * @param how.use gets what each chunk gives back
   * @param how.ends sequences that are shorter end; left out: they are read as if zeros followed
   */
  private async read(
    output: ChunkOutput,
    rows: readonly ArrayLike<number>[],
    steps: number,
    signal: AbortSignal | undefined,
    { use, ends = false }: { use?: (at: number, result: Float32Array) => void; ends?: boolean } = {},
  ): Promise<void> {
    if (steps > 0) await this.reserve(steps);
    const skipped = output === 'state' ? (this.#memory.skippable?.(steps) ?? 0) : 0;
    const { singles } = this.#memory;
    try {
      for (let at = 0; at < steps; ) {
        signal?.throwIfAborted();
        const skips = at < skipped;
        const spans = skips ? 0 : (this.#memory.spannable?.(steps - at, this.#plans.rows) ?? 0);
        const most = skips ? skipped - at : Math.min(steps - at, this.stretch);
        const whole = spans || (at < singles ? 1 : 0);
        const { size, ids } = whole ? { size: whole, ids: whole } : this.#plans.next(steps - at, most);
        const left = (b: number) => (ends ? Math.max(0, (rows[b]?.length ?? 0) - at) : ids);
        const lengths = Int32Array.from({ length: this.batch }, (_, b) => Math.min(ids, left(b)));
        const result = await this.runChunk(skips ? 'skip' : output, { size, ids, at, lengths }, rows, spans > 0);
        use?.(at, result);
        at += ids;
      }
    } catch (error) {
      // Between the first and the last id the state is that of no text.
      if (skipped > 0) await this.#memory.clear();
      throw error;
    }
  }

  private async runChunk(
    output: ChunkOutput,
    { size, ids, at, lengths }: { size: number; ids: number; at: number; lengths: Int32Array },
    rows: readonly ArrayLike<number>[],
    spans: boolean,
  ): Promise<Float32Array> {
    const passage = output === 'skip' ? this.#memory.skipping : spans ? this.#memory.spanning : undefined;
    const padded = lengths.some((length) => length < size);
    const chunk = await this.#plans.chunk(output, size, passage ?? this.#memory.reading(size), padded);
    this.#verified = 0;
    const from = (start: number) =>
      Int32Array.from({ length: this.batch * size }, (_, i) => rows[Math.floor(i / size)]?.[start + (i % size)] ?? 0);
    this.#device.write(chunk.ids, from(at));
    if (chunk.targets) this.#device.write(chunk.targets, from(at + 1));
    if (chunk.lengths) this.#device.write(chunk.lengths, lengths);
    if (!passage) await this.prepare();
    await chunk.plan.run();
    if (output === 'skip') this.#memory.skipped?.(size);
    else if (spans) this.#memory.spanned?.(size);
    else this.#memory.advanced(ids);
    return chunk.output ? (chunk.plan.read(chunk.output) as Float32Array) : new Float32Array(0);
  }
}

/** A decode loop over one session. */
export interface DecodeLoop {
  /** Makes up to `steps` ids of every sequence; fewer where memory must grow first, or another plan must read on. */
  run(options: { steps: number; maxMs?: number; stops?: Int32Array[]; history?: Int32Array }): Promise<RunResult>;
  /** Ends the current run within one step. */
  cancel(): void;
  /** (B): log-probabilities of the last drawn ids. */
  logprobs(): Float32Array;
  /** Lets another sequence take the place of sequence `b`; its state is written with `writeSequence`. */
  setRow(b: number, row: SequenceStart): void;
}
