// Keys and values of everything read so far: a state that grows with the text. Going back is a smaller number of steps.
import type { Device } from '../device.ts';
import { expected, OutOfMemoryError } from '../errors.ts';
import { Graph } from '../graph.ts';
import { compile } from '../plan.ts';
import { dtypeBytes, type Tensor } from '../tensor.ts';
import { counted } from '../text.ts';
import type { Memory, Passage, Trail } from './memory.ts';
import { type CacheDType, readFloats, region, writeFloats } from './region.ts';

/** Sizes of a cache: `layers` pairs of keys and values with `columns` numbers a step. */
export interface CacheShape {
  readonly layers: number;
  readonly columns: number;
}

/** What attention goes on from and leaves. */
export interface CacheState {
  /** By layer (B, capacity, columns) each. */
  readonly layers: readonly { keys: Tensor; values: Tensor }[];
  /** (B) i32: steps that each sequence holds. */
  readonly length: Tensor;
  /** (T) i32: the position of each step of one sequence, where every step is to have the bits that it has alone. */
  readonly positions?: Tensor;
}

/** Floats that `read` returns after so many steps. */
export function cacheFloats({ layers, columns }: CacheShape, steps: number): number {
  return 2 * layers * columns * steps;
}

/** Capacities are multiples of so many steps. */
const BLOCK = 64;
/** What a cache has room for: of a text that is there at once, so many times its steps, and when it is full, of what it held. */
const SPARE = 9 / 8;
const GROWTH = 3 / 2;

interface Caches {
  capacity: number;
  memory: Tensor;
  layers: CacheState['layers'];
}

/** Caches of B sequences that hold different numbers of steps. On the host their states are f32, whatever they are here. */
export class CacheMemory implements Memory {
  readonly period = 1;
  readonly singles = 0;
  readonly emptyFloats = 0;
  readonly #device: Device;
  readonly #shape: CacheShape;
  readonly #dtype: CacheDType;
  readonly #length: Tensor;
  readonly #positions: Tensor;
  /** Steps of each sequence: what `#length` says on the device. */
  readonly #lengths: number[];
  /** The longest before the last verify pass. */
  #verifiedFrom = 0;
  #capacity = 0;
  #memory: Tensor | undefined;
  #state: CacheState | undefined;

  constructor(device: Device, shape: CacheShape, batch: number, dtype: CacheDType, mostVerified: number) {
    this.#device = device;
    this.#shape = shape;
    this.#dtype = dtype;
    this.#length = device.tensor([batch], 'i32', 'length');
    this.#positions = device.tensor([mostVerified], 'i32', 'positions');
    this.#lengths = new Array<number>(batch).fill(0);
  }

