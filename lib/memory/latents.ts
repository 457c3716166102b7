// Blocks of latents over caches (PerceiverAR, docs/baselines.md): keys and values of the whole text for one layer, those of the
// block's latents for all others, and what the latents were when they entered the block, from which the next one begins.
import type { Device } from '../device.ts';
import { expected, ModelFormatError } from '../errors.ts';
import type { Graph } from '../graph.ts';
import type { ForwardOptions, MemoryOptions, Weights } from '../models/architecture.ts';
import { cast } from '../ops/shape.ts';
import type { Tensor } from '../tensor.ts';
import { CacheMemory, type CacheState, cacheFloats } from './cache.ts';
import type { Memory, Passage, RunPlan, Trail } from './memory.ts';

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
  /** All others, over the block's latents. Left out: only the context and, with `full`, `y` are written. */
  readonly latents?: CacheState;
  /** The ids fill whole blocks behind one that is full, and in `y` so many rows lie before its latents. */
  readonly full?: number;
  /** (B, at least N, D) f32: latents after cross-attention; those of the block, behind the last ones before it. */
  readonly y: Tensor;
  /** (B) i32: how many these are. */
  readonly rows: Tensor;
}

/** One with the caches of all layers. */
export type BlockState = LatentState & Required<Pick<LatentState, 'latents'>>;

/** Records how latents (B, L, D), the last of the text, are read by the layers over the block; `latents.length` is 0. */
export type Reread = (
  g: Graph,
  weights: Weights,
  state: BlockState,
  latents: Tensor,
  options: Pick<ForwardOptions, 'activations'>,
) => void;

