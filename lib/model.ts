import { Device, type DeviceOptions, deviceLabel, whyUnavailable } from './device.ts';
import type { Drafter } from './draft/drafter.ts';
import { ModelDrafter } from './draft/model-drafter.ts';
import { SubwordDrafter } from './draft/subword-drafter.ts';
import {
  checkChoice,
  checkFunction,
  checkInteger,
  checkOptions,
  checkSignal,
  DeviceUnavailableError,
  DisposedError,
  describe,
  expected,
} from './errors.ts';
import { generateBatch } from './generate/batch.ts';
import { type GenerateResult, Generation } from './generate/generation.ts';
import { type GenerateOptions, resolveOptions } from './generate/options.ts';
import type { Architecture, Weights } from './models/architecture.ts';
import { architectureOf, type ModelConfig, type PartialModelConfig } from './models/architectures.ts';
import { initialValues, parameterCount } from './models/params.ts';
import { Session } from './session.ts';
import { resolveModel } from './shipped.ts';
import { State } from './state.ts';
import { StateRing } from './state-ring.ts';
import type { Tensor } from './tensor.ts';
import { toBytes } from './to-bytes.ts';
import { Tokenizer } from './tokenizer/tokenizer.ts';
import { openCheckpoint, saveCheckpoint } from './weights/checkpoint-files.ts';
import { warnOfNonFinite } from './weights/finite.ts';
import { loadWeights, type WeightDType } from './weights/load.ts';
import type { TensorSource } from './weights/safetensors.ts';

export interface LoadModelOptions {
  /**
   * 'auto' (default: a GPU if one can be used, else the CPU; `model.deviceNote` says why), 'cuda', 'cuda:1' for the second
   * GPU, 'cpu', or 'ref' (the slow reference). Left out: what MAMBABYTE_DEVICE says.
   */
  device?: string;
  /** Storage of the large matrices; left out: as in the file. */
  dtype?: WeightDType;
  /** Threads; default: one per core. */
  threads?: number;
  /** Load f32 weights that a trainer can update. */
  trainable?: boolean;
  signal?: AbortSignal;
  /** Called with the fraction loaded, 0 to 1. */
  onProgress?: (fraction: number) => void;
}

export interface CreateModelOptions {
  /** Seed of the initial weights; default 0. */
  seed?: number;
  /** As of loadModel. */
  device?: string;
  threads?: number;
  /** Makes a subword model: `vocab` defaults to its ids, the norm to RMSNorm, and the head is tied to the embedding. */
  tokenizer?: Tokenizer;
}

/** A unit is a byte, or a token of a subword model. */
export interface Score {
  /** Total -log p in nats of all units but the first, which nothing predicts. */
  nats: number;
  /** Bytes predicted: of a subword model, those of all tokens but the first. NaN where no tokenizer says how many. */
  bytes: number;
  bitsPerByte: number;
  /** -log p in nats of each predicted unit. */
  nll: Float32Array;
}

const LOAD_KEYS = ['device', 'dtype', 'threads', 'trainable', 'signal', 'onProgress'];

/**
 * Loads a model: the name of one that ships with the package, a folder, a .safetensors file, or a PyTorch .bin/.pt.
 * @throws ModelFormatError, DeviceUnavailableError, OutOfMemoryError; TypeError for wrong options
 */
export async function loadModel(path: string, options: LoadModelOptions = {}): Promise<Model> {
  const where = 'loadModel';
  checkOptions(where, options, LOAD_KEYS);
  if (typeof path !== 'string' || path === '') {
    throw new TypeError(expected(where, 'path', 'be the name of a shipped model or a path', describe(path)));
  }
  checkSignal(where, options.signal);
  if (options.onProgress !== undefined) checkFunction(where, 'onProgress', options.onProgress);
  if (options.dtype !== undefined) checkChoice(where, 'dtype', options.dtype, ['f32', 'bf16', 'int8'] as const);
  options.signal?.throwIfAborted();
  const { device, note } = openDevice(where, options.device, options.threads);
  try {
    const file = await openCheckpoint(resolveModel(path));
    const architecture = architectureOf(file.config);
    const weights = await loadWeights(device, file.tensors, { ...options, architecture });
    const warnings = [...file.warnings, ...(await warnOfNonFinite(device, weights))];
    return new Model(device, note, file.config, weights, options.trainable ?? false, warnings, file.tokenizer);
  } catch (error) {
    device.dispose();
    throw error;
  }
}