  get state(): CacheState {
    if (!this.#state) throw new Error('cache: expected room to be reserved first.');
    return this.#state;
  }
  /** Steps that fit. */
  get capacity(): number {
    return this.#capacity;
  }
  get longest(): number {
    return Math.max(...this.#lengths);
  }
  get room(): number {
    return this.#capacity - this.longest;
  }
  /** Steps that sequence `b` holds. */
  lengthOf(b: number): number {
    return this.#lengths[b] ?? 0;
  }

  async reserve(steps: number): Promise<boolean> {
    const needed = this.longest + steps;
    if (needed <= this.#capacity) return false;
    const filled = this.#lengths.some((length) => length > 0);
    if (!filled) this.#drop();
    const made = this.#allocate(needed);
    try {
      if (filled) await this.#copyTo(made.layers);
    } catch (error) {
      this.#device.release(made.memory);
      throw error;
    }
    this.#drop();
    this.#memory = made.memory;
    this.#capacity = made.capacity;
    this.#state = { layers: made.layers, length: this.#length };
    return true;
  }

  advanced(steps: number): void {
    for (let b = 0; b < this.#lengths.length; b++) this.#lengths[b] = (this.#lengths[b] ?? 0) + steps;
  }
  async clear(): Promise<void> {
    this.#lengths.fill(0);
    this.#writeLengths();
  }
  leave(b: number): void {
    this.moveTo(b, 0);
  }
  /** Sequence `b` holds so many steps from now on. */
  moveTo(b: number, steps: number): void {
    if (this.#lengths[b] === steps) return;
    this.#lengths[b] = steps;
    this.#writeLengths();
  }

  read(b: number): Float32Array {
    const steps = this.#lengths[b] ?? 0;
    const out = new Float32Array(cacheFloats(this.#shape, steps));
    this.#eachPart(b, steps, (part, at) => {
      out.set(readFloats(this.#device, part), at);
    });
    return out;
  }
  readAll(): Float32Array[] {
    return this.#lengths.map((_, b) => this.read(b));
  }
  write(b: number, data: Float32Array): void {
    const steps = this.stepsIn(data);
    this.#eachPart(b, steps, (part, at) => {
      writeFloats(this.#device, part, data.subarray(at, at + part.elems));
    });
    this.#lengths[b] = steps;
    this.#writeLengths();
  }
  async take(b: number, from: Memory): Promise<void> {
    const held = from.longest;
    if (held > 0) {
      const { layers } = (from as CacheMemory).state;
      await this.#copy(layers, this.state.layers, (x, y) => [[steps(x, 0, held), steps(y, b, held)]]);
    }
    this.moveTo(b, held);
  }
  stepsIn(data: Float32Array): number {
    return data.length / cacheFloats(this.#shape, 1);
  }

  reading(): Passage {
    return { key: '', state: () => this.state };
  }
  verifying(steps: number): Passage {
    const from = this.lengthOf(0);
    this.#verifiedFrom = from;
    this.#device.write(
      this.#positions,
      Int32Array.from({ length: this.#positions.elems }, (_, i) => from + i),
    );
    return { key: '', state: () => ({ ...this.state, positions: this.#positions.slice(0, steps) }) };
  }
  async accept(steps: number): Promise<void> {
    this.moveTo(0, this.#verifiedFrom + steps);
  }

  dispose(): void {
    for (const t of [this.#length, this.#positions, this.#memory]) if (t) this.#device.release(t);
  }

  #drop(): void {
    if (this.#memory) this.#device.release(this.#memory);
    this.#memory = undefined;
    this.#state = undefined;
    this.#capacity = 0;
  }

  /** Caches of `needed` steps and some to spare (SPARE, GROWTH), or of just as many where memory is short. */
  #allocate(needed: number): Caches {
    const blocks = (steps: number) => BLOCK * Math.ceil(steps / BLOCK);
    const exact = blocks(needed);
    const orShort = (capacity: number, short: (cause: OutOfMemoryError) => Caches) => {
      try {
        return this.#caches(capacity);
      } catch (cause) {
        if (cause instanceof OutOfMemoryError) return short(cause);
        throw cause;
      }
    };
    return orShort(blocks(Math.max(SPARE * needed, GROWTH * this.#capacity)), () =>
      orShort(exact, (cause) => {
        const batch = this.#lengths.length;
        const what = `a cache of ${exact} steps for ${counted(batch, 'sequence')}`;
        const bytes = 2 * this.#shape.layers * this.#elements(exact) * dtypeBytes(this.#dtype);
        throw new OutOfMemoryError(expected('cache', what, 'fit in memory', `${bytes} bytes`), { cause });
      }),
    );
  }

  #caches(capacity: number): Caches {
    const { layers, columns } = this.#shape;
    const each = this.#elements(capacity);
    const memory = this.#device.tensor([2 * layers * each], this.#dtype, 'cache');
    const part = (name: string, l: number, i: number) =>
      region(memory, `${name}.${l}`, [this.#lengths.length, capacity, columns], (2 * l + i) * each);
    const pair = (l: number) => ({ keys: part('keys', l, 0), values: part('values', l, 1) });
    return { capacity, memory, layers: Array.from({ length: layers }, (_, l) => pair(l)) };
  }

  /** Of the keys, or the values, of one layer of all sequences. */
  #elements(capacity: number): number {
    return this.#lengths.length * capacity * this.#shape.columns;
  }

  /** What all sequences hold now, to caches of a larger capacity. */
  async #copyTo(layers: CacheState['layers']): Promise<void> {
    const held = this.#capacity;
    const filled = [...this.#lengths.keys()].filter((b) => (this.#lengths[b] ?? 0) > 0);
    await this.#copy(this.state.layers, layers, (from, to) =>
      filled.map((b) => [steps(from, b, held), steps(to, b, held)] as const),
    );
  }

  /** Copies the parts that `pairs` names of each cache of `old` to those of `made`. */
  async #copy(
    old: CacheState['layers'],
    made: CacheState['layers'],
    pairs: (from: Tensor, to: Tensor) => (readonly [x: Tensor, y: Tensor])[],
  ): Promise<void> {
    const g = new Graph();
    for (const [l, from] of old.entries()) {
      const to = made[l] as CacheState['layers'][number];
      for (const [x, y] of [...pairs(from.keys, to.keys), ...pairs(from.values, to.values)]) g.op('copy', { y }, { x });
    }
    using plan = await compile(this.#device, g);
    await plan.run();
  }

  /** Calls `fn` with the first `count` steps of keys and of values of each layer, and where they lie in a state. */
  #eachPart(b: number, count: number, fn: (part: Tensor, at: number) => void): void {
    if (count === 0) return;
    let at = 0;
    for (const { keys, values } of this.state.layers) {
      for (const cache of [keys, values]) {
        fn(steps(cache, b, count), at);
        at += count * this.#shape.columns;
      }
    }
  }

  #writeLengths(): void {
    this.#device.write(this.#length, Int32Array.from(this.#lengths));
  }
}

/** The first `count` steps of sequence `b` of a cache (B, capacity, columns): (count, columns). */
export function steps(cache: Tensor, b: number, count: number): Tensor {
  const [B = 0, capacity = 0, columns = 0] = cache.shape;
  return cache.reshape(B * capacity, columns).slice(b * capacity, count);
}

/** Steps of one sequence in its cache: going back is a smaller length. */
export class CacheTrail implements Trail {
  readonly #memory: CacheMemory;
  #start = 0;

  /** @param memory of one sequence */
  constructor(memory: CacheMemory) {
    this.#memory = memory;
  }

  begin(): void {
    this.#start = this.#memory.lengthOf(0);
  }
  at(position: number): Passage {
    this.#memory.moveTo(0, this.#start + position);
    return this.#memory.reading();
  }
  dispose(): void {}
}