/** Blocks of all sequences in one run: attention on a GPU takes at most 65535 heads. */
const MOST_BLOCKS = 512;

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
  readonly period = 1;
  readonly singles = 0;
  readonly emptyFloats = 0;
  readonly #device: Device;
  readonly #shape: LatentShape;
  readonly #batch: number;
  readonly #reread: Reread;
  readonly #context: CacheMemory;
  readonly #latents: CacheMemory;
  readonly #y: Tensor;
  readonly #rows: Tensor;
  /** (B) i32 */
  readonly #zero: Tensor;
  /** Most latents before the block that are kept for going back over its edge. */
  readonly #mostBefore: number;
  /** Of each sequence: such latents. */
  readonly #before: number[];
  /** The caches of the layers over the block are not those of its latents: these must read them again, or the next block's. */
  #stale = false;
  /** Plans over the caches are not told yet that these lie elsewhere. */
  #moved = false;

  constructor(device: Device, shape: LatentShape, options: MemoryOptions, reread: Reread) {
    const { batch, dtype, mostVerified } = options;
    const { layers, columns, width, latents, stride } = shape;
    this.#device = device;
    this.#shape = shape;
    this.#batch = batch;
    this.#reread = reread;
    this.#context = new CacheMemory(device, { layers: 1, columns }, batch, dtype, mostVerified);
    this.#latents = new CacheMemory(device, { layers, columns }, batch, dtype, mostVerified);
    this.#mostBefore = batch === 1 ? stride + mostVerified : 0;
    this.#before = new Array<number>(batch).fill(0);
    this.#y = device.tensor([batch, this.#mostBefore + latents, width], 'f32', 'latents');
    this.#rows = device.tensor([batch], 'i32', 'rows');
    this.#zero = device.tensor([batch], 'i32', 'zero');
  }

  get state(): BlockState {
    return { context: this.#context.state, latents: this.#latents.state, y: this.#y, rows: this.#rows };
  }
  get room(): number {
    return this.#context.room;
  }
  /** Ids that the first sequence has read. */
  get length(): number {
    return this.#context.lengthOf(0);
  }
  /** Of the sequence whose block, the next one where it is full, is full first. */
  get stretch(): number {
    const { latents, stride } = this.#shape;
    const left = (held: number) => (held === latents ? stride : latents - held);
    return Math.min(...this.#sequences().map((b) => left(this.#held(b))));
  }

  /** Of the latents, that is: there are never more than ids. */
  get longest(): number {
    return this.#latents.longest;
  }
  async reserve(steps: number): Promise<boolean> {
    const held = this.longest;
    // Remembered, for the second may find no memory after the first has moved.
    this.#moved = (await this.#context.reserve(steps)) || this.#moved;
    this.#moved = (await this.#latents.reserve(Math.min(steps, this.#shape.latents - held))) || this.#moved;
    const moved = this.#moved;
    this.#moved = false;
    return moved;
  }

  /** Begins the next block of every sequence whose block is full, or fills the caches of one after going back. */
  async prepare(run: RunPlan): Promise<void> {
    const { latents, stride } = this.#shape;
    if (this.#stale && this.#held(0) < latents) {
      await this.#readAgain(run, { first: 0, count: 1, before: this.#before[0] ?? 0, drop: 0, held: this.#held(0) });
      this.#stale = false;
      return;
    }
    const full = this.#sequences().filter((b) => this.#held(b) === latents);
    // Where all of many are: in one plan, since all of their rows begin with the block.
    const together = full.length === this.#batch;
    const groups = together ? [{ first: 0, count: this.#batch }] : full.map((b) => ({ first: b, count: 1 }));
    const held = latents - stride;
    for (const { first, count } of groups) {
      const known = (this.#before[first] ?? 0) + stride;
      const before = Math.min(known, this.#mostBefore);
      await this.#readAgain(run, { first, count, before, drop: known - before, held });
      for (let b = first; b < first + count; b++) this.#place(b, before, held);
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
  get skipping(): Passage {
    const state = (): LatentState => ({ context: this.#context.state, y: this.#y, rows: this.#rows });
    return { key: '', state };
  }
  skipped(steps: number): void {
    this.#context.advanced(steps);
    for (const b of this.#sequences()) this.#place(b, 0, 0);
  }

  /** Whole blocks, where those of all sequences are full: they need no more of what came before than latents and context. */
  spannable(steps: number, rows: number): number {
    const { latents, stride } = this.#shape;
    if (this.#sequences().some((b) => this.#held(b) < latents)) return 0;
    const most = Math.min((steps - 1) / stride, Math.min(rows / latents, MOST_BLOCKS) / this.#batch);
    // A power of 2, so that there are few plans. One block is read through the caches.
    return most < 2 ? 0 : stride * 2 ** Math.floor(Math.log2(most));
  }
  get spanning(): Passage {
    const full = this.#before[0] ?? 0;
    const state = (): LatentState => ({ context: this.#context.state, y: this.#y, rows: this.#rows, full });
    return { key: `behind ${full}`, state };
  }
  spanned(steps: number): void {
    this.#context.advanced(steps);
    for (const b of this.#sequences()) this.#place(b, 0, this.#shape.latents);
    this.#stale = true;
  }

  async clear(): Promise<void> {
    await this.#context.clear();
    await this.#latents.clear();
    for (const b of this.#sequences()) this.#place(b, 0, 0);
  }
  leave(b: number): void {
    this.#context.leave(b);
    this.#place(b, 0, 0);
  }
  /** Goes back to where the only sequence had read so many ids: over no more of them than a verify pass reads. */
  moveTo(read: number): void {
    const block = this.#context.lengthOf(0) - this.#held(0);
    const first = Math.min(block, this.#firstLatent(read));
    const before = (this.#before[0] ?? 0) - (block - first);
    if (before < 0)
      throw new Error(`latents: expected those from ${first} on to be kept, they are from ${first - before}.`);
    const stale = this.#stale || first < block;
    this.#context.moveTo(0, read);
    this.#place(0, before, read - first);
    this.#stale = stale;
  }

  read(b: number): Float32Array {
    const read = this.#context.lengthOf(b);
    const held = this.#held(b);
    if (this.#stale) throw new Error('latents: expected their caches to be filled.');
    const out = new Float32Array(latentFloats(this.#shape, read));
    if (read === 0) return out;
    const context = this.#context.read(b);
    out[0] = held;
    out.set(context, 1);
    let at = 1 + context.length;
    if (held > 0) out.set(this.#device.read(this.#blockOf(b, held)) as Float32Array, at);
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
    this.#place(b, 0, 0);
    this.#context.write(b, data.subarray(Math.min(1, data.length), context));
    if (held > 0) this.#device.write(this.#blockOf(b, held), data.subarray(context, latents));
    this.#latents.write(b, data.subarray(latents, latents + cacheFloats({ layers, columns }, held)));
    this.#place(b, 0, held);
  }
  stepsIn(data: Float32Array): number {
    if (data.length === 0) return 0;
    const { latents, columns } = this.#shape;
    const whole = latentFloats(this.#shape, latents);
    const each = cacheFloats({ layers: 1, columns }, 1);
    if (data.length >= whole) return latents + (data.length - whole) / each;
    return (data.length - 1) / (each + latentColumns(this.#shape));
  }

  reading(): Passage {
    return { key: '', state: () => this.state };
  }
  /** The ids of such a pass must fit the block. */
  verifying(steps: number): Passage {
    const [context, latents] = [this.#context.verifying(steps), this.#latents.verifying(steps)];
    const state = () => ({ ...this.state, context: context.state(), latents: latents.state() });
    return { key: '', state };
  }
  async accept(steps: number): Promise<void> {
    await this.#context.accept(steps);
    await this.#latents.accept(steps);
    this.#place(0, this.#before[0] ?? 0, this.#held(0));
  }

  dispose(): void {
    this.#context.dispose();
    this.#latents.dispose();
    for (const t of [this.#y, this.#rows, this.#zero]) this.#device.release(t);
  }

  #sequences(): number[] {
    return Array.from({ length: this.#batch }, (_, b) => b);
  }

  #held(b: number): number {
    return this.#latents.lengthOf(b);
  }
  /** Sequence `b` has so many latents in its block, and before it. */
  #place(b: number, before: number, held: number): void {
    this.#stale = false;
    this.#before[b] = before;
    this.#latents.moveTo(b, held);
    this.#device.write(
      this.#rows,
      Int32Array.from(this.#before, (rows, i) => rows + this.#held(i)),
    );
  }

  /** The first `count` latents of the block of sequence `b`: (count, D). */
  #blockOf(b: number, count: number): Tensor {
    const [, rows = 0, width = 0] = this.#y.shape;
    return this.#y.reshape(this.#batch * rows, width).slice(b * rows + (this.#before[b] ?? 0), count);
  }

  /**
   * Drops the first `drop` rows of some sequences, and lets the layers over the block read `held` of the others, those behind
   * `before`.
   */
  async #readAgain(run: RunPlan, { first, count, before, drop, held }: Again): Promise<void> {
    if (before + held === 0) return;
    const key = `latents ${[first, count, before, drop, held]}`;
    await run(key, count * held, (g, w, options) => {
      const { width } = this.#shape;
      const rows = this.#y.slice(first, count);
      const all = rows.reshape(count, rows.elems / count);
      const kept = cast(g, all.columns(drop * width, (before + held) * width), 'f32');
      if (drop > 0) g.op('copy', { y: all.columns(0, kept.cols) }, { x: kept });
      if (held === 0) return;
      const latents = kept.columns(before * width, held * width).reshape(count, held, width);
      this.#reread(g, w, this.#emptied(first, count), latents, options);
    });
  }

  /** The state of `count` sequences from `first` on, as if their blocks held nothing. */
  #emptied(first: number, count: number): BlockState {
    const { context, latents, y, rows } = this.state;
    const own = (t: Tensor) => t.slice(first, count);
    const layers = latents.layers.map(({ keys, values }) => ({ keys: own(keys), values: own(values) }));
    return {
      context: { ...context, length: own(context.length) },
      latents: { layers, length: own(this.#zero) },
      y: own(y),
      rows: own(rows),
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

/** Which sequences read which of their latents again. */
interface Again {
  first: number;
  count: number;
  before: number;
  drop: number;
  held: number;
}

/** Steps of one sequence: going back over the edge of a block, its layers read the latents before it again. */
export class LatentTrail implements Trail {
  readonly #memory: LatentMemory;
  #start = 0;

  /** @param memory of one sequence */
  constructor(memory: LatentMemory) {
    this.#memory = memory;
  }

  begin(): void {
    this.#start = this.#memory.length;
  }
  at(position: number): Passage {
    this.#memory.moveTo(this.#start + position);
    return this.#memory.reading();
  }
  dispose(): void {}
}
