import { isCuda } from './device.ts';
import {
  checkChoice,
  checkFunction,
  checkInteger,
  checkNumber,
  checkOptions,
  describe,
  expected,
  OutOfMemoryError,
} from './errors.ts';
import { grad } from './grad.ts';
import { Graph } from './graph.ts';
import type { Model } from './model.ts';
import { RECOMPUTE, type Recompute } from './models/architecture.ts';
import { trainedRows } from './models/architectures.ts';
import { adamw, globalNorm } from './ops/adamw.ts';
import { crossEntropy } from './ops/cross-entropy.ts';
import { add, mul } from './ops/elementwise.ts';
import { Arena, arenaBytes, compile, type Plan } from './plan.ts';
import { recompute } from './recompute.ts';
import type { Tensor } from './tensor.ts';
import { gradientMemory, type Rank, reduceGradients, sumOverRanks } from './train/data-parallel.ts';
import { type Schedule, scheduleFactor } from './train/schedule.ts';

export interface TrainerOptions {
  /** Peak learning rate; default 4e-4 (the paper's). */
  lr?: number;
  /** AdamW's decay rates; default [0.9, 0.95]. */
  betas?: readonly [number, number];
  /** AdamW's epsilon; default 1e-8. */
  eps?: number;
  /** Decoupled weight decay, for all parameters or by name and shape; default 0. */
  weightDecay?: number | ((name: string, shape: readonly number[]) => number);
  /** Largest global gradient norm; 0: no clipping; default 1. */
  clip?: number;
  /** Factor on lr after warm-up; default 'constant'. */
  schedule?: Schedule;
  /** Steps of linear warm-up; default 0. */
  warmup?: number;
  /** Steps in all, which 'cosine' needs. */
  steps?: number;
  /** Fraction of lr that 'cosine' ends at; default 0.1. */
  minLr?: number;
  /** A target that is not counted in the loss; default: all are. */
  ignore?: number;
  /**
   * What activations, their gradients and the matrices are computed in; master weights, parameter gradients, moments and
   * the residual stream are f32 either way. Default: 'bf16' on a GPU, else 'f32'.
   */
  precision?: Precision;
  /**
   * Memory for time: what is computed again in the backward pass instead of being kept, to the same bits. 'none'; 'cheap':
   * all but the wide products; 'layer': everything but the inputs of the layers; 'auto' (default): on a GPU the first of
   * these that leaves its memory free enough, else 'none'.
   */
  recompute?: Recompute | 'auto';
}

/** 'auto' takes 'none' where it needs less than this fraction of the GPU's memory, and 'cheap' where that needs less. */
const MEMORY_SHARE = { none: 0.25, cheap: 0.6 } as const;

const PRECISIONS = ['f32', 'bf16'] as const;
export type Precision = (typeof PRECISIONS)[number];

const KEYS = [
  ...['lr', 'betas', 'eps', 'weightDecay', 'clip', 'schedule', 'warmup', 'steps', 'minLr', 'ignore'],
  ...['precision', 'recompute'],
];

export interface Batch {
  /**
   * batch x (T + 1) bytes or ids, row by row: T inputs and, one further on, T targets. -1, in an Int32Array, is padding
   * at the end of a row: never counted as a target, and refused where only the last ids of a row are learned from.
   */
  bytes: Uint8Array | Int32Array;
  batch: number;
  /** @internal How much it counts beside the batches of the other ranks; default 1. */
  weight?: number;
}

export interface StepResult {
  /** Mean cross-entropy in nats per byte, before the update. */
  loss: number;
  /** Global norm of the gradients, before clipping. */
  gradNorm: number;
  /** Learning rate of this step. */
  lr: number;
  /** Steps done, this one included. */
  step: number;
}

/** What a trainer must remember beside the weights to go on bit for bit. */
export interface OptimizerState {
  step: number;
  /** First and second moments by parameter name. */
  m: Map<string, Float32Array>;
  v: Map<string, Float32Array>;
}

/** What a plan does with a micro-batch: overwrite loss and gradients, add to them, or only tell the loss. */
type Pass = 'first' | 'more' | 'loss';

/** Where a step's figures lie in `report`. */
const [LOSS, VOTES, NORM] = [0, 1, 2];

interface Compiled {
  /** (2, batch, T) i32: inputs and, one behind the other, the targets of the rows that are learned from. */
  ids: Tensor;
  plan: Plan;
}

