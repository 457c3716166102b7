// States whose size does not depend on the length of the text. They cannot go back, so a verify pass keeps the state after
// every id, and a trail has a ring of states.
import type { Device } from '../device.ts';
import { Graph } from '../graph.ts';
import { compile } from '../plan.ts';
import { PlanCache } from '../plan-cache.ts';
import { elements, type Tensor } from '../tensor.ts';
import type { Memory, Passage, Trail } from './memory.ts';
import { region } from './region.ts';

/**
 * Steps that the states of a verify pass make room for, layer by layer: fewer where a pass is short, so that short ones do
 * not touch all of the memory. The first touch of a page takes its time, of a large one up to milliseconds.
 */
const ROOMS = [8, 16];

/** The f32 tensors that a layer carries, and how its architecture calls them. */
export interface RecurrentLayers<S> {
  readonly layers: number;
  /** Of one layer and one sequence, in the order in which they lie in memory. */
  readonly shapes: readonly (readonly number[])[];
  /**
   * The state of a layer.
   * @param own (B, ...shape) for each of the shapes
   * @param to.next where the state after the last step goes; left out: to where it came from
   * @param to.kept (T, B, elements of shape): where the state after every step goes
   */
  layer(own: readonly Tensor[], to: { next?: readonly Tensor[]; kept?: readonly Tensor[] }): S;
}

/** Floats of the state of one sequence. */
export function recurrentFloats({ layers, shapes }: Pick<RecurrentLayers<unknown>, 'layers' | 'shapes'>): number {
  return layers * shapes.reduce((sum, shape) => sum + elements(shape), 0);
}

/** By layer the tensors of B sequences in `memory`, `at` elements into it. */
function tensorsIn(memory: Tensor, { layers, shapes }: RecurrentLayers<unknown>, B: number, at = 0): Tensor[][] {
  let from = at;
  return Array.from({ length: layers }, (_, l) =>
    shapes.map((shape, i) => {
      const tensor = region(memory, `${memory.name}.${l}.${i}`, [B, ...shape], from);
      from += B * elements(shape);
      return tensor;
    }),
  );
}

export class RecurrentMemory<S> implements Memory {
  readonly state: readonly S[];
  readonly period = 1;
  readonly singles = 0;
  readonly room = Infinity;
  readonly longest = 0;
  readonly emptyFloats: number;
  readonly #device: Device;
  readonly #kind: RecurrentLayers<S>;
  readonly #batch: number;
  /** Most steps of a verify pass. */
  readonly #most: number;
  readonly #memory: Tensor;
  readonly #tensors: Tensor[][];
  readonly #plans = new PlanCache();
  #zeros: Tensor | undefined;
  /** By layer the states after every step of the last verify pass, each of them contiguous as fused kernels write them. */
  #kept: Tensor | undefined;
  /** Steps that they have room for. */
  #room = 0;

  constructor(device: Device, kind: RecurrentLayers<S>, batch: number, mostVerified: number) {
    this.#device = device;
    this.#kind = kind;
    this.#batch = batch;
    this.#most = mostVerified;
    this.emptyFloats = recurrentFloats(kind);
    this.#memory = device.tensor([batch * this.emptyFloats], 'f32', 'state');
    this.#tensors = tensorsIn(this.#memory, kind, batch);
    this.state = this.#tensors.map((own) => kind.layer(own, {}));
  }

  async reserve(): Promise<boolean> {
    return false;
  }
  advanced(): void {}
  leave(): void {}
  stepsIn(): number {
    return 0;
  }

