// The plans of a session: what reads a chunk of ids, verifies drafted ones, decodes. Each is compiled on first use.
import type { BackendName, Device } from './device.ts';
import { Graph } from './graph.ts';
import type { MambaConfig } from './models/config.ts';
import {
  decayRates,
  decayRatesName,
  type ForwardOptions,
  type LayerState,
  mambaBackbone,
  mambaHead,
  matrixNames,
  type Weights,
} from './models/mamba.ts';
import { crossEntropy } from './ops/cross-entropy.ts';
import { BLOCK_ROWS } from './ops/mamba-block.ts';
import { SAMPLE_COLUMNS, sample } from './ops/sample.ts';
import { Arena, compile, type Plan } from './plan.ts';
import type { DType, Tensor } from './tensor.ts';

/**
 * Steps that one plan reads at most, and the smaller chunks that make up any other length, since the state carries over.
 * A GPU needs thousands of rows to be full; all rows of a plan together are no more than its largest chunk.
 */
const CHUNKS: Readonly<Record<BackendName, readonly number[]>> = {
  ref: [512, 64, 8, 1],
  cpu: [512, 64, 8, 1],
  cuda: [8192, 2048, 512, 128, 32, 8, 1],
};

/** How many independent sequences of a length a session should read together for its largest plan to be full, up to 64. */
export function sequencesAtOnce(backend: BackendName, length: number): number {
  const [rows = 1, ...smaller] = CHUNKS[backend];
  const chunk = [rows, ...smaller].find((size) => size <= length) ?? 1;
  return Math.min(64, Math.floor(rows / chunk));
}

/** Splits a length into [start, size] chunks, large ones first. */
export function* chunksOf(length: number, sizes: readonly number[]): Generator<[start: number, size: number]> {
  let at = 0;
  for (const size of sizes) {
    for (; length - at >= size; at += size) yield [at, size];
  }
}

/** What a chunk gives back beside the updated state. */
export type ChunkOutput = 'state' | 'logits' | 'nll';

export interface ChunkPlan {
  plan: Plan;
  ids: Tensor;
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

const withDecayRates = new WeakMap<Weights, Promise<Weights>>();

/** Weights that do not change, with what every plan needs of them computed once; others as they are. */
function prepared(device: Device, config: MambaConfig, weights: Weights): Promise<Weights> {
  const found = withDecayRates.get(weights);
  if (found) return found;
  const prepare = async () => {
    const changing = [...weights].some(([name, t]) => name.endsWith('.A_log') && !t.frozen);
    if (changing) return weights;
    const all = new Map(weights);
    const g = new Graph();
    for (let l = 0; l < config.layers; l++) {
      const name = decayRatesName(l);
      const made = decayRates(g, weights, l);
      const A = device.tensor(made.shape, 'f32', name, true);
      g.op('copy', { y: A }, { x: made });
      all.set(name, A);
    }
    using plan = await compile(device, g);
    await plan.run();
    return all;
  };
  const made = prepare();
  withDecayRates.set(weights, made);
  return made;
}

/** Plans over one state of `batch` sequences. They share an arena, since only one of them runs at a time. */
export class SessionPlans {
  /** Chunks that lengths are made of, large ones first. */
  readonly sizes: readonly number[];
  readonly #device: Device;
  readonly #config: MambaConfig;
  readonly #weights: Weights;
  readonly #batch: number;
  readonly #layers: readonly LayerState[];
  readonly #activations: 'bf16' | undefined;
  readonly #arena: Arena;
  readonly #owned: Tensor[] = [];
  readonly #made = new Map<string, Promise<{ plan: Plan }>>();

  constructor(device: Device, config: MambaConfig, weights: Weights, batch: number, layers: readonly LayerState[]) {
    this.#device = device;
    this.#config = config;
    this.#weights = weights;
    this.#batch = batch;
    this.#layers = layers;
    this.#arena = new Arena(device);
    const { backend } = device.info;
    const [rows = 1, ...smaller] = CHUNKS[backend];
    this.sizes = [rows, ...smaller].filter((size) => size === 1 || size * batch <= rows);
    const matrices = matrixNames(config).map((name) => weights.get(name)?.dtype);
    this.#activations = backend === 'cuda' && matrices.every((dtype) => dtype !== 'f32') ? 'bf16' : undefined;
  }

