import type { Device } from './device.ts';
import { Graph } from './graph.ts';
import type { MambaConfig } from './models/config.ts';
import { type LayerState, layerStateShapes, mambaBackbone, mambaHead, type Weights } from './models/mamba.ts';
import type { RunResult } from './native.ts';
import { crossEntropy } from './ops/cross-entropy.ts';
import { SAMPLE_COLUMNS, SAMPLE_PARAMS, sample } from './ops/sample.ts';
import { compile, type Plan } from './plan.ts';
import { Tensor } from './tensor.ts';

/** Any length is a sum of these chunks, since the state carries over. */
const CHUNKS = [512, 64, 8, 1] as const;

/** What a chunk gives back beside the updated state. */
type ChunkOutput = 'state' | 'logits' | 'nll';

interface ChunkPlan {
  plan: Plan;
  ids: Tensor;
  targets?: Tensor;
  output?: Tensor;
}

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

interface DecodePlan {
  plan: Plan;
  ids: Tensor;
  params: Tensor;
  rng: Tensor;
  seen: Tensor | undefined;
  bias: Tensor | undefined;
  logprob: Tensor;
}

/** Native memory and plans for B sequences that advance together: their state, and the plans that read and update it. */
export class Session {
  readonly batch: number;
  readonly #device: Device;
  readonly #config: MambaConfig;
  readonly #weights: Weights;
  readonly #state: Tensor;
  readonly #layers: LayerState[];
  readonly #chunks = new Map<string, Promise<ChunkPlan>>();
  readonly #decode = new Map<string, Promise<DecodePlan>>();
  readonly #owned: Tensor[] = [];

