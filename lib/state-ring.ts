import type { Device } from './device.ts';
import { checkInteger } from './errors.ts';
import type { Trail } from './memory/memory.ts';
import type { Weights } from './models/architecture.ts';
import type { ModelConfig } from './models/architectures.ts';
import { Session } from './session.ts';

/** States that a ring keeps; one step back for each but one. */
export const RING_SLOTS = 16;

/** One sequence that is read id by id and can go back by up to 15 of them without any copy. */
export class StateRing {
  readonly #vocab: number;
  readonly #session: Session;
  readonly #trail: Trail;
  /** By slot (vocab): each step reuses what the sixteenth before it had. */
  readonly #logits: Float32Array[];
  #position = 0;
  #newest = 0;

  constructor(device: Device, config: ModelConfig, weights: Weights) {
    this.#vocab = config.vocab;
    this.#session = new Session(device, config, weights, 1);
    this.#trail = this.#session.trail(RING_SLOTS);
    this.#logits = Array.from({ length: RING_SLOTS }, () => new Float32Array(config.vocab));
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

  /** (vocab) of what follows at `position`. Of use as long as that position is there: then a step reuses the array. */
  get logits(): Float32Array {
    return this.#logits[this.#position % RING_SLOTS] as Float32Array;
  }

  /** Begins a sequence with at least one id: the last of them is position 1. */
  async reset(ids: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    const last = checkInteger('ring.reset', 'the last id', ids[ids.length - 1], {
      min: 0,
      max: this.#vocab - 1,
    });
    await this.#session.clear();
    await this.#session.consume(Array.prototype.slice.call(ids, 0, -1) as number[], signal);
    this.#trail.begin();
    this.#position = 0;
    this.#newest = 0;
    await this.step(last);
  }

  /** Reads one id: what was read after `position` before is forgotten. */
  async step(id: number): Promise<void> {
    const logits = this.#logits[(this.#position + 1) % RING_SLOTS] as Float32Array;
    await this.#session.step(id, this.#trail, this.#position, logits);
    this.#position++;
    this.#newest = this.#position;
  }

  dispose(): void {
    this.#trail.dispose();
    this.#session.dispose();
  }
}
