import { checkFunction, checkInteger, checkNumber, checkOptions, describe, expected } from './errors.ts';
import { grad } from './grad.ts';
import { Graph } from './graph.ts';
import type { Model } from './model.ts';
import { mambaBackbone, mambaHead } from './models/mamba.ts';
import { adamw, globalNorm } from './ops/adamw.ts';
import { crossEntropy } from './ops/cross-entropy.ts';
import { compile, type Plan } from './plan.ts';
import type { Tensor } from './tensor.ts';
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
}

const KEYS = ['lr', 'betas', 'eps', 'weightDecay', 'clip', 'schedule', 'warmup', 'steps', 'minLr', 'ignore'];

export interface Batch {
  /**
   * batch x (T + 1) bytes or ids, row by row: T inputs and, one further on, T targets. -1, in an Int32Array, is padding
   * at the end of a row: never counted as a target.
   */
  bytes: Uint8Array | Int32Array;
  batch: number;
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

interface Compiled {
  ids: Tensor;
  targets: Tensor;
  loss: Tensor;
  /** Overwrites, then adds to the gradients. */
  first: Plan;
  more: Plan | undefined;
}

interface Update {
  plan: Plan;
  norm: Tensor;
}

/**
 * A trainer over a trainable model: AdamW with global-norm clipping; forward, backward and update run as native plans.
 * @throws TypeError or RangeError naming a wrong option
 */
export async function createTrainer(model: Model, options: TrainerOptions = {}): Promise<Trainer> {
  const where = 'createTrainer';
  checkOptions(where, options, KEYS);
  model.assertOpen(where);
  if (!model.trainable) {
    throw new TypeError(
      expected(where, 'the model', 'be trainable', 'one with frozen weights', 'Load it with { trainable: true }.'),
    );
  }
  return new Trainer(model, options);
}

export class Trainer {
  readonly model: Model;
  readonly #options: Required<Omit<TrainerOptions, 'steps' | 'weightDecay'>> & { steps: number | undefined };
  readonly #decay: (name: string, shape: readonly number[]) => number;
  readonly #gradients = new Map<Tensor, Tensor>();
  readonly #m = new Map<string, Tensor>();
  readonly #v = new Map<string, Tensor>();
  readonly #scalars: Tensor;
  readonly #dloss: Tensor;
  readonly #plans = new Map<string, Promise<Compiled>>();
  readonly #updates = new Map<number, Promise<Update>>();
  #step = 0;
  #busy = false;

