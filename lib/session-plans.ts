// The plans of a session: what reads a chunk of ids, verifies drafted ones, decodes. Each is compiled on first use.
import type { BackendName, Device } from './device.ts';
import { Graph } from './graph.ts';
import type { Passage, RunPlan } from './memory/memory.ts';
import type { CacheDType } from './memory/region.ts';
import type { Architecture, ForwardOptions, Weights } from './models/architecture.ts';
import { architectureOf, type ModelConfig } from './models/architectures.ts';
import { crossEntropy } from './ops/cross-entropy.ts';
import { BATCH_ROWS, BLOCK_ROWS } from './ops/mamba-block.ts';
import { SAMPLE_COLUMNS, sample } from './ops/sample.ts';
import { Arena, compile, type Plan } from './plan.ts';
import { PlanCache } from './plan-cache.ts';
import type { DType, Tensor } from './tensor.ts';

/** Ids that one plan reads of all sequences together at most: a GPU needs thousands of rows to be full. */
const MOST_ROWS: Readonly<Record<BackendName, number>> = { ref: 512, cpu: 512, cuda: 8192 };

/**
 * Most rows without an id that a plan may read so that fewer plans do: on a GPU a plan of a few rows takes half the time of
 * one of thousands, on a CPU each row takes its time.
 */
const MOST_PADDED: Readonly<Record<BackendName, number>> = { ref: 0, cpu: 0, cuda: 2048 };
/** Up to so many rows are read sooner by small plans of their own than by more padding. */
const FEW_ROWS = 24;

/** Lengths of plans that make up any other, since the state carries over: halves down to 1, each of them once at most. */
function chunksWithin(rows: number): number[] {
  const sizes: number[] = [];
  for (let size = rows; size >= 1; size = Math.floor(size / 2)) sizes.push(size);
  return sizes;
}

/** How many independent sequences of a length a session should read together for its largest plan to be full, up to 64. */
export function sequencesAtOnce(backend: BackendName, length: number): number {
  const rows = MOST_ROWS[backend];
  const chunk = chunksWithin(rows).find((size) => size <= length) ?? 1;
  return Math.min(64, Math.floor(rows / chunk));
}

/** What a chunk gives back beside the updated state; 'skip': not even all of that (`Memory.skippable`). */
export type ChunkOutput = 'skip' | 'state' | 'logits' | 'nll';

export interface ChunkPlan {
  plan: Plan;
  ids: Tensor;
  /** (B): ids of each sequence that count, where not all do. */
  lengths?: Tensor | undefined;
  targets?: Tensor;
  output?: Tensor;
}

export interface StepPlan {
  plan: Plan;
  ids: Tensor;
  logits: Tensor;
}

/** A verify pass, and what plain decoding would draw after each of its ids. */
export interface VerifyPlan extends StepPlan {
  draw: DrawTensors;
}

/** What `sample` reads and writes for some rows. */
export interface DrawTensors {
  ids: Tensor;
  params: Tensor;
  rng: Tensor;
  seen: Tensor | undefined;
  bias: Tensor | undefined;
  logprob: Tensor;
}

export interface DecodePlan extends DrawTensors {
  plan: Plan;
}

const withDerived = new WeakMap<Weights, Promise<Weights>>();

/** Weights that do not change, with what every plan needs of them computed once; others as they are. */
function prepared(device: Device, config: ModelConfig, weights: Weights): Promise<Weights> {
  const found = withDerived.get(weights);
  if (found) return found;
  const prepare = async () => {
    const architecture = architectureOf(config);
    if (!architecture.derived || [...weights.values()].some((t) => !t.frozen)) return weights;
    const all = new Map(weights);
    const g = new Graph();
    for (const [name, made] of architecture.derived(g, config, weights)) {
      const kept = device.tensor(made.shape, 'f32', name, true);
      g.op('copy', { y: kept }, { x: made });
      all.set(name, kept);
    }
    using plan = await compile(device, g);
    await plan.run();
    return all;
  };
  const made = prepare();
  withDerived.set(weights, made);
  return made;
}

/** What activations are rounded to where no fused block keeps them: bf16 on a GPU whose matrices are all smaller than f32. */
export function activationsOf(device: Device, config: ModelConfig, weights: Weights): 'bf16' | undefined {
  const narrow = matricesOf(config, weights).every((dtype) => dtype !== 'f32');
  return device.info.backend === 'cuda' && narrow ? 'bf16' : undefined;
}

