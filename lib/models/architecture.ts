import type { Device } from '../device.ts';
import type { Graph } from '../graph.ts';
import type { Memory, Trail } from '../memory/memory.ts';
import type { CacheDType } from '../memory/region.ts';
import type { Tensor } from '../tensor.ts';
import type { ConfigDialect } from '../weights/config-json.ts';
import type { StoredTensor } from '../weights/stored-tensor.ts';
import type { ParamSpec } from './params.ts';

/** Weights by canonical name; an int8 weight has its row scales beside it under `<name>.scale`. */
export type Weights = ReadonlyMap<string, Tensor>;

/** The weight of a name, which the architecture's own parameters say is there. */
export function weightOf(w: Weights, name: string): Tensor {
  const t = w.get(name);
  if (!t) throw new Error(`model: no weight named ${name}`);
  return t;
}

/** Which activations of a layer are computed again in the backward pass instead of being kept for it. */
export const RECOMPUTE = ['none', 'cheap', 'layer'] as const;
/**
 * - 'none': everything is kept
 * - 'cheap': everything but the wide products, and what only these read, runs twice
 * - 'layer': only the inputs of the layers are kept
 */
export type Recompute = (typeof RECOMPUTE)[number];

/** Records parts of a layer as `recompute` has it: wide products by `costly`, everything else by `cheap`. */
export function recomputing(g: Graph, recompute: Recompute) {
  const when = (again: boolean) => (again ? <T>(fn: () => T): T => g.recomputed(fn) : <T>(fn: () => T): T => fn());
  return { costly: when(recompute === 'layer'), cheap: when(recompute !== 'none') };
}

/** How a model is recorded. S: what a sequence carries from id to id. */
export interface ForwardOptions<S = unknown> {
  /** Carried and updated in place; left out: every sequence starts from nothing and ends nowhere (training). */
  state?: S;
  /** Keep what gradients need. */
  differentiable?: boolean;
  /** Of all that is inside a block; the residual stream stays f32. Default: the residual stream's own. */
  activations?: 'f32' | 'bf16' | undefined;
  /** Default 'none'. */
  recompute?: Recompute;
  /** (B) i32: ids of each sequence that count, the first ones; the others leave no trace in the state. Where `pads`. */
  lengths?: Tensor | undefined;
  /** Most rows (B * T) that go through a fused block, where there is one and a state is carried. */
  blockRows?: number;
  /** Most sequences of which a single step does so. Default: `blockRows`. */
  batchRows?: number;
}

/** What the configurations of all architectures have. */
export interface BaseConfig {
  /** Number of blocks. */
  readonly layers: number;
  /** Width of the residual stream (D). */
  readonly dModel: number;
  /** Classes: 256 for a byte model. */
  readonly vocab: number;
  /** Whether the head shares the embedding's weights. */
  readonly tied: boolean;
  readonly normEps: number;
}

/** What a checkpoint is, as read from its tensors and its config.json. */
export interface Inferred<C> {
  config: C;
  warnings: string[];
}

/**
 * Everything that tells one architecture from another. The rest of the package (sessions, training, drafting, files, the
 * command line) reads a model through this alone.
 */
export interface Architecture<C extends BaseConfig = BaseConfig> {
  /** `architecture` of a configuration. */
  readonly name: string;

  /** Fills in what was left out. @throws TypeError or RangeError naming a wrong field */
  complete(config: Partial<C>): C;
  /** What differs from the defaults where a tokenizer makes the ids. */
  readonly subword: Partial<C>;

  /** Parameters in the order of the file, with their initialisation. */
  params(config: C): ParamSpec[];
  /** Names of the weights that matrix products read: what a lower precision makes smaller and faster. */
  matrices(config: C): string[];
  /** Names of weights that may be stored as bf16 or int8 ... */
  readonly narrowable: RegExp;
  /** ... and of those that int8 pays for. */
  readonly int8: RegExp;

  /** Few rows go through fused blocks, which compute in f32 between products; others round few rows as they round many. */
  readonly fuses?: true;
  /** Takes `lengths`. */
  readonly pads?: true;
  /** What all plans need of weights that do not change: names of tensors of their own, and what computes them. */
  derived?(g: Graph, config: C, weights: Weights): Map<string, Tensor>;
  /** The residual stream before the final norm: ids (B, T) to (B, T, D); without a state, to its trained rows alone. */
  backbone(g: Graph, config: C, weights: Weights, ids: Tensor, options?: ForwardOptions): Tensor;
  /** Rows of a window of `window` ids that training learns from: the last so many. Left out: all. */
  trainedRows?(config: C, window: number): number;
  /** Final norm and head: (..., D) to logits (..., V) of x's dtype; `activations` of what lies between them. */
  head(g: Graph, config: C, weights: Weights, x: Tensor, options?: Pick<ForwardOptions, 'activations'>): Tensor;

  /** What `batch` sequences carry from id to id; a verify pass is at most `mostVerified` ids. */
  memory(device: Device, config: C, options: MemoryOptions): Memory;
  /** Up to `slots` states of one sequence, beginning with what `memory` holds. */
  trail(device: Device, config: C, slots: number, memory: Memory): Trail;
  readonly state: StateFormat<C>;

  /**
   * Floating-point operations of the forward pass for one id, on average over windows of `window` ids; a multiplication and
   * an addition are two. Where only some rows are trained on: of the window, for each of these.
   */
  flops(config: C, window: number): number;

  /** "a Mamba with 2 layers of 64, RMSNorm", for messages. */
  words(config: C): string;
  /**
   * The sizes of the model that some tensors (canonical names) are, held against config.json if there is one. Which
   * tensors there must be is checked by `params` then.
   * @throws ModelFormatError naming both values of a contradiction
   */
  infer(
    where: string,
    tensors: ReadonlyMap<string, StoredTensor>,
    configJson: Record<string, unknown> | undefined,
  ): Promise<Inferred<C>>;
  /** config.json of a model. @throws ModelFormatError where the dialect cannot express it */
  toJson(config: C, dialect: ConfigDialect): Record<string, unknown>;
}

export interface MemoryOptions {
  batch: number;
  /** Most ids of a verify pass. */
  mostVerified: number;
  /** Of keys and values. */
  dtype: CacheDType;
}

/** States on the host: `State.data`, and what `State.toBytes` writes in front of it. */
export interface StateFormat<C> {
  /** Four letters that a serialised state begins with. */
  readonly magic: string;
  /** What the numbers of `signature` are, in words. */
  readonly names: string;
  /** Five sizes: states move only between models that agree on them. */
  signature(config: C): number[];
  /** Floats of a state that has read so many ids. */
  floats(config: C, read: number): number;
}
