// Blocks of latents over caches (PerceiverAR, docs/baselines.md): keys and values of the whole text for one layer, those of the
// block's latents for all others, and what the latents were when they entered the block, from which the next one begins.
import type { Device } from '../device.ts';
import { expected, ModelFormatError } from '../errors.ts';
import type { Graph } from '../graph.ts';
import type { ForwardOptions, MemoryOptions, Weights } from '../models/architecture.ts';
import type { Tensor } from '../tensor.ts';
import { CacheMemory, type CacheState, cacheFloats } from './cache.ts';
import type { Memory, RunPlan } from './memory.ts';

export interface LatentShape {
  /** Layers of self-attention. */
  readonly layers: number;
  /** Numbers that a step leaves in a cache of keys, and in one of values. */
  readonly columns: number;
  /** Of the residual stream (D). */
  readonly width: number;
  /** Most latents of a block (N). */
  readonly latents: number;
  /** Steps from the start of one block to the next (S). */
  readonly stride: number;
}

/** What reading goes on from and leaves. */
export interface LatentState {
  /** One layer, over the whole text. */
  readonly context: CacheState;
  /** All others, over the block's latents. Left out: only the context is written. */
  readonly latents?: CacheState;
  /** (B, N, D) f32: the block's latents after cross-attention, as many as `latents` holds. */
  readonly y: Tensor;
}

/** Records how the last N - S latents of full blocks begin the next ones; `latents.length` is 0. */
export type Slide = (
  g: Graph,
  weights: Weights,
  state: Required<LatentState>,
  options: Pick<ForwardOptions, 'activations'>,
) => void;

/** Floats that one latent has in a state beside its share of the context. */
function latentColumns({ layers, columns, width }: LatentShape): number {
  return width + cacheFloats({ layers, columns }, 1);
}

/**
 * Floats that `read` returns after so many ids: none at first, else how many latents the block holds, then keys and values of
 * the context, the block's latents and their keys and values, with zeros behind where a block has held more.
 */
export function latentFloats(shape: LatentShape, read: number): number {
  if (read === 0) return 0;
  const context = cacheFloats({ layers: 1, columns: shape.columns }, read);
  return 1 + context + latentColumns(shape) * Math.min(read, shape.latents);
}

/** Sequences whose blocks may be in different phases. On the host their states are f32, whatever the caches are here. */
export class LatentMemory implements Memory {
  readonly emptyFloats = 0;
  readonly #device: Device;
  readonly #shape: LatentShape;
  readonly #batch: number;
  readonly #slide: Slide;
  readonly #context: CacheMemory;
  readonly #latents: CacheMemory;
  readonly #y: Tensor;
  /** (B) i32 */
  readonly #zero: Tensor;
  /** Plans over the caches are not told yet that these lie elsewhere. */
  #moved = false;

  constructor(device: Device, shape: LatentShape, options: MemoryOptions, slide: Slide) {
    const { batch, dtype, mostVerified } = options;
    const { layers, columns, width, latents } = shape;
    this.#device = device;
    this.#shape = shape;
    this.#batch = batch;
    this.#slide = slide;
    this.#context = new CacheMemory(device, { layers: 1, columns }, batch, dtype, mostVerified);
    this.#latents = new CacheMemory(device, { layers, columns }, batch, dtype, mostVerified);
    this.#y = device.tensor([batch, latents, width], 'f32', 'latents');
    this.#zero = device.tensor([batch], 'i32', 'zero');
  }