/**
 * What keys and values are kept as: 16 bits where products round what they read (docs/numerics.md), to bf16 for bf16 weights,
 * less for int8. After a long text that halves the bytes that a step reads.
 */
export function cachesOf(device: Device, config: ModelConfig, weights: Weights): CacheDType {
  const { backend, target } = device.info;
  const rounds = backend === 'cpu' && (target === 'avx512' || target === 'amx');
  const matrices = matricesOf(config, weights);
  if (!rounds || matrices.includes('f32')) return activationsOf(device, config, weights) ?? 'f32';
  return matrices.every((dtype) => dtype === 'bf16') ? 'bf16' : 'f16';
}

function matricesOf(config: ModelConfig, weights: Weights): (DType | undefined)[] {
  return architectureOf(config)
    .matrices(config)
    .map((name) => weights.get(name)?.dtype);
}

/** Plans over the memory of `batch` sequences. They share an arena, since only one of them runs at a time. */
export class SessionPlans {
  /** Chunks that lengths are made of, large ones first; the last is 1. */
  readonly sizes: readonly number[];
  /** Rows that a plan has at most. */
  readonly rows: number;
  readonly #device: Device;
  readonly #architecture: Architecture<ModelConfig>;
  readonly #config: ModelConfig;
  readonly #weights: Weights;
  readonly #batch: number;
  readonly #activations: 'bf16' | undefined;
  readonly #arena: Arena;
  /** What plans read and write beside the memory: it outlives them. */
  readonly #tensors = new Map<string, Tensor>();
  readonly #plans = new PlanCache();

  /** @param period what chunks of more than one id are a multiple of */
  constructor(device: Device, config: ModelConfig, weights: Weights, batch: number, period: number) {
    this.#device = device;
    this.#architecture = architectureOf(config);
    this.#config = config;
    this.#weights = weights;
    this.#batch = batch;
    this.#arena = new Arena(device);
    const { backend } = device.info;
    this.rows = MOST_ROWS[backend];
    const fitting = chunksWithin(this.rows).filter((size) => size * batch <= this.rows);
    const whole = fitting.map((size) => Math.max(period, size - (size % period)));
    this.sizes = [...new Set([...whole, 1])];
    this.#activations = activationsOf(device, config, weights);
  }

  /**
   * How the next of `left` ids are read, of which a chunk may hold `most` at most: by a plan for `size` ids, of which
   * `ids` count.
   */
  next(left: number, most: number): { size: number; ids: number } {
    const size = this.sizes.find((chunk) => chunk <= most) ?? 1;
    const whole = { size, ids: size };
    const padded = this.sizes.findLast((chunk) => chunk >= left);
    if (!this.#architecture.pads || left > most || padded === undefined) return whole;
    const rows = (ids: number) => ids * this.#batch;
    const pays = rows(left - size) > FEW_ROWS && rows(padded - left) <= MOST_PADDED[this.#device.info.backend];
    return pays && !this.fuses(rows(padded)) ? { size: padded, ids: left } : whole;
  }

  /** Reads `size` ids of every sequence; with `padded` only as many of them as `lengths` says. */
  chunk(output: ChunkOutput, size: number, from: Passage, padded = false): Promise<ChunkPlan> {
    return this.#plans.once(`${output} ${size} ${from.key} ${padded}`, async () => {
      const ids = this.tensor(`ids ${size}`, [this.#batch, size], 'i32');
      const lengths = padded ? this.tensor('lengths', [this.#batch], 'i32') : undefined;
      const ins = { ids, lengths };
      const g = new Graph();
      const x = await this.backbone(g, ids, from, lengths);
      if (output === 'skip' || (output === 'state' && !this.decodes(ids.elems))) {
        return { plan: await this.compile(g), ...ins };
      }
      const logits = await this.head(g, x);
      if (output === 'state') return { plan: await this.compile(g, logits), ...ins };
      if (output === 'logits') return { plan: await this.compile(g, logits), ...ins, output: logits };
      const targets = this.tensor(`targets ${size}`, [this.#batch, size], 'i32');
      const { nll } = crossEntropy(g, logits, targets);
      return { plan: await this.compile(g, nll), ...ins, targets, output: nll };
    });
  }

  /** Reads `steps` ids of one sequence in a single pass, any prefix of which can be accepted. */
  verify(steps: number, penalty: boolean, biased: boolean, from: Passage): Promise<VerifyPlan> {
    return this.#plans.once(`verify ${steps} ${penalty} ${biased} ${from.key}`, async () => {
      const ids = this.tensor(`ids ${steps}`, [1, steps], 'i32');
      const draw = this.drawTensors('verify', steps, penalty, biased);
      const g = new Graph();
      const x = await this.backbone(g, ids, from);
      const logits = await this.head(g, x.reshape(steps, x.cols));
      sample(g, { ...draw, logits });
      return { plan: await this.compile(g, logits), ids, logits, draw };
    });
  }

  /** Reads one id of one sequence. */
  step(from: Passage): Promise<StepPlan> {
    return this.#plans.once(`step ${from.key}`, async () => {
      const ids = this.tensor('ids 1', [1, 1], 'i32');
      const g = new Graph();
      const x = await this.backbone(g, ids, from);
      const logits = await this.head(g, x.reshape(1, x.cols));
      return { plan: await this.compile(g, logits), ids, logits };
    });
  }

  /** Reads the last id of every sequence and draws the next. */
  decode(penalty: boolean, biased: boolean, from: Passage): Promise<DecodePlan> {
    return this.#plans.once(`decode ${penalty} ${biased} ${from.key}`, async () => {
      const B = this.#batch;
      const draw = this.drawTensors('decode', B, penalty, biased);
      const g = new Graph();
      const x = await this.backbone(g, draw.ids.reshape(B, 1), from);
      const logits = await this.head(g, x.reshape(B, x.cols));
      // The drawn ids are the next step's input: a run of steps never leaves native code.
      sample(g, { ...draw, logits });
      return { ...draw, plan: await this.compile(g) };
    });
  }

