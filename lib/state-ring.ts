import type { Device } from './device.ts';
import { checkInteger } from './errors.ts';
import { layerStatesIn } from './layer-states.ts';
import type { MambaConfig } from './models/config.ts';
import type { LayerState, Weights } from './models/mamba.ts';
import { Session } from './session.ts';
import { SessionPlans } from './session-plans.ts';
import { stateLength } from './state.ts';
import type { Tensor } from './tensor.ts';

/** States that a ring keeps; one step back for each but one. */
export const RING_SLOTS = 16;

/**
 * One sequence that is read id by id and can go back by up to 15 of them without any copy: the state after every id goes
 * to a slot of its own, and a step reads one slot and writes the next.
 */
export class StateRing {
  readonly #device: Device;
  readonly #config: MambaConfig;
  readonly #weights: Weights;
  readonly #states: Tensor;
  readonly #slots: LayerState[][];
  readonly #plans: SessionPlans;
  #reader: Session | undefined;
  readonly #logits: Float32Array[] = [];
  #position = 0;
  #newest = 0;

  constructor(device: Device, config: MambaConfig, weights: Weights) {
    this.#device = device;
    this.#config = config;
    this.#weights = weights;
    const perSlot = stateLength(config);
    this.#states = device.tensor([RING_SLOTS, perSlot], 'f32', 'ring');
    this.#slots = Array.from({ length: RING_SLOTS }, (_, slot) =>
      layerStatesIn(this.#states, config, 1, slot * perSlot),
    );
    this.#plans = new SessionPlans(device, config, weights, 1, this.#slots[0] ?? []);
  }

  /**
   * Ids read since the last reset. May be set to any position whose state is still there: back to `oldest`, and after
   * that forth again to `newest`.
   * @throws RangeError for another one
   */
  get position(): number {
    return this.#position;
  }
  set position(position: number) {
    this.#position = checkInteger('ring', 'position', position, { min: this.oldest, max: this.#newest });
  }
  get oldest(): number {
    return Math.max(1, this.#newest - RING_SLOTS + 1);
  }
  get newest(): number {
    return this.#newest;
  }

  /** (vocab) of what follows at `position`. */
  get logits(): Float32Array {
    return this.#logits[this.#position % RING_SLOTS] ?? new Float32Array(0);
  }

  /** Begins a sequence with at least one id: the last of them is position 1. */
  async reset(ids: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    const last = checkInteger('ring.reset', 'the last id', ids[ids.length - 1], {
      min: 0,
      max: this.#config.vocab - 1,
    });
    this.#reader ??= new Session(this.#device, this.#config, this.#weights, 1);
    await this.#reader.clear();
    await this.#reader.consume(Array.prototype.slice.call(ids, 0, -1) as number[], signal);
    this.#device.write(this.#states.slice(0), this.#reader.readState());
    this.#position = 0;
    this.#newest = 0;
    await this.step(last);
  }

  /** Reads one id: what was read after `position` before is forgotten. */
  async step(id: number): Promise<void> {
    const from = this.#position % RING_SLOTS;
    const to = (from + 1) % RING_SLOTS;
    const layers = () =>
      (this.#slots[from] ?? []).map((state, l) => ({ ...state, next: this.#slots[to]?.[l] ?? state }));
    const { plan, ids, logits } = await this.#plans.step(`${from}`, layers);
    this.#device.write(ids, Int32Array.of(id));
    await plan.run();
    this.#position++;
    this.#newest = this.#position;
    this.#logits[to] = plan.read(logits) as Float32Array;
  }

  dispose(): void {
    this.#reader?.dispose();
    this.#plans.dispose();
    this.#device.release(this.#states);
  }
}