/** The whole shape of a new model; what is left out follows from its width and from the tokenizer, if it has one. */
export function configFor(config: PartialModelConfig, tokenizer: Tokenizer | undefined): ModelConfig {
  const architecture = architectureOf(config);
  if (!tokenizer) return architecture.complete(config);
  const full = architecture.complete({ vocab: tokenizer.vocab, ...architecture.subword, ...config });
  checkInteger('config', 'vocab', full.vocab, { min: tokenizer.vocab });
  return full;
}

/** A new model with its architecture's usual initialisation, trainable. @throws TypeError or RangeError naming a wrong field */
export async function createModel(config: PartialModelConfig, options: CreateModelOptions = {}): Promise<Model> {
  const where = 'createModel';
  checkOptions(where, options, ['seed', 'device', 'threads', 'tokenizer']);
  const { tokenizer } = options;
  if (tokenizer !== undefined && !(tokenizer instanceof Tokenizer)) {
    throw new TypeError(expected(where, 'tokenizer', 'be a Tokenizer', describe(tokenizer), 'Use Tokenizer.open().'));
  }
  const full = configFor(config, tokenizer);
  const seed = checkInteger(where, 'seed', options.seed ?? 0, { min: 0 });
  const { device, note } = openDevice(where, options.device, options.threads);
  const weights = new Map<string, Tensor>();
  try {
    architectureOf(full)
      .params(full)
      .forEach((spec, i) => {
        weights.set(spec.name, device.tensorFrom(initialValues(spec, seed, i), spec.shape, 'f32', spec.name));
      });
    return new Model(device, note, full, weights, true, [], tokenizer);
  } catch (error) {
    device.dispose();
    throw error;
  }
}

/** A language model on a device. */
export class Model {
  readonly config: ModelConfig;
  /** What computes: "cpu (avx512, 2 threads)" or "cuda:0 (NVIDIA H100 80GB HBM3, sm_90)". */
  readonly device: string;
  /** Which device was chosen and why: "cpu: no NVIDIA driver is installed". */
  readonly deviceNote: string;
  readonly trainable: boolean;
  /** What was odd about the file, one sentence each. */
  readonly warnings: readonly string[];
  /** What turns text into the ids of a subword model; a byte model has none. */
  readonly tokenizer: Tokenizer | undefined;
  /** @internal */
  readonly weights: Weights;
  /** @internal */
  readonly runtime: Device;
  readonly #idle = new Map<number, Session[]>();
  readonly #idleRings: StateRing[] = [];
  #disposed = false;

  /** @internal use loadModel or createModel */
  constructor(
    device: Device,
    note: string,
    config: ModelConfig,
    weights: Weights,
    trainable: boolean,
    warnings: readonly string[],
    tokenizer?: Tokenizer,
  ) {
    this.runtime = device;
    this.device = deviceLabel(device.info);
    this.deviceNote = note;
    this.config = config;
    this.weights = weights;
    this.trainable = trainable;
    this.warnings = warnings;
    this.tokenizer = tokenizer;
  }

  /** @internal What its ids stand for: bytes, or the tokens of a subword model. */
  get unit(): 'byte' | 'token' {
    return this.tokenizer || this.config.vocab !== 256 ? 'token' : 'byte';
  }
  /** Number of parameters. */
  get parameters(): number {
    return parameterCount(this.architecture.params(this.config));
  }
  /** Bytes of weights. */
  get bytes(): number {
    return [...this.weights.values()].reduce((sum, t) => sum + t.bytes, 0);
  }
  /** Bytes of state per sequence once a byte is read: of a Mamba, the same for any text. */
  get stateBytes(): number {
    return this.stateBytesAt(1);
  }
  /** Bytes of state per sequence, as `State` keeps it, after so many bytes, or tokens of a subword model. */
  stateBytesAt(position: number): number {
    checkInteger('stateBytesAt', 'position', position, { min: 0 });
    return 4 * this.architecture.state.floats(this.config, position);
  }
  /**
   * Floating-point operations of the forward pass for one byte, or token of a subword model, on average over windows of so
   * many; a multiplication and an addition are two (docs/baselines.md). Of a model that learns from the end of a window alone:
   * the window's, for each of these bytes.
   */
  flops(window: number): number {
    checkInteger('flops', 'window', window, { min: 1 });
    return this.architecture.flops(this.config, window);
  }
  /** @internal */
  get architecture(): Architecture<ModelConfig> {
    return architectureOf(this.config);
  }