  /** Runs what a memory computes by itself. */
  readonly run: RunPlan = async (key, rows, record) => {
    const { plan } = await this.#plans.once(key, async () => {
      const g = new Graph();
      const weights = await prepared(this.#device, this.#config, this.#weights);
      record(g, weights, this.forward(rows));
      return { plan: await this.compile(g) };
    });
    await plan.run();
  };

  /** Drops all plans: what they read and write of the memory lies elsewhere now. */
  forget(): Promise<void> {
    return this.#plans.forget();
  }

  dispose(): void {
    void this.forget();
    this.#arena.dispose();
    for (const t of this.#tensors.values()) this.#device.release(t);
  }

  private drawTensors(use: string, rows: number, penalty: boolean, biased: boolean): DrawTensors {
    const { vocab } = this.#config;
    const name = (of: string) => `${of} of ${use} ${rows} ${penalty} ${biased}`;
    return {
      ids: this.tensor(name('ids'), [rows], 'i32'),
      params: this.tensor(name('params'), [rows, SAMPLE_COLUMNS], 'f32'),
      rng: this.tensor(name('rng'), [rows, 4], 'i32'),
      seen: penalty ? this.tensor(name('seen'), [rows, vocab], 'u8') : undefined,
      bias: biased ? this.tensor(name('bias'), [rows, vocab], 'f32') : undefined,
      logprob: this.tensor(name('logprob'), [rows], 'f32'),
    };
  }

  /** The tensor of a name: zeros at first. It lives as long as the session. */
  private tensor(name: string, shape: readonly number[], dtype: DType): Tensor {
    let t = this.#tensors.get(name);
    if (!t) {
      t = this.#device.tensor(shape, dtype, name);
      this.#tensors.set(name, t);
    }
    return t;
  }

  private compile(g: Graph, ...outputs: Tensor[]): Promise<Plan> {
    return compile(this.#device, g, outputs, this.#arena);
  }

  private async backbone(g: Graph, ids: Tensor, from: Passage, lengths?: Tensor): Promise<Tensor> {
    const weights = await prepared(this.#device, this.#config, this.#weights);
    const options = { ...this.forward(ids.elems), state: from.state(), lengths };
    return this.#architecture.backbone(g, this.#config, weights, ids, options);
  }

  private async head(g: Graph, x: Tensor): Promise<Tensor> {
    return this.#architecture.head(g, this.#config, this.#weights, x, this.forward(x.rows));
  }

  /** How `rows` rows run: few of them through fused blocks where there are any, whose activations are f32. */
  private forward(rows: number): ForwardOptions {
    const batchRows = this.#activations ? BATCH_ROWS : BLOCK_ROWS;
    return { batchRows, activations: this.fuses(rows) ? undefined : this.#activations };
  }
  private fuses(rows: number): boolean {
    return this.#architecture.fuses === true && rows <= BLOCK_ROWS;
  }
  /** Whether `rows` rows may run as a single kernel on a GPU: all blocks of a model up to a head, needed or not. */
  private decodes(rows: number): boolean {
    return this.#activations !== undefined && this.fuses(rows);
  }
}
