// What sequences carry that are cut into patches: a cache of one step a patch for the global model, which grows, and for the
// local model what belongs to the patch that is being predicted.
import type { Device } from '../device.ts';
import { expected, ModelFormatError } from '../errors.ts';
import { Graph } from '../graph.ts';
import { compile } from '../plan.ts';
import { PlanCache } from '../plan-cache.ts';
import type { Tensor } from '../tensor.ts';
import { CacheMemory, type CacheShape, type CacheState, cacheFloats, steps } from './cache.ts';
import type { Memory, Passage, Trail } from './memory.ts';
import { type CacheDType, readFloats, region, writeFloats } from './region.ts';

/** Sizes of what is carried. */
export interface PatchShape {
  /** Ids of a patch (M). */
  readonly patch: number;
  readonly global: CacheShape;
  readonly local: CacheShape;
  /** Width of the local model. */
  readonly localWidth: number;
  /** What one id gives to, and gets of, the global model (d). */
  readonly idWidth: number;
}

/** What the local model knows of one patch of each sequence. */
export interface PatchState {
  /** By layer (B, M + 1, columns): keys and values of the places read so far. The row behind the last place is never read. */
  readonly layers: CacheState['layers'];
  /** (B, M, local width): what the global model tells the places of the patch. */
  readonly told: Tensor;
  /** (B, M, d): the ids of the patch as the global model reads them. */
  readonly ids: Tensor;
}

/** Numbers that decide where a run of single ids reads and writes, each (B) i32. */
export interface PatchPlaces {
  /** Patches that the global cache holds before a new one is read, and before the first one is. */
  readonly patches: Tensor;
  readonly startPatches: Tensor;
  /** Rows of (2 B): what the patch was told before, or what it is told now, where a patch begins, and where the first does. */
  readonly chosen: Tensor;
  readonly startChosen: Tensor;
  /** Places that the local cache holds when a row is computed, and when the first place of the first patch is. */
  readonly places: Tensor;
  readonly startPlaces: Tensor;
  /** Row of (1 + B) that the local model reads: the pad, or the id of the sequence. */
  readonly source: Tensor;
  /** Place of the id in its patch. */
  readonly idPlace: Tensor;
  /** Row of (B M): the place that is predicted, of all sequences. */
  readonly row: Tensor;
  /** (3 B) i32: `places`, `idPlace` and `row`, which move on by one with every id of a patch. */
  readonly moving: Tensor;
}

interface Carried {
  /** By layer of the global model (B, capacity, columns). */
  readonly global: CacheState['layers'];
  /** The patch that the sequences are in. */
  readonly patch: PatchState;
  readonly places: PatchPlaces;
  /** Some sequence has read nothing: its first patch begins before the ids are read. */
  readonly starts: boolean;
}

/** What a run is recorded with. */
export type PatchesState =
  /** One id of every sequence; where it `ends` the patch of some, that one's next begins, in `next`. */
  | (Carried & { kind: 'single'; ends: boolean; next: PatchState })
  /** Whole patches of every sequence. */
  | (Carried & { kind: 'patches' })
  /**
   * Ids of one sequence from a place on, each computed as it is alone. Where they end a patch, `kept` gets every patch on the
   * way: as many as `keptIds` (patches, M, d) has room for.
   */
  | (Carried & { kind: 'verify'; place: number; positions: Tensor; kept: readonly PatchState[]; keptIds: Tensor });

/** Floats of what `read` ids leave: how many of them are in a patch not complete, both caches, and the rest of `PatchState`. */
export function patchFloats(shape: PatchShape, read: number): number {
  return read === 0 ? 0 : floatsOf(shape, Math.floor(read / shape.patch), read % shape.patch);
}

/** Of so many whole patches, and `place` ids of the next one. */
function floatsOf({ patch, global, local, localWidth, idWidth }: PatchShape, whole: number, place: number): number {
  return 1 + cacheFloats(global, whole + 1) + cacheFloats(local, place + 1) + patch * localWidth + place * idWidth;
}

/** Memory of several patches of B sequences. */
class PatchSlots {
  readonly slots: readonly PatchState[];
  /** (slots, M, d) of one sequence. */
  readonly ids: Tensor;
  readonly #device: Device;
  readonly #caches: Tensor;
  readonly #told: Tensor;