/**
 * A trainer over a trainable model: AdamW with global-norm clipping; forward, backward and update run as native plans.
 * @param rank internal: this process as one of several that train together
 * @throws TypeError or RangeError naming a wrong option
 */
export async function createTrainer(model: Model, options: TrainerOptions = {}, rank?: Rank): Promise<Trainer> {
  const where = 'createTrainer';
  checkOptions(where, options, KEYS);
  model.assertOpen(where);
  if (!model.trainable) {
    throw new TypeError(
      expected(where, 'the model', 'be trainable', 'one with frozen weights', 'Load it with { trainable: true }.'),
    );
  }
  return new Trainer(model, options, rank);
}

export class Trainer {
  readonly model: Model;
  readonly precision: Precision;
  readonly recompute: Recompute | 'auto';
  readonly #options: Required<Omit<TrainerOptions, 'steps' | 'weightDecay' | 'precision' | 'recompute'>> & {
    steps: number | undefined;
  };
  readonly #decay: (name: string, shape: readonly number[]) => number;
  /** What the model is computed with, by name: the weights themselves, or bf16 copies of the matrices. */
  readonly #weights = new Map<string, Tensor>();
  /** By what the model is computed with. */
  readonly #gradients = new Map<Tensor, Tensor>();
  readonly #m = new Map<string, Tensor>();
  readonly #v = new Map<string, Tensor>();
  readonly #scalars: Tensor;
  readonly #dloss: Tensor;
  /** (3) f32, read once a step: its loss, how many ranks want to end, its gradient norm. */
  readonly #report: Tensor;
  readonly #ids = new Map<string, Tensor>();
  readonly #plans = new Map<string, Promise<Plan>>();
  readonly #levels = new Map<string, Recompute>();
  readonly #updates = new Map<number, Promise<Plan>>();
  readonly #arena: Arena;
  /** Parts of the gradients' memory that are summed over the ranks together. */
  readonly #buckets: readonly Tensor[];
  readonly #rank: Rank | undefined;
  #step = 0;
  #busy = false;

  /** @internal use createTrainer */
  constructor(model: Model, options: TrainerOptions, rank?: Rank) {
    const where = 'createTrainer';
    const [beta1, beta2] = options.betas ?? [0.9, 0.95];
    const rate = (name: string, value: unknown) => checkNumber(where, name, value, { min: 0, below: 1 });
    const decay = options.weightDecay ?? 0;
    if (typeof decay !== 'function') checkNumber(where, 'weightDecay', decay, { min: 0 });
    else checkFunction(where, 'weightDecay', decay);
    const device = model.runtime;
    const gpu = device.info.backend === 'cuda';
    this.model = model;
    this.precision = checkChoice(where, 'precision', options.precision ?? (gpu ? 'bf16' : 'f32'), PRECISIONS);
    this.recompute = checkChoice(where, 'recompute', options.recompute ?? 'auto', ['auto', ...RECOMPUTE] as const);
    if (this.precision === 'bf16' && device.info.backend === 'cpu') {
      throw new TypeError(
        expected(where, 'precision', "be 'f32' on the CPU", "'bf16'", 'Its kernels keep activations in f32.'),
      );
    }
    this.#options = {
      lr: checkNumber(where, 'lr', options.lr ?? 4e-4, { min: 0 }),
      betas: [rate('betas[0]', beta1), rate('betas[1]', beta2)],
      eps: checkNumber(where, 'eps', options.eps ?? 1e-8, { above: 0 }),
      clip: checkNumber(where, 'clip', options.clip ?? 1, { min: 0 }),
      schedule: options.schedule ?? 'constant',
      warmup: checkInteger(where, 'warmup', options.warmup ?? 0, { min: 0 }),
      minLr: checkNumber(where, 'minLr', options.minLr ?? 0.1, { min: 0, max: 1 }),
      ignore: checkInteger(where, 'ignore', options.ignore ?? -1, { min: -1 }),
      steps: options.steps === undefined ? undefined : checkInteger(where, 'steps', options.steps, { min: 1 }),
    };
    scheduleFactor(where, this.#options, 1); // refuses a schedule that cannot be evaluated
    this.#decay = typeof decay === 'function' ? decay : () => decay;
    this.#arena = new Arena(device);
    this.#scalars = device.tensor([2], 'f32', 'scalars');
    this.#report = device.tensor([3], 'f32', 'report');
    this.#dloss = device.tensorFrom(Float32Array.of(1), [1], 'f32', 'dloss');
    const matrices = new Set(this.precision === 'bf16' ? model.architecture.matrices(model.config) : []);
    // The backward pass goes through the parameters from the last to the first.
    const shapes = model.architecture.params(model.config).map(({ name, shape }) => [name, shape] as const);
    const { gradients, buckets } = gradientMemory(device, shapes.reverse());
    this.#rank = rank;
    this.#buckets = buckets;
    for (const [name, t] of model.weights) {
      const used = matrices.has(name) ? device.tensor(t.shape, 'bf16', `bf16 ${name}`) : t;
      this.#weights.set(name, used);
      const gradient = gradients.get(name);
      if (gradient) this.#gradients.set(used, gradient);
      this.#m.set(name, device.tensor(t.shape, 'f32', `m ${name}`));
      this.#v.set(name, device.tensor(t.shape, 'f32', `v ${name}`));
    }
  }

  /** Steps done. */
  get steps(): number {
    return this.#step;
  }

  /**
   * One optimiser step on one batch, or on several micro-batches of equal shape whose losses and gradients are averaged
   * with equal weights.
   * @throws RangeError when a batch has the wrong size or an id is no class of the model
   */
  async step(input: Batch | readonly Batch[]): Promise<StepResult> {
    const where = 'trainer.step';
    const batches = (Array.isArray(input) ? input : [input]) as readonly Batch[];
    if (batches.length === 0) throw new RangeError(expected(where, 'batches', 'hold at least one', 'none'));
    return this.exclusively(where, async () => {
      const lengths = batches.map((b) => this.checkBatch(where, b));
      if (this.#rank) this.model.runtime.write(this.#report.slice(VOTES), Float32Array.of(this.#rank.wantsEnd ? 1 : 0));
      for (const [i, b] of batches.entries()) {
        await this.pass(i > 0 ? 'more' : 'first', b, lengths[i] ?? 0, i === batches.length - 1);
      }
      const update = await this.update(batches.length);
      const step = this.#step + 1;
      const lr = this.#options.lr * scheduleFactor(where, this.#options, step);
      this.model.runtime.write(this.#scalars, Float32Array.of(lr, step));
      await update.run();
      this.#step = step;
      const figures = this.model.runtime.read(this.#report);
      const [loss = Number.NaN, gradNorm = Number.NaN] = [figures[LOSS], figures[NORM]];
      if (this.#rank) this.#rank.ending = figures[VOTES] !== 0;
      return { loss: loss / (batches.length * this.world), gradNorm, lr, step };
    });
  }

  /** Loss of a batch without learning from it: mean nats per byte. */
  async loss(batch: Batch): Promise<number> {
    const where = 'trainer.loss';
    return this.exclusively(where, async () => {
      await this.pass('loss', batch, this.checkBatch(where, batch));
      return this.model.runtime.read(this.#report)[LOSS] ?? Number.NaN;
    });
  }

  /** A copy of what AdamW remembers. */
  optimizerState(): OptimizerState {
    const copy = (from: Map<string, Tensor>) =>
      new Map([...from].map(([name, t]) => [name, this.model.runtime.read(t) as Float32Array]));
    return { step: this.#step, m: copy(this.#m), v: copy(this.#v) };
  }
  /** Goes on from `optimizerState()`. @throws TypeError when names or sizes are another model's */
  restore(state: OptimizerState): void {
    for (const [ours, theirs] of [
      [this.#m, state.m],
      [this.#v, state.v],
    ] as const) {
      for (const [name, t] of ours) {
        const data = theirs.get(name);
        if (data?.length !== t.elems) {
          throw new TypeError(expected('trainer.restore', name, `have ${t.elems} moments`, describe(data)));
        }
        this.model.runtime.write(t, data);
      }
    }
    this.#step = state.step;
  }

  /** @internal AdamW's moments as they lie on the device, `m.<parameter>` and `v.<parameter>`. */
  moments(): Map<string, Tensor> {
    const named = (kind: string, of: Map<string, Tensor>) =>
      [...of].map(([name, t]) => [`${kind}.${name}`, t] as const);
    return new Map([...named('m', this.#m), ...named('v', this.#v)]);
  }
  /** @internal Counts on from `step`, once the moments are written. */
  countFrom(step: number): void {
    this.#step = step;
  }

  private get world(): number {
    return this.#rank?.world ?? 1;
  }

  private checkBatch(where: string, b: Batch): number {
    const { vocab } = this.model.config;
    if (!(b?.bytes instanceof Uint8Array || b?.bytes instanceof Int32Array)) {
      throw new TypeError(expected(where, 'bytes', 'be a Uint8Array or an Int32Array', describe(b?.bytes)));
    }
    checkInteger(where, 'batch', b.batch, { min: 1 });
    const row = b.bytes.length / b.batch;
    if (!Number.isInteger(row) || row < 2) {
      throw new RangeError(
        expected(where, 'bytes', 'hold batch x (T + 1) values', `${b.bytes.length} for ${b.batch} rows`),
      );
    }
    if (vocab < 256 || b.bytes instanceof Int32Array) {
      for (const id of b.bytes) {
        if (id < -1 || id >= vocab) throw new RangeError(expected(where, 'ids', `lie in 0..${vocab - 1}`, `${id}`));
      }
    }
    const rows = trainedRows(this.model.config, row - 1);
    if (rows < row - 1 && b.bytes.includes(-1)) {
      const what = `hold no padding, for ${this.model.architecture.name} learns from the last ${rows} of ${row - 1} ids`;
      throw new RangeError(expected(where, 'rows', what, 'one that is shorter'));
    }
    return row - 1;
  }

  /** Runs `fn` unless another call is at work: all of them use the same memory. */
  private async exclusively<T>(where: string, fn: () => Promise<T>): Promise<T> {
    this.model.assertOpen(where);
    if (this.#busy) throw new Error(expected(where, 'the trainer', 'be free', 'one that is still stepping'));
    this.#busy = true;
    try {
      return await fn();
    } finally {
      this.#busy = false;
    }
  }

  /** Forward, and but for 'loss' backward, of one micro-batch; the last one of a step sums over the ranks. */
  private async pass(pass: Pass, b: Batch, T: number, last = false): Promise<void> {
    const { ids, plan } = await this.compiled(pass, b.batch, T, last && this.#rank !== undefined);
    if (this.#rank) this.model.runtime.write(this.#dloss, Float32Array.of(b.weight ?? 1));
    const { ignore } = this.#options;
    const rows = trainedRows(this.model.config, T);
    const both = new Int32Array(2 * b.batch * T);
    const targets = both.subarray(b.batch * T);
    for (let r = 0; r < b.batch; r++) {
      both.set(b.bytes.subarray(r * (T + 1), r * (T + 1) + T), r * T);
      targets.set(b.bytes.subarray((r + 1) * (T + 1) - rows, (r + 1) * (T + 1)), r * rows);
    }
    for (let i = 0; i < targets.length; i++) {
      if ((both[i] ?? 0) < 0) both[i] = 0; // nothing counted follows padding
      if ((targets[i] ?? 0) < 0) targets[i] = ignore;
    }
    this.model.runtime.write(ids, both);
    await plan.run();
  }

  private async compiled(pass: Pass, batch: number, T: number, summed: boolean): Promise<Compiled> {
    const shape = `${batch}x${T}`;
    let ids = this.#ids.get(shape);
    if (!ids) {
      ids = this.model.runtime.tensor([2, batch, T], 'i32', 'ids and targets');
      this.#ids.set(shape, ids);
      await this.reserve(ids);
    }
    const key = `${pass} ${shape}${summed ? ' summed' : ''}`;
    let entry = this.#plans.get(key);
    if (!entry) {
      entry = compile(this.model.runtime, this.graph(pass, ids, summed), [], this.#arena);
      this.#plans.set(key, entry);
      entry.catch(() => this.#plans.delete(key)); // memory may be free again the next time
    }
    return { ids, plan: await entry };
  }

  /** Makes room for all passes over batches of a shape, so that the arena, most of all memory, is there only once. */
  private async reserve(ids: Tensor): Promise<void> {
    const bytes = Math.max(...(['first', 'more'] as const).map((pass) => arenaBytes(this.graph(pass, ids))));
    if (bytes <= this.#arena.bytes) return;
    for (const plan of this.#plans.values()) (await plan).dispose();
    this.#plans.clear();
    this.#arena.dispose();
    try {
      this.#arena.buffer(bytes);
    } catch (cause) {
      if (!(cause instanceof OutOfMemoryError)) throw cause;
      const hint = "Use recompute 'layer', or smaller batches and more of them a step.";
      throw new OutOfMemoryError(`${cause.message} ${hint}`, { cause });
    }
  }

  /** What is recomputed for batches of a shape: no bit depends on it. */
  private levelFor(ids: Tensor): Recompute {
    const { recompute: wanted, model } = this;
    if (wanted !== 'auto') return wanted;
    const info = model.runtime.describe();
    if (!isCuda(info)) return 'none';
    const shape = ids.shape.join();
    const known = this.#levels.get(shape);
    if (known) return known;
    const free = 0.95 * info.freeBytes + this.#arena.bytes;
    const fits = (again: 'none' | 'cheap') =>
      arenaBytes(this.graph('first', ids, false, again)) < Math.min(free, MEMORY_SHARE[again] * info.memoryBytes);
    const level = (['none', 'cheap'] as const).find(fits) ?? 'layer';
    this.#levels.set(shape, level);
    return level;
  }

  /** @internal Records a pass over (2, batch, T) ids; `summed`: with loss and gradients summed over the ranks. */
  graph(pass: Pass, ids: Tensor, summed = false, again = this.levelFor(ids)): Graph {
    const { model, precision } = this;
    const [, batch = 0, T = 0] = ids.shape;
    const rows = trainedRows(this.model.config, T);
    const inputs = ids.slice(0).reshape(batch, T);
    const targets = ids
      .slice(1)
      .reshape(batch * T)
      .slice(0, batch * rows)
      .reshape(batch, rows);
    const g = new Graph();
    // Here rather than after the update: whoever writes to the weights between two steps is heard.
    if (pass !== 'more') this.refreshCopies(g);
    const activations = precision;
    const { architecture } = model;
    const x = architecture.backbone(g, model.config, this.#weights, inputs, {
      differentiable: pass !== 'loss',
      recompute: pass === 'loss' ? 'none' : again,
      activations,
    });
    const { loss } = g.scope('loss', () =>
      crossEntropy(
        g,
        architecture.head(g, model.config, this.#weights, x, { activations }),
        targets,
        this.#options.ignore,
      ),
    );
    const total = this.#report.slice(LOSS);
    const counted = this.#rank ? mul(g, loss, this.#dloss) : loss;
    g.op('copy', { y: total }, { x: pass === 'more' ? add(g, total, counted) : counted });
    if (pass === 'loss') return g;
    if (summed) sumOverRanks(g, this.#report.slice(LOSS, 2));
    const backward = g.nodes.length;
    grad(g, loss, this.#dloss, this.#gradients, pass === 'more');
    recompute(g, backward);
    if (summed) reduceGradients(g, this.#buckets);
    return g;
  }

  private refreshCopies(g: Graph): void {
    for (const [name, copy] of this.#weights) {
      const master = this.model.weights.get(name);
      if (master && copy !== master) g.scope(name, () => g.op('copy', { y: copy }, { x: master }));
    }
  }

  private update(microBatches: number): Promise<Plan> {
    let entry = this.#updates.get(microBatches);
    if (!entry) {
      entry = this.buildUpdate(microBatches);
      this.#updates.set(microBatches, entry);
    }
    return entry;
  }

  private buildUpdate(microBatches: number): Promise<Plan> {
    const { weights, runtime } = this.model;
    const { betas, eps, clip } = this.#options;
    const g = new Graph();
    const scale = 1 / (microBatches * this.world);
    const norm = globalNorm(g, [...this.#gradients.values()], this.#report.slice(NORM), scale);
    for (const [name, param] of weights) {
      const m = this.#m.get(name);
      const v = this.#v.get(name);
      const gradient = this.#gradients.get(this.#weights.get(name) ?? param);
      if (!m || !v || !gradient) continue;
      const weightDecay = checkNumber('createTrainer', `weightDecay of ${name}`, this.#decay(name, param.shape), {
        min: 0,
      });
      g.scope(name, () =>
        adamw(
          g,
          { param, m, v, grad: gradient, scalars: this.#scalars, norm },
          { beta1: betas[0], beta2: betas[1], eps, weightDecay, clip, scale },
        ),
      );
    }
    return compile(runtime, g);
  }
}