  /**
   * Continues a prompt. The result is an async iterable of pieces and can be awaited as a whole.
   * @param prompt text (encoded as UTF-8) or bytes
   * @throws TypeError, RangeError at once for wrong input; the returned object rejects with what happens later
   */
  generate(prompt: string | Uint8Array, options: GenerateOptions = {}): Generation {
    this.assertOpen('generate');
    this.assertText('generate');
    const resolved = resolveOptions(options, this.config.vocab);
    this.checkState('generate', resolved.state);
    const bytes = toBytes('generate', 'the prompt', prompt);
    if (bytes.length === 0 && resolved.state?.pending === undefined) {
      throw new RangeError(
        expected('generate', 'the prompt', 'hold at least one byte', 'an empty one', 'Start a new text with "\\n".'),
      );
    }
    return new Generation(this, bytes, resolved);
  }

  /**
   * Continues several prompts of any lengths in one batch, reading the weights once per step for all of them.
   * Sequence b draws with `seed + b`.
   * @throws TypeError, RangeError for wrong input; rejects with `signal.reason` when aborted
   */
  async generateBatch(
    prompts: readonly (string | Uint8Array)[],
    options: Omit<
      GenerateOptions,
      'state' | 'logprobs' | 'onText' | 'draft' | 'acceptance' | 'beta' | 'draftLength'
    > = {},
  ): Promise<GenerateResult[]> {
    const where = 'generateBatch';
    this.assertOpen(where);
    this.assertBytes(where);
    if (!Array.isArray(prompts) || prompts.length === 0) {
      throw new TypeError(expected(where, 'prompts', 'be an array of at least one prompt', describe(prompts)));
    }
    const resolved = resolveOptions(options, this.config.vocab);
    if (resolved.state || resolved.logprobs || resolved.onText || resolved.draft) {
      throw new TypeError(expected(where, 'options', 'hold no state, logprobs, onText or draft', 'one of them'));
    }
    const bytes = prompts.map((p, i) => toBytes(where, `prompt ${i}`, p));
    const empty = bytes.findIndex((b) => b.length === 0);
    if (empty >= 0) throw new RangeError(expected(where, `prompt ${empty}`, 'hold at least one byte', 'an empty one'));
    return generateBatch(this, bytes, resolved);
  }

  /**
   * Logits after each byte, or token of a subword model: (T, vocab) f32, row t predicts unit t + 1.
   * @param input text or bytes, which a subword model's tokenizer encodes; or ids
   */
  async logits(input: string | Uint8Array | Int32Array, options: { signal?: AbortSignal } = {}): Promise<Float32Array> {
    this.assertOpen('logits');
    checkOptions('logits', options, ['signal']);
    const ids = this.checkIds('logits', input);
    return this.withSession(async (session) => {
      await session.writeState(new Float32Array(session.stateFloats));
      return session.logits(ids, options.signal);
    });
  }

  /**
   * How well the model predicts a text.
   * @param input text or bytes, which a subword model's tokenizer encodes; or ids
   * @param options.state go on from here (the first unit is predicted too) and leave the state after the last one
   */
  async score(
    input: string | Uint8Array | Int32Array,
    options: { state?: State; signal?: AbortSignal } = {},
  ): Promise<Score> {
    const where = 'score';
    this.assertOpen(where);
    checkOptions(where, options, ['state', 'signal']);
    this.checkState(where, options.state);
    const { state } = options;
    const pending = state?.pending === undefined ? [] : [state.pending];
    const ids = Int32Array.from([...pending, ...this.checkIds(where, input)]);
    if (ids.length < 2) {
      throw new RangeError(expected(where, 'the text', `hold at least two ${this.unit}s`, `${ids.length}`));
    }
    state?.acquire(where);
    try {
      return await this.withSession(async (session) => {
        await session.writeState(state?.data ?? new Float32Array(session.stateFloats));
        const nll = await session.nll(ids, options.signal);
        if (state) {
          state.data = session.readState();
          state.position += ids.length - pending.length;
          state.pending = ids.at(-1);
        }
        const nats = nll.reduce((a, b) => a + b, 0);
        const bytes = this.bytesOf(ids.subarray(1));
        return { nats, bytes, bitsPerByte: nats / Math.LN2 / bytes, nll };
      });
    } finally {
      state?.release();
    }
  }