  constructor(device: Device, shape: PatchShape, slots: number, batch: number, dtype: CacheDType) {
    const { patch: M, local, localWidth, idWidth } = shape;
    this.#device = device;
    const each = batch * (M + 1) * local.columns;
    const inSlot = 2 * local.layers * each;
    this.#caches = device.tensor([slots * inSlot], dtype, 'patch caches');
    this.#told = device.tensor([slots * batch, M, localWidth], 'f32', 'told');
    this.ids = device.tensor([slots * batch, M, idWidth], 'f32', 'patch ids');
    const cache = (name: string, slot: number, i: number) =>
      region(this.#caches, name, [batch, M + 1, local.columns], slot * inSlot + i * each);
    const pair = (slot: number, l: number) => ({
      keys: cache(`local keys.${l}`, slot, 2 * l),
      values: cache(`local values.${l}`, slot, 2 * l + 1),
    });
    const part = (of: Tensor, slot: number) => region(of, of.name, [batch, M, of.cols], slot * batch * M * of.cols);
    this.slots = Array.from({ length: slots }, (_, slot) => ({
      layers: Array.from({ length: local.layers }, (_, l) => pair(slot, l)),
      told: part(this.#told, slot),
      ids: part(this.ids, slot),
    }));
  }

  dispose(): void {
    for (const t of [this.#caches, this.#told, this.ids]) this.#device.release(t);
  }
}

/** Every tensor of a patch. */
function tensorsOf({ layers, told, ids }: PatchState): Tensor[] {
  return [...layers.flatMap(({ keys, values }) => [keys, values]), told, ids];
}

/** Records that one patch becomes a copy of another. */
export function copyPatch(g: Graph, from: PatchState, to: PatchState): void {
  const targets = tensorsOf(to);
  for (const [i, x] of tensorsOf(from).entries()) g.op('copy', { y: targets[i] }, { x });
}

/** Names of `PatchPlaces` in the order in which they lie in memory; the last three move together. */
const PLACES = [
  ...['patches', 'startPatches', 'chosen', 'startChosen', 'startPlaces', 'source'],
  ...['places', 'idPlace', 'row'],
] as const;
const MOVING = 3;

export class PatchMemory implements Memory {
  readonly period: number;
  readonly emptyFloats = 0;
  readonly #device: Device;
  readonly #shape: PatchShape;
  readonly #batch: number;
  readonly #dtype: CacheDType;
  readonly #mostVerified: number;
  /** One step a patch, the one that is being predicted included. Its lengths on the device are not used. */
  readonly #global: CacheMemory;
  readonly #own: PatchSlots;
  readonly #placesMemory: Tensor;
  readonly #places: PatchPlaces;
  readonly #positions: Tensor;
  /** Ids that each sequence has read. */
  readonly #read: number[];
  #kept: PatchSlots | undefined;
  /** Ids read before the last verify pass, and which of its patches is this memory's own now. */
  #verifiedFrom = 0;
  #held = 0;
  readonly #accepts = new PlanCache();

  constructor(device: Device, shape: PatchShape, batch: number, dtype: CacheDType, mostVerified: number) {
    this.period = shape.patch;
    this.#device = device;
    this.#shape = shape;
    this.#batch = batch;
    this.#dtype = dtype;
    this.#mostVerified = mostVerified;
    this.#global = new CacheMemory(device, shape.global, batch, dtype, 1);
    this.#own = new PatchSlots(device, shape, 1, batch, dtype);
    this.#placesMemory = device.tensor([PLACES.length * batch], 'i32', 'places');
    const numbers = (name: string, at: number, count = 1) =>
      region(this.#placesMemory, name, [count * batch], at * batch);
    this.#places = {
      ...(Object.fromEntries(PLACES.map((name, i) => [name, numbers(name, i)])) as unknown as PatchPlaces),
      moving: numbers('moving', PLACES.length - MOVING, MOVING),
    };
    this.#positions = device.tensor([mostVerified], 'i32', 'positions');
    this.#read = new Array<number>(batch).fill(0);
  }

  get device(): Device {
    return this.#device;
  }
  get shape(): PatchShape {
    return this.#shape;
  }
  get dtype(): CacheDType {
    return this.#dtype;
  }
  /** The patch that the sequences are in. */
  get patch(): PatchState {
    return this.#own.slots[0] as PatchState;
  }
  /** Ids that the first sequence has read. */
  get length(): number {
    return this.#read[0] ?? 0;
  }
  get singles(): number {
    const M = this.period;
    const [place = 0] = this.#read.map((read) => read % M);
    return this.#read.every((read) => read % M === place) ? (M - place) % M : Infinity;
  }
  get room(): number {
    const M = this.period;
    const left = Math.min(...this.#read.map((read) => M - 1 - (read % M)));
    return this.#starts ? 1 : Math.max(1, left);
  }

  get longest(): number {
    return Math.max(...this.#read);
  }
  get #starts(): boolean {
    return this.#read.includes(0);
  }

  reserve(more: number): Promise<boolean> {
    // A sequence whose patch does not begin yet writes one too many, which nobody reads.
    const needed = Math.max(...this.#read.map((read) => Math.floor((read + more) / this.period))) + 2;
    return this.#global.reserve(Math.max(0, needed - (this.#global.capacity - this.#global.room)));
  }
  advanced(ids: number): void {
    for (const [b, read] of this.#read.entries()) this.moveTo(b, read + ids);
  }
  async clear(): Promise<void> {
    for (const b of this.#read.keys()) this.moveTo(b, 0);
  }
  /** It stays where others are, so that no plan is run for its sake. */
  leave(b: number): void {
    const others = this.#read.filter((_, other) => other !== b);
    this.moveTo(b, others.length > 0 ? Math.min(...others) : 0);
  }
  /** Sequence `b` has read so many ids from now on. */
  moveTo(b: number, read: number): void {
    this.#read[b] = read;
    this.#global.moveTo(b, this.#patchesOf(read));
  }

  reading(ids: number): Passage {
    this.#writePlaces(ids > 1);
    const starts = this.#starts;
    if (ids > 1) {
      return {
        key: starts ? 'start' : '',
        state: () => ({ ...this.#carried(), kind: 'patches' }) satisfies PatchesState,
      };
    }
    const M = this.period;
    const ends = this.#read.some((read) => read % M === M - 1);
    const key = `${starts ? 'start ' : ''}${ends ? 'end' : ''}`;
    const state = () => ({ ...this.#carried(), kind: 'single', ends, next: this.patch }) satisfies PatchesState;
    return { key, state };
  }

  /** For a step of a trail from a patch of its own to the same or another. */
  stepping(patch: PatchState, next: PatchState): Passage {
    const { key, state } = this.reading(1);
    return { key, state: () => ({ ...(state() as PatchesState), patch, next }) };
  }

  verifying(ids: number): Passage {
    const read = this.length;
    const place = read % this.period;
    this.#writePlaces(false);
    const first = Math.max(1, this.#patchesOf(read));
    this.#device.write(
      this.#positions,
      Int32Array.from({ length: this.#mostVerified }, (_, i) => first + i),
    );
    this.#verifiedFrom = read;
    this.#held = this.#patchOnTheWay(ids);
    const kept = this.#held > 0 ? this.#keptSlots() : undefined;
    const state = () =>
      ({
        ...this.#carried(),
        kind: 'verify',
        place,
        positions: this.#positions,
        kept: kept?.slots ?? [],
        keptIds: kept?.ids ?? this.patch.ids,
      }) satisfies PatchesState;
    return { key: `${place}${this.#starts ? ' start' : ''}`, state };
  }
  async accept(ids: number): Promise<void> {
    const patch = this.#patchOnTheWay(ids);
    if (patch !== this.#held) {
      const { plan } = await this.#accepts.once(`${patch}`, async () => {
        const g = new Graph();
        copyPatch(g, this.#keptSlots().slots[patch] as PatchState, this.patch);
        return { plan: await compile(this.#device, g) };
      });
      await plan.startBrief(); // whatever reads the patch comes after it
      this.#held = patch;
    }
    this.moveTo(0, this.#verifiedFrom + ids);
  }

  read(b: number): Float32Array {
    const read = this.#read[b] ?? 0;
    const out = new Float32Array(patchFloats(this.#shape, read));
    if (read === 0) return out;
    const global = this.#global.read(b);
    out[0] = read % this.period;
    out.set(global, 1);
    this.#eachPart(b, read, 1 + global.length, (part, at) => {
      out.set(readFloats(this.#device, part), at);
    });
    return out;
  }
  readAll(): Float32Array[] {
    return this.#read.map((_, b) => this.read(b));
  }
  write(b: number, data: Float32Array): void {
    const read = this.stepsIn(data);
    this.#read[b] = read;
    const end = 1 + cacheFloats(this.#shape.global, this.#patchesOf(read));
    this.#global.write(b, read === 0 ? data : data.subarray(1, end));
    this.#eachPart(b, read, end, (part, at) => {
      writeFloats(this.#device, part, data.subarray(at, at + part.elems));
    });
  }
  /** @throws ModelFormatError for numbers that are no state */
  stepsIn(data: Float32Array): number {
    if (data.length === 0) return 0;
    const M = this.period;
    const [place = 0] = data;
    const whole = (data.length - floatsOf(this.#shape, 0, place)) / cacheFloats(this.#shape.global, 1);
    const read = whole * M + place;
    if (Number.isInteger(place) && place >= 0 && place < M && Number.isInteger(whole) && read > 0) return read;
    const got = `${data.length} numbers of place ${place}`;
    throw new ModelFormatError(expected('state', 'data', `be of patches of ${M} ids`, got));
  }

  dispose(): void {
    void this.#accepts.forget();
    this.#global.dispose();
    this.#own.dispose();
    this.#kept?.dispose();
    for (const t of [this.#placesMemory, this.#positions]) this.#device.release(t);
  }

  /** Patches that the global cache holds when so many ids are read. */
  #patchesOf(read: number): number {
    return read === 0 ? 0 : Math.floor(read / this.period) + 1;
  }

  /** How many patches were completed on the way to the first `ids` of a verify pass. */
  #patchOnTheWay(ids: number): number {
    const from = this.#verifiedFrom;
    return Math.floor((from + ids) / this.period) - Math.floor(from / this.period);
  }

  #keptSlots(): PatchSlots {
    const most = Math.floor((this.period - 1 + this.#mostVerified) / this.period) + 1;
    this.#kept ??= new PatchSlots(this.#device, this.#shape, most, 1, this.#dtype);
    return this.#kept;
  }

  #carried(): Carried {
    return { global: this.#global.state.layers, patch: this.patch, places: this.#places, starts: this.#starts };
  }

  /** For a run over one id of every sequence, or over whole patches. */
  #writePlaces(whole: boolean): void {
    const [M, B] = [this.period, this.#batch];
    const rows = this.#read.map((read, b) => {
      const place = read % M;
      const ends = place === M - 1;
      const patches = this.#patchesOf(read);
      const row: Record<(typeof PLACES)[number], number> = {
        patches: Math.max(1, patches),
        startPatches: patches,
        chosen: ends ? B + b : b,
        startChosen: read === 0 ? B + b : b,
        startPlaces: read === 0 ? 0 : place + 1,
        source: ends ? 0 : 1 + b,
        places: ends || whole ? 0 : place + 1,
        idPlace: place,
        row: b * M + (ends ? 0 : place + 1),
      };
      return row;
    });
    const data = PLACES.flatMap((name) => rows.map((row) => row[name]));
    this.#device.write(this.#placesMemory, Int32Array.from(data));
  }

  /** Calls `fn` with the parts of sequence `b`'s patch that so many ids leave, and where they lie in a state. */
  #eachPart(b: number, read: number, from: number, fn: (part: Tensor, at: number) => void): void {
    if (read === 0) return;
    const { layers, told, ids } = this.patch;
    const place = read % this.period;
    let at = from;
    for (const part of [
      ...layers.flatMap(({ keys, values }) => [steps(keys, b, place + 1), steps(values, b, place + 1)]),
      steps(told, b, this.period),
      ...(place > 0 ? [steps(ids, b, place)] : []),
    ]) {
      fn(part, at);
      at += part.elems;
    }
  }
}

/** One sequence that may go back: a ring of patches, each of which goes back by a smaller number of places. */
export class PatchTrail implements Trail {
  readonly #memory: PatchMemory;
  readonly #patches: PatchSlots;
  #start = 0;

  /**
   * @param memory of one sequence
   * @param slots positions that can be gone back to
   */
  constructor(memory: PatchMemory, slots: number) {
    const { device, shape, dtype } = memory;
    this.#memory = memory;
    this.#patches = new PatchSlots(device, shape, Math.ceil(slots / shape.patch) + 2, 1, dtype);
  }

  begin(): void {
    const { device, patch, length } = this.#memory;
    this.#start = length;
    const targets = tensorsOf(this.#slot(0));
    for (const [i, t] of tensorsOf(patch).entries()) device.write(targets[i] as Tensor, device.read(t));
  }
  at(position: number): Passage {
    const M = this.#memory.period;
    const read = this.#start + position;
    const patchOf = (ids: number) => Math.floor(ids / M) - Math.floor(this.#start / M);
    this.#memory.moveTo(0, read);
    const from = patchOf(read);
    const { key, state } = this.#memory.stepping(this.#slot(from), this.#slot(patchOf(read + 1)));
    return { key: `${from % this.#patches.slots.length} ${key}`, state };
  }
  dispose(): void {
    this.#patches.dispose();
  }

  #slot(patch: number): PatchState {
    return this.#patches.slots[patch % this.#patches.slots.length] as PatchState;
  }
}