  /** Reads `size` ids of every sequence. */
  chunk(output: ChunkOutput, size: number): Promise<ChunkPlan> {
    return this.once(`${output} ${size}`, async () => {
      const ids = this.tensor('ids', [this.#batch, size], 'i32');
      const g = new Graph();
      const x = await this.backbone(g, ids, this.forward(this.#batch * size));
      if (output === 'state') return { plan: await this.compile(g), ids };
      const logits = await this.head(g, x);
      if (output === 'logits') return { plan: await this.compile(g, logits), ids, output: logits };
      const targets = this.tensor('targets', [this.#batch, size], 'i32');
      const { nll } = crossEntropy(g, logits, targets);
      return { plan: await this.compile(g, nll), ids, targets, output: nll };
    });
  }

  /** Reads `steps` ids of one sequence in a single pass; `layers` say where the states in between are kept. */
  verify(steps: number, penalty: boolean, biased: boolean, layers: () => readonly LayerState[]): Promise<VerifyPlan> {
    return this.once(`verify ${steps} ${penalty} ${biased}`, async () => {
      const ids = this.tensor('ids', [1, steps], 'i32');
      const draw = this.drawTensors(steps, penalty, biased);
      const g = new Graph();
      const x = await this.backbone(g, ids, { ...this.forward(steps), state: layers() });
      const logits = await this.head(g, x.reshape(steps, this.#config.dModel));
      sample(g, { ...draw, logits });
      return { plan: await this.compile(g, logits), ids, logits, draw };
    });
  }

  /** Reads one id of one sequence; `layers` say which state it reads from and which it leaves; `name` tells plans apart. */
  step(name: string, layers: () => readonly LayerState[]): Promise<StepPlan> {
    return this.once(`step ${name}`, async () => {
      const ids = this.tensor('ids', [1, 1], 'i32');
      const g = new Graph();
      const x = await this.backbone(g, ids, { ...this.forward(1), state: layers() });
      const logits = await this.head(g, x.reshape(1, this.#config.dModel));
      return { plan: await this.compile(g, logits), ids, logits };
    });
  }

  /** Writes `parts` one after another to `to`; `name` tells such plans apart. */
  join(name: string, to: Tensor, parts: () => readonly Tensor[]): Promise<{ plan: Plan }> {
    return this.once(name, async () => {
      const g = new Graph();
      const rows = parts().map((t) => t.reshape(1, t.elems));
      g.op('concat', { y: to.reshape(1, to.elems) }, { parts_: rows });
      return { plan: await this.compile(g) };
    });
  }

  /** Reads the last id of every sequence and draws the next. */
  decode(penalty: boolean, biased: boolean): Promise<DecodePlan> {
    return this.once(`decode ${penalty} ${biased}`, async () => {
      const B = this.#batch;
      const draw = this.drawTensors(B, penalty, biased);
      const g = new Graph();
      const x = await this.backbone(g, draw.ids.reshape(B, 1), this.forward(B));
      const logits = await this.head(g, x.reshape(B, this.#config.dModel));
      // The drawn ids are the next step's input: a run of steps never leaves native code.
      sample(g, { ...draw, logits });
      return { ...draw, plan: await this.compile(g) };
    });
  }

  private drawTensors(rows: number, penalty: boolean, biased: boolean): DrawTensors {
    const { vocab } = this.#config;
    return {
      ids: this.tensor('ids', [rows], 'i32'),
      params: this.tensor('params', [rows, SAMPLE_COLUMNS], 'f32'),
      rng: this.tensor('rng', [rows, 4], 'i32'),
      seen: penalty ? this.tensor('seen', [rows, vocab], 'u8') : undefined,
      bias: biased ? this.tensor('bias', [rows, vocab], 'f32') : undefined,
      logprob: this.tensor('logprob', [rows], 'f32'),
    };
  }

  /** A zero-filled tensor that lives as long as the plans. */
  tensor(name: string, shape: readonly number[], dtype: DType): Tensor {
    const t = this.#device.tensor(shape, dtype, name);
    this.#owned.push(t);
    return t;
  }

  dispose(): void {
    for (const entry of this.#made.values()) {
      entry.then(
        ({ plan }) => plan.dispose(),
        () => undefined,
      );
    }
    this.#arena.dispose();
    for (const t of this.#owned) this.#device.release(t);
  }

  private once<T extends { plan: Plan }>(key: string, make: () => Promise<T>): Promise<T> {
    let entry = this.#made.get(key) as Promise<T> | undefined;
    if (!entry) {
      entry = make();
      this.#made.set(key, entry);
      // Memory that was short may be there the next time.
      entry.catch(() => this.#made.delete(key));
    }
    return entry;
  }

  private compile(g: Graph, ...outputs: Tensor[]): Promise<Plan> {
    return compile(this.#device, g, outputs, this.#arena);
  }

  private async backbone(g: Graph, ids: Tensor, options: ForwardOptions): Promise<Tensor> {
    const weights = await prepared(this.#device, this.#config, this.#weights);
    return mambaBackbone(g, this.#config, weights, ids, options);
  }

  private async head(g: Graph, x: Tensor): Promise<Tensor> {
    return mambaHead(g, this.#config, this.#weights, x, this.forward(x.rows));
  }

  /** How `rows` rows run: few of them through fused blocks, whose activations are f32. */
  private forward(rows: number): ForwardOptions {
    const blockRows = BLOCK_ROWS[this.#device.info.backend];
    return { state: this.#layers, blockRows, activations: rows > blockRows ? this.#activations : undefined };
  }
}