  /** The state of a text not yet begun. */
  createState(): State {
    this.assertOpen('createState');
    return new State(this.config);
  }
  /** A state that `state.toBytes()` wrote. @throws ModelFormatError when it belongs to a model of another shape */
  stateFromBytes(bytes: Uint8Array): State {
    return State.fromBytes(this.config, bytes);
  }

  /**
   * Writes config.json, model.safetensors and, where the model has a tokenizer, tokenizer.json to a folder, each replaced in
   * one step.
   * @throws CheckpointError when the file system refuses; what was there before is intact
   */
  async save(folder: string, options: { metadata?: Record<string, string> } = {}): Promise<void> {
    this.assertOpen('save');
    const tensors = [...this.weights].map(([name, t]) => this.source(name, t));
    const { tokenizer } = this;
    await saveCheckpoint(folder, this.config, tensors, { ...options, tokenizer });
  }

  /** @internal Runs `fn` with a session of its own; sessions are kept for the next caller. */
  async withSession<T>(fn: (session: Session) => Promise<T>, batch = 1): Promise<T> {
    const idle = this.#idle.get(batch) ?? [];
    this.#idle.set(batch, idle);
    const session = idle.pop() ?? new Session(this.runtime, this.config, this.weights, batch);
    session.onShort = () => this.dropIdle();
    try {
      return await fn(session);
    } finally {
      if (!this.#disposed) idle.push(session);
    }
  }

  /** Gives back the memory of sessions and rings that nobody uses; false where there are none. */
  private dropIdle(): boolean {
    const idle = [...[...this.#idle.values()].flatMap((sessions) => sessions.splice(0)), ...this.#idleRings.splice(0)];
    for (const one of idle) one.dispose();
    return idle.length > 0;
  }

  /** @internal A ring that nobody else uses, until it is returned. */
  borrowRing(): StateRing {
    this.assertOpen('draft');
    return this.#idleRings.pop() ?? new StateRing(this.runtime, this.config, this.weights);
  }
  /** @internal */
  returnRing(ring: StateRing): void {
    if (!this.#disposed) this.#idleRings.push(ring);
  }

  /**
   * @internal Drafts with this model for `verifier`.
   * @throws TypeError when their ids have nothing in common
   */
  drafterFor(verifier: Model): Drafter {
    this.assertOpen('draft');
    const { tokenizer } = this;
    const alike = this.config.vocab === verifier.config.vocab && tokenizer?.json === verifier.tokenizer?.json;
    if (alike) return new ModelDrafter(this);
    if (tokenizer && verifier.config.vocab === 256 && !verifier.tokenizer) return new SubwordDrafter(this, tokenizer);
    const kind = (m: Model) =>
      m.tokenizer ? `a subword model of ${m.tokenizer.vocab} tokens` : `${m.config.vocab} classes`;
    const hint = 'A byte model takes byte models and subword models; a subword model takes those with its tokenizer.';
    throw new TypeError(expected('draft', `a drafter for ${kind(verifier)}`, 'share its ids', kind(this), hint));
  }

  get disposed(): boolean {
    return this.#disposed;
  }
  /** Frees weights and plans. A running generation ends with an error. May be called twice. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.runtime.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }

  /** @internal @throws DisposedError */
  assertOpen(where: string): void {
    if (this.#disposed) throw new DisposedError(expected(where, 'the model', 'be open', 'a disposed one'));
  }

  /** @internal The bytes that an id stands for; none for ids that only pad a vocabulary. */
  bytesOfId(id: number): Uint8Array {
    const { tokenizer } = this;
    if (!tokenizer) return Uint8Array.of(id);
    return id < tokenizer.vocab ? tokenizer.bytesOf(id) : new Uint8Array(0);
  }

  private assertText(where: string): void {
    if (this.config.vocab === 256 || this.tokenizer) return;
    const got = `one of ${this.config.vocab} classes without a tokenizer.json`;
    throw new TypeError(expected(where, 'the model', 'read bytes or have a tokenizer', got, 'Use logits().'));
  }
  private assertBytes(where: string): void {
    if (this.config.vocab !== 256) {
      throw new TypeError(
        expected(where, 'the model', 'read bytes (256 classes)', `one of ${this.config.vocab} tokens`, 'Use logits().'),
      );
    }
  }
  private checkState(where: string, state: State | undefined): void {
    if (state && !state.fits(this.config)) {
      throw new TypeError(expected(where, 'state', 'come from a model of this shape', 'one of another shape'));
    }
  }
  private checkIds(where: string, input: string | Uint8Array | Int32Array): ArrayLike<number> & Iterable<number> {
    const ids = input instanceof Int32Array ? input : this.encode(where, input);
    if (ids.length === 0) {
      throw new RangeError(expected(where, 'the text', `hold at least one ${this.unit}`, 'an empty one'));
    }
    for (const id of ids) {
      if (id < 0 || id >= this.config.vocab) {
        throw new RangeError(expected(where, 'ids', `lie in 0..${this.config.vocab - 1}`, `${id}`));
      }
    }
    return ids;
  }
  private encode(where: string, input: string | Uint8Array): ArrayLike<number> & Iterable<number> {
    const bytes = toBytes(where, 'the text', input);
    if (this.tokenizer) return this.tokenizer.encode(bytes);
    if (this.config.vocab === 256) return bytes;
    const got = `one of ${this.config.vocab} tokens without a tokenizer.json`;
    throw new TypeError(expected(where, 'the model', 'read text', got, 'Pass ids, as an Int32Array.'));
  }
  /** Bytes that ids stand for; NaN where that is not known. */
  private bytesOf(ids: Int32Array): number {
    const { tokenizer } = this;
    if (tokenizer) return ids.reduce((sum, id) => sum + (id < tokenizer.vocab ? tokenizer.bytesOf(id).length : 0), 0);
    return this.config.vocab === 256 ? ids.length : Number.NaN;
  }
  private source(name: string, t: Tensor): TensorSource {
    const dtype = ({ f32: 'F32', bf16: 'BF16', i8: 'I8' } as const)[t.dtype as 'f32' | 'bf16' | 'i8'];
    const runtime = this.runtime;
    return {
      name,
      dtype,
      shape: t.shape,
      data: (function* () {
        const data = runtime.read(t);
        yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      })(),
    };
  }
}

/** A device by its public name, and why it is this one. 'auto' takes the first GPU that can be used, else the CPU. */
export function openDevice(
  where: string,
  name: string | undefined,
  threads?: number,
): { device: Device; note: string } {
  const fromEnvironment = name === undefined && process.env.MAMBABYTE_DEVICE;
  const wanted = name ?? (process.env.MAMBABYTE_DEVICE || 'auto');
  if (threads !== undefined) checkInteger(where, 'threads', threads, { min: 1, max: 1024 });
  const options = threads === undefined ? {} : { threads };
  if (wanted === 'auto') return openBest(options);
  const note = `${wanted}: as ${fromEnvironment ? 'MAMBABYTE_DEVICE asks' : 'asked'}`;
  if (wanted === 'cpu' || wanted === 'ref') return { device: Device.open(wanted, options), note };
  const gpu = typeof wanted === 'string' ? /^cuda(?::(\d{1,4}))?$/.exec(wanted) : null;
  if (gpu) return { device: Device.open('cuda', { ...options, index: Number(gpu[1] ?? 0) }), note };
  const what = fromEnvironment ? 'MAMBABYTE_DEVICE' : 'device';
  throw new TypeError(expected(where, what, "be 'auto', 'cuda', 'cuda:1', 'cpu' or 'ref'", describe(wanted)));
}

function openBest(options: DeviceOptions): { device: Device; note: string } {
  try {
    return { device: Device.open('cuda', options), note: 'cuda: a GPU that can be used' };
  } catch (error) {
    if (!(error instanceof DeviceUnavailableError)) throw error;
    return { device: Device.open('cpu', options), note: `cpu: ${whyUnavailable(error)}` };
  }
}