  get state(): Required<LatentState> {
    return { context: this.#context.state, latents: this.#latents.state, y: this.#y };
  }
  get room(): number {
    return this.#context.room;
  }
  /** Of the sequence whose block, the next one where it is full, is full first. */
  get stretch(): number {
    const { latents, stride } = this.#shape;
    const left = (held: number) => (held === latents ? stride : latents - held);
    return Math.min(...this.#sequences().map((b) => left(this.#latents.lengthOf(b))));
  }

  async reserve(steps: number): Promise<boolean> {
    const held = Math.max(...this.#sequences().map((b) => this.#latents.lengthOf(b)));
    // Remembered, for the second may find no memory after the first has moved.
    this.#moved = (await this.#context.reserve(steps)) || this.#moved;
    this.#moved = (await this.#latents.reserve(Math.min(steps, this.#shape.latents - held))) || this.#moved;
    const moved = this.#moved;
    this.#moved = false;
    return moved;
  }

  /** Begins the next block of every sequence whose block is full. */
  async prepare(run: RunPlan): Promise<void> {
    const { latents, stride } = this.#shape;
    const kept = latents - stride;
    const full = this.#sequences().filter((b) => this.#latents.lengthOf(b) === latents);
    const together = full.length === this.#batch;
    const slide = (name: string, first: number, count: number) =>
      run(name, count * kept, (g, w, options) => this.#slide(g, w, this.#emptied(first, count), options));
    if (kept > 0 && together) await slide('latents', 0, this.#batch);
    for (const b of full) {
      if (kept > 0 && !together) await slide(`latents ${b}`, b, 1);
      this.#latents.moveTo(b, kept);
    }
  }

  advanced(steps: number): void {
    this.#context.advanced(steps);
    this.#latents.advanced(steps);
  }

  /** Latents of earlier blocks than that of the last id: only their keys and values are ever seen again. */
  skippable(steps: number): number {
    const at = this.#context.lengthOf(0);
    if (this.#sequences().some((b) => this.#context.lengthOf(b) !== at)) return 0;
    return Math.max(0, this.#firstLatent(at + steps - 1) - at);
  }
  get skipping(): LatentState {
    return { context: this.#context.state, y: this.#y };
  }
  skipped(steps: number): void {
    this.#context.advanced(steps);
    for (const b of this.#sequences()) this.#latents.moveTo(b, 0);
  }

  async clear(): Promise<void> {
    await this.#context.clear();
    await this.#latents.clear();
  }
  leave(b: number): void {
    this.#context.leave(b);
    this.#latents.leave(b);
  }

  read(b: number): Float32Array {
    const read = this.#context.lengthOf(b);
    const held = this.#latents.lengthOf(b);
    const out = new Float32Array(latentFloats(this.#shape, read));
    if (read === 0) return out;
    const context = this.#context.read(b);
    out[0] = held;
    out.set(context, 1);
    let at = 1 + context.length;
    if (held > 0) out.set(this.#device.read(this.#rows(b, held)) as Float32Array, at);
    at += held * this.#shape.width;
    out.set(this.#latents.read(b), at);
    return out;
  }
  readAll(): Float32Array[] {
    return this.#sequences().map((b) => this.read(b));
  }
  /** @throws ModelFormatError where the first float is not a number of latents that a block can hold there */
  write(b: number, data: Float32Array): void {
    const { columns, width, layers } = this.#shape;
    const read = this.stepsIn(data);
    const held = data[0] ?? 0;
    this.#checkHeld(read, held);
    const context = 1 + cacheFloats({ layers: 1, columns }, read);
    const latents = context + held * width;
    this.#context.write(b, data.subarray(Math.min(1, data.length), context));
    if (held > 0) this.#device.write(this.#rows(b, held), data.subarray(context, latents));
    this.#latents.write(b, data.subarray(latents, latents + cacheFloats({ layers, columns }, held)));
  }
  stepsIn(data: Float32Array): number {
    if (data.length === 0) return 0;
    const { latents, columns } = this.#shape;
    const whole = latentFloats(this.#shape, latents);
    const each = cacheFloats({ layers: 1, columns }, 1);
    if (data.length >= whole) return latents + (data.length - whole) / each;
    return (data.length - 1) / (each + latentColumns(this.#shape));
  }

  /** The ids of such a pass must fit the block. */
  verifying(steps: number): Required<LatentState> {
    return { context: this.#context.verifying(steps), latents: this.#latents.verifying(steps), y: this.#y };
  }
  beginVerify(): void {
    this.#context.beginVerify();
    this.#latents.beginVerify();
  }
  async accept(steps: number): Promise<void> {
    await this.#context.accept(steps);
    await this.#latents.accept(steps);
  }

  dispose(): void {
    this.#context.dispose();
    this.#latents.dispose();
    for (const t of [this.#y, this.#zero]) this.#device.release(t);
  }

  #sequences(): number[] {
    return Array.from({ length: this.#batch }, (_, b) => b);
  }

  /** The first `count` latents of sequence `b`: (count, D). */
  #rows(b: number, count: number): Tensor {
    const { latents, width } = this.#shape;
    return this.#y.reshape(this.#batch * latents, width).slice(b * latents, count);
  }

  /** The state of `count` sequences from `first` on, as if their blocks held nothing. */
  #emptied(first: number, count: number): Required<LatentState> {
    const { context, latents, y } = this.state;
    const own = (t: Tensor) => t.slice(first, count);
    const layers = latents.layers.map(({ keys, values }) => ({ keys: own(keys), values: own(values) }));
    return {
      context: { ...context, length: own(context.length) },
      latents: { layers, length: own(this.#zero) },
      y: own(y),
    };
  }

  /** Where the block of position `t` begins: w(t). */
  #firstLatent(t: number): number {
    const { latents, stride } = this.#shape;
    return t < latents ? 0 : stride * Math.ceil((t + 1 - latents) / stride);
  }

  #checkHeld(read: number, held: number): void {
    // Either the block of the last id, or already that of the next.
    const possible = [Math.max(0, read - 1), read].map((t) => read - this.#firstLatent(t));
    if (possible.includes(held)) return;
    const what = `be ${[...new Set(possible)].join(' or ')} after ${read} ids`;
    throw new ModelFormatError(expected('state', 'the latents of its block', what, `${held}`));
  }
}