  /** @internal use createTrainer */
  constructor(model: Model, options: TrainerOptions) {
    const where = 'createTrainer';
    const [beta1, beta2] = options.betas ?? [0.9, 0.95];
    const rate = (name: string, value: unknown) => checkNumber(where, name, value, { min: 0, below: 1 });
    const decay = options.weightDecay ?? 0;
    if (typeof decay !== 'function') checkNumber(where, 'weightDecay', decay, { min: 0 });
    else checkFunction(where, 'weightDecay', decay);
    this.model = model;
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
    const device = model.runtime;
    this.#scalars = device.tensor([2], 'f32', 'scalars');
    this.#dloss = device.tensorFrom(Float32Array.of(1), [1], 'f32', 'dloss');
    for (const [name, t] of model.weights) {
      this.#gradients.set(t, device.tensor(t.shape, 'f32', `d ${name}`));
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
    this.model.assertOpen(where);
    if (this.#busy) throw new Error(expected(where, 'the trainer', 'be free', 'one that is still stepping'));
    const batches = (Array.isArray(input) ? input : [input]) as readonly Batch[];
    if (batches.length === 0) throw new RangeError(expected(where, 'batches', 'hold at least one', 'none'));
    const lengths = batches.map((b) => this.checkBatch(where, b));
    this.#busy = true;
    try {
      let loss = 0;
      for (const [i, b] of batches.entries()) loss += await this.accumulate(b, lengths[i] ?? 0, i > 0);
      const update = await this.update(batches.length);
      const step = this.#step + 1;
      const lr = this.#options.lr * scheduleFactor(where, this.#options, step);
      this.model.runtime.write(this.#scalars, Float32Array.of(lr, step));
      await update.plan.run();
      this.#step = step;
      const gradNorm = update.plan.read(update.norm)[0] ?? Number.NaN;
      return { loss: loss / batches.length, gradNorm, lr, step };
    } finally {
      this.#busy = false;
    }
  }

  /** Loss of a batch without learning from it: mean nats per byte. */
  async loss(batch: Batch): Promise<number> {
    return this.accumulate(batch, this.checkBatch('trainer.loss', batch), false);
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
    return row - 1;
  }

  /** Forward and backward of one micro-batch. */
  private async accumulate(b: Batch, T: number, add: boolean): Promise<number> {
    const compiled = await this.plans(b.batch, T, add);
    const ids = new Int32Array(b.batch * T);
    const targets = new Int32Array(b.batch * T);
    for (let r = 0; r < b.batch; r++) {
      ids.set(b.bytes.subarray(r * (T + 1), r * (T + 1) + T), r * T);
      targets.set(b.bytes.subarray(r * (T + 1) + 1, (r + 1) * (T + 1)), r * T);
    }
    const { ignore } = this.#options;
    for (let i = 0; i < ids.length; i++) {
      if ((ids[i] ?? 0) < 0) ids[i] = 0; // nothing counted follows padding
      if ((targets[i] ?? 0) < 0) targets[i] = ignore;
    }
    const device = this.model.runtime;
    device.write(compiled.ids, ids);
    device.write(compiled.targets, targets);
    const plan = add ? (compiled.more ?? compiled.first) : compiled.first;
    await plan.run();
    return (device.read(compiled.loss) as Float32Array)[0] ?? Number.NaN;
  }

  private async plans(batch: number, T: number, add: boolean): Promise<Compiled> {
    const key = `${batch}x${T}`;
    let entry = this.#plans.get(key);
    if (!entry) {
      entry = this.build(batch, T);
      this.#plans.set(key, entry);
    }
    const compiled = await entry;
    if (add && !compiled.more) compiled.more = await this.backwardPlan(compiled, true);
    return compiled;
  }

  private async build(batch: number, T: number): Promise<Compiled> {
    const device = this.model.runtime;
    const tensors = {
      ids: device.tensor([batch, T], 'i32', 'ids'),
      targets: device.tensor([batch, T], 'i32', 'targets'),
      loss: device.tensor([1], 'f32', 'loss'),
    };
    return { ...tensors, first: await this.backwardPlan(tensors, false), more: undefined };
  }

  private backwardPlan(io: { ids: Tensor; targets: Tensor; loss: Tensor }, accumulate: boolean): Promise<Plan> {
    const { config, weights, runtime } = this.model;
    const g = new Graph();
    const x = mambaBackbone(g, config, weights, io.ids, { differentiable: true });
    const { loss } = g.scope('loss', () =>
      crossEntropy(g, mambaHead(g, config, weights, x), io.targets, this.#options.ignore),
    );
    g.op('copy', { y: io.loss }, { x: loss });
    grad(g, loss, this.#dloss, this.#gradients, accumulate);
    return compile(runtime, g);
  }

  private update(microBatches: number): Promise<Update> {
    let entry = this.#updates.get(microBatches);
    if (!entry) {
      entry = this.buildUpdate(microBatches);
      this.#updates.set(microBatches, entry);
    }
    return entry;
  }

  private async buildUpdate(microBatches: number): Promise<Update> {
    const { weights, runtime } = this.model;
    const { betas, eps, clip } = this.#options;
    const g = new Graph();
    const scale = 1 / microBatches;
    const norm = globalNorm(g, [...this.#gradients.values()], scale);
    for (const [name, param] of weights) {
      const m = this.#m.get(name);
      const v = this.#v.get(name);
      const gradient = this.#gradients.get(param);
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
    return { plan: await compile(runtime, g, [norm]), norm };
  }
}