  constructor(device: Device, config: MambaConfig, weights: Weights, batch: number) {
    this.#device = device;
    this.#config = config;
    this.#weights = weights;
    this.batch = batch;
    const shapes = layerStateShapes(config, batch);
    const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
    const perLayer = size(shapes.conv) + size(shapes.ssm);
    this.#state = this.own(device.tensor([config.layers * perLayer], 'f32', 'state'));
    const part = (name: string, shape: readonly number[], at: number) => {
      const { buffer = 0, offset = 0 } = this.#state.storage ?? {};
      return new Tensor(shape, 'f32', name, { storage: { buffer, offset: offset + at * 4 } });
    };
    this.#layers = Array.from({ length: config.layers }, (_, l) => ({
      conv: part(`state.${l}.conv`, shapes.conv, l * perLayer),
      ssm: part(`state.${l}.ssm`, shapes.ssm, l * perLayer + size(shapes.conv)),
    }));
  }

  /** Bytes of state per sequence, the same at any position. */
  static stateBytes(config: MambaConfig): number {
    return 4 * config.layers * ((config.dConv - 1) * config.dInner + config.dInner * config.dState);
  }

  /** Floats in the whole state. */
  get stateFloats(): number {
    return this.#state.elems;
  }
  /** Floats of the whole state: per layer all convolution states, then all SSM states. */
  readState(): Float32Array {
    return this.#device.read(this.#state) as Float32Array;
  }
  writeState(data: Float32Array): void {
    this.#device.write(this.#state, data);
  }
  /** Takes over the state of a single sequence as sequence `b` of this batch. */
  writeSequence(b: number, data: Float32Array): void {
    const conv = (this.#config.dConv - 1) * this.#config.dInner;
    const ssm = this.#config.dInner * this.#config.dState;
    this.#layers.forEach((layer, l) => {
      const at = l * (conv + ssm);
      this.#device.write(layer.conv.slice(b), data.subarray(at, at + conv));
      this.#device.write(layer.ssm.slice(b), data.subarray(at + conv, at + conv + ssm));
    });
  }

  /** Consumes ids (one sequence) in chunks; `signal` ends it between two of them. */
  async consume(ids: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    for (const [at, size] of chunksOf(ids.length)) {
      signal?.throwIfAborted();
      await this.runChunk('state', size, ids, at);
    }
  }

  /** Consumes ids and returns the logits after each: (T, vocab). */
  async logits(ids: ArrayLike<number>, signal?: AbortSignal): Promise<Float32Array> {
    const out = new Float32Array(ids.length * this.#config.vocab);
    for (const [at, size] of chunksOf(ids.length)) {
      signal?.throwIfAborted();
      out.set(await this.runChunk('logits', size, ids, at), at * this.#config.vocab);
    }
    return out;
  }

  /** Consumes all ids but the last and returns -log p(ids[t + 1] | ids[..t]) in nats for each. */
  async nll(ids: ArrayLike<number>, signal?: AbortSignal): Promise<Float32Array> {
    const out = new Float32Array(Math.max(0, ids.length - 1));
    for (const [at, size] of chunksOf(out.length)) {
      signal?.throwIfAborted();
      out.set(await this.runChunk('nll', size, ids, at), at);
    }
    return out;
  }

  /** Prepares the decode loop: sampling settings and the last, not yet consumed id of every sequence. */
  async startDecoding(
    settings: readonly SamplingSettings[],
    pending: readonly number[],
    seen?: readonly ArrayLike<number>[],
  ): Promise<DecodeLoop> {
    const B = this.batch;
    const penalty = settings.some((s) => s.repetitionPenalty !== 1);
    const bias = settings.some((s) => s.bias);
    const loop = await this.decodePlan(penalty, bias);
    const params = new Float32Array(B * SAMPLE_COLUMNS);
    const rng = new Int32Array(B * 4);
    settings.forEach((s, b) => {
      SAMPLE_PARAMS.forEach((name, i) => {
        params[b * SAMPLE_COLUMNS + i] = s[name];
      });
      rng[b * 4] = s.seed | 0;
      rng[b * 4 + 1] = Math.floor(s.seed / 2 ** 32) | 0;
    });
    this.#device.write(loop.params, params);
    this.#device.write(loop.rng, rng);
    this.#device.write(loop.ids, Int32Array.from(pending));
    if (loop.seen) {
      const flags = new Uint8Array(B * this.#config.vocab);
      seen?.forEach((ids, b) => {
        for (const id of Array.from(ids)) flags[b * this.#config.vocab + id] = 1;
      });
      this.#device.write(loop.seen, flags);
    }
    if (loop.bias) {
      const all = new Float32Array(B * this.#config.vocab);
      settings.forEach((s, b) => {
        if (s.bias) all.set(s.bias, b * this.#config.vocab);
      });
      this.#device.write(loop.bias, all);
    }
    return {
      run: (options) => loop.plan.run({ ...options, watch: loop.ids }),
      cancel: () => loop.plan.cancel(),
      logprobs: () => this.#device.read(loop.logprob) as Float32Array,
    };
  }

  dispose(): void {
    for (const entry of [...this.#chunks.values(), ...this.#decode.values()]) {
      entry.then(
        ({ plan }) => plan.dispose(),
        () => undefined,
      );
    }
    for (const t of this.#owned) this.#device.release(t);
  }

  private own(t: Tensor): Tensor {
    this.#owned.push(t);
    return t;
  }

  private async runChunk(output: ChunkOutput, size: number, ids: ArrayLike<number>, at: number): Promise<Float32Array> {
    const key = `${output}:${size}`;
    let entry = this.#chunks.get(key);
    if (!entry) {
      entry = this.buildChunk(output, size);
      this.#chunks.set(key, entry);
    }
    const chunk = await entry;
    this.#device.write(
      chunk.ids,
      Int32Array.from({ length: size }, (_, t) => ids[at + t] ?? 0),
    );
    if (chunk.targets) {
      this.#device.write(
        chunk.targets,
        Int32Array.from({ length: size }, (_, t) => ids[at + t + 1] ?? 0),
      );
    }
    await chunk.plan.run();
    return chunk.output ? (chunk.plan.read(chunk.output) as Float32Array) : new Float32Array(0);
  }

  private async buildChunk(output: ChunkOutput, size: number): Promise<ChunkPlan> {
    const c = this.#config;
    const g = new Graph();
    const ids = this.own(this.#device.tensor([this.batch, size], 'i32', 'ids'));
    const x = mambaBackbone(g, c, this.#weights, ids, { state: this.#layers });
    if (output === 'state') return { plan: await compile(this.#device, g), ids };
    const logits = mambaHead(g, c, this.#weights, x);
    if (output === 'logits') return { plan: await compile(this.#device, g, [logits]), ids, output: logits };
    const targets = this.own(this.#device.tensor([this.batch, size], 'i32', 'targets'));
    const { nll } = crossEntropy(g, logits, targets);
    return { plan: await compile(this.#device, g, [nll]), ids, targets, output: nll };
  }

  private decodePlan(penalty: boolean, bias: boolean): Promise<DecodePlan> {
    const key = `${penalty}:${bias}`;
    let entry = this.#decode.get(key);
    if (!entry) {
      entry = this.buildDecode(penalty, bias);
      this.#decode.set(key, entry);
    }
    return entry;
  }

  private async buildDecode(penalty: boolean, biased: boolean): Promise<DecodePlan> {
    const c = this.#config;
    const B = this.batch;
    const tensor = (name: string, shape: number[], dtype: 'i32' | 'f32' | 'u8') =>
      this.own(this.#device.tensor(shape, dtype, name));
    const ids = tensor('ids', [B], 'i32');
    const params = tensor('params', [B, SAMPLE_COLUMNS], 'f32');
    const rng = tensor('rng', [B, 4], 'i32');
    const logprob = tensor('logprob', [B], 'f32');
    const seen = penalty ? tensor('seen', [B, c.vocab], 'u8') : undefined;
    const bias = biased ? tensor('bias', [B, c.vocab], 'f32') : undefined;
    const g = new Graph();
    const x = mambaBackbone(g, c, this.#weights, ids.reshape(B, 1), { state: this.#layers });
    const logits = mambaHead(g, c, this.#weights, x.reshape(B, c.dModel));
    // The drawn ids are the next step's input: a run of steps never leaves native code.
    sample(g, { logits, params, bias, rng, seen, ids, logprob });
    return { plan: await compile(this.#device, g), ids, params, rng, seen, bias, logprob };
  }
}

/** A decode loop over one session. */
export interface DecodeLoop {
  run(options: { steps: number; maxMs?: number; stops?: Int32Array[]; history?: Int32Array }): Promise<RunResult>;
  /** Ends the current run within one step. */
  cancel(): void;
  /** (B): log-probabilities of the last drawn ids. */
  logprobs(): Float32Array;
}

/** Splits a length into [start, size] chunks, large ones first. */
export function* chunksOf(length: number): Generator<[start: number, size: number]> {
  let at = 0;
  for (const size of CHUNKS) {
    for (; length - at >= size; at += size) yield [at, size];
  }
}