  async clear(): Promise<void> {
    // Zeros of one layer, again and again: nothing is sent to the device.
    const { layers } = this.#kind;
    await this.#join('clear', () => {
      this.#zeros ??= this.#device.tensor([this.#memory.elems / layers], 'f32', 'zeros');
      return new Array<Tensor>(layers).fill(this.#zeros);
    });
  }

  read(b: number): Float32Array {
    return this.#batch === 1 ? (this.#device.read(this.#memory) as Float32Array) : (this.readAll()[b] as Float32Array);
  }
  readAll(): Float32Array[] {
    const B = this.#batch;
    const all = this.#device.read(this.#memory) as Float32Array;
    const states = Array.from({ length: B }, () => new Float32Array(this.emptyFloats));
    this.#eachTensor((floats, at) => {
      states.forEach((own, b) => {
        own.set(all.subarray(B * at + b * floats, B * at + (b + 1) * floats), at);
      });
    });
    return states;
  }
  write(b: number, data: Float32Array): void {
    if (this.#batch === 1) {
      this.#device.write(this.#memory, data);
      return;
    }
    this.#eachTensor((floats, at, tensor) => {
      this.#device.write(tensor.slice(b), data.subarray(at, at + floats));
    });
  }

  reading(): Passage {
    return { key: '', state: () => this.state };
  }
  verifying(steps: number): Passage {
    const room = Math.min(this.#most, ROOMS.find((most) => steps <= most) ?? this.#most);
    this.#room = room;
    const state = () => {
      const kept = this.#keptTensors(steps, room);
      return this.#tensors.map((own, l) => this.#kind.layer(own, { kept: kept[l] ?? [] }));
    };
    return { key: '', state };
  }

  async accept(steps: number): Promise<void> {
    const room = this.#room;
    await this.#join(`accept ${steps} of ${room}`, () =>
      this.#keptTensors(steps, room).flatMap((l) => l.map((t) => t.slice(steps - 1))),
    );
  }

  dispose(): void {
    void this.#plans.forget();
    for (const t of [this.#memory, this.#zeros, this.#kept]) if (t) this.#device.release(t);
  }

  /** Calls `fn` for the floats of each tensor of a sequence and where they begin in its state. */
  #eachTensor(fn: (floats: number, at: number, tensor: Tensor) => void): void {
    let at = 0;
    for (const tensor of this.#tensors.flat()) {
      const floats = tensor.elems / this.#batch;
      fn(floats, at, tensor);
      at += floats;
    }
  }

  #keptTensors(steps: number, room: number): Tensor[][] {
    this.#kept ??= this.#device.tensor([this.#most * this.emptyFloats], 'f32', 'kept');
    const memory = this.#kept;
    let at = 0;
    return this.#tensors.map((own, l) =>
      own.map((t, i) => {
        const kept = region(memory, `kept.${l}.${i}`, [steps, 1, t.elems], at);
        at += room * t.elems;
        return kept;
      }),
    );
  }

  /** Writes `parts` one after another to the memory; `name` tells such plans apart. */
  async #join(name: string, parts: () => readonly Tensor[]): Promise<void> {
    const { plan } = await this.#plans.once(name, async () => {
      const g = new Graph();
      const rows = parts().map((t) => t.reshape(1, t.elems));
      g.op('concat', { y: this.#memory.reshape(1, this.#memory.elems) }, { parts_: rows });
      return { plan: await compile(this.#device, g) };
    });
    await plan.startBrief(); // whatever reads the state comes after it
  }
}

/** A ring of states: a step reads one slot and writes the next, so going back copies nothing. */
export class RecurrentTrail implements Trail {
  readonly #device: Device;
  readonly #start: Memory;
  readonly #states: Tensor;
  /** By the slot that a step reads. */
  readonly #passages: readonly Passage[];

  /** @param start of one sequence: what the trail begins with */
  constructor(device: Device, kind: RecurrentLayers<unknown>, slots: number, start: Memory) {
    this.#device = device;
    this.#start = start;
    const floats = recurrentFloats(kind);
    this.#states = device.tensor([slots, floats], 'f32', 'ring');
    const all = Array.from({ length: slots }, (_, slot) => tensorsIn(this.#states, kind, 1, slot * floats));
    this.#passages = all.map((slot, from) => {
      const next = all[(from + 1) % slots] ?? [];
      return { key: `${from}`, state: () => slot.map((own, l) => kind.layer(own, { next: next[l] ?? [] })) };
    });
  }

  begin(): void {
    this.#device.write(this.#states.slice(0), this.#start.read(0));
  }

  at(position: number): Passage {
    return this.#passages[position % this.#passages.length] as Passage;
  }

  dispose(): void {
    this.#device.release(this.#states);
  }
}
